//! The promise: a backend that joins or comes back gets its share of new sessions little by little.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use pointsman_tests::{Backend, Balancer, Client, Edit, PATIENCE, app, eventually};

/// How many of `n` sockets land on each.
async fn shares(balancer: &Balancer, n: usize) -> Result<BTreeMap<SocketAddr, usize>> {
    let mut shares = BTreeMap::new();
    for _ in 0..n {
        let client = Client::connect(&balancer.url("/websocket")).await?;
        *shares.entry(client.backend()?).or_default() += 1;
    }
    Ok(shares)
}

#[tokio::test]
async fn a_newcomer_begins_with_a_tenth_and_ends_with_its_share() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let [first, second] = [backends[0].address(), backends[1].address()];
    let slowly = |backends: &[SocketAddr]| {
        app("round_robin", backends).replace_once("[[route]]", "slow_start_secs = 4\n\n[[route]]")
    };
    let balancer = Balancer::start(&slowly(&[first])).await?;
    assert_eq!(shares(&balancer, 5).await?, BTreeMap::from([(first, 5)]));

    balancer.reload(&slowly(&[first, second]))?;
    balancer.backend_state(second, "up").await?;
    let early = shares(&balancer, 22).await?;
    let n_early = early.get(&second).copied().unwrap_or_default();
    assert!(
        (1..=8).contains(&n_early),
        "{n_early} of 22 at the beginning"
    );

    let whole = Duration::from_secs(4) + PATIENCE;
    eventually("half of the sockets go there", whole, async || {
        let shares = shares(&balancer, 10).await;
        shares.is_ok_and(|shares| shares.get(&second) == Some(&5))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn at_the_start_of_the_process_nobody_is_new() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = app("round_robin", &addresses)
        .replace_once("[[route]]", "slow_start_secs = 600\n\n[[route]]");
    let balancer = Balancer::start(&toml).await?;
    let shares = shares(&balancer, 10).await?;
    assert_eq!(shares.into_values().collect::<Vec<_>>(), [5, 5]);
    Ok(())
}
