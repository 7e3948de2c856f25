//! One signal for the whole process: stop taking, finish, by when.
//!
//! The control plane gives it once; workers and connections each hold a receiver.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Of the drain time, the part over which Close frames are spread: the rest is for answers.
const SPREAD_PERCENT: u32 = 80;

/// The receiving end. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Drain(watch::Receiver<Option<DrainPlan>>);

/// The giving end. Dropping it counts as an order to be gone at once.
#[derive(Debug)]
pub(crate) struct Drainer(watch::Sender<Option<DrainPlan>>);

/// By when what has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DrainPlan {
    /// When it was asked for.
    pub begun: Instant,
    /// When every session has been sent its Close.
    pub told_by: Instant,
    /// When what is left is cut.
    pub cut_at: Instant,
}

/// A signal that has not been given.
pub(crate) fn channel() -> (Drainer, Drain) {
    let (sender, receiver) = watch::channel(None);
    (Drainer(sender), Drain(receiver))
}

impl Drainer {
    /// Gives the signal. All is over by `timeout` from now. A second call can only hasten it.
    pub(crate) fn start(&self, timeout: Duration) {
        let plan = DrainPlan::within(timeout);
        self.0.send_if_modified(|before| {
            let hastens = before.is_none_or(|before| plan.cut_at < before.cut_at);
            if hastens {
                *before = Some(plan);
            }
            hastens
        });
    }
}

impl Drain {
    /// Whether the signal has been given.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits for the signal.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn started(&mut self) -> DrainPlan {
        match self.0.wait_for(Option::is_some).await.map(|plan| *plan) {
            Ok(Some(plan)) => plan,
            Ok(None) | Err(_) => {
                let now = Instant::now();
                DrainPlan {
                    begun: now,
                    told_by: now,
                    cut_at: now,
                }
            }
        }
    }

    /// Waits until what is left is to be cut, however often that is brought forward.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn cut(&mut self) {
        loop {
            let plan = self.started().await;
            tokio::select! {
                () = tokio::time::sleep_until(plan.cut_at) => return,
                changed = self.0.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl DrainPlan {
    /// Begins now, and is over after `timeout`.
    pub(crate) fn within(timeout: Duration) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            told_by: begun + timeout * SPREAD_PERCENT / 100,
            cut_at: begun + timeout,
        }
    }

    /// When to tell number `i` of `n`: the first at once, the last at `told_by`.
    pub(crate) fn turn(&self, i: usize, n: usize) -> Instant {
        let share = |whole: Duration| whole.mul_f64(i as f64 / n.saturating_sub(1).max(1) as f64);
        self.begun + share(self.told_by - self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_spread_and_the_cut_can_be_hastened() {
        let (drainer, mut drain) = channel();
        drainer.start(Duration::from_secs(10));
        let plan = drain.started().await;
        let turns: Vec<_> = (0..5)
            .map(|i| (plan.turn(i, 5) - plan.begun).as_secs())
            .collect();
        assert_eq!(turns, [0, 2, 4, 6, 8]);
        assert_eq!(plan.turn(0, 1), plan.begun);
        drainer.start(Duration::from_secs(60));
        assert_eq!(drain.started().await, plan);
        drainer.start(Duration::ZERO);
        drain.cut().await;
        assert!(plan.begun.elapsed() < Duration::from_secs(5));
    }
}
