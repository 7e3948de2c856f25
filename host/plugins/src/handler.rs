//! Handlers that are guests: the far end of sessions, lowered and lifted.

use std::fmt;
use std::sync::Arc;

use pointsman_config::PluginSettings;
use pointsman_contract::failure::PluginError;
use pointsman_contract::handler::{
    Facts, Handler, HandlerInterest, HandlerSession, HandlerVerdict,
};
use pointsman_contract::message::Received;
use pointsman_contract::outbox::{Outbox, QueueSettings};
use pointsman_contract::policy::Refusal;
use pointsman_contract::session::EndReport;
use wasmtime::Store;
use wasmtime::component::{Instance, ResourceAny};

use super::bindings;
use super::bindings::exports::pointsman::plugin::handler as wire;
use super::bindings::pointsman::plugin::types;
use super::call::Call;
use super::failure::CallError;
use super::generation::{Generation, Saved};
use super::host::PluginHost;
use super::host_api::HostState;
use super::load::CallCode;
use super::sessions::{self, Exports, GuestSession, SessionWants};

/// What makes the sessions of one handler's generation on one worker.
pub struct GuestHandler(sessions::Host<wire::Guest>);

impl GuestHandler {
    pub(super) fn new(
        generation: &Arc<Generation>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<Self, CallError> {
        sessions::Host::new(generation, settings, host).map(Self)
    }

    /// What it knows, for the one that takes its place: of several instances, what the first one that
    /// is alive knows. None: it has nothing to hand over.
    ///
    /// # Errors
    /// It could not say.
    pub fn save(&self) -> Result<Option<Saved>, CallError> {
        self.0.save()
    }

    /// Takes over what the one before knew; nothing happens if it keeps no state. Call it before the
    /// first session.
    ///
    /// # Errors
    /// It refuses, and begins afresh.
    pub fn restore(&self, saved: &Saved) -> Result<(), CallError> {
        self.0.restore(saved)
    }
}

impl Exports for wire::Guest {
    type Interest = HandlerInterest;

    fn load(
        code: &CallCode,
        store: &mut Store<HostState>,
        instance: &Instance,
    ) -> wasmtime::Result<Self> {
        match &code.handler {
            Some(handler) => handler.load(store, instance),
            None => Err(wasmtime::Error::msg("it exports no handler")),
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
    ) -> wasmtime::Result<(ResourceAny, HandlerInterest)> {
        let session = self.session();
        let resource = session.call_constructor(&mut *store, facts)?;
        let interest = session.call_interest(&mut *store, resource)?;
        let tick_interval_ms = session.call_tick_interval_ms(&mut *store, resource)?;
        Ok((resource, bindings::interest(interest, tick_interval_ms)))
    }
}

impl Handler for GuestHandler {
    fn wanted_headers(&self) -> Vec<String> {
        self.0.wanted_headers.clone()
    }

    fn max_message_bytes(&self) -> u64 {
        self.0.about.limits.message_max_bytes() as u64
    }

    fn queue(&self) -> QueueSettings {
        self.0.settings.queue
    }

    fn accept(&self, facts: &Facts) -> Result<Result<Option<String>, Refusal>, PluginError> {
        let accepted = self.0.accept(
            facts,
            |handler, store, facts| handler.call_accept(store, facts),
            |accepted| match accepted {
                Ok(Some(chosen)) if !facts.offered_subprotocols.contains(&chosen) => {
                    let what = "a subprotocol that the client does not offer".to_owned();
                    Err(CallError::Output {
                        call: Call::Accept,
                        what,
                    })
                }
                Ok(chosen) => Ok(Ok(chosen)),
                Err(refused) => bindings::refusal(Call::Accept, refused).map(Err),
            },
        )?;
        Ok(accepted.unwrap_or(Ok(None)))
    }

    fn open(&self, facts: &Facts, outbox: Outbox) -> Result<Box<dyn HandlerSession>, PluginError> {
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
    ) -> Result<HandlerVerdict, PluginError> {
        let verdict = self.call(call, run)?;
        let checked = bindings::verdict(call, verdict, self.max_message_bytes);
        let verdict = self.check(call, checked)?;
        self.about(|about| about.stats.handler_verdict(&verdict));
        Ok(verdict)
    }
}

impl HandlerSession for GuestSession<wire::Guest> {
    fn interest(&self) -> HandlerInterest {
        self.interest
    }

    fn opened(&mut self) -> Result<HandlerVerdict, PluginError> {
        self.verdict(Call::Opened, |handler, store, session| {
            handler.session().call_opened(store, session)
        })
    }

    fn message(&mut self, message: Received<'_>) -> Result<HandlerVerdict, PluginError> {
        let lowered = bindings::lower(message);
        self.about(|about| about.stats.shown(message.len()));
        self.verdict(Call::Message, |handler, store, session| {
            handler.session().call_message(store, session, lowered)
        })
    }

    fn tick(&mut self) -> Result<HandlerVerdict, PluginError> {
        self.verdict(Call::Tick, |handler, store, session| {
            handler.session().call_tick(store, session)
        })
    }

    fn closed(mut self: Box<Self>, report: &EndReport) -> Result<(), PluginError> {
        let lowered = bindings::report(report);
        let closed = self.call(Call::Closed, |handler, store, session| {
            handler.session().call_closed(store, session, lowered)
        });
        let freed = self.free();
        closed.and(freed).map_err(|error| error.at_the_end(report))
    }
}

impl fmt::Debug for GuestHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use pointsman_config::Isolation;
    use pointsman_contract::names::PluginName;
    use pointsman_contract::outbox::{Inbox, Outbound, outbox};
    use pointsman_contract::session::{Ender, SessionId};

    use super::*;
    use crate::guests;
    use crate::limits::monotonic_ns;

    /// Traps at a message of four bytes, never returns from one of five, takes longer than it may for one of
    /// six, else echoes.
    const MOODY: &str = "(if (i32.eq (local.get 3) (i32.const 4)) (then unreachable))
        (if (i32.eq (local.get 3) (i32.const 5)) (then (call $spin)))
        (if (i32.eq (local.get 3) (i32.const 6)) (then (call $dawdle)))
        (i32.store8 (i32.const 128) (i32.const 1))";

    fn handler(message: &str, isolation: Isolation) -> (GuestHandler, PluginHost) {
        of_instances(message, isolation, PluginSettings::SESSIONS_PER_INSTANCE)
    }

    fn of_instances(
        message: &str,
        isolation: Isolation,
        sessions_per_instance: usize,
    ) -> (GuestHandler, PluginHost) {
        let generation = guests::load(&guests::handler(message)).unwrap();
        let host = guests::host();
        let settings = PluginSettings {
            isolation,
            sessions_per_instance,
            ..PluginSettings::default()
        };
        (generation.handler(&settings, &host).unwrap(), host)
    }

    /// `open`: what the constructor does besides.
    fn handler_with(message: &str, open: &str) -> (GuestHandler, PluginHost) {
        let generation = guests::load(&guests::handler_that_opens(open, message)).unwrap();
        let host = guests::host();
        let settings = PluginSettings::default();
        (generation.handler(&settings, &host).unwrap(), host)
    }

    fn figures(host: &PluginHost) -> crate::stats::Sum {
        let name = PluginName::parse("guest").unwrap();
        crate::stats::sum([&*host.stats(&name)].into_iter())
    }

    fn n_open(host: &PluginHost) -> u64 {
        let name = PluginName::parse("guest").unwrap();
        host.share(&name).topics.n_sessions()
    }

    fn facts(session: u64) -> Facts {
        Facts {
            session: SessionId(session),
            route: "/echo".to_owned(),
            client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            is_suspect: false,
            host: "localhost".to_owned(),
            path: "/echo?x=1".to_owned(),
            request_id: "1".to_owned(),
            max_message_bytes: 1 << 20,
            offered_subprotocols: vec!["chat".to_owned()],
            subprotocol: None,
            headers: vec![("x".to_owned(), "1".to_owned())],
        }
    }

    fn open(handler: &GuestHandler, session: u64) -> (Box<dyn HandlerSession>, Inbox) {
        open_by(handler, &facts(session))
    }

    fn open_by(handler: &GuestHandler, facts: &Facts) -> (Box<dyn HandlerSession>, Inbox) {
        let (outbox, inbox) = outbox(QueueSettings::default());
        (handler.open(facts, outbox).unwrap(), inbox)
    }

    fn lost() -> Option<Outbound> {
        Some(Outbound::Failed(PluginName::parse("guest").unwrap()))
    }

    fn waiting(inbox: &mut Inbox) -> Option<Outbound> {
        match inbox.poll_next(&Context::from_waker(Waker::noop())) {
            Poll::Ready(outbound) => Some(outbound),
            Poll::Pending => None,
        }
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
        let (mut session, _inbox) = open(&handler, 1);
        assert_eq!(
            session.interest(),
            HandlerInterest {
                text: true,
                binary: true,
                tick_interval_ms: 0
            }
        );
        assert_eq!(session.opened().unwrap(), HandlerVerdict::Ignore);
        assert_eq!(session.message(text("hi")).unwrap(), HandlerVerdict::Echo);
        session.closed(&report()).unwrap();
        assert_eq!(n_open(&host), 0);
    }

    #[test]
    fn a_trap_ends_the_sessions_of_its_instance_and_no_others() {
        for hostile in ["trap", "spins"] {
            let (handler, _) = handler(MOODY, Isolation::Shared);
            let (mut first, mut first_inbox) = open(&handler, 1);
            let (mut second, mut second_inbox) = open(&handler, 2);
            let error = first.message(text(hostile)).unwrap_err();
            let call = error.call.unwrap();
            assert_eq!((call.call, call.session), ("message", SessionId(1)));
            assert_eq!((call.n_lost, call.is_clients_doing), (Some(1), true));
            assert_eq!(waiting(&mut second_inbox), lost());
            assert_eq!(waiting(&mut first_inbox), None);
            let error = second.message(text("hi")).unwrap_err();
            assert_eq!(error.call, None, "it has done nothing");
            assert!(second.tick().is_err());
            second.closed(&report()).unwrap_err();
            drop(first);

            let (mut third, _inbox) = open(&handler, 3);
            assert_eq!(third.message(text("hi")).unwrap(), HandlerVerdict::Echo);
        }
    }

    #[test]
    fn isolated_sessions_fail_alone() {
        let (handler, _) = handler(MOODY, Isolation::Session);
        let (mut first, _first_inbox) = open(&handler, 1);
        let (mut second, mut second_inbox) = open(&handler, 2);
        assert!(first.message(text("trap")).is_err());
        assert_eq!(second.message(text("hi")).unwrap(), HandlerVerdict::Echo);
        assert_eq!(waiting(&mut second_inbox), None);
    }

    #[test]
    fn a_call_that_comes_back_late_costs_its_own_session_alone() {
        let (handler, host) = handler(MOODY, Isolation::Shared);
        let (mut first, _first_inbox) = open(&handler, 1);
        let (mut second, mut second_inbox) = open(&handler, 2);
        for n in 1..=3 {
            let error = first.message(text("dawdle")).unwrap_err();
            assert!(error.message.contains("longer than 20 ms"), "{error}");
            assert_eq!(error.call.unwrap().n_lost, None, "the instance lives");
            let figures = figures(&host);
            assert_eq!(
                (figures.session_failures, figures.sessions_lost),
                ([n, 0], 0)
            );
        }
        assert_eq!(waiting(&mut second_inbox), None);
        assert_eq!(second.message(text("hi")).unwrap(), HandlerVerdict::Echo);
        drop(first);
        assert_eq!(n_open(&host), 1);
    }

    #[test]
    fn without_grace_a_late_call_is_stopped_in_time() {
        let (handler, host) = handler(MOODY, Isolation::Shared);
        let (mut first, _first_inbox) = open(&handler, 1);
        let (_second, mut second_inbox) = open(&handler, 2);
        while host.grace().charge(1_000_000, monotonic_ns()) {}
        let error = first.message(text("dawdle")).unwrap_err();
        assert_eq!(error.call.unwrap().n_lost, Some(1));
        assert_eq!(waiting(&mut second_inbox), lost());
        let figures = figures(&host);
        assert_eq!(
            (figures.session_failures, figures.sessions_lost),
            ([0, 1], 1)
        );
    }

    #[test]
    fn a_session_that_begins_late_is_given_back() {
        let (handler, host) = handler_with(
            "(i32.store8 (i32.const 128) (i32.const 1))",
            "(call $dawdle)",
        );
        let (outbox, _inbox) = outbox(QueueSettings::default());
        let error = handler.open(&facts(1), outbox).unwrap_err();
        assert_eq!(error.call.unwrap().call, "open");
        assert_eq!(n_open(&host), 0);
        let saved = handler.save().unwrap().unwrap();
        assert_eq!(saved.bytes, [0; 4], "the guest has no session left");
    }

    #[test]
    fn what_a_client_has_not_caused_is_not_held_against_it() {
        let (handler, _) = handler("unreachable", Isolation::Session);
        let ended = |by| {
            let (mut session, _inbox) = open(&handler, 1);
            let error = session.message(text("hi")).unwrap_err();
            let ended_by = EndReport {
                ended_by: by,
                ..report()
            };
            error.at_the_end(&ended_by).call.unwrap().is_clients_doing
        };
        assert!(ended(Ender::Client));
        assert!(!ended(Ender::Operator));
    }

    #[test]
    fn a_shared_instance_holds_so_many_and_no_more() {
        let (handler, host) = of_instances(MOODY, Isolation::Shared, 4);
        let mut sessions: Vec<_> = (0..9).map(|id| open(&handler, id)).collect();
        assert_eq!(handler.0.n_instances(), 3);
        let (first, _) = &mut sessions[0];
        let error = first.message(text("trap")).unwrap_err();
        assert_eq!(error.call.unwrap().n_lost, Some(3));
        let inboxes = sessions.iter_mut().map(|(_, inbox)| waiting(inbox));
        assert_eq!(inboxes.flatten().count(), 3);
        assert_eq!(handler.0.n_instances(), 2);
        drop(sessions);
        assert_eq!(handler.0.n_instances(), 1, "the oldest stays");
        let _session = open(&handler, 1);
        assert_eq!(figures(&host).n_instances, 1);
    }

    #[test]
    fn suspects_share_no_instance_with_others() {
        let (handler, host) = handler(MOODY, Isolation::Shared);
        let (_other, mut other_inbox) = open(&handler, 1);
        let suspect = |session| Facts {
            is_suspect: true,
            ..facts(session)
        };
        let (mut first, _first_inbox) = open_by(&handler, &suspect(2));
        let (_second, mut second_inbox) = open_by(&handler, &suspect(3));
        assert_eq!(figures(&host).n_instances, 2);
        let error = first.message(text("trap")).unwrap_err();
        assert_eq!(error.call.unwrap().n_lost, Some(1));
        assert_eq!(waiting(&mut other_inbox), None);
        assert_eq!(waiting(&mut second_inbox), lost());
    }

    #[test]
    fn a_storm_of_suspects_does_not_close_the_door_to_others() {
        let (handler, _) = handler(MOODY, Isolation::Shared);
        let suspect = Facts {
            is_suspect: true,
            ..facts(1)
        };
        let storm = || {
            let (outbox, _inbox) = outbox(QueueSettings::default());
            let mut session = handler.open(&suspect, outbox)?;
            session.message(text("trap"))
        };
        let is_resting = |error: &PluginError| error.message.contains("rests");
        assert!((0..100).any(|_| storm().is_err_and(|error| is_resting(&error))));
        let (mut other, _inbox) = open(&handler, 2);
        assert_eq!(other.message(text("hi")).unwrap(), HandlerVerdict::Echo);
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
        assert!(error.message.contains("1048577 bytes"), "{error}");
        let call = error.call.unwrap();
        assert_eq!(call.n_lost, None, "the instance has done no harm");
    }

    #[test]
    fn state_is_handed_over() {
        let (old, _) = handler(MOODY, Isolation::Shared);
        let _sessions = [open(&old, 1), open(&old, 2)];
        let (new, _) = handler(MOODY, Isolation::Shared);
        let saved = old.save().unwrap().unwrap();
        new.restore(&saved).unwrap();
        let expected = Saved {
            version: 1,
            bytes: vec![2, 0, 0, 0],
        };
        assert_eq!(new.save(), Ok(Some(expected)));
    }

    #[test]
    fn the_shipped_echo_echoes() {
        let generation = guests::shipped("echo");
        generation
            .trial_handler(&PluginSettings::default(), &[], guests::limits())
            .unwrap();
        let handler = generation
            .handler(&PluginSettings::default(), &guests::host())
            .unwrap();
        let (mut session, _inbox) = open(&handler, 1);
        assert_eq!(session.opened().unwrap(), HandlerVerdict::Ignore);
        assert_eq!(
            session.message(text("hello")).unwrap(),
            HandlerVerdict::Echo
        );
        session.closed(&report()).unwrap();
    }
}
