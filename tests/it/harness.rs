//! The harness itself: its guests are what they should be, and its clients and backends understand
//! each other with nothing between them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Chatter, Client, Edit, Metrics, NodeServers, Refused, Reply, ScriptedBackend, Wire,
    accept_upgrade, frame, get, guests, node, payload, repository, skip, upgrade_request,
};
use tokio::process::Command;

/// The first eight bytes of a component, and of a core module (component model, `Binary.md`).
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

#[test]
fn every_guest_is_a_valid_component() -> Result<()> {
    for how in ["loops", "hogs_memory", "traps"] {
        ensure!(
            guests::policy(how)?.starts_with(COMPONENT),
            "policy that {how}"
        );
        ensure!(
            guests::handler(how)?.starts_with(COMPONENT),
            "handler that {how}"
        );
        ensure!(
            guests::core_policy(how)?.starts_with(MODULE),
            "core policy that {how}"
        );
    }
    ensure!(guests::policy("policy_answers_hugely")?.starts_with(COMPONENT));
    ensure!(guests::handler("handler_answers_hugely")?.starts_with(COMPONENT));
    ensure!(guests::policy_that_loops_in_configure()?.starts_with(COMPONENT));
    for name in ["wrong_contract", "wrong_version"] {
        ensure!(guests::stranger(name)?.starts_with(COMPONENT), "{name}");
    }
    Ok(())
}

#[test]
fn metrics_are_read_in_every_form() -> Result<()> {
    let text = "# HELP a_total What a is.\n# TYPE a_total counter\n\
                a_total{x=\"1\",y=\"b\"} 3\na_total{x=\"2\",y=\"b\"} 4 1700000000\n\
                b 0.5\nc_bucket{le=\"+Inf\"} 7\n# EOF\n";
    let metrics = Metrics::parse(text)?;
    assert_eq!(metrics.sum("a_total", &[]), 7.0);
    assert_eq!(metrics.sum("a_total", &[("x", "2")]), 4.0);
    assert_eq!(metrics.sum("a_total", &[("y", "b")]), 7.0);
    assert_eq!(metrics.sum("b", &[]), 0.5);
    assert!(metrics.has("c_bucket", &[("le", "+Inf")]));
    assert!(!metrics.has("a_total", &[("x", "3")]));
    assert!(Metrics::parse("this is no page").is_err());
    Ok(())
}

#[test]
fn what_nobody_has_counted_is_0_and_what_does_not_exist_is_an_error() -> Result<()> {
    let metrics = Metrics::parse("a_total{x=\"1\"} 3\n")?;
    assert_eq!(metrics.sum("a_total", &[("x", "2")]), 0.0);
    // Documented, and not on this page.
    let labels = [("target", "app"), ("direction", "up")];
    assert_eq!(metrics.sum("pointsman_messages_total", &labels), 0.0);
    for (name, label) in [
        ("b_total", "x"),
        ("a_total", "y"),
        ("pointsman_messages_totals", "target"),
        ("pointsman_messages_total", "upstream"),
    ] {
        let sum = || metrics.sum(name, &[(label, "1")]);
        ensure!(catch_unwind(sum).is_err(), "{name}{{{label}}} is 0");
        let has = || metrics.has(name, &[(label, "1")]);
        ensure!(catch_unwind(has).is_err(), "{name}{{{label}}} is not there");
    }
    Ok(())
}

#[test]
fn a_change_that_does_not_fit_fails() {
    assert_eq!("a b".replace_once("b", "c"), "a c");
    assert_eq!("b b".replace_all("b", "c"), "c c");
    for text in ["a", "b b"] {
        assert!(catch_unwind(|| text.replace_once("b", "c")).is_err());
    }
    assert!(catch_unwind(|| "a".replace_all("b", "c")).is_err());
}

#[test]
fn text_is_changed_by_what_fails_where_it_does_not_fit() -> Result<()> {
    // `config.rs` fills in what most tests leave out.
    let exempt = ["harness/edit.rs", "harness/config.rs", "it/harness.rs"];
    let mut folders = vec![repository("tests")];
    let mut n_files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let is_code = path.extension().is_some_and(|extension| extension == "rs");
            if !is_code || exempt.iter().any(|exempt| path.ends_with(exempt)) {
                continue;
            }
            n_files += 1;
            for (i, line) in fs::read_to_string(&path)?.lines().enumerate() {
                // One character in place of another is no change of configuration.
                let is_loose = line.contains(".replacen(")
                    || line.contains(".replace(") && !line.contains(".replace('");
                let at = i + 1;
                ensure!(!is_loose, "{}:{at}: use `Edit`: {line}", path.display());
            }
        }
    }
    ensure!(n_files > 50, "only {n_files} files");
    Ok(())
}

/// This test program with one of its ignored tests, and with this `CI`.
async fn told(test: &str, ci: &str) -> Result<String> {
    let mut inner = Command::new(env::current_exe()?);
    inner.args(["--exact", test, "--ignored", "--nocapture"]);
    let output = inner.env("CI", ci).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("running 1 test"), "{said}");
    assert_eq!(output.status.success(), said.contains("1 passed"), "{said}");
    Ok(said.into_owned())
}

#[tokio::test]
async fn what_is_skipped_fails_under_ci() -> Result<()> {
    let test = "harness::a_test_that_is_skipped";
    let by_hand = told(test, "").await?;
    ensure!(by_hand.contains("skipped: no reason"), "{by_hand}");
    ensure!(by_hand.contains("1 passed"), "{by_hand}");
    let in_ci = told(test, "true").await?;
    ensure!(in_ci.contains("1 failed"), "{in_ci}");
    Ok(())
}

#[test]
#[ignore = "the test above runs it, with and without CI"]
fn a_test_that_is_skipped() {
    skip("no reason");
}

#[tokio::test]
async fn a_backend_whose_script_panics_fails_the_test() -> Result<()> {
    let backend = ScriptedBackend::start(|_| panic!("unforeseen")).await?;
    ensure!(get(backend.address(), "/").await.is_err(), "an answer");
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(backend)));
    let panic = dropped.err().context("nobody hears of it")?;
    let message = panic.downcast_ref::<String>().context("a text")?;
    ensure!(message.ends_with("has panicked: unforeseen"), "{message}");

    // A test that fails already is not aborted by it.
    let backend = ScriptedBackend::start(|_| panic!("unforeseen")).await?;
    ensure!(get(backend.address(), "/").await.is_err(), "an answer");
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let _backend = backend;
        panic!("the test's own");
    }));
    let panic = failed.expect_err("it panics");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the test's own"));
    Ok(())
}

#[test]
fn changed_headers_replace_the_usual_ones() {
    let request = upgrade_request("/x", &["connection: keep-alive", "Host:", "X: y"]);
    assert!(request.starts_with("GET /x HTTP/1.1\r\nUpgrade: websocket\r\n"));
    assert!(request.ends_with("connection: keep-alive\r\nX: y\r\n\r\n"));
    assert!(!request.contains("Host"));
}

#[tokio::test]
async fn client_and_backend_understand_each_other() -> Result<()> {
    let backend = Backend::start().await?;
    let url = format!("ws://{}/websocket", backend.address());
    let mut client = Client::connect_with(&url, &[("Sec-WebSocket-Protocol", "a, b")]).await?;
    assert_eq!(client.backend()?, backend.address());
    assert_eq!(client.header("sec-websocket-protocol"), Some("a"));
    for size in [0, 1, 126, 70_000, 5 * 1024 * 1024] {
        client.echo_text(&payload(size)).await?;
        client.echo_binary(vec![0xff; size]).await?;
    }
    assert_eq!(backend.n_open(), 1);
    assert_eq!(client.close(4001).await?, Some(4001));
    assert_eq!(backend.close_codes(), [4001]);
    assert_eq!((backend.n_connections(), backend.requests().len()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn a_chatter_reports_what_went_round() -> Result<()> {
    let backend = Backend::start().await?;
    let chatter = Chatter::start(5, &format!("ws://{}/", backend.address())).await?;
    assert_eq!(chatter.landed(), [Some(backend.address()); 5]);
    ensure!(chatter.stop().await? >= 5);

    let backend = Backend::start().await?;
    let chatter = Chatter::start(5, &format!("ws://{}/", backend.address())).await?;
    drop(backend);
    ensure!(
        chatter.stop().await.is_err(),
        "a dead backend goes unnoticed"
    );
    Ok(())
}

#[tokio::test]
async fn a_wire_reads_what_a_backend_answers() -> Result<()> {
    let backend = Backend::start().await?;
    let answer = get(backend.address(), "/").await?;
    let name = backend.address().to_string();
    assert_eq!(answer.text(), format!(r#"{{"backend":"{name}"}}"#));
    assert_eq!(answer.header("X-Backend"), Some(&*name));
    assert_eq!(get(backend.address(), "/status/204").await?.status, 204);

    let mut wire = Wire::connect(backend.address()).await?;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    wire.send("5\r\nfirst\r\n").await?;
    assert_eq!(wire.head().await?.status, 200);
    assert_eq!(wire.chunk().await?.as_deref(), Some(&b"first"[..]));
    wire.send("0\r\n\r\n").await?;
    assert_eq!(wire.chunk().await?, None);

    wire.send(upgrade_request("/", &[])).await?;
    let answer = wire.head().await?;
    // RFC 6455 section 1.3.
    let accept = answer.header("sec-websocket-accept");
    assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    for payload in [&b""[..], b"short", &[7; 126], &[7; 65_535]] {
        wire.send(frame(0x82, payload)).await?;
        let echo = wire.frame().await?;
        assert_eq!((echo.first_byte, &echo.payload[..]), (0x82, payload));
    }
    wire.send(frame(0x88, &1000_u16.to_be_bytes())).await?;
    assert_eq!(wire.frame().await?.close_code(), Some(1000));
    assert_eq!(wire.rest().await?, b"");
    Ok(())
}

#[tokio::test]
async fn a_scripted_backend_says_what_it_is_told() -> Result<()> {
    let backend = ScriptedBackend::start(|head| {
        if head.starts_with("GET /no") {
            Reply::Say("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n".into())
        } else {
            Reply::Say(accept_upgrade(head, &[]))
        }
    })
    .await?;
    Client::connect(&format!("ws://{}/yes", backend.address())).await?;
    let refused = Client::connect(&format!("ws://{}/no", backend.address())).await;
    let refused = refused.err().context("accepted")?.downcast::<Refused>()?;
    assert_eq!(refused.status, 403);
    let heads = backend.heads();
    ensure!(
        heads.len() == 2 && heads[0].contains("Sec-WebSocket-Key: "),
        "{heads:?}"
    );
    Ok(())
}

#[tokio::test]
async fn the_tutorials_server_and_client_understand_each_other() -> Result<()> {
    let servers = NodeServers::start("fastify", 1).await?;
    let address = servers.addresses()[0];
    let ended = node(
        "fastify",
        "client.js",
        &[&format!("ws://{address}/websocket"), "2"],
    )
    .await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        ended.stdout,
        format!("1 {address} echo ok\n2 {address} echo ok\n")
    );

    let ended = node(
        "fastify",
        "client.js",
        &[&format!("ws://{address}/elsewhere"), "1"],
    )
    .await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    Ok(())
}
