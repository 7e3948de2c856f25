//! The promise: no backend has more sessions than its `max_sessions`; who finds no room waits in
//! turn, for a bounded time and in a bounded queue; and retries have a budget.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use pointsman_tests::{
    Backend, Balancer, Client, Edit, NOBODY, PATIENCE, Refused, app, eventually, get,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// One upstream whose backends have room for `max` sessions each, and `lines` besides.
fn bounded(backends: &[SocketAddr], max: u32, lines: &str) -> String {
    let table =
        |address: &SocketAddr| format!("{{ address = \"{address}\", max_sessions = {max} }}");
    let tables: Vec<_> = backends.iter().map(table).collect();
    let plain = app("round_robin", backends);
    let (before, after) = plain.split_once("backends = [").unwrap_or_default();
    let (_, after) = after.split_once(']').unwrap_or_default();
    format!("{before}backends = [{}]\n{lines}{after}", tables.join(", "))
}

fn status_of(error: &anyhow::Error) -> Option<u16> {
    error
        .downcast_ref::<Refused>()
        .map(|refused| refused.status)
}

#[tokio::test]
async fn a_hundred_at_once_fill_ten_places_exactly() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let balancer = Balancer::start(&bounded(&addresses, 5, "")).await?;
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        let url = balancer.url("/websocket");
        clients.spawn(async move { Client::connect(&url).await });
    }
    let (mut open, mut refused) = (Vec::new(), 0);
    while let Some(client) = clients.join_next().await {
        match client? {
            Ok(client) => open.push(client),
            Err(error) => {
                assert_eq!(status_of(&error), Some(503));
                refused += 1;
            }
        }
    }
    assert_eq!((open.len(), refused), (10, 90));
    assert_eq!((backends[0].n_open(), backends[1].n_open()), (5, 5));
    let answer = get(balancer.address(), "/").await?;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("1"))
    );
    Ok(())
}

#[tokio::test]
async fn who_waits_gets_the_place_of_who_leaves_in_turn() -> Result<()> {
    let backend = Backend::start().await?;
    let lines = "queue_max = 3\nqueue_timeout_ms = 20000\n";
    let balancer = Balancer::start(&bounded(&[backend.address()], 1, lines)).await?;
    let url = balancer.url("/websocket");
    let first = Client::connect(&url).await?;
    let waiting = async |n: u32| {
        eventually(format!("{n} wait"), PATIENCE, async || {
            let metrics = balancer.metrics().await;
            metrics.is_ok_and(|m| m.sum("pointsman_upstream_waiting", &[]) == f64::from(n))
        })
        .await
    };
    let mut queue = JoinSet::new();
    for n in 1..=3 {
        let url = url.clone();
        queue.spawn(async move { (n, Client::connect(&url).await) });
        waiting(n).await?;
    }
    let too_many = Client::connect(&url).await.expect_err("three wait already");
    assert_eq!(status_of(&too_many), Some(503));

    let mut leaving = first;
    for expected in 1..=3 {
        leaving.close(1000).await?;
        let (n, client) = queue.join_next().await.expect("one still waits")?;
        assert_eq!(n, expected, "first come, first served");
        leaving = client?;
        leaving.echo_text("after a wait").await?;
        assert_eq!(backend.n_open(), 1);
    }
    waiting(0).await?;
    Ok(())
}

#[tokio::test]
async fn a_wait_is_over_in_time_and_a_reload_makes_room() -> Result<()> {
    let backend = Backend::start().await?;
    let lines = "queue_max = 10\nqueue_timeout_ms = 400\n";
    let balancer = Balancer::start(&bounded(&[backend.address()], 1, lines)).await?;
    let url = balancer.url("/websocket");
    let _first = Client::connect(&url).await?;
    let began = Instant::now();
    let late = Client::connect(&url).await.expect_err("there is no room");
    assert_eq!(status_of(&late), Some(503));
    assert!(began.elapsed() >= Duration::from_millis(400));

    let lines = "queue_max = 10\nqueue_timeout_ms = 60000\n";
    balancer.reload(&bounded(&[backend.address()], 1, lines))?;
    eventually("the reload is counted", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        let labels = [("kind", "config"), ("result", "ok")];
        metrics.is_ok_and(|m| m.sum("pointsman_reloads_total", &labels) == 1.0)
    })
    .await?;
    let mut waits = JoinSet::new();
    waits.spawn(async move { Client::connect(&url).await });
    eventually("one waits", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        metrics.is_ok_and(|m| m.sum("pointsman_upstream_waiting", &[]) == 1.0)
    })
    .await?;
    balancer.reload(&bounded(&[backend.address()], 2, lines))?;
    let mut client = waits.join_next().await.expect("one waits")??;
    client.echo_text("there is room for two").await
}

#[tokio::test]
async fn without_a_budget_a_burst_is_retried_ten_times_a_second() -> Result<()> {
    let good = Backend::start().await?;
    let toml = app("round_robin", &[NOBODY, good.address()]).replace_once(
        "[[route]]",
        "retry_budget_percent = 0\n[upstream.ejection]\nmax_ejected_percent = 0\n\n[[route]]",
    );
    let balancer = Balancer::start(&toml).await?;
    let mut refused = 0;
    let began = Instant::now();
    for _ in 0..200 {
        if let Err(error) = Client::connect(&balancer.url("/websocket")).await {
            assert_eq!(status_of(&error), Some(502));
            refused += 1;
        }
    }
    let free = 10 * (began.elapsed().as_secs() + 2);
    assert!(refused >= 100 - free, "{refused} refused, {free} were free");
    assert!(refused > 0);
    let retries = balancer
        .metrics()
        .await?
        .sum("pointsman_upstream_retries_total", &[]);
    assert_eq!(retries, 100.0 - refused as f64);
    Ok(())
}
