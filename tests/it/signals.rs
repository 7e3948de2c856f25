//! The promise: every signal that operators use does what is documented, and none is fatal by accident.

use anyhow::Result;
use pointsman_tests::{Backend, Balancer, Client, PATIENCE, app};
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
