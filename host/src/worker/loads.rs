//! How many connections each worker has, and who should have the next.
//!
//! The only thing that workers share. It is written once per connection, not per byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many connections each worker has, those on their way to it included.
#[derive(Debug)]
pub struct Loads(Vec<Load>);

/// On a cache line of its own: each is written at the pace of connections, by its worker mostly.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load(AtomicUsize);

/// A worker gives connections on when it has more than the least loaded has, by this many and by a
/// sixteenth of that. Below, the luck of the kernel's hash is cheaper than the hand-over.
const MAX_LEAD: usize = 4;

impl Loads {
    /// All zeros.
    pub fn new(n_workers: usize) -> Self {
        Self((0..n_workers).map(|_| Load::default()).collect())
    }

    pub(super) fn total(&self) -> usize {
        self.0.iter().map(|load| load.0.load(Relaxed)).sum()
    }

    /// Who should have the next connection of worker `own`.
    pub(super) fn best(&self, own: usize) -> usize {
        let loads = || self.0.iter().map(|load| load.0.load(Relaxed)).enumerate();
        let lead = |least: usize| least + least / 16 + MAX_LEAD;
        match loads().min_by_key(|&(_, load)| load) {
            Some((other, least)) if self.0[own].0.load(Relaxed) >= lead(least) => other,
            Some(_) | None => own,
        }
    }

    pub(super) fn slot(self: &Arc<Self>, worker: usize) -> Slot {
        self.0[worker].0.fetch_add(1, Relaxed);
        Slot {
            loads: Arc::clone(self),
            worker,
        }
    }
}

/// A connection's place among the loads; dropping it frees it.
#[derive(Debug)]
pub(super) struct Slot {
    loads: Arc<Loads>,
    worker: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.loads.0[self.worker].0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_well_above_the_least_loaded_gives_on() {
        let loads = Arc::new(Loads::new(2));
        let mut slots: Vec<_> = (0..MAX_LEAD).map(|_| loads.slot(0)).collect();
        assert_eq!((loads.best(0), loads.best(1)), (1, 1));
        slots.pop();
        assert_eq!(loads.best(0), 0);
    }

    #[test]
    fn a_thousand_connections_of_one_worker_are_spread_evenly() {
        let loads = Arc::new(Loads::new(2));
        let slots: Vec<_> = (0..1000).map(|_| loads.slot(loads.best(0))).collect();
        assert_eq!(loads.total(), slots.len());
        let largest = loads.0.iter().map(|load| load.0.load(Relaxed)).max();
        assert!(largest <= Some(575), "{largest:?} of 500 on average");
    }
}
