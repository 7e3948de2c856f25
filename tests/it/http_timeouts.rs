//! The promise: a plain request or answer that stops in the middle ends in time, whoever stops; its client can
//! tell, and no backend is blamed for its client.

use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_tests::{
    Balancer, Edit, PATIENCE, Reply, ScriptedBackend, Wire, eventually, upgrade_request,
};
use rustix::process::Signal;
use tokio::time::sleep;

const MIB: usize = 1 << 20;

/// A plain route to `backend`, with timeouts of a second for each side.
fn plain(backend: &impl std::fmt::Display) -> String {
    format!(
        r#"
workers = 1

[[upstream]]
name = "app"
backends = ["{backend}"]
head_timeout_ms = 500
retries = 0

[[route]]
path = "/*"
upstream = "app"
read_timeout_ms = 1000
send_timeout_ms = 1000
body_timeout_ms = 1000
"#
    )
}

async fn aborted_by(balancer: &Balancer, by: &str) -> f64 {
    let metrics = balancer.metrics().await;
    metrics.map_or(-1.0, |metrics| {
        metrics.sum("pointsman_http_aborted_total", &[("by", by)])
    })
}

async fn backend_failures(balancer: &Balancer) -> Result<f64> {
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum("pointsman_backend_failures_total", &[]))
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn an_answer_that_stops_ends_in_time_and_does_not_look_whole() -> Result<()> {
    let upgrade = upgrade_request("/", &[]);
    for (request, said) in [
        (GET, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        (
            GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
        // For a client that knows no chunks, the end of the connection is the end of the answer.
        (
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
        (
            &upgrade,
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf",
        ),
    ] {
        let backend = ScriptedBackend::start(move |_| Reply::Say(said.to_owned())).await?;
        let balancer = Balancer::start(&plain(&backend.address())).await?;
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(request).await?;
        wire.head().await?;
        ensure!(wire.is_reset().await?, "{request} looks whole");
        assert_eq!(aborted_by(&balancer, "backend").await, 1.0, "{request}");
        eventually(
            "its connection to the backend is closed",
            PATIENCE,
            async || backend.n_open() == 0,
        )
        .await?;
        eventually("it is in the access log", PATIENCE, async || {
            let lines = balancer.access_log().unwrap_or_default();
            lines.iter().any(|line| {
                line["event"] == "aborted"
                    && line["closed_by"] == "backend"
                    && line["backend"] == backend.address().to_string()
            })
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn answers_that_pause_for_too_long_eject_no_backend() -> Result<()> {
    let backend = ScriptedBackend::start(|head| {
        Reply::Say(match head.contains("/pause") {
            true => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_owned(),
            false => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        })
    })
    .await?;
    let balancer = Balancer::start(&plain(&backend.address())).await?;
    let mut pausing = Vec::new();
    for _ in 0..10 {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send("GET /pause HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        wire.head().await?;
        pausing.push(wire);
    }
    for mut wire in pausing {
        ensure!(wire.is_reset().await?);
    }
    assert_eq!(aborted_by(&balancer, "backend").await, 10.0);
    assert_eq!(backend_failures(&balancer).await?, 0.0);
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(GET).await?;
    assert_eq!(wire.answer().await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_answer_may_last_as_long_as_it_goes_on() -> Result<()> {
    const N: usize = 8;
    let backend = ScriptedBackend::start(|_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let event = "8\r\ndata: a\n\r\n";
        let pieces = [&[head][..], &[event; N], &["0\r\n\r\n"]].concat();
        let pieces = pieces.into_iter().map(str::to_owned).collect();
        Reply::SayInPieces(pieces, Duration::from_millis(400))
    })
    .await?;
    let balancer = Balancer::start(&plain(&backend.address())).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(GET).await?;
    let answer = wire.answer().await?;
    assert_eq!(answer.text(), "data: a\n".repeat(N));
    assert_eq!(aborted_by(&balancer, "backend").await, 0.0);
    Ok(())
}

/// A backend that answers with `n` bytes.
async fn large(n: usize) -> Result<ScriptedBackend> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n");
    let answer = [head.into_bytes(), vec![b'x'; n]].concat();
    ScriptedBackend::start(move |_| Reply::SayBytes(answer.clone())).await
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut_and_one_that_reads_slowly_is_not()
-> Result<()> {
    const SIZE: usize = 20 * MIB;
    let backend = large(SIZE).await?;
    let balancer = Balancer::start(&plain(&backend.address())).await?;
    let mut slow = Wire::connect(balancer.address()).await?;
    slow.send(GET).await?;
    slow.head().await?;
    let mut stuck = Vec::new();
    balancer.forget_memory_peak()?;
    let before = balancer.memory_peak_bytes()?;
    for _ in 0..20 {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(GET).await?;
        wire.head().await?;
        stuck.push(wire);
    }
    // A tenth of it at a time, over longer than a client may take nothing.
    for _ in 0..20 {
        slow.take(SIZE / 20).await?;
        sleep(Duration::from_millis(150)).await;
    }
    eventually("the others are cut", PATIENCE, async || {
        aborted_by(&balancer, "client").await == stuck.len() as f64
    })
    .await?;
    eventually("their backend is let go", PATIENCE, async || {
        backend.n_open() <= 1
    })
    .await?;
    let grown = balancer.memory_peak_bytes()?.saturating_sub(before) / 20;
    eprintln!("an answer that is not read: {grown} bytes");
    ensure!(grown < 400 << 10, "{grown} bytes each");
    assert_eq!(backend_failures(&balancer).await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_its_body_gets_408_and_its_backend_no_blame()
-> Result<()> {
    let backend = ScriptedBackend::start(|_| Reply::Nothing).await?;
    let balancer = Balancer::start(&plain(&backend.address())).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf")
        .await?;
    assert_eq!(wire.answer().await?.status, 408);
    wire.rest().await?;
    assert_eq!(backend_failures(&balancer).await?, 0.0);
    eventually("its backend is let go", PATIENCE, async || {
        backend.n_open() == 0
    })
    .await?;
    // One that says nothing to a whole request is to blame.
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwhole")
        .await?;
    assert_eq!(wire.answer().await?.status, 504);
    assert_eq!(backend_failures(&balancer).await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_slow_upload_has_its_time() -> Result<()> {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let backend = ScriptedBackend::start(|_| Reply::SayWhenRead(100, answer.to_owned())).await?;
    let balancer = Balancer::start(&plain(&backend.address())).await?;
    // For four times as long as a backend has for its answer.
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        .await?;
    for _ in 0..10 {
        sleep(Duration::from_millis(200)).await;
        wire.send([b'x'; 10]).await?;
    }
    assert_eq!(wire.answer().await?.status, 200);
    assert_eq!(backend_failures(&balancer).await?, 0.0);
    Ok(())
}

/// Half of an upload.
const HALF: &str = "POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf";

#[tokio::test]
async fn half_sent_and_abandoned_requests_eject_nobody() -> Result<()> {
    // Backends lose patience in different ways: some hang up, some answer.
    let too_late = "HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for half in [
        Reply::HangUp,
        Reply::SayAndHangUp(too_late.to_owned()),
        Reply::Nothing,
    ] {
        let reply = half.clone();
        let backend = ScriptedBackend::start(move |head| match head.contains("/half") {
            true => reply.clone(),
            false => Reply::Say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()),
        })
        .await?;
        let other = ScriptedBackend::start(|_| Reply::HangUp).await?;
        let toml = plain(&backend.address())
            .replace_once(
                "\"]\n",
                &format!("\", \"{}\"]\npolicy = \"first\"\n", other.address()),
            )
            .replace_once(
                "[[route]]",
                "[upstream.ejection]\nfailures = 1\n\n[[route]]",
            );
        let balancer = Balancer::start(&toml).await?;
        let mut wires = Vec::new();
        for _ in 0..10 {
            let mut wire = Wire::connect(balancer.address()).await?;
            wire.send(HALF).await?;
            wires.push(wire);
        }
        for (i, mut wire) in wires.into_iter().enumerate() {
            // Every second client leaves.
            if i % 2 == 0 {
                let status = wire.answer().await?.status;
                ensure!(matches!(status, 408 | 502 | 503), "{half:?}: {status}");
            }
        }
        balancer.backend_state(backend.address(), "up").await?;
        assert_eq!(backend_failures(&balancer).await?, 0.0, "{half:?}");
        assert_eq!(balancer.get("/").await?.status, 200);
        assert_eq!(other.heads().len(), 0, "the first is still the first");
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_for_a_100_is_not_late_and_who_does_not_say_it_is() -> Result<()> {
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    for (reply, status, n_failures) in [
        (Reply::Nothing, 504, 1.0),
        (Reply::Say(go_on.to_owned()), 408, 0.0),
    ] {
        let backend = ScriptedBackend::start(move |_| reply.clone()).await?;
        let balancer = Balancer::start(&plain(&backend.address())).await?;
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
        )
        .await?;
        let mut answer = wire.answer().await?;
        if answer.status == 100 {
            answer = wire.answer().await?;
        }
        assert_eq!(answer.status, status);
        assert_eq!(backend_failures(&balancer).await?, n_failures, "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_takes_an_upload_slowly_has_its_time() -> Result<()> {
    const SIZE: usize = 16 * MIB;
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let backend = ScriptedBackend::start_narrow(|_| Reply::SayWhenReadSlowly {
        n: SIZE,
        at_a_time: MIB / 4,
        pause: Duration::from_millis(60),
        then: answer.to_owned(),
    })
    .await?;
    let balancer = Balancer::start(&plain(&backend.address())).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n"
    ))
    .await?;
    wire.send(vec![b'x'; SIZE]).await?;
    assert_eq!(wire.answer().await?.status, 200);
    assert_eq!(backend_failures(&balancer).await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn a_request_that_breaks_off_while_it_is_answered_is_its_clients_doing() -> Result<()> {
    let said = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    // One stops, the other goes on with what is no chunk.
    for more in ["", "no chunk\r\n"] {
        let backend = ScriptedBackend::start(move |_| Reply::Say(said.to_owned())).await?;
        let balancer = Balancer::start(&plain(&backend.address())).await?;
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            .await?;
        assert_eq!(wire.head().await?.status, 200);
        wire.send(more).await?;
        ensure!(wire.is_reset().await?, "{more:?}");
        eventually("it is counted", PATIENCE, async || {
            aborted_by(&balancer, "client").await == 1.0
        })
        .await?;
        assert_eq!(aborted_by(&balancer, "backend").await, 0.0, "{more:?}");
        assert_eq!(backend_failures(&balancer).await?, 0.0, "{more:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_the_end_of_a_drain_cuts_does_not_look_whole() -> Result<()> {
    let said = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let backend = ScriptedBackend::start(move |_| Reply::Say(said.to_owned())).await?;
    let toml = plain(&backend.address()).replace_once("read_timeout_ms = 1000", "");
    let mut balancer = Balancer::start(&format!("drain_timeout_secs = 1\n{toml}")).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await?;
    wire.head().await?;
    balancer.signal(Signal::TERM)?;
    ensure!(wire.is_reset().await?);
    assert_eq!(balancer.wait_exit(PATIENCE).await?.code(), Some(0));
    let lines = balancer.access_log()?;
    ensure!(
        lines
            .iter()
            .any(|line| line["event"] == "aborted" && line["closed_by"] == "operator"),
        "{lines:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_answer_of_an_http_handler_is_whole_when_its_length_has_come() -> Result<()> {
    let toml = "[[route]]\npath = \"/*\"\nhttp = \"hello\"\n";
    let balancer = Balancer::start(toml).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for _ in 0..3 {
        wire.send(GET).await?;
        let answer = wire.answer().await?;
        ensure!(answer.header("content-length").is_some());
        assert_eq!(answer.text(), r#"{"hello":"world"}"#);
    }
    let metrics = balancer.metrics().await?;
    assert_eq!(metrics.sum("pointsman_http_aborted_total", &[]), 0.0);
    Ok(())
}
