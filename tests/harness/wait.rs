//! Waiting for a condition, never for a length of time.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take that has no deadline of its own in the design. Generous, because
/// test machines are busy: a test that needs it all is a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Returns how long it took until `holds`.
///
/// # Errors
///
/// It did not hold within `deadline`; `what` is named.
pub async fn eventually(
    what: impl Display,
    deadline: Duration,
    mut holds: impl AsyncFnMut() -> bool,
) -> Result<Duration> {
    let began = Instant::now();
    loop {
        // A condition that was looked at late because the machine was busy still counts by when
        // the look began.
        let at = began.elapsed();
        if holds().await {
            return Ok(at);
        }
        if at > deadline {
            bail!("not within {deadline:?}: {what}");
        }
        sleep(POLL).await;
    }
}

/// What `work` comes to, if it does so within [`PATIENCE`].
///
/// # Errors
///
/// Those of `work`, and its lateness.
pub async fn in_time<T, E: Into<anyhow::Error>>(
    what: impl Display,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    match timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(|e| e.into().context(format!("while waiting for {what}"))),
        Err(_) => Err(anyhow!("not within {PATIENCE:?}: {what}")),
    }
}
