//! Filters that are guests: between client and backend, lowered and lifted.

use std::fmt;
use std::sync::Arc;

use pointsman_config::PluginSettings;
use pointsman_contract::failure::PluginError;
use pointsman_contract::filter::{
    Admission, Direction, Filter, FilterInterest, FilterSession, FilterVerdict,
};
use pointsman_contract::handler::Facts;
use pointsman_contract::message::Received;
use pointsman_contract::outbox::{Outbox, QueueSettings};
use pointsman_contract::policy::Refusal;
use pointsman_contract::session::EndReport;
use wasmtime::Store;
use wasmtime::component::{Instance, ResourceAny};

use super::bindings;
use super::bindings::exports::pointsman::plugin::filter as wire;
use super::bindings::pointsman::plugin::types;
use super::call::Call;
use super::failure::CallError;
use super::generation::{Generation, Saved};
use super::host::PluginHost;
use super::host_api::HostState;
use super::load::CallCode;
use super::sessions::{self, Exports, GuestSession, SessionWants};

/// What makes the sessions of one filter's generation on one worker.
pub struct GuestFilter(sessions::Host<wire::Guest>);

impl GuestFilter {
    pub(super) fn new(
        generation: &Arc<Generation>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<Self, CallError> {
        sessions::Host::new(generation, settings, host).map(Self)
    }

    /// As [`super::handler::GuestHandler::save`].
    ///
    /// # Errors
    /// It could not say.
    pub fn save(&self) -> Result<Option<Saved>, CallError> {
        self.0.save()
    }

    /// As [`super::handler::GuestHandler::restore`].
    ///
    /// # Errors
    /// It refuses, and begins afresh.
    pub fn restore(&self, saved: &Saved) -> Result<(), CallError> {
        self.0.restore(saved)
    }
}

impl Exports for wire::Guest {
    type Interest = FilterInterest;

    fn load(
        code: &CallCode,
        store: &mut Store<HostState>,
        instance: &Instance,
    ) -> wasmtime::Result<Self> {
        match &code.filter {
            Some(filter) => filter.load(store, instance),
            None => Err(wasmtime::Error::msg("it exports no filter")),
        }
    }

    fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> wasmtime::Result<Result<SessionWants, String>> {
        let wants = |wire::Wants { headers, accept }| SessionWants { headers, accept };
        Ok(self.call_configure(store, config)?.map(wants))
    }

    fn open(
        &self,
        store: &mut Store<HostState>,
        facts: types::Facts<'_>,
    ) -> wasmtime::Result<(ResourceAny, FilterInterest)> {
        let session = self.session();
        let resource = session.call_constructor(&mut *store, facts)?;
        let interest = session.call_interest(&mut *store, resource)?;
        let tick_interval_ms = session.call_tick_interval_ms(&mut *store, resource)?;
        let interest = bindings::filter_interest(interest, tick_interval_ms);
        Ok((resource, interest))
    }
}

impl Filter for GuestFilter {
    fn wanted_headers(&self) -> Vec<String> {
        self.0.wanted_headers.clone()
    }

    fn max_message_bytes(&self) -> u64 {
        self.0.about.limits.message_max_bytes() as u64
    }

    fn queue(&self) -> QueueSettings {
        self.0.settings.queue
    }

    fn wants_accept(&self) -> bool {
        self.0.wants_accept
    }

    fn accept(&self, facts: &Facts) -> Result<Result<Admission, Refusal>, PluginError> {
        let accepted = self.0.accept(
            facts,
            |filter, store, facts| filter.call_accept(store, facts),
            |accepted| match accepted {
                Ok(admission) => bindings::admission(admission).map(Ok),
                Err(refused) => bindings::refusal(Call::Accept, refused).map(Err),
            },
        )?;
        Ok(accepted.unwrap_or_else(|| Ok(Admission::default())))
    }

    fn open(&self, facts: &Facts, outbox: Outbox) -> Result<Box<dyn FilterSession>, PluginError> {
        Ok(Box::new(self.0.open(facts, outbox)?))
    }
}

impl GuestSession<wire::Guest> {
    fn verdict(
        &self,
        call: Call,
        run: impl FnOnce(
            &wire::Guest,
            &mut Store<HostState>,
            ResourceAny,
        ) -> wasmtime::Result<wire::Verdict>,
    ) -> Result<FilterVerdict, PluginError> {
        let verdict = self.call(call, run)?;
        let checked = bindings::filter_verdict(call, verdict, self.max_message_bytes);
        let verdict = self.check(call, checked)?;
        self.about(|about| about.stats.filter_verdict(&verdict));
        Ok(verdict)
    }
}

impl FilterSession for GuestSession<wire::Guest> {
    fn interest(&self) -> FilterInterest {
        self.interest
    }

    fn message(
        &mut self,
        from: Direction,
        message: Received<'_>,
    ) -> Result<FilterVerdict, PluginError> {
        let direction = match from {
            Direction::FromClient => wire::Direction::FromClient,
            Direction::FromBackend => wire::Direction::FromBackend,
        };
        let lowered = bindings::lower(message);
        self.about(|about| about.stats.shown(message.len()));
        let verdict = self.verdict(Call::Message, |filter, store, session| {
            filter
                .session()
                .call_message(store, session, direction, lowered)
        });
        verdict.map_err(|error| match from {
            Direction::FromClient => error,
            Direction::FromBackend => error.not_the_clients_doing(),
        })
    }

    fn tick(&mut self) -> Result<FilterVerdict, PluginError> {
        self.verdict(Call::Tick, |filter, store, session| {
            filter.session().call_tick(store, session)
        })
    }

    fn closed(mut self: Box<Self>, report: &EndReport) -> Result<(), PluginError> {
        let lowered = bindings::report(report);
        let closed = self.call(Call::Closed, |filter, store, session| {
            filter.session().call_closed(store, session, lowered)
        });
        let freed = self.free();
        closed.and(freed).map_err(|error| error.at_the_end(report))
    }
}

impl fmt::Debug for GuestFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
