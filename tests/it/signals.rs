//! The promise: every signal that operators use does what is documented, and none is fatal by accident.

use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_tests::{Backend, Balancer, Client, PATIENCE, app, eventually, get};
use rustix::process::Signal;

#[tokio::test]
async fn sigquit_drains() -> Result<()> {
    let backend = Backend::start().await?;
    let mut balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    balancer.signal(Signal::QUIT)?;
    assert_eq!(client.close_code().await?, Some(1001));
    assert_eq!(balancer.wait_exit(PATIENCE).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn sigusr2_and_sigusr1_without_files_change_nothing() -> Result<()> {
    let backend = Backend::start().await?;
    let mut balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    balancer.signal(Signal::USR2)?;
    balancer.logs("not supported by this version").await?;
    balancer.signal(Signal::USR1)?;
    client.echo_text("nothing has happened").await?;
    Client::connect(&balancer.url("/websocket")).await?;
    balancer.signal(Signal::TERM)?;
    assert_eq!(client.close_code().await?, Some(1001));
    assert_eq!(balancer.wait_exit(PATIENCE).await?.code(), Some(0));
    let told = balancer.log();
    let told = told.iter().filter(|line| line.contains("SIGUSR2"));
    assert_eq!(told.count(), 1, "one line for one signal");
    Ok(())
}

#[tokio::test]
async fn before_a_drain_it_is_not_ready_and_still_accepts() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = "drain_delay_secs = 3\ndrain_timeout_secs = 2\n".to_owned()
        + &app("round_robin", &[backend.address()]);
    let mut balancer = Balancer::start(&toml).await?;
    let mut before = Client::connect(&balancer.url("/websocket")).await?;
    balancer.signal(Signal::TERM)?;
    not_ready(&balancer).await?;
    let mut after = Client::connect(&balancer.url("/websocket")).await?;
    for client in [&mut before, &mut after] {
        client.echo_text("still served").await?;
    }
    for client in [&mut before, &mut after] {
        assert_eq!(client.close_code().await?, Some(1001));
    }
    assert_eq!(balancer.wait_exit(PATIENCE).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_the_delay_too() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = "drain_delay_secs = 3600\n".to_owned() + &app("round_robin", &[backend.address()]);
    let mut balancer = Balancer::start(&toml).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    balancer.signal(Signal::TERM)?;
    not_ready(&balancer).await?;
    client.echo_text("still served").await?;
    ensure!(get(balancer.address(), "/").await?.status == 200);
    balancer.signal(Signal::TERM)?;
    assert_eq!(balancer.wait_exit(PATIENCE).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_drain_takes_the_time_of_the_configuration_in_force() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = |secs: u32| {
        format!("drain_timeout_secs = {secs}\n") + &app("round_robin", &[backend.address()])
    };
    let mut balancer = Balancer::start(&toml(600)).await?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::connect(&balancer.url("/websocket")).await?);
    }
    balancer.reload(&toml(1))?;
    balancer.logs("configuration applied").await?;
    balancer.signal(Signal::TERM)?;
    let ended = balancer.wait_exit(Duration::from_secs(60)).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

async fn not_ready(balancer: &Balancer) -> Result<()> {
    eventually("/readyz answers 503", PATIENCE, async || {
        let ready = balancer.admin_get("/readyz").await;
        ready.is_ok_and(|answer| answer.status == 503)
    })
    .await?;
    Ok(())
}
