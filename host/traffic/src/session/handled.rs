//! A session whose far end is a handler: speaks RFC 6455 to the client and shows the handler whole
//! messages.
//!
//! In go an upgraded stream and a handler's session; out comes the [`EndReport`]. Pings, fragments,
//! sizes, UTF-8, compression and the closing handshake are settled here; the handler sees data messages
//! only, where they were read. What one read brings is answered by one write, and a client that does
//! not take its answers is not read from. Twice a second, while there is something to look at, it is
//! looked whether a message comes on and the client takes what it is sent.
//!
//! ```text
//!   Open ── their Close ─────> Answered ── flushed ─────────────────────────> Done
//!    │
//!    └─ our Close ──> Closing ── their Close, or their end ─────────────────> Done
//!    └─ a violation: our Close ──> Refusing ── flushed, shut down, their end ─> Done
//! ```

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pointsman_contract::failure::PluginError;
use pointsman_contract::handler::{HandlerInterest, HandlerSession, HandlerVerdict};
use pointsman_contract::message::{CloseReason, Message, Received};
use pointsman_contract::outbox::{Inbox, Outbound};
use pointsman_contract::session::{EndReport, Ender};
use pointsman_metrics::counters::TargetCounters;
use pointsman_metrics::labels::Limit;
use pointsman_protocol::messages::{Decoder, Encoder, Incoming, Violation};
use tokio::net::TcpStream;
use tokio::time::{Instant, Interval};

use super::buffers::{Buffers, Held};
use super::frame_writer::FrameWriter;
use super::liveness::{FarEnd, PingStanding};
use super::pace::Pace;
use super::send_timeout::SendTimeout;
use super::stats::SessionStats;
use super::{Order, Registration};
use crate::relay::stream::Stream;

/// A session at a handler.
#[derive(Debug)]
pub struct Handled<C = TcpStream> {
    stream: C,
    decoder: Decoder,
    /// Read, and not looked at yet: arrived behind the request, or behind a message whose answer has to go
    /// out first.
    unread: Vec<u8>,
    pace: Pace,
    send_timeout: SendTimeout,
    writer: FrameWriter,
    /// None: it failed when the session was opened.
    handler: Option<Box<dyn HandlerSession>>,
    /// What went wrong at the handler, until it is taken.
    failure: Option<Box<PluginError>>,
    interest: HandlerInterest,
    inbox: Inbox,
    ticks: Option<Pin<Box<Interval>>>,
    registration: Registration,
    stats: SessionStats,
    held: Held,
    phase: HandledPhase,
    end: Option<(Ender, Option<u16>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandledPhase {
    Open,
    Answered,
    Closing,
    Refusing,
    /// As `Refusing`, with our half of the connection ended: a reset, which is what a socket dropped
    /// with unread input becomes, could overtake our Close.
    Discarding,
    Done,
}

impl<C: Stream> Handled<C> {
    /// Begins at the moment of the call. `early`: bytes that arrived behind the request.
    #[expect(
        clippy::too_many_arguments,
        reason = "all that a session is made of, once"
    )]
    pub fn new(
        stream: C,
        early: &[u8],
        (decoder, encoder): (Decoder, Encoder),
        handler: Result<Box<dyn HandlerSession>, PluginError>,
        inbox: Inbox,
        registration: Registration,
        counters: Arc<TargetCounters>,
        buffers: Rc<Buffers>,
    ) -> Self {
        let (handler, failure) = match handler {
            Ok(handler) => (Some(handler), None),
            Err(error) => (None, Some(Box::new(error))),
        };
        let interest = handler
            .as_ref()
            .map_or(HandlerInterest::NONE, |handler| handler.interest());
        let mut stats = SessionStats::new(counters);
        stats.bytes_up(early.len() as u64);
        let held = Held::new(buffers, &registration.control);
        let mut session = Self {
            stream,
            decoder,
            unread: early.to_vec(),
            pace: Pace::default(),
            send_timeout: SendTimeout::default(),
            writer: FrameWriter::new(encoder),
            handler,
            failure,
            interest,
            inbox,
            ticks: super::ticks(interest.tick_interval_ms),
            registration,
            stats,
            held,
            phase: HandledPhase::Open,
            end: None,
        };
        match session.failure {
            None => session.ask(|handler| handler.opened()),
            Some(_) => session.close(Ender::Plugin, CloseReason::plugin_failed()),
        }
        session
    }

    /// What went wrong at the handler since this was last asked: ask after each poll.
    pub fn take_failure(&mut self) -> Option<Box<PluginError>> {
        self.failure.take()
    }

    /// Ready once the session is over; only dropping is left then. A method and no future, as
    /// [`super::relayed::Relayed::poll_report`].
    pub fn poll_report(&mut self, cx: &mut Context<'_>) -> Poll<EndReport> {
        let polled = self.poll(cx);
        self.account();
        ready!(polled);
        let (ended_by, code) = self.end.unwrap_or((Ender::Client, None));
        let report = self.stats.report(ended_by, code);
        if let Some(Err(error)) = self.handler.take().map(|handler| handler.closed(&report))
            && error.call.is_some()
        {
            self.failure = Some(Box::new(error));
        }
        Poll::Ready(report)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            while let Poll::Ready(order) = self.registration.control.poll_order(cx) {
                self.obey_order(order);
            }
            if self.poll_flush(cx).is_pending() {
                if self.phase == HandledPhase::Open
                    && let Poll::Ready(end) = self.inbox.poll_end(cx)
                {
                    self.take(end);
                }
                return Poll::Pending;
            }
            match self.phase {
                HandledPhase::Done => return Poll::Ready(()),
                HandledPhase::Answered => self.phase = HandledPhase::Done,
                HandledPhase::Refusing => {
                    // A failure says that the client is gone already, which is as good.
                    let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
                    self.phase = HandledPhase::Discarding;
                }
                HandledPhase::Open | HandledPhase::Closing | HandledPhase::Discarding => {
                    ready!(self.poll_next(cx))
                }
            }
        }
    }

    /// Says what is held, and whether it should be looked at before long.
    fn account(&mut self) {
        self.held.demand(self.n_held());
        let is_under_way = self.decoder.under_way().is_some();
        let is_sending = self.writer.rest().is_some() || self.send_timeout.is_set();
        let control = &self.registration.control;
        control.want_looks(is_under_way || is_sending);
    }

    fn n_held(&self) -> usize {
        self.writer.n_held() + self.n_read()
    }

    /// Memory for what the client has sent.
    fn n_read(&self) -> usize {
        self.decoder.n_held() + self.unread.capacity()
    }

    /// Takes one step: what the client sends, then what the handler has for it, then a tick.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.unread.is_empty() {
            let mut unread = std::mem::take(&mut self.unread);
            self.read(&mut unread);
            return Poll::Ready(());
        }
        let buffers = Rc::clone(self.held.buffers());
        let mut scratch = buffers.scratch();
        if let Poll::Ready(received) = self.stream.poll_receive(cx, &mut scratch) {
            match received.unwrap_or(0) {
                0 => self.client_ended(),
                n => {
                    self.stats.bytes_up(n as u64);
                    self.registration.control.client_heard();
                    self.registration.control.backend_heard();
                    self.read(&mut scratch[..n]);
                }
            }
            return Poll::Ready(());
        }
        drop(scratch);
        if self.phase != HandledPhase::Open {
            return Poll::Pending;
        }
        if let Poll::Ready(first) = self.inbox.poll_next(cx) {
            self.take(first);
            // What waits goes out in one write.
            while self.phase == HandledPhase::Open
                && !self.writer.is_behind()
                && let Poll::Ready(next) = self.inbox.poll_next(cx)
            {
                self.take(next);
            }
            return Poll::Ready(());
        }
        let ticks = self.ticks.as_mut();
        ready!(ticks.map_or(Poll::Pending, |ticks| ticks.poll_tick(cx).map(drop)));
        self.ask(|handler| handler.tick());
        Poll::Ready(())
    }

    fn take(&mut self, outbound: Outbound) {
        match outbound {
            Outbound::Send(message) => self.send(&message),
            Outbound::Close(reason) => self.close(Ender::Plugin, reason),
            Outbound::Failed(plugin) => self.fail(PluginError::instance_lost(&plugin)),
        }
    }

    /// Looks at bytes of the client. Where they are answered by much more than they are, what is left
    /// of them waits until that is sent.
    fn read(&mut self, mut input: &mut [u8]) {
        let n_input = input.len();
        while matches!(self.phase, HandledPhase::Open | HandledPhase::Closing) {
            if self.writer.is_behind_by(n_input) {
                self.unread = input.to_vec();
                return;
            }
            let Self {
                decoder,
                writer,
                handler,
                interest,
                ..
            } = self;
            let (received, is_wanted) = match decoder.next(&mut input) {
                Ok(None) => return,
                Ok(Some(Incoming::Ping(payload))) => {
                    if self.phase == HandledPhase::Open {
                        writer.pong(payload);
                    }
                    continue;
                }
                Ok(Some(Incoming::Pong(_))) => continue,
                Ok(Some(Incoming::Close(reason))) => return self.client_closed(reason),
                Ok(Some(Incoming::Text(text))) => (Received::Text(text), interest.text),
                Ok(Some(Incoming::Binary(bytes))) => (Received::Binary(bytes), interest.binary),
                Err(violation) => return self.refuse(violation),
            };
            if self.phase != HandledPhase::Open {
                continue;
            }
            self.stats.messages_up(1);
            if !is_wanted {
                continue;
            }
            let Some(handler) = handler else {
                continue;
            };
            let verdict = handler.message(received);
            if matches!(verdict, Ok(HandlerVerdict::Echo)) {
                writer.message(received);
                self.stats.messages_down(1);
            } else {
                self.obey(verdict);
            }
        }
    }

    fn ask(
        &mut self,
        call: impl FnOnce(&mut dyn HandlerSession) -> Result<HandlerVerdict, PluginError>,
    ) {
        let verdict = match self.handler.as_deref_mut() {
            Some(handler) => call(handler),
            None => return,
        };
        self.obey(verdict);
    }

    fn obey(&mut self, verdict: Result<HandlerVerdict, PluginError>) {
        match verdict {
            // There is nothing to echo but a message, which `read` has sent.
            Ok(HandlerVerdict::Ignore | HandlerVerdict::Echo) => {}
            Ok(HandlerVerdict::Reply(messages)) => {
                messages.iter().for_each(|message| self.send(message))
            }
            Ok(HandlerVerdict::Close(reason)) => self.close(Ender::Plugin, reason),
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: PluginError) {
        self.failure = Some(Box::new(error));
        self.close(Ender::Plugin, CloseReason::plugin_failed());
    }

    fn send(&mut self, message: &Message) {
        if self.phase != HandledPhase::Open {
            return;
        }
        let Some(message) = message.as_received() else {
            return self.close(Ender::Plugin, CloseReason::plugin_failed());
        };
        self.writer.message(message);
        self.stats.messages_down(1);
    }

    fn obey_order(&mut self, order: Order) {
        let is_open = self.phase == HandledPhase::Open;
        match order {
            Order::Ping { .. } if is_open => {
                self.writer.ping(&[]);
                self.writer.note_ping();
            }
            Order::Close(by, code) if is_open => self.close(
                by,
                CloseReason {
                    code,
                    reason: String::new(),
                },
            ),
            Order::Ping { .. } | Order::Close(..) => {}
            Order::Look => self.look(),
            Order::Shed => self.shed(),
            Order::Cut(by) => self.cut(by),
        }
    }

    fn cut(&mut self, by: Ender) {
        self.ends(by, None);
        self.writer.forget();
        self.phase = HandledPhase::Done;
    }

    /// Looks after what should not last.
    fn look(&mut self) {
        let is_sending = self.writer.rest().is_some();
        let route = &self.registration.control.place.route;
        self.send_timeout
            .follow(self.stream.socket(), is_sending, route.send_timeout);
        self.look_at_pong(is_sending);
        let route = &self.registration.control.place.route;
        // While it has to take what it is sent first, the client is not heard.
        let under_way = self.decoder.under_way().filter(|_| !is_sending);
        let timeout = route.message_timeout;
        if self.pace.is_too_slow(Instant::now(), timeout, under_way) {
            self.held.buffers().counters.ended_by(Limit::MessageTimeout);
            self.give_up(Violation::TOO_SLOW);
        }
    }

    fn look_at_pong(&self, is_sending: bool) {
        let control = &self.registration.control;
        if !control.owes_pong(FarEnd::Client) {
            return;
        }
        let at = PingStanding {
            is_unsent: self.writer.is_ping_unsent(),
            holds: is_sending,
            n_written: self.writer.n_taken(),
            cannot_answer: is_sending || !self.decoder.is_between_frames(),
        };
        let buffers = self.held.buffers();
        let stream = self.stream.connection();
        let queue = stream.and_then(|stream| buffers.send_queue(stream));
        control.look_at_pong(FarEnd::Client, at, queue);
    }

    /// Lets go of what is held. A client that does not take what it is sent cannot be told.
    fn shed(&mut self) {
        self.held.buffers().counters.ended_by(Limit::BufferedBytes);
        match self.writer.n_held() > self.n_read() {
            true => self.cut(Ender::Host),
            false => self.give_up(Violation::NO_ROOM),
        }
    }

    /// The client has sent its Close: if it was the first, it is answered in kind.
    fn client_closed(&mut self, reason: Option<CloseReason>) {
        if self.phase == HandledPhase::Closing {
            self.phase = HandledPhase::Done;
            return;
        }
        let code = reason.map(|reason| reason.code);
        self.ends(Ender::Client, code);
        self.writer.close(code, "");
        self.phase = HandledPhase::Answered;
    }

    /// The client's half of the connection is over.
    fn client_ended(&mut self) {
        self.ends(Ender::Client, None);
        self.phase = HandledPhase::Done;
    }

    /// Begins the closing handshake (RFC 6455 section 7.1.2).
    fn close(&mut self, by: Ender, CloseReason { code, reason }: CloseReason) {
        if self.phase == HandledPhase::Open {
            self.ends(by, Some(code));
            self.writer.close(Some(code), &reason);
            self.phase = HandledPhase::Closing;
        }
    }

    /// Ends a session that is not the client's to end.
    fn give_up(&mut self, violation: Violation) {
        self.ends(Ender::Host, Some(violation.code));
        self.refuse(violation);
    }

    fn refuse(&mut self, Violation { code, reason }: Violation) {
        self.decoder.forget();
        self.unread = Vec::new();
        self.ends(Ender::Client, Some(code));
        if self.phase == HandledPhase::Open {
            self.writer.close(Some(code), reason);
        }
        self.phase = HandledPhase::Refusing;
    }

    /// The first to end it names the end; the rest should not take long.
    fn ends(&mut self, by: Ender, code: Option<u16>) {
        self.end.get_or_insert((by, code));
        self.registration.control.ending();
    }

    /// Writes what there is. Not ready: the client takes no more, and is heard no more.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(bytes) = self.writer.rest() {
            match ready!(self.stream.poll_send(cx, bytes)) {
                Ok(n) => {
                    self.stats.bytes_down(n as u64);
                    self.registration.control.backend_heard();
                    self.writer.took(n);
                }
                Err(error) => {
                    if self.send_timeout.has_ended(&error) {
                        self.held.buffers().counters.ended_by(Limit::SendTimeout);
                        self.ends(Ender::Host, None);
                    }
                    self.writer.forget();
                    self.client_ended();
                }
            }
        }
        Poll::Ready(())
    }
}
