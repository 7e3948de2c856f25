//! The promise: that an answer did not come in time proves nothing. Nobody repeats the request, moves its client or
//! puts its backend out, unless the operator says so.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Client, Edit, NOBODY, Nth, PATIENCE, Refused, Reply, ScriptedBackend, Wire,
    app, eventually,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const STICKY: &str = "policy = \"sticky\"\npolicy_config = { secret = \"sixteen letters.\" }";

async fn silent(n: usize) -> Result<Vec<ScriptedBackend>> {
    let mut backends = Vec::new();
    for _ in 0..n {
        backends.push(ScriptedBackend::start(|_| Reply::Nothing).await?);
    }
    Ok(backends)
}

fn n_asked(backends: &[ScriptedBackend]) -> usize {
    backends.iter().map(|backend| backend.heads().len()).sum()
}

/// An upstream of these whose answers have little time, with more `lines`.
fn hasty(backends: &[ScriptedBackend], lines: &str) -> String {
    let addresses: Vec<SocketAddr> = backends.iter().map(ScriptedBackend::address).collect();
    let lines = format!("head_timeout_ms = 300\nresponse_timeout_ms = 300\n{lines}\n[[route]]");
    app("round_robin", &addresses).replace_once("[[route]]", &lines)
}

async fn ask(balancer: &Balancer, method: &str, more: &str) -> Result<u16> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(format!(
        "{method} / HTTP/1.1\r\nHost: a\r\n{more}Content-Length: 0\r\n\r\n"
    ))
    .await?;
    Ok(wire.answer().await?.status)
}

#[tokio::test]
async fn a_plain_answer_has_another_time_than_an_upgrade() -> Result<()> {
    let late = || Reply::SayLate(Duration::from_secs(1), OK.to_owned());
    let backend = ScriptedBackend::start(move |_| late()).await?;
    let toml = app("round_robin", &[backend.address()])
        .replace_once("[[route]]", "response_timeout_ms = 100\n\n[[route]]");
    let balancer = Balancer::start(&toml).await?;
    assert_eq!(ask(&balancer, "GET", "").await?, 200);
    let refused = Client::connect(&balancer.url("/")).await.err();
    let refused = refused.context("it was accepted")?;
    assert_eq!(refused.downcast::<Refused>()?.status, 504);
    Ok(())
}

#[tokio::test]
async fn a_route_may_give_a_plain_answer_its_own_time() -> Result<()> {
    let late = || Reply::SayLate(Duration::from_secs(1), OK.to_owned());
    let backend = ScriptedBackend::start(move |_| late()).await?;
    let patient = "[[route]]\npath = \"/poll\"\nupstream = \"app\"\nhead_timeout_ms = 60000\n";
    let toml = hasty(std::slice::from_ref(&backend), "") + patient;
    let balancer = Balancer::start(&toml).await?;
    assert_eq!(balancer.get("/").await?.status, 504);
    assert_eq!(balancer.get("/poll").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn what_timed_out_is_repeated_where_the_operator_says_so_alone() -> Result<()> {
    for (lines, method, n) in [
        ("", "GET", 1),
        ("retry_on_timeout = true\n", "POST", 1),
        ("retry_on_timeout = true\n", "GET", 3),
    ] {
        let backends = silent(3).await?;
        let balancer = Balancer::start(&hasty(&backends, lines)).await?;
        assert_eq!(ask(&balancer, method, "").await?, 504, "{lines}");
        assert_eq!(n_asked(&backends), n, "{method} {lines}");
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_cannot_be_connected_to_is_passed_over_with_any_method() -> Result<()> {
    let alive = Backend::start().await?;
    for method in ["GET", "POST"] {
        let balancer = Balancer::start(&app("round_robin", &[NOBODY, alive.address()])).await?;
        for _ in 0..2 {
            assert_eq!(ask(&balancer, method, "").await?, 200);
        }
    }
    Ok(())
}

/// Answers at once, and says nothing to who has been there before.
fn slow_the_second_time(head: &str, _: Nth) -> Reply {
    match head.to_ascii_lowercase().contains("cookie: ") {
        true => Reply::Nothing,
        false => Reply::Say(OK.to_owned()),
    }
}

#[tokio::test]
async fn a_slow_answer_moves_no_client_from_where_it_belongs() -> Result<()> {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(ScriptedBackend::start_keeping(slow_the_second_time).await?);
    }
    let toml = hasty(&backends, "retry_on_timeout = true\n")
        .replace_once("policy = \"round_robin\"", STICKY);
    let balancer = Balancer::start(&toml).await?;
    let first = balancer.get("/").await?;
    let cookie = first.header("set-cookie").context("a cookie")?;
    let (cookie, _) = cookie.split_once(';').context("its attributes")?;
    let home = backends
        .iter()
        .position(|backend| !backend.heads().is_empty());
    let home = home.context("somebody has answered")?;

    let field = format!("Cookie: {cookie}\r\n");
    assert_eq!(ask(&balancer, "GET", &field).await?, 504);
    let url = balancer.url("/");
    let upgrade = Client::connect_with(&url, &[("Cookie", cookie)])
        .await
        .err();
    let refused = upgrade.context("it was accepted")?.downcast::<Refused>()?;
    assert_eq!(refused.status, 504);
    assert_eq!(backends[home].heads().len(), 3);
    assert_eq!(n_asked(&backends), 3, "nobody else was asked");
    Ok(())
}

#[tokio::test]
async fn what_belongs_to_one_backend_by_its_key_is_not_repeated_at_another() -> Result<()> {
    let by_user = "{ key = \"header\", name = \"X-User\" }";
    for (policy, config) in [
        ("rendezvous", by_user),
        ("maglev", by_user),
        ("consistent_hash", by_user),
        ("ip_hash", "{}"),
    ] {
        // Slow, or gone in the middle: both may have done what was asked.
        for reply in [Reply::Nothing, Reply::HangUp] {
            let mut backends = Vec::new();
            for _ in 0..3 {
                let reply = reply.clone();
                backends.push(ScriptedBackend::start(move |_| reply.clone()).await?);
            }
            let policy = format!("policy = \"{policy}\"\npolicy_config = {config}");
            let toml = hasty(&backends, "retry_on_timeout = true\n")
                .replace_once("policy = \"round_robin\"", &policy);
            let balancer = Balancer::start(&toml).await?;
            let status = ask(&balancer, "GET", "X-User: one\r\n").await?;
            ensure!(matches!(status, 502 | 504), "{status}");
            assert_eq!(n_asked(&backends), 1, "{policy} {reply:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_only_timed_out_is_told_and_ejects_where_the_operator_says_so_alone() -> Result<()> {
    for (line, state) in [("", "up"), ("eject_on_timeout = true\n", "ejected")] {
        let backends = silent(2).await?;
        let ejection = format!("[upstream.ejection]\nfailures = 2\n{line}");
        let balancer = Balancer::start(&hasty(&backends, &ejection)).await?;
        for _ in 0..4 {
            assert_eq!(ask(&balancer, "GET", "").await?, 504);
        }
        let is_told = |line: &String| {
            let address = backends[0].address().to_string();
            line.contains(" WARN ")
                && line.contains("timed out")
                && line.contains(&address)
                && line.contains("no answer after 300ms")
        };
        eventually("the log has it", PATIENCE, async || {
            balancer.log().iter().any(is_told)
        })
        .await?;
        let metrics = balancer.metrics().await?;
        let counted = metrics.sum("pointsman_backend_failures_total", &[]);
        assert_eq!(counted, 4.0);
        let (first, second) = (backends[0].address(), backends[1].address());
        match state {
            "up" => {
                balancer.backend_state(first, "up").await?;
                balancer.backend_state(second, "up").await?;
            }
            _ => {
                let metrics = balancer.metrics().await?;
                assert_eq!(metrics.sum("pointsman_backend_ejected", &[]), 1.0);
            }
        }
    }
    Ok(())
}
