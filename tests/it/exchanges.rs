//! The promise: an exchange of plain HTTP goes on as its two sides do: what a backend says before its answer reaches
//! the client, an answer that does not wait for its request does too, and who ends one half has not left.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Answer, Balancer, PATIENCE, Reply, ScriptedBackend, Wire, accept_upgrade, app, eventually,
    guests, in_time, upgrade_request,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// Behind which a backend's connection is not used again.
const OK: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
const REFUSED: &str = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";

/// A backend that the test itself is.
struct BackendByHand {
    listener: TcpListener,
    balancer: Balancer,
}

/// A connection to it, and what was asked.
struct AskedByHand {
    stream: TcpStream,
    head: String,
}

impl BackendByHand {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let balancer = Balancer::start(&app("round_robin", &[listener.local_addr()?])).await?;
        Ok(Self { listener, balancer })
    }

    async fn client(&self) -> Result<Wire> {
        Wire::connect(self.balancer.address()).await
    }

    /// The head of the next request, on a connection of its own.
    async fn asked(&self) -> Result<AskedByHand> {
        let accept = async {
            let (mut stream, _) = self.listener.accept().await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            anyhow::Ok(AskedByHand { stream, head })
        };
        in_time("a request", accept).await
    }
}

impl AskedByHand {
    async fn say(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.stream.write_all(bytes.as_ref()).await?)
    }

    async fn reads(&mut self, expected: &str) -> Result<()> {
        let mut read = vec![0; expected.len()];
        in_time("the body", self.stream.read_exact(&mut read)).await?;
        assert_eq!(String::from_utf8_lossy(&read), expected);
        Ok(())
    }

    /// Waits until the other side has ended the connection.
    async fn hears_the_end(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        let read = in_time("the end", async {
            // A reset is one, too.
            let _ = self.stream.read_to_end(&mut rest).await;
            anyhow::Ok(())
        });
        read.await
    }
}

fn names(answer: &Answer) -> (u16, Option<&str>) {
    (answer.status, answer.header("link"))
}

#[tokio::test]
async fn what_a_backend_says_before_its_answer_reaches_the_client_at_once_and_in_order()
-> Result<()> {
    let stage = BackendByHand::start().await?;
    let mut client = stage.client().await?;
    for _ in 0..2 {
        client.send(GET).await?;
        let mut backend = stage.asked().await?;
        backend
            .say("HTTP/1.1 103 Early Hints\r\nLink: </a.js>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n")
            .await?;
        let hints = client.head().await?;
        assert_eq!(names(&hints), (103, Some("</a.js>")));
        assert_eq!(
            (hints.header("x-hop"), hints.header("connection")),
            (None, None)
        );
        backend
            .say("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.js>\r\n\r\n")
            .await?;
        assert_eq!(names(&client.head().await?), (102, None));
        assert_eq!(names(&client.head().await?), (103, Some("</b.js>")));
        // One that comes with the answer.
        backend.say(format!("HTTP/1.1 199 Odd\r\n\r\n{OK}")).await?;
        assert_eq!(client.head().await?.status, 199);
        let answer = client.answer().await?;
        assert_eq!((answer.status, answer.text()), (200, "ok".to_owned()));
    }
    Ok(())
}

#[tokio::test]
async fn what_a_backend_says_before_its_101_is_passed_on() -> Result<()> {
    let stage = BackendByHand::start().await?;
    let mut client = stage.client().await?;
    client.send(upgrade_request("/", &[])).await?;
    let mut backend = stage.asked().await?;
    backend
        .say("HTTP/1.1 103 Early Hints\r\nLink: </a.js>\r\n\r\n")
        .await?;
    assert_eq!(names(&client.head().await?), (103, Some("</a.js>")));
    let accept = accept_upgrade(&backend.head, &[]);
    backend.say(accept).await?;
    assert_eq!(client.head().await?.status, 101);
    Ok(())
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_nothing_before_its_answer() -> Result<()> {
    let early = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let stage = BackendByHand::start().await?;
    for request in [
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let mut client = stage.client().await?;
        client.send(request).await?;
        let mut backend = stage.asked().await?;
        backend.say(format!("{early}{OK}")).await?;
        assert_eq!(client.head().await?.status, 200, "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn the_backend_alone_says_whether_it_wants_the_body() -> Result<()> {
    let stage = BackendByHand::start().await?;
    for (framing, body) in [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let asks =
            format!("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{framing}\r\n\r\n");
        // It does.
        let mut client = stage.client().await?;
        client.send(&asks).await?;
        let mut backend = stage.asked().await?;
        ensure!(backend.head.contains("100-continue"), "{}", backend.head);
        backend
            .say("HTTP/1.1 100 Continue\r\nX-From: backend\r\n\r\n")
            .await?;
        let go_on = client.head().await?;
        assert_eq!(
            (go_on.status, go_on.header("x-from")),
            (100, Some("backend"))
        );
        client.send(body).await?;
        backend.reads(body).await?;
        backend.say(OK).await?;
        assert_eq!(client.answer().await?.text(), "ok");

        // It says nothing, and the client does not wait for ever: no 100 comes of it. The connection serves on.
        client.send(&asks).await?;
        let mut backend = stage.asked().await?;
        client.send(body).await?;
        backend.reads(body).await?;
        backend.say(OK).await?;
        assert_eq!(client.answer().await?.text(), "ok");

        // It does not.
        client.send(&asks).await?;
        let mut backend = stage.asked().await?;
        backend.say(REFUSED).await?;
        let refused = client.answer().await?;
        assert_eq!(refused.status, 413);
        assert_eq!(refused.header("connection"), Some("close"));
        assert_eq!(client.rest().await?, b"");
    }
    Ok(())
}

#[tokio::test]
async fn an_http_handler_that_reads_is_told_to_go_on_by_us() -> Result<()> {
    let toml = "[[route]]\npath = \"/*\"\nhttp = \"guest\"\n";
    let balancer = Balancer::start_with_plugins(toml, &[("guest", &guests::http()?)]).await?;
    let mut client = Wire::connect(balancer.address()).await?;
    let head = "POST /u HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n";
    client.send(head).await?;
    assert_eq!(client.head().await?.status, 100);
    client.send([b'x'; 100]).await?;
    assert_eq!(client.answer().await?.status, 200);
    // One that no route is for is refused without.
    let toml = "[[route]]\npath = \"/echo\"\nhandler = \"echo\"\n";
    let balancer = Balancer::start(toml).await?;
    let mut client = Wire::connect(balancer.address()).await?;
    client.send(head).await?;
    let refused = client.answer().await?;
    assert_eq!(refused.status, 404);
    assert_eq!(refused.header("connection"), Some("close"));
    Ok(())
}

/// Uploads far more than sockets hold before it reads the answer.
async fn upload(address: SocketAddr, path: &str, framing: &str) -> Result<Answer> {
    const PIECE: usize = 64 << 10;
    let mut client = Wire::connect(address).await?;
    let length = match framing {
        "chunked" => "Transfer-Encoding: chunked".to_owned(),
        _ => format!("Content-Length: {}", 256 * PIECE),
    };
    client
        .send(format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n"
        ))
        .await?;
    let piece = match framing {
        "chunked" => [b"10000\r\n", &[b'x'; PIECE][..], b"\r\n"].concat(),
        _ => vec![b'x'; PIECE],
    };
    for i in 0..256 {
        client
            .send(&piece)
            .await
            .with_context(|| format!("piece {i}"))?;
    }
    client.answer().await
}

#[tokio::test]
async fn an_upload_that_is_refused_early_gets_its_answer_and_no_reset() -> Result<()> {
    let closing = ScriptedBackend::start(|_| Reply::SayAndHangUp(REFUSED.to_owned())).await?;
    let reading = ScriptedBackend::start(|_| Reply::Say(REFUSED.to_owned())).await?;
    let toml = format!(
        "[[upstream]]\nname = \"closing\"\nbackends = [\"{}\"]\n\
         [[upstream]]\nname = \"reading\"\nbackends = [\"{}\"]\n\
         [[route]]\npath = \"/closing\"\nupstream = \"closing\"\n\
         [[route]]\npath = \"/reading\"\nupstream = \"reading\"\n\
         [[route]]\npath = \"/handler\"\nhandler = \"echo\"\n\
         [[route]]\npath = \"/http\"\nhttp = \"hello\"\n",
        closing.address(),
        reading.address()
    );
    let balancer = Balancer::start(&toml).await?;
    for framing in ["chunked", "length"] {
        for (path, status) in [
            ("/closing", 413),
            ("/closing", 413),
            ("/reading", 413),
            ("/handler", 426),
            ("/http", 200),
            ("/nothing", 404),
        ] {
            let answer = upload(balancer.address(), path, framing).await;
            let answer = answer.with_context(|| format!("{path}, {framing}"))?;
            assert_eq!(answer.status, status, "{path}, {framing}");
            let connection = answer.header("connection").unwrap_or_default();
            ensure!(connection.ends_with("close"), "{path}: {answer:?}");
        }
    }
    let metrics = balancer.metrics().await?;
    assert_eq!(metrics.sum("pointsman_backend_failures_total", &[]), 0.0);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_is_answered_though_more_of_it_comes() -> Result<()> {
    let stage = BackendByHand::start().await?;
    let mut client = stage.client().await?;
    let long = "x".repeat(8 << 20);
    client
        .send(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nCookie: {long}\r\n\r\n"
        ))
        .await?;
    assert_eq!(client.answer().await?.status, 431);
    assert_eq!(client.rest().await?, b"");
    // Nor does what follows a request that ends the connection take its answer away.
    let mut client = stage.client().await?;
    client
        .send(format!("GET / HTTP/1.1\r\nHost: b@c\r\n\r\n{long}"))
        .await?;
    assert_eq!(client.answer().await?.status, 400);
    Ok(())
}

#[tokio::test]
async fn a_small_request_that_is_refused_leaves_its_connection() -> Result<()> {
    let balancer = Balancer::start("[[route]]\npath = \"/echo\"\nhandler = \"echo\"\n").await?;
    let mut client = Wire::connect(balancer.address()).await?;
    for (path, status) in [("/echo", 426), ("/nothing", 404)] {
        for body in [
            "Content-Length: 5\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ] {
            client
                .send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{body}"))
                .await?;
            assert_eq!(client.answer().await?.status, status, "{path}: {body}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_ends_its_half_behind_its_request_gets_its_answer() -> Result<()> {
    let stage = BackendByHand::start().await?;
    for request in [
        GET,
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ] {
        let mut client = stage.client().await?;
        client.send(request).await?;
        client.end_half().await?;
        let mut backend = stage.asked().await?;
        // Longer than one that leaves is waited for, before the answer and within it.
        let pause = tokio::time::Duration::from_millis(500);
        tokio::time::sleep(pause).await;
        let (first, second) = OK.split_at(OK.len() - 1);
        backend.say(first).await?;
        assert_eq!(client.head().await?.status, 200, "{request}");
        tokio::time::sleep(pause).await;
        backend.say(second).await?;
        assert_eq!(client.rest().await?, b"ok", "{request}");
    }
    let metrics = stage.balancer.metrics().await?;
    assert_eq!(metrics.sum("pointsman_http_aborted_total", &[]), 0.0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_is_reported_to_its_backend() -> Result<()> {
    let stage = BackendByHand::start().await?;
    let stream = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n";
    // In the middle of a stream that says nothing just now: by the end of its connection, or a reset.
    for is_reset in [false, true] {
        let mut client = stage.client().await?;
        client.send(GET).await?;
        let mut backend = stage.asked().await?;
        backend.say(stream).await?;
        assert_eq!(client.head().await?.status, 200);
        client.chunk().await?;
        match is_reset {
            true => client.reset()?,
            false => drop(client),
        }
        backend.hears_the_end().await?;
    }
    eventually("both are counted", PATIENCE, async || {
        let metrics = stage.balancer.metrics().await;
        let by = [("by", "client")];
        metrics.is_ok_and(|metrics| metrics.sum("pointsman_http_aborted_total", &by) == 2.0)
    })
    .await?;
    // Before the answer only a reset says so.
    for request in [
        GET,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let mut client = stage.client().await?;
        client.send(request).await?;
        let mut backend = stage.asked().await?;
        client.reset()?;
        backend.hears_the_end().await?;
    }
    // One that has gone without a word before its answer is found by it.
    let mut client = stage.client().await?;
    client.send(GET).await?;
    let mut backend = stage.asked().await?;
    drop(client);
    backend.say(stream).await?;
    backend.hears_the_end().await?;
    Ok(())
}
