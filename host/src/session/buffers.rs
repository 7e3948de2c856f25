//! Where a worker's sessions read to, and how much they hold of what they have read.
//!
//! Each session is bounded by itself; this bounds them together. The nearer they come to what the
//! operator allows (`overload.max_buffered_bytes`), the less is read at a time, so that the relays that
//! are stuck hold less each. A session that assembles messages cannot be helped so: past the bound, those
//! that hold much are ended.

use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;

use crate::admin::metrics::WorkerCounters;
use crate::messages::deflate::{Compressors, windows_in};

/// As large as the largest read that pays: at 64 KiB a system call's fixed cost is a few percent of
/// the copy.
const SCRATCH_BYTES: usize = 256 * 1024;
/// From half of what is allowed on.
const TIGHT_BYTES: usize = 16 * 1024;
/// From all of it on. With it, memory grows by no more than this for each direction of a session.
const FULL_BYTES: usize = 4 * 1024;
/// What a session may hold of a message in any case.
const FAIR_BYTES: usize = 64 * 1024;

/// The buffers of one worker's sessions.
#[derive(Debug)]
pub struct Buffers {
    scratch: RefCell<Box<[u8]>>,
    max_held: Cell<usize>,
    /// What compresses for the worker's sessions.
    pub compressors: Compressors,
    /// What of `counters` that holds.
    n_compressors: Cell<usize>,
    /// How much is held is one of its figures.
    counters: Arc<WorkerCounters>,
}

/// What one session holds.
#[derive(Debug)]
pub(super) struct Held {
    buffers: Rc<Buffers>,
    n_bytes: usize,
}

impl Buffers {
    /// `counters`: the worker's.
    pub fn new(counters: Arc<WorkerCounters>) -> Self {
        Self {
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
            max_held: Cell::new(usize::MAX),
            compressors: Compressors::default(),
            n_compressors: Cell::new(0),
            counters,
        }
    }

    /// All of the worker's sessions together may hold so much from now on.
    pub fn allow(&self, max_held: usize) {
        self.max_held.set(max_held);
        self.compressors.allow(windows_in(max_held / 8));
    }

    /// For each sweep: lets go of what was not used, and counts what was.
    pub fn sweep(&self) {
        self.compressors.age();
        let now = self.compressors.n_held();
        let held = &self.counters.buffered_bytes;
        held.add(now as u64);
        held.sub(self.n_compressors.replace(now) as u64);
    }

    /// Where to read to, one session at a time, during a poll only; not as long as it could be while
    /// much is held.
    pub(super) fn scratch(&self) -> RefMut<'_, [u8]> {
        let room = match self.n_held() {
            held if held < self.max_held.get() / 2 => SCRATCH_BYTES,
            held if held < self.max_held.get() => TIGHT_BYTES,
            _ => FULL_BYTES,
        };
        RefMut::map(self.scratch.borrow_mut(), |scratch| &mut scratch[..room])
    }

    /// Whether so much is held that large reads do not pay any more.
    pub(super) fn are_tight(&self) -> bool {
        self.n_held() >= self.max_held.get() / 2
    }

    fn n_held(&self) -> usize {
        usize::try_from(self.counters.buffered_bytes.value()).unwrap_or(usize::MAX)
    }
}

impl Held {
    /// Nothing yet.
    pub(super) fn new(buffers: Rc<Buffers>) -> Self {
        Self {
            buffers,
            n_bytes: 0,
        }
    }

    pub(super) fn buffers(&self) -> &Rc<Buffers> {
        &self.buffers
    }

    /// The session holds so much now.
    pub(super) fn set(&mut self, n_bytes: usize) {
        if n_bytes == self.n_bytes {
            return;
        }
        let held = &self.buffers.counters.buffered_bytes;
        held.add(n_bytes as u64);
        held.sub(self.n_bytes as u64);
        self.n_bytes = n_bytes;
    }

    /// Whether a session that holds so much of a message has to go.
    pub(super) fn is_too_much(&self, of_message: usize) -> bool {
        of_message > FAIR_BYTES && self.buffers.n_held() > self.buffers.max_held.get()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_is_held_the_less_is_read_at_a_time() {
        let counters = Arc::<WorkerCounters>::default();
        let buffers = Rc::new(Buffers::new(Arc::clone(&counters)));
        buffers.allow(1000);
        let mut held = [0; 3].map(|_| Held::new(Rc::clone(&buffers)));
        let mut rooms = vec![buffers.scratch().len()];
        for one in &mut held {
            one.set(400);
            rooms.push(buffers.scratch().len());
        }
        let expected = [SCRATCH_BYTES, SCRATCH_BYTES, TIGHT_BYTES, FULL_BYTES];
        assert_eq!(rooms, expected);
        assert!(held[0].is_too_much(FAIR_BYTES + 1) && !held[0].is_too_much(FAIR_BYTES));
        held[0].set(0);
        assert!(!held[0].is_too_much(FAIR_BYTES + 1) && buffers.are_tight());
        drop(held);
        assert_eq!(counters.buffered_bytes.value(), 0);
    }
}
