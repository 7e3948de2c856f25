//! Handlers that are guests: the far end of sessions, lowered and lifted.

use std::fmt;
use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::{Instance, ResourceAny};

use super::bindings;
use super::bindings::exports::pointsman::plugin::handler as wire;
use super::bindings::pointsman::plugin::types;
use super::failure::CallError;
use super::generation::{Generation, Saved};
use super::host::PluginHost;
use super::host_api::HostState;
use super::load::CallCode;
use super::sessions::{self, Exports, GuestSession, Wants, into_plugin_error};
use super::stats::Call;
use crate::config::{PluginSettings, QueueSettings};
use crate::routing::policy::Refusal;
use crate::session::EndReport;
use crate::session::handler::{
    Facts, Handler, HandlerSession, Interest, PluginError, Received, Verdict,
};
use crate::session::outbox::Outbox;

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

    fn try_accept(&self, facts: &Facts) -> Result<Result<Option<String>, Refusal>, CallError> {
        let Some(first) = self.0.to_ask()? else {
            return Ok(Ok(None));
        };
        let mut first = first.borrow_mut();
        let accepted = first.accept(facts, |handler, store, facts| {
            handler.call_accept(store, facts)
        });
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
        first.guest.check(Call::Accept, answer)
    }
}

impl Exports for wire::Guest {
    type Interest = Interest;

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
    ) -> wasmtime::Result<Result<Wants, String>> {
        let wants = |wire::Wants { headers, accept }| Wants { headers, accept };
        Ok(self.call_configure(store, config)?.map(wants))
    }

    fn open(
        &self,
        store: &mut Store<HostState>,
        facts: types::Facts<'_>,
    ) -> wasmtime::Result<(ResourceAny, Interest)> {
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
        self.try_accept(facts).map_err(into_plugin_error)
    }

    fn open(&self, facts: &Facts, outbox: Outbox) -> Result<Box<dyn HandlerSession>, PluginError> {
        let session = self.0.open(facts, outbox).map_err(into_plugin_error)?;
        Ok(Box::new(session))
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
    ) -> Result<Verdict, PluginError> {
        let verdict = self.call(call, run).and_then(|verdict| {
            let checked = bindings::verdict(call, verdict, self.max_message_bytes);
            self.check(call, checked)
        });
        verdict
            .inspect(|verdict| self.about(|about| about.stats.handler_verdict(verdict)))
            .map_err(into_plugin_error)
    }
}

impl HandlerSession for GuestSession<wire::Guest> {
    fn interest(&self) -> Interest {
        self.interest
    }

    fn opened(&mut self) -> Result<Verdict, PluginError> {
        self.verdict(Call::Opened, |handler, store, session| {
            handler.session().call_opened(store, session)
        })
    }

    fn message(&mut self, message: Received<'_>) -> Result<Verdict, PluginError> {
        let lowered = bindings::lower(message);
        self.about(|about| about.stats.shown(message.len()));
        self.verdict(Call::Message, |handler, store, session| {
            handler.session().call_message(store, session, lowered)
        })
    }

    fn tick(&mut self) -> Result<Verdict, PluginError> {
        self.verdict(Call::Tick, |handler, store, session| {
            handler.session().call_tick(store, session)
        })
    }

    fn closed(self: Box<Self>, report: &EndReport) -> Result<(), PluginError> {
        let report = bindings::report(report);
        let closed = self.call(Call::Closed, |handler, store, session| {
            handler.session().call_closed(store, session, report)
        });
        closed.map_err(into_plugin_error)
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

    use super::*;
    use crate::config::Isolation;
    use crate::plugins::guests;
    use crate::session::outbox::{Inbox, Outbound, outbox};
    use crate::session::{Ender, SessionId};

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

    fn open(handler: &GuestHandler, session: u64) -> (Box<dyn HandlerSession>, Inbox) {
        let (outbox, inbox) = outbox(QueueSettings::default());
        (handler.open(&facts(session), outbox).unwrap(), inbox)
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
            Interest {
                text: true,
                binary: true,
                tick_interval_ms: 0
            }
        );
        assert_eq!(session.opened().unwrap(), Verdict::Ignore);
        assert_eq!(session.message(text("hi")).unwrap(), Verdict::Echo);
        session.closed(&report()).unwrap();
        assert_eq!(
            host.share(&handler.0.about.generation.name)
                .topics
                .n_sessions(),
            0
        );
        assert_eq!(handler.0.n_sessions(), 0);
    }

    #[test]
    fn a_trap_ends_the_sessions_of_its_instance_and_no_others() {
        for hostile in ["trap", "spins"] {
            let (handler, _) = handler(MOODY, Isolation::Shared);
            let (mut first, mut first_inbox) = open(&handler, 1);
            let (mut second, mut second_inbox) = open(&handler, 2);
            assert!(first.message(text(hostile)).is_err());
            assert_eq!(waiting(&mut second_inbox), Some(Outbound::Failed));
            assert_eq!(waiting(&mut first_inbox), None);
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
        assert_eq!(waiting(&mut second_inbox), None);
    }

    #[test]
    fn a_shared_instance_is_full_at_some_time() {
        let (handler, host) = handler(MOODY, Isolation::Shared);
        let sessions: Vec<_> = (0..1025).map(|id| open(&handler, id)).collect();
        assert_eq!(handler.0.n_instances(), 2);
        drop(sessions);
        let _session = open(&handler, 1);
        assert_eq!(handler.0.n_instances(), 1);
        let figures = crate::plugins::stats::sum(
            [&*host.stats(&handler.0.about.generation.name)].into_iter(),
        );
        assert_eq!(figures.n_instances, 1);
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
        let expected = Saved {
            version: 1,
            bytes: vec![2, 0, 0, 0],
        };
        assert_eq!(new.save(), Ok(Some(expected)));
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
