//! A circuit breaker for plugins with sessions: one that keeps failing is left alone for a while.
//!
//! Each failure of a shared instance costs its sessions and the making of another. Clients who have
//! found out how to cause one could keep a worker busy with that; and who comes meanwhile is better told
//! to come later than given a session that will not live.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::failure::CallError;

/// So many failures within a second open it.
const FAILURES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);
/// How long it stays open.
const REST: Duration = Duration::from_secs(1);

/// Counts the failures of one plugin on one worker.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// When the first of the failures that count was.
    begun: Cell<Option<Instant>>,
    n_failures: Cell<u32>,
    open_until: Cell<Option<Instant>>,
}

impl Breaker {
    /// An instance has died, or could not be made.
    pub(super) fn failed(&self, now: Instant) {
        if self.begun.get().is_none_or(|begun| now - begun > WINDOW) {
            self.begun.set(Some(now));
            self.n_failures.set(0);
        }
        self.n_failures.set(self.n_failures.get() + 1);
        if self.n_failures.get() >= FAILURES_MAX {
            self.open_until.set(Some(now + REST));
        }
    }

    /// Whether the plugin may be called.
    ///
    /// # Errors
    /// [`CallError::Resting`].
    pub(super) fn check(&self, now: Instant) -> Result<(), CallError> {
        match self.open_until.get() {
            Some(until) if now < until => Err(CallError::Resting),
            Some(_) => {
                self.open_until.set(None);
                self.begun.set(None);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_failures_at_once_open_it_for_a_while_and_few_do_not() {
        let breaker = Breaker::default();
        let begun = Instant::now();
        for i in 0..3 * FAILURES_MAX {
            breaker.failed(begun + i * WINDOW / (FAILURES_MAX - 2));
            assert_eq!(breaker.check(begun + i * WINDOW), Ok(()));
        }
        let now = begun + 100 * WINDOW;
        for _ in 0..FAILURES_MAX {
            assert_eq!(breaker.check(now), Ok(()));
            breaker.failed(now);
        }
        assert_eq!(breaker.check(now), Err(CallError::Resting));
        assert_eq!(breaker.check(now + REST), Ok(()));
        breaker.failed(now + REST);
        assert_eq!(breaker.check(now + REST), Ok(()), "it begins anew");
    }
}
