//! The promise: what happened can be read afterwards, and what happens now can be seen: metrics,
//! access log, status.

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Client, Edit, NOBODY, PATIENCE, Reply, ScriptedBackend, Wire, app,
    eventually, pointsman, upgrade_request,
};
use serde_json::Value;

async fn a_balancer() -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()])
        + r#"
[[route]]
path = "/echo"
handler = "echo"

[[route]]
path = "/hello"
http = "hello"
"#;
    let balancer = Balancer::start(&toml).await?;
    Ok((backend, balancer))
}

/// Waits for the metrics to show `expected` for the sum of some samples.
async fn shows(
    balancer: &Balancer,
    name: &str,
    labels: &[(&str, &str)],
    expected: f64,
) -> Result<()> {
    let mut found = f64::NAN;
    eventually(
        format!("{name}{labels:?} is {expected}"),
        PATIENCE,
        async || {
            found = match balancer.metrics().await {
                Ok(metrics) => metrics.sum(name, labels),
                Err(_) => f64::NAN,
            };
            found == expected
        },
    )
    .await
    .with_context(|| format!("{name}{labels:?} is {found}"))?;
    Ok(())
}

/// Waits for the access log's line with these values.
async fn line(balancer: &Balancer, holds: &[(&str, Value)]) -> Result<Value> {
    let find = || {
        let log = balancer.access_log().ok()?;
        log.into_iter()
            .find(|line| holds.iter().all(|(key, value)| &line[key] == value))
    };
    eventually(format!("a line with {holds:?}"), PATIENCE, async || {
        find().is_some()
    })
    .await
    .with_context(|| format!("in {:#?}", balancer.access_log()))?;
    find().context("it was there")
}

#[tokio::test]
async fn metrics_count_sessions_messages_and_bytes() -> Result<()> {
    let (backend, balancer) = a_balancer().await?;
    let mut clients = Vec::new();
    for path in ["/websocket", "/websocket", "/echo"] {
        let mut client = Client::connect(&balancer.url(path)).await?;
        client.echo_text("twelve bytes").await?;
        client.echo_binary(vec![0; 300]).await?;
        clients.push(client);
    }
    let address = backend.address().to_string();
    let here = [("upstream", "app"), ("backend", address.as_str())];
    shows(&balancer, "pointsman_sessions", &[], 3.0).await?;
    shows(
        &balancer,
        "pointsman_upgrades_total",
        &[("result", "accepted")],
        3.0,
    )
    .await?;
    shows(&balancer, "pointsman_backend_active", &here, 2.0).await?;
    shows(&balancer, "pointsman_backend_up", &here, 1.0).await?;
    shows(&balancer, "pointsman_backend_failures_total", &here, 0.0).await?;
    for client in clients {
        client.close(1000).await?;
    }
    shows(&balancer, "pointsman_sessions", &[], 0.0).await?;
    shows(&balancer, "pointsman_backend_active", &here, 0.0).await?;
    for direction in ["up", "down"] {
        let labels = [("target", "app"), ("direction", direction)];
        shows(&balancer, "pointsman_messages_total", &labels, 4.0).await?;
        let metrics = balancer.metrics().await?;
        let n_bytes = metrics.sum("pointsman_bytes_total", &labels);
        ensure!(
            (624.0..1000.0).contains(&n_bytes),
            "{n_bytes} bytes {direction}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn metrics_tell_of_plugins() -> Result<()> {
    let (_backend, balancer) = a_balancer().await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("placed").await?;
    let metrics = balancer.metrics().await?;
    ensure!(metrics.sum("pointsman_plugin_generation", &[("plugin", "round_robin")]) >= 1.0);
    let choose = [("plugin", "round_robin"), ("call", "choose")];
    ensure!(metrics.sum("pointsman_plugin_call_seconds_count", &choose) >= 1.0);
    ensure!(metrics.sum("pointsman_plugin_call_seconds_sum", &choose) > 0.0);
    let infinite = [choose[0], choose[1], ("le", "+Inf")];
    ensure!(metrics.has("pointsman_plugin_call_seconds_bucket", &infinite));
    assert_eq!(metrics.sum("pointsman_plugin_failures_total", &[]), 0.0);
    Ok(())
}

#[tokio::test]
async fn refused_upgrades_are_counted_by_why() -> Result<()> {
    let dead = NOBODY;
    let balancer = Balancer::start(&app("round_robin", &[dead])).await?;
    ensure!(Client::connect(&balancer.url("/websocket")).await.is_err());
    shows(
        &balancer,
        "pointsman_upgrades_total",
        &[("result", "backend_failed")],
        1.0,
    )
    .await?;
    let labels = [("upstream", "app"), ("backend", &*dead.to_string())];
    let metrics = balancer.metrics().await?;
    ensure!(metrics.sum("pointsman_backend_failures_total", &labels) >= 1.0);
    Ok(())
}

#[tokio::test]
async fn a_session_has_a_line_at_its_open_and_one_at_its_close() -> Result<()> {
    let (backend, balancer) = a_balancer().await?;
    let id = [("X-Request-Id", "abc-123")];
    let mut client = Client::connect_with(&balancer.url("/websocket?secret=1"), &id).await?;
    client.echo_text("hello").await?;
    let open = line(
        &balancer,
        &[("event", "open".into()), ("request_id", "abc-123".into())],
    )
    .await?;
    assert_eq!(client.close(4000).await?, Some(4000));
    let close = line(
        &balancer,
        &[("event", "close".into()), ("request_id", "abc-123".into())],
    )
    .await?;

    for line in [&open, &close] {
        assert_eq!(line["route"], "/*", "{line}");
        assert_eq!(line["upstream"], "app", "{line}");
        assert_eq!(line["backend"], backend.address().to_string(), "{line}");
        assert_eq!(line["policy"], "round_robin", "{line}");
        ensure!(line["policy_generation"].is_u64(), "{line}");
        ensure!(
            line["time"].as_str().is_some_and(|t| t.contains('T')),
            "{line}"
        );
        ensure!(
            line["client"]
                .as_str()
                .is_some_and(|c| c.starts_with("127.0.0.1")),
            "{line}"
        );
    }
    assert_eq!(open["status"], 101, "{open}");
    assert_eq!(close["messages_up"], 1, "{close}");
    assert_eq!(close["messages_down"], 1, "{close}");
    ensure!(close["bytes_up"].as_u64() >= Some(5), "{close}");
    ensure!(close["bytes_down"].as_u64() >= Some(5), "{close}");
    ensure!(close["duration_ms"].is_number(), "{close}");
    assert_eq!(close["closed_by"], "client", "{close}");
    assert_eq!(close["close_code"], 4000, "{close}");

    let log = format!("{:?}", balancer.access_log()?);
    ensure!(!log.contains("secret"), "tokens live in queries: {log}");
    Ok(())
}

#[tokio::test]
async fn a_handlers_session_names_the_handler_and_who_closed_it() -> Result<()> {
    let (_backend, balancer) = a_balancer().await?;
    let mut client = Client::connect(&balancer.url("/echo")).await?;
    client.echo_text("hello").await?;
    client.close(1000).await?;
    let close = line(
        &balancer,
        &[("event", "close".into()), ("handler", "echo".into())],
    )
    .await?;
    assert_eq!(close["route"], "/echo");
    assert_eq!(close["closed_by"], "client");
    assert_eq!(close["close_code"], 1000);
    assert_eq!(close["messages_up"], 1);
    assert_eq!(close["backend"], Value::Null);
    Ok(())
}

#[tokio::test]
async fn a_plain_request_has_one_line() -> Result<()> {
    let (backend, balancer) = a_balancer().await?;
    assert_eq!(balancer.get("/status/204").await?.status, 204);
    let request = line(
        &balancer,
        &[("event", "request".into()), ("status", 204.into())],
    )
    .await?;
    assert_eq!(request["backend"], backend.address().to_string());
    assert_eq!(request["route"], "/*");
    ensure!(request["duration_ms"].is_number());
    assert_eq!(balancer.get("/hello").await?.status, 200);
    line(
        &balancer,
        &[("event", "request".into()), ("route", "/hello".into())],
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn the_status_shows_what_runs() -> Result<()> {
    let (backend, balancer) = a_balancer().await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("hello").await?;
    let status = balancer.status().await?;
    is_the_status(&status, &backend)?;

    let admin = balancer.admin_address().to_string();
    let ended = pointsman(&["status", "--admin", &admin, "--json"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    is_the_status(&serde_json::from_str(&ended.stdout)?, &backend)?;

    let ended = pointsman(&["status", "--admin", &admin]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for word in ["app", "round_robin", &*backend.address().to_string()] {
        ensure!(
            ended.stdout.contains(word),
            "{word} is not in:\n{}",
            ended.stdout
        );
    }
    Ok(())
}

fn is_the_status(status: &Value, backend: &Backend) -> Result<()> {
    ensure!(status["version"].is_string(), "{status:#}");
    ensure!(status["uptime_secs"].is_number(), "{status:#}");
    assert_eq!(status["draining"], false, "{status:#}");
    assert_eq!(status["sessions"], 1, "{status:#}");
    let workers = status["workers"].as_array().context("workers")?;
    let at_workers: Option<u64> = workers.iter().map(|w| w["sessions"].as_u64()).sum();
    assert_eq!((workers.len(), at_workers), (2, Some(1)), "{status:#}");
    assert_eq!(
        status["routes"].as_array().map(Vec::len),
        Some(3),
        "{status:#}"
    );

    let upstream = &status["upstreams"][0];
    assert_eq!(upstream["name"], "app", "{status:#}");
    assert_eq!(upstream["policy"]["name"], "round_robin", "{status:#}");
    ensure!(upstream["policy"]["generation"].is_u64(), "{status:#}");
    let shown = &upstream["backends"][0];
    assert_eq!(
        shown["address"],
        backend.address().to_string(),
        "{status:#}"
    );
    assert_eq!(shown["weight"], 1, "{status:#}");
    assert_eq!(shown["up"], true, "{status:#}");
    assert_eq!(shown["active"], 1, "{status:#}");
    assert_eq!(shown["failures"], 0, "{status:#}");

    let plugins = status["plugins"].as_array().context("plugins")?;
    for (name, kind) in [
        ("round_robin", "policy"),
        ("echo", "handler"),
        ("hello", "http"),
    ] {
        let plugin = plugins.iter().find(|p| p["name"] == name).context(name)?;
        assert_eq!(plugin["source"], "embedded", "{plugin}");
        assert_eq!(plugin["kinds"], serde_json::json!([kind]), "{plugin}");
        ensure!(plugin["generation"].is_u64(), "{plugin}");
        ensure!(plugin["bytes"].as_u64() > Some(0), "{plugin}");
        assert_eq!(plugin["last_error"], Value::Null, "{plugin}");
    }
    Ok(())
}

#[tokio::test]
async fn status_of_nobody_exits_1() -> Result<()> {
    let nobody = NOBODY.to_string();
    let ended = pointsman(&["status", "--admin", &nobody]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ensure!(ended.stderr.contains(&nobody), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn the_admin_page_answers_for_life_and_readiness() -> Result<()> {
    let (_backend, balancer) = a_balancer().await?;
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/no-such-page", 404)] {
        assert_eq!(balancer.admin_get(path).await?.status, status, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_request_is_logged_with_its_reason_and_counted() -> Result<()> {
    let toml = "
[[listener]]
bind = \"127.0.0.1:0\"
handshake_timeout_ms = 500
max_request_header_bytes = 131072

[[route]]
path = \"/echo\"
handler = \"echo\"
";
    let balancer = Balancer::start(toml).await?;
    let head = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{more}\r\n");
    let long = "x".repeat(200_000);
    let good = head("/nothing", "");
    // What is sent, what comes back, and what the log says of the last of it.
    for (sent, answers, (logged, reason)) in [
        (head("/?x=\"", ""), &[400][..], (400, "invalid URI")),
        (
            head("/", "no field\r\n"),
            &[400],
            (400, "invalid HTTP header"),
        ),
        (
            head("/", "Content-Length: 1\r\nContent-Length: 2\r\n"),
            &[400],
            (400, "content-length"),
        ),
        (
            head("/", &format!("Cookie: {long}\r\n")),
            &[431],
            (431, "too large"),
        ),
        (
            head("/", &"A: b\r\n".repeat(101)),
            &[431],
            (431, "too large"),
        ),
        (
            head(&format!("/{}", &long[..70_000]), ""),
            &[414],
            (414, "too long"),
        ),
        (head("/", "")[..20].to_owned(), &[], (408, "timeout")),
        // Behind a request that is one, on the same connection.
        (
            format!("{good}no request\r\n\r\n"),
            &[404, 400],
            (400, "invalid"),
        ),
    ] {
        let before = balancer.access_log()?.len();
        let mut wire = Wire::connect(balancer.address()).await?;
        let client = wire.address()?.to_string();
        wire.send(&sent).await?;
        for status in answers {
            assert_eq!(wire.answer().await?.status, *status, "{sent:.60}");
        }
        assert_eq!(wire.rest().await?, b"", "{sent:.60}");
        let n = answers.len().max(1);
        eventually("all of it is logged", PATIENCE, async || {
            balancer
                .access_log()
                .is_ok_and(|lines| lines.len() == before + n)
        })
        .await?;
        let lines = balancer.access_log()?;
        let line = lines.last().context("a line")?;
        assert_eq!(line["event"], "request", "{line}");
        assert_eq!(
            (&line["client"], &line["status"]),
            (&client.into(), &logged.into())
        );
        let said = line["reason"].as_str().context("a reason")?;
        ensure!(said.contains(reason), "{said}");
        ensure!(
            line.get("path").is_none() && line.get("method").is_none(),
            "{line}"
        );
    }
    let metrics = balancer.metrics().await?;
    for (status, n) in [
        ("400", 4.0),
        ("404", 1.0),
        ("408", 1.0),
        ("414", 1.0),
        ("431", 2.0),
    ] {
        let counted = metrics.sum("pointsman_requests_refused_total", &[("status", status)]);
        assert_eq!(counted, n, "{status}");
    }
    // One that has not begun to ask is nobody's answer.
    let before = balancer.access_log()?.len();
    let mut wire = Wire::connect(balancer.address()).await?;
    assert_eq!(wire.rest().await?, b"");
    assert_eq!(balancer.get("/nothing").await?.status, 404);
    eventually("the next is logged", PATIENCE, async || {
        balancer
            .access_log()
            .is_ok_and(|lines| lines.len() == before + 1)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_counted() -> Result<()> {
    let silent = ScriptedBackend::start(|_| Reply::Nothing).await?;
    let balancer = Balancer::start(&app("round_robin", &[silent.address()])).await?;
    let mut client = Wire::connect(balancer.address()).await?;
    client.send(upgrade_request("/websocket", &[])).await?;
    eventually("the backend is asked", PATIENCE, async || {
        !silent.heads().is_empty()
    })
    .await?;
    drop(client);
    eventually("the client counted as gone", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        let labels = [("result", "client_gone")];
        metrics.is_ok_and(|m| m.sum("pointsman_upgrades_total", &labels) == 1.0)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn nothing_secret_is_logged() -> Result<()> {
    const SECRETS: [&str; 6] = [
        "admin-0123456789abcdef",
        "signed-with-0123456789abcdef0123456789",
        "bearer-0123456789abcdef",
        "cookie-0123456789abcdef",
        "query-0123456789abcdef",
        "short-012345",
    ];
    let [admin, key, bearer, cookie, query, short] = SECRETS;
    let backend = Backend::start().await?;
    let toml = format!(
        r#"{}
[[route]]
path = "/guarded"
upstream = "app"
filters = ["jwt"]

[plugin.jwt.config]
secret = "{key}"
sources = ["header", "cookie", "query"]

[admin]
listen = "127.0.0.1:0"
token = "{admin}"
"#,
        app("round_robin", &[NOBODY, backend.address()])
    );
    let balancer = Balancer::start(&toml).await?;
    let fields = [
        format!("Authorization: Bearer {bearer}"),
        format!("Cookie: access_token={cookie}"),
    ];
    let fields = fields.each_ref().map(String::as_str);
    for path in ["/websocket", "/guarded", "/nowhere/../guarded"] {
        let mut wire = Wire::connect(balancer.address()).await?;
        let path = format!("{path}?access_token={query}");
        wire.send(upgrade_request(&path, &fields)).await?;
        wire.head().await?;
    }
    assert_eq!(balancer.admin_get("/metrics").await?.status, 401);
    balancer.reload(&toml.replace_once(admin, short))?;
    eventually("the reload is refused", PATIENCE, async || {
        let log = balancer.log();
        log.iter()
            .any(|line| line.contains("configuration refused"))
    })
    .await?;
    eventually("all requests are logged", PATIENCE, async || {
        balancer.access_log().is_ok_and(|log| log.len() >= 3)
    })
    .await?;
    let access_log = balancer.access_log()?;
    let lines = balancer.log().into_iter();
    for line in lines.chain(access_log.iter().map(Value::to_string)) {
        let told = SECRETS.iter().find(|secret| line.contains(**secret));
        ensure!(told.is_none(), "{told:?} is in {line}");
    }
    Ok(())
}
