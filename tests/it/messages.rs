//! The promise: what `ws` and Chromium send arrives as it does without a balancer, over a relay, past a
//! filter, and at a handler; and what is too long costs its own session and little memory.

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use pointsman_tests::{
    Backend, Balancer, NodeStory, Reply, ScriptedBackend, Wire, accept_upgrade, frame, payload,
    three_ways, upgrade_request,
};
use serde_json::json;

const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate";
const MIB: usize = 1 << 20;

/// Lives a story of `tests/node/messages.mjs` over each of the three ways.
async fn story(name: &str) -> Result<()> {
    let mut ends = NodeStory::start("messages.mjs", &[name]).await?;
    let balancer = three_ways(ends.address(), 16 * MIB).await?;
    ends.tell(&json!({
        "balancer": format!("ws://{}", balancer.address()),
        "admin": format!("http://{}", balancer.admin_address()),
    }))
    .await?;
    let said = ends.finished().await?;
    for (way, line) in ["relay: ", "filtered: ", "echo: "].iter().zip(&said) {
        ensure!(line.starts_with(way), "{said:?}");
    }
    ensure!(said.len() == 3, "{said:?}");
    let metrics = balancer.metrics().await?;
    let failures = metrics.sum("pointsman_plugin_failures_total", &[]);
    assert_eq!(failures, 0.0);
    // Each message that passed the filter was shown to it.
    let [sent, passed] = ["up", "down"].map(|direction| {
        let labels = [("target", "filtered"), ("direction", direction)];
        metrics.sum("pointsman_messages_total", &labels)
    });
    let shown = metrics.sum("pointsman_plugin_verdicts_total", &[("plugin", "all")]);
    assert_eq!(shown, sent + passed);
    Ok(())
}

#[tokio::test]
async fn compression_is_agreed_on_as_without_a_balancer_and_spares_bytes() -> Result<()> {
    story("compression").await
}

#[tokio::test]
async fn compression_is_agreed_on_by_nobody_where_the_route_strips_it() -> Result<()> {
    story("strip").await
}

#[tokio::test]
async fn the_backends_subprotocol_is_the_clients() -> Result<()> {
    story("subprotocols").await
}

#[tokio::test]
async fn messages_that_ws_sends_in_fragments_arrive_whole() -> Result<()> {
    story("fragments").await
}

#[tokio::test]
async fn pings_and_pongs_of_both_ends_arrive_with_their_payload() -> Result<()> {
    story("pings").await
}

#[tokio::test]
async fn close_codes_and_reasons_of_both_ends_arrive() -> Result<()> {
    story("closes").await
}

#[tokio::test]
async fn an_end_that_is_lost_without_a_close_is_missed_by_the_other() -> Result<()> {
    story("ends").await
}

#[tokio::test]
async fn messages_up_to_16_mib_arrive_byte_for_byte() -> Result<()> {
    story("sizes").await
}

#[tokio::test]
async fn interleaved_messages_of_both_ends_arrive_in_order() -> Result<()> {
    story("order").await
}

/// A session on a raw connection.
async fn session(balancer: &Balancer, way: &str, headers: &[&str]) -> Result<Wire> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request(way, headers)).await?;
    let answer = wire.head().await?;
    ensure!(answer.status == 101, "{way}: {}", answer.status);
    let agreed = answer.header("sec-websocket-extensions");
    ensure!(agreed.is_some() != headers.is_empty(), "{way}: {agreed:?}");
    Ok(wire)
}

fn deflated(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut small = Vec::with_capacity(bytes.len() / 2 + 100);
    Compress::new(Compression::best(), false).compress_vec(
        bytes,
        &mut small,
        FlushCompress::Sync,
    )?;
    // RFC 7692 section 7.2.1.
    small.truncate(small.len() - 4);
    Ok(small)
}

/// How much more memory the process has had at any time during `work`.
async fn grown(balancer: &Balancer, work: impl Future<Output = Result<()>>) -> Result<u64> {
    balancer.forget_memory_peak()?;
    let before = balancer.memory_peak_bytes()?;
    work.await?;
    Ok(balancer.memory_peak_bytes()?.saturating_sub(before))
}

/// Ten sessions are each told that `bytes` are too much, and stay connected.
async fn too_big(balancer: &Balancer, way: &str, headers: &[&str], bytes: &[u8]) -> Result<()> {
    let mut wires = Vec::new();
    for _ in 0..10 {
        let mut wire = session(balancer, way, headers).await?;
        wire.send(bytes).await?;
        let close = wire.frame().await?;
        ensure!(close.close_code() == Some(1009), "{way}: {close:?}");
        wires.push(wire);
    }
    Ok(())
}

#[tokio::test]
async fn a_bomb_of_a_client_is_refused_before_it_is_whole_or_takes_memory() -> Result<()> {
    let backend =
        ScriptedBackend::start(|head| Reply::Say(accept_upgrade(head, &[DEFLATE]))).await?;
    let balancer = three_ways(backend.address(), MIB).await?;
    let bomb = deflated(&[0; 10_000_000])?;
    ensure!((9000..12_000).contains(&bomb.len()), "{}", bomb.len());
    let bomb = frame(FIN | COMPRESSED | BINARY, &bomb);
    for way in ["/filtered", "/echo"] {
        // Nothing that grows from now on is the plugin's beginning.
        drop(session(&balancer, way, &[DEFLATE]).await?);
        // All but the end.
        let bombs = too_big(&balancer, way, &[DEFLATE], &bomb[..bomb.len() - 500]);
        let grown = grown(&balancer, bombs).await?;
        ensure!(grown < 8 * MIB as u64, "{way}: {grown} bytes more");
    }
    Ok(())
}

#[tokio::test]
async fn a_bomb_of_a_backend_is_refused_before_a_filter_sees_it() -> Result<()> {
    let bomb = deflated(&[0; 10_000_000])?;
    let backend = ScriptedBackend::start(move |head| {
        let mut said = accept_upgrade(head, &[DEFLATE]).into_bytes();
        said.extend([FIN | COMPRESSED | BINARY, 126]);
        said.extend(u16::try_from(bomb.len()).unwrap_or(0).to_be_bytes());
        said.extend_from_slice(&bomb);
        Reply::SayBytes(said)
    })
    .await?;
    let balancer = three_ways(backend.address(), MIB).await?;
    let bombs = async {
        for _ in 0..10 {
            let mut wire = session(&balancer, "/filtered", &[DEFLATE]).await?;
            // The client has done nothing wrong.
            assert_eq!(wire.frame().await?.close_code(), Some(1001));
        }
        Ok(())
    };
    let grown = grown(&balancer, bombs).await?;
    ensure!(grown < 8 * MIB as u64, "{grown} bytes more");
    let metrics = balancer.metrics().await?;
    let shown = metrics.sum("pointsman_plugin_verdicts_total", &[("plugin", "all")]);
    assert_eq!(shown, 0.0);
    Ok(())
}

/// A message in a thousand fragments.
fn in_fragments(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut pieces = payload.chunks(payload.len().div_ceil(1000)).peekable();
    let mut bytes = Vec::new();
    let mut opcode = first;
    while let Some(piece) = pieces.next() {
        let fin = if pieces.peek().is_none() { FIN } else { 0 };
        bytes.extend(frame(fin | opcode, piece));
        opcode = CONTINUATION;
    }
    bytes
}

#[tokio::test]
async fn a_thousand_fragments_are_held_to_the_bound_of_their_message() -> Result<()> {
    let backend = Backend::start().await?;
    let balancer = three_ways(backend.address(), MIB).await?;
    let fits = payload(1_000_000);
    let too_long = in_fragments(BINARY, payload(1_100_000).as_bytes());
    for way in ["/relay", "/filtered", "/echo"] {
        let mut wire = session(&balancer, way, &[]).await?;
        wire.send(in_fragments(TEXT, fits.as_bytes())).await?;
        let echo = wire.frame().await.context(way)?;
        assert_eq!(echo.first_byte, FIN | TEXT, "{way}");
        assert!(echo.payload == fits.as_bytes(), "{way}");

        let many = too_big(&balancer, way, &[], &too_long);
        let grown = grown(&balancer, many).await.context(way)?;
        ensure!(grown < 8 * MIB as u64, "{way}: {grown} bytes more");
    }
    Ok(())
}

#[tokio::test]
async fn a_compressed_message_in_a_thousand_fragments_comes_back_whole() -> Result<()> {
    let balancer = three_ways(pointsman_tests::NOBODY, MIB).await?;
    let mut wire = session(&balancer, "/echo", &[DEFLATE]).await?;
    let text: String = (0..100_000_u64)
        .map(|n| (n * n % 8191).to_string() + " ")
        .collect();
    let small = deflated(text.as_bytes())?;
    ensure!(small.len() > 100_000 && text.len() < MIB);
    wire.send(in_fragments(COMPRESSED | TEXT, &small)).await?;
    let echo = wire.frame().await?;
    assert_eq!(echo.first_byte, FIN | COMPRESSED | TEXT);
    let mut whole = Vec::with_capacity(MIB);
    let end = [&echo.payload[..], &[0, 0, 0xff, 0xff]].concat();
    Decompress::new(false).decompress_vec(&end, &mut whole, FlushDecompress::Sync)?;
    assert!(whole == text.as_bytes(), "{} bytes", whole.len());
    Ok(())
}
