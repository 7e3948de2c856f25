//! Handlers that are guests: instances that hold many sessions, or one each.
//!
//! A trap takes its instance along, and with it every session that the instance holds; each of them
//! hears of it by its outbox. New sessions get a new instance.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::str;
use std::sync::Arc;

use tokio::sync::mpsc;
use wasmtime::Store;
use wasmtime::component::{Instance, ResourceAny};

use super::bindings;
use super::bindings::exports::pointsman::plugin::{handler as wire, state};
use super::bindings::pointsman::plugin::types;
use super::failure::{CallError, cut};
use super::generation::{Generation, Saved};
use super::guest::{About, Guest};
use super::host::PluginHost;
use super::host_api::HostState;
use super::stats::Call;
use crate::config::{Isolation, PluginSettings};
use crate::routing::policy::Refusal;
use crate::session::handler::{
    Facts, Handler, HandlerError, HandlerSession, Interest, Outbound, Received, Verdict,
};
use crate::session::{EndReport, SessionId};

/// Sessions that one shared instance holds. A trap loses so many at most.
const SESSIONS_PER_INSTANCE_MAX: usize = 1024;

/// What makes the sessions of one generation on one worker.
pub struct GuestHandler {
    about: About,
    /// JSON.
    config: String,
    isolation: Isolation,
    wanted_headers: Vec<String>,
    wants_accept: bool,
    /// Those that take sessions. The first is kept when it has none, for `accept` and for state.
    instances: RefCell<Vec<SharedInstance>>,
}

type SharedInstance = Rc<RefCell<HandlerInstance>>;

struct HandlerInstance {
    guest: Guest,
    handler: wire::Guest,
    state: Option<state::Guest>,
    sessions: HashMap<SessionId, mpsc::Sender<Outbound>>,
}

struct GuestSession {
    id: SessionId,
    instance: SharedInstance,
    /// None once it has been given back.
    resource: Option<ResourceAny>,
    interest: Interest,
    max_message_bytes: u64,
}

impl GuestHandler {
    pub(super) fn new(
        generation: &Arc<Generation>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<Self, CallError> {
        let about = About::new(generation, host);
        let config = settings.config.to_string();
        let (first, wants) = HandlerInstance::new(about.clone(), &config)?;
        Ok(Self {
            about,
            config,
            isolation: settings.isolation,
            wanted_headers: wants
                .headers
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
            wants_accept: wants.accept,
            instances: RefCell::new(vec![first]),
        })
    }

    /// What it knows, for the one that takes its place: of several instances, what the first one that
    /// is alive knows. None: it has nothing to hand over.
    ///
    /// # Errors
    /// It could not say.
    pub fn save(&self) -> Result<Option<Saved>, CallError> {
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
    ///
    /// # Errors
    /// It refuses, and begins afresh.
    pub fn restore(&self, saved: &Saved) -> Result<(), CallError> {
        let first = self.first()?;
        let mut first = first.borrow_mut();
        match first.state.clone() {
            Some(state) => first.guest.restore(&state, saved),
            None => Ok(()),
        }
    }

    /// An instance that is alive, whether it is full or not.
    fn first(&self) -> Result<SharedInstance, CallError> {
        let mut instances = self.instances.borrow_mut();
        instances.retain(|instance| !instance.borrow().guest.is_dead());
        if let Some(first) = instances.first() {
            return Ok(Rc::clone(first));
        }
        let instance = self.make()?;
        instances.push(Rc::clone(&instance));
        Ok(instance)
    }

    /// An instance that has room for a session.
    fn roomy(&self) -> Result<SharedInstance, CallError> {
        if self.isolation == Isolation::Session {
            return self.make();
        }
        let mut instances = self.instances.borrow_mut();
        let mut is_first = true;
        instances.retain(|instance| {
            let instance = instance.borrow();
            let is_kept = !instance.guest.is_dead() && (is_first || !instance.sessions.is_empty());
            is_first &= !is_kept;
            is_kept
        });
        let has_room = |instance: &&SharedInstance| {
            instance.borrow().sessions.len() < SESSIONS_PER_INSTANCE_MAX
        };
        if let Some(instance) = instances.iter().find(has_room) {
            return Ok(Rc::clone(instance));
        }
        let instance = self.make()?;
        instances.push(Rc::clone(&instance));
        Ok(instance)
    }

    fn make(&self) -> Result<SharedInstance, CallError> {
        let (instance, _) = HandlerInstance::new(self.about.clone(), &self.config)?;
        Ok(instance)
    }

    fn try_accept(&self, facts: &Facts) -> Result<Result<Option<String>, Refusal>, CallError> {
        if !self.wants_accept {
            return Ok(Ok(None));
        }
        self.first()?.borrow_mut().accept(facts)
    }

    fn try_open(
        &self,
        facts: &Facts,
        outbox: mpsc::Sender<Outbound>,
    ) -> Result<GuestSession, CallError> {
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
}

impl HandlerInstance {
    fn new(about: About, config: &str) -> Result<(SharedInstance, wire::Wants), CallError> {
        let (mut guest, (handler, state)) =
            Guest::new(about, |code, store, instance: &Instance| {
                let Some(handler) = &code.handler else {
                    return Err(wasmtime::Error::msg("it exports no handler"));
                };
                let handler = handler.load(&mut *store, instance)?;
                let state = code
                    .state
                    .as_ref()
                    .map(|state| state.load(&mut *store, instance))
                    .transpose()?;
                Ok((handler, state))
            })?;
        let configured = guest.call(Call::Configure, |store| {
            handler.call_configure(store, config)
        })?;
        let wants = configured.map_err(|reason| CallError::Refused {
            call: Call::Configure,
            reason: cut(reason),
        })?;
        guest.check(Call::Configure, bindings::wanted_headers(&wants.headers))?;
        let sessions = HashMap::new();
        let instance = Self {
            guest,
            handler,
            state,
            sessions,
        };
        Ok((Rc::new(RefCell::new(instance)), wants))
    }

    fn accept(&mut self, facts: &Facts) -> Result<Result<Option<String>, Refusal>, CallError> {
        let lowered = LoweredFacts::new(facts);
        let lists = lowered.lists();
        let handler = &self.handler;
        let accepted = self.guest.call(Call::Accept, |store| {
            handler.call_accept(store, lowered.facts(&lists))
        });
        self.notice_death(None);
        let answer = match accepted? {
            Ok(Some(chosen)) if !facts.offered_subprotocols.contains(&chosen) => {
                let what = "a subprotocol that the client does not offer".to_owned();
                Err(CallError::Output {
                    call: Call::Accept,
                    what,
                })
            }
            Ok(chosen) => Ok(Ok(chosen)),
            Err(refused) => bindings::refusal(Call::Accept, refused).map(Err),
        };
        self.guest.check(Call::Accept, answer)
    }

    /// The constructor may use the session's id already, so it is known before.
    fn open(
        &mut self,
        facts: &Facts,
        outbox: mpsc::Sender<Outbound>,
    ) -> Result<(ResourceAny, Interest), CallError> {
        let id = facts.session;
        self.guest.about.share.topics.join(id, outbox.clone());
        self.sessions.insert(id, outbox);
        let lowered = LoweredFacts::new(facts);
        let lists = lowered.lists();
        let handler = self.handler.clone();
        let opened = self.call(id, Call::Open, |store| {
            let session = handler.session();
            let resource = session.call_constructor(&mut *store, lowered.facts(&lists))?;
            let interest = session.call_interest(&mut *store, resource)?;
            let tick_interval_ms = session.call_tick_interval_ms(&mut *store, resource)?;
            Ok((resource, bindings::interest(interest, tick_interval_ms)))
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

    /// Tells the sessions of a dead instance, but for the one that knows by its error. Their outboxes
    /// are let go besides, so one that is full ends when it has been read.
    fn notice_death(&mut self, caller: Option<SessionId>) {
        if !self.guest.is_dead() {
            return;
        }
        for (id, outbox) in self.sessions.drain() {
            self.guest.about.share.topics.leave(id);
            if Some(id) != caller {
                let _ = outbox.try_send(Outbound::Failed);
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

impl Handler for GuestHandler {
    fn wanted_headers(&self) -> Vec<String> {
        self.wanted_headers.clone()
    }

    fn max_message_bytes(&self) -> u64 {
        self.about.limits.message_max_bytes() as u64
    }

    fn accept(&self, facts: &Facts) -> Result<Result<Option<String>, Refusal>, HandlerError> {
        self.try_accept(facts).map_err(into_handler_error)
    }

    fn open(
        &self,
        facts: &Facts,
        outbox: mpsc::Sender<Outbound>,
    ) -> Result<Box<dyn HandlerSession>, HandlerError> {
        let session = self.try_open(facts, outbox).map_err(into_handler_error)?;
        Ok(Box::new(session))
    }
}

impl GuestSession {
    fn call<R>(
        &self,
        call: Call,
        run: impl FnOnce(&wire::Guest, &mut Store<HostState>, ResourceAny) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        let Some(resource) = self.resource else {
            return Err(CallError::Dead);
        };
        let mut instance = self.instance.borrow_mut();
        let HandlerInstance { guest, handler, .. } = &mut *instance;
        let result = guest.call(call, |store| run(handler, store, resource));
        if result.is_err() {
            instance.notice_death(Some(self.id));
        }
        result
    }

    fn verdict(
        &self,
        call: Call,
        run: impl FnOnce(
            &wire::Guest,
            &mut Store<HostState>,
            ResourceAny,
        ) -> wasmtime::Result<wire::Verdict>,
    ) -> Result<Verdict, HandlerError> {
        let verdict = self.call(call, run).and_then(|verdict| {
            let checked = bindings::verdict(call, verdict, self.max_message_bytes);
            self.instance.borrow().guest.check(call, checked)
        });
        verdict.map_err(into_handler_error)
    }
}

impl HandlerSession for GuestSession {
    fn interest(&self) -> Interest {
        self.interest
    }

    fn opened(&mut self) -> Result<Verdict, HandlerError> {
        self.verdict(Call::Opened, |handler, store, session| {
            handler.session().call_opened(store, session)
        })
    }

    fn message(&mut self, message: Received<'_>) -> Result<Verdict, HandlerError> {
        let lowered = match message {
            Received::Text(text) => types::MessageParam::Text(text),
            Received::Binary(bytes) => types::MessageParam::Binary(bytes),
        };
        self.verdict(Call::Message, |handler, store, session| {
            handler.session().call_message(store, session, lowered)
        })
    }

    fn tick(&mut self) -> Result<Verdict, HandlerError> {
        self.verdict(Call::Tick, |handler, store, session| {
            handler.session().call_tick(store, session)
        })
    }

    fn closed(self: Box<Self>, report: &EndReport) -> Result<(), HandlerError> {
        let report = bindings::report(report);
        let closed = self.call(Call::Closed, |handler, store, session| {
            handler.session().call_closed(store, session, report)
        });
        closed.map_err(into_handler_error)
    }
}

impl Drop for GuestSession {
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

fn into_handler_error(error: CallError) -> HandlerError {
    HandlerError(error.to_string())
}

impl fmt::Debug for GuestHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = &self.about.generation;
        f.debug_struct("GuestHandler")
            .field("plugin", &generation.name)
            .field("generation", &generation.number)
            .field("n_instances", &self.instances.borrow().len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for GuestSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestSession")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::plugins::guests;
    use crate::session::Ender;

    /// Traps at a message of four bytes, never returns from one of five, else echoes.
    const MOODY: &str = "(if (i32.eq (local.get 3) (i32.const 4)) (then unreachable))
        (if (i32.eq (local.get 3) (i32.const 5)) (then (call $spin)))
        (i32.store8 (i32.const 128) (i32.const 1))";

    fn handler(message: &str, isolation: Isolation) -> (GuestHandler, PluginHost) {
        let generation = guests::load(&guests::handler(message)).unwrap();
        let host = guests::host();
        let settings = PluginSettings {
            isolation,
            ..PluginSettings::default()
        };
        (generation.handler(&settings, &host).unwrap(), host)
    }

    fn facts(session: u64) -> Facts {
        Facts {
            session: SessionId(session),
            route: "/echo".to_owned(),
            client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host: "localhost".to_owned(),
            path: "/echo?x=1".to_owned(),
            request_id: "1".to_owned(),
            max_message_bytes: 1 << 20,
            offered_subprotocols: vec!["chat".to_owned()],
            subprotocol: None,
            headers: vec![("x".to_owned(), "1".to_owned())],
        }
    }

    fn open(handler: &GuestHandler, session: u64) -> (Box<dyn HandlerSession>, Receiver<Outbound>) {
        let (outbox, inbox) = mpsc::channel(4);
        (handler.open(&facts(session), outbox).unwrap(), inbox)
    }

    fn text(text: &str) -> Received<'_> {
        Received::Text(text)
    }

    fn report() -> EndReport {
        EndReport {
            ended_by: Ender::Client,
            code: Some(1000),
            duration: Duration::from_secs(1),
            bytes_up: 1,
            bytes_down: 2,
            messages_up: 3,
            messages_down: 4,
        }
    }

    #[test]
    fn a_session_lives_from_open_to_closed() {
        let (handler, host) = handler(MOODY, Isolation::Shared);
        assert_eq!(handler.accept(&facts(1)).unwrap(), Ok(None));
        let (mut session, inbox) = open(&handler, 1);
        assert_eq!(
            session.interest(),
            Interest {
                text: true,
                binary: true,
                tick_interval_ms: 0
            }
        );
        assert_eq!(session.opened().unwrap(), Verdict::Ignore);
        assert_eq!(session.message(text("hi")).unwrap(), Verdict::Echo);
        session.closed(&report()).unwrap();
        assert!(inbox.is_closed());
        assert_eq!(
            host.share(&handler.about.generation.name)
                .topics
                .n_sessions(),
            0
        );
        assert_eq!(handler.instances.borrow()[0].borrow().sessions.len(), 0);
    }

    #[test]
    fn a_trap_ends_the_sessions_of_its_instance_and_no_others() {
        for hostile in ["trap", "spins"] {
            let (handler, _) = handler(MOODY, Isolation::Shared);
            let (mut first, mut first_inbox) = open(&handler, 1);
            let (mut second, mut second_inbox) = open(&handler, 2);
            assert!(first.message(text(hostile)).is_err());
            assert_eq!(second_inbox.try_recv(), Ok(Outbound::Failed));
            assert_eq!(
                second_inbox.try_recv(),
                Err(mpsc::error::TryRecvError::Disconnected)
            );
            assert_eq!(
                first_inbox.try_recv(),
                Err(mpsc::error::TryRecvError::Disconnected)
            );
            assert!(second.message(text("hi")).is_err());
            assert!(second.tick().is_err());
            second.closed(&report()).unwrap_err();
            drop(first);

            let (mut third, _inbox) = open(&handler, 3);
            assert_eq!(third.message(text("hi")).unwrap(), Verdict::Echo);
        }
    }

    #[test]
    fn isolated_sessions_fail_alone() {
        let (handler, _) = handler(MOODY, Isolation::Session);
        let (mut first, _first_inbox) = open(&handler, 1);
        let (mut second, mut second_inbox) = open(&handler, 2);
        assert!(first.message(text("trap")).is_err());
        assert_eq!(second.message(text("hi")).unwrap(), Verdict::Echo);
        assert_eq!(
            second_inbox.try_recv(),
            Err(mpsc::error::TryRecvError::Empty)
        );
    }

    #[test]
    fn a_shared_instance_is_full_at_some_time() {
        let (handler, host) = handler(MOODY, Isolation::Shared);
        let sessions: Vec<_> = (0..1025).map(|id| open(&handler, id)).collect();
        assert_eq!(handler.instances.borrow().len(), 2);
        drop(sessions);
        let _session = open(&handler, 1);
        assert_eq!(handler.instances.borrow().len(), 1);
        let figures =
            crate::plugins::stats::sum([&*host.stats(&handler.about.generation.name)].into_iter());
        assert_eq!(figures.0, 1);
    }

    #[test]
    fn a_reply_larger_than_the_session_allows_is_an_error() {
        // Case 2, `reply`: 1,048,577 bytes of zeroes.
        let large = "(drop (memory.grow (i32.const 32)))
            (i32.store8 (i32.const 128) (i32.const 2))
            (i32.store8 (i32.const 132) (i32.const 1))
            (i32.store (i32.const 136) (i32.const 131072))
            (i32.store (i32.const 140) (i32.const 1048577))";
        let (handler, _) = handler(large, Isolation::Shared);
        let (mut session, _inbox) = open(&handler, 1);
        let error = session.message(text("hi")).unwrap_err();
        assert!(error.0.contains("1048577 bytes"), "{error}");
    }

    #[test]
    fn state_is_handed_over() {
        let (old, _) = handler(MOODY, Isolation::Shared);
        let _sessions = [open(&old, 1), open(&old, 2)];
        let (new, _) = handler(MOODY, Isolation::Shared);
        let saved = old.save().unwrap().unwrap();
        new.restore(&saved).unwrap();
        let restored = new.first().unwrap();
        let mut restored = restored.borrow_mut();
        let state = restored.state.clone().unwrap();
        let expected = Saved {
            version: 1,
            bytes: vec![2, 0, 0, 0],
        };
        assert_eq!(restored.guest.save(&state), Ok(expected));
    }

    #[test]
    fn the_shipped_echo_echoes() {
        let Some(generation) = guests::shipped("echo") else {
            return;
        };
        generation
            .trial_handler(&PluginSettings::default(), &[], guests::limits())
            .unwrap();
        let handler = generation
            .handler(&PluginSettings::default(), &guests::host())
            .unwrap();
        let (mut session, _inbox) = open(&handler, 1);
        assert_eq!(session.opened().unwrap(), Verdict::Ignore);
        assert_eq!(session.message(text("hello")).unwrap(), Verdict::Echo);
        session.closed(&report()).unwrap();
    }
}
