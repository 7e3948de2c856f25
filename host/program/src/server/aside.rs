//! Work that blocks, on threads of the background: the control thread itself never waits for a disk, a
//! compiler or a guest.
//!
//! A disk may never answer (a share whose server is gone, a FIFO that nobody writes to), so it is waited for no
//! longer than [`DISK_TIMEOUT`]. Compilers and guests have bounds of their own; two of them run at a time, so
//! that they leave the machine to others.

use std::time::Duration;
use std::{fmt, io};

use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

/// How long a disk is waited for.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);

/// Threads of the background. Those that wait for a disk that does not answer are lost until it does.
pub(super) const THREADS_MAX: usize = 16;

/// One for each compiler or guest that runs.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Why there is no result.
#[derive(Debug)]
pub(super) enum NotDone {
    /// The disk does not answer in this time.
    TimedOut(Duration),
    /// The work has panicked.
    Panicked(JoinError),
}

/// Has a file read, opened or watched, or something done that takes a moment.
///
/// # Cancel safety
/// Work that has begun goes on to its end, and what comes of it is dropped.
pub(super) async fn briefly<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    within(DISK_TIMEOUT, work).await
}

/// As [`briefly`], with as much time as many files take.
pub(super) async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    let mut working = spawn_blocking(work);
    match timeout(limit, &mut working).await {
        Ok(done) => done.map_err(NotDone::Panicked),
        Err(_) => {
            // Where every thread waits, it has not begun and is not wanted any more.
            working.abort();
            Err(NotDone::TimedOut(limit))
        }
    }
}

/// Has a plugin compiled or tried, which takes as long as it may.
///
/// # Cancel safety
/// As [`briefly`].
pub(super) async fn computed<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    let place = PLACES.acquire().await;
    let work = move || {
        let _place = place;
        work()
    };
    spawn_blocking(work).await.map_err(NotDone::Panicked)
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(limit) => write!(f, "no answer from the disk in {limit:?}"),
            Self::Panicked(error) => error.fmt(f),
        }
    }
}

impl From<NotDone> for io::Error {
    fn from(error: NotDone) -> Self {
        match error {
            NotDone::TimedOut(_) => Self::new(io::ErrorKind::TimedOut, error.to_string()),
            NotDone::Panicked(error) => error.into(),
        }
    }
}
