//! The promise: however fast files are replaced in the watched folder, no handshake fails, and the newest
//! serves within three seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Backend, Balancer, Client, PATIENCE, app, eventually, guests};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::alone;

const NAME: &str = "victim";

struct Site {
    _backends: Vec<Backend>,
    first: std::net::SocketAddr,
    balancer: Balancer,
}

/// Two backends behind a policy that prefers the last, as a file in the watched folder.
async fn site(before: &str) -> Result<Site> {
    let backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = format!("{before}{}", app(NAME, &addresses));
    let good = guests::policy("traps")?;
    let balancer = Balancer::start_with_plugins(&toml, &[(NAME, &good)]).await?;
    Ok(Site {
        _backends: backends,
        first: addresses[0],
        balancer,
    })
}

#[tokio::test]
async fn a_hundred_replacements_a_second_fail_no_handshake() -> Result<()> {
    let _alone = alone().await;
    let site = Arc::new(site("").await?);
    let guest = guests::policy("traps")?;
    let rss = async || {
        let metrics = site.balancer.metrics().await?;
        anyhow::Ok(metrics.sum("process_resident_memory_bytes", &[]))
    };
    let before = rss().await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let n_connected = Arc::new(AtomicU32::new(0));
    let mut connectors = JoinSet::new();
    for _ in 0..2 {
        let (site, is_over, n_connected) = (
            Arc::clone(&site),
            Arc::clone(&is_over),
            Arc::clone(&n_connected),
        );
        connectors.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let mut client = Client::connect(&site.balancer.url("/websocket")).await?;
                client.echo_text("hello").await?;
                n_connected.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        });
    }
    let mut pace = interval(Duration::from_millis(10));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    for n in 0..500 {
        pace.tick().await;
        site.balancer
            .drop_plugin(NAME, &guests::marked(&guest, n))?;
    }
    let replacing = began.elapsed();
    site.balancer.drop_plugin(NAME, &guests::shipped("first"))?;
    let newest = eventually("the newest serves", PATIENCE, async || {
        let client = Client::connect(&site.balancer.url("/websocket")).await;
        client.is_ok_and(|client| client.backend().is_ok_and(|at| at == site.first))
    })
    .await?;
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = connectors.join_next().await {
        ended?.context("a handshake failed")?;
    }
    let grown = rss().await? - before;
    let generation = site.balancer.generation(NAME).await?;
    let n_connected = n_connected.load(Ordering::Relaxed);
    eprintln!(
        "500 replacements in {replacing:?}, {generation} generations, the newest in force after {newest:?}; \
         {n_connected} handshakes meanwhile, none failed; {:.1} MiB more",
        grown / 1_048_576.0
    );
    ensure!(n_connected > 100, "only {n_connected} handshakes");
    ensure!(newest < Duration::from_secs(3), "{newest:?}");
    ensure!(grown < f64::from(128 << 20), "{grown} bytes more");
    Ok(())
}
