//! The promise: SIGTERM tells every client and backend, and the process ends inside its drain time.

use std::time::Duration;

use anyhow::Result;
use pointsman_tests::{
    Backend, Balancer, Client, PATIENCE, Wire, app, eventually, upgrade_request,
};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alone;

const DRAIN: Duration = Duration::from_secs(4);

/// For the process to end after its last socket, on a busy machine.
const GRACE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn two_hundred_sockets_are_told_1001_and_the_process_ends_in_time() -> Result<()> {
    let _alone = alone().await;
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
async fn sockets_that_do_not_answer_the_close_are_cut_at_the_deadline() -> Result<()> {
    let _alone = alone().await;
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
async fn the_sockets_of_a_drained_backend_are_told_over_the_drain_time() -> Result<()> {
    let _alone = alone().await;
    let backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = "drain_timeout_secs = 5\n".to_owned() + &app("round_robin", &addresses);
    let balancer = Balancer::start(&toml).await?;
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        if client.backend()? == addresses[0] {
            clients.spawn(async move { (client.close_code().await, Instant::now()) });
        }
    }
    assert_eq!(clients.len(), 20);
    let began = Instant::now();
    let order = format!("/api/drain?upstream=app&backend={}", addresses[0]);
    balancer.order("POST", &order).await?;
    let mut ends = Vec::new();
    while let Some(ended) = clients.join_next().await {
        let (code, at) = ended?;
        assert_eq!(code?, Some(1012));
        ends.push(at - began);
    }
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    assert!(first < Duration::from_secs(2), "the first after {first:?}");
    assert!(last > Duration::from_secs(3), "the last after {last:?}");
    assert!(
        last < Duration::from_secs(5) + GRACE,
        "the last after {last:?}"
    );
    Ok(())
}
