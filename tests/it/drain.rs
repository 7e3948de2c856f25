//! The promise: SIGTERM tells every client and backend, and the process ends inside its drain time.

use std::time::Duration;

use anyhow::{Context, Result};
use pointsman_tests::{
    Backend, Balancer, Client, PATIENCE, Wire, app, eventually, upgrade_request,
};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

const DRAIN: Duration = Duration::from_secs(4);

/// For the process to end after its last socket, on a busy machine.
const GRACE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn two_hundred_sockets_are_told_1001_and_the_process_ends_in_time() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = format!("drain_timeout_secs = {}\n", DRAIN.as_secs())
        + &app("round_robin", &addresses)
        + "[[route]]\npath = \"/echo\"\nhandler = \"echo\"\n";
    let mut balancer = Balancer::start(&toml).await?;

    let mut clients = JoinSet::new();
    for i in 0..200 {
        let path = if i % 2 == 0 { "/websocket" } else { "/echo" };
        let mut client = Client::connect(&balancer.url(path)).await?;
        client.echo_text("before the signal").await?;
        clients.spawn(async move { client.close_code().await });
    }

    let began = Instant::now();
    balancer.signal(Signal::TERM)?;
    eventually("/readyz answers 503", PATIENCE, async || {
        let ready = balancer.admin_get("/readyz").await;
        ready.is_ok_and(|answer| answer.status == 503)
    })
    .await?;
    while let Some(code) = clients.join_next().await {
        assert_eq!(code??, Some(1001));
    }
    let ended = balancer.wait_exit(DRAIN + GRACE).await?;
    assert!(
        began.elapsed() <= DRAIN + GRACE,
        "took {:?}",
        began.elapsed()
    );
    assert_eq!(ended.code(), Some(0));

    let told: Vec<u16> = backends.iter().flat_map(Backend::close_codes).collect();
    assert_eq!(told, [1001; 100]);
    Ok(())
}

#[tokio::test]
async fn a_message_under_way_at_the_drain_is_not_cut_in_two() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = "drain_timeout_secs = 2\n".to_owned() + &app("round_robin", &[backend.address()]);
    let mut balancer = Balancer::start(&toml).await?;
    // Its echo is far larger than what sockets hold, and is not read before the signal.
    let big = vec![0xa5; 15 * 1024 * 1024];
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.send(big.clone().into()).await?;
    eventually("the echo is on its way", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        let down = [("upstream", "app"), ("direction", "down")];
        metrics.is_ok_and(|m| m.sum("pointsman_bytes_total", &down) > 0.0)
    })
    .await?;
    balancer.signal(Signal::TERM)?;
    let received = client.receive().await.context("the echo of the message")?;
    assert!(received.into_data() == big, "the echo differs");
    assert_eq!(client.close_code().await?, Some(1001));
    assert_eq!(balancer.wait_exit(PATIENCE).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn sockets_that_do_not_answer_the_close_are_cut_at_the_deadline() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = "drain_timeout_secs = 1\n".to_owned() + &app("round_robin", &[backend.address()]);
    let mut balancer = Balancer::start(&toml).await?;
    let mut deaf = Wire::connect(balancer.address()).await?;
    deaf.send(upgrade_request("/websocket", &[])).await?;
    assert_eq!(deaf.head().await?.status, 101);
    balancer.signal(Signal::TERM)?;
    assert_eq!(deaf.frame().await?.close_code(), Some(1001));
    // Nothing is answered, and the connection stays open on this side.
    let ended = balancer.wait_exit(Duration::from_secs(1) + GRACE).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn sigint_with_no_sockets_ends_the_process_at_once() -> Result<()> {
    let backend = Backend::start().await?;
    let mut balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    balancer.signal(Signal::INT)?;
    let ended = balancer.wait_exit(Duration::from_secs(3)).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}
