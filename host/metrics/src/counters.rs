//! What is counted, and by whom.
//!
//! Each worker writes cells of its own and nobody else writes them, so counting costs one load and
//! one store: no locked instruction, no line that two workers share. The sums are made when
//! somebody asks. Figures that other rooms own (backends, plugins) come in with a [`Scrape`](crate::scrape::Scrape) as
//! plain values, so this room knows neither. How it all looks on the wire is in `exposition.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::labels::{
    ABORTED_BY, Limit, REFUSED_STATUSES, ReloadKind, ReloadResult, STATUS_CLASSES, TargetKind,
    UpgradeResult,
};

/// All counters of this process. Made at start and passed in; a clone is another handle.
#[derive(Debug, Clone)]
pub struct Metrics {
    shared: Arc<MetricsShared>,
}

/// One cell that one thread writes and any thread reads.
///
/// [`Count::add`] and [`Count::sub`] are not atomic as a whole: only the owner may call them.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

/// What one worker counts. The worker writes; everybody else only reads.
// Aligned so that two workers never write the same pair of cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Connections taken on, since the start.
    pub connections_accepted: Count,
    /// Connections open now.
    pub connections_open: Count,
    /// Connections closed at once because of a bound on them, since the start.
    pub connections_refused: Count,
    /// Connections closed because too many had not asked for anything, since the start.
    pub handshakes_ended: Count,
    /// How long what is ready waits for the worker, as last seen, in nanoseconds.
    pub lag_ns: Count,
    /// What sessions hold of bytes that were read and not yet sent.
    pub buffered_bytes: Count,
    upgrades: [Count; UpgradeResult::ALL.len()],
    ended_by_limit: [Count; Limit::ALL.len()],
    requests_refused: [Count; REFUSED_STATUSES.len()],
    targets: Mutex<Vec<TargetCells>>,
}

/// What one worker counts for one upstream or plugin. "Up" is from the client, "down" is to it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TargetCounters {
    /// Open now.
    pub sessions: Count,
    /// Bytes of sessions after the handshake, framing included.
    pub bytes_up: Count,
    /// See `bytes_up`.
    pub bytes_down: Count,
    /// Whole data messages.
    pub messages_up: Count,
    /// See `messages_up`.
    pub messages_down: Count,
    requests: [Count; STATUS_CLASSES.len()],
    aborted: [Count; ABORTED_BY.len()],
}

/// What the sums over all workers are.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) connections_accepted: u64,
    pub(super) connections_open: u64,
    pub(super) connections_refused: u64,
    pub(super) handshakes_ended: u64,
    pub(super) buffered_bytes: u64,
    pub(super) upgrades: [u64; UpgradeResult::ALL.len()],
    /// In the order of [`Limit::ALL`].
    pub(super) ended_by_limit: [u64; Limit::ALL.len()],
    /// In the order of [`REFUSED_STATUSES`].
    pub(super) requests_refused: [u64; REFUSED_STATUSES.len()],
    /// By name: an upstream and a handler of one name share their series.
    pub(super) targets: BTreeMap<String, TargetTotals>,
    /// Worker, open sessions, and its lag in nanoseconds.
    pub(super) workers: Vec<(usize, u64, u64)>,
    /// In the order of [`ReloadKind::ALL`] and [`ReloadResult::ALL`].
    pub(super) reloads: [[u64; ReloadResult::ALL.len()]; ReloadKind::ALL.len()],
}

/// The sums for one name.
#[derive(Debug, Default)]
pub(super) struct TargetTotals {
    pub(super) has_sessions: bool,
    pub(super) has_requests: bool,
    pub(super) sessions: u64,
    pub(super) bytes: [u64; 2],
    pub(super) messages: [u64; 2],
    pub(super) requests: [u64; STATUS_CLASSES.len()],
    pub(super) aborted: [u64; ABORTED_BY.len()],
}

/// What one worker has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLoad {
    /// WebSockets.
    pub sessions: u64,
    /// Those that carry a session included.
    pub connections: u64,
}

#[derive(Debug)]
struct MetricsShared {
    started: SystemTime,
    /// A worker that is made again keeps its cells, so that a sum never falls.
    workers: Mutex<BTreeMap<usize, Arc<WorkerCounters>>>,
    reloads: [[Count; ReloadResult::ALL.len()]; ReloadKind::ALL.len()],
}

#[derive(Debug)]
struct TargetCells {
    kind: TargetKind,
    name: String,
    counters: Arc<TargetCounters>,
}

impl Count {
    /// Called by the owner only.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Called by the owner only.
    pub fn add(&self, n: u64) {
        self.0
            .store(self.value().wrapping_add(n), Ordering::Relaxed);
    }

    /// Called by the owner only. Stops at 0.
    pub fn sub(&self, n: u64) {
        debug_assert!(n <= self.value(), "more is taken away than was added");
        self.0
            .store(self.value().saturating_sub(n), Ordering::Relaxed);
    }

    /// Called by anybody.
    pub fn value(&self) -> u64 {
        // Relaxed: a sum over cells needs no order between them, and one cell never runs backwards.
        self.0.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// All zeros; the process counts as started now.
    #[expect(
        clippy::new_without_default,
        reason = "the moment of the call is part of the value"
    )]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(MetricsShared {
                started: SystemTime::now(),
                workers: Mutex::default(),
                reloads: Default::default(),
            }),
        }
    }

    /// The cells of one worker, made when they are first asked for.
    pub fn worker(&self, index: usize) -> Arc<WorkerCounters> {
        Arc::clone(locked(&self.shared.workers).entry(index).or_default())
    }

    /// Written by the control thread alone.
    pub fn reloads(&self, kind: ReloadKind, result: ReloadResult) -> &Count {
        &self.shared.reloads[kind as usize][result as usize]
    }

    /// Open sessions over all workers.
    pub fn sessions(&self) -> u64 {
        locked(&self.shared.workers)
            .values()
            .map(|worker| worker.sessions())
            .sum()
    }

    /// What each worker has open, in their order.
    pub fn workers(&self) -> Vec<WorkerLoad> {
        let workers = locked(&self.shared.workers);
        let status = |worker: &Arc<WorkerCounters>| WorkerLoad {
            sessions: worker.sessions(),
            connections: worker.connections_open.value(),
        };
        workers.values().map(status).collect()
    }

    pub(crate) fn started(&self) -> SystemTime {
        self.shared.started
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (&index, worker) in locked(&self.shared.workers).iter() {
            worker.add_to(&mut totals);
            totals
                .workers
                .push((index, worker.sessions(), worker.lag_ns.value()));
        }
        for (row, cells) in totals.reloads.iter_mut().zip(&self.shared.reloads) {
            add_all(row, cells);
        }
        totals
    }
}

impl WorkerCounters {
    /// Called by the worker only.
    pub fn upgrade(&self, result: UpgradeResult) {
        self.upgrades[result as usize].add(1);
    }

    /// A session ends because of this limit. Called by the worker only.
    pub fn ended_by(&self, limit: Limit) {
        self.ended_by_limit[limit as usize].add(1);
    }

    /// A plain request that no route has a part in, or what was no request, was answered so. Called by the worker
    /// only.
    pub fn request_refused(&self, status: u16) {
        let is_it = |label: &&str| label.parse() == Ok(status);
        let cell = REFUSED_STATUSES.iter().position(is_it);
        self.requests_refused[cell.unwrap_or(REFUSED_STATUSES.len() - 1)].add(1);
    }

    /// The cells of one target, made when they are first asked for. Ask once and keep the handle:
    /// this takes a lock. Ask at start for every configured target, so that its series begin at 0.
    /// A target that leaves the configuration keeps its cells: counters must not fall.
    pub fn target(&self, kind: TargetKind, name: &str) -> Arc<TargetCounters> {
        let mut targets = locked(&self.targets);
        let known = targets
            .iter()
            .find(|target| target.kind == kind && target.name == name);
        if let Some(target) = known {
            return Arc::clone(&target.counters);
        }
        let counters = Arc::<TargetCounters>::default();
        targets.push(TargetCells {
            kind,
            name: name.to_owned(),
            counters: Arc::clone(&counters),
        });
        counters
    }

    /// Open sessions over all targets.
    pub fn sessions(&self) -> u64 {
        locked(&self.targets)
            .iter()
            .map(|target| target.counters.sessions.value())
            .sum()
    }

    fn add_to(&self, totals: &mut Totals) {
        totals.connections_accepted += self.connections_accepted.value();
        totals.connections_open += self.connections_open.value();
        totals.connections_refused += self.connections_refused.value();
        totals.handshakes_ended += self.handshakes_ended.value();
        totals.buffered_bytes += self.buffered_bytes.value();
        add_all(&mut totals.upgrades, &self.upgrades);
        add_all(&mut totals.ended_by_limit, &self.ended_by_limit);
        add_all(&mut totals.requests_refused, &self.requests_refused);
        for target in locked(&self.targets).iter() {
            let sums = totals.targets.entry(target.name.clone()).or_default();
            sums.has_sessions |= target.kind != TargetKind::Http;
            sums.has_requests |= target.kind != TargetKind::Handler;
            target.counters.add_to(sums);
        }
    }
}

impl TargetCounters {
    /// A plain HTTP request was answered so. Called by the worker only.
    pub fn request(&self, status: u16) {
        let class = usize::from(status / 100).checked_sub(2);
        if let Some(count) = class.and_then(|class| self.requests.get(class)) {
            count.add(1);
        }
    }

    /// A plain answer broke off; `by` is one of `client`, `backend`, `plugin` and `operator`; others do not count. Called by the worker only.
    pub fn aborted(&self, by: &str) {
        if let Some(cell) = ABORTED_BY.iter().position(|&one| one == by) {
            self.aborted[cell].add(1);
        }
    }

    fn add_to(&self, sums: &mut TargetTotals) {
        sums.sessions += self.sessions.value();
        sums.bytes[0] += self.bytes_up.value();
        sums.bytes[1] += self.bytes_down.value();
        sums.messages[0] += self.messages_up.value();
        sums.messages[1] += self.messages_down.value();
        add_all(&mut sums.requests, &self.requests);
        add_all(&mut sums.aborted, &self.aborted);
    }
}

fn add_all(sums: &mut [u64], cells: &[Count]) {
    for (sum, cell) in sums.iter_mut().zip(cells) {
        *sum += cell.value();
    }
}

/// Nothing is left half done under these locks, so a poisoned one is as good as any.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_stands_at_its_own_place() {
        for (place, result) in UpgradeResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place, "{}", result.label());
        }
        for (place, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, place);
        }
        for (place, kind) in ReloadKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
        for (place, result) in ReloadResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place);
        }
    }

    #[test]
    fn sums_run_over_all_workers() {
        let metrics = Metrics::new();
        for index in 0..3 {
            let worker = metrics.worker(index);
            worker.upgrade(UpgradeResult::Accepted);
            worker.connections_open.add(5);
            worker.connections_open.sub(1);
            worker
                .target(TargetKind::Upstream, "app")
                .sessions
                .add(index as u64);
        }
        let totals = metrics.totals();
        assert_eq!(totals.upgrades[UpgradeResult::Accepted as usize], 3);
        assert_eq!(totals.connections_open, 12);
        assert_eq!(totals.targets["app"].sessions, 3);
        assert_eq!(totals.workers, [(0, 0, 0), (1, 1, 0), (2, 2, 0)]);
        assert_eq!(metrics.sessions(), 3);
        assert_eq!(
            metrics.workers()[2],
            WorkerLoad {
                sessions: 2,
                connections: 4
            }
        );
    }

    #[test]
    fn the_same_cells_are_handed_out_again() {
        let worker = Metrics::new().worker(0);
        let first = worker.target(TargetKind::Handler, "echo");
        assert!(Arc::ptr_eq(
            &first,
            &worker.target(TargetKind::Handler, "echo")
        ));
        assert!(!Arc::ptr_eq(
            &first,
            &worker.target(TargetKind::Upstream, "echo")
        ));
    }

    #[test]
    fn requests_are_counted_by_the_class_of_their_status() {
        let counters = TargetCounters::default();
        for status in [101, 200, 204, 304, 404, 503, 599, 600, 0] {
            counters.request(status);
        }
        let by_class: Vec<u64> = counters.requests.iter().map(Count::value).collect();
        assert_eq!(by_class, [2, 1, 1, 2]);
    }

    #[test]
    fn answers_without_a_route_are_counted_by_status() {
        let worker = WorkerCounters::default();
        for status in [404, 400, 418, 404, 505] {
            worker.request_refused(status);
        }
        let by_status: Vec<u64> = worker.requests_refused.iter().map(Count::value).collect();
        assert_eq!(by_status, [1, 2, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn answers_that_broke_off_are_counted_by_whose_doing_it_was() {
        let counters = TargetCounters::default();
        for by in ["plugin", "client", "plugin", "host"] {
            counters.aborted(by);
        }
        let by: Vec<u64> = counters.aborted.iter().map(Count::value).collect();
        assert_eq!(by, [1, 0, 2, 0]);
    }

    #[test]
    fn one_thread_writes_while_another_reads() {
        let metrics = Metrics::new();
        let worker = metrics.worker(0);
        let writer = std::thread::spawn(move || {
            (0..100_000).for_each(|_| worker.connections_accepted.add(1))
        });
        let mut last = 0;
        while last < 100_000 {
            let seen = metrics.totals().connections_accepted;
            assert!(seen >= last);
            last = seen;
        }
        writer.join().unwrap();
    }
}
