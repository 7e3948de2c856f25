//! The promise: a connection that is kept is nobody's trouble. One to a backend that ends as it is used again fails
//! no request that may be repeated, and is held against nobody; one that a backend has authenticated serves the
//! client that it is for, and no other; one of a client may be idle for its own time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Edit, Nth, PATIENCE, Reply, ScriptedBackend, Wire, app, eventually,
};
use tokio::time::Instant;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

async fn failures(balancer: &Balancer) -> Result<f64> {
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum("pointsman_backend_failures_total", &[]))
}

/// A backend that answers one request of each connection, and does this with the second.
async fn forgetful(second: Reply) -> Result<ScriptedBackend> {
    ScriptedBackend::start_keeping(move |_, nth: Nth| match nth.request {
        0 => Reply::Say(OK.to_owned()),
        _ => second.clone(),
    })
    .await
}

#[tokio::test]
async fn one_that_ends_as_it_is_used_again_fails_no_get_and_is_held_against_nobody() -> Result<()> {
    let backend = forgetful(Reply::HangUp).await?;
    let toml = app("round_robin", &[backend.address()]).replace_once(
        "[[route]]",
        "[upstream.ejection]\nfailures = 1\n\n[[route]]",
    );
    let balancer = Balancer::start(&format!("workers = 1\n{toml}")).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for method in ["GET", "GET", "OPTIONS", "DELETE", "GET", "GET"] {
        wire.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await?;
        assert_eq!(wire.answer().await?.status, 200, "{method}");
    }
    // Each but the first has met a connection that was kept, and then had one of its own.
    assert_eq!(backend.heads().len(), 11);
    assert_eq!(failures(&balancer).await?, 0.0);

    // What is no use twice is sent once: on a new connection it is answered, on a kept one it is lost.
    let before = backend.heads().len();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            .await?;
        statuses.push(wire.answer().await?.status);
    }
    assert_eq!(statuses, [502, 200, 502, 200]);
    assert_eq!(backend.heads().len() - before, 4);

    // What has a body cannot be sent again, and meets no connection that was kept.
    for _ in 0..3 {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na=1")
            .await?;
        assert_eq!(wire.answer().await?.status, 200);
    }
    assert_eq!(failures(&balancer).await?, 0.0);
    balancer.backend_state(backend.address(), "up").await?;
    Ok(())
}

#[tokio::test]
async fn one_that_ends_within_an_answer_is_its_backends_failure() -> Result<()> {
    let begun = "HTTP/1.1 200 OK\r\nContent-Le";
    let backend = forgetful(Reply::SayAndHangUp(begun.to_owned())).await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&format!("workers = 1\n{toml}")).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for expected in [200, 502] {
        wire.send(GET).await?;
        assert_eq!(wire.answer().await?.status, expected);
    }
    assert_eq!(failures(&balancer).await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn one_is_kept_no_longer_than_its_backend_says() -> Result<()> {
    let backend = ScriptedBackend::start_keeping(|head, nth: Nth| {
        let kept_for = if head.contains("/no") { 0 } else { 60 };
        let place = nth.connection;
        Reply::Say(format!(
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout={kept_for}\r\nContent-Length: 1\r\n\r\n{place}"
        ))
    })
    .await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&format!("workers = 1\n{toml}")).await?;
    let mut used = Vec::new();
    for path in ["/", "/", "/no", "/no", "/"] {
        let answer = balancer.get(path).await?;
        assert_eq!(answer.header("keep-alive"), None, "that is between the two");
        used.push(answer.text());
    }
    assert_eq!(used, ["0", "0", "0", "1", "2"]);
    Ok(())
}

/// As IIS does it: who has sent the third message of the scheme on a connection is who speaks on it from then on.
async fn authenticating() -> Result<ScriptedBackend> {
    let users = Mutex::<HashMap<usize, String>>::default();
    ScriptedBackend::start_keeping(move |head, nth: Nth| {
        let mut users = users.lock().expect("no script panics");
        let user = users.entry(nth.connection).or_default();
        let credentials = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then_some(value)
        });
        match credentials {
            Some("NTLM 1") => *user = "half".to_owned(),
            Some(third) if third.starts_with("NTLM 3 ") && user == "half" => {
                *user = third["NTLM 3 ".len()..].to_owned();
            }
            // Kerberos needs one message only.
            Some(ticket) if ticket.starts_with("Negotiate ") => {
                *user = ticket["Negotiate ".len()..].to_owned();
            }
            _ => {}
        }
        let (status, challenge) = match user.as_str() {
            "" => (
                "401 Unauthorized",
                "WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\n",
            ),
            "half" => ("401 Unauthorized", "WWW-Authenticate: NTLM 2\r\n"),
            _ => ("200 OK", ""),
        };
        Reply::Say(format!(
            "HTTP/1.1 {status}\r\n{challenge}Content-Length: {}\r\n\r\n{user}",
            user.len()
        ))
    })
    .await
}

/// Asks with these credentials; who the backend says that it is.
async fn who_am_i(wire: &mut Wire, credentials: &str) -> Result<String> {
    let field = match credentials {
        "" => String::new(),
        credentials => format!("Authorization: {credentials}\r\n"),
    };
    wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n"))
        .await?;
    Ok(wire.answer().await?.text())
}

#[tokio::test]
async fn one_that_a_backend_has_authenticated_serves_its_client_and_no_other() -> Result<()> {
    let backends = [authenticating().await?, authenticating().await?];
    let addresses = backends.each_ref().map(ScriptedBackend::address);
    let toml = app("round_robin", &addresses);
    let balancer = Balancer::start(&format!("workers = 1\n{toml}")).await?;
    let mut alice = Wire::connect(balancer.address()).await?;
    let mut bob = Wire::connect(balancer.address()).await?;
    // Their messages come by turns, and so would backends without a thought of connections.
    for step in 0..4 {
        for (user, wire) in [("alice", &mut alice), ("bob", &mut bob)] {
            let third = format!("NTLM 3 {user}");
            let (credentials, expected) = match step {
                0 => ("", ""),
                1 => ("NTLM 1", "half"),
                2 => (&*third, user),
                _ => ("", user),
            };
            assert_eq!(who_am_i(wire, credentials).await?, expected, "step {step}");
        }
    }
    // Others come on connections of their own, to either backend.
    for _ in 0..4 {
        let mut mallory = Wire::connect(balancer.address()).await?;
        assert_eq!(who_am_i(&mut mallory, "").await?, "");
    }
    // A ticket that comes unasked is answered without a challenge.
    let mut carol = Wire::connect(balancer.address()).await?;
    assert_eq!(who_am_i(&mut carol, "Negotiate carol").await?, "carol");
    for _ in 0..4 {
        let mut mallory = Wire::connect(balancer.address()).await?;
        assert_eq!(who_am_i(&mut mallory, "").await?, "");
        assert_eq!(who_am_i(&mut carol, "").await?, "carol");
    }
    assert_eq!(who_am_i(&mut alice, "").await?, "alice");
    Ok(())
}

#[tokio::test]
async fn one_that_was_authenticated_ends_with_its_client() -> Result<()> {
    let backend = authenticating().await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    let mut alice = Wire::connect(balancer.address()).await?;
    assert_eq!(who_am_i(&mut alice, "Negotiate alice").await?, "alice");
    assert_eq!(backend.n_open(), 1);
    drop(alice);
    eventually("it is closed", PATIENCE, async || backend.n_open() == 0).await?;
    Ok(())
}

/// Heads have a short time, and idle connections this one.
fn with_idle_time(toml: &str, keep_alive_ms: u64) -> String {
    let listener = "[[listener]]\nbind = \"127.0.0.1:0\"\nhandshake_timeout_ms = 300\n";
    format!("{listener}keep_alive_timeout_ms = {keep_alive_ms}\n{toml}")
}

#[tokio::test]
async fn one_of_a_client_may_be_idle_for_its_own_time() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = with_idle_time(&app("round_robin", &[backend.address()]), 1500);
    let balancer = Balancer::start(&toml).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(GET).await?;
    assert_eq!(wire.answer().await?.status, 200);
    let idle = Instant::now();
    assert_eq!(wire.rest().await?, b"");
    let closed_after = idle.elapsed();
    ensure!(
        closed_after >= Duration::from_millis(1400),
        "{closed_after:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_head_on_a_kept_connection_has_the_time_of_a_head() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = with_idle_time(&app("round_robin", &[backend.address()]), 3_600_000);
    let balancer = Balancer::start(&toml).await?;
    let mut silent = Wire::connect(balancer.address()).await?;
    assert_eq!(silent.rest().await?, b"", "its first head did not come");
    let mut wire = Wire::connect(balancer.address()).await?;
    for _ in 0..2 {
        wire.send(GET).await?;
        assert_eq!(wire.answer().await?.status, 200);
    }
    wire.send("GET / HTTP/1.1\r\nHo").await?;
    let rest = wire.rest().await?;
    ensure!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "),
        "{rest:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_client_that_asks_is_told_how_long_its_connection_is_kept() -> Result<()> {
    let backend = Backend::start().await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    for (version, connection, expected) in [
        (
            "1.1",
            "keep-alive",
            (Some("keep-alive"), Some("timeout=75")),
        ),
        (
            "1.0",
            "Keep-Alive",
            (Some("keep-alive"), Some("timeout=75")),
        ),
        ("1.1", "close", (Some("close"), None)),
        ("1.1", "x-other", (None, None)),
    ] {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(format!(
            "GET / HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n"
        ))
        .await?;
        let answer = wire.answer().await?;
        let told = (answer.header("connection"), answer.header("keep-alive"));
        assert_eq!(told, expected, "HTTP/{version} {connection}");
        if expected.1.is_some() {
            wire.send(GET).await?;
            assert_eq!(wire.answer().await?.status, 200, "it is kept");
        }
    }
    Ok(())
}
