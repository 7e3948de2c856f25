//! The promise: before the 101, a backend that fails costs the client nothing while another is
//! alive; and what a backend answers is verified before one byte is tunnelled.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, BackendProcess, Balancer, Client, Edit, NOBODY, PATIENCE, Refused, Reply,
    ScriptedBackend, Wire, accept_upgrade, app, eventually, frame, upgrade_request,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

async fn three_processes() -> Result<Vec<BackendProcess>> {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(BackendProcess::start(env!("CARGO_BIN_EXE_echo-backend")).await?);
    }
    Ok(backends)
}

/// The status that an upgrade is refused with.
async fn refusal(balancer: &Balancer) -> Result<u16> {
    match Client::connect(&balancer.url("/websocket")).await {
        Ok(_) => anyhow::bail!("accepted"),
        Err(e) => Ok(e.downcast::<Refused>()?.status),
    }
}

#[tokio::test]
async fn a_backend_killed_while_clients_connect_fails_no_handshake() -> Result<()> {
    let mut backends = three_processes().await?;
    let addresses: Vec<_> = backends.iter().map(BackendProcess::address).collect();
    let balancer = Balancer::start(&app("round_robin", &addresses)).await?;

    let (stop, stopped) = watch::channel(false);
    let (connected, mut n_connected) = watch::channel(0);
    let mut connectors = JoinSet::new();
    for _ in 0..4 {
        let (url, stopped, connected) = (
            balancer.url("/websocket"),
            stopped.clone(),
            connected.clone(),
        );
        connectors.spawn(async move {
            while !*stopped.borrow() {
                let client = Client::connect(&url).await?;
                client.backend()?;
                connected.send_modify(|n| *n += 1);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    n_connected.wait_for(|n| *n >= 50).await?;
    backends.remove(1).kill().await?;
    let n_before = *n_connected.borrow();
    n_connected.wait_for(|n| *n >= n_before + 200).await?;
    stop.send_replace(true);
    while let Some(ended) = connectors.join_next().await {
        ended?.context("a handshake failed")?;
    }

    let mut landed = BTreeSet::new();
    for _ in 0..6 {
        landed.insert(
            Client::connect(&balancer.url("/websocket"))
                .await?
                .backend()?,
        );
    }
    assert_eq!(landed, BTreeSet::from([addresses[0], addresses[2]]));
    let metrics = balancer.metrics().await?;
    let labels = [("upstream", "app"), ("backend", &*addresses[1].to_string())];
    ensure!(
        metrics.sum("pointsman_backend_failures_total", &labels) >= 1.0,
        "not counted"
    );
    Ok(())
}

#[tokio::test]
async fn clients_are_told_so_when_all_backends_are_dead() -> Result<()> {
    let backends = three_processes().await?;
    let addresses: Vec<_> = backends.iter().map(BackendProcess::address).collect();
    let balancer = Balancer::start(&app("round_robin", &addresses)).await?;
    for backend in backends {
        backend.kill().await?;
    }
    let status = refusal(&balancer).await?;
    ensure!(matches!(status, 502 | 503), "answered with {status}");
    let answer = balancer.get("/").await?;
    ensure!(
        matches!(answer.status, 502 | 503),
        "answered with {}",
        answer.status
    );
    Ok(())
}

#[tokio::test]
async fn a_refused_dial_is_tried_elsewhere() -> Result<()> {
    let alive = Backend::start().await?;
    // A port that was free a moment ago, where nobody listens.
    let dead = NOBODY;
    let balancer = Balancer::start(&app("round_robin", &[dead, alive.address()])).await?;
    for _ in 0..6 {
        let client = Client::connect(&balancer.url("/websocket")).await?;
        assert_eq!(client.backend()?, alive.address());
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_hangs_up_or_says_nothing_is_given_up_for_another() -> Result<()> {
    let alive = Backend::start().await?;
    let rude = ScriptedBackend::start(|_| Reply::HangUp).await?;
    let silent = ScriptedBackend::start(|_| Reply::Nothing).await?;
    let addresses = [rude.address(), silent.address(), alive.address()];
    let toml = app("round_robin", &addresses)
        .replace_once("policy =", "response_timeout_ms = 300\npolicy =");
    let balancer = Balancer::start(&toml).await?;
    for _ in 0..6 {
        let client = Client::connect(&balancer.url("/websocket")).await?;
        assert_eq!(client.backend()?, alive.address());
    }
    ensure!(
        !rude.heads().is_empty() && !silent.heads().is_empty(),
        "not tried"
    );
    Ok(())
}

#[tokio::test]
async fn a_backend_that_never_answers_is_a_504() -> Result<()> {
    let silent = ScriptedBackend::start(|_| Reply::Nothing).await?;
    let toml = app("round_robin", &[silent.address()])
        .replace_once("policy =", "response_timeout_ms = 300\npolicy =");
    let balancer = Balancer::start(&toml).await?;
    assert_eq!(refusal(&balancer).await?, 504);
    Ok(())
}

#[tokio::test]
async fn an_answer_other_than_101_is_relayed_as_it_is_and_no_tunnel() -> Result<()> {
    for status in [200, 401, 500] {
        let backend = ScriptedBackend::start(move |_| {
            Reply::Say(format!(
                "HTTP/1.1 {status} So It Is\r\nContent-Length: 6\r\nX-Why: because\r\n\r\nno way"
            ))
        })
        .await?;
        let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(upgrade_request("/websocket", &[])).await?;
        let answer = wire.answer().await?;
        assert_eq!((answer.status, answer.text().as_str()), (status, "no way"));
        assert_eq!(answer.header("x-why"), Some("because"));
        assert_eq!(answer.header("upgrade"), None);

        // Were it a tunnel, the backend would get these bytes as they are.
        let _ = wire
            .send("GET /smuggled HTTP/1.1\r\nHost: inside\r\n\r\n")
            .await;
        eventually("the upgrade is counted as refused", PATIENCE, async || {
            let metrics = balancer.metrics().await;
            metrics.is_ok_and(|m| {
                m.sum("pointsman_upgrades_total", &[("result", "backend_refused")]) == 1.0
            })
        })
        .await?;
        let n_upgrades = backend
            .heads()
            .iter()
            .filter(|h| h.contains("/websocket"))
            .count();
        assert_eq!(n_upgrades, 1, "an answer is an answer, no reason to retry");
    }
    Ok(())
}

#[tokio::test]
async fn a_101_that_is_not_one_is_a_502() -> Result<()> {
    type Script = fn(&str) -> Reply;
    let wrong: [(&str, Script); 6] = [
        ("accept of another key", |_| {
            Reply::Say(accept_upgrade(
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                &[],
            ))
        }),
        ("no accept", |_| {
            Reply::Say("HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".into())
        }),
        ("no upgrade", |head| {
            Reply::Say(accept_upgrade(head, &[]).replace_once("Upgrade: websocket\r\n", ""))
        }),
        ("no connection", |head| {
            Reply::Say(accept_upgrade(head, &[]).replace_once("Connection: Upgrade\r\n", ""))
        }),
        ("a subprotocol that was not offered", |head| {
            Reply::Say(accept_upgrade(head, &["Sec-WebSocket-Protocol: surprise"]))
        }),
        ("an extension that was not offered", |head| {
            Reply::Say(accept_upgrade(
                head,
                &["Sec-WebSocket-Extensions: x-surprise"],
            ))
        }),
    ];
    for (what, script) in wrong {
        let backend = ScriptedBackend::start(script).await?;
        let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
        assert_eq!(refusal(&balancer).await.context(what)?, 502, "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_right_behind_the_backends_101_arrives() -> Result<()> {
    let backend = ScriptedBackend::start(|head| {
        let mut bytes = accept_upgrade(head, &[]).into_bytes();
        bytes.extend(b"\x81\x07welcome");
        Reply::SayBytes(bytes)
    })
    .await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    assert_eq!(client.receive().await?, "welcome".into());
    Ok(())
}

#[tokio::test]
async fn a_killed_backend_ends_its_sessions_and_no_others() -> Result<()> {
    let mut backends = three_processes().await?;
    let addresses: Vec<_> = backends.iter().map(BackendProcess::address).collect();
    let balancer = Balancer::start(&app("round_robin", &addresses)).await?;
    let mut wires = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(upgrade_request("/websocket", &[])).await?;
        let answer = wire.head().await?;
        wires.push((answer.backend()?, wire));
    }
    backends.remove(0).kill().await?;
    for (backend, mut wire) in wires {
        if backend == addresses[0] {
            // Cut, as it would be without a balancer: `backend_loss` has the other way.
            assert_eq!(wire.rest().await?, b"");
        } else {
            wire.send(frame(0x81, b"still here")).await?;
            assert_eq!(wire.frame().await?.payload, b"still here");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_fails_is_told_once_with_its_reason_and_once_when_it_is_back() -> Result<()>
{
    let program = env!("CARGO_BIN_EXE_echo-backend");
    let [dead, alive] = [
        BackendProcess::start(program).await?,
        BackendProcess::start(program).await?,
    ];
    let address = dead.address();
    let toml = app("round_robin", &[address, alive.address()]);
    let balancer = Balancer::start(&toml).await?;
    let lines = |level: &str| {
        let names_it = |line: &String| line.contains(level) && line.contains(&address.to_string());
        let log = balancer.log();
        log.into_iter().filter(names_it).collect::<Vec<_>>()
    };
    dead.kill().await?;
    for _ in 0..40 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("by the other").await?;
    }
    let warnings = lines("WARN");
    ensure!(warnings.len() == 1, "{warnings:#?}");
    ensure!(warnings[0].contains("Connection refused"), "{warnings:?}");
    assert_eq!(lines("INFO"), [""; 0], "nothing for each request");

    let _back = BackendProcess::start_at(program, address).await?;
    eventually("its return is told", PATIENCE, async || {
        let connected = Client::connect(&balancer.url("/websocket")).await;
        connected.is_ok()
            && lines("INFO")
                .iter()
                .any(|line| line.contains("answers again"))
    })
    .await?;
    assert_eq!((lines("INFO").len(), lines("WARN").len()), (1, 1));
    Ok(())
}
