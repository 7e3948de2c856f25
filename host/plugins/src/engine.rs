//! The compiler and the clock of all guests: one wasmtime engine and the thread that ticks its epochs.
//!
//! Synchronous and asynchronous guests share the engine, since they need the same code; what differs,
//! how an expired epoch is taken, is decided store by store. Knows nothing of plugins.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use wasmtime::{Cache, CacheConfig, Config, Engine};

/// One epoch.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// After so many ticks without a call the ticker wakes more rarely, and catches up when it does.
const QUIET_TICKS: u32 = 200;
const TICKS_PER_QUIET_WAKE: u32 = 10;

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
    /// Held for its drop, which the ticker sees.
    _ticker: mpsc::Sender<()>,
}

/// What the ticker has to know of the calls.
#[derive(Debug, Default)]
struct Activity {
    /// A call has begun since the last tick.
    has_called: AtomicBool,
    /// Guests that run asynchronously and may be resumed at any moment.
    n_resumable: AtomicUsize,
}

/// While it lives the ticker does not slow down.
#[derive(Debug)]
pub(super) struct Resumable(Arc<Activity>);

impl Engines {
    /// Makes the engine and starts its ticker. `cache`: of compiled code.
    ///
    /// # Errors
    /// This machine cannot run compiled wasm, or has no thread left.
    pub(crate) fn start(cache: Option<Cache>) -> wasmtime::Result<Self> {
        let engine = Engine::new(&config(cache))?;
        let activity = Arc::new(Activity::default());
        let (ticker, stopped) = mpsc::channel();
        let ticking = (engine.clone(), Arc::clone(&activity));
        thread::Builder::new()
            .name("plugin-ticker".to_owned())
            .spawn(move || tick(&ticking.0, &ticking.1, &stopped))?;
        Ok(Self {
            engine,
            activity,
            _ticker: ticker,
        })
    }

    /// The engine that every plugin is compiled for.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A synchronous call is about to begin. Relaxed: a tick late is as good.
    pub(super) fn note_call(&self) {
        if !self.activity.has_called.load(Ordering::Relaxed) {
            self.activity.has_called.store(true, Ordering::Relaxed);
        }
    }

    /// An asynchronous guest begins.
    pub(super) fn resumable(&self) -> Resumable {
        self.activity.n_resumable.fetch_add(1, Ordering::Relaxed);
        Resumable(Arc::clone(&self.activity))
    }
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").finish_non_exhaustive()
    }
}

impl Drop for Resumable {
    fn drop(&mut self) {
        self.0.n_resumable.fetch_sub(1, Ordering::Relaxed);
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
fn tick(engine: &Engine, activity: &Activity, stopped: &mpsc::Receiver<()>) {
    let mut quiet_ticks = 0;
    let mut ticked_at = Instant::now();
    loop {
        let n_ticks = if quiet_ticks < QUIET_TICKS {
            1
        } else {
            TICKS_PER_QUIET_WAKE
        };
        match stopped.recv_timeout(TICK * n_ticks) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
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
        let is_busy = activity.has_called.swap(false, Ordering::Relaxed)
            || activity.n_resumable.load(Ordering::Relaxed) > 0;
        quiet_ticks = if is_busy {
            0
        } else {
            (quiet_ticks + n_ticks).min(QUIET_TICKS)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_is_loaded_often_is_not_compressed_again() {
        let config = cache_config(Path::new("/cache"));
        assert_eq!(
            config.optimized_compression_level(),
            config.baseline_compression_level()
        );
    }
}
