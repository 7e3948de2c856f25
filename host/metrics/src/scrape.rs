//! The figures that others own and bring along when the page is requested.

use std::time::SystemTime;

use crate::labels::ProblemKind;

/// The figures that other rooms own, as they are at this moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape {
    /// One per backend of every upstream.
    pub backends: Vec<BackendSample>,
    /// One per upstream.
    pub upstreams: Vec<UpstreamSample>,
    /// One per plugin that is loaded.
    pub plugins: Vec<PluginSample>,
    /// One per plugin of which there has been an instance.
    pub usage: Vec<UsageSample>,
    /// One per plugin and kind of call.
    pub calls: Vec<CallSample>,
    /// Plugin, kind of failure, how many since the start. Zeros are shown, so give every kind.
    pub failures: Vec<(String, String, u64)>,
    /// What plugins count themselves: plugin, name, value.
    pub guest_counts: Vec<(String, String, u64)>,
    /// What plugins measure themselves: plugin, name, value.
    pub guest_gauges: Vec<(String, String, f64)>,
    /// Lines of the access log that were lost since the start.
    pub access_log_dropped: u64,
    /// Likewise of the error log.
    pub error_log_dropped: u64,
    /// How many there are of each kind, in the order of [`ProblemKind::ALL`].
    pub problems: [u64; ProblemKind::ALL.len()],
    /// What came of the configuration.
    pub config_reload: ConfigReload,
}

/// What came of reading the configuration last; the start counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigReload {
    /// It was applied, or was active already.
    pub is_successful: bool,
    /// When that was so last.
    pub succeeded_at: SystemTime,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSample {
    /// The upstream's name.
    pub upstream: String,
    /// The address as configured.
    pub backend: String,
    /// Whether it is offered to the policy, and the last dial did not fail.
    pub is_up: bool,
    /// Whether probes, where there are any, find it well.
    pub is_healthy: bool,
    /// Whether live traffic has put it out.
    pub is_ejected: bool,
    /// Whether the operator has taken it out.
    pub is_draining: bool,
    /// How often live traffic has put it out since the start.
    pub ejections: u64,
    /// Open sessions and plain requests under way.
    pub active: u64,
    /// Failed dials and handshakes since the start.
    pub failures: u64,
}

/// One upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSample {
    /// Its name.
    pub upstream: String,
    /// Requests that wait for room at a backend.
    pub waiting: u64,
    /// Requests that were tried at another backend, since the start.
    pub retries: u64,
}

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginSample {
    /// Its name.
    pub plugin: String,
    /// The generation that serves.
    pub generation: u64,
}

/// What one plugin holds and has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSample {
    /// Its name.
    pub plugin: String,
    /// Instances alive.
    pub instances: u64,
    /// Their linear memory.
    pub memory_bytes: u64,
    /// Sessions that they hold.
    pub sessions: u64,
    /// What is kept in the shared store.
    pub store_bytes: u64,
    /// Payload of the messages that sessions were shown.
    pub bytes_in: u64,
    /// Payload of the messages that they returned.
    pub bytes_out: u64,
    /// Messages that full queues lost.
    pub dropped_messages: u64,
    /// What was said of messages: verdict, how often. Zeros are left out.
    pub verdicts: Vec<(&'static str, u64)>,
    /// What calls for one session ended by failing: scope, how often.
    pub session_failures: Vec<(&'static str, u64)>,
    /// Sessions that ended with the instance that a call for another one took along.
    pub sessions_lost: u64,
    /// What became of handshakes of clients that the plugin had failed for: result, how often.
    pub penalties: Vec<(&'static str, u64)>,
}

/// How long the calls of one kind into one plugin took.
#[derive(Debug, Clone, PartialEq)]
pub struct CallSample {
    /// Its name.
    pub plugin: String,
    /// `choose`, `message`, ...
    pub call: String,
    /// Upper bound in seconds, and how many calls lie above the bound before it and not above this
    /// one (not cumulated). Calls past the last bound are in `count` alone.
    pub buckets: Vec<(f64, u64)>,
    /// Seconds, over all calls.
    pub sum: f64,
    /// Calls.
    pub count: u64,
}

/// As at the start.
impl Default for ConfigReload {
    fn default() -> Self {
        Self {
            is_successful: true,
            succeeded_at: SystemTime::now(),
        }
    }
}
