//! Time for calls that run past their deadline: one token bucket for each worker.
//!
//! A call that has had its time is stopped by a trap, and a trap ends every session of its instance. One
//! that comes back a little later costs its own session only. What it holds the other sessions of
//! the worker up for meanwhile is taken out of this bucket; when it is empty, calls are stopped at
//! their deadline. Knows no wasm.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What calls may overrun by at once: ten that take five times the default `call_timeout_ms`. That is half of
/// what a worker may be late before it sheds load (`shed_delay_ms`).
const CAPACITY: Duration = Duration::from_millis(400);

/// One percent of a worker's time may go into overruns in the long run.
const REFILL_DIVISOR: u64 = 100;

/// What is left, in nanoseconds of processor time. Written by one worker alone, so a change is a load and
/// a store.
#[derive(Debug)]
pub(super) struct Grace {
    left_ns: AtomicU64,
    refilled_at_ns: AtomicU64,
}

impl Grace {
    /// A full bucket.
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            left_ns: AtomicU64::new(capacity_ns()),
            refilled_at_ns: AtomicU64::new(now_ns),
        }
    }

    /// A call has overrun by so much more. False: nothing is left.
    pub(super) fn charge(&self, spent_ns: u64, now_ns: u64) -> bool {
        let refilled_at_ns = self.refilled_at_ns.load(Ordering::Relaxed);
        let refill_ns = now_ns.saturating_sub(refilled_at_ns) / REFILL_DIVISOR;
        let left_ns = self.left_ns.load(Ordering::Relaxed);
        let full_ns = left_ns.saturating_add(refill_ns).min(capacity_ns());
        let left_ns = full_ns.saturating_sub(spent_ns);
        self.left_ns.store(left_ns, Ordering::Relaxed);
        self.refilled_at_ns.store(now_ns, Ordering::Relaxed);
        left_ns > 0
    }
}

const fn capacity_ns() -> u64 {
    CAPACITY.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_is_bounded_and_so_is_what_comes_after_it() {
        let grace = Grace::new(0);
        for n in 1..400 {
            assert!(grace.charge(MS, 0), "{n} ms");
        }
        assert!(!grace.charge(MS, 0));
        assert!(!grace.charge(MS, 90 * MS), "not refilled yet");
        assert!(grace.charge(MS, 290 * MS), "one percent of 200 ms");
        assert!(!grace.charge(5 * MS, 290 * MS));
        // An hour later it is full, and no fuller.
        assert!(grace.charge(399 * MS, 3_600_000 * MS));
        assert!(!grace.charge(MS, 3_600_000 * MS));
    }
}
