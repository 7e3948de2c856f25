//! The promise: the plain HTTP of the same application goes the same way, streamed, over kept
//! connections, and what must not be sent twice is not.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Edit, NOBODY, Reply, ScriptedBackend, Wire, app, in_time, payload,
    upgrade_request,
};

async fn one_backend() -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    Ok((backend, balancer))
}

#[tokio::test]
async fn requests_rotate_over_backends() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let balancer = Balancer::start(&app("round_robin", &addresses)).await?;
    // All on one connection: what is balanced is requests.
    let mut wire = Wire::connect(balancer.address()).await?;
    let mut landed = Vec::new();
    for _ in 0..6 {
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        let answer = wire.answer().await?;
        assert_eq!(answer.status, 200);
        landed.push(answer.backend()?);
    }
    assert_eq!(landed, addresses.repeat(2));
    Ok(())
}

#[tokio::test]
async fn a_body_with_a_length_goes_and_comes_back_whole() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for size in [0, 1, 65_536] {
        let body = payload(size);
        wire.send(format!(
            "POST /a?b=c HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{body}"
        ))
        .await?;
        let answer = wire.answer().await?;
        assert_eq!(answer.status, 200);
        ensure!(answer.text() == body, "the body of {size} differs");
    }
    Ok(())
}

#[tokio::test]
async fn chunks_are_passed_on_as_they_come_in_both_directions() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    wire.send("5\r\nfirst\r\n").await?;
    let answer = wire.head().await?;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    // The first comes back before the second is sent: nothing waits for the whole body.
    assert_eq!(wire.chunk().await?.as_deref(), Some(&b"first"[..]));
    wire.send("6;ext=1\r\nsecond\r\n").await?;
    assert_eq!(wire.chunk().await?.as_deref(), Some(&b"second"[..]));
    wire.send("0\r\n\r\n").await?;
    assert_eq!(wire.chunk().await?, None);

    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    assert_eq!(wire.answer().await?.status, 200, "the connection serves on");
    Ok(())
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_step() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for _ in 0..2 {
        wire.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        assert_eq!(wire.head().await?.status, 200);
        for status in [204, 304] {
            wire.send(format!("GET /status/{status} HTTP/1.1\r\nHost: a\r\n\r\n"))
                .await?;
            let answer = wire.answer().await?;
            assert_eq!((answer.status, answer.body.len()), (status, 0));
            assert_eq!(answer.header("transfer-encoding"), None);
        }
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        let answer = wire.answer().await?;
        ensure!(
            answer.text().starts_with(r#"{"backend""#),
            "found {:?}",
            answer.text()
        );
    }
    Ok(())
}

#[tokio::test]
async fn connections_to_a_backend_are_used_again() -> Result<()> {
    let (backend, balancer) = one_backend().await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for _ in 0..20 {
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        assert_eq!(wire.answer().await?.status, 200);
    }
    // One client connection lives on one worker, and so does its pool.
    assert_eq!(backend.n_connections(), 1);

    for _ in 0..20 {
        assert_eq!(balancer.get("/").await?.status, 200);
    }
    let n = backend.n_connections();
    ensure!(n <= 2, "{n} connections for two workers");
    assert_eq!(backend.requests().len(), 40);
    Ok(())
}

#[tokio::test]
async fn http_1_0_and_connection_close_end_the_connection() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    for request in [
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(request).await?;
        assert_eq!(wire.answer().await?.status, 200);
        assert_eq!(wire.rest().await?, b"");
    }
    Ok(())
}

#[tokio::test]
async fn a_post_is_never_sent_twice() -> Result<()> {
    // Both hang up when they have the head, so whoever is asked second would show.
    let first = ScriptedBackend::start(|_| Reply::HangUp).await?;
    let second = ScriptedBackend::start(|_| Reply::HangUp).await?;
    let addresses = [first.address(), second.address()];
    let balancer = Balancer::start(&app("round_robin", &addresses)).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nmoney")
        .await?;
    assert_eq!(wire.answer().await?.status, 502);
    assert_eq!(first.heads().len() + second.heads().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_post_to_a_backend_that_takes_no_connection_goes_elsewhere() -> Result<()> {
    let alive = Backend::start().await?;
    // A port that was free a moment ago, where nobody listens.
    let dead = NOBODY;
    let balancer = Balancer::start(&app("round_robin", &[dead, alive.address()])).await?;
    for n in 1..=4 {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nmoney")
            .await?;
        let answer = wire.answer().await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "money"));
        assert_eq!(alive.requests().len(), n);
    }
    Ok(())
}

#[tokio::test]
async fn a_get_that_a_backend_hangs_up_on_goes_elsewhere() -> Result<()> {
    let alive = Backend::start().await?;
    let rude = ScriptedBackend::start(|_| Reply::HangUp).await?;
    let addresses = [rude.address(), alive.address()];
    let balancer = Balancer::start(&app("round_robin", &addresses)).await?;
    for _ in 0..4 {
        assert_eq!(balancer.get("/").await?.status, 200);
    }
    ensure!(!rude.heads().is_empty(), "not tried");
    Ok(())
}

#[tokio::test]
async fn an_answer_cut_short_is_not_passed_off_as_whole() -> Result<()> {
    let cut = ScriptedBackend::start(|_| {
        Reply::SayAndHangUp("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".into())
    })
    .await?;
    let balancer = Balancer::start(&app("round_robin", &[cut.address()])).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let answer = wire.head().await?;
    assert_eq!(answer.status, 200);
    ensure!(
        wire.rest().await?.len() < 100,
        "a body that the backend never sent"
    );
    Ok(())
}

#[tokio::test]
async fn requests_behind_each_other_are_answered_in_order() -> Result<()> {
    let (_backend, balancer) = one_backend().await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    let one = |body: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    wire.send(one("first") + &one("second") + &one("third"))
        .await?;
    for body in ["first", "second", "third"] {
        assert_eq!(wire.answer().await?.text(), body);
    }
    Ok(())
}

#[tokio::test]
async fn a_large_body_streams_through_both_ways_at_once() -> Result<()> {
    const CHUNK: usize = 64 * 1024;
    let (_backend, balancer) = one_backend().await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    // Sent and read in step: were the body gathered first, the read would wait for ever.
    let mut received = 0;
    let mut fills = BTreeSet::new();
    for i in 0..128_u8 {
        wire.send(format!("{CHUNK:x}\r\n")).await?;
        wire.send(vec![i; CHUNK]).await?;
        wire.send("\r\n").await?;
        if i == 0 {
            assert_eq!(wire.head().await?.status, 200);
        }
        let sent = CHUNK * (usize::from(i) + 1);
        let step = async {
            while received < sent {
                let chunk = wire.chunk().await?.context("the body ended too early")?;
                received += chunk.len();
                fills.extend(chunk);
            }
            Ok::<_, anyhow::Error>(())
        };
        in_time(format!("byte {sent}"), step).await?;
    }
    wire.send("0\r\n\r\n").await?;
    assert_eq!(wire.chunk().await?, None);
    assert_eq!(fills.len(), 128);
    Ok(())
}

#[tokio::test]
async fn what_can_be_read_as_a_field_that_the_policy_goes_by_reaches_no_backend() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("consistent_hash", &[backend.address()]).replace_once(
        "policy = \"consistent_hash\"",
        "policy = \"consistent_hash\"\npolicy_config = { key = \"header\", name = \"X-Tenant\" }",
    );
    let balancer = Balancer::start(&toml).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nX_Tenant: b\r\nX_Other: c\r\n\r\n")
        .await?;
    assert_eq!(wire.answer().await?.status, 200);
    wire.send(upgrade_request("/", &["X_Tenant: b", "X_Other: c"]))
        .await?;
    assert_eq!(wire.head().await?.status, 101);
    let requests = backend.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert!(!request.headers().contains_key("x_tenant"));
        assert!(request.headers().contains_key("x_other"));
    }
    Ok(())
}
