//! The promise: filters see whole messages in order, what they say is done, what they do not want to
//! see passes as it does without them, and one that fails costs its own sessions and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use pointsman_tests::{
    Backend, Balancer, Chatter, Client, PATIENCE, Refused, Reply, ScriptedBackend, Wire,
    accept_upgrade, eventually, frame, guests, payload, upgrade_request,
};
use rustix::process::Signal;
use serde_json::json;
use sha2::Sha256;
use tokio_tungstenite::tungstenite::Message;

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = FIN | 0x8;
const PING: u8 = FIN | 0x9;
const PONG: u8 = FIN | 0xa;

fn site(backend: SocketAddr, route: &str) -> String {
    format!(
        r#"
[[upstream]]
name = "app"
backends = ["{backend}"]

[[route]]
path = "/*"
upstream = "app"
{route}
"#
    )
}

/// A balancer before an echo server, with one filter.
async fn filtered(route: &str, guest: &[u8]) -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let toml = site(
        backend.address(),
        &format!("filters = [\"filter\"]\n{route}"),
    );
    let balancer = Balancer::start_with_plugins(&toml, &[("filter", guest)]).await?;
    Ok((backend, balancer))
}

async fn wire(balancer: &Balancer) -> Result<Wire> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request("/websocket", &[])).await?;
    let answer = wire.head().await?;
    ensure!(answer.status == 101, "answered with {}", answer.status);
    Ok(wire)
}

#[tokio::test]
async fn each_verdict_is_done_in_both_directions() -> Result<()> {
    let (_backend, balancer) = filtered("", &guests::filter("traps")?).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    // What is sent, and what comes of it: the backend echoes what reaches it, and the filter looks at
    // the echo, too.
    let told = [
        ("hello", Some("hello")),
        ("drop this", None),
        ("answered at once", Some("answered at once")),
        ("rhello", Some("hello")),
        ("rdropped on the way back", None),
        ("rreplaced twice", Some("eplaced twice")),
        ("", Some("")),
        ("grüße, 你好", Some("grüße, 你好")),
    ];
    for (sent, _) in told {
        client.send(Message::text(sent)).await?;
    }
    // An answer overtakes what goes the long way.
    let mut came = Vec::new();
    let expected: Vec<&str> = told.iter().filter_map(|(_, expected)| *expected).collect();
    for _ in &expected {
        came.push(client.receive().await?.into_text()?.to_string());
    }
    let answered = |text: &&str| *text == "answered at once";
    assert!(came.iter().any(|text| text == "answered at once"));
    let long_way: Vec<&str> = came
        .iter()
        .map(String::as_str)
        .filter(|t| !answered(t))
        .collect();
    let expected: Vec<&str> = expected.into_iter().filter(|t| !answered(t)).collect();
    assert_eq!(long_way, expected);

    // Binary from the backend is not looked at.
    client.send(Message::binary(&b"rrd"[..])).await?;
    assert_eq!(client.receive().await?, Message::binary(&b"rd"[..]));
    client.send(Message::text("close it")).await?;
    assert_eq!(client.close_code().await?, Some(4000));
    let verdicts = |verdict| [("plugin", "filter"), ("verdict", verdict)];
    let metrics = balancer.metrics().await?;
    let n = |verdict| metrics.sum("pointsman_plugin_verdicts_total", &verdicts(verdict));
    assert_eq!((n("drop"), n("answer"), n("close")), (2.0, 1.0, 1.0));
    assert_eq!(n("replace"), 5.0);
    Ok(())
}

#[tokio::test]
async fn a_close_reaches_both_sides_with_its_code_and_reason() -> Result<()> {
    let (backend, balancer) = filtered("", &guests::filter("traps")?).await?;
    let mut wire = wire(&balancer).await?;
    wire.send(frame(FIN | TEXT, b"close it")).await?;
    let close = wire.frame().await?;
    assert_eq!(
        (close.close_code(), &close.payload[2..]),
        (Some(4000), &b"as asked"[..])
    );
    eventually("the backend hears of it", PATIENCE, async || {
        backend.close_codes() == [4000]
    })
    .await?;

    let client = Client::connect(&balancer.url("/websocket")).await?;
    assert_eq!(client.close(3001).await?, Some(3001));
    assert_eq!(backend.close_codes(), [4000, 3001]);
    Ok(())
}

#[tokio::test]
async fn messages_of_all_sizes_keep_their_order_and_their_kind() -> Result<()> {
    let route = "max_message_bytes = 4194304";
    let (_backend, balancer) = filtered(route, &guests::filter("traps")?).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    for size in [1, 125, 126, 127, 4096, 65_535, 65_536, 300_000, 3_000_000] {
        client.echo_text(&payload(size)).await?;
        client.echo_binary(payload(size)).await?;
    }
    for n in 0..500 {
        let message = match n % 3 {
            0 => Message::binary(n.to_string()),
            _ => Message::text(n.to_string()),
        };
        client.send(message).await?;
    }
    for n in 0..500 {
        let expected = match n % 3 {
            0 => Message::binary(n.to_string()),
            _ => Message::text(n.to_string()),
        };
        assert_eq!(client.receive().await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn pieces_are_shown_as_one_message_and_pings_pass_between_them() -> Result<()> {
    let (_backend, balancer) = filtered("", &guests::filter("traps")?).await?;
    let mut wire = wire(&balancer).await?;
    wire.send(frame(TEXT, b"rhel")).await?;
    wire.send(frame(PING, b"are you there")).await?;
    let pong = wire.frame().await?;
    assert_eq!(
        (pong.first_byte, &pong.payload[..]),
        (PONG, &b"are you there"[..])
    );
    wire.send(frame(CONTINUATION, b"l")).await?;
    wire.send(frame(FIN | CONTINUATION, b"o")).await?;
    let echo = wire.frame().await?;
    assert_eq!(
        (echo.first_byte, &echo.payload[..]),
        (FIN | TEXT, &b"hello"[..])
    );
    Ok(())
}

#[tokio::test]
async fn what_breaks_the_protocol_is_told_so_and_the_backend_let_go() -> Result<()> {
    let route = "max_message_bytes = 1000";
    let (backend, balancer) = filtered(route, &guests::filter("traps")?).await?;
    let cases = [
        ("too long", frame(FIN | BINARY, &[0; 1001]), 1009),
        ("no UTF-8", frame(FIN | TEXT, &[0xc3, 0x28]), 1007),
        ("a reserved bit", frame(FIN | 0x40 | TEXT, b"x"), 1002),
        (
            "a continuation of nothing",
            frame(FIN | CONTINUATION, b"x"),
            1002,
        ),
        (
            "a close code that is none",
            frame(CLOSE, &[0x03, 0xed]),
            1002,
        ),
    ];
    for (what, bytes, code) in &cases {
        let mut wire = wire(&balancer).await?;
        wire.send(bytes).await?;
        assert_eq!(wire.frame().await?.close_code(), Some(*code), "{what}");
        assert_eq!(wire.rest().await?, b"", "{what}");
    }
    eventually("the backend has all closed", PATIENCE, async || {
        backend.close_codes() == [1001; 5]
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_direction_that_nobody_wants_passes_unbounded() -> Result<()> {
    // The backend sends what is longer than the filter could be shown, in two frames, with a ping
    // between, and then speaks on.
    let (backend, balancer) = {
        let backend = ScriptedBackend::start(|head| {
            let mut said = accept_upgrade(head, &[]).into_bytes();
            let half = vec![b'x'; 3 << 20];
            for (first, piece) in [(BINARY, &half[..]), (PING, b"p"), (FIN, &half[..])] {
                said.push(first);
                match piece.len() {
                    short @ ..126 => said.push(short as u8),
                    long => {
                        said.push(127);
                        said.extend((long as u64).to_be_bytes());
                    }
                }
                said.extend_from_slice(piece);
            }
            said.extend([FIN | TEXT, 3]);
            said.extend(b"end");
            Reply::SayBytes(said)
        })
        .await?;
        let toml = site(backend.address(), "filters = [\"filter\"]");
        let guest = guests::filter_of_clients("traps")?;
        let balancer = Balancer::start_with_plugins(&toml, &[("filter", &guest)]).await?;
        (backend, balancer)
    };
    let mut wire = wire(&balancer).await?;
    // Answers of the filter have to wait for the end of the message that passes.
    wire.send(frame(FIN | TEXT, b"answer one")).await?;
    wire.send(frame(FIN | TEXT, b"answer two")).await?;
    let mut frames = Vec::new();
    while frames.len() < 6 {
        let frame = wire.frame().await?;
        frames.push((frame.first_byte, frame.payload.len()));
    }
    let whole = [(BINARY, 3 << 20), (PING, 1), (FIN, 3 << 20)];
    let places: Vec<usize> = whole
        .iter()
        .map(|part| frames.iter().position(|frame| frame == part))
        .collect::<Option<_>>()
        .with_context(|| format!("{frames:?}"))?;
    assert_eq!(
        places,
        [places[0], places[0] + 1, places[0] + 2],
        "{frames:?}"
    );
    let answers = frames.iter().filter(|frame| **frame == (FIN | TEXT, 10));
    assert_eq!(answers.count(), 2, "{frames:?}");
    drop(backend);
    Ok(())
}

#[tokio::test]
async fn the_filters_of_a_chain_stand_one_behind_the_other() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = site(backend.address(), "filters = [\"one\", \"two\"]");
    let (one, two) = (
        guests::filter_of_clients("traps")?,
        guests::filter("traps")?,
    );
    let balancer = Balancer::start_with_plugins(&toml, &[("one", &one), ("two", &two)]).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    for (sent, came) in [
        ("rrhello", "hello"),
        // `one` hands on what `two` answers with, past itself.
        ("ra message", "a message"),
        ("rrrhello", "hello"),
    ] {
        client.send(Message::text(sent)).await?;
        assert_eq!(client.receive().await?, Message::text(came), "{sent}");
    }
    Ok(())
}

#[tokio::test]
async fn the_loss_of_a_side_is_told_to_the_other() -> Result<()> {
    let backend =
        ScriptedBackend::start(|head| Reply::SayAndHangUp(accept_upgrade(head, &[]))).await?;
    let toml = site(backend.address(), "filters = [\"filter\"]");
    let guest = guests::filter("traps")?;
    let balancer = Balancer::start_with_plugins(&toml, &[("filter", &guest)]).await?;
    let mut lost = wire(&balancer).await?;
    assert_eq!(lost.rest().await?, b"");

    let backend = Backend::start().await?;
    balancer.reload(&site(backend.address(), "filters = [\"filter\"]"))?;
    eventually("the new backend serves", PATIENCE, async || {
        let connected = Client::connect(&balancer.url("/websocket")).await;
        match connected {
            Ok(mut client) => client.echo_text("hello").await.is_ok(),
            Err(_) => false,
        }
    })
    .await?;
    let client = wire(&balancer).await?;
    eventually("it is there", PATIENCE, async || backend.n_open() == 1).await?;
    drop(client);
    eventually("the backend is let go", PATIENCE, async || {
        backend.n_open() == 0
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_backend_from_being_read() -> Result<()> {
    let (_backend, balancer) = filtered("", &guests::filter("traps")?).await?;
    let mut wire = wire(&balancer).await?;
    let before = rss(&balancer).await?;
    let message = frame(FIN | BINARY, &[0x42; 60_000]);
    let flood = async {
        // 600 MB, if anybody took them.
        for _ in 0..10_000 {
            wire.send(&message).await?;
        }
        anyhow::Ok(())
    };
    let stuck = tokio::time::timeout(Duration::from_secs(2), flood).await;
    ensure!(stuck.is_err(), "all of it was taken");
    let grown = rss(&balancer).await? - before;
    ensure!(grown < 16e6, "{grown} bytes more");
    let mut other = Client::connect(&balancer.url("/websocket")).await?;
    other.echo_text("hello").await
}

async fn rss(balancer: &Balancer) -> Result<f64> {
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum("process_resident_memory_bytes", &[]))
}

#[tokio::test]
async fn a_drain_says_going_away_to_both() -> Result<()> {
    let (backend, balancer) = filtered("", &guests::filter("traps")?).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("hello").await?;
    balancer.signal(Signal::TERM)?;
    assert_eq!(client.close_code().await?, Some(1001));
    eventually("the backend hears of it", PATIENCE, async || {
        backend.close_codes() == [1001]
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn hostile_filters_cost_their_own_sessions_and_no_others() -> Result<()> {
    for (how, kind) in [
        ("loops", "timeout"),
        ("hogs_memory", "memory"),
        ("traps", "trap"),
        ("filter_answers_hugely", "output"),
    ] {
        let backend = Backend::start().await?;
        let toml = site(backend.address(), "filters = [\"filter\"]")
            + "\n[[route]]\npath = \"/free\"\nupstream = \"app\"\n";
        let guest = guests::filter(how)?;
        let balancer = Balancer::start_with_plugins(&toml, &[("filter", &guest)]).await?;
        let chatter = Chatter::start(10, &balancer.url("/free")).await?;
        for _ in 0..2 {
            let mut client = Client::connect(&balancer.url("/websocket")).await?;
            client.echo_text("hello").await?;
            client.send(Message::text("now!")).await?;
            assert_eq!(client.close_code().await?, Some(1011), "{how}");
        }
        chatter.stop().await.with_context(|| how.to_owned())?;
        let labels = [("plugin", "filter"), ("kind", kind)];
        let failures = balancer
            .metrics()
            .await?
            .sum("pointsman_plugin_failures_total", &labels);
        assert_eq!(failures, 2.0, "{how}");
        let closes = backend.close_codes();
        assert!(
            closes.iter().filter(|code| **code == 1011).count() >= 1,
            "{closes:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_filter_that_fails_may_be_passed_by() -> Result<()> {
    for how in ["loops", "traps"] {
        let route = "on_failure = \"bypass\"";
        let (_backend, balancer) = filtered(route, &guests::filter(how)?).await?;
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        let mut other = Client::connect(&balancer.url("/websocket")).await?;
        client.send(Message::text("drop this")).await?;
        client.echo_text("now!").await?;
        // It is gone for this session.
        client.echo_text("drop this").await?;
        other.echo_text("hello").await?;
        let mut third = Client::connect(&balancer.url("/websocket")).await?;
        third.send(Message::text("drop this")).await?;
        third.echo_text("it looks at new sessions again").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_filter_that_fails_about_a_plain_request_refuses_it_or_is_passed_by() -> Result<()> {
    for how in ["loops", "traps"] {
        let guest = guests::filter_that_is_asked(how)?;
        for (on_failure, status) in [("close", 500), ("bypass", 200)] {
            let route = format!("on_failure = \"{on_failure}\"");
            let (backend, balancer) = filtered(&route, &guest).await?;
            for (path, status) in [("/x", 200), ("/x!", status), ("/x", 200)] {
                assert_eq!(balancer.get(path).await?.status, status, "{how} {path}");
            }
            let n_heard = if status == 200 { 3 } else { 2 };
            assert_eq!(backend.requests().len(), n_heard, "{how}");
        }
        // One that does not want to be asked is not.
        let (_backend, balancer) = filtered("", &guests::filter(how)?).await?;
        assert_eq!(balancer.get("/x!").await?.status, 200, "{how}");
    }
    Ok(())
}

#[tokio::test]
async fn open_sessions_keep_the_filter_they_began_with() -> Result<()> {
    let (_backend, balancer) = filtered("", &guests::filter("traps")?).await?;
    let mut old = Client::connect(&balancer.url("/websocket")).await?;
    old.echo_text("hello").await?;
    balancer.drop_plugin("filter", &guests::filter_of_clients("loops")?)?;
    eventually("the second generation is in force", PATIENCE, async || {
        matches!(balancer.generation("filter").await, Ok(2))
    })
    .await?;
    let mut new = Client::connect(&balancer.url("/websocket")).await?;
    // The old one looks at what the backend says, the new one does not.
    old.send(Message::text("rrhello")).await?;
    assert_eq!(old.receive().await?, Message::text("hello"));
    new.send(Message::text("rrhello")).await?;
    assert_eq!(new.receive().await?, Message::text("rhello"));
    // A route that has the filter no longer.
    balancer.reload(&site(_backend.address(), ""))?;
    {
        eventually("new sessions have no filter", PATIENCE, async || {
            passes_unchanged(&balancer, "rx").await.unwrap_or(false)
        })
        .await?;
    }
    old.send(Message::text("rrhello")).await?;
    assert_eq!(old.receive().await?, Message::text("hello"));
    Ok(())
}

async fn passes_unchanged(balancer: &Balancer, text: &'static str) -> Result<bool> {
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.send(Message::text(text)).await?;
    Ok(client.receive().await? == Message::text(text))
}

#[tokio::test]
async fn a_filter_that_is_none_is_named_with_its_key() -> Result<()> {
    let toml = site(pointsman_tests::NOBODY, "filters = [\"echo\"]");
    let refused = Balancer::start(&toml).await.err().context("it started")?;
    let said = format!("{refused:?}");
    ensure!(said.contains("route[0].filters[0]"), "{said}");
    ensure!(said.contains("handler"), "{said}");
    Ok(())
}

/// A balancer before an echo server, with a shipped filter that is configured so.
async fn shipped(filter: &str, config: &str) -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let toml = site(backend.address(), &format!("filters = [\"{filter}\"]"))
        + &format!("\n[plugin.{filter}]\nconfig = {{ {config} }}\n");
    let balancer = Balancer::start(&toml).await?;
    Ok((backend, balancer))
}

#[tokio::test]
async fn rate_limit_holds_a_session_and_a_client_to_its_allowance() -> Result<()> {
    let config = "messages_per_sec = 0.01, burst_messages = 3";
    let (_backend, balancer) = shipped("rate_limit", config).await?;
    for _ in 0..2 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        for _ in 0..3 {
            client.echo_text("hello").await?;
        }
        client.send(Message::text("once too often")).await?;
        assert_eq!(client.close_code().await?, Some(1008));
    }

    // All sessions of this machine together, whichever worker they are on.
    let config =
        "messages_per_sec = 0.01, burst_messages = 20, per = \"client_ip\", action = \"drop\"";
    let (_backend, balancer) = shipped("rate_limit", config).await?;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::connect(&balancer.url("/websocket")).await?);
    }
    for client in &mut clients {
        client.echo_text("one").await?;
        client.echo_text("two").await?;
    }
    for client in &mut clients {
        client.send(Message::text("dropped")).await?;
    }
    let dropped = [("plugin", "rate_limit"), ("name", "messages_dropped")];
    eventually("all are dropped", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        metrics.is_ok_and(|metrics| metrics.sum("pointsman_plugin_count_total", &dropped) == 10.0)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn redact_takes_values_out_and_leaves_every_other_byte() -> Result<()> {
    let config = "pointers = [\"/user/email\", \"/cards/*\"]";
    let (_backend, balancer) = shipped("redact", config).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    for (sent, came) in [
        (
            r#"{ "user": {"email":"a@example.org", "id": 1.0e3}, "cards":[1, "2"]}"#,
            r#"{ "user": {"email":"[redacted]", "id": 1.0e3}, "cards":["[redacted]", "[redacted]"]}"#,
        ),
        (r#"{"user": {}}"#, r#"{"user": {}}"#),
        ("no JSON", "no JSON"),
    ] {
        client.send(Message::text(sent)).await?;
        assert_eq!(client.receive().await?, Message::text(came));
    }
    client.echo_binary(&br#"{"user":{"email":1}}"#[..]).await?;
    Ok(())
}

#[tokio::test]
async fn json_schema_lets_only_valid_messages_pass() -> Result<()> {
    let schema = "schema = { required = [\"id\"], properties = { id = { type = \"integer\" } } }";
    let (_backend, balancer) = shipped("json_schema", schema).await?;
    for (sent, code) in [(r#"{"id":"7"}"#, 1008), ("{}", 1008), ("no JSON", 1007)] {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text(r#"{ "id": 7.0 }"#).await?;
        client.echo_binary(&b"no JSON"[..]).await?;
        client.send(Message::text(sent)).await?;
        assert_eq!(client.close_code().await?, Some(code), "{sent}");
    }

    let config = format!("{schema}, on_invalid = \"answer\", binary = \"close\"");
    let (_backend, balancer) = shipped("json_schema", &config).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.send(Message::text(r#"{"id":[]}"#)).await?;
    let answer = r#"{"error":"type","path":"/id","type":"error"}"#;
    assert_eq!(client.receive().await?, Message::text(answer));
    client.echo_text(r#"{"id":7}"#).await?;
    client.send(Message::binary(&b"{}"[..])).await?;
    assert_eq!(client.close_code().await?, Some(1003));
    Ok(())
}

#[tokio::test]
async fn tap_counts_what_passes() -> Result<()> {
    let (_backend, balancer) = shipped("tap", "directions = \"from_client\"").await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("hello").await?;
    client.echo_binary(&[0; 10][..]).await?;
    client.close(1000).await?;
    let metrics = balancer.metrics().await?;
    let count = |name| {
        let labels = [("plugin", "tap"), ("name", name)];
        metrics.sum("pointsman_plugin_count_total", &labels)
    };
    assert_eq!(count("client_text_bytes"), 5.0);
    assert_eq!(count("client_binary_messages"), 1.0);
    assert_eq!(count("backend_text_messages"), 0.0);
    Ok(())
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A token of RFC 7519 by HS256, which ends so many seconds from now.
fn token(subject: &str, secret: &str, lives_secs: u64) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = json!({ "sub": subject, "exp": now + lives_secs }).to_string();
    let header = json!({ "alg": "HS256", "typ": "JWT" }).to_string();
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?;
    mac.update(format!("{header}.{claims}").as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    Ok(format!("{header}.{claims}.{signature}"))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn jwt_lets_in_who_has_a_token_and_tells_the_backend_who_it_is() -> Result<()> {
    let config = format!(
        "secret = \"{SECRET}\", sources = [\"header\", \"subprotocol\"], claims_to_headers = {{ sub = \"X-User\" }}"
    );
    let (backend, balancer) = shipped("jwt", &config).await?;
    let url = balancer.url("/websocket");
    for wrong in [
        None,
        Some("nonsense".to_owned()),
        Some(token("ada", "another secret of 32 characters!", 60)?),
        Some(token("ada", SECRET, 0)?),
    ] {
        let field = wrong.as_deref().map(bearer);
        let fields: Vec<_> = field
            .iter()
            .map(|f| ("authorization", f.as_str()))
            .collect();
        let refused = Client::connect_with(&url, &fields).await.err();
        let refused = refused.and_then(|error| error.downcast::<Refused>().ok());
        assert_eq!(
            refused.map(|refused| refused.status),
            Some(401),
            "{wrong:?}"
        );
    }
    assert_eq!(backend.n_connections(), 0, "no backend hears of them");

    let good = token("ada", SECRET, 60)?;
    let field = bearer(&good);
    let fields = [("authorization", field.as_str()), ("x-user", "root")];
    let mut client = Client::connect_with(&url, &fields).await?;
    client.echo_text("hello").await?;
    let mut wire = Wire::connect(balancer.address()).await?;
    let offered = format!("Sec-WebSocket-Protocol: chat, bearer.{good}");
    wire.send(upgrade_request("/websocket", &[&offered]))
        .await?;
    assert_eq!(wire.head().await?.status, 101);
    let requests = backend.requests();
    let values = |name: &str| -> Vec<Vec<String>> {
        let all = |request: &http::Request<()>| {
            let fields = request.headers().get_all(name).into_iter();
            fields
                .map(|v| v.to_str().unwrap_or_default().to_owned())
                .collect()
        };
        requests.iter().map(all).collect()
    };
    assert_eq!(values("x-user"), [["ada"], ["ada"]]);
    assert_eq!(
        values("sec-websocket-protocol"),
        [vec![], vec!["chat".to_owned()]]
    );
    Ok(())
}

/// A plain request, in which the client says what only the filter may say.
fn plain(method: &str, token: Option<&str>) -> String {
    let field = token.map(|token| format!("Authorization: {}\r\n", bearer(token)));
    format!(
        "{method} /x HTTP/1.1\r\nHost: a\r\nX-User: root\r\nX_User: root\r\nX.User: root\r\n{}\r\n",
        field.unwrap_or_default()
    )
}

#[tokio::test]
async fn jwt_guards_the_plain_requests_of_its_route_too() -> Result<()> {
    let config = format!("secret = \"{SECRET}\", claims_to_headers = {{ sub = \"X-User\" }}");
    let (backend, balancer) = shipped("jwt", &config).await?;
    let (good, expired) = (token("ada", SECRET, 60)?, token("ada", SECRET, 0)?);
    let mut wire = Wire::connect(balancer.address()).await?;
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "POST"] {
        for (token, challenge) in [(None, "Bearer"), (Some(&expired), "Bearer error=")] {
            wire.send(plain(method, token.map(String::as_str))).await?;
            let answer = match method {
                "HEAD" => wire.head().await?,
                _ => wire.answer().await?,
            };
            assert_eq!(answer.status, 401, "{method}");
            let said = answer.header("www-authenticate").unwrap_or_default();
            ensure!(said.starts_with(challenge), "{method}: {said}");
        }
    }
    assert_eq!(backend.n_connections(), 0, "no backend hears of them");

    // Each request of a connection is asked about.
    for (token, status) in [(Some(&good), 200), (None, 401), (Some(&good), 200)] {
        wire.send(plain("GET", token.map(String::as_str))).await?;
        assert_eq!(wire.answer().await?.status, status);
    }
    let requests = backend.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        let said: Vec<_> = request
            .headers()
            .iter()
            .filter(|(_, value)| *value == "root" || *value == "ada")
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
            .collect();
        assert_eq!(said, [("x-user", "ada")]);
    }
    Ok(())
}

#[tokio::test]
async fn what_can_be_read_as_a_field_of_a_filter_reaches_no_backend() -> Result<()> {
    let config = format!(
        "secret = \"{SECRET}\", sources = [\"header\", \"cookie\"], header = \"X-Token\", claims_to_headers = {{ sub = \"X-User\" }}"
    );
    let (backend, balancer) = shipped("jwt", &config).await?;
    let cookie = format!("Cookie: access_token={}", token("ada", SECRET, 60)?);
    let mut wire = Wire::connect(balancer.address()).await?;
    // A backend could take the second for the token that was looked at.
    let lines = [
        "X_User: root",
        "X_Token: another",
        "My_Field: passes",
        &cookie,
    ];
    wire.send(upgrade_request("/websocket", &lines)).await?;
    assert_eq!(wire.head().await?.status, 101);
    let requests = backend.requests();
    let fields = requests[0].headers();
    assert_eq!(
        fields.get("x-user").map(|user| user.as_bytes()),
        Some(&b"ada"[..])
    );
    assert!(!fields.contains_key("x_user") && !fields.contains_key("x_token"));
    assert!(fields.contains_key("my_field"));
    Ok(())
}

#[tokio::test]
async fn jwt_ends_a_session_with_its_token_unless_a_new_one_comes() -> Result<()> {
    let config = format!("secret = \"{SECRET}\", refresh = {{}}");
    let (_backend, balancer) = shipped("jwt", &config).await?;
    let field = bearer(&token("ada", SECRET, 2)?);
    let fields = [("authorization", field.as_str())];
    let mut ends = Client::connect_with(&balancer.url("/websocket"), &fields).await?;
    let mut goes_on = Client::connect_with(&balancer.url("/websocket"), &fields).await?;
    let refresh = json!({ "type": "auth.refresh", "token": token("ada", SECRET, 60)? });
    goes_on.send(Message::text(refresh.to_string())).await?;
    let answer: serde_json::Value = serde_json::from_str(goes_on.receive().await?.to_text()?)?;
    assert_eq!(answer["type"], "auth.refreshed");
    assert_eq!(ends.close_code().await?, Some(1008));
    goes_on.echo_text("still here").await
}
