//! Sessions: each echoes for a while, ends in one of several ways, and makes room for the next. What
//! comes back is what was sent, and a session ends only by its own will or by the loss of its backend.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Client, payload};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::Soak;

/// How long a session lives, and how long it is silent between two messages.
const LIFE_SECS: std::ops::Range<u64> = 5..60;
const SILENCE_MS: std::ops::Range<u64> = 500..2000;
const MAX_BYTES: usize = 4096;

/// Where a session goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Relay,
    Filters,
    Handler,
}

/// What came of all sessions.
#[derive(Default)]
pub(crate) struct Talk {
    opened: AtomicU64,
    messages: AtomicU64,
    /// With their backend.
    lost: AtomicU64,
}

impl Path {
    /// Seven of ten are relayed.
    pub(crate) fn of(i: usize) -> Self {
        match i % 10 {
            0 => Self::Handler,
            1 | 2 => Self::Filters,
            _ => Self::Relay,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Relay => "/websocket",
            Self::Filters => "/filters",
            Self::Handler => "/echo",
        }
    }
}

impl Talk {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.lost.load(Relaxed) > 0,
            "no session was lost: no backend was killed under one"
        );
        ensure!(
            self.messages.load(Relaxed) > self.opened.load(Relaxed),
            "nobody has talked"
        );
        Ok(())
    }
}

impl fmt::Display for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sessions, {} messages, {} lost with their backend",
            self.opened.load(Relaxed),
            self.messages.load(Relaxed),
            self.lost.load(Relaxed)
        )
    }
}

/// Keeps one session open the whole time, though not the same.
pub(crate) async fn keep_open(
    soak: Arc<Soak>,
    path: Path,
    delay: Duration,
    stopped: watch::Receiver<bool>,
) -> Result<()> {
    sleep(delay).await;
    while !*stopped.borrow() {
        let url = soak.balancer.url(path.text());
        let client = Client::connect(&url)
            .await
            .with_context(|| format!("a handshake with {url}"))?;
        soak.talk.opened.fetch_add(1, Relaxed);
        let backend = client.backend().ok();
        let begun = Instant::now();
        if let Err(error) = live(&soak, client, &stopped).await {
            let was_killed = backend.is_some_and(|backend| soak.trouble.has_killed(backend, begun));
            if !was_killed {
                return Err(error.context(format!("a session at {url}, {}", at(backend))));
            }
            soak.talk.lost.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}

fn at(backend: Option<SocketAddr>) -> String {
    backend.map_or_else(|| "no backend".to_owned(), |backend| backend.to_string())
}

async fn live(soak: &Soak, mut client: Client, stopped: &watch::Receiver<bool>) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(fastrand::u64(LIFE_SECS));
    let text = payload(MAX_BYTES);
    while Instant::now() < until && !*stopped.borrow() {
        let n = fastrand::usize(1..=MAX_BYTES);
        match fastrand::bool() {
            true => client.echo_text(&text[..n]).await?,
            false => {
                client
                    .echo_binary(text.as_bytes()[MAX_BYTES - n..].to_vec())
                    .await?
            }
        }
        soak.talk.messages.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(fastrand::u64(SILENCE_MS))).await;
    }
    // One in three just goes.
    if fastrand::u8(..3) > 0 {
        let code = client.close(1000).await?;
        ensure!(code == Some(1000), "closed with {code:?}");
    }
    Ok(())
}
