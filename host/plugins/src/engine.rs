//! The compiler and the clock of all guests: one wasmtime engine and the thread that ticks its epochs.
//!
//! Synchronous and asynchronous guests share the engine, since they need the same code; what differs,
//! how an expired epoch is taken, is decided store by store. Knows nothing of plugins.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use wasmtime::{Cache, CacheConfig, Config, Engine};

/// One epoch.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// How often the ticker looks whether a guest runs. A call that goes on until then is seen, and ticked for
/// from there on; one that has returned has cost nothing.
const LOOK: Duration = Duration::from_millis(4);

/// After so many looks at which nothing had been called, the ticker sleeps until the next call wakes it.
const QUIET_LOOKS: u32 = 250;

/// How long it sleeps at most, so that a wake-up that got lost matters little.
const SLEEP: Duration = Duration::from_millis(500);

/// What a ticker that is woken late makes up for.
const TICKS_AT_ONCE_MAX: u32 = 1000;

/// Address space kept for a memory when it is made; it moves if it outgrows that. The default of
/// 4 GiB ends the address space at some 30,000 instances and measured no faster.
const MEMORY_RESERVATION_BYTES: u64 = 64 << 20;
const MEMORY_GUARD_BYTES: u64 = 64 << 10;

/// Compiles and times guests. Dropping the last one stops the ticker.
#[derive(Clone)]
pub(crate) struct Engines {
    engine: Engine,
    activity: Arc<Activity>,
    /// Wakes the ticker; also held for its drop, which the ticker sees.
    ticker: mpsc::SyncSender<()>,
}

/// What the ticker has to know of the calls.
#[derive(Debug, Default)]
struct Activity {
    /// The ticker sleeps until it is woken.
    is_asleep: AtomicBool,
    /// Locked when an instance is made, and by the ticker.
    marks: Mutex<Vec<Weak<CallMark>>>,
}

/// Says whether a thread runs a guest at this moment. Each worker has one, and alone writes to it, for each
/// call: it has a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct CallMark {
    /// Odd while a guest runs; so a value that is seen again is the same call, or the same lull.
    n_switches: AtomicU64,
}

/// A guest runs until this is dropped.
#[derive(Debug)]
pub(super) struct Running<'m>(&'m CallMark);

/// How long the ticker may sleep, by what it sees of the calls.
#[derive(Debug, Default)]
struct TickerPace {
    /// Of all marks, at the last look.
    n_switches: u64,
    quiet_looks: u32,
}

impl Engines {
    /// Makes the engine and starts its ticker. `cache`: of compiled code.
    ///
    /// # Errors
    /// This machine cannot run compiled wasm, or has no thread left.
    pub(crate) fn start(cache: Option<Cache>) -> wasmtime::Result<Self> {
        let engine = Engine::new(&config(cache))?;
        let activity = Arc::new(Activity::default());
        let (ticker, woken) = mpsc::sync_channel(1);
        let ticking = (engine.clone(), Arc::clone(&activity));
        thread::Builder::new()
            .name("plugin-ticker".to_owned())
            .spawn(move || tick(&ticking.0, &ticking.1, &woken))?;
        Ok(Self {
            engine,
            activity,
            ticker,
        })
    }

    /// The engine that every plugin is compiled for.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Has the ticker look at this mark from now on, as long as there is one. At most once for each.
    pub(super) fn watch(&self, mark: &Arc<CallMark>) {
        let mut marks = self.activity.marks();
        marks.retain(|known| known.strong_count() > 0);
        if !marks
            .iter()
            .any(|known| known.as_ptr() == Arc::as_ptr(mark))
        {
            marks.push(Arc::downgrade(mark));
        }
    }

    /// A guest is about to run, on the thread that this mark is of; the ticker watches it.
    pub(super) fn enter<'m>(&self, mark: &'m CallMark) -> Running<'m> {
        mark.switch();
        if self.activity.is_asleep.load(Relaxed) {
            self.wake();
        }
        Running(mark)
    }

    #[cold]
    fn wake(&self) {
        self.activity.is_asleep.store(false, Relaxed);
        // One that waits there already is as good.
        let _ = self.ticker.try_send(());
    }
}

impl Activity {
    fn marks(&self) -> MutexGuard<'_, Vec<Weak<CallMark>>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallMark {
    fn switch(&self) {
        let n = self.n_switches.load(Relaxed);
        self.n_switches.store(n.wrapping_add(1), Relaxed);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.switch();
    }
}

impl TickerPace {
    /// `n_switches`: of each mark.
    fn next_sleep(&mut self, n_switches: impl Iterator<Item = u64>) -> Duration {
        let (mut sum, mut is_running) = (0_u64, false);
        for n in n_switches {
            sum = sum.wrapping_add(n);
            is_running |= n % 2 == 1;
        }
        let has_called = sum != std::mem::replace(&mut self.n_switches, sum);
        self.quiet_looks = match is_running || has_called {
            true => 0,
            false => (self.quiet_looks + 1).min(QUIET_LOOKS),
        };
        match is_running {
            true => TICK,
            false if self.quiet_looks < QUIET_LOOKS => LOOK,
            false => SLEEP,
        }
    }
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").finish_non_exhaustive()
    }
}

fn config(cache: Option<Cache>) -> Config {
    let mut config = Config::new();
    // On by default, it doubles the cost of every call; WASI 0.2 does without it.
    config.concurrency_support(false);
    config.epoch_interruption(true);
    config.memory_reservation(MEMORY_RESERVATION_BYTES);
    config.memory_guard_size(MEMORY_GUARD_BYTES);
    config.cache(cache);
    config
}

/// Wasmtime's own cache of compiled code. It is optional: failing to set it up costs compile time.
pub(super) fn cache() -> Option<Cache> {
    let directory = cache_directory()?;
    let config = cache_config(&directory);
    match Cache::new(config) {
        Ok(cache) => Some(cache),
        Err(error) => {
            tracing::debug!(directory = %directory.display(), %error, "no cache of compiled plugins");
            None
        }
    }
}

/// Without what wasmtime does by default to code that was loaded 256 times: it is compressed again, as well
/// as can be, by the process that loads it, which takes 128 MiB of memory meanwhile.
fn cache_config(directory: &Path) -> CacheConfig {
    let mut config = CacheConfig::new();
    let level = config.baseline_compression_level();
    config
        .with_directory(directory)
        .with_optimized_compression_level(level);
    config
}

fn cache_directory() -> Option<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("pointsman").join("compiled"))
}

/// Runs until the last [`Engines`] is dropped. A busy machine may wake it late; then it ticks as often
/// as it should have, so that calls are not given several times their timeout.
fn tick(engine: &Engine, activity: &Activity, woken: &mpsc::Receiver<()>) {
    let mut pace = TickerPace::default();
    let mut sleep = LOOK;
    let mut ticked_at = Instant::now();
    loop {
        match woken.recv_timeout(sleep) {
            Err(RecvTimeoutError::Timeout) | Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let n_due = ticked_at.elapsed().as_millis() / TICK.as_millis();
        let n_ticks = u32::try_from(n_due).map_or(TICKS_AT_ONCE_MAX, |n| n.min(TICKS_AT_ONCE_MAX));
        for _ in 0..n_ticks {
            engine.increment_epoch();
        }
        // Of a machine that slept, the time is lost.
        ticked_at = match n_ticks < TICKS_AT_ONCE_MAX {
            true => ticked_at + TICK * n_ticks,
            false => Instant::now(),
        };
        let marks = activity.marks();
        let marks = marks.iter().filter_map(Weak::upgrade);
        sleep = pace.next_sleep(marks.map(|mark| mark.n_switches.load(Relaxed)));
        activity.is_asleep.store(sleep == SLEEP, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticker_ticks_while_a_guest_runs_and_sleeps_when_none_is_called() {
        let mut pace = TickerPace::default();
        // Two workers. A call under way at a look is ticked for until it is over.
        assert_eq!(pace.next_sleep([0, 7].into_iter()), TICK);
        assert_eq!(pace.next_sleep([0, 7].into_iter()), TICK);
        assert_eq!(pace.next_sleep([0, 8].into_iter()), LOOK);
        for look in 1..QUIET_LOOKS {
            assert_eq!(pace.next_sleep([0, 8].into_iter()), LOOK, "{look}");
        }
        assert_eq!(pace.next_sleep([0, 8].into_iter()), SLEEP);
        assert_eq!(pace.next_sleep([0, 8].into_iter()), SLEEP);
        // Calls that come and go between two looks.
        assert_eq!(pace.next_sleep([400, 8].into_iter()), LOOK);
        assert_eq!(pace.next_sleep([401, 8].into_iter()), TICK);
    }

    #[test]
    fn a_mark_is_watched_once_and_as_long_as_it_is_there() {
        let engines = Engines::start(None).expect("this machine runs wasm");
        let (first, second) = (Arc::<CallMark>::default(), Arc::<CallMark>::default());
        for mark in [&first, &second, &first] {
            engines.watch(mark);
        }
        assert_eq!(engines.activity.marks().len(), 2);
        let running = engines.enter(&first);
        assert_eq!(first.n_switches.load(Relaxed), 1);
        drop(running);
        assert_eq!(first.n_switches.load(Relaxed), 2);
        drop(first);
        engines.watch(&second);
        assert_eq!(engines.activity.marks().len(), 1);
    }

    #[test]
    fn code_that_is_loaded_often_is_not_compressed_again() {
        let config = cache_config(Path::new("/cache"));
        assert_eq!(
            config.optimized_compression_level(),
            config.baseline_compression_level()
        );
    }
}
