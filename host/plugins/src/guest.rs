//! One instance and its memory: made, called within its limits, counted, and thrown away when it
//! fails.
//!
//! Knows nothing of what a call is about; `policy` and `sessions` do.

use std::sync::Arc;

use tracing::Level;
use wasmtime::Store;
use wasmtime::component::Instance;

use super::bindings::exports::pointsman::plugin::state;
use super::call::Call;
use super::engine::Running;
use super::failure::{CallError, Failure, cut};
use super::generation::{Generation, Saved};
use super::host::PluginHost;
use super::host_api::HostState;
use super::limits::{Limits, monotonic_ns};
use super::load::CallCode;
use super::share::PluginShared;
use super::stats::PluginStats;

/// One instance that is called synchronously.
#[derive(Debug)]
pub(super) struct Guest {
    /// None once it has failed: its memory is gone and no call can enter it again.
    store: Option<Store<HostState>>,
    /// What `stats` know of its memory.
    counted_bytes: usize,
    pub(super) about: InstanceContext,
}

/// What is true of all instances of one generation on one worker.
#[derive(Debug, Clone)]
pub(super) struct InstanceContext {
    pub(super) generation: Arc<Generation>,
    pub(super) host: PluginHost,
    pub(super) limits: Limits,
    pub(super) share: Arc<PluginShared>,
    pub(super) stats: Arc<PluginStats>,
}

impl InstanceContext {
    pub(super) fn new(generation: &Arc<Generation>, host: &PluginHost) -> Self {
        generation.code.engines.watch(host.mark());
        Self {
            generation: Arc::clone(generation),
            host: host.clone(),
            limits: host.limits(&generation.name),
            share: host.share(&generation.name),
            stats: host.stats(&generation.name),
        }
    }

    /// A guest runs until what is returned is dropped.
    pub(super) fn enter(&self) -> Running<'_> {
        self.generation.code.engines.enter(self.host.mark())
    }

    /// Makes what an instance lives in. It still needs its deadline.
    pub(super) fn store(&self) -> Store<HostState> {
        let grace = self.host.grace();
        let state = HostState::new(Arc::clone(&self.share), &self.limits, grace);
        let mut store = Store::new(self.generation.code.engines.engine(), state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(self.limits.output_max_bytes());
        self.stats.instance_made();
        store
    }

    /// Counts and tells that a call failed. The log line of one that was made for a session names the
    /// client, so it is written where that is known.
    pub(super) fn failed(&self, call: Call, error: &CallError) {
        self.stats.record_failure(call, error);
        let generation = self.generation.number;
        if !call.is_for_a_session() {
            let line = format!("generation {generation}: {error}");
            self.share.log.write(Level::WARN, &line);
        }
        self.host.report(Failure {
            plugin: self.generation.name.clone(),
            generation,
            worker: self.host.worker(),
            error: error.clone(),
        });
    }
}

impl Guest {
    /// Makes an instance. `load` finds its exports.
    pub(super) fn new<E>(
        about: InstanceContext,
        load: impl FnOnce(&CallCode, &mut Store<HostState>, &Instance) -> wasmtime::Result<E>,
    ) -> Result<(Self, E), CallError> {
        let mut store = about.store();
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().watch.expired()));
        let generation = Arc::clone(&about.generation);
        let mut guest = Self {
            store: Some(store),
            counted_bytes: 0,
            about,
        };
        let exports = guest.call(Call::Instantiate, |store| {
            let Some(code) = generation.calls() else {
                return Err(wasmtime::Error::msg(
                    "it exports neither policy nor filter nor handler",
                ));
            };
            let instance = code.pre.instantiate(&mut *store)?;
            load(code, store, &instance)
        })?;
        Ok((guest, exports))
    }

    /// Calls the instance within its limits. It is dead after any error but that of a call for a
    /// session that came back late.
    pub(super) fn call<R>(
        &mut self,
        call: Call,
        run: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        match self.call_maybe_late(call, run)? {
            (result, None) => Ok(result),
            (_, Some(late)) => Err(late),
        }
    }

    /// As [`Guest::call`], for a result that has to be given back to the guest also when it came late.
    pub(super) fn call_maybe_late<R>(
        &mut self,
        call: Call,
        run: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<(R, Option<CallError>), CallError> {
        let Some(store) = &mut self.store else {
            return Err(CallError::Dead);
        };
        let started_ns = monotonic_ns();
        let watch = &mut store.data_mut().watch;
        let ticks = watch.begin(started_ns, call.is_for_a_session());
        store.set_epoch_deadline(ticks);
        let result = {
            let _running = self.about.enter();
            run(store)
        };

        self.about
            .stats
            .record(call, monotonic_ns().saturating_sub(started_ns));
        let state = store.data_mut();
        let is_late = state.watch.end();
        let memory = &mut state.memory;
        if memory.used_bytes() != self.counted_bytes {
            let used = memory.used_bytes();
            self.about.stats.memory_changed(self.counted_bytes, used);
            self.counted_bytes = used;
        }
        let was_refused_memory = memory.take_refused();
        let limits = &self.about.limits;
        match result {
            Ok(result) if is_late => {
                let timeout = limits.call_timeout;
                let late = CallError::Timeout { call, timeout };
                self.about.failed(call, &late);
                Ok((result, Some(late)))
            }
            Ok(result) => Ok((result, None)),
            Err(error) => {
                let error = CallError::classify(call, &error, limits, was_refused_memory);
                self.kill();
                self.about.failed(call, &error);
                Err(error)
            }
        }
    }

    /// A call came back with what `bindings` does not take.
    pub(super) fn check<R>(
        &self,
        call: Call,
        result: Result<R, CallError>,
    ) -> Result<R, CallError> {
        if let Err(error) = &result {
            self.about.failed(call, error);
        }
        result
    }

    pub(super) fn is_dead(&self) -> bool {
        self.store.is_none()
    }

    /// What the instance knows, with the version of its layout.
    pub(super) fn save(&mut self, state: &state::Guest) -> Result<Saved, CallError> {
        let memory_max_bytes = self.about.limits.memory_max_bytes;
        let output_max_bytes = self.about.limits.output_max_bytes();
        self.call(Call::Save, |store| {
            let version = state.call_version(&mut *store)?;
            // All that it holds may be worth keeping.
            store.set_hostcall_fuel(memory_max_bytes);
            let bytes = state.call_save(&mut *store)?;
            store.set_hostcall_fuel(output_max_bytes);
            Ok(Saved { version, bytes })
        })
    }

    /// Hands over what another instance knew.
    pub(super) fn restore(&mut self, state: &state::Guest, saved: &Saved) -> Result<(), CallError> {
        let restored = self.call(Call::Restore, |store| {
            state.call_restore(store, &saved.bytes, saved.version)
        })?;
        restored.map_err(|reason| CallError::Refused {
            call: Call::Restore,
            reason: cut(reason),
        })
    }

    fn kill(&mut self) {
        if self.store.take().is_some() {
            self.about.stats.instance_gone();
            self.about.stats.memory_changed(self.counted_bytes, 0);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}
