//! The promise: a new generation that keeps failing is taken back, its file is not loaded again, and an
//! operator sees that.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use pointsman_tests::{Balancer, Client, PATIENCE, eventually, guests};

#[tokio::test]
async fn a_generation_that_fails_three_times_is_shown_as_quarantined_until_its_file_changes()
-> Result<()> {
    let toml = "[[route]]\npath = '/echo'\nhandler = 'echo'\n";
    let balancer = Balancer::start_with_plugins(toml, &[]).await?;
    balancer.drop_plugin("echo", &guests::handler("traps")?)?;
    eventually("the second generation serves", PATIENCE, async || {
        balancer.generation("echo").await.is_ok_and(|n| n == 2)
    })
    .await?;
    for n in 1..=3 {
        let address = IpAddr::from([127, 0, 2, n]);
        let mut client = Client::connect_from(address, &balancer.url("/echo")).await?;
        client.send("now!".into()).await?;
        client.close_code().await?;
    }
    eventually("the first serves again", PATIENCE, async || {
        balancer.generation("echo").await.is_ok_and(|n| n == 3)
    })
    .await?;
    ensure!(balancer.plugin("echo").await?["quarantined"] == true);
    let mut client = Client::connect(&balancer.url("/echo")).await?;
    client.echo_text("as before").await?;

    let mut other = guests::handler("traps")?;
    // An empty custom section named `x`.
    other.extend([0, 2, 1, b'x']);
    balancer.drop_plugin("echo", &other)?;
    eventually("another file is taken", PATIENCE, async || {
        balancer.generation("echo").await.is_ok_and(|n| n == 4)
    })
    .await?;
    ensure!(balancer.plugin("echo").await?["quarantined"].is_null());
    Ok(())
}
