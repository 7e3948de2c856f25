//! The backends of one upstream, and what is known of each.
//!
//! A [`Pool`] is a snapshot: the set never changes, a reload or a discovery publishes another. What
//! is known of a backend outlives snapshots: one that keeps its address keeps it.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_config::{self as config, UpstreamName};
use pointsman_contract::policy;
use tokio::time::Instant;

use super::budget::RetryBudget;
use super::dial::Destination;
use super::fitness::{ConnectTrial, Fitness, HealthChange, HealthState};
use super::queue::Queue;
use super::tls::Tls;
use crate::environment::Environment;

/// The backends of one upstream at one time.
#[derive(Debug)]
pub struct Pool {
    /// What the operator wrote.
    pub config: config::Upstream,
    /// In the order written or found.
    pub backends: Vec<Arc<Backend>>,
    /// How they are connected to; none: as it is.
    pub tls: Option<Arc<Tls>>,
    /// When this set was made.
    pub since: SystemTime,
    shared: Arc<PoolShared>,
}

/// What an upstream has over all workers and snapshots.
#[derive(Debug)]
struct PoolShared {
    environment: Environment,
    /// Counts choices.
    sequence: AtomicU64,
    queue: Arc<Queue>,
    budget: RetryBudget,
    retries: AtomicU64,
    /// Held while one is put out, so that two workers together do not put out too many.
    ejecting: Mutex<()>,
    budget_told: Seldom,
    own_fault_told: Seldom,
}

/// One backend.
#[derive(Debug)]
pub struct Backend {
    /// What the operator wrote, or discovery found.
    pub config: config::BackendConfig,
    state: Arc<State>,
}

/// What is known of one backend over all snapshots.
#[derive(Debug)]
struct State {
    environment: Environment,
    figures: LiveFigures,
    fitness: Fitness,
    trouble: Trouble,
    /// Plain answers that did not come in time.
    late_told: Seldom,
    upstream: UpstreamName,
    /// Of its upstream.
    queue: Arc<Queue>,
}

/// What the log has been told of a backend: once when it begins to fail, once when it answers again.
#[derive(Debug)]
struct Trouble {
    is_told: AtomicBool,
    told: Seldom,
}

/// Lets one line through now and then, over all workers.
#[derive(Debug)]
struct Seldom {
    born: Instant,
    /// In milliseconds since `born`, plus 1; 0: never.
    last: AtomicU64,
}

/// Written by all workers at the pace of handshakes, never of bytes.
#[derive(Debug)]
struct LiveFigures {
    environment: Environment,
    born: Instant,
    active: AtomicU32,
    pending: AtomicU32,
    /// `active` and `pending` together: what `max_sessions` bounds.
    taken: AtomicU32,
    failures: AtomicU64,
    /// Failures since the last success.
    failures_in_a_row: AtomicU32,
    /// When the first of them was, in milliseconds since 1970.
    failing_since_ms: AtomicU64,
    latency_us: AtomicU32,
    /// Failures by second, modulo [`WINDOW_SECS`]: the second in the upper half, the count in the lower.
    recent: [AtomicU64; WINDOW_SECS as usize],
}

/// "Recently" in [`policy::Figures::recent_failures`].
const WINDOW_SECS: u32 = 10;
/// Between two lines of the log that say the same of one upstream or backend: one that fails and answers by
/// turns is named as often.
const TOLD_AGAIN: Duration = Duration::from_secs(10);
/// Weight of the newest sample in the moving average: 1/8, as in TCP's estimate (RFC 6298 section 2).
const LATENCY_SHIFT: u32 = 3;

/// Which backends may be chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Those that are fit, backups aside.
    Primaries,
    /// Backups that are fit: no other can take a session.
    Backups,
    /// Too few are fit: all but backups, fit or not.
    Panic,
    /// None is fit: everyone.
    Everyone,
}

/// Which of a tier's backends a policy is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownBackends {
    /// Those that are fit.
    Fit,
    /// Also those that are out for a moment: whoever ranks by a key would move keys each time.
    Lasting,
}

/// What a backend has failed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendFailure {
    /// It could not be connected to.
    Unreachable,
    /// It hung up, answered with a failure of its own, or said what is no answer.
    BadAnswer,
    /// The answer to an upgrade did not come in time.
    LateUpgrade,
    /// The head of a plain answer did not come in time: that proves nothing, as with a long poll.
    LateAnswer,
}

/// How long a backend is out.
#[derive(Debug)]
pub enum Ejected {
    /// So long.
    For(Duration),
    /// Until it can be connected to, as whoever gets this finds out.
    UntilReached(ConnectTrial),
}

/// Nobody can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoBackend {
    /// All have their `max_sessions`: waiting may help.
    Full,
    /// There is none, or all are draining.
    None,
}

impl Pool {
    /// Makes a snapshot of these backends; `before` is the one that it takes the place of, and then its
    /// environment counts.
    pub fn new(
        environment: &Environment,
        config: config::Upstream,
        backends: &[config::BackendConfig],
        tls: Option<Arc<Tls>>,
        before: Option<&Self>,
    ) -> Self {
        let known: HashMap<&str, &Arc<Backend>> = before
            .iter()
            .flat_map(|pool| &pool.backends)
            .map(|backend| (backend.address(), backend))
            .collect();
        let shared = match before {
            Some(pool) => Arc::clone(&pool.shared),
            None => Arc::new(PoolShared::new(environment)),
        };
        let environment = &shared.environment;
        let fitness = || match before {
            Some(_) => Fitness::newcomer(environment),
            None => Fitness::new(environment),
        };
        let upstream = &config.name;
        let backend = |config: &config::BackendConfig| match known.get(config.address.as_str()) {
            Some(&same) if same.config == *config => Arc::clone(same),
            Some(other) => Arc::new(Backend {
                config: config.clone(),
                state: Arc::clone(&other.state),
            }),
            None => Arc::new(Backend {
                config: config.clone(),
                state: Arc::new(State {
                    environment: environment.clone(),
                    figures: LiveFigures::new(environment),
                    fitness: fitness(),
                    trouble: Trouble::new(environment),
                    late_told: Seldom::new(environment),
                    upstream: upstream.clone(),
                    queue: Arc::clone(&shared.queue),
                }),
            }),
        };
        let backends = backends.iter().map(backend).collect();
        Self {
            backends,
            config,
            tls,
            since: environment.system_time(),
            shared,
        }
    }

    /// Whether a snapshot of these would be the same.
    pub fn is_same(
        &self,
        config: &config::Upstream,
        backends: &[config::BackendConfig],
        tls: Option<&Arc<Tls>>,
    ) -> bool {
        self.config == *config
            && self.backends.iter().map(|b| &b.config).eq(backends)
            && self.tls.as_ref() == tls
    }

    /// Where its time and chance come from.
    pub fn environment(&self) -> &Environment {
        &self.shared.environment
    }

    fn now(&self) -> Instant {
        self.shared.environment.now()
    }

    /// Whether this is one of its backends, by whatever snapshot.
    pub fn has(&self, backend: &Backend) -> bool {
        let mut backends = self.backends.iter();
        backends.any(|own| Arc::ptr_eq(&own.state, &backend.state))
    }

    /// How to reach one of its backends.
    pub fn way_to<'a>(&'a self, backend: &'a Backend) -> Destination<'a> {
        Destination {
            address: backend.address(),
            tls: self.tls.as_ref(),
        }
    }

    /// The number of this choice: 0, 1, 2 and so on over all workers.
    pub fn next_sequence(&self) -> u64 {
        self.shared.sequence.fetch_add(1, Relaxed)
    }

    /// Those who wait for room.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.shared.queue
    }

    /// A request has come, and pays for retries.
    pub fn request_begins(&self) {
        self.shared.budget.pay_in(self.config.retry_budget_percent);
    }

    /// Whether another backend may be tried; it counts as tried then.
    pub fn may_retry(&self) -> bool {
        let may = self.shared.budget.take();
        self.shared.retries.fetch_add(may.into(), Relaxed);
        if !may && self.shared.budget_told.is_due(self.now()) {
            tracing::warn!(upstream = %self.config.name, "the retry budget is used up");
        }
        may
    }

    /// A backend was not dialled for want of something on this machine.
    pub fn not_dialled(&self, backend: &Backend, reason: &str) {
        if self.shared.own_fault_told.is_due(self.now()) {
            tracing::warn!(upstream = %self.config.name, backend = backend.address(), reason, "no connection can be made");
        }
    }

    /// Requests that were tried at another backend, since the start.
    pub fn retries(&self) -> u64 {
        self.shared.retries.load(Relaxed)
    }

    /// Whether any backend is fit and not taken out.
    pub fn has_fit_backend(&self, now: Instant) -> bool {
        let mut backends = self.backends.iter();
        backends.any(|backend| !backend.config.is_draining && backend.is_fit(now))
    }

    /// Who may be chosen at this moment.
    ///
    /// # Errors
    /// See [`NoBackend`].
    pub fn tier(&self, now: Instant) -> Result<Tier, NoBackend> {
        #[derive(Default)]
        struct TierCount {
            all: usize,
            with_room: usize,
            fit: usize,
            fit_with_room: usize,
        }
        let (mut primaries, mut backups) = (TierCount::default(), TierCount::default());
        for backend in self.backends.iter().filter(|b| !b.config.is_draining) {
            let count = match backend.config.is_backup {
                true => &mut backups,
                false => &mut primaries,
            };
            let (is_fit, has_room) = (backend.is_fit(now), backend.has_room());
            count.all += 1;
            count.with_room += usize::from(has_room);
            count.fit += usize::from(is_fit);
            count.fit_with_room += usize::from(is_fit && has_room);
        }
        let threshold = self.config.panic_threshold_percent as usize;
        let is_panic = primaries.fit * 100 < primaries.all * threshold;
        let room_if = |n: usize, tier: Tier| (n > 0).then_some(tier).ok_or(NoBackend::Full);
        if primaries.all + backups.all == 0 {
            Err(NoBackend::None)
        } else if primaries.fit + backups.fit == 0 {
            room_if(primaries.with_room + backups.with_room, Tier::Everyone)
        } else if is_panic && primaries.with_room > 0 {
            Ok(Tier::Panic)
        } else if primaries.fit_with_room > 0 {
            Ok(Tier::Primaries)
        } else {
            room_if(backups.fit_with_room, Tier::Backups)
        }
    }

    /// The backends of a tier that have room, each with its weight; where backends start slowly, all
    /// weights are ten times as large, always, so that policies which count by weight see
    /// nobody change but who does.
    pub fn eligible(
        &self,
        tier: Tier,
        shown: ShownBackends,
        now: Instant,
    ) -> impl Iterator<Item = (&Arc<Backend>, u32)> {
        let is_fit = move |backend: &Backend| {
            backend.is_fit(now) || (shown == ShownBackends::Lasting && backend.is_unreachable())
        };
        let ramp = move |backend: &Backend| backend.state.fitness.ramp(self.config.slow_start, now);
        let is_in = move |backend: &&Arc<Backend>| {
            let is_backup = backend.config.is_backup;
            let belongs = match tier {
                Tier::Primaries => !is_backup && is_fit(backend),
                Tier::Backups => is_backup && is_fit(backend),
                Tier::Panic => !is_backup,
                Tier::Everyone => true,
            };
            belongs && !backend.config.is_draining && backend.has_room()
        };
        let scale = move |backend: &Backend| match self.config.slow_start.is_zero() {
            true => 1,
            false => ramp(backend),
        };
        let all = self.backends.iter().filter(is_in);
        all.map(move |backend| (backend, backend.config.weight * scale(backend)))
    }

    /// A backend did not answer a dial or a request as it should. Says for how long that puts it out, if it does.
    pub fn failed(
        &self,
        backend: &Backend,
        failure: BackendFailure,
        reason: &str,
    ) -> Option<Ejected> {
        let now = self.now();
        let State {
            figures,
            trouble,
            late_told,
            ..
        } = &*backend.state;
        let ejection = self.config.ejection.as_ref();
        let is_late = match failure {
            BackendFailure::LateUpgrade | BackendFailure::LateAnswer => true,
            BackendFailure::Unreachable | BackendFailure::BadAnswer => false,
        };
        let counts = !is_late || ejection.is_some_and(|ejection| ejection.eject_on_timeout);
        let is_told = match counts || failure != BackendFailure::LateAnswer {
            true => {
                backend.failed();
                trouble.begins(now)
            }
            false => {
                figures.failures.fetch_add(1, Relaxed);
                late_told.is_due(now)
            }
        };
        if is_told {
            let message = match is_late {
                true => "backend timed out",
                false => "backend failed",
            };
            tracing::warn!(upstream = %self.config.name, backend = backend.address(), reason, "{message}");
        }
        match (ejection, failure) {
            (Some(ejection), _) if counts => self.eject(backend, ejection, reason, now),
            (None, BackendFailure::Unreachable) => self.eject_unreachable(backend, reason, now),
            _ => None,
        }
    }

    /// Puts out one that cannot be connected to, unless no other could take its place.
    fn eject_unreachable(&self, backend: &Backend, reason: &str, now: Instant) -> Option<Ejected> {
        let _one_at_a_time = self.one_at_a_time();
        let mut others = self.backends.iter().filter(|other| {
            !Arc::ptr_eq(&other.state, &backend.state) && !other.config.is_draining
        });
        let is_last = !others.any(|other| other.is_fit(now));
        let fitness = &backend.state.fitness;
        if is_last {
            return None;
        }
        let trial = fitness.eject_unreachable(reason.to_owned(), now)?;
        tracing::debug!(upstream = %self.config.name, backend = backend.address(), reason, "backend unreachable");
        Some(Ejected::UntilReached(trial))
    }

    fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        let ejecting = self.shared.ejecting.lock();
        ejecting.unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts out one that has failed too often.
    fn eject(
        &self,
        backend: &Backend,
        config: &config::Ejection,
        reason: &str,
        now: Instant,
    ) -> Option<Ejected> {
        let fitness = &backend.state.fitness;
        if !fitness.note_failure(config, now) {
            return None;
        }
        let _one_at_a_time = self.one_at_a_time();
        let is_out = |b: &&Arc<Backend>| b.state.fitness.is_ejected(now);
        let n_out = self.backends.iter().filter(is_out).count() + 1;
        let may_be_out = self.backends.len() * config.max_ejected_percent as usize / 100;
        let may_eject = n_out <= may_be_out && !fitness.is_ejected(now);
        let out_for = may_eject.then(|| fitness.eject(reason.to_owned(), config, now))?;
        tracing::warn!(upstream = %self.config.name, backend = backend.address(), reason, ?out_for, "backend ejected");
        Some(Ejected::For(out_for))
    }

    /// Those that are out because they could not be connected to, for a request that nobody else takes.
    pub fn unreachable(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.backends.iter().filter(|backend| {
            backend.is_unreachable() && !backend.config.is_draining && backend.has_room()
        })
    }
}

impl PoolShared {
    fn new(environment: &Environment) -> Self {
        Self {
            environment: environment.clone(),
            sequence: AtomicU64::new(0),
            queue: Arc::default(),
            budget: RetryBudget::new(environment),
            retries: AtomicU64::new(0),
            ejecting: Mutex::default(),
            budget_told: Seldom::new(environment),
            own_fault_told: Seldom::new(environment),
        }
    }
}

impl Backend {
    /// Where its time and chance come from.
    pub fn environment(&self) -> &Environment {
        &self.state.environment
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// What a policy may know.
    pub fn figures(&self) -> policy::Figures {
        let figures = &self.state.figures;
        policy::Figures {
            active: figures.active.load(Relaxed),
            pending: figures.pending.load(Relaxed),
            recent_failures: figures.recent_failures(),
            latency_us: figures.latency_us.load(Relaxed),
        }
    }

    /// What probes and live traffic say of it.
    pub fn fitness(&self) -> &Fitness {
        &self.state.fitness
    }

    /// Failed dials and handshakes since the start.
    pub fn failures(&self) -> u64 {
        self.state.figures.failures.load(Relaxed)
    }

    /// Failed dials and handshakes since the last that succeeded.
    pub fn failures_in_a_row(&self) -> u32 {
        self.state.figures.failures_in_a_row.load(Relaxed)
    }

    /// Whether it is fit, and the last dial succeeded or none was tried yet.
    pub fn is_up(&self) -> bool {
        self.failures_in_a_row() == 0 && self.is_fit(self.state.environment.now())
    }

    /// Since when it has not been up; none: it is.
    pub fn down_since(&self) -> Option<SystemTime> {
        let unfit = (self.state.fitness).unfit_since(self.state.environment.now());
        let failing_since = (self.failures_in_a_row() > 0).then(|| {
            let since_ms = self.state.figures.failing_since_ms.load(Relaxed);
            UNIX_EPOCH + Duration::from_millis(since_ms)
        });
        // It may have been put out several times since.
        unfit.into_iter().chain(failing_since).min()
    }

    /// Whether it may have another session.
    pub fn has_room(&self) -> bool {
        let taken = || self.state.figures.taken.load(Relaxed);
        self.config.max_sessions.is_none_or(|max| taken() < max)
    }

    /// A probe of it has ended.
    pub fn probed(
        &self,
        result: Result<(), String>,
        health: &config::Health,
    ) -> Option<HealthChange> {
        let turn = self.state.fitness.probed(result, health.rise, health.fall);
        if turn == Some(HealthChange::Up) {
            self.state.queue.wake_all();
        }
        turn
    }

    fn is_fit(&self, now: Instant) -> bool {
        self.state.fitness.is_fit(now)
    }

    /// It can be connected to.
    pub fn reached(&self) {
        self.state.fitness.reached(self.state.environment.now());
        self.state.queue.wake_all();
    }

    /// Whether it is out for a moment, because it could not be connected to, and for no other reason.
    pub fn is_unreachable(&self) -> bool {
        let fitness = &self.state.fitness;
        fitness.is_unreachable() && fitness.health() != HealthState::Down
    }

    /// Counts a dial, until the guard is dropped or the backend has answered. None: it has its
    /// `max_sessions`.
    pub fn dialling(self: &Arc<Self>) -> Option<PendingDial> {
        let figures = &self.state.figures;
        let max = self.config.max_sessions.unwrap_or(u32::MAX);
        let take = |taken: u32| (taken < max).then_some(taken + 1);
        figures.taken.fetch_update(Relaxed, Relaxed, take).ok()?;
        figures.pending.fetch_add(1, Relaxed);
        let begun = self.state.environment.now();
        Some(PendingDial {
            slot: BackendSlot {
                backend: Arc::clone(self),
                is_active: false,
            },
            begun,
            latency_since: Some(begun),
        })
    }

    fn failed(&self) {
        let figures = &self.state.figures;
        figures.failures.fetch_add(1, Relaxed);
        if figures.failures_in_a_row.fetch_add(1, Relaxed) == 0 {
            let since = (self.state.environment.system_time()).duration_since(UNIX_EPOCH);
            let since_ms = since.unwrap_or_default().as_millis() as u64;
            figures.failing_since_ms.store(since_ms, Relaxed);
        }
        figures.note_failure();
    }
}

/// A dial under way.
#[derive(Debug)]
pub struct PendingDial {
    slot: BackendSlot,
    begun: Instant,
    /// From when on the time to its answer is its own; none: that is not known.
    latency_since: Option<Instant>,
}

/// A session or plain request under way; ends when it is dropped.
#[derive(Debug)]
pub struct Active {
    slot: BackendSlot,
}

/// One of a backend's `max_sessions`.
#[derive(Debug)]
struct BackendSlot {
    backend: Arc<Backend>,
    is_active: bool,
}

impl PendingDial {
    /// Which is dialled.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.slot.backend
    }

    /// The client has kept the backend waiting: only from then on was its answer's time its own; none: the client
    /// still does.
    pub fn held_up_until(&mut self, until: Option<Instant>) {
        self.latency_since = until.map(|until| until.max(self.begun));
    }

    /// The backend has answered. `is_well`: not with a failure of its own.
    pub fn answered(mut self, is_well: bool) -> Active {
        let State {
            environment,
            figures,
            fitness,
            trouble,
            upstream,
            ..
        } = &*self.slot.backend.state;
        if is_well && figures.failures_in_a_row.load(Relaxed) > 0 {
            figures.failures_in_a_row.store(0, Relaxed);
            fitness.note_success();
            if trouble.ends() {
                let backend = self.slot.backend.address();
                tracing::info!(%upstream, backend, "backend answers again");
            }
        }
        let now = environment.now();
        fitness.reached(now);
        if let Some(since) = self.latency_since {
            figures.note_latency(now.saturating_duration_since(since));
        }
        figures.pending.fetch_sub(1, Relaxed);
        figures.active.fetch_add(1, Relaxed);
        self.slot.is_active = true;
        Active { slot: self.slot }
    }
}

impl Active {
    /// Where it runs.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.slot.backend
    }
}

impl Drop for BackendSlot {
    fn drop(&mut self) {
        let State { figures, queue, .. } = &*self.backend.state;
        let count = match self.is_active {
            true => &figures.active,
            false => &figures.pending,
        };
        count.fetch_sub(1, Relaxed);
        figures.taken.fetch_sub(1, Relaxed);
        queue.wake_one();
    }
}

impl Trouble {
    fn new(environment: &Environment) -> Self {
        Self {
            is_told: AtomicBool::new(false),
            told: Seldom::new(environment),
        }
    }

    /// It has failed: whether that is to be told.
    fn begins(&self, now: Instant) -> bool {
        !self.is_told.load(Relaxed) && self.told.is_due(now) && !self.is_told.swap(true, Relaxed)
    }

    /// It has answered: whether that is to be told.
    fn ends(&self) -> bool {
        self.is_told.swap(false, Relaxed)
    }
}

impl Seldom {
    fn new(environment: &Environment) -> Self {
        Self {
            born: environment.now(),
            last: AtomicU64::new(0),
        }
    }

    /// True for one of those who ask within [`TOLD_AGAIN`].
    fn is_due(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.born).as_millis();
        let now = u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1);
        let last = self.last.load(Relaxed);
        let is_due = last == 0 || u128::from(now - last.min(now)) >= TOLD_AGAIN.as_millis();
        is_due
            && self
                .last
                .compare_exchange(last, now, Relaxed, Relaxed)
                .is_ok()
    }
}

impl LiveFigures {
    fn new(environment: &Environment) -> Self {
        Self {
            environment: environment.clone(),
            born: environment.now(),
            active: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            failing_since_ms: AtomicU64::new(0),
            latency_us: AtomicU32::new(0),
            recent: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Two workers may lose one sample to each other: it is an estimate.
    fn note_latency(&self, sample: Duration) {
        let sample = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX).max(1);
        let old = self.latency_us.load(Relaxed);
        let new = if old == 0 {
            sample
        } else {
            old - (old >> LATENCY_SHIFT) + (sample >> LATENCY_SHIFT)
        };
        self.latency_us.store(new.max(1), Relaxed);
    }

    fn note_failure(&self) {
        let second = self.second();
        let slot = &self.recent[(second % WINDOW_SECS) as usize];
        let count = |old: u64| {
            if (old >> 32) as u32 == second {
                old + 1
            } else {
                u64::from(second) << 32 | 1
            }
        };
        let _ = slot.fetch_update(Relaxed, Relaxed, |old| Some(count(old)));
    }

    fn recent_failures(&self) -> u32 {
        if self.failures.load(Relaxed) == 0 {
            return 0;
        }
        let second = self.second();
        let is_recent = |slot: &u64| second - ((slot >> 32) as u32).min(second) < WINDOW_SECS;
        self.recent
            .iter()
            .map(|slot| slot.load(Relaxed))
            .filter(is_recent)
            .map(|slot| slot as u32)
            .sum()
    }

    fn second(&self) -> u32 {
        (self.environment.now() - self.born).as_secs() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Simulated;

    const BAD_ANSWER: BackendFailure = BackendFailure::BadAnswer;

    fn out_for(ejected: Option<Ejected>) -> Option<Duration> {
        match ejected? {
            Ejected::For(duration) => Some(duration),
            Ejected::UntilReached(_) => panic!("it was connected to"),
        }
    }

    fn upstream(lines: &str) -> config::Upstream {
        let text = format!(
            "[[listener]]\nbind = \"127.0.0.1:0\"\n[[route]]\npath = \"/*\"\nupstream = \"app\"\n[[upstream]]\nname = \"app\"\n{lines}\n"
        );
        let config = config::Config::from_toml(&text, std::path::Path::new("."))
            .expect("a good configuration");
        config.upstreams[0].clone()
    }

    fn pool(lines: &str, before: Option<&Pool>) -> Pool {
        let config = upstream(lines);
        let backends = config.backends.clone();
        Pool::new(&Environment::System, config, &backends, None, before)
    }

    /// First letters and weights of those who may be chosen.
    fn eligible(pool: &Pool) -> String {
        let now = Instant::now();
        match pool.tier(now) {
            Ok(tier) => {
                let names = pool.eligible(tier, ShownBackends::Fit, now);
                let names = names.map(|(b, weight)| format!("{}{weight}", &b.address()[..1]));
                format!("{tier:?}: {}", names.collect::<Vec<_>>().join(" "))
            }
            Err(nobody) => format!("{nobody:?}"),
        }
    }

    fn down(backend: &Backend) {
        backend.fitness().probed(Err("no answer".to_owned()), 1, 1);
    }

    fn up(backend: &Backend) {
        backend.fitness().probed(Ok(()), 1, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn figures_follow_dials_and_are_kept_over_snapshots() {
        let first = pool("backends = ['a:1', 'b:1']", None);
        let backend = &first.backends[1];
        let pending = backend.dialling().expect("there is no bound");
        assert_eq!(backend.figures().pending, 1);
        tokio::time::advance(Duration::from_micros(800)).await;
        let active = pending.answered(true);
        assert_eq!(active.backend().address(), "b:1");
        let second = pool("backends = ['c:1', 'b:1']", Some(&first));
        let kept = policy::Figures {
            active: 1,
            latency_us: 800,
            ..policy::Figures::default()
        };
        assert!(
            Arc::ptr_eq(&second.backends[1], backend),
            "nothing of it changed"
        );
        assert_eq!(second.backends[1].figures(), kept);
        assert_eq!(second.backends[0].figures(), policy::Figures::default());
        let third = pool(
            "backends = [{ address = 'b:1', weight = 2 }]",
            Some(&second),
        );
        assert_eq!(third.backends[0].figures(), kept);
        drop(active);
        assert_eq!(third.backends[0].figures().active, 0);
        assert_eq!((first.next_sequence(), second.next_sequence()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_recent_for_ten_seconds_and_in_a_row_until_a_success() {
        let pool = pool("backends = ['a:1']", None);
        let backend = &pool.backends[0];
        assert!(backend.is_up());
        pool.failed(backend, BAD_ANSWER, "reset");
        tokio::time::advance(Duration::from_secs(9)).await;
        pool.failed(backend, BAD_ANSWER, "reset");
        assert_eq!(
            (
                backend.figures().recent_failures,
                backend.failures_in_a_row()
            ),
            (2, 2)
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(backend.figures().recent_failures, 1);
        drop(backend.dialling().map(|pending| pending.answered(false)));
        assert!(!backend.is_up(), "an answer that is a failure is none");
        drop(backend.dialling().map(|pending| pending.answered(true)));
        assert!(backend.is_up());
        assert_eq!(backend.failures(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_hears_of_a_failing_backend_once_until_it_answers() {
        let trouble = Trouble::new(&Environment::System);
        assert!(!trouble.ends(), "it never failed");
        assert!(trouble.begins(Instant::now()));
        tokio::time::advance(TOLD_AGAIN * 2).await;
        assert!(!trouble.begins(Instant::now()), "it has not answered since");
        assert!(trouble.ends());
        assert!(!trouble.ends());
        assert!(trouble.begins(Instant::now()));
        assert!(trouble.ends());
        // It fails and answers by turns.
        for _ in 0..5 {
            assert!(!trouble.begins(Instant::now()));
            assert!(!trouble.ends());
        }
        tokio::time::advance(TOLD_AGAIN).await;
        assert!(trouble.begins(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_has_more_sessions_than_it_may() {
        let pool = pool("backends = [{ address = 'a:1', max_sessions = 2 }]", None);
        let backend = &pool.backends[0];
        let dial = backend.dialling();
        let session = backend.dialling().map(|pending| pending.answered(true));
        assert!(dial.is_some() && session.is_some());
        assert!(backend.dialling().is_none());
        assert_eq!(eligible(&pool), "Full");
        drop(session);
        assert_eq!(eligible(&pool), "Primaries: a1");
        assert!(backend.dialling().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_down_or_draining_is_passed_over_and_backups_stand_in() {
        let pool = pool(
            "backends = ['a:1', 'b:1', { address = 'c:1', drain = true }, { address = 'z:1', backup = true }]",
            None,
        );
        let [a, b, _, z] = &pool.backends[..] else {
            panic!("four")
        };
        assert_eq!(eligible(&pool), "Primaries: a1 b1");
        down(a);
        assert_eq!(eligible(&pool), "Primaries: b1");
        down(b);
        assert_eq!(eligible(&pool), "Backups: z1");
        down(z);
        assert_eq!(eligible(&pool), "Everyone: a1 b1 z1", "rather than nobody");
        up(a);
        assert_eq!(eligible(&pool), "Primaries: a1");
        let none = self::pool("backends = [{ address = 'a:1', drain = true }]", None);
        assert_eq!(eligible(&none), "None");
    }

    #[tokio::test(start_paused = true)]
    async fn with_too_few_that_are_fit_all_are_used() {
        let pool = pool(
            "backends = ['a:1', 'b:1', 'c:1', 'd:1']\npanic_threshold_percent = 50",
            None,
        );
        down(&pool.backends[0]);
        down(&pool.backends[1]);
        assert_eq!(eligible(&pool), "Primaries: c1 d1");
        down(&pool.backends[2]);
        assert_eq!(eligible(&pool), "Panic: a1 b1 c1 d1");
    }

    #[tokio::test(start_paused = true)]
    async fn live_traffic_puts_out_no_more_than_allowed() {
        let pool = pool(
            "backends = ['a:1', 'b:1', 'c:1']\nejection = { failures = 2, eject_secs = 10, max_ejected_percent = 50 }",
            None,
        );
        let [a, b, _] = &pool.backends[..] else {
            panic!("three")
        };
        let failed = |backend| out_for(pool.failed(backend, BAD_ANSWER, "reset"));
        assert_eq!(failed(a), None);
        assert_eq!(failed(a), Some(Duration::from_secs(10)));
        assert_eq!(eligible(&pool), "Primaries: b1 c1");
        assert_eq!(failed(b).or(failed(b)), None);
        assert_eq!(eligible(&pool), "Primaries: b1 c1", "half of three is one");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(eligible(&pool), "Primaries: a1 b1 c1");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_connected_to_is_out_unless_it_is_the_last() {
        let pool = pool(
            "backends = ['a:1', 'b:1', { address = 'z:1', backup = true }]",
            None,
        );
        let [a, b, z] = &pool.backends[..] else {
            panic!("three")
        };
        let unreachable = |backend: &Backend| {
            let out = pool.failed(backend, BackendFailure::Unreachable, "refused");
            matches!(out, Some(Ejected::UntilReached(_)))
        };
        assert!(pool.failed(a, BAD_ANSWER, "reset").is_none());
        assert!(
            pool.failed(a, BackendFailure::LateUpgrade, "late")
                .is_none()
        );
        assert!(pool.failed(a, BackendFailure::LateAnswer, "late").is_none());
        assert_eq!(eligible(&pool), "Primaries: a1 b1");
        assert!(unreachable(a) && !unreachable(a));
        assert_eq!(eligible(&pool), "Primaries: b1");
        let lasting = pool.eligible(Tier::Primaries, ShownBackends::Lasting, Instant::now());
        assert_eq!(lasting.count(), 2);
        assert!(unreachable(b));
        assert_eq!(eligible(&pool), "Backups: z1");
        assert!(!unreachable(z), "it is the last one");
        let names = pool.unreachable().map(|b| b.address());
        assert_eq!(names.collect::<Vec<_>>(), ["a:1", "b:1"]);
        drop(a.dialling().map(|dial| dial.answered(false)));
        assert_eq!(eligible(&pool), "Primaries: a1", "it can be reached");
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_timed_out_ejects_where_that_is_written_alone() {
        for (written, expected) in [("", None), (", eject_on_timeout = true", Some(10))] {
            let lines = format!(
                "backends = ['a:1', 'b:1']\nejection = {{ failures = 1, eject_secs = 10{written} }}"
            );
            let pool = pool(&lines, None);
            for (backend, late) in pool
                .backends
                .iter()
                .zip([BackendFailure::LateUpgrade, BackendFailure::LateAnswer])
            {
                let out_for = out_for(pool.failed(backend, late, "late"));
                assert_eq!(out_for, expected.map(Duration::from_secs));
                assert_eq!(backend.failures(), 1);
                tokio::time::advance(Duration::from_secs(10)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_client_is_no_latency_of_a_backend() {
        let pool = pool("backends = ['a:1']", None);
        let backend = &pool.backends[0];
        let second = Duration::from_secs(1);
        let mut dial = backend.dialling().unwrap();
        tokio::time::advance(second).await;
        dial.held_up_until(None);
        drop(dial.answered(true));
        assert_eq!(
            backend.figures().latency_us,
            0,
            "the client is still awaited"
        );
        let mut dial = backend.dialling().unwrap();
        tokio::time::advance(second).await;
        dial.held_up_until(Some(Instant::now()));
        tokio::time::advance(second).await;
        drop(dial.answered(true));
        assert_eq!(backend.figures().latency_us, 1_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_starts_slowly_and_so_does_a_newcomer() {
        let lines = "slow_start_secs = 10\nbackends = ['a:1', { address = 'b:1', weight = 2 }";
        let first = pool(&format!("{lines}]"), None);
        assert_eq!(
            eligible(&first),
            "Primaries: a10 b20",
            "all are new at the start"
        );
        let second = pool(&format!("{lines}, 'c:1']"), Some(&first));
        assert_eq!(eligible(&second), "Primaries: a10 b20 c1");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(eligible(&second), "Primaries: a10 b20 c6");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(eligible(&second), "Primaries: a10 b20 c10");
        down(&second.backends[1]);
        up(&second.backends[1]);
        assert_eq!(eligible(&second), "Primaries: a10 b2 c10");
    }

    #[test]
    fn a_simulation_moves_the_time_of_backends() {
        let simulated = Arc::new(Simulated::new(1, UNIX_EPOCH));
        let environment = Environment::Simulated(Arc::clone(&simulated));
        let config = upstream(
            "backends = ['a:1', 'b:1']\nejection = { failures = 1, eject_secs = 10, max_ejected_percent = 50 }",
        );
        let pool = Pool::new(&environment, config.clone(), &config.backends, None, None);
        assert_eq!(
            out_for(pool.failed(&pool.backends[0], BAD_ANSWER, "reset")),
            Some(Duration::from_secs(10))
        );
        assert!(!pool.backends[0].is_fit(environment.now()));
        assert_eq!(pool.backends[0].down_since(), Some(UNIX_EPOCH));
        simulated.advance(Duration::from_secs(10));
        assert!(pool.backends[0].is_fit(environment.now()));
        assert_eq!(pool.backends[0].figures().recent_failures, 0);
    }
}
