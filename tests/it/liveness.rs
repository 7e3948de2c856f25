//! The promise: with `ping_interval_secs`, whoever sends or takes bytes is alive, however long it has no chance to answer a
//! Ping; and whoever does neither is found out.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Client, Wire, accept_upgrade, eventually, frame, upgrade_request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const BINARY: u8 = 0x82;

/// Several times as long as it took until a session was closed whose Ping was not answered.
const LONG: Duration = Duration::from_secs(5);
const MIB: usize = 1024 * 1024;

/// Relayed; and looked at, in both directions.
const WAYS: [&str; 2] = ["", "filters = [\"tap\"]\nmax_message_bytes = 5000000"];

async fn balancer(backend: SocketAddr, route: &str) -> Result<Balancer> {
    let toml = format!(
        "[[upstream]]\nname = \"app\"\nbackends = [\"{backend}\"]\n\n\
         [[route]]\npath = \"/*\"\nupstream = \"app\"\nping_interval_secs = 1\n{route}\n\n\
         [[route]]\npath = \"/echo\"\nhandler = \"echo\"\nping_interval_secs = 1\n"
    );
    Balancer::start(&toml).await
}

/// A backend that does as `work` says with the only session that it has.
async fn backend<W, F>(work: W) -> Result<(SocketAddr, JoinSet<Result<()>>)>
where
    W: FnOnce(TcpStream) -> F + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let answer = accept_upgrade(&String::from_utf8_lossy(&head), &[]);
        stream.write_all(answer.as_bytes()).await?;
        work(stream).await
    });
    Ok((address, serving))
}

async fn session(balancer: &Balancer, path: &str) -> Result<Wire> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request(path, &[])).await?;
    ensure!(wire.head().await?.status == 101, "no session");
    Ok(wire)
}

/// Of a server: not masked.
fn bare(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first_byte, 127];
    frame.extend((payload.len() as u64).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The payload of the next message. Pings before it are answered.
async fn message(wire: &mut Wire) -> Result<Vec<u8>> {
    loop {
        let next = wire.frame().await?;
        match next.first_byte {
            BINARY => return Ok(next.payload),
            PING => wire.send(frame(PONG, &next.payload)).await?,
            PONG => {}
            _ => anyhow::bail!("{:#x}, code {:?}", next.first_byte, next.close_code()),
        }
    }
}

#[tokio::test]
async fn a_client_in_the_middle_of_a_long_frame_is_alive() -> Result<()> {
    for (way, path) in [(WAYS[0], "/"), (WAYS[1], "/"), (WAYS[0], "/echo")] {
        let backend = Backend::start().await?;
        let balancer = balancer(backend.address(), way).await?;
        let mut client = session(&balancer, path).await?;
        let payload = vec![7; 60_000];
        let sent = frame(BINARY, &payload);
        for piece in sent.chunks(sent.len() / 50) {
            client.send(piece).await?;
            sleep(LONG / 50).await;
        }
        let echo = message(&mut client)
            .await
            .with_context(|| format!("{path} {way}"))?;
        ensure!(echo == payload, "another echo");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_rests_within_its_frame_is_not_asked_for_what_it_cannot_say() -> Result<()> {
    for (way, path) in [(WAYS[0], "/"), (WAYS[1], "/"), (WAYS[0], "/echo")] {
        let backend = Backend::start().await?;
        let balancer = balancer(backend.address(), way).await?;
        let mut client = session(&balancer, path).await?;
        let sent = frame(BINARY, b"hello");
        client.send(&sent[..8]).await?;
        sleep(LONG).await;
        client.send(&sent[8..]).await?;
        let echo = message(&mut client)
            .await
            .with_context(|| format!("{path} {way}"))?;
        assert_eq!(echo, b"hello");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_gets_a_long_frame_is_alive_and_so_is_its_backend() -> Result<()> {
    for way in WAYS {
        let (address, _serving) = backend(|mut stream| async move {
            let sent = bare(BINARY, &vec![7; MIB]);
            for piece in sent.chunks(sent.len() / 50) {
                stream.write_all(piece).await?;
                sleep(LONG / 50).await;
            }
            // It answers what it was asked meanwhile.
            stream.write_all(&[PONG, 0]).await?;
            stream.write_all(&bare(BINARY, b"after")).await?;
            let mut room = [0; 4096];
            while stream.read(&mut room).await.is_ok_and(|n| n > 0) {}
            Ok(())
        })
        .await?;
        let balancer = balancer(address, way).await?;
        let mut client = Client::connect(&balancer.url("/")).await?;
        for expected in [MIB, 5] {
            let came = loop {
                match client.receive().await.with_context(|| way.to_owned())? {
                    Message::Binary(came) => break came.len(),
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => anyhow::bail!("{way}: {other:?}"),
                }
            };
            assert_eq!(came, expected, "{way}");
        }
    }
    Ok(())
}

/// Reads so many bytes of messages, a piece at a time; Pings are answered when it comes to them.
async fn read_slowly(client: &mut Wire, n_messages: usize, len: usize) -> Result<()> {
    for n in 0..n_messages {
        let came = message(client)
            .await
            .with_context(|| format!("message {n}"))?;
        ensure!(came.len() == len, "message {n} has {} bytes", came.len());
        sleep(LONG / (n_messages as u32)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_is_sent_more_than_it_reads_is_alive() -> Result<()> {
    const N: usize = 200;
    const LEN: usize = 64_000;
    for way in WAYS {
        let (address, _serving) = backend(|mut stream| async move {
            // It is not read before the client has taken most of it.
            stream.write_all(&bare(BINARY, &[7; LEN]).repeat(N)).await?;
            let mut room = [0; 4096];
            loop {
                match stream.read(&mut room).await {
                    Ok(n) if n > 0 => stream.write_all(&[PONG, 0]).await?,
                    _ => return Ok(()),
                }
            }
        })
        .await?;
        let balancer = balancer(address, way).await?;
        let mut client = session(&balancer, "/").await?;
        read_slowly(&mut client, N, LEN)
            .await
            .with_context(|| way.to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_of_a_handler_that_is_answered_more_than_it_reads_is_alive() -> Result<()> {
    // What the sockets on the way hold: it is sent at once, and then nothing.
    const N: usize = 45;
    const LEN: usize = 64_000;
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let balancer = balancer(nobody, "").await?;
    let mut stream = TcpStream::connect(balancer.address()).await?;
    stream
        .write_all(upgrade_request("/echo", &[]).as_bytes())
        .await?;
    let (mut reader, mut writer) = stream.into_split();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(reader.read_u8().await?);
    }
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        let message = frame(BINARY, &[7; LEN]);
        for _ in 0..N {
            writer.write_all(&message).await?;
        }
        anyhow::Ok(writer)
    });
    let (mut n_came, mut left, mut room) = (0, Vec::new(), vec![0; LEN]);
    while n_came < N {
        let n = timeout(LONG * 2, reader.read(&mut room))
            .await
            .context("silence")??;
        ensure!(n > 0, "it ended after {n_came} messages");
        left.extend_from_slice(&room[..n]);
        // An echo has a header of four bytes; Pings between them have two.
        while left.len() >= 4 {
            let len = match left[0] {
                BINARY => 4 + LEN,
                PING => 2,
                other => anyhow::bail!("{other:#x} after {n_came} messages"),
            };
            if left.len() < len {
                break;
            }
            n_came += usize::from(left[0] == BINARY);
            left.drain(..len);
        }
        sleep(LONG / 50).await;
    }
    sending.join_next().await.context("it sends")???;
    Ok(())
}

#[tokio::test]
async fn who_takes_bytes_and_answers_nothing_is_closed() -> Result<()> {
    for way in WAYS {
        let (address, _serving) = backend(|stream| async move {
            // Chatty, and it answers.
            let (mut reader, mut writer) = stream.into_split();
            let mut room = [0; 4096];
            loop {
                writer.write_all(b"\x82\x02hi").await?;
                let read = timeout(Duration::from_millis(50), reader.read(&mut room)).await;
                match read {
                    Ok(Ok(n)) if n > 0 => writer.write_all(&[PONG, 0]).await?,
                    Ok(_) => return Ok(()),
                    Err(_) => {}
                }
            }
        })
        .await?;
        let balancer = balancer(address, way).await?;
        let mut client = session(&balancer, "/").await?;
        let code = loop {
            if let Some(code) = client.frame().await?.close_code() {
                break code;
            }
        };
        assert_eq!(code, 1001, "{way}");
    }
    Ok(())
}

#[tokio::test]
async fn who_takes_nothing_of_what_waits_is_found_out() -> Result<()> {
    for way in WAYS {
        let (address, _serving) = backend(|mut stream| async move {
            stream
                .write_all(&bare(BINARY, &[7; 64_000]).repeat(400))
                .await?;
            Ok(())
        })
        .await?;
        let balancer = balancer(address, way).await?;
        let _client = session(&balancer, "/").await?;
        let mut end = None;
        eventually("it has ended", Duration::from_secs(30), async || {
            let lines = balancer.access_log().unwrap_or_default();
            end = lines.into_iter().find(|line| line["event"] == "close");
            end.is_some()
        })
        .await?;
        let end = end.context("it was found")?;
        assert_eq!(
            (&end["closed_by"], &end["close_code"]),
            (&"host".into(), &1001.into()),
            "{way}"
        );
    }
    Ok(())
}
