//! How far a guest may go: memory, time for one call, size of what it returns.
//!
//! In come the operator's figures; out come what wasmtime asks while a guest runs, and the
//! bounds that `bindings` holds results against. Knows nothing of what a call is about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{self as config, Config, PluginSettings};
use pointsman_contract::names::PluginName;
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::engine::TICK;
use super::grace::Grace;

/// Largest file that is loaded.
pub const FILE_MAX_BYTES: usize = 64 << 20;

/// All that one call may hand to the host, in its result or to one import.
pub const OUTPUT_MAX_BYTES: usize = 16 << 20;

/// Headers in one refusal, in one `placed`, or wanted.
pub const HEADERS_MAX: usize = 64;

/// The body of a refusal.
pub const REFUSAL_BODY_MAX_BYTES: usize = 64 << 10;

/// Messages in one verdict.
pub const REPLIES_MAX: usize = 4096;

/// Backends in one ranking.
pub const RANKED_MAX: usize = 65_536;

/// A URL in a redirect.
pub const LOCATION_MAX_BYTES: usize = 8 << 10;

/// A call is stopped when so many times its timeout have passed on the wall clock, however little of
/// that it ran.
/// On a machine that has ten times as much to do as it can, calls of twenty milliseconds took more than 200.
const WALL_CLOCK_FACTOR: u64 = 50;

/// An HTTP handler has so many times the call timeout for the head of an answer, unless the operator says
/// how long: it may wait for its client's body, and gives way to others at each tick.
const HEAD_FACTOR: u32 = 30;
const HEAD_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// As other servers give a peer that is silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Some runtimes make a pollable for each write and let go of none before the end: enough for bodies of some
/// 500 MB in pieces of 8 KiB, in 8 MB of memory.
const RESOURCES_MAX: usize = 65_536;
/// A call that may overrun is stopped at the latest when it has run so many times its timeout past it.
const OVERRUN_FACTOR: u64 = 4;

const TABLE_ELEMENTS_MAX: usize = 100_000;
const TABLES_MAX: usize = 64;
const MEMORIES_MAX: usize = 16;
const CORE_INSTANCES_MAX: usize = 64;

/// What the operator allows each instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For one call.
    pub call_timeout: Duration,
    /// Over all memories of one instance.
    pub memory_max_bytes: usize,
    /// Of an HTTP handler.
    pub http: HttpLimits,
}

/// What the operator allows an HTTP handler with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// From the request to the head of the answer; and of its own running between two parts of the body.
    pub head_timeout: Duration,
    /// Of silence between two parts of the answer.
    pub idle_timeout: Duration,
    /// Held at a time.
    pub max_resources: usize,
}

/// What the operator allows the instances of each plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllLimits {
    usual: Limits,
    own: BTreeMap<PluginName, Limits>,
    compile_timeout: Duration,
}

impl AllLimits {
    /// Taken from `[plugins]`, and from each `[plugin.NAME]` that says otherwise.
    pub fn new(config: &Config) -> Self {
        let usual = Limits::new(&config.plugins);
        let own = |(name, settings): (&PluginName, &PluginSettings)| {
            let own = usual.with(&config.plugins, settings);
            (own != usual).then(|| (name.clone(), own))
        };
        Self {
            usual,
            own: config.plugin.iter().filter_map(own).collect(),
            compile_timeout: config.plugins.compile_timeout,
        }
    }

    /// For one file.
    pub(super) fn compile_timeout(&self) -> Duration {
        self.compile_timeout
    }

    /// Of one plugin.
    pub fn of(&self, plugin: &PluginName) -> Limits {
        self.own.get(plugin).copied().unwrap_or(self.usual)
    }
}

/// The same for every plugin.
impl From<Limits> for AllLimits {
    fn from(usual: Limits) -> Self {
        Self {
            usual,
            own: BTreeMap::new(),
            compile_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// Taken from `[plugins]`.
    pub fn new(settings: &config::Plugins) -> Self {
        Self {
            call_timeout: settings.call_timeout,
            memory_max_bytes: settings.memory_max_bytes,
            http: HttpLimits::new(settings.http, settings.call_timeout),
        }
    }

    /// What one plugin is allowed, where `[plugins]` says `usual`.
    fn with(&self, usual: &config::Plugins, own: &PluginSettings) -> Self {
        let call_timeout = own.call_timeout.unwrap_or(self.call_timeout);
        let http = config::HttpLimitsConfig {
            head_timeout: own.http.head_timeout.or(usual.http.head_timeout),
            idle_timeout: own.http.idle_timeout.or(usual.http.idle_timeout),
            max_resources: own.http.max_resources.or(usual.http.max_resources),
        };
        Self {
            call_timeout,
            memory_max_bytes: own.memory_max_bytes.unwrap_or(self.memory_max_bytes),
            http: HttpLimits::new(http, call_timeout),
        }
    }

    /// What one call may hand over: never more than the instance could hold itself.
    pub(super) fn output_max_bytes(&self) -> usize {
        self.memory_max_bytes.min(OUTPUT_MAX_BYTES)
    }

    /// The longest message that a guest is called with: room for it, for one copy, and for the rest
    /// of the guest. An allocation that fails would take the whole instance along.
    pub fn message_max_bytes(&self) -> usize {
        self.memory_max_bytes / 3
    }
}

impl HttpLimits {
    /// What is not written has its default.
    pub fn new(written: config::HttpLimitsConfig, call_timeout: Duration) -> Self {
        let head = || (call_timeout * HEAD_FACTOR).max(HEAD_TIMEOUT_MIN);
        Self {
            head_timeout: written.head_timeout.unwrap_or_else(head),
            idle_timeout: written.idle_timeout.unwrap_or(IDLE_TIMEOUT),
            max_resources: written.max_resources.unwrap_or(RESOURCES_MAX),
        }
    }
}

/// Nanoseconds since an arbitrary moment.
pub(super) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Nanoseconds that this thread has run.
pub(super) fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Stops a call that runs too long.
///
/// A busy machine may take the processor away in the midst of a call of one microsecond, which is
/// not the guest's doing. So the wall clock only arms the watch, at half the timeout; from then on
/// the thread's own time counts, up to the other half. On an idle machine that is the timeout.
///
/// A call that may overrun is stopped later, as far as the worker has [`Grace`] for it: stopping it is a
/// trap, which takes every session of the instance along.
#[derive(Debug)]
pub(super) struct CallWatch {
    timeout_ns: u64,
    grace: Arc<Grace>,
    started_ns: u64,
    /// The thread's time when half the timeout was over.
    armed_at_cpu_ns: Option<u64>,
    may_overrun: bool,
    /// How much of its overrun has been charged.
    charged_ns: u64,
}

impl CallWatch {
    /// `grace`: the worker's.
    pub(super) fn new(limits: &Limits, grace: Arc<Grace>) -> Self {
        Self {
            timeout_ns: limits
                .call_timeout
                .as_nanos()
                .try_into()
                .unwrap_or(u64::MAX),
            grace,
            started_ns: 0,
            armed_at_cpu_ns: None,
            may_overrun: false,
            charged_ns: 0,
        }
    }

    /// A call begins: the number of ticks until [`CallWatch::expired`] is to be asked.
    pub(super) fn begin(&mut self, now_ns: u64, may_overrun: bool) -> u64 {
        self.started_ns = now_ns;
        self.armed_at_cpu_ns = None;
        self.may_overrun = may_overrun;
        self.charged_ns = 0;
        (self.timeout_ns / 2 / TICK.as_nanos() as u64).max(1)
    }

    /// The ticks are over. The first time never ends the call: the processor may have been away for
    /// longer than any bound.
    pub(super) fn expired(&mut self) -> UpdateDeadline {
        let cpu_ns = thread_cpu_ns();
        let now_ns = monotonic_ns();
        let wall_ns = now_ns.saturating_sub(self.started_ns);
        let Some(armed_at) = self.armed_at_cpu_ns else {
            // The ticker had not counted on when the call began.
            let early_ns = (self.timeout_ns / 2).saturating_sub(wall_ns);
            if early_ns > 0 {
                return UpdateDeadline::Continue(early_ns.div_ceil(TICK.as_nanos() as u64));
            }
            self.armed_at_cpu_ns = Some(cpu_ns);
            return UpdateDeadline::Continue(1);
        };
        if wall_ns >= self.timeout_ns.saturating_mul(WALL_CLOCK_FACTOR) {
            return UpdateDeadline::Interrupt;
        }
        let ran_ns = cpu_ns.saturating_sub(armed_at);
        match ran_ns.checked_sub(self.timeout_ns / 2) {
            None => UpdateDeadline::Continue(1),
            Some(over_ns) if self.may_go_on(over_ns, now_ns) => UpdateDeadline::Continue(1),
            Some(_) => UpdateDeadline::Interrupt,
        }
    }

    /// The call has come back. True: past its time.
    pub(super) fn end(&mut self) -> bool {
        let Some(armed_at) = self.armed_at_cpu_ns.filter(|_| self.may_overrun) else {
            return false;
        };
        let ran_ns = thread_cpu_ns().saturating_sub(armed_at);
        let Some(over_ns) = ran_ns.checked_sub(self.timeout_ns / 2) else {
            return false;
        };
        self.charge(over_ns, monotonic_ns());
        true
    }

    fn may_go_on(&mut self, over_ns: u64, now_ns: u64) -> bool {
        if !self.may_overrun || over_ns >= self.timeout_ns.saturating_mul(OVERRUN_FACTOR) {
            return false;
        }
        self.charge(over_ns, now_ns)
    }

    /// False: no grace is left.
    fn charge(&mut self, over_ns: u64, now_ns: u64) -> bool {
        let charged_ns = std::mem::replace(&mut self.charged_ns, over_ns);
        self.grace
            .charge(over_ns.saturating_sub(charged_ns), now_ns)
    }
}

/// Refuses what would not fit.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    max_bytes: usize,
    used_bytes: usize,
    was_refused: bool,
}

impl MemoryLimit {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            max_bytes: limits.memory_max_bytes,
            used_bytes: 0,
            was_refused: false,
        }
    }

    /// What its memories hold, over all of them.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Whether memory has been refused since this was last asked.
    pub(super) fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.was_refused)
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown = self
            .used_bytes
            .saturating_add(desired.saturating_sub(current));
        if grown > self.max_bytes {
            self.was_refused = true;
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.used_bytes = grown;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let is_refused = desired > TABLE_ELEMENTS_MAX;
        self.was_refused |= is_refused;
        Ok(!is_refused && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(call_timeout_ms: u64) -> Limits {
        Limits {
            call_timeout: Duration::from_millis(call_timeout_ms),
            memory_max_bytes: 1 << 20,
            http: HttpLimits::new(config::HttpLimitsConfig::default(), Duration::ZERO),
        }
    }

    fn watch(timeout_ms: u64) -> CallWatch {
        let grace = Arc::new(Grace::new(monotonic_ns()));
        CallWatch::new(&limits(timeout_ms), grace)
    }

    /// Keeps this thread busy for so long.
    fn run(milliseconds: u64) {
        let until_ns = thread_cpu_ns() + milliseconds * 1_000_000;
        while thread_cpu_ns() < until_ns {}
    }

    /// A call that began half its timeout ago.
    fn begin(watch: &mut CallWatch, may_overrun: bool) {
        let now_ns = monotonic_ns();
        watch.begin(now_ns.saturating_sub(watch.timeout_ns / 2), may_overrun);
    }

    fn goes_on(watch: &mut CallWatch) -> bool {
        matches!(watch.expired(), UpdateDeadline::Continue(1))
    }

    #[test]
    fn what_one_plugin_is_not_allowed_otherwise_is_as_all_are() {
        let read = |lines: &str| {
            let text = format!(
                "{lines}\n[[listener]]\nbind = '127.0.0.1:0'\n[[route]]\npath = '/'\nhttp = 'hello'"
            );
            let config = Config::from_toml(&text, std::path::Path::new("")).unwrap();
            let limits = AllLimits::new(&config).of(&PluginName::parse("hello").unwrap());
            let HttpLimits {
                head_timeout,
                idle_timeout,
                max_resources,
            } = limits.http;
            (
                head_timeout.as_millis(),
                idle_timeout.as_millis(),
                max_resources,
            )
        };
        assert_eq!(read(""), (1000, 60_000, 65_536));
        assert_eq!(read("plugins.call_timeout_ms = 100").0, 3000);
        assert_eq!(read("plugin.hello.call_timeout_ms = 100").0, 3000);
        let all = "plugins.http_head_timeout_ms = 7\nplugins.http_max_resources = 300\n";
        assert_eq!(read(all), (7, 60_000, 300));
        let own = format!(
            "{all}plugin.hello.http_head_timeout_ms = 8\nplugin.hello.http_idle_timeout_ms = 9"
        );
        assert_eq!(read(&own), (8, 9, 300));
    }

    #[test]
    fn the_watch_is_armed_at_half_the_timeout() {
        let check = |timeout_ms, ticks| {
            assert_eq!(watch(timeout_ms).begin(0, false), ticks, "{timeout_ms} ms");
        };
        check(1, 1);
        check(2, 1);
        check(10, 5);
        check(10_000, 5_000);
    }

    #[test]
    fn a_call_that_did_not_run_is_given_more_time_until_the_wall_clock_ends_it() {
        let mut watch = watch(10_000);
        begin(&mut watch, false);
        assert!(goes_on(&mut watch) && goes_on(&mut watch));
        assert!(!watch.end());
        watch.begin(monotonic_ns().saturating_sub(500_000_000_000), true);
        assert!(goes_on(&mut watch));
        assert!(!goes_on(&mut watch));
    }

    #[test]
    fn ticks_that_were_due_before_the_call_do_not_arm_the_watch() {
        let mut watch = watch(10_000);
        watch.begin(monotonic_ns(), false);
        let UpdateDeadline::Continue(ticks) = watch.expired() else {
            panic!("a call was ended that had just begun");
        };
        assert!((4_000..=5_000).contains(&ticks), "{ticks}");
        assert!(watch.armed_at_cpu_ns.is_none());
    }

    #[test]
    fn a_call_that_may_overrun_has_five_times_its_timeout_while_there_is_grace() {
        let mut watch = watch(10);
        for may_overrun in [true, false] {
            begin(&mut watch, may_overrun);
            assert!(goes_on(&mut watch));
            run(6);
            assert_eq!(goes_on(&mut watch), may_overrun);
            assert_eq!(watch.end(), may_overrun);
        }
        begin(&mut watch, true);
        assert!(goes_on(&mut watch));
        run(5 + 40);
        assert!(!goes_on(&mut watch), "five times");
        while watch.grace.charge(1_000_000, monotonic_ns()) {}
        begin(&mut watch, true);
        assert!(goes_on(&mut watch));
        run(6);
        assert!(!goes_on(&mut watch), "no grace is left");
    }

    #[test]
    fn memories_share_one_bound() {
        let mut limit = MemoryLimit::new(&limits(10));
        assert!(limit.memory_growing(0, 600_000, None).unwrap());
        assert!(!limit.memory_growing(0, 600_000, None).unwrap());
        assert!(limit.take_refused());
        assert!(!limit.take_refused());
        assert!(limit.memory_growing(600_000, 1_000_000, None).unwrap());
    }
}
