//! The promise: too much of anything hurts no client that means well.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Backend, Balancer, Chatter, Client, Wire, app, frame, upgrade_request};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alone;

const HALF_A_HEAD: &str = "GET /websocket HTTP/1.1\r\nHost: app.example.org\r\n";
const TEXT: u8 = 0x81;

async fn one_backend(before: &str) -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let toml = format!("{before}{}", app("round_robin", &[backend.address()]));
    let balancer = Balancer::start(&toml).await?;
    Ok((backend, balancer))
}

async fn counted(balancer: &Balancer, name: &str) -> Result<f64> {
    Ok(balancer.metrics().await?.sum(name, &[]))
}

fn listener(lines: &str) -> String {
    format!("[[listener]]\nbind = \"127.0.0.1:0\"\n{lines}\n")
}

/// The longest but one of a hundred, as a hundred and one were.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

#[tokio::test]
async fn half_made_handshakes_hurt_no_client_that_means_well() -> Result<()> {
    let _alone = alone().await;
    let (_backend, balancer) = one_backend(&listener("max_handshakes = 100")).await?;
    let chatter = Chatter::start(20, &balancer.url("/websocket")).await?;
    let mut halves = Vec::new();
    let mut times = Vec::new();
    for i in 0..500 {
        let mut half = Wire::connect(balancer.address()).await?;
        half.send(HALF_A_HEAD).await?;
        halves.push(half);
        if i % 5 == 0 {
            let began = Instant::now();
            let mut client = Client::connect(&balancer.url("/websocket")).await?;
            client.echo_text("in time").await?;
            times.push(began.elapsed());
        }
    }
    let slowest = p99(times);
    eprintln!("p99 beside 500 half-made handshakes: {slowest:?}");
    ensure!(slowest < Duration::from_millis(500), "{slowest:?}");
    // Those that have waited longest are gone, and the last are still heard.
    assert_eq!(halves[0].rest().await?, b"");
    let ended = counted(&balancer, "pointsman_handshakes_ended_total").await?;
    ensure!((300.0..=460.0).contains(&ended), "{ended} ended");
    let mut last = halves.pop().context("there were 500")?;
    last.send("Connection: close\r\n\r\n").await?;
    assert_eq!(last.answer().await?.status, 200);
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn stuck_floods_cost_little_memory_and_nobody_elses_time() -> Result<()> {
    let _alone = alone().await;
    let (_backend, balancer) = one_backend("").await?;
    let url = balancer.url("/websocket");
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(Client::connect(&url).await?);
    }
    let before = counted(&balancer, "process_resident_memory_bytes").await?;
    let mut floods = JoinSet::new();
    for _ in 0..8 {
        let mut client = Wire::connect(balancer.address()).await?;
        client.send(upgrade_request("/websocket", &[])).await?;
        assert_eq!(client.head().await?.status, 101);
        floods.spawn(async move {
            // 100 MiB, none of whose echo is ever read.
            let piece = frame(TEXT, &[b'a'; 65_000]);
            for _ in 0..1_613 {
                client.send(&piece).await?;
            }
            anyhow::Ok(())
        });
    }
    let mut times = Vec::new();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        for client in &mut others {
            let began = Instant::now();
            client.echo_text("beside a flood").await?;
            times.push(began.elapsed());
        }
    }
    let grown = counted(&balancer, "process_resident_memory_bytes").await? - before;
    let slowest = p99(times);
    eprintln!(
        "8 stuck floods: {:.1} MiB more, p99 of others {slowest:?}",
        grown / 1048576.0
    );
    ensure!(floods.try_join_next().is_none(), "a flood was not stuck");
    ensure!(grown <= f64::from(32 << 20), "{grown} bytes more");
    ensure!(slowest < Duration::from_millis(100), "{slowest:?}");
    Ok(())
}
