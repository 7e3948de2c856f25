//! What happens to the balancer meanwhile.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_tests::{BackendProcess, Edit, Wire, frame, guests, upgrade_request};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::Soak;

const KILL_EVERY: Duration = Duration::from_secs(8);
const DEAD_FOR: Duration = Duration::from_secs(2);
const STOPPED_FOR: Duration = Duration::from_millis(700);
const SWAP_EVERY: Duration = Duration::from_secs(2);
const RELOAD_EVERY: Duration = Duration::from_secs(3);
const NONSENSE_EVERY: Duration = Duration::from_millis(50);

/// What was done, and when backends were killed.
#[derive(Default)]
pub(crate) struct Trouble {
    kills: AtomicU64,
    swaps: AtomicU64,
    reloads: AtomicU64,
    nonsense: AtomicU64,
    killed_at: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Trouble {
    /// Whether this backend was killed since.
    pub(crate) fn has_killed(&self, backend: SocketAddr, since: Instant) -> bool {
        let killed_at = self
            .killed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        killed_at.get(&backend).is_some_and(|at| *at >= since)
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (what, n) in [
            ("killed", &self.kills),
            ("swapped", &self.swaps),
            ("reloaded", &self.reloads),
            ("sent", &self.nonsense),
        ] {
            ensure!(n.load(Relaxed) > 3, "hardly anything was {what}");
        }
        Ok(())
    }

    fn note_kill(&self, backend: SocketAddr) {
        let mut killed_at = self
            .killed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        killed_at.insert(backend, Instant::now());
        self.kills.fetch_add(1, Relaxed);
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |count: &AtomicU64| count.load(Relaxed);
        write!(
            f,
            "{} kills, {} swaps, {} reloads, {} times nonsense",
            n(&self.kills),
            n(&self.swaps),
            n(&self.reloads),
            n(&self.nonsense)
        )
    }
}

/// The configuration, which differs from one `version` to the next.
pub(crate) fn configuration(backends: &[SocketAddr], version: usize) -> String {
    let weight = |i: usize| 1 + (i + version) % 3;
    let backends = backends.iter().enumerate();
    let backends: Vec<_> = backends
        .map(|(i, address)| format!("{{ address = \"{address}\", weight = {} }}", weight(i)))
        .collect();
    let backends = backends.join(", ");
    format!(
        r#"
workers = 2

[[listener]]
bind = "127.0.0.1:0"
handshake_timeout_ms = 1000
max_handshakes = 500

[[upstream]]
name = "app"
policy = "placer"
response_timeout_ms = 2000
backends = [{backends}]

[[route]]
path = "/*"
upstream = "app"
max_message_bytes = 1048576

[[route]]
path = "/filters"
upstream = "app"
filters = ["tap", "rate_limit"]
max_message_bytes = 65536

[[route]]
path = "/echo"
handler = "echo"
max_message_bytes = 65536

[[route]]
path = "/hello"
http = "hello"

[plugin.rate_limit]
config = {{ messages_per_sec = 1000 }}
"#
    )
}

/// Kills one backend after the other and starts it again; stops one for a moment now and then.
pub(crate) async fn kill(
    soak: Arc<Soak>,
    mut processes: Vec<BackendProcess>,
    stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut turn = 0;
    while !*stopped.borrow() {
        sleep(KILL_EVERY).await;
        let process = processes.remove(0);
        let address = process.address();
        if turn % 3 == 2 {
            process.signal(Signal::STOP)?;
            sleep(STOPPED_FOR).await;
            process.signal(Signal::CONT)?;
            processes.push(process);
        } else {
            soak.trouble.note_kill(address);
            process.kill().await?;
            sleep(DEAD_FOR).await;
            processes.push(BackendProcess::start_at(&soak.program, address).await?);
        }
        turn += 1;
    }
    Ok(())
}

/// Puts policies, some of which fail, into the watched folder.
pub(crate) async fn swap_plugins(soak: Arc<Soak>, stopped: watch::Receiver<bool>) -> Result<()> {
    let round_robin = guests::shipped("round_robin");
    let contents = [
        guests::shipped("least_connections"),
        round_robin[..round_robin.len() / 2].to_vec(),
        guests::shipped("random"),
        guests::policy("start_traps")?,
        round_robin,
    ];
    for n in 0.. {
        if *stopped.borrow() {
            break;
        }
        let content = &contents[n % contents.len()];
        let content = guests::marked(content, u32::try_from(n)?);
        soak.balancer.drop_plugin("placer", &content)?;
        soak.trouble.swaps.fetch_add(1, Relaxed);
        sleep(SWAP_EVERY).await;
    }
    Ok(())
}

/// Changes the configuration; every third is refused.
pub(crate) async fn reload(soak: Arc<Soak>, stopped: watch::Receiver<bool>) -> Result<()> {
    for version in 0.. {
        if *stopped.borrow() {
            break;
        }
        let mut toml = configuration(&soak.backends, version);
        if version % 3 == 2 {
            toml = toml.replace_once("workers = 2", "workers = 2\nunknown = true");
        }
        soak.balancer.reload(&toml)?;
        soak.trouble.reloads.fetch_add(1, Relaxed);
        sleep(RELOAD_EVERY).await;
    }
    Ok(())
}

/// Sends what no client should send, and leaves.
pub(crate) async fn send_nonsense(soak: Arc<Soak>, stopped: watch::Receiver<bool>) -> Result<()> {
    while !*stopped.borrow() {
        let mut wire = Wire::connect(soak.balancer.address()).await?;
        // Any answer is as good as none, and so is an end.
        let _ = nonsense(&mut wire).await;
        soak.trouble.nonsense.fetch_add(1, Relaxed);
        sleep(NONSENSE_EVERY).await;
    }
    Ok(())
}

async fn nonsense(wire: &mut Wire) -> Result<()> {
    let noise = |n: usize| -> Vec<u8> { (0..n).map(|_| fastrand::u8(..)).collect() };
    match fastrand::u8(..8) {
        0 => wire.send(noise(2000)).await,
        1 => wire.send("GET /websocket HTTP/1.1\r\nHost: a\r\n").await,
        2 => {
            wire.send(format!(
                "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
                "a".repeat(9000)
            ))
            .await
        }
        3 => {
            wire.send(upgrade_request("/websocket", &["Sec-WebSocket-Version: 8"]))
                .await
        }
        4 => {
            wire.send("GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .await
        }
        n => {
            let path = ["/websocket", "/filters", "/echo"][usize::from(n % 3)];
            wire.send(upgrade_request(path, &[])).await?;
            wire.head().await?;
            match fastrand::u8(..4) {
                0 => wire.send(noise(500)).await,
                // A reserved opcode; too long a message in pieces; half a frame.
                1 => wire.send(frame(0x83, b"what is this")).await,
                2 => wire.send(frame(0x02, &[0; 60_000]).repeat(2)).await,
                _ => wire.send(&frame(0x81, &[b'a'; 1000])[..500]).await,
            }
        }
    }
}
