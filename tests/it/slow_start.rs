//! The promise: a backend that joins or comes back gets its share of new sessions little by little.

use std::collections::BTreeMap;
use std::net::SocketAddr;

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

fn site(slow_start_secs: u32, more: &str, backends: &[SocketAddr]) -> String {
    let lines = format!("slow_start_secs = {slow_start_secs}\n{more}\n[[route]]");
    app("round_robin", backends).replace_once("[[route]]", &lines)
}

#[tokio::test]
async fn a_newcomer_gets_a_tenth_beside_one_that_was_there_at_the_start() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let [first, second] = [backends[0].address(), backends[1].address()];
    // So slowly that all of this test is its beginning.
    let balancer = Balancer::start(&site(3600, "", &[first])).await?;
    balancer.reload(&site(3600, "", &[first, second]))?;
    balancer.backend_state(second, "up").await?;
    // Were both new, or neither, it would be 11 and 11.
    let expected = BTreeMap::from([(first, 20), (second, 2)]);
    assert_eq!(shares(&balancer, 22).await?, expected);
    Ok(())
}

#[tokio::test]
async fn one_that_comes_back_begins_with_a_tenth() -> Result<()> {
    let first = Backend::start().await?;
    let second = Backend::start().await?;
    let address = second.address();
    let probed = "[upstream.health]\nkind = \"tcp\"\ninterval_ms = 20\nfall = 1\nrise = 1\n";
    let toml = site(3600, probed, &[first.address(), address]);
    let balancer = Balancer::start(&toml).await?;
    assert_eq!(shares(&balancer, 22).await?.get(&address), Some(&11));
    drop(second);
    balancer.backend_state(address, "down").await?;
    let _second = Backend::start_at(address).await?;
    balancer.backend_state(address, "up").await?;
    assert_eq!(shares(&balancer, 22).await?.get(&address), Some(&2));
    Ok(())
}

#[tokio::test]
async fn a_newcomer_ends_with_its_share() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let [first, second] = [backends[0].address(), backends[1].address()];
    let balancer = Balancer::start(&site(2, "", &[first])).await?;
    balancer.reload(&site(2, "", &[first, second]))?;
    balancer.backend_state(second, "up").await?;
    eventually("half of the sockets go there", PATIENCE, async || {
        let shares = shares(&balancer, 10).await;
        shares.is_ok_and(|shares| shares.get(&second) == Some(&5))
    })
    .await?;
    Ok(())
}
