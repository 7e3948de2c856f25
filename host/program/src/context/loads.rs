//! How many connections each worker has, and who should have the next; and how many sessions there are.
//!
//! What workers share. It is written once per connection and session, not per byte.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// How many connections each worker has, those on their way to it included, and the sessions of all.
#[derive(Debug)]
pub(crate) struct Loads {
    workers: Vec<Load>,
    sessions: AtomicU64,
}

/// On a cache line of its own: each is written at the pace of connections, by its worker mostly.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load(AtomicUsize);

/// A worker gives connections on when it has more than the least loaded has, by this many and by a
/// sixteenth of that. Below, the luck of the kernel's hash is cheaper than the hand-over.
const MAX_LEAD: usize = 4;

impl Loads {
    /// All zeros.
    pub(crate) fn new(n_workers: usize) -> Self {
        Self {
            workers: (0..n_workers).map(|_| Load::default()).collect(),
            sessions: AtomicU64::new(0),
        }
    }

    pub(crate) fn n_workers(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn total(&self) -> usize {
        self.workers.iter().map(|load| load.0.load(Relaxed)).sum()
    }

    /// Who should have the next connection of worker `own`.
    pub(crate) fn best(&self, own: usize) -> usize {
        let loads = || {
            self.workers
                .iter()
                .map(|load| load.0.load(Relaxed))
                .enumerate()
        };
        let lead = |least: usize| least + least / 16 + MAX_LEAD;
        match loads().min_by_key(|&(_, load)| load) {
            Some((other, least)) if self.workers[own].0.load(Relaxed) >= lead(least) => other,
            Some(_) | None => own,
        }
    }

    /// One more session, unless there are `max` already. None: any number.
    pub(crate) fn session(self: &Arc<Self>, max: Option<u64>) -> Option<SessionSlot> {
        let before = self.sessions.fetch_add(1, Relaxed);
        let slot = SessionSlot(Arc::clone(self));
        max.is_none_or(|max| before < max).then_some(slot)
    }

    pub(crate) fn slot(self: &Arc<Self>, worker: usize) -> LoadSlot {
        self.workers[worker].0.fetch_add(1, Relaxed);
        LoadSlot {
            loads: Arc::clone(self),
            worker,
        }
    }
}

/// One session, from its request to its end: dropping it counts it out.
#[derive(Debug)]
pub(crate) struct SessionSlot(Arc<Loads>);

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }
}

/// A connection's place among the loads; dropping it frees it.
#[derive(Debug)]
pub(crate) struct LoadSlot {
    loads: Arc<Loads>,
    worker: usize,
}

impl Drop for LoadSlot {
    fn drop(&mut self) {
        self.loads.workers[self.worker].0.fetch_sub(1, Relaxed);
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
    fn sessions_are_bounded_and_who_found_no_room_takes_none() {
        let loads = Arc::new(Loads::new(1));
        let first = loads.session(Some(1));
        assert!(first.is_some() && loads.session(Some(1)).is_none());
        drop(first);
        assert!(loads.session(Some(1)).is_some() && loads.session(None).is_some());
        assert_eq!(loads.sessions.load(Relaxed), 0);
    }

    #[test]
    fn a_thousand_connections_of_one_worker_are_spread_evenly() {
        let loads = Arc::new(Loads::new(2));
        let slots: Vec<_> = (0..1000).map(|_| loads.slot(loads.best(0))).collect();
        assert_eq!(loads.total(), slots.len());
        let largest = loads.workers.iter().map(|load| load.0.load(Relaxed)).max();
        assert!(largest <= Some(575), "{largest:?} of 500 on average");
    }
}
