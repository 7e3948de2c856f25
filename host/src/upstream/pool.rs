//! The backends of one upstream, and what is known of each.
//!
//! A [`Pool`] is a snapshot: the set never changes, a reload publishes another. The figures of a
//! backend outlive snapshots: a reload that keeps an address keeps its figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::routing::policy;

/// The backends of one upstream at one time.
#[derive(Debug)]
pub struct Pool {
    /// What the operator wrote.
    pub config: config::Upstream,
    /// In the order written.
    pub backends: Vec<Arc<Backend>>,
    /// Counts choices, over all workers and snapshots.
    sequence: Arc<AtomicU64>,
}

/// One backend.
#[derive(Debug)]
pub struct Backend {
    /// What the operator wrote.
    pub config: config::Backend,
    figures: Arc<Figures>,
}

/// What is known of one backend. Written by all workers at the pace of handshakes, never of bytes.
#[derive(Debug)]
struct Figures {
    born: Instant,
    active: AtomicU32,
    pending: AtomicU32,
    failures: AtomicU64,
    /// Failures since the last success.
    failures_in_a_row: AtomicU32,
    latency_us: AtomicU32,
    /// Failures by second, modulo [`WINDOW_SECS`]: the second in the upper half, the count in the lower.
    recent: [AtomicU64; WINDOW_SECS as usize],
}

/// "Recently" in [`policy::Figures::recent_failures`].
const WINDOW_SECS: u32 = 10;
/// Weight of the newest sample in the moving average: 1/8, as in TCP's estimate (RFC 6298 section 2).
const LATENCY_SHIFT: u32 = 3;

impl Pool {
    /// Makes a snapshot; `before` is the one that it takes the place of.
    pub fn new(config: config::Upstream, before: Option<&Self>) -> Self {
        let known: BTreeMap<&str, &Arc<Figures>> = before
            .iter()
            .flat_map(|pool| &pool.backends)
            .map(|backend| (backend.address(), &backend.figures))
            .collect();
        let backend = |config: &config::Backend| {
            let figures = known
                .get(config.address.as_str())
                .map_or_else(Arc::default, |&f| Arc::clone(f));
            Arc::new(Backend {
                config: config.clone(),
                figures,
            })
        };
        let backends = config.backends.iter().map(backend).collect();
        let sequence = before.map_or_else(Arc::default, |pool| Arc::clone(&pool.sequence));
        Self {
            config,
            backends,
            sequence,
        }
    }

    /// The number of this choice: 0, 1, 2 and so on over all workers.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Relaxed)
    }
}

impl Backend {
    /// Host and port.
    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// What a policy may know.
    pub fn figures(&self) -> policy::Figures {
        policy::Figures {
            active: self.figures.active.load(Relaxed),
            pending: self.figures.pending.load(Relaxed),
            recent_failures: self.figures.recent_failures(),
            latency_us: self.figures.latency_us.load(Relaxed),
        }
    }

    /// Failed dials and handshakes since the start.
    pub fn failures(&self) -> u64 {
        self.figures.failures.load(Relaxed)
    }

    /// Failed dials and handshakes since the last that succeeded.
    pub fn failures_in_a_row(&self) -> u32 {
        self.figures.failures_in_a_row.load(Relaxed)
    }

    /// Whether the last dial succeeded, or none was tried yet.
    pub fn is_up(&self) -> bool {
        self.failures_in_a_row() == 0
    }

    /// Whether it may have another session.
    pub fn has_room(&self) -> bool {
        let taken = || {
            self.figures
                .active
                .load(Relaxed)
                .saturating_add(self.figures.pending.load(Relaxed))
        };
        self.config.max_sessions.is_none_or(|max| taken() < max)
    }

    /// Counts a dial, until the guard is dropped or the backend has answered.
    pub fn dialling(self: &Arc<Self>) -> Pending {
        self.figures.pending.fetch_add(1, Relaxed);
        Pending {
            backend: Arc::clone(self),
            begun: Instant::now(),
        }
    }

    /// The backend did not answer a dial or a handshake as it should.
    pub fn failed(&self) {
        self.figures.failures.fetch_add(1, Relaxed);
        self.figures.failures_in_a_row.fetch_add(1, Relaxed);
        self.figures.note_failure();
    }
}

/// A dial under way.
#[derive(Debug)]
pub struct Pending {
    backend: Arc<Backend>,
    begun: Instant,
}

/// A session or plain request under way; ends when it is dropped.
#[derive(Debug)]
pub struct Active {
    backend: Arc<Backend>,
}

impl Pending {
    /// The backend has answered.
    pub fn answered(self) -> Active {
        let figures = &self.backend.figures;
        figures.failures_in_a_row.store(0, Relaxed);
        figures.note_latency(self.begun.elapsed());
        figures.active.fetch_add(1, Relaxed);
        Active {
            backend: Arc::clone(&self.backend),
        }
    }
}

impl Active {
    /// Where it runs.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.backend.figures.pending.fetch_sub(1, Relaxed);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.backend.figures.active.fetch_sub(1, Relaxed);
    }
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            active: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            latency_us: AtomicU32::new(0),
            recent: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Figures {
    /// Two workers may lose one sample to each other: it is an estimate.
    fn note_latency(&self, sample: Duration) {
        let sample = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX).max(1);
        let old = self.latency_us.load(Relaxed);
        let new = if old == 0 {
            sample
        } else {
            old - (old >> LATENCY_SHIFT) + (sample >> LATENCY_SHIFT)
        };
        self.latency_us.store(new.max(1), Relaxed);
    }

    fn note_failure(&self) {
        let second = self.second();
        let slot = &self.recent[(second % WINDOW_SECS) as usize];
        let count = |old: u64| {
            if (old >> 32) as u32 == second {
                old + 1
            } else {
                u64::from(second) << 32 | 1
            }
        };
        let _ = slot.fetch_update(Relaxed, Relaxed, |old| Some(count(old)));
    }

    fn recent_failures(&self) -> u32 {
        if self.failures.load(Relaxed) == 0 {
            return 0;
        }
        let second = self.second();
        let is_recent = |slot: &u64| second - ((slot >> 32) as u32).min(second) < WINDOW_SECS;
        self.recent
            .iter()
            .map(|slot| slot.load(Relaxed))
            .filter(is_recent)
            .map(|slot| slot as u32)
            .sum()
    }

    fn second(&self) -> u32 {
        self.born.elapsed().as_secs() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(addresses: &[&str]) -> config::Upstream {
        let text = format!(
            "[[listener]]\nbind = \"127.0.0.1:0\"\n[[upstream]]\nname = \"app\"\nbackends = {addresses:?}\n[[route]]\npath = \"/*\"\nupstream = \"app\"\n"
        );
        let config = config::Config::from_toml(&text, std::path::Path::new("."))
            .expect("a good configuration");
        config.upstreams[0].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn figures_follow_dials_and_are_kept_over_snapshots() {
        let first = Pool::new(upstream(&["127.0.0.1:1", "127.0.0.1:2"]), None);
        let backend = &first.backends[1];
        let pending = backend.dialling();
        assert_eq!(backend.figures().pending, 1);
        tokio::time::advance(Duration::from_micros(800)).await;
        let active = pending.answered();
        assert_eq!(active.backend().address(), "127.0.0.1:2");
        let second = Pool::new(upstream(&["127.0.0.1:3", "127.0.0.1:2"]), Some(&first));
        let kept = policy::Figures {
            active: 1,
            latency_us: 800,
            ..policy::Figures::default()
        };
        assert_eq!(second.backends[1].figures(), kept);
        assert_eq!(second.backends[0].figures(), policy::Figures::default());
        drop(active);
        assert_eq!(second.backends[1].figures().active, 0);
        assert_eq!((first.next_sequence(), second.next_sequence()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_recent_for_ten_seconds_and_in_a_row_until_a_success() {
        let pool = Pool::new(upstream(&["127.0.0.1:1"]), None);
        let backend = &pool.backends[0];
        assert!(backend.is_up());
        backend.failed();
        tokio::time::advance(Duration::from_secs(9)).await;
        backend.failed();
        assert_eq!(
            (
                backend.figures().recent_failures,
                backend.failures_in_a_row()
            ),
            (2, 2)
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(backend.figures().recent_failures, 1);
        drop(backend.dialling().answered());
        assert!(backend.is_up());
        assert_eq!(backend.failures(), 2);
    }
}
