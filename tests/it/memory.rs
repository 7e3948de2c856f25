//! The promise: what a client has us hold is counted, bounded, and given back in time; and when there is
//! too much of it, who holds most goes first.

use std::time::Duration;

use anyhow::{Result, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use pointsman_tests::{
    Backend, Balancer, Edit, PATIENCE, Reply, ScriptedBackend, Wire, accept_upgrade, eventually,
    frame, guests, upgrade_request,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const PING: u8 = FIN | 0x9;
const PONG: u8 = FIN | 0xa;

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate";
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// One worker, with the handler `echo` on every path.
fn echo(overload: &str, route: &str) -> String {
    format!(
        "workers = 1\n[overload]\n{overload}\n[[route]]\npath = \"/*\"\nhandler = \"echo\"\n{route}\n"
    )
}

async fn session(balancer: &Balancer, path: &str) -> Result<Wire> {
    Ok(offering(balancer, path, &[]).await?.0)
}

/// A session, and the extensions that were agreed on.
async fn offering(
    balancer: &Balancer,
    path: &str,
    offer: &[&str],
) -> Result<(Wire, Option<String>)> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request(path, offer)).await?;
    let answer = wire.head().await?;
    ensure!(answer.status == 101, "answered with {}", answer.status);
    let agreed = answer.header("sec-websocket-extensions");
    Ok((wire, agreed.map(str::to_owned)))
}

async fn held(balancer: &Balancer) -> f64 {
    let metrics = balancer.metrics().await;
    metrics.map_or(f64::MAX, |metrics| {
        metrics.sum("pointsman_buffered_bytes", &[])
    })
}

async fn memory(balancer: &Balancer) -> Result<f64> {
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum("process_resident_memory_bytes", &[]))
}

async fn ended_by(balancer: &Balancer, limit: &str) -> Result<f64> {
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum("pointsman_sessions_ended_total", &[("limit", limit)]))
}

/// Half of a message of `n` bytes, in frames that a test can write.
fn pieces(n: usize) -> Vec<u8> {
    let mut bytes = frame(BINARY, &[]);
    for _ in 0..n / 60_000 {
        bytes.extend(frame(CONTINUATION, &[7; 60_000]));
    }
    bytes.extend(frame(CONTINUATION, &vec![7; n % 60_000]));
    bytes
}

/// JSON that repeats itself, as messages do, and never quite.
fn json(seed: u64, len: usize) -> Vec<u8> {
    let mut text = String::new();
    let mut n = seed;
    while text.len() < len {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (id, user, room) = (n >> 40, (n >> 8) % 97, (n >> 16) % 7);
        text += &format!("{{\"id\":{id},\"user\":\"user{user}\",\"room\":\"room{room}\"}},");
    }
    text.truncate(len);
    text.into_bytes()
}

/// Compressed as one client would after another.
fn compressed(messages: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let mut stream = Compress::new(Compression::fast(), false);
    let mut frames = Vec::new();
    for message in messages {
        let mut small = Vec::with_capacity(message.len() + 100);
        stream.compress_vec(message, &mut small, FlushCompress::Sync)?;
        small.truncate(small.len() - 4);
        frames.push(frame(FIN | COMPRESSED | TEXT, &small));
    }
    Ok(frames)
}

#[tokio::test]
async fn a_thousand_idle_sessions_with_deflate_hold_what_the_next_message_may_refer_to()
-> Result<()> {
    const N: usize = 1000;
    let balancer = Balancer::start(&echo("", "")).await?;
    let messages: Vec<_> = (0..4).map(|seed| json(seed, 12_000)).collect();
    let frames = compressed(&messages)?;
    let (last, before_last) = frames.split_last().expect("there are four");
    // Whatever grows with the first session is not what a session holds.
    let (mut first, _) = offering(&balancer, "/", &[DEFLATE]).await?;
    first.send(&before_last[0]).await?;
    first.frame().await?;
    let mut sessions = Vec::new();
    for _ in 0..N {
        sessions.push(offering(&balancer, "/", &[DEFLATE]).await?.0);
    }
    let without = memory(&balancer).await?;
    let mut inflater = Vec::new();
    for wire in &mut sessions {
        let mut read = Decompress::new(false);
        for (sent, message) in before_last.iter().zip(&messages) {
            wire.send(sent).await?;
            check_echo(wire, &mut read, message).await?;
        }
        inflater.push(read);
    }
    let busy = held(&balancer).await;
    // What their next message may refer to, and no more.
    let idle = (N * 32 * KIB) as f64;
    eventually("the windows are given back", PATIENCE, async || {
        held(&balancer).await < idle + 100_000.0
    })
    .await?;
    let grown = (memory(&balancer).await? - without) / N as f64;
    eprintln!(
        "{N} sessions with deflate: {busy:.0} bytes held, then {:.0}; {grown:.0} bytes of memory each",
        held(&balancer).await
    );
    ensure!(busy > idle, "windows in use count: {busy}");
    ensure!(grown < 48.0 * 1024.0, "{grown} bytes each");
    // Both ends' next messages refer to what was before, or do without.
    for (wire, read) in sessions.iter_mut().zip(&mut inflater) {
        wire.send(last).await?;
        check_echo(wire, read, &messages[3]).await?;
    }
    drop((first, sessions));
    eventually("nothing is held", PATIENCE, async || {
        held(&balancer).await == 0.0
    })
    .await?;
    Ok(())
}

async fn check_echo(wire: &mut Wire, read: &mut Decompress, message: &[u8]) -> Result<()> {
    let echo = wire.frame().await?;
    ensure!(
        echo.first_byte == FIN | COMPRESSED | TEXT,
        "{:x}",
        echo.first_byte
    );
    let mut whole = Vec::with_capacity(message.len() + 1);
    let small = [&echo.payload[..], &[0, 0, 0xff, 0xff]].concat();
    read.decompress_vec(&small, &mut whole, FlushDecompress::Sync)?;
    ensure!(
        whole == message,
        "{} of {} bytes",
        whole.len(),
        message.len()
    );
    Ok(())
}

#[tokio::test]
async fn windows_do_not_outgrow_what_is_allowed_and_end_no_session() -> Result<()> {
    let balancer = Balancer::start(&echo("max_buffered_bytes = 4194304", "")).await?;
    let frames = compressed(&[json(1, 40_000), json(2, 40_000)])?;
    let mut sessions = Vec::new();
    let mut agreed = Vec::new();
    for _ in 0..100 {
        let (mut wire, answer) = offering(&balancer, "/", &[DEFLATE]).await?;
        wire.send(&frames[0]).await?;
        wire.frame().await?;
        agreed.push(answer.unwrap_or_default());
        sessions.push(wire);
    }
    // 64 windows of 32 KiB are half of it: the rest do without.
    let without = "permessage-deflate; client_no_context_takeover";
    let n = agreed.iter().filter(|answer| *answer == without).count();
    assert_eq!(n, 36, "{agreed:?}");
    assert!(
        agreed[..64]
            .iter()
            .all(|answer| answer == "permessage-deflate")
    );
    let now = held(&balancer).await;
    ensure!(now <= 4.0 * MIB as f64, "{now} bytes");
    for wire in &mut sessions[..64] {
        wire.send(&frames[1]).await?;
        wire.frame().await?;
    }
    assert_eq!(ended_by(&balancer, "max_buffered_bytes").await?, 0.0);
    Ok(())
}

/// Routes `/echo`, `/filtered` and `/relay`, with a second for a message.
async fn impatient(backend: &str) -> Result<Balancer> {
    let toml = format!(
        r#"
[plugins]
dir = "PLUGINS_DIR"
memory_max_bytes = 67108864

[[upstream]]
name = "app"
backends = ["{backend}"]

[[route]]
path = "/echo"
handler = "echo"
message_timeout_ms = 1000

[[route]]
path = "/filtered"
upstream = "app"
filters = ["all"]
message_timeout_ms = 1000

[[route]]
path = "/relay"
upstream = "app"
message_timeout_ms = 1000
"#
    );
    let filter = guests::filter_that_forwards()?;
    Balancer::start_with_plugins(&toml, &[("all", &filter)]).await
}

#[tokio::test]
async fn a_message_that_does_not_come_ends_its_session() -> Result<()> {
    let backend = Backend::start().await?;
    let balancer = impatient(&backend.address().to_string()).await?;
    // A plain relay holds no message, and waits for one.
    let mut relayed = session(&balancer, "/relay").await?;
    relayed.send(frame(TEXT, b"half")).await?;
    let mut n = 0.0;
    for way in ["/echo", "/filtered"] {
        for (what, bytes) in [
            ("half a large message", pieces(900_000)),
            (
                "half a frame",
                frame(FIN | BINARY, &[7; 60_000])[..30_000].to_vec(),
            ),
            ("a byte of a header", vec![FIN | TEXT]),
            ("half a ping", frame(PING, b"are you there")[..9].to_vec()),
        ] {
            let mut wire = session(&balancer, way).await?;
            wire.send(bytes).await?;
            assert_eq!(
                wire.frame().await?.close_code(),
                Some(1008),
                "{way}: {what}"
            );
            assert_eq!(wire.rest().await?, b"", "{way}: {what}");
            n += 1.0;
        }
    }
    assert_eq!(ended_by(&balancer, "message_timeout").await?, n);
    eventually("it is in the access log", PATIENCE, async || {
        let lines = balancer.access_log().unwrap_or_default();
        let told = lines.iter().filter(|line| {
            line["event"] == "close" && line["closed_by"] == "host" && line["close_code"] == 1008
        });
        told.count() as f64 == n
    })
    .await?;
    relayed
        .send(frame(FIN | CONTINUATION, b" and half"))
        .await?;
    let echo = relayed.frame().await?;
    assert_eq!(echo.payload, b"half and half");
    Ok(())
}

#[tokio::test]
async fn a_message_that_trickles_ends_its_session_and_one_that_is_slow_but_steady_does_not()
-> Result<()> {
    let backend = Backend::start().await?;
    let balancer = impatient(&backend.address().to_string()).await?;
    let mut others = JoinSet::new();
    for way in ["/echo", "/filtered"] {
        // A kilobyte ten times a second, for three times as long as a message has.
        let mut steady = session(&balancer, way).await?;
        others.spawn(async move {
            for n in 0..30 {
                let opcode = if n == 0 { BINARY } else { CONTINUATION };
                steady.send(frame(opcode, &[7; KIB])).await?;
                sleep(Duration::from_millis(100)).await;
            }
            steady.send(frame(FIN | CONTINUATION, b"end")).await?;
            let echo = steady.frame().await?;
            ensure!(echo.payload.len() == 30 * KIB + 3, "{:x}", echo.first_byte);
            anyhow::Ok(())
        });
        // Messages that are never whole when one looks, and each in time.
        let mut halves = session(&balancer, way).await?;
        others.spawn(async move {
            let message = frame(FIN | TEXT, b"hello");
            halves.send(&message[..7]).await?;
            for _ in 0..60 {
                sleep(Duration::from_millis(50)).await;
                halves.send([&message[7..], &message[..7]].concat()).await?;
                ensure!(halves.frame().await?.payload == b"hello");
            }
            anyhow::Ok(())
        });
        // A byte now and then, with pings, which are answered, and pieces of nothing between.
        let mut trickle = session(&balancer, way).await?;
        trickle.send(frame(BINARY, &[7; 60_000])).await?;
        let told = async {
            loop {
                trickle.send(frame(PING, b"?")).await?;
                trickle.send(frame(CONTINUATION, b"")).await?;
                trickle.send(frame(CONTINUATION, b"x")).await?;
                let said = trickle.frame().await?;
                match said.first_byte {
                    PONG => sleep(Duration::from_millis(50)).await,
                    _ => return anyhow::Ok(said.close_code()),
                }
            }
        };
        let code = timeout(PATIENCE, told).await??;
        assert_eq!(code, Some(1008), "{way}");
    }
    while let Some(done) = others.join_next().await {
        done??;
    }
    assert_eq!(ended_by(&balancer, "message_timeout").await?, 2.0);
    Ok(())
}

#[tokio::test]
async fn a_backend_that_stops_in_a_message_that_filters_wait_for_is_let_go() -> Result<()> {
    let backend = ScriptedBackend::start(|head| {
        let mut said = accept_upgrade(head, &[]).into_bytes();
        said.extend([BINARY, 100]);
        said.extend([7; 50]);
        Reply::SayBytes(said)
    })
    .await?;
    let balancer = impatient(&backend.address().to_string()).await?;
    let mut wire = session(&balancer, "/filtered").await?;
    assert_eq!(wire.frame().await?.close_code(), Some(1001));
    assert_eq!(ended_by(&balancer, "message_timeout").await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn who_holds_most_goes_first_when_there_is_no_room() -> Result<()> {
    let balancer = Balancer::start(&echo("max_buffered_bytes = 1048576", "")).await?;
    let mut hog = session(&balancer, "/").await?;
    hog.send(pieces(900_000)).await?;
    eventually("it is held", PATIENCE, async || {
        held(&balancer).await >= 900_000.0
    })
    .await?;
    // In pieces, so that it is held as well; less than the other, and asked for last.
    let mut modest = session(&balancer, "/").await?;
    modest.send(pieces(300_000)).await?;
    assert_eq!(hog.frame().await?.close_code(), Some(1013));
    modest.send(frame(FIN | CONTINUATION, b"end")).await?;
    let echo = modest.frame().await?;
    assert_eq!(
        (echo.first_byte, echo.payload.len()),
        (FIN | BINARY, 300_003)
    );
    assert_eq!(ended_by(&balancer, "max_buffered_bytes").await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_stuck_makes_room_for_messages_and_not_for_other_relays() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = format!(
        "workers = 1\n[overload]\nmax_buffered_bytes = 1048576\n\
         [[upstream]]\nname = \"app\"\nbackends = [\"{}\"]\n\
         [[route]]\npath = \"/relay\"\nupstream = \"app\"\n\
         [[route]]\npath = \"/echo\"\nhandler = \"echo\"\n",
        backend.address()
    );
    let balancer = Balancer::start(&toml).await?;
    let mut floods = JoinSet::new();
    for _ in 0..20 {
        let mut stuck = session(&balancer, "/relay").await?;
        floods.spawn(async move {
            let piece = frame(FIN | BINARY, &[7; 60_000]);
            while stuck.send(&piece).await.is_ok() {}
        });
    }
    let mut last = 0.0;
    eventually("all are stuck", PATIENCE, async || {
        let now = held(&balancer).await;
        let has_settled = now > 700_000.0 && now == last;
        last = now;
        has_settled
    })
    .await?;
    assert_eq!(ended_by(&balancer, "max_buffered_bytes").await?, 0.0);
    // Less each than the relays that hold most, and more than there is room for.
    let mut messages = Vec::new();
    for _ in 0..4 {
        let mut wire = session(&balancer, "/echo").await?;
        wire.send(pieces(100_000)).await?;
        messages.push(wire);
    }
    for wire in &mut messages {
        wire.send(frame(FIN | CONTINUATION, b"end")).await?;
        assert_eq!(wire.frame().await?.payload.len(), 100_003);
    }
    let n = ended_by(&balancer, "max_buffered_bytes").await?;
    ensure!((1.0..10.0).contains(&n), "{n} sessions were ended");
    floods.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn what_other_workers_leave_is_there_for_a_large_message() -> Result<()> {
    let toml = echo("max_buffered_bytes = 1048576", "").replace_once("workers = 1", "workers = 8");
    let balancer = Balancer::start(&toml).await?;
    // Its worker's share is an eighth of what is allowed.
    let mut wire = session(&balancer, "/").await?;
    wire.send(pieces(900_000)).await?;
    wire.send(frame(FIN | CONTINUATION, b"end")).await?;
    assert_eq!(wire.frame().await?.payload.len(), 900_003);
    Ok(())
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_and_one_that_is_slow_is_not() -> Result<()> {
    let balancer = Balancer::start(&echo("", "send_timeout_ms = 1000")).await?;
    let mut floods = JoinSet::new();
    for reads in [false, true] {
        let mut wire = session(&balancer, "/").await?;
        floods.spawn(async move {
            let message = frame(FIN | BINARY, &[7; 60_000]);
            let (mut n_sent, mut n_read) = (0, 0);
            // More than the sockets on the way hold.
            let flood = async {
                while wire.send(&message).await.is_ok() {
                    n_sent += 1;
                }
            };
            let _ = timeout(Duration::from_secs(1), flood).await;
            while reads && n_read < n_sent {
                wire.frame().await?;
                n_read += 1;
                sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok((wire, n_read == n_sent))
        });
    }
    let mut ends = Vec::new();
    while let Some(done) = floods.join_next().await {
        ends.push(done??);
    }
    eventually("it is cut", PATIENCE, async || {
        ended_by(&balancer, "send_timeout")
            .await
            .is_ok_and(|n| n == 1.0)
    })
    .await?;
    assert_eq!(ends.iter().filter(|(_, has_all)| *has_all).count(), 1);
    // The one that is slow has begun another message.
    ends.retain(|(_, has_all)| !has_all);
    eventually("nothing is held", PATIENCE, async || {
        held(&balancer).await == 0.0
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_flood_of_requests_for_large_replies_waits_for_them_to_be_taken() -> Result<()> {
    let toml = "workers = 1\n[[route]]\npath = \"/*\"\nhandler = \"ample\"\n";
    let guest = guests::handler("handler_replies_amply")?;
    let balancer = Balancer::start_with_plugins(toml, &[("ample", &guest)]).await?;
    let mut flood = session(&balancer, "/").await?;
    balancer.forget_memory_peak()?;
    let before = balancer.memory_peak_bytes()?;
    // 1.4 GB, if it was all answered at once.
    let message = frame(FIN | TEXT, b"please!");
    flood.send(message.repeat(14_000)).await?;
    for _ in 0..20 {
        assert_eq!(flood.frame().await?.payload.len(), 100_000);
    }
    let grown = balancer.memory_peak_bytes()?.saturating_sub(before);
    ensure!(grown < 16 * MIB as u64, "{grown} bytes more");
    Ok(())
}

#[tokio::test]
async fn answers_that_wait_for_the_end_of_a_message_are_bounded() -> Result<()> {
    // The backend begins a message that passes the filter by, and never ends it.
    let backend = ScriptedBackend::start(|head| {
        let mut said = accept_upgrade(head, &[]).into_bytes();
        said.extend([BINARY, 5]);
        said.extend(b"begun");
        Reply::SayBytes(said)
    })
    .await?;
    let toml = format!(
        "workers = 1\n[[upstream]]\nname = \"app\"\nbackends = [\"{}\"]\n\
         [[route]]\npath = \"/*\"\nupstream = \"app\"\nfilters = [\"filter\"]\n",
        backend.address()
    );
    let guest = guests::filter_of_clients("traps")?;
    let balancer = Balancer::start_with_plugins(&toml, &[("filter", &guest)]).await?;
    let mut flood = session(&balancer, "/").await?;
    assert_eq!(flood.frame().await?.payload, b"begun");
    balancer.forget_memory_peak()?;
    let before = balancer.memory_peak_bytes()?;
    let answered = frame(FIN | BINARY, &[b'a'; 60_000]);
    let all = async {
        for _ in 0..2000 {
            flood.send(&answered).await?;
        }
        anyhow::Ok(())
    };
    let taken = timeout(Duration::from_secs(2), all).await;
    let grown = balancer.memory_peak_bytes()?.saturating_sub(before);
    ensure!(grown < 16 * MIB as u64, "{grown} bytes more");
    ensure!(taken.is_err(), "120 MB were taken, and none was answered");
    Ok(())
}
