//! Whether a backend should get new work: what probes say, what live traffic says, and how far it
//! has come back.
//!
//! One [`Fitness`] per backend outlives snapshots. Probes are written by the control plane, failures
//! by all workers; every choice reads it, so reading takes no lock.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use pointsman_config as config;
use tokio::time::Instant;

use crate::environment::Environment;

/// A slow start goes up in so many steps.
pub const RAMP_STEPS: u32 = 10;
/// The longest ejection, in first ejections: back-off doubles up to here.
const MAX_BACK_OFF: u32 = 64;
/// When one that could not be connected to is tried again: soon, since most that restart are back at once.
const FIRST_TRIAL: Duration = Duration::from_secs(1);
/// The time to the next trial doubles up to here. No client waits for a trial.
const MAX_TRIAL: Duration = Duration::from_secs(4);

/// What is known of one backend.
#[derive(Debug)]
pub struct Fitness {
    environment: Environment,
    born: Instant,
    health: AtomicU8,
    /// In milliseconds since `born`, plus 1; 0: never.
    ejected_until: AtomicU64,
    /// When it was last made fit after it was not, or joined a running upstream; as `ejected_until`.
    back_since: AtomicU64,
    /// Since the start.
    ejections: AtomicU64,
    /// It could not be connected to, and not since.
    unreachable: AtomicBool,
    details: Mutex<Details>,
}

#[derive(Debug, Default)]
struct Details {
    /// Probes in a row that said the same.
    probes_in_a_row: u32,
    last_probe_failed: bool,
    /// Why it is down.
    down_for: Option<String>,
    /// Since when, where it is.
    down_since: Option<SystemTime>,
    /// When live traffic failed, since the last success; at most as many as eject.
    failures: VecDeque<Instant>,
    ejected_for: Option<String>,
    /// When it was ejected last, on both clocks.
    put_out_at: Option<Instant>,
    ejected_at: Option<SystemTime>,
    /// How often it was ejected without a good time in between.
    n_ejections: u32,
    last_ejection: Duration,
}

/// What probes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthState {
    /// Nobody has asked yet, or nobody asks: as good as up.
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

/// A change of what probes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthChange {
    /// It answers again, or for the first time.
    Up,
    /// It does not answer any more, and why.
    Down(String),
}

/// To find out whether a backend can be connected to again.
#[derive(Debug)]
pub struct ConnectTrial {
    /// Which ejection it is about.
    put_out_at: Instant,
    next: Duration,
}

impl ConnectTrial {
    /// The time until it is to be made; the next one takes twice as long.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(MAX_TRIAL);
        delay
    }
}

/// Why a backend gets nothing new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// Probes fail: the last reason.
    Down(String),
    /// Live traffic has failed: the last reason, and how long it stays out.
    Ejected(String, Duration),
    /// It could not be connected to: the last reason, and when that is tried again.
    Unreachable(String, Duration),
}

impl Fitness {
    /// One of which nothing is known.
    pub fn new(environment: &Environment) -> Self {
        Self {
            environment: environment.clone(),
            born: environment.now(),
            health: AtomicU8::new(HealthState::Unknown as u8),
            ejected_until: AtomicU64::new(0),
            back_since: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            unreachable: AtomicBool::new(false),
            details: Mutex::default(),
        }
    }

    /// One that joins an upstream which serves already, and so starts slowly.
    pub fn newcomer(environment: &Environment) -> Self {
        let fitness = Self::new(environment);
        fitness.back_since.store(1, Relaxed);
        fitness
    }

    /// Whether it should get new work.
    pub fn is_fit(&self, now: Instant) -> bool {
        self.health() != HealthState::Down && !self.is_ejected(now)
    }

    /// What probes say.
    pub fn health(&self) -> HealthState {
        match self.health.load(Relaxed) {
            1 => HealthState::Up,
            2 => HealthState::Down,
            _ => HealthState::Unknown,
        }
    }

    /// Whether live traffic has put it out.
    pub fn is_ejected(&self, now: Instant) -> bool {
        let until = self.ejected_until.load(Relaxed);
        self.unreachable.load(Relaxed) || (until != 0 && self.stamp(now) < until)
    }

    /// How often it was put out since the start.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// Why it gets nothing new, for people.
    pub fn why_unfit(&self, now: Instant) -> Option<Unfit> {
        let details = self.details();
        if self.health() == HealthState::Down {
            return Some(Unfit::Down(details.down_for.clone().unwrap_or_default()));
        }
        let left = self
            .ejected_until
            .load(Relaxed)
            .saturating_sub(self.stamp(now));
        let reason = details.ejected_for.clone().unwrap_or_default();
        let left = Duration::from_millis(left);
        match self.is_unreachable() {
            true => Some(Unfit::Unreachable(reason, left)),
            false => (!left.is_zero()).then_some(Unfit::Ejected(reason, left)),
        }
    }

    /// Since when it has got nothing new; none: it gets its share.
    pub fn unfit_since(&self, now: Instant) -> Option<SystemTime> {
        let details = self.details();
        match self.health() {
            HealthState::Down => details.down_since,
            HealthState::Up | HealthState::Unknown => {
                details.ejected_at.filter(|_| self.is_ejected(now))
            }
        }
    }

    /// How much of its share it gets, in steps of [`RAMP_STEPS`]: all, unless it came back less than
    /// `slow_start` ago.
    pub fn ramp(&self, slow_start: Duration, now: Instant) -> u32 {
        let back = self
            .back_since
            .load(Relaxed)
            .max(self.ejected_until.load(Relaxed));
        if slow_start.is_zero() || back == 0 {
            return RAMP_STEPS;
        }
        let since = self.stamp(now).saturating_sub(back);
        let step = u128::from(since) * u128::from(RAMP_STEPS) / slow_start.as_millis().max(1);
        u32::try_from(step).map_or(RAMP_STEPS, |step| (step + 1).min(RAMP_STEPS))
    }

    /// A probe has ended. The first one decides at once; after that it takes `rise` or `fall` in a
    /// row.
    pub fn probed(&self, result: Result<(), String>, rise: u32, fall: u32) -> Option<HealthChange> {
        let mut details = self.details();
        let failed = result.is_err();
        if details.last_probe_failed != failed {
            details.probes_in_a_row = 0;
        }
        details.last_probe_failed = failed;
        details.probes_in_a_row = details.probes_in_a_row.saturating_add(1);
        let before = self.health();
        let is_enough =
            |needed: u32| before == HealthState::Unknown || details.probes_in_a_row >= needed;
        match (before, result) {
            (HealthState::Up, Ok(())) => None,
            (_, Ok(())) if is_enough(rise) => {
                details.down_for = None;
                if before == HealthState::Down {
                    let now = self.environment.now();
                    self.back_since.store(self.stamp(now), Relaxed);
                }
                self.health.store(HealthState::Up as u8, Relaxed);
                Some(HealthChange::Up)
            }
            (HealthState::Down, Err(reason)) => {
                details.down_for = Some(reason);
                None
            }
            (_, Err(reason)) if is_enough(fall) => {
                details.down_for = Some(reason.clone());
                details.down_since = Some(self.environment.system_time());
                self.health.store(HealthState::Down as u8, Relaxed);
                Some(HealthChange::Down(reason))
            }
            _ => None,
        }
    }

    /// Nobody probes any more: what they said does not count.
    pub fn unprobed(&self) {
        let mut details = self.details();
        details.down_for = None;
        details.probes_in_a_row = 0;
        self.health.store(HealthState::Unknown as u8, Relaxed);
    }

    /// Live traffic has failed; whether it has so often that the backend should be put out.
    pub fn note_failure(&self, config: &config::Ejection, now: Instant) -> bool {
        let failures = &mut self.details().failures;
        failures.retain(|&then| now - then < config.window);
        failures.push_back(now);
        let needed = config.failures as usize;
        while failures.len() > needed {
            failures.pop_front();
        }
        failures.len() >= needed && !self.is_ejected(now)
    }

    /// Live traffic has succeeded.
    pub fn note_success(&self) {
        self.details().failures.clear();
    }

    /// Puts it out, twice as long as the last time where that was not long ago. Returns how long.
    pub fn eject(&self, reason: String, config: &config::Ejection, now: Instant) -> Duration {
        let mut details = self.details();
        let ended = self.ejected_until.load(Relaxed);
        let good_for = Duration::from_millis(self.stamp(now).saturating_sub(ended));
        if good_for > details.last_ejection {
            details.n_ejections = 0;
        }
        let factor = 1_u32
            .checked_shl(details.n_ejections)
            .unwrap_or(MAX_BACK_OFF)
            .min(MAX_BACK_OFF);
        let duration = config.eject * factor;
        details.n_ejections += 1;
        details.last_ejection = duration;
        details.failures.clear();
        self.put_out(details, reason, duration, now);
        duration
    }

    /// Puts it out because it could not be connected to, until [`Fitness::reached`]. Whoever gets a [`ConnectTrial`] has to
    /// see to that; none: somebody does already.
    pub fn eject_unreachable(&self, reason: String, now: Instant) -> Option<ConnectTrial> {
        let details = self.details();
        if self.unreachable.load(Relaxed) {
            return None;
        }
        self.unreachable.store(true, Relaxed);
        self.put_out(details, reason, FIRST_TRIAL, now);
        Some(ConnectTrial {
            put_out_at: now,
            next: FIRST_TRIAL,
        })
    }

    /// Whether this trial has still to be made.
    pub fn is_due(&self, trial: &ConnectTrial) -> bool {
        self.unreachable.load(Relaxed) && self.details().put_out_at == Some(trial.put_out_at)
    }

    /// It could not be connected to again.
    pub fn still_unreachable(&self, reason: String, trial: &ConnectTrial, now: Instant) {
        self.details().ejected_for = Some(reason);
        let until = self.stamp(now + trial.next);
        self.ejected_until.store(until, Relaxed);
    }

    /// It can be connected to, or has answered, well or not.
    pub fn reached(&self, now: Instant) {
        if self.unreachable.load(Relaxed) && self.unreachable.swap(false, Relaxed) {
            self.ejected_until.store(self.stamp(now), Relaxed);
        }
    }

    fn put_out(
        &self,
        mut details: MutexGuard<'_, Details>,
        reason: String,
        duration: Duration,
        now: Instant,
    ) {
        self.ejections.fetch_add(1, Relaxed);
        details.ejected_for = Some(reason);
        details.put_out_at = Some(now);
        details.ejected_at = Some(self.environment.system_time());
        let until = self.stamp(now + duration);
        self.ejected_until.store(until, Relaxed);
    }

    /// Whether it is out because it could not be connected to.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable.load(Relaxed)
    }

    fn stamp(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.born).as_millis();
        u64::try_from(since).map_or(u64::MAX, |since| since.saturating_add(1))
    }

    /// What a panic left behind is as good: every field is written by itself.
    fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const EJECTION: config::Ejection = config::Ejection {
        failures: 3,
        window: Duration::from_secs(10),
        eject: Duration::from_secs(5),
        max_ejected_percent: 50,
        eject_on_timeout: false,
    };

    fn fails() -> Result<(), String> {
        Err("no answer".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_probe_decides_and_then_it_takes_several_in_a_row() {
        let fitness = Fitness::new(&Environment::System);
        assert_eq!(fitness.probed(Ok(()), 2, 3), Some(HealthChange::Up));
        let mut turns = Vec::new();
        let bad = |n: usize| vec![fails(); n];
        let good = |n: usize| vec![Ok(()); n];
        for result in [bad(2), good(1), bad(3), good(1), bad(1), good(2)].concat() {
            turns.push(fitness.probed(result, 2, 3));
        }
        let down = Some(HealthChange::Down("no answer".to_owned()));
        let mut expected = vec![None; 10];
        (expected[5], expected[9]) = (down, Some(HealthChange::Up));
        assert_eq!(turns, expected);
        let unlucky = Fitness::new(&Environment::System);
        assert_eq!(unlucky.unfit_since(Instant::now()), None);
        assert!(unlucky.probed(fails(), 2, 3).is_some());
        assert!(!unlucky.is_fit(Instant::now()));
        let since = unlucky.unfit_since(Instant::now());
        assert!(since.is_some_and(|since| since <= SystemTime::now()));
        assert!(unlucky.probed(fails(), 2, 3).is_none());
        assert_eq!(unlucky.unfit_since(Instant::now()), since);
        unlucky.unprobed();
        assert!(unlucky.is_fit(Instant::now()));
        assert_eq!(unlucky.unfit_since(Instant::now()), None);
    }

    /// As many failures as eject.
    fn fail(fitness: &Fitness) -> Option<Duration> {
        let now = Instant::now();
        let fails = || fitness.note_failure(&EJECTION, now);
        (fails() | fails() | fails()).then(|| fitness.eject("reset".to_owned(), &EJECTION, now))
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_eject_and_each_time_longer() {
        let fitness = Fitness::new(&Environment::System);
        for seconds in [5, 10, 20] {
            assert_eq!(fail(&fitness), Some(Duration::from_secs(seconds)));
            assert_eq!(fail(&fitness), None, "it is out already");
            advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert!(!fitness.is_fit(Instant::now()));
            assert!(fitness.unfit_since(Instant::now()).is_some());
            advance(Duration::from_millis(1)).await;
            assert!(fitness.is_fit(Instant::now()));
            assert_eq!(fitness.unfit_since(Instant::now()), None);
        }
        advance(Duration::from_secs(21)).await;
        let first = Some(Duration::from_secs(5));
        assert_eq!(fail(&fitness), first, "a good time forgives");
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_or_time_takes_failures_back() {
        let fitness = Fitness::new(&Environment::System);
        let fails = || fitness.note_failure(&EJECTION, Instant::now());
        assert!(!fails() && !fails());
        fitness.note_success();
        assert!(!fails() && !fails());
        advance(EJECTION.window).await;
        assert!(!fails() && !fails());
        assert!(fails());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_connected_to_is_out_until_it_can_be() {
        let fitness = Fitness::new(&Environment::System);
        let eject = || fitness.eject_unreachable("refused".to_owned(), Instant::now());
        let mut trial = eject().unwrap();
        assert!(eject().is_none(), "one trial is enough");
        for seconds in [1, 2, 4, 4] {
            assert!(fitness.is_due(&trial) && !fitness.is_fit(Instant::now()));
            let delay = trial.delay();
            assert_eq!(delay, Duration::from_secs(seconds));
            advance(delay).await;
            fitness.still_unreachable("late".to_owned(), &trial, Instant::now());
        }
        let why = fitness.why_unfit(Instant::now());
        let expected = Unfit::Unreachable("late".to_owned(), MAX_TRIAL);
        assert_eq!(why, Some(expected));
        fitness.reached(Instant::now());
        assert!(fitness.is_fit(Instant::now()) && !fitness.is_due(&trial));
        advance(Duration::from_millis(1)).await;
        let again = eject().unwrap();
        assert!(fitness.is_due(&again) && !fitness.is_due(&trial));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_gets_its_share_in_steps() {
        let slow_start = Duration::from_secs(20);
        let fitness = Fitness::new(&Environment::System);
        assert_eq!(fitness.ramp(slow_start, Instant::now()), RAMP_STEPS);
        fail(&fitness);
        advance(EJECTION.eject).await;
        for step in 1..=RAMP_STEPS {
            assert_eq!(fitness.ramp(slow_start, Instant::now()), step);
            advance(slow_start / RAMP_STEPS).await;
        }
        assert_eq!(fitness.ramp(slow_start, Instant::now()), RAMP_STEPS);
        let newcomer = Fitness::newcomer(&Environment::System);
        assert_eq!(newcomer.ramp(slow_start, Instant::now()), 1);
        assert_eq!(newcomer.ramp(Duration::ZERO, Instant::now()), RAMP_STEPS);
    }
}
