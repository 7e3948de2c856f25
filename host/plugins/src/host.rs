//! What a worker brings along when it makes an instance: who it is, the limits, the shares of all
//! plugins, its counters, and the way to tell the control plane of a failure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_contract::names::PluginName;
use tokio::sync::mpsc;

use super::engine::CallMark;
use super::failure::Failure;
use super::grace::Grace;
use super::limits::{AllLimits, Limits, monotonic_ns};
use super::share::PluginShared;
use super::stats::{self, Penalty, PluginFigures, PluginStats};

/// A worker's leave to make instances. The control plane makes one for each worker.
#[derive(Debug, Clone)]
pub struct PluginHost {
    worker: usize,
    /// The worker's.
    grace: Arc<Grace>,
    /// Likewise.
    mark: Arc<CallMark>,
    plugins: Arc<Shares>,
    /// None in trials, whose failures are answered to the caller.
    failures: Option<mpsc::Sender<Failure>>,
}

/// Reads what is known of all plugins.
#[derive(Debug, Clone)]
pub struct StatsReader(Arc<Shares>);

/// Locked when an instance is made and when the metrics page is read, never for a call.
#[derive(Debug)]
pub(super) struct Shares {
    limits: Mutex<AllLimits>,
    shares: Mutex<BTreeMap<PluginName, Arc<PluginShared>>>,
    stats: Mutex<Vec<Arc<PluginStats>>>,
}

impl PluginHost {
    pub(super) fn new(
        worker: usize,
        plugins: Arc<Shares>,
        failures: mpsc::Sender<Failure>,
    ) -> Self {
        let failures = Some(failures);
        Self {
            worker,
            grace: Arc::new(Grace::new(monotonic_ns())),
            mark: Arc::default(),
            plugins,
            failures,
        }
    }

    /// For a trial: its store, sessions, values and failures are its own and are forgotten.
    pub fn for_trial(limits: Limits) -> Self {
        Self {
            worker: usize::MAX,
            grace: Arc::new(Grace::new(monotonic_ns())),
            mark: Arc::default(),
            plugins: Arc::new(Shares::new(limits.into())),
            failures: None,
        }
    }

    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    pub(super) fn grace(&self) -> Arc<Grace> {
        Arc::clone(&self.grace)
    }

    /// Of the thread that its instances run on.
    pub(super) fn mark(&self) -> &Arc<CallMark> {
        &self.mark
    }

    pub(super) fn limits(&self, plugin: &PluginName) -> Limits {
        let limits = self.plugins.limits.lock();
        limits.unwrap_or_else(PoisonError::into_inner).of(plugin)
    }

    pub(super) fn share(&self, plugin: &PluginName) -> Arc<PluginShared> {
        let mut shares = self
            .plugins
            .shares
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let share = shares
            .entry(plugin.clone())
            .or_insert_with(|| Arc::new(PluginShared::new(plugin.clone())));
        Arc::clone(share)
    }

    /// This worker's counters for the plugin; the same ones each time.
    pub(super) fn stats(&self, plugin: &PluginName) -> Arc<PluginStats> {
        let mut all = self
            .plugins
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_ours =
            |stats: &&Arc<PluginStats>| stats.worker == self.worker && stats.plugin == *plugin;
        if let Some(stats) = all.iter().find(is_ours) {
            return Arc::clone(stats);
        }
        let stats = Arc::new(PluginStats::new(plugin.clone(), self.worker));
        all.push(Arc::clone(&stats));
        stats
    }

    /// Counts a handshake of a client for whom a call of this plugin has failed lately.
    pub fn penalized(&self, plugin: &PluginName, penalty: Penalty) {
        self.stats(plugin).penalized(penalty);
    }

    /// Tells the control plane. When its queue is full it has been told often enough.
    pub(super) fn report(&self, failure: Failure) {
        if let Some(failures) = &self.failures {
            let _ = failures.try_send(failure);
        }
    }
}

impl Shares {
    pub(super) fn new(limits: AllLimits) -> Self {
        Self {
            limits: Mutex::new(limits),
            shares: Mutex::default(),
            stats: Mutex::default(),
        }
    }

    /// For instances made from now on.
    pub(super) fn compile_timeout(&self) -> Duration {
        let limits = self.limits.lock();
        limits
            .unwrap_or_else(PoisonError::into_inner)
            .compile_timeout()
    }

    pub(super) fn set_limits(&self, limits: AllLimits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }
}

impl StatsReader {
    pub(super) fn new(plugins: Arc<Shares>) -> Self {
        Self(plugins)
    }

    /// All plugins of which there has ever been an instance, by name.
    pub fn read(&self) -> Vec<PluginFigures> {
        let shares = self
            .0
            .shares
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let stats = self
            .0
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        shares
            .values()
            .map(|share| figures(share, &stats))
            .collect()
    }
}

fn figures(share: &PluginShared, stats: &[Arc<PluginStats>]) -> PluginFigures {
    let workers = stats
        .iter()
        .map(Arc::as_ref)
        .filter(|stats| stats.plugin == share.plugin);
    let sum = stats::sum(workers);
    let store = share.store.lock().unwrap_or_else(PoisonError::into_inner);
    PluginFigures {
        plugin: share.plugin.clone(),
        n_instances: sum.n_instances,
        memory_bytes: sum.memory_bytes,
        bytes_in: sum.bytes_in,
        bytes_out: sum.bytes_out,
        verdicts: sum.verdicts,
        session_failures: sum.session_failures,
        sessions_lost: sum.sessions_lost,
        penalties: sum.penalties,
        n_sessions: share.topics.n_sessions(),
        dropped_messages: share.topics.n_dropped(),
        dropped_log_lines: share.log.n_dropped(),
        store_bytes: store.used_bytes() as u64,
        calls: sum.calls,
        counts: share.counts(),
        gauges: share.gauges(),
    }
}
