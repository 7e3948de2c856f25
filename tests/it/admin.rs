//! The promise: the admin address answers probes whatever else is open, speaks every scraper's format,
//! and obeys no page in a browser.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use pointsman_tests::{
    Answer, Backend, Balancer, Client, Edit, Metrics, NOBODY, PATIENCE, Promtool, Wire, app,
    documented_metrics, eventually, repository, skip,
};
use tokio::time::timeout;

/// One request with these lines in its head, and no `Host` but what they say.
async fn ask(address: SocketAddr, request: &str, lines: &[&str]) -> Result<Answer> {
    let mut wire = Wire::connect(address).await?;
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    wire.send(format!("{request} HTTP/1.1\r\n{lines}\r\n"))
        .await?;
    wire.answer().await
}

#[tokio::test]
async fn who_ends_one_half_behind_an_order_hears_what_came_of_it() -> Result<()> {
    let balancer = Balancer::start(&app("round_robin", &[NOBODY])).await?;
    let mut wire = Wire::connect(balancer.admin_address()).await?;
    wire.send("POST /api/reload HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    wire.end_half().await?;
    assert_eq!(wire.answer().await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn probes_and_scrapes_pass_through_a_flood_of_heads_that_never_end() -> Result<()> {
    let backend = Backend::start().await?;
    let token = "0123456789abcdef";
    let toml = format!(
        "{}\n[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{token}\"\n",
        app("round_robin", &[backend.address()])
    );
    let balancer = Balancer::start(&toml).await?;
    let admin = balancer.admin_address();
    let mut flood = Vec::new();
    let flooding = async {
        for _ in 0..100 {
            for _ in 0..5 {
                let mut wire = Wire::connect(admin).await?;
                wire.send("GET /readyz HTTP/1.1\r\nHost: x\r\nX-").await?;
                flood.push(wire);
            }
            assert_eq!(balancer.admin_get("/readyz").await?.status, 200);
            assert_eq!(balancer.admin_get("/healthz").await?.status, 200);
        }
        Ok::<_, Error>(())
    };
    // All 200 probes take less than a second; if one had to wait for a head to time out, they took
    // a minute.
    timeout(Duration::from_secs(20), flooding).await??;
    let bearer = format!("Authorization: Bearer {token}");
    let page = ask(admin, "GET /metrics", &["Host: any.example", &bearer]).await?;
    assert_eq!(page.status, 200);
    // Nobody holds a place for ever.
    for mut wire in flood {
        wire.rest().await?;
    }
    Ok(())
}

#[tokio::test]
async fn only_addresses_and_known_names_are_answered_and_probes_by_any() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let named = format!("{toml}\n[admin]\nlisten = \"127.0.0.1:0\"\nhosts = [\"*.ops.example\"]\n");
    let (plain, named) = (
        Balancer::start(&toml).await?,
        Balancer::start(&named).await?,
    );
    for (host, of_plain, of_named) in [
        ("Host: 127.0.0.1", 200, 200),
        ("Host: localhost:9900", 200, 200),
        ("Host: [::1]:9900", 200, 200),
        ("Host: rebound.example:9900", 403, 403),
        ("Host: lb1.ops.example:9900", 403, 200),
        ("X: y", 400, 400),
    ] {
        for (balancer, expected) in [(&plain, of_plain), (&named, of_named)] {
            let admin = balancer.admin_address();
            for page in ["GET /api/status", "GET /metrics"] {
                let answer = ask(admin, page, &[host]).await?;
                assert_eq!(answer.status, expected, "{page} {host}");
            }
            let reload = ask(admin, "POST /api/reload", &[host]).await?;
            assert_eq!(reload.status, expected, "{host}");
            for probe in ["GET /healthz", "GET /readyz"] {
                assert_eq!(ask(admin, probe, &[host]).await?.status, 200, "{host}");
            }
        }
    }
    let mut old = Wire::connect(plain.admin_address()).await?;
    old.send("GET /metrics HTTP/1.0\r\n\r\n").await?;
    assert_eq!(old.answer().await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn no_page_in_a_browser_gives_orders() -> Result<()> {
    let backend = Backend::start().await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    let order = format!("POST /api/drain?upstream=app&backend={}", backend.address());
    for (line, status) in [
        ("Sec-Fetch-Site: cross-site", 403),
        ("Sec-Fetch-Site: same-site", 403),
        ("Origin: null", 403),
        ("Sec-Fetch-Site: none", 200),
    ] {
        let lines = ["Host: localhost", line];
        let answer = ask(balancer.admin_address(), &order, &lines).await?;
        assert_eq!(answer.status, status, "{line}");
        let state = if status == 200 { "draining" } else { "up" };
        balancer.backend_state(backend.address(), state).await?;
    }
    Ok(())
}

/// A balancer that has done a bit of everything.
async fn a_busy_balancer() -> Result<(Backend, Balancer)> {
    let backend = Backend::start().await?;
    let toml = format!(
        r#"
[[upstream]]
name = "app"
backends = ["{NOBODY}", "{}"]

[upstream.ejection]

[[route]]
path = "/*"
upstream = "app"

[[route]]
path = "/tapped"
upstream = "app"
filters = ["tap"]

[[route]]
path = "/chat"
handler = "chat"

[[route]]
path = "/hello"
http = "hello"
"#,
        backend.address()
    );
    let balancer = Balancer::start(&toml).await?;
    for path in ["/websocket", "/tapped"] {
        let mut client = Client::connect(&balancer.url(path)).await?;
        client.echo_text("a message").await?;
        client.close(1000).await?;
    }
    let chat = Client::connect(&balancer.url("/chat")).await?;
    chat.close(1000).await?;
    for path in ["/hello", "/status/204"] {
        balancer.get(path).await?;
    }
    balancer.drop_plugin("broken", b"no plugin")?;
    balancer.reload("no toml")?;
    eventually("the configuration is refused", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        let failed = [("kind", "config"), ("result", "failed")];
        metrics.is_ok_and(|m| m.sum("pointsman_reloads_total", &failed) == 1.0)
    })
    .await?;
    Ok((backend, balancer))
}

#[tokio::test]
async fn promtool_reads_the_page_and_finds_nothing_to_say() -> Result<()> {
    let (_backend, balancer) = a_busy_balancer().await?;
    let admin = balancer.admin_address();
    let classic = ask(admin, "GET /metrics", &["Host: localhost"]).await?;
    let classic_type = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(classic.header("content-type"), Some(classic_type));
    // As Prometheus 2 and 3 ask.
    let mut open_metrics = Vec::new();
    for accept in [
        "Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    ] {
        let page = ask(admin, "GET /metrics", &["Host: localhost", accept]).await?;
        let expected = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(page.header("content-type"), Some(expected));
        ensure!(page.text().ends_with("\n# EOF\n"), "{}", page.text());
        open_metrics.push(page.text());
    }
    // Nothing is missing that could be wrong: all that is documented is there, with its labels.
    let found = Metrics::parse(&classic.text())?.families();
    let mut documented = documented_metrics().clone();
    let unmeasured = documented.remove("pointsman_plugin_value");
    ensure!(unmeasured.is_some(), "no plugin that ships measures");
    assert_eq!(found, documented);

    let Some(promtool) = Promtool::find()? else {
        skip("there is no promtool, and without apt-get none can be had");
        return Ok(());
    };
    promtool.check_metrics(&classic.body).await?;
    for page in open_metrics {
        promtool.read_open_metrics(&page).await?;
    }
    Ok(())
}

#[tokio::test]
async fn promtool_reads_the_alerts_of_the_docs() -> Result<()> {
    let Some(promtool) = Promtool::find()? else {
        skip("there is no promtool, and without apt-get none can be had");
        return Ok(());
    };
    let docs = fs::read_to_string(repository("docs/metrics.md"))?;
    let (_, rules) = docs.split_once("```yaml\ngroups:").context("no alerts")?;
    let (rules, _) = rules.split_once("```").context("no end")?;
    promtool.check_rules(&format!("groups:{rules}")).await?;
    // What they look at is there.
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut metrics = words.filter(|word| word.starts_with("pointsman_"));
    ensure!(metrics.clone().count() > 0);
    ensure!(
        metrics.all(|metric| documented_metrics().contains_key(metric)),
        "an alert looks at what there is not"
    );
    Ok(())
}

#[tokio::test]
async fn readiness_can_depend_on_backends() -> Result<()> {
    let mut backend = Some(Backend::start().await?);
    let address = backend.as_ref().context("it was started")?.address();
    let site = |needs: bool| {
        let toml = app("round_robin", &[address]);
        let health =
            "[upstream.health]\nkind = \"tcp\"\ninterval_ms = 20\nfall = 1\nrise = 1\n\n[[route]]";
        format!(
            "ready_needs_backend = {needs}\n{}\n[[upstream]]\nname = \"unused\"\ndns = {{ name = \"none.invalid\", port = 1, server = \"{NOBODY}\" }}\n",
            toml.replace_once("[[route]]", health)
        )
    };
    let balancer = Balancer::start(&site(true)).await?;
    let ready = async || -> Result<(u16, String)> {
        let answer = balancer.admin_get("/readyz").await?;
        Ok((answer.status, answer.text()))
    };
    assert_eq!(ready().await?, (200, "ready\n".to_owned()));
    drop(backend.take());
    let is = async |expected: (u16, &str)| {
        eventually(format!("{expected:?}"), PATIENCE, async || {
            let found = ready().await;
            found.is_ok_and(|(status, said)| (status, said.as_str()) == expected)
        })
        .await
    };
    is((503, "upstream app has no fit backend\n")).await?;
    assert_eq!(balancer.admin_get("/healthz").await?.status, 200);
    // The key takes effect with a reload, both ways.
    balancer.reload(&site(false))?;
    is((200, "ready\n")).await?;
    balancer.reload(&site(true))?;
    is((503, "upstream app has no fit backend\n")).await?;
    backend = Some(Backend::start_at(address).await?);
    is((200, "ready\n")).await?;
    // A backend that the operator takes out gets nothing new.
    let order = format!("/api/drain?upstream=app&backend={address}");
    assert_eq!(balancer.order("POST", &order).await?.status, 200);
    is((503, "upstream app has no fit backend\n")).await?;
    drop(backend);
    Ok(())
}
