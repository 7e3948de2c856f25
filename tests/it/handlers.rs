//! The promise: a WebSocket that ends at a plugin is a WebSocket by RFC 6455; and a request that
//! ends at one is answered as any other wasi:http host would have it answered.

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};
use pointsman_tests::{Backend, Balancer, Edit, Wire, app, frame, upgrade_request};

const TOML: &str = r#"
[[route]]
path = "/echo"
handler = "echo"
max_message_bytes = 1024

[[route]]
path = "/"
http = "hello"
"#;

const DEFLATING: &str = r#"
[[route]]
path = "/echo"
handler = "echo"
"#;

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = FIN | 0x8;
const PING: u8 = FIN | 0x9;
const PONG: u8 = FIN | 0xa;

async fn session(balancer: &Balancer) -> Result<Wire> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request("/echo", &[])).await?;
    let answer = wire.head().await?;
    ensure!(answer.status == 101, "answered with {}", answer.status);
    Ok(wire)
}

#[tokio::test]
async fn text_and_binary_come_back_as_what_they_are() -> Result<()> {
    let balancer = Balancer::start(TOML).await?;
    let mut wire = session(&balancer).await?;
    for (opcode, payload) in [
        (TEXT, &b"hello"[..]),
        (TEXT, "grüße, 你好".as_bytes()),
        (TEXT, b""),
        (BINARY, b""),
        (BINARY, &[0xff, 0x00, 0xfe]),
        (BINARY, &[0x42; 125]),
        (BINARY, &[0x42; 126]),
        (BINARY, &[0x42; 1024]),
    ] {
        wire.send(frame(FIN | opcode, payload)).await?;
        let echo = wire.frame().await?;
        assert_eq!(echo.first_byte, FIN | opcode);
        assert_eq!(echo.payload, payload);
    }
    Ok(())
}

#[tokio::test]
async fn a_message_in_pieces_comes_back_whole_and_a_ping_between_is_answered() -> Result<()> {
    let balancer = Balancer::start(TOML).await?;
    let mut wire = session(&balancer).await?;
    // The cut is inside a character: only whole messages must be UTF-8 (RFC 6455 section 5.6).
    let (first, second) = "grüße".as_bytes().split_at(3);
    wire.send(frame(TEXT, first)).await?;
    wire.send(frame(PING, b"are you there")).await?;
    let pong = wire.frame().await?;
    assert_eq!(
        (pong.first_byte, &pong.payload[..]),
        (PONG, &b"are you there"[..])
    );
    wire.send(frame(CONTINUATION, second)).await?;
    wire.send(frame(FIN | CONTINUATION, b"")).await?;
    let echo = wire.frame().await?;
    assert_eq!(
        (echo.first_byte, &echo.payload[..]),
        (FIN | TEXT, "grüße".as_bytes())
    );
    Ok(())
}

#[tokio::test]
async fn an_unasked_pong_is_no_reason_to_do_anything() -> Result<()> {
    let balancer = Balancer::start(TOML).await?;
    let mut wire = session(&balancer).await?;
    wire.send(frame(PONG, b"")).await?;
    wire.send(frame(FIN | TEXT, b"on")).await?;
    assert_eq!(wire.frame().await?.payload, b"on");
    Ok(())
}

#[tokio::test]
async fn a_close_is_answered_with_its_own_code_and_the_connection_ended() -> Result<()> {
    let balancer = Balancer::start(TOML).await?;
    for code in [1000_u16, 1001, 1003, 3000, 4999] {
        let mut wire = session(&balancer).await?;
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend(b"bye");
        wire.send(frame(CLOSE, &payload)).await?;
        assert_eq!(wire.frame().await?.close_code(), Some(code));
        assert_eq!(wire.rest().await?, b"", "after the close of {code}");
    }
    let mut wire = session(&balancer).await?;
    wire.send(frame(CLOSE, b"")).await?;
    assert_eq!(wire.frame().await?.first_byte, CLOSE);
    assert_eq!(wire.rest().await?, b"");
    Ok(())
}

#[tokio::test]
async fn what_breaks_the_protocol_is_closed_with_the_code_that_says_how() -> Result<()> {
    let balancer = Balancer::start(TOML).await?;
    let unmasked = [FIN | TEXT, 5, b'h', b'e', b'l', b'l', b'o'];
    let pieces = [
        frame(TEXT, &[0x42; 600]),
        frame(FIN | CONTINUATION, &[0x42; 600]),
    ]
    .concat();
    let announced = [
        &[FIN | BINARY, 0x80 | 127][..],
        &(1_u64 << 40).to_be_bytes(),
        &[0; 4],
    ];
    for (what, bytes, code) in [
        (
            "a message over the bound",
            frame(FIN | BINARY, &[0x42; 1025]),
            1009,
        ),
        ("pieces over the bound", pieces, 1009),
        (
            "a length over the bound, with nothing behind it",
            announced.concat(),
            1009,
        ),
        (
            "text that is no UTF-8",
            frame(FIN | TEXT, &[0xc3, 0x28]),
            1007,
        ),
        (
            "text that ends inside a character",
            frame(FIN | TEXT, &[0xe4, 0xbd]),
            1007,
        ),
        ("a surrogate", frame(FIN | TEXT, &[0xed, 0xa0, 0x80]), 1007),
        ("an unmasked frame", unmasked.to_vec(), 1002),
        ("a reserved bit", frame(FIN | 0x40 | TEXT, b"x"), 1002),
        ("a reserved opcode", frame(FIN | 0x3, b"x"), 1002),
        ("a reserved control opcode", frame(FIN | 0xb, b"x"), 1002),
        ("a control frame in pieces", frame(0x9, b"x"), 1002),
        ("a long control frame", frame(PING, &[0x42; 126]), 1002),
        (
            "a continuation of nothing",
            frame(FIN | CONTINUATION, b"x"),
            1002,
        ),
        (
            "a message inside another",
            [frame(TEXT, b"x"), frame(FIN | TEXT, b"y")].concat(),
            1002,
        ),
        ("half a close code", frame(CLOSE, &[3]), 1002),
        (
            "a close code that never goes on the wire",
            frame(CLOSE, &1005_u16.to_be_bytes()),
            1002,
        ),
        (
            "a close code of nobody",
            frame(CLOSE, &999_u16.to_be_bytes()),
            1002,
        ),
        (
            "a close reason that is no UTF-8",
            frame(CLOSE, &[0x03, 0xe8, 0xc3, 0x28]),
            1007,
        ),
    ] {
        let mut wire = session(&balancer).await?;
        wire.send(bytes).await?;
        let answer = wire.frame().await.context(what)?;
        assert_eq!(answer.close_code(), Some(code), "{what}");
        wire.rest().await.context(what)?;
    }
    session(&balancer).await?;
    Ok(())
}

#[tokio::test]
async fn an_http_plugin_answers_as_json() -> Result<()> {
    let balancer = Balancer::start(TOML).await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    for _ in 0..3 {
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        let answer = wire.answer().await?;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.text(), r#"{"hello":"world"}"#);
        let kind = answer.header("content-type").context("content-type")?;
        assert!(kind.starts_with("application/json"), "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn a_plain_request_to_a_handler_is_told_to_upgrade() -> Result<()> {
    let balancer = Balancer::start(TOML).await?;
    let answer = balancer.get("/echo").await?;
    assert_eq!(answer.status, 426);
    let upgrade = answer.header("upgrade").context("upgrade")?;
    assert!(upgrade.eq_ignore_ascii_case("websocket"));
    Ok(())
}

/// Sends `offer` and returns what is answered, and the socket behind it.
async fn offer(balancer: &Balancer, path: &str, offer: &str) -> Result<(Option<String>, Wire)> {
    let mut wire = Wire::connect(balancer.address()).await?;
    let line = format!("Sec-WebSocket-Extensions: {offer}");
    wire.send(upgrade_request(path, &[&line])).await?;
    let answer = wire.head().await?;
    assert_eq!(answer.status, 101);
    let chosen = answer.header("sec-websocket-extensions");
    Ok((chosen.map(str::to_owned), wire))
}

#[tokio::test]
async fn compressed_messages_are_understood_and_long_answers_are_compressed() -> Result<()> {
    let balancer = Balancer::start(DEFLATING).await?;
    let (chosen, mut wire) = offer(
        &balancer,
        "/echo",
        "permessage-deflate; client_max_window_bits",
    )
    .await?;
    assert_eq!(chosen.as_deref(), Some("permessage-deflate"));
    // "Hello" as in RFC 7692 section 7.2.3.1.
    wire.send(frame(0xc1, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]))
        .await?;
    let echo = wire.frame().await?;
    assert_eq!(
        (echo.first_byte, &echo.payload[..]),
        (0x81, &b"Hello"[..]),
        "short: as it is"
    );
    wire.send(frame(0x81, &[b'x'; 5000])).await?;
    let echo = wire.frame().await?;
    assert_eq!(echo.first_byte, 0xc1, "long: compressed");
    assert!(echo.payload.len() < 100, "{} bytes", echo.payload.len());
    Ok(())
}

#[tokio::test]
async fn a_bomb_is_too_big_before_it_is_inflated() -> Result<()> {
    let balancer = Balancer::start(DEFLATING).await?;
    let (_, mut wire) = offer(&balancer, "/echo", "permessage-deflate").await?;
    let mut bomb = Vec::with_capacity(20_000);
    let mut zeros = Compress::new(Compression::best(), false);
    zeros.compress_vec(&vec![0; 10 << 20], &mut bomb, FlushCompress::Sync)?;
    assert!((9000..12_000).contains(&bomb.len()), "{} bytes", bomb.len());
    wire.send(frame(0xc2, &bomb)).await?;
    let close = wire.frame().await?;
    assert_eq!(close.close_code(), Some(1009));
    Ok(())
}

#[tokio::test]
async fn compression_is_left_out_where_the_route_says_so() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()])
        .replace_once("[[route]]", "[[route]]\ndeflate = \"strip\"")
        + "[[route]]\npath = \"/echo\"\nhandler = \"echo\"\ndeflate = \"strip\"\n";
    let balancer = Balancer::start(&toml).await?;
    for path in ["/echo", "/websocket"] {
        let (chosen, _) = offer(&balancer, path, "permessage-deflate").await?;
        assert_eq!(chosen, None, "{path}");
    }
    let seen = backend.requests();
    assert!(
        seen.iter()
            .all(|r| !r.headers().contains_key("sec-websocket-extensions"))
    );
    Ok(())
}
