//! The promise: SIGTERM tells every client and backend, and the process ends inside its drain time.

use anyhow::{Context, Result};
use pointsman_tests::{Backend, Balancer, Client, Edit, PATIENCE, Refused, app, eventually};
use rustix::process::Signal;

#[tokio::test]
async fn a_message_under_way_at_the_drain_is_not_cut_in_two() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = "drain_timeout_secs = 2\n".to_owned() + &app("round_robin", &[backend.address()]);
    let mut balancer = Balancer::start(&toml).await?;
    // Its echo is far larger than what sockets hold, and is not read before the signal.
    let big = vec![0xa5; 15 * 1024 * 1024];
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.send(big.clone().into()).await?;
    eventually("the echo is on its way", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        let down = [("target", "app"), ("direction", "down")];
        metrics.is_ok_and(|m| m.sum("pointsman_bytes_total", &down) > 0.0)
    })
    .await?;
    balancer.signal(Signal::TERM)?;
    let received = client.receive().await.context("the echo of the message")?;
    assert!(received.into_data() == big, "the echo differs");
    assert_eq!(client.close_code().await?, Some(1001));
    assert_eq!(balancer.wait_exit(PATIENCE).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn sigint_with_no_sockets_ends_the_process_at_once() -> Result<()> {
    let backend = Backend::start().await?;
    let mut balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    balancer.signal(Signal::INT)?;
    // Far less than the time that a drain may take by default.
    let ended = balancer.wait_exit(PATIENCE).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

/// Two backends, a second route, and little time to drain.
fn two_routes(addresses: &[std::net::SocketAddr]) -> String {
    "drain_timeout_secs = 1\n".to_owned()
        + &app("round_robin", addresses)
        + "[[route]]\npath = \"/echo\"\nhandler = \"echo\"\n"
}

#[tokio::test]
async fn one_backend_is_drained_and_put_back_and_the_others_hear_nothing() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let [a, b] = [backends[0].address(), backends[1].address()];
    let balancer = Balancer::start(&two_routes(&[a, b])).await?;
    let url = balancer.url("/websocket");
    let mut of_a = Client::connect(&url).await?;
    let mut of_b = Client::connect(&url).await?;
    assert_eq!((of_a.backend()?, of_b.backend()?), (a, b));

    let order = format!("/api/drain?upstream=app&backend={a}");
    assert_eq!(balancer.order("POST", &order).await?.status, 200);
    assert_eq!(of_a.close_code().await?, Some(1012));
    assert_eq!(backends[0].close_codes(), [1012], "the backend is told too");
    balancer.backend_state(a, "draining").await?;
    for _ in 0..4 {
        assert_eq!(Client::connect(&url).await?.backend()?, b);
    }
    of_b.echo_text("nothing has happened to me").await?;

    assert_eq!(balancer.order("DELETE", &order).await?.status, 200);
    balancer.backend_state(a, "up").await?;
    let mut landed = Vec::new();
    for _ in 0..4 {
        landed.push(Client::connect(&url).await?.backend()?);
    }
    assert!(landed.contains(&a), "{landed:?}");
    let unknown = "/api/drain?upstream=app&backend=127.0.0.1:9";
    assert_eq!(balancer.order("POST", unknown).await?.status, 404);
    of_b.echo_text("nor now").await
}

#[tokio::test]
async fn a_backend_is_drained_by_the_file_as_well() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let [a, b] = [backends[0].address(), backends[1].address()];
    let toml = two_routes(&[a, b]);
    let balancer = Balancer::start(&toml).await?;
    let url = balancer.url("/websocket");
    let mut of_a = Client::connect(&url).await?;
    let drained = format!("{{ address = \"{a}\", drain = true }}");
    balancer.reload(&toml.replace_once(&format!("\"{a}\""), &drained))?;
    assert_eq!(of_a.close_code().await?, Some(1012));
    for _ in 0..3 {
        assert_eq!(Client::connect(&url).await?.backend()?, b);
    }
    Ok(())
}

#[tokio::test]
async fn one_route_is_drained_and_put_back() -> Result<()> {
    let backend = Backend::start().await?;
    let balancer = Balancer::start(&two_routes(&[backend.address()])).await?;
    let mut echo = Client::connect(&balancer.url("/echo")).await?;
    let mut other = Client::connect(&balancer.url("/websocket")).await?;
    let order = "/api/drain?route=/echo";
    assert_eq!(balancer.order("POST", order).await?.status, 200);
    assert_eq!(echo.close_code().await?, Some(1012));
    let refused = Client::connect(&balancer.url("/echo")).await;
    let refused = refused.expect_err("the route takes nothing new");
    let refused = refused.downcast_ref::<Refused>().map(|r| r.status);
    assert_eq!(refused, Some(503));
    other.echo_text("another route").await?;
    assert_eq!(balancer.order("DELETE", order).await?.status, 200);
    let mut echo = Client::connect(&balancer.url("/echo")).await?;
    echo.echo_text("in service").await
}
