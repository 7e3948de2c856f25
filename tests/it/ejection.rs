//! The promise: live traffic that fails puts a backend out for a while, each time longer, and never
//! more of them than allowed.

use anyhow::Result;
use pointsman_tests::{
    Backend, Balancer, Client, Edit, NOBODY, PATIENCE, Reply, ScriptedBackend, app, eventually,
};

const EJECTION: &str = "[upstream.ejection]\nfailures = 3\nwindow_secs = 10\neject_secs = 3\nmax_ejected_percent = 50\n\n[[route]]";

fn ejecting(backends: &[std::net::SocketAddr]) -> String {
    app("round_robin", backends).replace_once("[[route]]", EJECTION)
}

async fn ejections(balancer: &Balancer, backend: std::net::SocketAddr) -> Result<f64> {
    let address = backend.to_string();
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum(
        "pointsman_backend_ejections_total",
        &[("backend", &address)],
    ))
}

#[tokio::test]
async fn three_failures_in_a_row_put_a_backend_out_and_back_off_doubles() -> Result<()> {
    let good = Backend::start().await?;
    let balancer = Balancer::start(&ejecting(&[NOBODY, good.address()])).await?;
    // Every second socket tries the dead one first; none of them notices.
    let connect = async || {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("not lost").await
    };
    for round in 1..=2 {
        eventually("an ejection", PATIENCE, async || {
            connect().await.expect("a live backend takes every socket");
            ejections(&balancer, NOBODY)
                .await
                .is_ok_and(|n| n >= f64::from(round))
        })
        .await?;
        let reason = balancer.backend_state(NOBODY, "ejected").await?;
        assert!(reason.starts_with("cannot connect: "), "{reason}");
        let out_for = format!("out_for={}s", 3 * round);
        let is_said = |line: &String| line.contains("backend ejected") && line.contains(&out_for);
        eventually(out_for.clone(), PATIENCE, async || {
            balancer.log().iter().any(is_said)
        })
        .await?;
        let failures = balancer.status().await?["upstreams"][0]["backends"][0]["failures"].clone();
        for _ in 0..4 {
            connect().await?;
        }
        let after = balancer.status().await?["upstreams"][0]["backends"][0]["failures"].clone();
        assert_eq!(failures, after, "nobody dials it while it is out");
        balancer.backend_state(NOBODY, "up").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_answers_upgrades_with_500_is_put_out() -> Result<()> {
    let good = Backend::start().await?;
    let broken = ScriptedBackend::start(|_| {
        let answer = "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        Reply::SayAndHangUp(answer.to_owned())
    })
    .await?;
    let balancer = Balancer::start(&ejecting(&[broken.address(), good.address()])).await?;
    let mut refused = 0;
    for _ in 0..6 {
        let client = Client::connect(&balancer.url("/websocket")).await;
        refused += u32::from(client.is_err());
    }
    assert_eq!(
        refused, 3,
        "an answer of the backend's is the client's to see"
    );
    let reason = balancer.backend_state(broken.address(), "ejected").await?;
    assert!(reason.starts_with("it answered 500 "), "{reason}");
    Ok(())
}

#[tokio::test]
async fn no_more_than_half_are_put_out() -> Result<()> {
    let good = Backend::start().await?;
    let dead = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| a.parse().expect("an address"));
    let toml = ejecting(&[dead[0], dead[1], good.address()]);
    let balancer = Balancer::start(&toml).await?;
    for _ in 0..30 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("one lives").await?;
    }
    let n = ejections(&balancer, dead[0]).await? + ejections(&balancer, dead[1]).await?;
    assert_eq!(n, 1.0, "half of three is one");
    Ok(())
}
