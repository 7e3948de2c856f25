//! The promise: a hostile guest is stopped, counted and replaced by the fallback or a 1011, and
//! nothing else notices.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use pointsman_tests::{Backend, Balancer, Chatter, Client, PATIENCE, app, eventually, guests};

const FAILURES: &str = "pointsman_plugin_failures_total";

#[tokio::test]
async fn a_policy_that_loops_is_stopped_and_the_fallback_answers() -> Result<()> {
    hostile_policy("loops", "timeout").await
}

#[tokio::test]
async fn a_policy_that_hogs_memory_is_stopped_and_the_fallback_answers() -> Result<()> {
    hostile_policy("hogs_memory", "memory").await
}

#[tokio::test]
async fn a_policy_that_traps_is_replaced_and_the_fallback_answers() -> Result<()> {
    hostile_policy("traps", "trap").await
}

#[tokio::test]
async fn a_policy_that_answers_hugely_is_not_believed_and_the_fallback_answers() -> Result<()> {
    hostile_policy("policy_answers_hugely", "output").await
}

#[tokio::test]
async fn a_policy_that_recurses_is_stopped_and_the_fallback_answers() -> Result<()> {
    hostile_policy("recurses", "trap").await
}

#[tokio::test]
async fn a_policy_that_grows_tables_is_stopped_and_the_fallback_answers() -> Result<()> {
    hostile_policy("grows_tables", "memory").await
}

#[tokio::test]
async fn a_policy_that_lists_hugely_is_stopped_and_the_fallback_answers() -> Result<()> {
    hostile_policy("policy_lists_hugely", "trap").await
}

#[tokio::test]
async fn a_handler_that_recurses_is_stopped_and_its_session_closed() -> Result<()> {
    hostile_handler("recurses", "trap").await
}

#[tokio::test]
async fn a_handler_that_loops_is_stopped_and_its_session_closed() -> Result<()> {
    hostile_handler("loops", "timeout").await
}

#[tokio::test]
async fn a_handler_that_hogs_memory_is_stopped_and_its_session_closed() -> Result<()> {
    hostile_handler("hogs_memory", "memory").await
}

#[tokio::test]
async fn a_handler_that_traps_is_replaced_and_its_session_closed() -> Result<()> {
    hostile_handler("traps", "trap").await
}

#[tokio::test]
async fn a_handler_that_answers_hugely_is_not_believed_and_its_session_closed() -> Result<()> {
    hostile_handler("handler_answers_hugely", "output").await
}

async fn hostile_policy(how: &str, kind: &str) -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = app("hostile", &addresses);
    let guest = guests::policy(how)?;
    let balancer = Balancer::start_with_plugins(&toml, &[("hostile", &guest)]).await?;
    let chatter = Chatter::start(10, &balancer.url("/websocket")).await?;
    assert_eq!(
        chatter.landed(),
        [Some(addresses[2]); 10],
        "the guest is in force"
    );

    let mut landed = BTreeSet::new();
    for _ in 0..3 {
        let mut client = Client::connect(&balancer.url("/websocket?now!")).await?;
        client.echo_text("placed by the fallback").await?;
        landed.insert(client.backend()?);
    }
    ensure!(landed.len() > 1, "no round robin: all on {landed:?}");
    counted(&balancer, kind, 3.0).await?;

    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("placed as before").await?;
    chatter.stop().await?;
    Ok(())
}

async fn hostile_handler(how: &str, kind: &str) -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()])
        + r#"
[[route]]
path = "/hostile"
handler = "hostile"

[[route]]
path = "/echo"
handler = "echo"
"#;
    let guest = guests::handler(how)?;
    let balancer = Balancer::start_with_plugins(&toml, &[("hostile", &guest)]).await?;
    let relayed = Chatter::start(10, &balancer.url("/websocket")).await?;
    let handled = Chatter::start(10, &balancer.url("/echo")).await?;

    for _ in 0..2 {
        let mut client = Client::connect(&balancer.url("/hostile")).await?;
        client.echo_text("not yet").await?;
        client.send("now!".into()).await?;
        assert_eq!(client.close_code().await?, Some(1011));
    }
    counted(&balancer, kind, 2.0).await?;

    let mut client = Client::connect(&balancer.url("/hostile")).await?;
    client.echo_text("a new instance").await?;
    relayed.stop().await?;
    handled.stop().await?;
    Ok(())
}

async fn counted(balancer: &Balancer, kind: &str, at_least: f64) -> Result<()> {
    let labels = [("plugin", "hostile"), ("kind", kind)];
    eventually(
        format!("{at_least} failures of kind {kind}"),
        PATIENCE,
        async || {
            let metrics = balancer.metrics().await;
            metrics.is_ok_and(|m| m.sum(FAILURES, &labels) >= at_least)
        },
    )
    .await?;
    assert_eq!(balancer.admin_get("/healthz").await?.status, 200);
    Ok(())
}
