//! The promise: an HTTP handler has its time for the head of an answer, and may stream for as long as it
//! goes on; an answer that it does not finish is one that its client can tell from a whole one.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Balancer, PATIENCE, Wire, eventually, guests};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const PIECE_BYTES: usize = 4096;

/// The guest at every path, with these lines in `[plugin.guest]`.
async fn site(lines: &str) -> Result<Balancer> {
    site_with(lines, "").await
}

/// And with those in the route.
async fn site_with(lines: &str, route: &str) -> Result<Balancer> {
    let toml =
        format!("[plugin.guest]\n{lines}\n[[route]]\npath = \"/*\"\nhttp = \"guest\"\n{route}\n");
    Balancer::start_with_plugins(&toml, &[("guest", &guests::http()?)]).await
}

/// What a client gets that reads until the connection ends.
struct Received {
    status: u16,
    body: Vec<u8>,
    /// The chunk that ends a body was there.
    is_whole: bool,
}

async fn ask(address: SocketAddr, path: &str, version: &str) -> Result<Received> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/{version}\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset ends it as well.
    let _ = read.context("the connection does not end")?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, mut rest) = bytes.split_at(end.context("no head")? + 4);
    let head = String::from_utf8_lossy(head).to_lowercase();
    let status = head.get(9..12).context("no status")?.parse()?;
    let mut received = Received {
        status,
        body: Vec::new(),
        is_whole: false,
    };
    if !head.contains("transfer-encoding: chunked") {
        received.body = rest.to_vec();
        return Ok(received);
    }
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let length = std::str::from_utf8(&rest[..end])?.trim();
        let length = usize::from_str_radix(length, 16)?;
        received.is_whole = length == 0;
        let Some(chunk) = rest.get(end + 1..end + 1 + length) else {
            break;
        };
        received.body.extend_from_slice(chunk);
        rest = rest.get(end + 1 + length + 2..).unwrap_or_default();
    }
    Ok(received)
}

#[tokio::test]
async fn an_answer_may_take_longer_than_its_head() -> Result<()> {
    let balancer = site("").await?;
    let received = ask(balancer.address(), "/d", "1.1").await?;
    assert_eq!(received.status, 200);
    assert_eq!(received.body.len(), 3 * PIECE_BYTES);
    ensure!(received.is_whole);
    Ok(())
}

#[tokio::test]
async fn a_handler_that_holds_a_pollable_for_each_write_sends_megabytes() -> Result<()> {
    let balancer = site("").await?;
    let received = ask(balancer.address(), "/b", "1.1").await?;
    assert_eq!(received.body.len(), 1000 * PIECE_BYTES);
    ensure!(received.is_whole);

    let balancer = site("http_max_resources = 300").await?;
    let received = ask(balancer.address(), "/b", "1.1").await?;
    ensure!(!received.is_whole && received.body.len() < 300 * PIECE_BYTES);
    eventually("the bound is named", PATIENCE, async || {
        let log = balancer.log();
        log.iter()
            .any(|line| line.contains("more than 300 resources (http_max_resources)"))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_not_finished_does_not_look_whole_and_is_counted() -> Result<()> {
    let balancer = site("http_idle_timeout_ms = 300\nhttp_head_timeout_ms = 300").await?;
    for (path, kind, status) in [
        ("/s", "timeout", 200),
        ("/w", "timeout", 200),
        ("/t", "trap", 200),
        // It returns at once: before the head is sent.
        ("/l", "output", 502),
        ("/m", "output", 200),
        ("/f", "trap", 200),
    ] {
        let labels = [("plugin", "guest"), ("kind", kind)];
        let count = async || {
            let metrics = balancer.metrics().await?;
            anyhow::Ok(metrics.sum("pointsman_plugin_failures_total", &labels))
        };
        let before = count().await?;
        let received = ask(balancer.address(), path, "1.1").await?;
        assert_eq!(received.status, status, "{path}");
        ensure!(!received.is_whole, "{path}: a whole body");
        ensure!(received.body.len() <= PIECE_BYTES, "{path}");
        eventually(
            format!("{path} is counted as {kind}"),
            PATIENCE,
            async || count().await.is_ok_and(|n| n == before + 1.0),
        )
        .await?;
    }
    let received = ask(balancer.address(), "/n", "1.1").await?;
    ensure!(received.is_whole, "others are answered as before");
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_reset_and_in_the_access_log() -> Result<()> {
    let balancer = site("http_idle_timeout_ms = 300").await?;
    // In HTTP/1.0 the end of the connection is the end of the answer.
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("GET /s HTTP/1.0\r\nHost: a\r\n\r\n").await?;
    wire.head().await?;
    ensure!(wire.is_reset().await?);
    eventually("it is in the access log", PATIENCE, async || {
        let lines = balancer.access_log().unwrap_or_default();
        lines.iter().any(|line| {
            line["event"] == "aborted"
                && line["closed_by"] == "plugin"
                && line["handler"] == "guest"
                && line["reason"].to_string().contains("within 300 ms")
        })
    })
    .await?;
    let metrics = balancer.metrics().await?;
    let by_plugin = metrics.sum("pointsman_http_aborted_total", &[("by", "plugin")]);
    assert_eq!(by_plugin, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_slow_upload_has_its_time_and_one_that_stops_is_a_408() -> Result<()> {
    let balancer = site_with("http_head_timeout_ms = 300", "body_timeout_ms = 1000").await?;
    const HEAD: &str = "POST /u HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
    // For many times as long as the head of the answer has.
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(HEAD).await?;
    for _ in 0..10 {
        sleep(Duration::from_millis(200)).await;
        wire.send([b'x'; 10]).await?;
    }
    assert_eq!(wire.answer().await?.status, 200);

    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(HEAD).await?;
    wire.send("half").await?;
    assert_eq!(wire.answer().await?.status, 408);
    Ok(())
}

#[tokio::test]
async fn a_head_that_does_not_come_in_time_is_a_504() -> Result<()> {
    let balancer = site("http_head_timeout_ms = 200").await?;
    let received = ask(balancer.address(), "/h", "1.1").await?;
    assert_eq!(received.status, 504);
    eventually("the reason is logged", PATIENCE, async || {
        let log = balancer.access_log();
        log.is_ok_and(|log| {
            log.iter()
                .any(|line| line["reason"].to_string().contains("within 200 ms"))
        })
    })
    .await?;
    Ok(())
}
