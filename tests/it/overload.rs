//! The promise: too much of anything is refused or waits, and what is there goes on as if nothing
//! had come.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Chatter, Client, NOBODY, PATIENCE, Wire, app, eventually, frame, in_time,
    upgrade_request,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
/// The first of several frames, binary.
const BINARY_BEGINS: u8 = 0x02;
const GOES_ON: u8 = 0x00;
const FIN: u8 = 0x80;

async fn one_backend(before: &str) -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let toml = format!("{before}{}", app("round_robin", &[backend.address()]));
    let balancer = Balancer::start(&toml).await?;
    Ok((backend, balancer))
}

fn listener(lines: &str) -> String {
    format!("[[listener]]\nbind = \"127.0.0.1:0\"\n{lines}\n")
}

async fn counted(balancer: &Balancer, name: &str) -> Result<f64> {
    Ok(balancer.metrics().await?.sum(name, &[]))
}

#[tokio::test]
async fn a_client_address_has_no_more_connections_than_allowed_and_others_have_their_own()
-> Result<()> {
    let toml = listener("max_connections_per_client = 2");
    let (_backend, balancer) = one_backend(&toml).await?;
    let url = balancer.url("/websocket");
    let mut open = [Client::connect(&url).await?, Client::connect(&url).await?];
    let mut refused = Wire::connect(balancer.address()).await?;
    assert_eq!(refused.rest().await?, b"");
    assert_eq!(
        counted(&balancer, "pointsman_connections_refused_total").await?,
        1.0
    );

    let elsewhere: IpAddr = "127.0.0.2".parse()?;
    let mut other = Wire::connect_from(elsewhere, balancer.address()).await?;
    other.send(upgrade_request("/websocket", &[])).await?;
    assert_eq!(other.head().await?.status, 101);

    let [first, second] = &mut open;
    first.echo_text("as before").await?;
    second.echo_text("as before").await?;
    let [first, _second] = open;
    first.close(1000).await?;
    eventually("there is room again", PATIENCE, async || {
        Client::connect(&url).await.is_ok()
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_trusted_proxy_has_as_many_connections_as_it_likes() -> Result<()> {
    let toml = format!(
        "trusted_proxies = [\"127.0.0.1\"]\n{}",
        listener("max_connections_per_client = 1")
    );
    let (_backend, balancer) = one_backend(&toml).await?;
    let chatter = Chatter::start(3, &balancer.url("/websocket")).await?;
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn sessions_over_the_bound_are_told_when_to_come_again() -> Result<()> {
    let (backend, balancer) = one_backend("[overload]\nmax_sessions = 2\n").await?;
    let url = balancer.url("/websocket");
    let chatter = Chatter::start(2, &url).await?;
    let mut third = Wire::connect(balancer.address()).await?;
    third.send(upgrade_request("/websocket", &[])).await?;
    let answer = third.answer().await?;
    assert_eq!(answer.status, 503);
    let wait: u32 = answer
        .header("retry-after")
        .context("no retry-after")?
        .parse()?;
    ensure!((1..=5).contains(&wait), "{wait} s");
    assert_eq!(backend.n_connections(), 2, "a backend has heard of it");
    assert_eq!(balancer.get("/").await?.status, 200, "no session");
    let refused = balancer.metrics().await?;
    let refused = refused.sum("pointsman_upgrades_total", &[("result", "overloaded")]);
    assert_eq!(refused, 1.0);

    balancer.reload(&format!(
        "[overload]\nmax_sessions = 3\n{}",
        app("round_robin", &[backend.address()])
    ))?;
    eventually("the new bound is in force", PATIENCE, async || {
        Client::connect(&url).await.is_ok()
    })
    .await?;
    chatter.stop().await?;
    let open = [Client::connect(&url).await?, Client::connect(&url).await?];
    drop(open);
    Ok(())
}

#[tokio::test]
async fn a_dribble_does_not_extend_the_time_for_a_head() -> Result<()> {
    let (_backend, balancer) = one_backend(&listener("handshake_timeout_ms = 500")).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("GET / HTTP/1.1\r\nX: ").await?;
    let dribble = async {
        while wire.send("a").await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = timeout(PATIENCE, dribble).await;
    ensure!(ended.is_ok(), "it is listened to still");
    Ok(())
}

#[tokio::test]
async fn without_descriptors_accepting_pauses_and_sessions_go_on() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = format!("workers = 1\n{}", app("round_robin", &[backend.address()]));
    let balancer = Balancer::start_with_descriptors(&toml, 256).await?;
    let url = balancer.url("/websocket");
    let mut open = Vec::new();
    let waiting = loop {
        let mut next = Box::pin(Client::connect(&url));
        match timeout(Duration::from_secs(1), next.as_mut()).await {
            Ok(client) => open.push(client?),
            Err(_) => break next,
        }
        ensure!(open.len() < 256, "more sessions than descriptors");
    };
    ensure!(open.len() > 50, "only {} sessions", open.len());
    for client in &mut open {
        client.echo_text("still here").await?;
    }
    ensure!(
        balancer
            .log()
            .iter()
            .any(|line| line.contains("accepting pauses")),
        "nothing is said of it"
    );
    assert_eq!(balancer.admin_get("/healthz").await?.status, 200);
    open.truncate(open.len() / 2);
    let mut late = waiting.await?;
    late.echo_text("it was my turn").await?;
    for _ in 0..10 {
        open.push(Client::connect(&url).await?);
    }
    for client in &mut open {
        client.echo_text("and still").await?;
    }
    let failures = balancer.metrics().await?;
    let failures = failures.sum("pointsman_backend_failures_total", &[]);
    assert_eq!(failures, 0.0, "no backend is to blame");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_late_refuses_new_requests_and_keeps_its_sessions() -> Result<()> {
    let toml = "workers = 1\n[overload]\nshed_delay_ms = 10\n";
    let (_backend, balancer) = one_backend(toml).await?;
    let chatter = Chatter::start(20, &balancer.url("/websocket")).await?;
    let (mut n_accepted, mut n_refused) = (0, 0);
    eventually("some are refused, some served", PATIENCE, async || {
        let mut burst = JoinSet::new();
        for _ in 0..600 {
            let address = balancer.address();
            burst.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                wire.send(upgrade_request("/websocket", &[])).await?;
                let answer = wire.head().await?;
                anyhow::Ok((answer.status, answer.header("retry-after").is_some()))
            });
        }
        while let Some(answer) = burst.join_next().await {
            match answer {
                Ok(Ok((101, false))) => n_accepted += 1,
                Ok(Ok((503, true))) => n_refused += 1,
                other => panic!("{other:?}"),
            }
        }
        n_refused > 0 && n_accepted > 0
    })
    .await?;
    eventually("it is in time again", PATIENCE, async || {
        Client::connect(&balancer.url("/websocket")).await.is_ok()
    })
    .await?;
    chatter.stop().await?;
    let metrics = balancer.metrics().await?;
    let counted = metrics.sum("pointsman_upgrades_total", &[("result", "overloaded")]);
    ensure!(counted >= f64::from(n_refused), "{counted} of {n_refused}");
    Ok(())
}

#[tokio::test]
async fn what_all_sessions_hold_is_bounded_together() -> Result<()> {
    let toml = "workers = 1\n[overload]\nmax_buffered_bytes = 1048576\n";
    let (_backend, balancer) = one_backend(toml).await?;
    let mut floods = JoinSet::new();
    for _ in 0..40 {
        let mut client = Wire::connect(balancer.address()).await?;
        client.send(upgrade_request("/websocket", &[])).await?;
        client.head().await?;
        floods.spawn(async move {
            let piece = frame(TEXT, &[b'a'; 65_000]);
            while client.send(&piece).await.is_ok() {}
        });
    }
    let (mut peak, mut last) = (0.0_f64, 0.0);
    eventually("all are stuck", PATIENCE, async || {
        let held = counted(&balancer, "pointsman_buffered_bytes").await;
        let held = held.unwrap_or_default();
        let has_settled = held > 200_000.0 && held == last;
        last = held;
        peak = peak.max(held);
        has_settled
    })
    .await?;
    // What one read more than allowed can bring, and a little of each of the others.
    ensure!(
        peak < f64::from((1 << 20) + (256 << 10) + 40 * 2 * 4096),
        "{peak}"
    );
    floods.shutdown().await;
    eventually("nothing is held", PATIENCE, async || {
        counted(&balancer, "pointsman_buffered_bytes")
            .await
            .is_ok_and(|held| held == 0.0)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn messages_that_there_is_no_room_for_end_their_own_sessions() -> Result<()> {
    let toml = r#"
workers = 1

[overload]
max_buffered_bytes = 1048576

[[route]]
path = "/*"
handler = "echo"
"#;
    let balancer = Balancer::start(toml).await?;
    let mut small = Client::connect(&balancer.url("/")).await?;
    let mut large = Vec::new();
    for _ in 0..8 {
        let mut client = Wire::connect(balancer.address()).await?;
        client.send(upgrade_request("/", &[])).await?;
        client.head().await?;
        // 300 KB of a message that does not end.
        let mut pieces = frame(BINARY_BEGINS, &[7; 60_000]);
        for _ in 0..4 {
            pieces.extend(frame(GOES_ON, &[7; 60_000]));
        }
        client.send(&pieces).await?;
        large.push(client);
    }
    // Those that there is room for end their messages, and have them back.
    let (mut n_ended, mut n_echoed) = (0, 0);
    for mut client in large {
        // Whoever was ended may have been closed as well.
        let _ = client.send(frame(FIN | GOES_ON, b"the end")).await;
        let said = in_time("an echo or a Close", client.frame()).await?;
        if said.close_code().is_some() {
            assert_eq!(said.close_code(), Some(1013));
            n_ended += 1;
        } else {
            assert_eq!(said.payload.len(), 5 * 60_000 + 7);
            n_echoed += 1;
        }
    }
    ensure!(n_ended >= 2, "{n_ended} of 8 were ended");
    ensure!(n_echoed >= 1, "none of 8 was echoed");
    small.echo_text("what is small passes").await
}

#[tokio::test]
async fn a_flood_of_failures_is_no_flood_of_lines() -> Result<()> {
    let balancer = Balancer::start(&app("round_robin", &[NOBODY])).await?;
    let began = Instant::now();
    for _ in 0..300 {
        assert_eq!(balancer.get("/").await?.status, 502);
    }
    // What is said of one backend is said again after ten seconds at the earliest.
    let at_most = 1 + began.elapsed().as_secs() / 10;
    let lines = balancer.log();
    let n_lines = lines
        .iter()
        .filter(|line| line.contains(&NOBODY.to_string()))
        .count();
    ensure!(
        (1..=at_most).contains(&(n_lines as u64)),
        "{n_lines} lines of 300 failures:\n{}",
        lines.join("\n")
    );
    Ok(())
}

#[tokio::test]
async fn a_flood_of_pings_is_not_answered_one_by_one() -> Result<()> {
    let toml = "[[route]]\npath = \"/*\"\nhandler = \"echo\"\n";
    let balancer = Balancer::start(toml).await?;
    let mut flood = Wire::connect(balancer.address()).await?;
    flood.send(upgrade_request("/", &[])).await?;
    flood.head().await?;
    balancer.forget_memory_peak()?;
    let before = balancer.memory_peak_bytes()?;
    let pings = frame(PING, &[b'p'; 125]).repeat(1000);
    let mut n_sent = 0;
    // More than the sockets on the way hold, until no more is taken.
    while n_sent < 400_000
        && timeout(Duration::from_secs(1), flood.send(&pings))
            .await
            .is_ok()
    {
        n_sent += 1000;
    }
    let grown = balancer.memory_peak_bytes()?.saturating_sub(before);
    ensure!(grown < 16 << 20, "{grown} bytes more for {n_sent} pings");
    let mut other = Client::connect(&balancer.url("/")).await?;
    other.echo_text("beside a flood").await?;
    let pong = in_time("a pong", flood.frame()).await?;
    assert_eq!(pong.first_byte, PONG);
    Ok(())
}
