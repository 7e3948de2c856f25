//! Time and chance, as one value that is passed in: what decides about backends asks neither the clock nor
//! the generator by itself, so that a simulation can drive the very same code.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Where time and chance come from. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Environment {
    /// The machine.
    #[default]
    System,
    /// A simulation, which moves its own time and repeats its own chance.
    Simulated(Arc<Simulated>),
}

/// Time that stands still until it is moved, and chance that is the same for the same seed.
#[derive(Debug)]
pub struct Simulated {
    started: (Instant, SystemTime),
    elapsed_us: AtomicU64,
    random: Mutex<fastrand::Rng>,
}

impl Environment {
    /// Never runs backwards.
    pub fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::Simulated(simulated) => simulated.started.0 + simulated.elapsed(),
        }
    }

    /// What a calendar says.
    pub fn system_time(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Simulated(simulated) => simulated.started.1 + simulated.elapsed(),
        }
    }

    /// Any number.
    pub fn random(&self) -> u64 {
        match self {
            Self::System => fastrand::u64(..),
            Self::Simulated(simulated) => simulated.random().u64(..),
        }
    }

    /// From 0 to 1.
    pub fn fraction(&self) -> f64 {
        match self {
            Self::System => fastrand::f64(),
            Self::Simulated(simulated) => simulated.random().f64(),
        }
    }
}

impl Simulated {
    /// Begins at `system_time`.
    pub fn new(seed: u64, system_time: SystemTime) -> Self {
        Self {
            started: (Instant::now(), system_time),
            elapsed_us: AtomicU64::new(0),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    /// Lets time pass, in whole microseconds.
    pub fn advance(&self, by: Duration) {
        let us = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.elapsed_us.fetch_add(us, Relaxed);
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.elapsed_us.load(Relaxed))
    }

    fn random(&self) -> std::sync::MutexGuard<'_, fastrand::Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn simulated_time_moves_when_it_is_told_and_chance_repeats() {
        let simulated = || Arc::new(Simulated::new(7, UNIX_EPOCH));
        let (one, other) = (simulated(), simulated());
        let environment = Environment::Simulated(Arc::clone(&one));
        let began = environment.now();
        one.advance(Duration::from_secs(3));
        assert_eq!(environment.now() - began, Duration::from_secs(3));
        let since = environment.system_time().duration_since(UNIX_EPOCH);
        assert_eq!(since.unwrap(), Duration::from_secs(3));
        let other = Environment::Simulated(other);
        let draw = |from: &Environment| (from.random(), from.random(), from.fraction());
        assert_eq!(draw(&environment), draw(&other));
    }
}
