//! Where a worker's sessions read to, and how much they hold of what they have read.
//!
//! Each session is bounded by itself; this bounds all of them together. The nearer they come to what the
//! operator allows (`overload.max_buffered_bytes`), the less is read at a time, so that the relays that
//! are stuck hold less each. A session that assembles messages cannot be helped so: when one wants more
//! than is allowed, those that hold most are ended ([`super::Sessions::shed`]).
//!
//! Every worker has an equal share. One that is past its share is held to it only while all together are
//! past the bound: what others leave is its own.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use pointsman_metrics::counters::WorkerCounters;
use pointsman_protocol::messages::deflate::{Compressors, windows_in};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::SessionControl;
use super::send_queue::{SendQueue, SendQueues};

/// As large as the largest read that pays: at 64 KiB a system call's fixed cost is a few percent of
/// the copy.
const SCRATCH_BYTES: usize = 256 * 1024;
/// From half of what is allowed on.
const TIGHT_BYTES: usize = 16 * 1024;
/// From all of it on. With it, memory grows by no more than this for each direction of a session.
const FULL_BYTES: usize = 4 * 1024;

/// The buffers of one worker's sessions.
#[derive(Debug)]
pub struct Buffers {
    scratch: RefCell<Box<[u8]>>,
    max_held: Cell<usize>,
    all: Arc<HeldByAll>,
    /// This worker's. How much is held is one of its figures.
    pub(super) counters: Arc<WorkerCounters>,
    /// What compresses for the worker's sessions.
    pub compressors: Compressors,
    /// What of `counters` that holds.
    n_compressors: Cell<usize>,
    /// For windows that clients may refer to, whether or not they hold anything yet.
    promised: Cell<usize>,
    /// A session here wants more than is allowed.
    short: Notify,
    /// What [`HeldByAll::n_short`] was when this worker last made room.
    seen_short: Cell<u64>,
    /// There was nobody to end when room was last looked for, and no sweep since.
    is_in_vain: Cell<bool>,
    /// Opened when it is first asked; none: it cannot be.
    send_queues: OnceCell<Option<SendQueues>>,
}

/// What the sessions of all workers hold.
#[derive(Debug)]
pub struct HeldByAll {
    workers: Vec<Arc<WorkerCounters>>,
    /// How often a session wanted more than is allowed: a worker past its share makes room for the
    /// sessions of others, too.
    n_short: AtomicU64,
}

/// What one session holds.
#[derive(Debug)]
pub(super) struct Held {
    buffers: Rc<Buffers>,
    control: Rc<SessionControl>,
}

/// Room for the window that one client may refer to; dropping it gives it back.
#[derive(Debug)]
pub struct WindowRoom {
    buffers: Rc<Buffers>,
    n_bytes: usize,
}

impl HeldByAll {
    /// `workers`: the counters of every worker.
    pub fn new(workers: Vec<Arc<WorkerCounters>>) -> Self {
        Self {
            workers,
            n_short: AtomicU64::new(0),
        }
    }

    fn n_bytes(&self) -> usize {
        self.workers.iter().map(|worker| held(worker)).sum()
    }
}

impl Buffers {
    /// `counters`: the worker's.
    pub fn new(counters: Arc<WorkerCounters>, all: Arc<HeldByAll>) -> Self {
        Self {
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
            max_held: Cell::new(usize::MAX),
            all,
            counters,
            compressors: Compressors::default(),
            n_compressors: Cell::new(0),
            promised: Cell::new(0),
            short: Notify::new(),
            seen_short: Cell::new(0),
            is_in_vain: Cell::new(false),
            send_queues: OnceCell::new(),
        }
    }

    /// What waits in the kernel for a peer; none: nothing is known.
    pub(super) fn send_queue(&self, stream: &TcpStream) -> Option<SendQueue> {
        let open = || {
            let opened = SendQueues::open();
            let warn = |error: &io::Error| {
                tracing::warn!(%error, "no netlink socket of sock_diag: of far ends that are pinged, only writes tell whether they read");
            };
            opened.inspect_err(warn).ok()
        };
        self.send_queues.get_or_init(open).as_ref()?.of(stream)
    }

    /// The sessions of all workers together may hold so much from now on.
    pub fn allow(&self, max_held: usize) {
        self.max_held.set(max_held);
        self.compressors.allow(windows_in(self.share(max_held) / 8));
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
        let max = self.max_held.get();
        let room = match self.n_over(max / 2) {
            0 => SCRATCH_BYTES,
            _ if self.n_over(max) == 0 => TIGHT_BYTES,
            _ => FULL_BYTES,
        };
        RefMut::map(self.scratch.borrow_mut(), |scratch| &mut scratch[..room])
    }

    /// Whether so much is held that large reads do not pay any more.
    pub(super) fn are_tight(&self) -> bool {
        self.n_over(self.max_held.get() / 2) > 0
    }

    /// Takes room for the window that a client may refer to. None: such windows could come to more than
    /// half of what is allowed, and the client should be asked to do without.
    pub fn window_room(self: &Rc<Self>, n_bytes: usize) -> Option<WindowRoom> {
        let promised = self.promised.get() + n_bytes;
        (promised <= self.share(self.max_held.get()) / 2).then(|| {
            self.promised.set(promised);
            WindowRoom {
                buffers: Rc::clone(self),
                n_bytes,
            }
        })
    }

    /// Waits until a session of this worker wants more than is allowed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn short(&self) {
        self.short.notified().await;
    }

    /// Whether some session wanted more than is allowed since this was last asked; for each sweep.
    pub fn was_short(&self) -> bool {
        self.is_in_vain.set(false);
        let n_short = self.all.n_short.load(Relaxed);
        self.seen_short.replace(n_short) != n_short
    }

    /// How much this worker's sessions hold too much.
    pub fn excess(&self) -> usize {
        self.n_over(self.max_held.get())
    }

    /// There was nobody to end: it is no use to look again before the next sweep.
    pub fn looked_in_vain(&self) {
        self.is_in_vain.set(true);
    }

    /// How far both this worker is over its share of `max`, and all together are over `max`.
    fn n_over(&self, max: usize) -> usize {
        match held(&self.counters).saturating_sub(self.share(max)) {
            0 => 0,
            over_share => over_share.min(self.all.n_bytes().saturating_sub(max)),
        }
    }

    fn share(&self, max: usize) -> usize {
        max / self.all.workers.len().max(1)
    }
}

fn held(worker: &WorkerCounters) -> usize {
    usize::try_from(worker.buffered_bytes.value()).unwrap_or(usize::MAX)
}

impl Held {
    /// Nothing yet.
    pub(super) fn new(buffers: Rc<Buffers>, control: &Rc<SessionControl>) -> Self {
        Self {
            buffers,
            control: Rc::clone(control),
        }
    }

    pub(super) fn buffers(&self) -> &Rc<Buffers> {
        &self.buffers
    }

    /// The session holds so much now, and would rather hold less than be ended.
    pub(super) fn set(&self, n_bytes: usize) {
        let before = self.control.held.replace(n_bytes);
        if n_bytes != before {
            let held = &self.buffers.counters.buffered_bytes;
            held.add(n_bytes as u64);
            held.sub(before as u64);
        }
    }

    /// The session holds so much now, and cannot do with less: if that is too much, those that hold most
    /// are ended.
    pub(super) fn demand(&self, n_bytes: usize) {
        let has_grown = n_bytes > self.control.held.get();
        self.set(n_bytes);
        let buffers = &*self.buffers;
        // A little is worth no look at what the other workers hold.
        if has_grown && n_bytes > FULL_BYTES && buffers.all.n_bytes() > buffers.max_held.get() {
            buffers.all.n_short.fetch_add(1, Relaxed);
            if !buffers.is_in_vain.get() {
                buffers.short.notify_one();
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Drop for WindowRoom {
    fn drop(&mut self) {
        let promised = &self.buffers.promised;
        promised.set(promised.get() - self.n_bytes);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::registered;
    use super::*;

    /// One for each worker, which may hold `max` bytes together.
    pub(in super::super) fn buffers<const N: usize>(max: usize) -> [Rc<Buffers>; N] {
        let counters: Vec<_> = (0..N).map(|_| Arc::<WorkerCounters>::default()).collect();
        let all = Arc::new(HeldByAll::new(counters.clone()));
        std::array::from_fn(|i| {
            let buffers = Buffers::new(Arc::clone(&counters[i]), Arc::clone(&all));
            buffers.allow(max);
            Rc::new(buffers)
        })
    }

    fn is_short(buffers: &Buffers) -> bool {
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(buffers.short()).poll(cx).is_ready()
    }

    #[test]
    fn the_more_is_held_the_less_is_read_at_a_time() {
        let [buffers] = buffers(1000);
        let held = [0; 3].map(|_| Held::new(Rc::clone(&buffers), &registered(None).1.control));
        let mut rooms = vec![buffers.scratch().len()];
        for one in &held {
            one.set(400);
            rooms.push(buffers.scratch().len());
        }
        let expected = [SCRATCH_BYTES, SCRATCH_BYTES, TIGHT_BYTES, FULL_BYTES];
        assert_eq!(rooms, expected);
        assert_eq!(buffers.excess(), 200);
        held[0].set(0);
        assert!(buffers.excess() == 0 && buffers.are_tight());
        drop(held);
        assert_eq!(buffers.counters.buffered_bytes.value(), 0);
    }

    #[test]
    fn a_worker_past_its_share_has_what_others_leave() {
        let [here, there] = buffers(1000);
        let held = |buffers: &Rc<Buffers>, n| {
            let held = Held::new(Rc::clone(buffers), &registered(None).1.control);
            held.set(n);
            held
        };
        let _mine = held(&here, 900);
        assert_eq!((here.excess(), there.excess()), (0, 0));
        let others = held(&there, 300);
        // The other worker is within its share: it is not there that somebody has to go.
        assert_eq!((here.excess(), there.excess()), (200, 0));
        others.set(600);
        assert_eq!((here.excess(), there.excess()), (400, 100));
        assert_eq!(there.scratch().len(), FULL_BYTES);
    }

    #[test]
    fn those_who_cannot_do_with_less_have_room_made_on_every_worker() {
        let [here, there] = buffers(100_000);
        let relay = Held::new(Rc::clone(&here), &registered(None).1.control);
        relay.set(200_000);
        assert!(!is_short(&here), "a relay can do with less");
        assert!(!here.was_short() && !there.was_short());
        let message = Held::new(Rc::clone(&there), &registered(None).1.control);
        message.demand(FULL_BYTES);
        assert!(!is_short(&there), "so little is allowed to all");
        message.demand(FULL_BYTES + 1);
        assert!(is_short(&there) && here.was_short() && !here.was_short());
        message.demand(FULL_BYTES);
        assert!(!is_short(&there), "it holds less than before");

        there.looked_in_vain();
        message.demand(FULL_BYTES + 1);
        assert!(!is_short(&there), "it was looked in vain");
        there.was_short();
        message.demand(FULL_BYTES + 2);
        assert!(is_short(&there), "but not since the sweep");
    }

    #[test]
    fn windows_of_clients_come_to_half_of_what_is_allowed() {
        let [buffers, _] = buffers(400);
        let first = buffers.window_room(60);
        assert!(first.is_some() && buffers.window_room(60).is_none());
        let second = buffers.window_room(40);
        assert!(second.is_some() && buffers.window_room(1).is_none());
        assert!(buffers.window_room(0).is_some(), "none is asked for");
        drop(first);
        assert!(buffers.window_room(60).is_some());
    }
}
