//! The promise: a plugin file that appears, changes or goes takes effect within a second.

use std::time::Duration;

use anyhow::Result;
use pointsman_tests::{Backend, Balancer, Client, app, eventually, guests};

use crate::alone;

/// From the rename to the first choice of the new generation.
const SOON: Duration = Duration::from_secs(1);

const NAME: &str = "round_robin";

#[tokio::test]
async fn a_file_that_appears_changes_or_goes_serves_within_a_second() -> Result<()> {
    let _alone = alone().await;
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let balancer = Balancer::start(&app(NAME, &addresses)).await?;
    // Three sessions in a row land there, which round robin never lets them.
    let all_land_on = async |expected| {
        for _ in 0..3 {
            let client = Client::connect(&balancer.url("/websocket")).await;
            if !client.is_ok_and(|client| client.backend().is_ok_and(|at| at == expected)) {
                return false;
            }
        }
        true
    };
    balancer.drop_plugin(NAME, &guests::policy("traps")?)?;
    eventually("the last backend is preferred", SOON, async || {
        all_land_on(addresses[2]).await
    })
    .await?;
    balancer.drop_plugin(NAME, &guests::shipped("first"))?;
    eventually("the first backend is preferred", SOON, async || {
        all_land_on(addresses[0]).await
    })
    .await?;
    balancer.delete_plugin(NAME)?;
    eventually("the embedded plugin takes turns", SOON, async || {
        !all_land_on(addresses[0]).await
    })
    .await?;
    Ok(())
}
