//! Plugins that have sessions: instances that hold a bounded number of them, or one each.
//!
//! What a session is called for is [`Exports`]' business; `handler` and `filter` are the two kinds. A
//! trap takes its instance along, and with it every session that the instance holds; each of them
//! hears of it by its outbox. New sessions get a new instance. Clients for whom a call has failed
//! lately share instances with each other, and with nobody else. Which instance takes which session
//! is `placement`'s business.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use pointsman_config::{Isolation, PluginSettings};
use pointsman_contract::client::network;
use pointsman_contract::failure::{FailedCall, PluginError};
use pointsman_contract::handler::Facts;
use pointsman_contract::outbox::Outbox;
use pointsman_contract::session::SessionId;
use tracing::Level;
use wasmtime::Store;
use wasmtime::component::{Instance, ResourceAny};

use super::bindings;
use super::bindings::exports::pointsman::plugin::state;
use super::bindings::pointsman::plugin::types;
use super::breaker::Breaker;
use super::call::Call;
use super::failure::{CallError, cut};
use super::generation::{Generation, Saved};
use super::guest::{Guest, InstanceContext};
use super::host::PluginHost;
use super::host_api::HostState;
use super::load::CallCode;
use super::placement::Placement;

/// What a kind of plugin exports.
pub(super) trait Exports: Clone {
    /// What a session wants to see.
    type Interest: Copy;

    /// Finds the exports of an instance.
    fn load(
        code: &CallCode,
        store: &mut Store<HostState>,
        instance: &Instance,
    ) -> wasmtime::Result<Self>;

    fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> wasmtime::Result<Result<SessionWants, String>>;

    /// Begins a session.
    fn open(
        &self,
        store: &mut Store<HostState>,
        facts: types::Facts<'_>,
    ) -> wasmtime::Result<(ResourceAny, Self::Interest)>;
}

/// What a plugin wants of its host.
pub(super) struct SessionWants {
    pub(super) headers: Vec<String>,
    pub(super) accept: bool,
}

/// What makes the sessions of one generation on one worker.
pub(super) struct Host<X> {
    pub(super) about: InstanceContext,
    pub(super) settings: PluginSettings,
    pub(super) wanted_headers: Vec<String>,
    pub(super) wants_accept: bool,
    /// Its oldest instance stays when it has no session, for `accept` and for state.
    usual: Rc<InstancePool<X>>,
    /// For clients for whom a call has failed lately.
    suspects: Rc<InstancePool<X>>,
}

/// Instances that take sessions, none of them dead.
struct InstancePool<X> {
    placement: RefCell<Placement<Rc<SharedInstance<X>>>>,
    breaker: Breaker,
}

/// An instance of some sessions.
pub(super) struct SharedInstance<X> {
    /// In its pool.
    number: u64,
    /// None is left when its generation makes no more sessions, and there never was one where each session has
    /// an instance.
    pool: Weak<InstancePool<X>>,
    inside: RefCell<SessionsInstance<X>>,
}

struct SessionsInstance<X> {
    guest: Guest,
    exports: X,
    state: Option<state::Guest>,
    sessions: HashMap<SessionId, Outbox>,
    /// It is dead, and its sessions have been told.
    is_buried: bool,
}

/// A session's place at an instance. Dropping it makes room.
struct Seat<X> {
    instance: Rc<SharedInstance<X>>,
    client_ip: IpAddr,
}

/// One session at an instance. Dropping it frees it.
pub(super) struct GuestSession<X: Exports> {
    id: SessionId,
    seat: Seat<X>,
    /// None once it has been given back.
    resource: Option<ResourceAny>,
    pub(super) interest: X::Interest,
    pub(super) max_message_bytes: u64,
}

impl<X: Exports> Host<X> {
    pub(super) fn new(
        generation: &Arc<Generation>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<Self, CallError> {
        let about = InstanceContext::new(generation, host);
        let usual = Rc::new(InstancePool::new(settings, true));
        let wants = usual.grow(&about, settings)?.1;
        Ok(Self {
            about,
            settings: settings.clone(),
            wanted_headers: wants
                .headers
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
            wants_accept: wants.accept,
            usual,
            suspects: Rc::new(InstancePool::new(settings, false)),
        })
    }

    /// What it knows, for the one that takes its place: of several instances, what the oldest one that
    /// is alive knows. None: it has nothing to hand over.
    pub(super) fn save(&self) -> Result<Option<Saved>, CallError> {
        let Some(oldest) = self.usual.placement.borrow().oldest() else {
            return Ok(None);
        };
        let saved = oldest.inside.borrow_mut().save();
        oldest.bury(None);
        saved
    }

    /// Takes over what the one before knew; nothing happens if it keeps no state. Call it before the
    /// first session.
    pub(super) fn restore(&self, saved: &Saved) -> Result<(), CallError> {
        let oldest = self.oldest(&self.usual)?;
        let restored = oldest.inside.borrow_mut().restore(saved);
        oldest.bury(None);
        restored
    }

    /// Asks `accept`, if the plugin wants that; otherwise, none.
    pub(super) fn accept<R, A>(
        &self,
        facts: &Facts,
        run: impl FnOnce(&X, &mut Store<HostState>, types::Facts<'_>) -> wasmtime::Result<R>,
        lift: impl FnOnce(R) -> Result<A, CallError>,
    ) -> Result<Option<A>, PluginError> {
        let pool = self.pool(facts);
        pool.breaker
            .check(Instant::now())
            .map_err(into_plugin_error)?;
        if !self.wants_accept {
            return Ok(None);
        }
        let oldest = self.oldest(pool).map_err(into_plugin_error)?;
        let accepted = oldest.inside.borrow_mut().accept(facts, run, lift);
        accepted
            .map(Some)
            .map_err(|error| oldest.failed(Call::Accept, error, facts.session, facts.client_ip))
    }

    /// Begins a session, on an instance that has room for it.
    pub(super) fn open(
        &self,
        facts: &Facts,
        outbox: Outbox,
    ) -> Result<GuestSession<X>, PluginError> {
        let instance = self.place(facts).map_err(into_plugin_error)?;
        let seat = Seat::take(instance, facts.client_ip);
        let opened = seat.instance.inside.borrow_mut().open(facts, outbox);
        match opened {
            Ok((resource, interest)) => Ok(GuestSession {
                id: facts.session,
                seat,
                resource: Some(resource),
                interest,
                max_message_bytes: facts.max_message_bytes,
            }),
            Err(error) => Err(seat.failed(Call::Open, error, facts.session)),
        }
    }

    fn place(&self, facts: &Facts) -> Result<Rc<SharedInstance<X>>, CallError> {
        let pool = self.pool(facts);
        pool.breaker.check(Instant::now())?;
        if self.settings.isolation == Isolation::Session {
            let made = SharedInstance::new(&self.about, &self.settings, 0, Weak::new());
            let made = made.inspect_err(|_| pool.breaker.failed(Instant::now()));
            return Ok(made?.0);
        }
        let found = pool.placement.borrow().find(network(facts.client_ip));
        match found {
            Some(instance) => Ok(instance),
            None => Ok(pool.grow(&self.about, &self.settings)?.0),
        }
    }

    fn pool(&self, facts: &Facts) -> &Rc<InstancePool<X>> {
        match facts.is_suspect {
            true => &self.suspects,
            false => &self.usual,
        }
    }

    /// An instance that is alive, whether it is full or not.
    fn oldest(&self, pool: &Rc<InstancePool<X>>) -> Result<Rc<SharedInstance<X>>, CallError> {
        let found = pool.placement.borrow().oldest();
        match found {
            Some(instance) => Ok(instance),
            None => Ok(pool.grow(&self.about, &self.settings)?.0),
        }
    }
}

impl<X: Exports> InstancePool<X> {
    fn new(settings: &PluginSettings, keeps_oldest: bool) -> Self {
        let placement = Placement::new(settings.sessions_per_instance, keeps_oldest);
        Self {
            placement: RefCell::new(placement),
            breaker: Breaker::default(),
        }
    }

    /// Makes one more instance.
    fn grow(
        self: &Rc<Self>,
        about: &InstanceContext,
        settings: &PluginSettings,
    ) -> Result<(Rc<SharedInstance<X>>, SessionWants), CallError> {
        let number = self.placement.borrow_mut().next_number();
        let (instance, wants) = SharedInstance::new(about, settings, number, Rc::downgrade(self))
            .inspect_err(|_| self.breaker.failed(Instant::now()))?;
        let mut placement = self.placement.borrow_mut();
        placement.add(number, Rc::clone(&instance));
        Ok((instance, wants))
    }
}

impl<X: Exports> SharedInstance<X> {
    fn new(
        about: &InstanceContext,
        settings: &PluginSettings,
        number: u64,
        pool: Weak<InstancePool<X>>,
    ) -> Result<(Rc<Self>, SessionWants), CallError> {
        let (inside, wants) = SessionsInstance::new(about.clone(), settings)?;
        let instance = Self {
            number,
            pool,
            inside: RefCell::new(inside),
        };
        Ok((Rc::new(instance), wants))
    }
}

impl<X> SharedInstance<X> {
    /// Takes an instance that has died out of its pool, and tells its sessions, but for the one that knows
    /// by its error. Says how many were told; none: it is alive, or this was done before.
    fn bury(&self, caller: Option<SessionId>) -> Option<usize> {
        let n_lost = self.inside.borrow_mut().bury(caller)?;
        if let Some(pool) = self.pool.upgrade() {
            pool.placement.borrow_mut().remove(self.number);
            pool.breaker.failed(Instant::now());
        }
        Some(n_lost)
    }

    /// A call for a session has failed: what that cost, and who it was.
    fn failed(
        &self,
        call: Call,
        error: CallError,
        session: SessionId,
        client: IpAddr,
    ) -> PluginError {
        let n_lost = self.bury(Some(session));
        if !error.is_the_guests() {
            return into_plugin_error(error);
        }
        let inside = self.inside.borrow();
        let about = &inside.guest.about;
        about.stats.session_failed(n_lost);
        PluginError {
            message: error.to_string(),
            call: Some(Box::new(FailedCall {
                plugin: about.generation.name.clone(),
                generation: about.generation.number,
                call: call.name(),
                session,
                client,
                is_clients_doing: call != Call::Tick,
                n_lost,
            })),
        }
    }
}

impl<X: Exports> SessionsInstance<X> {
    fn new(
        about: InstanceContext,
        settings: &PluginSettings,
    ) -> Result<(Self, SessionWants), CallError> {
        let (mut guest, (exports, state)) =
            Guest::new(about, |code, store, instance: &Instance| {
                let exports = X::load(code, store, instance)?;
                let state = code
                    .state
                    .as_ref()
                    .map(|state| state.load(&mut *store, instance))
                    .transpose()?;
                Ok((exports, state))
            })?;
        let config = settings.config.to_string();
        let configured = guest.call(Call::Configure, |store| exports.configure(store, &config))?;
        let wants = configured.map_err(|reason| CallError::Refused {
            call: Call::Configure,
            reason: cut(reason),
        })?;
        guest.check(Call::Configure, bindings::wanted_headers(&wants.headers))?;
        let instance = Self {
            guest,
            exports,
            state,
            sessions: HashMap::new(),
            is_buried: false,
        };
        Ok((instance, wants))
    }

    fn save(&mut self) -> Result<Option<Saved>, CallError> {
        match &self.state {
            Some(state) => self.guest.save(state).map(Some),
            None => Ok(None),
        }
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), CallError> {
        match &self.state {
            Some(state) => self.guest.restore(state, saved),
            None => Ok(()),
        }
    }

    fn accept<R, A>(
        &mut self,
        facts: &Facts,
        run: impl FnOnce(&X, &mut Store<HostState>, types::Facts<'_>) -> wasmtime::Result<R>,
        lift: impl FnOnce(R) -> Result<A, CallError>,
    ) -> Result<A, CallError> {
        let lowered = LoweredFacts::new(facts);
        let lists = lowered.lists();
        let exports = &self.exports;
        let accepted = self.guest.call(Call::Accept, |store| {
            run(exports, store, lowered.facts(&lists))
        })?;
        self.guest.check(Call::Accept, lift(accepted))
    }

    /// The constructor may use the session's id already, so it is known before.
    fn open(
        &mut self,
        facts: &Facts,
        outbox: Outbox,
    ) -> Result<(ResourceAny, X::Interest), CallError> {
        let id = facts.session;
        self.guest.about.share.topics.join(id, outbox.clone());
        self.sessions.insert(id, outbox);
        let lowered = LoweredFacts::new(facts);
        let lists = lowered.lists();
        let exports = &self.exports;
        let opened = self.guest.call_maybe_late(Call::Open, |store| {
            exports.open(store, lowered.facts(&lists))
        });
        match opened {
            Ok((opened, None)) => Ok(opened),
            Ok(((resource, _), Some(late))) => {
                // What is wrong with that is told by the instance's death alone.
                let _ = self.end(id, resource);
                Err(late)
            }
            Err(error) => {
                self.forget(id);
                Err(error)
            }
        }
    }

    fn end(&mut self, id: SessionId, resource: ResourceAny) -> Result<(), CallError> {
        self.forget(id);
        self.guest
            .call(Call::Closed, |store| resource.resource_drop(store))
    }
}

impl<X> SessionsInstance<X> {
    fn bury(&mut self, caller: Option<SessionId>) -> Option<usize> {
        if self.is_buried || !self.guest.is_dead() {
            return None;
        }
        self.is_buried = true;
        let about = &self.guest.about;
        let mut n_lost = 0;
        for (id, outbox) in self.sessions.drain() {
            about.share.topics.leave(id);
            if Some(id) != caller {
                outbox.fail(&about.generation.name);
                n_lost += 1;
            }
        }
        Some(n_lost)
    }

    fn forget(&mut self, id: SessionId) {
        if self.sessions.remove(&id).is_some() {
            self.guest.about.share.topics.leave(id);
        }
    }
}

impl<X> Seat<X> {
    fn take(instance: Rc<SharedInstance<X>>, client_ip: IpAddr) -> Self {
        let seat = Self {
            instance,
            client_ip,
        };
        if let Some(pool) = seat.instance.pool.upgrade() {
            let mut placement = pool.placement.borrow_mut();
            placement.enter(seat.instance.number, network(client_ip));
        }
        seat
    }

    fn failed(&self, call: Call, error: CallError, session: SessionId) -> PluginError {
        self.instance.failed(call, error, session, self.client_ip)
    }
}

impl<X> Drop for Seat<X> {
    fn drop(&mut self) {
        // Nothing is dropped while a pool is looked at, so this is free unless a panic is under way.
        if let Some(pool) = self.instance.pool.upgrade()
            && let Ok(mut placement) = pool.placement.try_borrow_mut()
        {
            placement.leave(self.instance.number, network(self.client_ip));
        }
    }
}

impl<X: Exports> GuestSession<X> {
    pub(super) fn call<R>(
        &self,
        call: Call,
        run: impl FnOnce(&X, &mut Store<HostState>, ResourceAny) -> wasmtime::Result<R>,
    ) -> Result<R, PluginError> {
        let Some(resource) = self.resource else {
            return Err(into_plugin_error(CallError::Dead));
        };
        let mut inside = self.seat.instance.inside.borrow_mut();
        let SessionsInstance { guest, exports, .. } = &mut *inside;
        let result = guest.call(call, |store| run(exports, store, resource));
        drop(inside);
        result.map_err(|error| self.seat.failed(call, error, self.id))
    }

    /// A call came back with what `bindings` took, or did not take.
    pub(super) fn check<R>(
        &self,
        call: Call,
        checked: Result<R, CallError>,
    ) -> Result<R, PluginError> {
        let checked = self
            .seat
            .instance
            .inside
            .borrow()
            .guest
            .check(call, checked);
        checked.map_err(|error| self.seat.failed(call, error, self.id))
    }

    /// Gives the session back to the guest.
    pub(super) fn free(&mut self) -> Result<(), PluginError> {
        let Some(resource) = self.resource.take() else {
            return Ok(());
        };
        // Calls return before anything is dropped, so this is free unless a panic is under way.
        let Ok(mut inside) = self.seat.instance.inside.try_borrow_mut() else {
            return Ok(());
        };
        let freed = inside.end(self.id, resource);
        drop(inside);
        freed.map_err(|error| self.seat.failed(Call::Closed, error, self.id))
    }

    /// For what a session has to count.
    pub(super) fn about<R>(&self, read: impl FnOnce(&InstanceContext) -> R) -> R {
        read(&self.seat.instance.inside.borrow().guest.about)
    }
}

impl<X: Exports> Drop for GuestSession<X> {
    fn drop(&mut self) {
        // Nobody else hears of it here.
        if let Err(error) = self.free()
            && error.call.is_some()
        {
            let line = format!("session {}: {error}", self.id.0);
            self.about(|about| about.share.log.write(Level::WARN, &line));
        }
    }
}

/// Facts as the guest is handed them, but for the lists that borrow from this.
struct LoweredFacts<'a> {
    facts: &'a Facts,
    client_ip: String,
}

struct FactLists<'a> {
    offered_subprotocols: Vec<&'a str>,
    headers: Vec<types::HeaderParam<'a>>,
}

impl<'a> LoweredFacts<'a> {
    fn new(facts: &'a Facts) -> Self {
        let client_ip = facts.client_ip.to_string();
        Self { facts, client_ip }
    }

    fn lists(&self) -> FactLists<'a> {
        let header = |(name, value): &'a (String, String)| types::HeaderParam { name, value };
        FactLists {
            offered_subprotocols: self
                .facts
                .offered_subprotocols
                .iter()
                .map(String::as_str)
                .collect(),
            headers: self.facts.headers.iter().map(header).collect(),
        }
    }

    fn facts<'b>(&'b self, lists: &'b FactLists<'b>) -> types::Facts<'b> {
        types::Facts {
            session: self.facts.session.0,
            route: &self.facts.route,
            client_ip: &self.client_ip,
            host: &self.facts.host,
            path: &self.facts.path,
            request_id: &self.facts.request_id,
            offered_subprotocols: &lists.offered_subprotocols,
            subprotocol: self.facts.subprotocol.as_deref(),
            headers: &lists.headers,
        }
    }
}

pub(super) fn into_plugin_error(error: CallError) -> PluginError {
    PluginError::new(error.to_string())
}

impl<X: Exports> fmt::Debug for Host<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = &self.about.generation;
        f.debug_struct("Host")
            .field("plugin", &generation.name)
            .field("generation", &generation.number)
            .finish_non_exhaustive()
    }
}

impl<X: Exports> fmt::Debug for GuestSession<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestSession")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl<X> Host<X> {
    pub(super) fn n_instances(&self) -> usize {
        self.usual.placement.borrow().n_instances()
    }
}
