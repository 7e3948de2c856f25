//! How much may be tried again: retries are to help a request, and not to double the load on
//! backends that are down already.
//!
//! As in Finagle's retry budget: every request pays in a part of a retry, every retry takes one out,
//! and some are free in each second so that a quiet upstream has retries too.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};

use tokio::time::Instant;

use crate::environment::Environment;

/// Free retries in each second.
const FREE_PER_SEC: u64 = 10;
/// What a retry costs; a request pays in `retry_budget_percent`.
const PRICE: i64 = 100;
/// So many retries can be saved up.
const MAX_SAVED: i64 = 1000 * PRICE;

/// The account of one upstream, over all workers and snapshots.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    environment: Environment,
    born: Instant,
    saved: AtomicI64,
    /// The second in the upper half, what was free in it and is taken in the lower.
    free_taken: AtomicU64,
}

impl RetryBudget {
    /// Nothing is saved.
    pub(crate) fn new(environment: &Environment) -> Self {
        Self {
            environment: environment.clone(),
            born: environment.now(),
            saved: AtomicI64::new(0),
            free_taken: AtomicU64::new(0),
        }
    }

    /// A request has come.
    pub(crate) fn pay_in(&self, percent: u32) {
        let saved = self.saved.load(Relaxed);
        if saved < MAX_SAVED {
            self.saved.fetch_add(i64::from(percent), Relaxed);
        }
    }

    /// Takes one retry; false: there is none left.
    pub(crate) fn take(&self) -> bool {
        let take = |saved: i64| (saved >= PRICE).then_some(saved - PRICE);
        self.saved.fetch_update(Relaxed, Relaxed, take).is_ok() || self.take_free()
    }

    fn take_free(&self) -> bool {
        let second = (self.environment.now() - self.born).as_secs();
        let take = |free_taken: u64| {
            let taken = match free_taken >> 32 == second {
                true => free_taken & u64::from(u32::MAX),
                false => 0,
            };
            (taken < FREE_PER_SEC).then_some(second << 32 | (taken + 1))
        };
        self.free_taken.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_pay_for_retries_and_some_are_free() {
        let budget = RetryBudget::new(&Environment::System);
        let take_all = || (0..10_000).filter(|_| budget.take()).count();
        assert_eq!(take_all(), 10, "free ones");
        for _ in 0..100 {
            budget.pay_in(20);
        }
        assert_eq!(take_all(), 20);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(take_all(), 10);
        for _ in 0..1_000_000 {
            budget.pay_in(20);
        }
        assert_eq!(take_all(), 1000, "more are not saved up");
    }
}
