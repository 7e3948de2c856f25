//! The promise: what HTTP says of messages that pass through holds (RFC 9110, RFC 9112), for both sides.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use pointsman_tests::{
    Balancer, PATIENCE, Reply, ScriptedBackend, Wire, app, eventually, upgrade_request,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A backend that says this to everything, for one request on each connection.
async fn saying(answer: &'static str) -> Result<(ScriptedBackend, Balancer)> {
    let backend = ScriptedBackend::start(move |_| Reply::SayAndHangUp(answer.to_owned())).await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    Ok((backend, balancer))
}

#[tokio::test]
async fn a_426_says_what_to_upgrade_to_and_no_other_answer_does() -> Result<()> {
    let upgrade = upgrade_request("/", &[]);
    for (answer, status, protocol) in [
        (
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\nContent-Length: 0\r\n\r\n",
            426,
            Some("websocket"),
        ),
        (
            "HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: close, Upgrade\r\nContent-Length: 0\r\n\r\n",
            200,
            None,
        ),
    ] {
        let (_backend, balancer) = saying(answer).await?;
        let mut wire = Wire::connect(balancer.address()).await?;
        for request in [GET, &upgrade, GET] {
            wire.send(request).await?;
            let answer = wire.answer().await?;
            assert_eq!(answer.status, status);
            assert_eq!(answer.header("upgrade"), protocol);
            assert_eq!(answer.header("connection"), protocol.map(|_| "Upgrade"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_whose_coding_is_not_spoken_here_is_no_answer() -> Result<()> {
    let upgrade = upgrade_request("/", &[]);
    for (coding, status) in [
        ("chunked", 403),
        ("foo", 502),
        ("chunked, chunked", 502),
        ("gzip, chunked", 502),
        ("chunked\r\nTransfer-Encoding: chunked", 502),
    ] {
        let answer = format!(
            "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: {coding}\r\n\r\n2\r\nno\r\n0\r\n\r\n"
        );
        let backend = ScriptedBackend::start(move |_| Reply::SayAndHangUp(answer.clone())).await?;
        let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
        for request in [GET, &upgrade] {
            let mut wire = Wire::connect(balancer.address()).await?;
            wire.send(request).await?;
            assert_eq!(wire.answer().await?.status, status, "{coding}: {request}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_may_have_hundreds_of_fields() -> Result<()> {
    for (n, status) in [(480, 200), (501, 502)] {
        let mut answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n".to_owned();
        for i in 0..n - 2 {
            write!(answer, "X-{i}: {i}\r\n")?;
        }
        answer.push_str("\r\n");
        let backend = ScriptedBackend::start(move |_| Reply::SayAndHangUp(answer.clone())).await?;
        let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
        let answer = balancer.get("/").await?;
        assert_eq!(answer.status, status, "{n} fields");
        assert_eq!(answer.header("x-477").is_some(), status == 200);
    }
    Ok(())
}

#[tokio::test]
async fn fields_behind_a_body_go_no_further_and_the_answer_is_whole() -> Result<()> {
    let (_backend, balancer) = saying(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    .await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for _ in 0..2 {
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
            .await?;
        let answer = wire.head().await?;
        assert_eq!(answer.header("trailer"), None);
        assert_eq!(wire.take(12).await?, b"2\r\nhi\r\n0\r\n\r\n");
    }
    let metrics = balancer.metrics().await?;
    assert_eq!(metrics.sum("pointsman_http_aborted_total", &[]), 0.0);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await?;
    wire.head().await?;
    wire.take(12).await?;
    ensure!(!wire.is_reset().await?, "the end looks like a break");
    Ok(())
}

#[tokio::test]
async fn an_absolute_target_names_a_port_that_there_is() -> Result<()> {
    let (backend, balancer) =
        saying("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await?;
    for (port, status) in [
        ("", 200),
        (":", 200),
        (":8080", 200),
        (":65536", 400),
        (":+80", 400),
    ] {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(format!("GET http://a{port}/ HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await?;
        assert_eq!(wire.answer().await?.status, status, "{port}");
    }
    assert_eq!(backend.heads().len(), 3);
    Ok(())
}

/// Whether a head has a field whose name is spelled exactly so.
fn spells(answer: &pointsman_tests::Answer, name: &str) -> bool {
    answer.headers.iter().any(|(found, _)| found == name)
}

#[tokio::test]
async fn our_own_heads_spell_their_fields_as_the_rfcs_do() -> Result<()> {
    let backend = ScriptedBackend::start(|_| Reply::Nothing).await?;
    let toml = format!(
        "[[route]]\npath = \"/echo\"\nhandler = \"echo\"\n\
         [[route]]\npath = \"/*\"\nupstream = \"app\"\n\
         [[upstream]]\nname = \"app\"\nbackends = [\"{}\"]\n\
         [upstream.health]\nkind = \"websocket\"\npath = \"/probe\"\n",
        backend.address()
    );
    let balancer = Balancer::start(&toml).await?;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate";
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request("/echo", &[offer])).await?;
    let accepted = wire.head().await?;
    assert_eq!(accepted.status, 101);
    for name in [
        "Sec-WebSocket-Accept",
        "Sec-WebSocket-Extensions",
        "Upgrade",
    ] {
        ensure!(spells(&accepted, name), "{:?}", accepted.headers);
    }
    let plain = balancer.get("/echo").await?;
    assert_eq!(plain.status, 426);
    ensure!(spells(&plain, "Sec-WebSocket-Version"), "{plain:?}");
    eventually("a probe", PATIENCE, async || {
        let heads = backend.heads();
        heads.iter().any(|head| {
            ["\r\nSec-WebSocket-Key: ", "\r\nSec-WebSocket-Version: "]
                .iter()
                .all(|name| head.starts_with("GET /probe ") && head.contains(name))
        })
    })
    .await?;
    Ok(())
}
