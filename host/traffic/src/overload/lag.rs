//! How late a worker is: how long what is ready waits until the worker comes to it.
//!
//! A timer is set when a connection comes in, unless one is set already, and how late it rings is the
//! answer; a worker that nobody comes to sets none. Above what the operator allows, new requests are
//! refused, the more of them the later it is: a refusal costs a fraction of a session's beginning, so
//! the rest is served in time (the idea of CoDel, RFC 8289, for a queue that cannot be looked at).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pointsman_metrics::counters::WorkerCounters;
use tokio::time::{Instant, sleep_until};

/// Between two looks, while connections come in.
const PERIOD: Duration = Duration::from_millis(10);
/// How long a look is believed at least.
const BELIEVED: Duration = Duration::from_millis(100);

/// The lateness of one worker.
#[derive(Debug)]
pub struct Lag {
    counters: Arc<WorkerCounters>,
    /// When the timer that is set should ring.
    due: Cell<Option<Instant>>,
    last: Cell<Option<(Instant, Duration)>>,
}

impl Lag {
    /// `counters`: the worker's, which tell of it.
    pub fn new(counters: Arc<WorkerCounters>) -> Self {
        Self {
            counters,
            due: Cell::new(None),
            last: Cell::new(None),
        }
    }

    /// Looks how late the worker is, in a moment.
    pub fn look(self: &Rc<Self>) {
        if self.due.get().is_some() {
            return;
        }
        let due = Instant::now() + PERIOD;
        self.due.set(Some(due));
        let lag = Rc::clone(self);
        // Ends by itself.
        tokio::task::spawn_local(async move {
            sleep_until(due).await;
            let now = Instant::now();
            let late = now.duration_since(due);
            lag.last.set(Some((now, late)));
            let late_ns = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
            lag.counters.lag_ns.set(late_ns);
            lag.due.set(None);
        });
    }

    /// The last that was seen, unless it is long ago; or how late the next is by now.
    pub fn current(&self) -> Duration {
        let now = Instant::now();
        let last = self.last.get().map_or(Duration::ZERO, |(at, late)| {
            let is_believed = now.duration_since(at) <= late.max(BELIEVED);
            if is_believed { late } else { Duration::ZERO }
        });
        let next = self.due.get().map(|due| now.duration_since(due));
        last.max(next.unwrap_or_default())
    }

    /// Whether a request that comes now should be refused: never up to `allowed`, always from twice
    /// that on, and in between as often as it is near to that. `dice`: 0 to 1.
    pub fn is_too_late(&self, allowed: Duration, dice: f64) -> bool {
        let over = self.current().saturating_sub(allowed);
        over.as_secs_f64() > dice * allowed.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::task::LocalSet;

    use super::*;

    const ALLOWED: Duration = Duration::from_millis(50);

    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread that is held up is what is tested"
    )]
    async fn a_worker_that_is_held_up_is_late_and_then_is_no_longer() {
        let lag = Rc::new(Lag::new(Arc::default()));
        let run = async {
            lag.look();
            sleep_until(Instant::now()).await;
            assert!(!lag.is_too_late(ALLOWED, 0.0));
            thread::sleep(PERIOD + 2 * ALLOWED);
            assert!(lag.current() >= 2 * ALLOWED, "before the timer has rung");
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(lag.due.get().is_none() && lag.current() >= 2 * ALLOWED);
            assert!(lag.is_too_late(ALLOWED, 0.99));
            let (at, late) = lag.last.get().unwrap();
            lag.last.set(Some((at - Duration::from_secs(2), late)));
            assert_eq!(lag.current(), Duration::ZERO, "long ago");
        };
        LocalSet::new().run_until(run).await;
    }

    #[test]
    fn the_later_it_is_the_more_is_refused() {
        let refused = |late: f64, dice: f64| {
            let lag = Lag::new(Arc::default());
            lag.last.set(Some((Instant::now(), ALLOWED.mul_f64(late))));
            lag.is_too_late(ALLOWED, dice)
        };
        assert!(!refused(1.0, 0.0) && refused(1.25, 0.2) && !refused(1.25, 0.3));
        assert!(refused(2.1, 1.0));
    }
}
