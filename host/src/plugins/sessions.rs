//! Plugins that have sessions: instances that hold many of them, or one each.
//!
//! What a session is called for is [`Exports`]' business; `handler` and `filter` are the two kinds. A
//! trap takes its instance along, and with it every session that the instance holds; each of them
//! hears of it by its outbox. New sessions get a new instance.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::Store;
use wasmtime::component::{Instance, ResourceAny};

use super::bindings;
use super::bindings::exports::pointsman::plugin::state;
use super::bindings::pointsman::plugin::types;
use super::breaker::Breaker;
use super::failure::{CallError, cut};
use super::generation::{Generation, Saved};
use super::guest::{About, Guest};
use super::host::PluginHost;
use super::host_api::HostState;
use super::load::CallCode;
use super::stats::Call;
use crate::config::{Isolation, PluginSettings};
use crate::session::SessionId;
use crate::session::handler::{Facts, PluginError};
use crate::session::outbox::Outbox;

/// Sessions that one shared instance holds. A trap loses so many at most.
const SESSIONS_PER_INSTANCE_MAX: usize = 1024;

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
    ) -> wasmtime::Result<Result<Wants, String>>;

    /// Begins a session.
    fn open(
        &self,
        store: &mut Store<HostState>,
        facts: types::Facts<'_>,
    ) -> wasmtime::Result<(ResourceAny, Self::Interest)>;
}

/// What a plugin wants of its host.
pub(super) struct Wants {
    pub(super) headers: Vec<String>,
    pub(super) accept: bool,
}

/// What makes the sessions of one generation on one worker.
pub(super) struct Host<X> {
    pub(super) about: About,
    pub(super) settings: PluginSettings,
    pub(super) wanted_headers: Vec<String>,
    pub(super) wants_accept: bool,
    /// Those that take sessions. The first is kept when it has none, for `accept` and for state.
    instances: RefCell<Vec<SharedInstance<X>>>,
    breaker: Breaker,
}

type SharedInstance<X> = Rc<RefCell<SessionsInstance<X>>>;

pub(super) struct SessionsInstance<X> {
    pub(super) guest: Guest,
    pub(super) exports: X,
    state: Option<state::Guest>,
    sessions: HashMap<SessionId, Outbox>,
}

/// One session at an instance. Dropping it frees it.
pub(super) struct GuestSession<X: Exports> {
    id: SessionId,
    instance: SharedInstance<X>,
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
        let about = About::new(generation, host);
        let (first, wants) = SessionsInstance::new(about.clone(), settings)?;
        Ok(Self {
            about,
            settings: settings.clone(),
            wanted_headers: wants
                .headers
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
            wants_accept: wants.accept,
            instances: RefCell::new(vec![first]),
            breaker: Breaker::default(),
        })
    }

    /// What it knows, for the one that takes its place: of several instances, what the first one that
    /// is alive knows. None: it has nothing to hand over.
    pub(super) fn save(&self) -> Result<Option<Saved>, CallError> {
        let instances = self.instances.borrow();
        let mut instances = instances.iter();
        let Some(first) = instances.find(|instance| !instance.borrow().guest.is_dead()) else {
            return Ok(None);
        };
        let mut first = first.borrow_mut();
        let Some(state) = first.state.clone() else {
            return Ok(None);
        };
        let saved = first.guest.save(&state);
        first.notice_death(None);
        saved.map(Some)
    }

    /// Takes over what the one before knew; nothing happens if it keeps no state. Call it before the
    /// first session.
    pub(super) fn restore(&self, saved: &Saved) -> Result<(), CallError> {
        let first = self.first()?;
        let mut first = first.borrow_mut();
        match first.state.clone() {
            Some(state) => first.guest.restore(&state, saved),
            None => Ok(()),
        }
    }

    /// Who has to be asked before a session is accepted, if the plugin wants that.
    pub(super) fn to_ask(&self) -> Result<Option<SharedInstance<X>>, CallError> {
        self.breaker.check(Instant::now())?;
        self.wants_accept.then(|| self.first()).transpose()
    }

    /// An instance that is alive, whether it is full or not.
    fn first(&self) -> Result<SharedInstance<X>, CallError> {
        let mut instances = self.instances.borrow_mut();
        instances.retain(|instance| self.is_alive(instance));
        if let Some(first) = instances.first() {
            return Ok(Rc::clone(first));
        }
        let instance = self.make()?;
        instances.push(Rc::clone(&instance));
        Ok(instance)
    }

    /// Begins a session, on an instance that has room for it.
    pub(super) fn open(&self, facts: &Facts, outbox: Outbox) -> Result<GuestSession<X>, CallError> {
        let instance = self.roomy()?;
        let (resource, interest) = instance.borrow_mut().open(facts, outbox)?;
        Ok(GuestSession {
            id: facts.session,
            instance,
            resource: Some(resource),
            interest,
            max_message_bytes: facts.max_message_bytes,
        })
    }

    fn roomy(&self) -> Result<SharedInstance<X>, CallError> {
        self.breaker.check(Instant::now())?;
        if self.settings.isolation == Isolation::Session {
            return self.make();
        }
        let mut instances = self.instances.borrow_mut();
        let mut is_first = true;
        instances.retain(|instance| {
            let has_sessions = !instance.borrow().sessions.is_empty();
            let is_kept = self.is_alive(instance) && (is_first || has_sessions);
            is_first &= !is_kept;
            is_kept
        });
        let has_room = |instance: &&SharedInstance<X>| {
            instance.borrow().sessions.len() < SESSIONS_PER_INSTANCE_MAX
        };
        if let Some(instance) = instances.iter().find(has_room) {
            return Ok(Rc::clone(instance));
        }
        let instance = self.make()?;
        instances.push(Rc::clone(&instance));
        Ok(instance)
    }

    /// Counts the dead, each of which is asked about once.
    fn is_alive(&self, instance: &SharedInstance<X>) -> bool {
        let is_alive = !instance.borrow().guest.is_dead();
        if !is_alive {
            self.breaker.failed(Instant::now());
        }
        is_alive
    }

    fn make(&self) -> Result<SharedInstance<X>, CallError> {
        let made = SessionsInstance::new(self.about.clone(), &self.settings);
        let (instance, _) = made.inspect_err(|_| self.breaker.failed(Instant::now()))?;
        Ok(instance)
    }

    #[cfg(test)]
    pub(super) fn n_instances(&self) -> usize {
        self.instances.borrow().len()
    }

    #[cfg(test)]
    pub(super) fn n_sessions(&self) -> usize {
        let instances = self.instances.borrow();
        instances.iter().map(|i| i.borrow().sessions.len()).sum()
    }
}

impl<X: Exports> SessionsInstance<X> {
    fn new(
        about: About,
        settings: &PluginSettings,
    ) -> Result<(SharedInstance<X>, Wants), CallError> {
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
        };
        Ok((Rc::new(RefCell::new(instance)), wants))
    }

    /// Calls `accept`.
    pub(super) fn accept<R>(
        &mut self,
        facts: &Facts,
        run: impl FnOnce(&X, &mut Store<HostState>, types::Facts<'_>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        let lowered = LoweredFacts::new(facts);
        let lists = lowered.lists();
        let exports = &self.exports;
        let accepted = self.guest.call(Call::Accept, |store| {
            run(exports, store, lowered.facts(&lists))
        });
        self.notice_death(None);
        accepted
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
        let exports = self.exports.clone();
        let opened = self.call(id, Call::Open, |store| {
            exports.open(store, lowered.facts(&lists))
        });
        if opened.is_err() {
            self.forget(id);
        }
        opened
    }

    fn call<R>(
        &mut self,
        caller: SessionId,
        call: Call,
        run: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        let result = self.guest.call(call, run);
        self.notice_death(Some(caller));
        result
    }

    /// Tells the sessions of a dead instance, but for the one that knows by its error.
    fn notice_death(&mut self, caller: Option<SessionId>) {
        if !self.guest.is_dead() {
            return;
        }
        for (id, outbox) in self.sessions.drain() {
            self.guest.about.share.topics.leave(id);
            if Some(id) != caller {
                outbox.fail();
            }
        }
    }

    fn end(&mut self, id: SessionId, resource: ResourceAny) {
        self.forget(id);
        // An error is counted and leaves the instance dead, which is all that there is to do.
        let _ = self.call(id, Call::Closed, |store| resource.resource_drop(store));
    }

    fn forget(&mut self, id: SessionId) {
        if self.sessions.remove(&id).is_some() {
            self.guest.about.share.topics.leave(id);
        }
    }
}

impl<X: Exports> GuestSession<X> {
    pub(super) fn call<R>(
        &self,
        call: Call,
        run: impl FnOnce(&X, &mut Store<HostState>, ResourceAny) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        let Some(resource) = self.resource else {
            return Err(CallError::Dead);
        };
        let mut instance = self.instance.borrow_mut();
        let SessionsInstance { guest, exports, .. } = &mut *instance;
        let result = guest.call(call, |store| run(exports, store, resource));
        if result.is_err() {
            instance.notice_death(Some(self.id));
        }
        result
    }

    /// A call came back with what `bindings` took, or did not take.
    pub(super) fn check<R>(
        &self,
        call: Call,
        checked: Result<R, CallError>,
    ) -> Result<R, CallError> {
        self.instance.borrow().guest.check(call, checked)
    }

    /// For what a session has to count.
    pub(super) fn about<R>(&self, read: impl FnOnce(&About) -> R) -> R {
        read(&self.instance.borrow().guest.about)
    }
}

impl<X: Exports> Drop for GuestSession<X> {
    fn drop(&mut self) {
        let Some(resource) = self.resource.take() else {
            return;
        };
        // Calls return before anything is dropped, so this is free unless a panic is under way.
        if let Ok(mut instance) = self.instance.try_borrow_mut() {
            instance.end(self.id, resource);
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
    PluginError(error.to_string())
}

impl<X: Exports> fmt::Debug for Host<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = &self.about.generation;
        f.debug_struct("Host")
            .field("plugin", &generation.name)
            .field("generation", &generation.number)
            .field("n_instances", &self.instances.borrow().len())
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
