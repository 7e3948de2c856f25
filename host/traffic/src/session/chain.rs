//! The filters of one session, in the order of a message.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pointsman_config::OnFailure;
use pointsman_contract::failure::PluginError;
use pointsman_contract::filter::{Direction, Filter, FilterInterest, FilterSession, FilterVerdict};
use pointsman_contract::handler::Facts;
use pointsman_contract::message::{CloseReason, Message, Received};
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::{Inbox, Outbound, outbox};
use pointsman_contract::session::EndReport;
use tokio::time::Interval;

use super::ticks;

/// The filters of one session, the one next to the client first.
#[derive(Debug)]
pub struct Chain {
    links: Vec<Link>,
    failures: FilterFailures,
}

/// What went wrong at the filters of one session.
#[derive(Debug)]
struct FilterFailures {
    on_failure: OnFailure,
    /// Until they are taken.
    all: Vec<PluginError>,
}

#[derive(Debug)]
struct Link {
    /// None: it failed, and is passed by.
    session: Option<Box<dyn FilterSession>>,
    interest: FilterInterest,
    inbox: Inbox,
    ticks: Option<Pin<Box<Interval>>>,
}

/// What a chain did with a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// It passes on as it came.
    Unchanged,
    /// This passes on.
    Changed(Message),
    /// Nothing does.
    Dropped,
    /// Nothing does, and these go back.
    Answered(Vec<Message>),
    /// The session ends.
    Closed(CloseReason),
}

/// What a filter does by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Aside {
    /// To the client.
    Send(Vec<Message>),
    /// The session ends.
    Close(CloseReason),
}

impl Chain {
    /// Begins the session at each filter. With a reason: one has failed, the others are told nothing, and
    /// the session is to end.
    pub fn open(
        filters: &[(Rc<dyn Filter>, Facts)],
        on_failure: OnFailure,
    ) -> (Self, Option<CloseReason>) {
        let mut chain = Self {
            links: Vec::with_capacity(filters.len()),
            failures: FilterFailures {
                on_failure,
                all: Vec::new(),
            },
        };
        for (filter, facts) in filters {
            let (outbox, inbox) = outbox(filter.queue());
            let session = match filter.open(facts, outbox) {
                Ok(session) => session,
                Err(error) => match chain.failures.add(error) {
                    Ok(()) => continue,
                    Err(reason) => {
                        chain.links.clear();
                        return (chain, Some(reason));
                    }
                },
            };
            let interest = session.interest();
            chain.links.push(Link {
                session: Some(session),
                interest,
                inbox,
                ticks: ticks(interest.tick_interval_ms),
            });
        }
        (chain, None)
    }

    /// What went wrong since this was last asked.
    pub(super) fn take_failures(&mut self) -> Vec<PluginError> {
        std::mem::take(&mut self.failures.all)
    }

    /// Whether any wants messages that go this way.
    pub fn wants(&self, from: Direction) -> bool {
        self.links.iter().any(|link| {
            let kinds = link.interest.of(from);
            kinds.text || kinds.binary
        })
    }

    /// Shows a message to each that wants it, until one stops it.
    pub(super) fn pass(&mut self, from: Direction, message: Received<'_>) -> Passage {
        let mut changed: Option<Message> = None;
        for i in 0..self.links.len() {
            let place = match from {
                Direction::FromClient => i,
                Direction::FromBackend => self.links.len() - 1 - i,
            };
            let link = &mut self.links[place];
            let shown = match &changed {
                None => message,
                Some(changed) => match changed.as_received() {
                    Some(changed) => changed,
                    None => return Passage::Closed(CloseReason::plugin_failed()),
                },
            };
            if !link.interest.of(from).has(shown) {
                continue;
            }
            let verdict = link.ask(&mut self.failures, |session| session.message(from, shown));
            match verdict {
                Ok(None | Some(FilterVerdict::Forward)) => {}
                Ok(Some(FilterVerdict::Replace(message))) => changed = Some(message),
                Ok(Some(FilterVerdict::Drop)) => return Passage::Dropped,
                Ok(Some(FilterVerdict::Answer(messages))) => return Passage::Answered(messages),
                Ok(Some(FilterVerdict::Close(reason))) | Err(reason) => {
                    return Passage::Closed(reason);
                }
            }
        }
        changed.map_or(Passage::Unchanged, Passage::Changed)
    }

    /// The next that a filter does by itself. Asked when the client takes what it is sent.
    pub(super) fn poll_aside(&mut self, cx: &mut Context<'_>) -> Poll<Aside> {
        let failures = &mut self.failures;
        for link in &mut self.links {
            while let Poll::Ready(outbound) = link.inbox.poll_next(cx) {
                match outbound {
                    Outbound::Send(message) => return Poll::Ready(Aside::Send(vec![message])),
                    Outbound::Close(reason) => return Poll::Ready(Aside::Close(reason)),
                    Outbound::Failed(plugin) => {
                        if let Err(reason) = link.lost(&plugin, failures) {
                            return Poll::Ready(Aside::Close(reason));
                        }
                    }
                }
            }
            while link.session.is_some()
                && let Some(ticks) = &mut link.ticks
                && ticks.poll_tick(cx).is_ready()
            {
                match link.ask(failures, |session| session.tick()) {
                    Ok(Some(FilterVerdict::Answer(messages))) => {
                        return Poll::Ready(Aside::Send(messages));
                    }
                    Ok(Some(FilterVerdict::Close(reason))) | Err(reason) => {
                        return Poll::Ready(Aside::Close(reason));
                    }
                    Ok(
                        None
                        | Some(
                            FilterVerdict::Forward
                            | FilterVerdict::Replace(_)
                            | FilterVerdict::Drop,
                        ),
                    ) => {}
                }
            }
        }
        Poll::Pending
    }

    /// What ends the session, whatever waits: for a client that takes nothing.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        for link in &mut self.links {
            match link.inbox.poll_end(cx) {
                Poll::Ready(Outbound::Close(reason)) => return Poll::Ready(reason),
                Poll::Ready(Outbound::Failed(plugin)) => {
                    if let Err(reason) = link.lost(&plugin, &mut self.failures) {
                        return Poll::Ready(reason);
                    }
                }
                Poll::Ready(Outbound::Send(_)) | Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// Tells each that the session is over.
    pub(super) fn closed(&mut self, report: &EndReport) {
        for session in self.links.drain(..).filter_map(|link| link.session) {
            if let Err(error) = session.closed(report)
                && error.call.is_some()
            {
                self.failures.all.push(error);
            }
        }
    }
}

impl Link {
    /// None: it is passed by.
    fn ask(
        &mut self,
        failures: &mut FilterFailures,
        call: impl FnOnce(&mut dyn FilterSession) -> Result<FilterVerdict, PluginError>,
    ) -> Result<Option<FilterVerdict>, CloseReason> {
        let Some(session) = self.session.as_deref_mut() else {
            return Ok(None);
        };
        match call(session) {
            Ok(verdict) => Ok(Some(verdict)),
            Err(error) => {
                self.session = None;
                failures.add(error).map(|()| None)
            }
        }
    }

    /// Its instance is dead.
    fn lost(
        &mut self,
        plugin: &PluginName,
        failures: &mut FilterFailures,
    ) -> Result<(), CloseReason> {
        self.session = None;
        failures.add(PluginError::instance_lost(plugin))
    }
}

impl FilterFailures {
    /// Whether the session goes on without the filter that has failed.
    fn add(&mut self, error: PluginError) -> Result<(), CloseReason> {
        self.all.push(error);
        match self.on_failure {
            OnFailure::Bypass => Ok(()),
            OnFailure::Close => Err(CloseReason::plugin_failed()),
        }
    }
}
