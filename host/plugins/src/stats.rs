//! What the calls of guests cost and how they failed: counters that each worker owns, read by the
//! metrics page.
//!
//! A worker writes its own counters only, so a count is a load and a store and no line of cache is
//! contended. Readers may see a call half counted.

use std::sync::atomic::{AtomicU64, Ordering};

use pointsman_contract::message::Message;
use pointsman_contract::names::PluginName;
use pointsman_contract::{filter, handler};

use super::call::Call;
use super::failure::CallError;

/// Upper bounds of the buckets, in nanoseconds. What took longer is in none of them.
pub const BUCKETS_NS: [u64; 16] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];

/// The kinds of failures that are counted, in the order of [`CallFigures::failures`].
pub const FAILURE_KINDS: [&str; 4] = ["timeout", "memory", "trap", "output"];

/// What filters and handlers say of messages, in the order of [`PluginFigures::verdicts`].
pub const VERDICTS: [&str; 8] = [
    "forward", "replace", "drop", "answer", "ignore", "echo", "reply", "close",
];

/// What a failed call for a session ended, in the order of [`PluginFigures::session_failures`].
pub const FAILURE_SCOPES: [&str; 2] = ["session", "instance"];

/// What became of handshakes of penalized clients, in the order of [`PluginFigures::penalties`].
pub const PENALTIES: [&str; 2] = ["delayed", "rejected"];

/// What becomes of a handshake of a client for whom a call has failed lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Penalty {
    /// It waits.
    Delayed,
    /// It is answered with a 429.
    Rejected,
}

/// The counters of one plugin on one worker, which alone writes them.
#[derive(Debug)]
pub(super) struct PluginStats {
    pub(super) plugin: PluginName,
    pub(super) worker: usize,
    n_instances: AtomicU64,
    memory_bytes: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    verdicts: [AtomicU64; VERDICTS.len()],
    session_failures: [AtomicU64; FAILURE_SCOPES.len()],
    sessions_lost: AtomicU64,
    penalties: [AtomicU64; PENALTIES.len()],
    calls: [CallCounters; Call::ALL.len()],
}

#[derive(Debug, Default)]
struct CallCounters {
    n_calls: AtomicU64,
    sum_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS_NS.len()],
    failures: [AtomicU64; FAILURE_KINDS.len()],
}

impl PluginStats {
    pub(super) fn new(plugin: PluginName, worker: usize) -> Self {
        Self {
            plugin,
            worker,
            n_instances: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            verdicts: Default::default(),
            session_failures: Default::default(),
            sessions_lost: AtomicU64::new(0),
            penalties: Default::default(),
            calls: Default::default(),
        }
    }

    /// A call has returned.
    pub(super) fn record(&self, call: Call, took_ns: u64) {
        let counters = &self.calls[call as usize];
        add(&counters.n_calls, 1);
        add(&counters.sum_ns, took_ns);
        let place = BUCKETS_NS.partition_point(|&bound| bound < took_ns);
        if let Some(bucket) = counters.buckets.get(place) {
            add(bucket, 1);
        }
    }

    /// The call that has returned failed.
    pub(super) fn record_failure(&self, call: Call, error: &CallError) {
        let place = FAILURE_KINDS.iter().position(|&kind| kind == error.kind());
        if let Some(counter) = place.and_then(|place| self.calls[call as usize].failures.get(place))
        {
            add(counter, 1);
        }
    }

    /// A call for a session failed. `n_lost`: how many others its instance took along; none: it lives on.
    pub(super) fn session_failed(&self, n_lost: Option<usize>) {
        add(&self.session_failures[usize::from(n_lost.is_some())], 1);
        add(&self.sessions_lost, n_lost.unwrap_or_default() as u64);
    }

    /// A client that is penalized has asked for a session.
    pub(super) fn penalized(&self, penalty: Penalty) {
        add(&self.penalties[penalty as usize], 1);
    }

    /// A session was shown a message.
    pub(super) fn shown(&self, n_bytes: usize) {
        add(&self.bytes_in, n_bytes as u64);
    }

    /// What passes on without a copy counts as nothing that came out.
    pub(super) fn filter_verdict(&self, verdict: &filter::FilterVerdict) {
        let (place, out) = match verdict {
            filter::FilterVerdict::Forward => (0, 0),
            filter::FilterVerdict::Replace(message) => (1, message.payload.len()),
            filter::FilterVerdict::Drop => (2, 0),
            filter::FilterVerdict::Answer(messages) => (3, n_bytes(messages)),
            filter::FilterVerdict::Close(_) => (7, 0),
        };
        self.verdict(place, out);
    }

    pub(super) fn handler_verdict(&self, verdict: &handler::HandlerVerdict) {
        let (place, out) = match verdict {
            handler::HandlerVerdict::Ignore => (4, 0),
            handler::HandlerVerdict::Echo => (5, 0),
            handler::HandlerVerdict::Reply(messages) => (6, n_bytes(messages)),
            handler::HandlerVerdict::Close(_) => (7, 0),
        };
        self.verdict(place, out);
    }

    fn verdict(&self, place: usize, out: usize) {
        add(&self.verdicts[place], 1);
        add(&self.bytes_out, out as u64);
    }

    /// An instance's memory has another size.
    pub(super) fn memory_changed(&self, before: usize, now: usize) {
        add(&self.memory_bytes, (now as u64).wrapping_sub(before as u64));
    }

    pub(super) fn instance_made(&self) {
        add(&self.n_instances, 1);
    }

    pub(super) fn instance_gone(&self) {
        add(&self.n_instances, 1_u64.wrapping_neg());
    }
}

fn n_bytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.payload.len()).sum()
}

/// Relaxed and not atomic as a whole: only the owner writes.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// What is known of one plugin, over all workers.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginFigures {
    /// Which.
    pub plugin: PluginName,
    /// Instances alive.
    pub n_instances: u64,
    /// Linear memory of those, but for what answers HTTP.
    pub memory_bytes: u64,
    /// Payload of the messages that its sessions were shown.
    pub bytes_in: u64,
    /// Payload of the messages that they returned.
    pub bytes_out: u64,
    /// By [`VERDICTS`].
    pub verdicts: [u64; VERDICTS.len()],
    /// Calls for one session that failed, by [`FAILURE_SCOPES`].
    pub session_failures: [u64; FAILURE_SCOPES.len()],
    /// Sessions that ended because a call for another one took their instance.
    pub sessions_lost: u64,
    /// Handshakes of clients for whom a call had failed, by [`PENALTIES`].
    pub penalties: [u64; PENALTIES.len()],
    /// Sessions open at its handler or filter.
    pub n_sessions: u64,
    /// Messages that a full queue did not take, and closes that one did not.
    pub dropped_messages: u64,
    /// Lines that were over the bound of 100 a second.
    pub dropped_log_lines: u64,
    /// What it keeps in the shared store, overhead included.
    pub store_bytes: u64,
    /// The calls that were made at least once.
    pub calls: Vec<(Call, CallFigures)>,
    /// What it counted by the `metrics` import, by name.
    pub counts: Vec<(String, u64)>,
    /// What it last said by the `metrics` import, by name.
    pub gauges: Vec<(String, f64)>,
}

/// How one call of one plugin went, over all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallFigures {
    /// Calls that returned or failed.
    pub n_calls: u64,
    /// Their duration.
    pub sum_ns: u64,
    /// By [`BUCKETS_NS`]; not cumulative.
    pub buckets: [u64; BUCKETS_NS.len()],
    /// By [`FAILURE_KINDS`].
    pub failures: [u64; FAILURE_KINDS.len()],
}

/// What the workers of one plugin add up to.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) n_instances: u64,
    pub(super) memory_bytes: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) verdicts: [u64; VERDICTS.len()],
    pub(super) session_failures: [u64; FAILURE_SCOPES.len()],
    pub(super) sessions_lost: u64,
    pub(super) penalties: [u64; PENALTIES.len()],
    /// Those that were made.
    pub(super) calls: Vec<(Call, CallFigures)>,
}

/// Adds up the workers of one plugin.
pub(super) fn sum<'a>(workers: impl Iterator<Item = &'a PluginStats>) -> Sum {
    let mut sum = Sum::default();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut figures: [CallFigures; Call::ALL.len()] = Default::default();
    for stats in workers {
        sum.n_instances = sum.n_instances.wrapping_add(read(&stats.n_instances));
        sum.memory_bytes = sum.memory_bytes.wrapping_add(read(&stats.memory_bytes));
        sum.bytes_in += read(&stats.bytes_in);
        sum.bytes_out += read(&stats.bytes_out);
        sum.sessions_lost += read(&stats.sessions_lost);
        add_all(&mut sum.verdicts, &stats.verdicts);
        add_all(&mut sum.session_failures, &stats.session_failures);
        add_all(&mut sum.penalties, &stats.penalties);
        for (sum, counters) in figures.iter_mut().zip(&stats.calls) {
            sum.add(counters);
        }
    }
    let was_made = |(_, figures): &(Call, CallFigures)| figures.n_calls > 0;
    sum.calls = Call::ALL
        .into_iter()
        .zip(figures)
        .filter(was_made)
        .collect();
    sum
}

impl CallFigures {
    fn add(&mut self, counters: &CallCounters) {
        self.n_calls += counters.n_calls.load(Ordering::Relaxed);
        self.sum_ns += counters.sum_ns.load(Ordering::Relaxed);
        add_all(&mut self.buckets, &counters.buckets);
        add_all(&mut self.failures, &counters.failures);
    }
}

fn add_all(sums: &mut [u64], counters: &[AtomicU64]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_are_added_up_over_workers() {
        let name = PluginName::parse("echo").unwrap();
        let [first, second] = [0, 1].map(|worker| PluginStats::new(name.clone(), worker));
        first.record(Call::Choose, 1_000);
        first.record(Call::Choose, 1_001);
        second.record(Call::Choose, 200_000_000);
        let timeout = Duration::from_millis(10);
        second.record_failure(
            Call::Choose,
            &CallError::Timeout {
                call: Call::Choose,
                timeout,
            },
        );
        first.instance_made();
        second.instance_made();
        second.instance_gone();

        let Sum {
            n_instances, calls, ..
        } = sum([&first, &second].into_iter());
        assert_eq!(n_instances, 1);
        let [(Call::Choose, figures)] = calls.as_slice() else {
            panic!("{calls:?}")
        };
        assert_eq!((figures.n_calls, figures.sum_ns), (3, 200_002_001));
        assert_eq!(figures.buckets[..3], [1, 1, 0]);
        assert_eq!(figures.buckets.iter().sum::<u64>(), 2);
        assert_eq!(figures.failures, [1, 0, 0, 0]);
    }

    #[test]
    fn calls_are_numbered_in_the_order_of_all() {
        for (place, call) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, place);
        }
    }
}
