//! The promise: a backend that does not answer its probes gets nothing new, whatever is wrong with
//! it, and is used again when it is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use pointsman_tests::{
    Backend, Balancer, Client, Edit, NOBODY, PATIENCE, Reply, ScriptedBackend, accept_upgrade, app,
    eventually,
};

const FAST: &str = "interval_ms = 50\ntimeout_ms = 200\nrise = 2\nfall = 2\n";

fn probed(kind: &str, backends: &[std::net::SocketAddr]) -> String {
    // A probe goes where it is told, and not where the traffic goes.
    let health = format!("[upstream.health]\nkind = \"{kind}\"\npath = \"/probe\"\n{FAST}");
    app("round_robin", backends).replace_once("[[route]]", &format!("{health}\n[[route]]"))
}

/// All of ten sockets land on this one.
async fn all_land_on(balancer: &Balancer, backend: std::net::SocketAddr) -> Result<()> {
    for _ in 0..10 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        assert_eq!(client.backend()?, backend);
        client.echo_text("here").await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_that_accepts_and_never_answers_is_down() -> Result<()> {
    let good = Backend::start().await?;
    let silent = ScriptedBackend::start(|_| Reply::Nothing).await?;
    for kind in ["http", "websocket"] {
        let balancer = Balancer::start(&probed(kind, &[silent.address(), good.address()])).await?;
        let reason = balancer.backend_state(silent.address(), "down").await?;
        assert_eq!(reason, "no answer within 200ms");
        balancer.backend_state(good.address(), "up").await?;
        all_land_on(&balancer, good.address()).await?;
        let metrics = balancer.metrics().await?;
        let address = silent.address().to_string();
        let healthy = metrics.sum("pointsman_backend_healthy", &[("backend", &address)]);
        assert_eq!(healthy, 0.0);
    }
    let asked = silent
        .heads()
        .iter()
        .all(|head| head.starts_with("GET /probe "));
    assert!(asked, "{:?}", silent.heads());
    Ok(())
}

#[tokio::test]
async fn one_that_answers_500_is_down_for_http_and_for_websocket() -> Result<()> {
    let good = Backend::start().await?;
    let broken = ScriptedBackend::start(|_| {
        let answer = "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        Reply::SayAndHangUp(answer.to_owned())
    })
    .await?;
    for kind in ["http", "websocket"] {
        let balancer = Balancer::start(&probed(kind, &[broken.address(), good.address()])).await?;
        let reason = balancer.backend_state(broken.address(), "down").await?;
        assert_eq!(reason, "it answered 500 Internal Server Error");
        all_land_on(&balancer, good.address()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_that_upgrades_and_never_pongs_is_down() -> Result<()> {
    let good = Backend::start().await?;
    let mute = ScriptedBackend::start(|head| Reply::Say(accept_upgrade(head, &[]))).await?;
    let toml = probed("websocket", &[mute.address(), good.address()]);
    let balancer = Balancer::start(&toml).await?;
    balancer.backend_state(mute.address(), "down").await?;
    balancer.backend_state(good.address(), "up").await?;
    all_land_on(&balancer, good.address()).await
}

#[tokio::test]
async fn one_that_stops_and_comes_back_is_down_and_up_again() -> Result<()> {
    let good = Backend::start().await?;
    let other = Backend::start().await?;
    let address = other.address();
    let balancer = Balancer::start(&probed("tcp", &[good.address(), address])).await?;
    balancer.backend_state(address, "up").await?;
    drop(other);
    let reason = balancer.backend_state(address, "down").await?;
    assert!(reason.starts_with("cannot connect: "), "{reason}");
    all_land_on(&balancer, good.address()).await?;

    let _back = Backend::start_at(address).await?;
    balancer.backend_state(address, "up").await?;
    eventually("it is used again", PATIENCE, async || {
        let client = Client::connect(&balancer.url("/websocket")).await;
        client.is_ok_and(|client| client.backend().is_ok_and(|b| b == address))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn one_that_flaps_faster_than_rise_stays_down() -> Result<()> {
    let good = Backend::start().await?;
    let is_well = Arc::new(AtomicBool::new(true));
    let flapping = {
        let is_well = Arc::clone(&is_well);
        ScriptedBackend::start(move |_| {
            // Well every second time.
            let status = match is_well.fetch_xor(true, Ordering::SeqCst) {
                true => "200 OK",
                false => "503 Down",
            };
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            Reply::SayAndHangUp(answer)
        })
        .await?
    };
    is_well.store(false, Ordering::SeqCst);
    let toml = probed("http", &[flapping.address(), good.address()]);
    let balancer = Balancer::start(&toml).await?;
    balancer.backend_state(flapping.address(), "down").await?;
    let n_probes = flapping.heads().len();
    eventually("ten more probes", PATIENCE, async || {
        let status = balancer.status().await.unwrap_or_default();
        let state = status["upstreams"][0]["backends"][0]["state"].clone();
        assert_eq!(state, "down", "one success is not two in a row");
        flapping.heads().len() >= n_probes + 10
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn when_all_are_down_all_are_tried() -> Result<()> {
    let good = Backend::start().await?;
    // Its probes fail, its sockets do not.
    let toml = probed("http", &[good.address(), NOBODY]).replace_once("/probe", "/status/500");
    let balancer = Balancer::start(&toml).await?;
    balancer.backend_state(good.address(), "down").await?;
    balancer.backend_state(NOBODY, "down").await?;
    all_land_on(&balancer, good.address()).await
}

#[tokio::test]
async fn a_reload_without_health_forgets_what_probes_said() -> Result<()> {
    let good = Backend::start().await?;
    let toml = probed("http", &[good.address()]).replace_once("/probe", "/status/404");
    let balancer = Balancer::start(&toml).await?;
    balancer.backend_state(good.address(), "down").await?;
    balancer.reload(&app("round_robin", &[good.address()]))?;
    balancer.backend_state(good.address(), "up").await?;
    Ok(())
}

/// A server of several sites: for the host that it has, and with the field that it wants.
fn virtual_host(head: &str) -> Reply {
    let is_asked = |line: &str| head.lines().any(|found| found.eq_ignore_ascii_case(line));
    if !is_asked("Host: app.example.org") || !is_asked("X-Probe: of the balancer") {
        let misdirected = "HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\n\r\n";
        return Reply::Say(misdirected.to_owned());
    }
    match is_asked("Upgrade: websocket") {
        true => Reply::Say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned()),
        false => Reply::Say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned()),
    }
}

#[tokio::test]
async fn a_probe_asks_as_a_client_of_the_site_would_and_expects_what_it_is_told() -> Result<()> {
    let site = ScriptedBackend::start(virtual_host).await?;
    for (kind, expect) in [("http", "200-299, 404"), ("websocket", "101, 401")] {
        let plain = probed(kind, &[site.address()]);
        let balancer = Balancer::start(&plain).await?;
        let reason = balancer.backend_state(site.address(), "down").await?;
        assert_eq!(reason, "it answered 421 Misdirected Request");

        let host = "host = \"app.example.org\"\nheaders = { X-Probe = \"of the balancer\" }\n";
        let known = plain.replace_once(FAST, &format!("{host}{FAST}"));
        balancer.reload(&known)?;
        let status = if kind == "http" {
            "404 Not Found"
        } else {
            "401 Unauthorized"
        };
        eventually("it is known", PATIENCE, async || {
            let reason = balancer.backend_state(site.address(), "down").await;
            reason.is_ok_and(|reason| reason == format!("it answered {status}"))
        })
        .await?;

        let expects = known.replace_once(FAST, &format!("expect = \"{expect}\"\n{FAST}"));
        balancer.reload(&expects)?;
        balancer.backend_state(site.address(), "up").await?;
    }
    Ok(())
}
