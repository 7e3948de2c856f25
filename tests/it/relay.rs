//! The promise: a relay loses, doubles, reorders and alters nothing, passes close codes through,
//! and lets a client that does not read hold up nobody but its own backend.

use std::cell::Cell;

use anyhow::{Result, bail, ensure};
use pointsman_tests::{
    Backend, Balancer, Client, Edit, PATIENCE, Wire, app, eventually, frame, payload,
    upgrade_request,
};
use tokio_tungstenite::tungstenite::Message;

async fn one_backend() -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    Ok((backend, balancer))
}

#[tokio::test]
async fn close_codes_pass_through() -> Result<()> {
    let (backend, balancer) = one_backend().await?;
    for code in [1000, 1001, 3000, 4999] {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("first").await?;
        assert_eq!(client.close(code).await?, Some(code));
    }
    assert_eq!(backend.close_codes(), [1000, 1001, 3000, 4999]);
    Ok(())
}

#[tokio::test]
async fn control_frames_between_pieces_pass_through() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request("/websocket", &[])).await?;
    assert_eq!(wire.head().await?.status, 101);
    wire.send(frame(0x01, b"one ")).await?;
    wire.send(frame(0x89, b"ping")).await?;
    let pong = wire.frame().await?;
    assert_eq!((pong.first_byte, &pong.payload[..]), (0x8a, &b"ping"[..]));
    wire.send(frame(0x80, b"message")).await?;
    let echo = wire.frame().await?;
    assert_eq!(
        (echo.first_byte, &echo.payload[..]),
        (0x81, &b"one message"[..])
    );
    Ok(())
}

#[tokio::test]
async fn many_messages_come_back_in_order() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    // In batches, so that reads and writes of many lengths meet many frames at once.
    let mut n_sent = 0_usize;
    for batch in 0..50 {
        let sizes: Vec<usize> = (0..40).map(|i| (batch * 997 + i * 131) % 3000).collect();
        for size in &sizes {
            client
                .send(format!("{n_sent} {}", payload(*size)).into())
                .await?;
            n_sent += 1;
        }
        for (i, size) in sizes.iter().enumerate() {
            let n = n_sent - sizes.len() + i;
            let received = client.receive().await?;
            ensure!(
                received == format!("{n} {}", payload(*size)).into(),
                "message {n} differs"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_message_over_the_bound_closes_the_session_with_1009() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]).replace_once("16777216", "1024");
    let balancer = Balancer::start(&toml).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_binary(vec![1; 1024]).await?;
    client.send(vec![1; 1025].into()).await?;
    assert_eq!(client.close_code().await?, Some(1009));
    Ok(())
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_session_at_the_backend() -> Result<()> {
    let (backend, balancer) = one_backend().await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("here").await?;
    assert_eq!(backend.n_open(), 1);
    drop(client);
    eventually("no session at the backend", PATIENCE, async || {
        backend.n_open() == 0
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_no_other() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        // More than the sockets on the way hold; not read until the others are done.
        client.send(vec![7; 12 * 1024 * 1024].into()).await?;
        deaf.push(client);
    }
    for _ in 0..8 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        for i in 0..20 {
            client.echo_text(&format!("message {i}")).await?;
        }
    }
    for mut client in deaf {
        ensure!(
            client.receive().await?.len() == 12 * 1024 * 1024,
            "a cut echo"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_session_with_no_traffic_ends_after_its_idle_timeout() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()])
        .replace_once("path = \"/*\"", "path = \"/*\"\nidle_timeout_secs = 1");
    let balancer = Balancer::start(&toml).await?;
    let mut busy = Client::connect(&balancer.url("/websocket")).await?;
    let mut idle = Client::connect(&balancer.url("/websocket")).await?;
    // The busy one is older, and so has outlived the timeout when the idle one has come to it.
    let is_over = Cell::new(false);
    let (talked, code) = tokio::join!(
        async {
            while !is_over.get() {
                busy.echo_text("still here").await?;
            }
            busy.echo_text("and now").await
        },
        async {
            let code = idle.close_code().await;
            is_over.set(true);
            code
        }
    );
    talked?;
    assert_eq!(code?, Some(1001));
    Ok(())
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed_though_its_backend_does() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()])
        .replace_once("path = \"/*\"", "path = \"/*\"\nping_interval_secs = 1");
    let balancer = Balancer::start(&toml).await?;
    let mut alive = Client::connect(&balancer.url("/websocket")).await?;
    let mut mute = Wire::connect(balancer.address()).await?;
    mute.send(upgrade_request("/websocket", &[])).await?;
    assert_eq!(mute.answer().await?.status, 101);

    let told = async {
        loop {
            let frame = mute.frame().await?;
            if let Some(code) = frame.close_code() {
                return Ok::<_, anyhow::Error>(code);
            }
        }
    };
    // Reading is what answers pings in the other client; the backend's answers pass through to it.
    let mut alive_receives = async || {
        loop {
            match alive.receive().await {
                Ok(Message::Pong(_)) => {}
                other => return other,
            }
        }
    };
    tokio::select! {
        told = told => assert_eq!(told?, 1001),
        received = alive_receives() => bail!("the client that answers got {received:?}"),
    }
    alive.send(Message::text("still here")).await?;
    while alive.receive().await? != Message::text("still here") {}
    Ok(())
}
