//! A session at a backend whose messages filters look at.
//!
//! In go the two upgraded streams and the filters; out comes the [`EndReport`]. A direction that a
//! filter wants is read as messages: checked, assembled, inflated, shown, and sent on in one frame. A
//! direction that nobody wants passes as frames, as in a relay. Control frames pass in both. What one
//! read brings is sent on by one write, and a side that does not take what it is sent stops the other
//! from being read. Twice a second, while there is something to look at, it is looked whether messages
//! come on and the client takes what it is sent.
//!
//! Each side has a state for what it sends and one for what it is sent:
//!
//! ```text
//!   RecvState   Open ── their Close ─> Closed          SendState   Open ── a Close ──> Closed
//!                ├── end of stream ──> Ended                        ├── mid-message ─> Closing ─> Closed
//!                └── a violation ────> Refused ─> Ended             └── the other side ended ──> Shut
//! ```
//!
//! The session is over when nothing more is read from either side and both have taken what they were sent.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pointsman_config::OnBackendLoss;
use pointsman_contract::close;
use pointsman_contract::failure::PluginError;
use pointsman_contract::filter::Direction;
use pointsman_contract::message::{CloseReason, Message, Received};
use pointsman_contract::session::{EndReport, Ender};
use pointsman_metrics::counters::TargetCounters;
use pointsman_metrics::labels::Limit;
use pointsman_protocol::frames::FrameTracker;
use pointsman_protocol::messages::{Decoder, Encoder, Incoming, UnderWay, Violation};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::buffers::{Buffers, Held};
use super::frame_writer::{FrameWriter, UNSENT_MAX_BYTES};
use super::liveness::{FarEnd, PingStanding};
use super::pace::Pace;
use super::send_timeout::SendTimeout;
use super::stats::SessionStats;
use super::{Order, Registration};
use crate::relay::stream::Stream;
use crate::session::chain::{Aside, Chain, Passage};
use crate::upstream::tls::BackendStream;

/// What a side may take to answer what it was sent before the other broke the protocol.
const OWED_MAX: Duration = Duration::from_secs(1);

/// A session at a backend, with filters.
#[derive(Debug)]
pub struct Filtered<C = TcpStream, B = BackendStream> {
    client_stream: C,
    backend_stream: B,
    client: Side,
    backend: Side,
    chain: Chain,
    registration: Registration,
    stats: SessionStats,
    held: Held,
    end: Option<(Ender, Option<u16>)>,
    is_cut: bool,
    send_timeout: SendTimeout,
    deferred: Option<DeferredClose>,
}

/// What a session with filters reads one side by, and writes to it by.
#[derive(Debug)]
pub struct Codec {
    /// For what the side sends.
    pub reader: Reader,
    /// For what the side is sent.
    pub encoder: Encoder,
    /// Arrived behind the handshake.
    pub early: Vec<u8>,
}

/// How one side is read.
#[derive(Debug)]
pub enum Reader {
    /// Its messages are looked at.
    Messages(Box<Decoder>),
    /// Its frames pass.
    Frames(FrameTracker),
}

/// One peer, but for its stream.
#[derive(Debug)]
struct Side {
    reader: Reader,
    /// Read, and not looked at yet: arrived behind the handshake, or behind messages that have to go out
    /// first.
    unread: Vec<u8>,
    pace: Pace,
    writer: FrameWriter,
    /// Ours, waiting for the end of a message that passes to this side.
    queued: Vec<u8>,
    /// A Ping is in `queued`.
    is_ping_queued: bool,
    recv_state: RecvState,
    send_state: SendState,
}

/// A Close for a side that has broken the protocol. What it said before may still be answered: so the
/// other side is told first, and this goes out behind its Close, or `at_last`.
#[derive(Debug)]
struct DeferredClose {
    to: Direction,
    code: u16,
    reason: &'static str,
    at_last: Pin<Box<Sleep>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecvState {
    Open,
    /// It has broken the protocol: what it sends is not looked at any more.
    Refused,
    Closed,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    Open,
    /// A Close waits in `queued`.
    Closing,
    Closed,
    /// Our half of the connection ends behind what is unsent.
    Shutting,
    Shut,
}

impl<C: Stream, B: Stream> Filtered<C, B> {
    /// Begins at the moment of the call. `chain`: with a reason where a filter failed that has to be there.
    pub fn new(
        (client_stream, client): (C, Codec),
        (backend_stream, backend): (B, Codec),
        (chain, failed): (Chain, Option<CloseReason>),
        registration: Registration,
        counters: Arc<TargetCounters>,
        buffers: Rc<Buffers>,
    ) -> Self {
        let mut stats = SessionStats::new(counters);
        stats.bytes_up(client.early.len() as u64);
        let held = Held::new(buffers, &registration.control);
        let mut session = Self {
            client_stream,
            backend_stream,
            client: Side::new(client),
            backend: Side::new(backend),
            chain,
            registration,
            stats,
            held,
            end: None,
            is_cut: false,
            send_timeout: SendTimeout::default(),
            deferred: None,
        };
        if let Some(reason) = failed {
            session.close(Ender::Plugin, &reason);
        }
        session
    }

    /// What went wrong at the filters since this was last asked: ask after each poll.
    pub fn take_failures(&mut self) -> Vec<PluginError> {
        self.chain.take_failures()
    }

    /// Ready once the session is over; only dropping is left then. A method and no future, as
    /// [`super::relayed::Relayed::poll_report`].
    pub fn poll_report(&mut self, cx: &mut Context<'_>) -> Poll<EndReport> {
        let polled = self.poll(cx);
        self.account();
        if polled.is_pending() {
            return Poll::Pending;
        }
        let (ended_by, code) = self.end.unwrap_or((Ender::Client, None));
        let report = self.stats.report(ended_by, code);
        self.chain.closed(&report);
        Poll::Ready(report)
    }

    /// Says what is held, and whether it should be looked at before long.
    fn account(&mut self) {
        self.held.demand(self.n_held());
        let is_sending = self.client.writer.rest().is_some() || self.send_timeout.is_set();
        let is_under_way = [&self.client, &self.backend].map(Side::under_way) != [None, None];
        self.registration
            .control
            .want_looks(is_sending || is_under_way);
    }

    fn n_held(&self) -> usize {
        self.client.n_held() + self.backend.n_held()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            while let Poll::Ready(order) = self.registration.control.poll_order(cx) {
                self.obey(order);
            }
            let client_takes = self.poll_flush(cx, Direction::FromBackend).is_ready();
            let backend_takes = self.poll_flush(cx, Direction::FromClient).is_ready();
            if self.is_cut || client_takes && backend_takes && self.is_over() {
                return Poll::Ready(());
            }
            let mut has_moved = false;
            if backend_takes && !self.client.is_behind_by(0) {
                has_moved |= self.poll_read(cx, Direction::FromClient).is_ready();
            }
            if client_takes && !self.backend.is_behind_by(0) {
                has_moved |= self.poll_read(cx, Direction::FromBackend).is_ready();
            }
            if self.client.send_state == SendState::Open {
                let client_takes = client_takes && !self.client.is_behind_by(0);
                has_moved |= self.poll_chain(cx, client_takes).is_ready();
            }
            if let Some(deferred) = &mut self.deferred
                && deferred.at_last.as_mut().poll(cx).is_ready()
            {
                self.pay();
                has_moved = true;
            }
            if !has_moved {
                return Poll::Pending;
            }
        }
    }

    fn is_over(&self) -> bool {
        let is_done = |side: &Side| matches!(side.recv_state, RecvState::Closed | RecvState::Ended);
        is_done(&self.client) && is_done(&self.backend)
    }

    /// Reads what there is, once.
    fn poll_read(&mut self, cx: &mut Context<'_>, from: Direction) -> Poll<()> {
        let (source, _) = sides(&mut self.client, &mut self.backend, from);
        if matches!(source.recv_state, RecvState::Closed | RecvState::Ended) {
            return Poll::Pending;
        }
        if !source.unread.is_empty() {
            let mut unread = std::mem::take(&mut source.unread);
            self.take_in(from, &mut unread);
            return Poll::Ready(());
        }
        let buffers = Rc::clone(self.held.buffers());
        let mut scratch = buffers.scratch();
        let received = match from {
            Direction::FromClient => self.client_stream.poll_receive(cx, &mut scratch),
            Direction::FromBackend => self.backend_stream.poll_receive(cx, &mut scratch),
        };
        received.map(|received| match received.unwrap_or(0) {
            0 => self.ended(from),
            n => {
                self.note_received(from, n as u64);
                self.take_in(from, &mut scratch[..n]);
            }
        })
    }

    /// Looks after what should not last.
    fn look(&mut self) {
        let route = &self.registration.control.place.route;
        let is_sending = self.client.writer.rest().is_some();
        self.send_timeout
            .follow(self.client_stream.socket(), is_sending, route.send_timeout);
        let (now, allowed) = (Instant::now(), route.message_timeout);
        // While others have to take something first, a side is not heard.
        let is_heard = [
            self.backend.writer.rest().is_none() && !self.client.is_behind_by(0),
            !is_sending && !self.backend.is_behind_by(0),
        ];
        let mut too_slow = None;
        for (from, is_heard) in [Direction::FromClient, Direction::FromBackend]
            .into_iter()
            .zip(is_heard)
        {
            let (source, _) = sides(&mut self.client, &mut self.backend, from);
            let under_way = source.under_way().filter(|_| is_heard);
            if source.pace.is_too_slow(now, allowed, under_way) {
                too_slow.get_or_insert(from);
            }
        }
        self.look_at_pongs(is_heard);
        if let Some(from) = too_slow {
            self.held.buffers().counters.ended_by(Limit::MessageTimeout);
            self.give_up(from, Violation::TOO_SLOW);
        }
    }

    /// `is_heard`: whether client and backend are read.
    fn look_at_pongs(&self, is_heard: [bool; 2]) {
        let control = &self.registration.control;
        let client = self.client_stream.connection();
        let client = (FarEnd::Client, &self.client, client);
        let backend = self.backend_stream.connection();
        let backend = (FarEnd::Backend, &self.backend, backend);
        for ((far_end, side, stream), is_heard) in [client, backend].into_iter().zip(is_heard) {
            if !control.owes_pong(far_end) {
                continue;
            }
            let at = PingStanding {
                is_unsent: side.writer.is_ping_unsent() || side.is_ping_queued,
                holds: side.writer.rest().is_some(),
                n_written: side.writer.n_taken(),
                cannot_answer: !is_heard || !side.reader.is_between_its_frames(),
            };
            let buffers = self.held.buffers();
            let queue = stream.and_then(|stream| buffers.send_queue(stream));
            control.look_at_pong(far_end, at, queue);
        }
    }

    /// Lets go of most of what is held: what a side has sent of a message, or what it does not take.
    fn shed(&mut self) {
        self.held.buffers().counters.ended_by(Limit::BufferedBytes);
        let [client, backend] =
            [&self.client, &self.backend].map(|side| (side.n_read(), side.n_sent()));
        let most = client.0.max(client.1).max(backend.0).max(backend.1);
        match most {
            most if most == client.0 => self.give_up(Direction::FromClient, Violation::NO_ROOM),
            most if most == backend.0 => self.give_up(Direction::FromBackend, Violation::NO_ROOM),
            most if most == client.1 => self.let_go(Direction::FromClient),
            _ => self.let_go(Direction::FromBackend),
        }
    }

    /// Gives up a side that takes nothing: it cannot be told.
    fn let_go(&mut self, side: Direction) {
        let Violation { code, reason } = Violation::NO_ROOM;
        self.ends(Ender::Host, Some(code));
        self.tell_close(other(side), Some(code), reason);
        self.lost(side);
    }

    /// Ends a session for what a side does that breaks no protocol.
    fn give_up(&mut self, from: Direction, violation: Violation) {
        self.ends(Ender::Host, Some(violation.code));
        self.refuse(from, violation);
    }

    fn note_received(&mut self, from: Direction, n: u64) {
        let control = &self.registration.control;
        match from {
            Direction::FromClient => {
                self.stats.bytes_up(n);
                control.client_heard();
            }
            Direction::FromBackend => control.backend_heard(),
        }
    }

    fn take_in(&mut self, from: Direction, input: &mut [u8]) {
        let (source, _) = sides(&mut self.client, &mut self.backend, from);
        match source.reader {
            Reader::Messages(_) => self.look_at(from, input),
            Reader::Frames(_) => self.pass_on(from, input),
        }
    }

    /// Takes messages out of what was read, and shows them to the filters. Where these make much more of
    /// them, what is left waits until that is sent.
    fn look_at(&mut self, from: Direction, mut input: &mut [u8]) {
        let n_input = input.len();
        loop {
            let (source, target) = sides(&mut self.client, &mut self.backend, from);
            if source.recv_state != RecvState::Open {
                return;
            }
            if source.is_behind_by(n_input) || target.is_behind_by(n_input) {
                source.unread = input.to_vec();
                return;
            }
            let Reader::Messages(decoder) = &mut source.reader else {
                return;
            };
            let message = match decoder.next(&mut input) {
                Ok(None) => return,
                Ok(Some(Incoming::Text(text))) => Received::Text(text),
                Ok(Some(Incoming::Binary(bytes))) => Received::Binary(bytes),
                Ok(Some(Incoming::Ping(payload))) => {
                    if target.send_state == SendState::Open {
                        target.writer.ping(payload);
                    }
                    continue;
                }
                Ok(Some(Incoming::Pong(payload))) => {
                    if target.send_state == SendState::Open {
                        target.writer.pong(payload);
                    }
                    continue;
                }
                Ok(Some(Incoming::Close(reason))) => return self.closed(from, reason),
                Err(violation) => return self.refuse(from, violation),
            };
            if from == Direction::FromClient {
                self.stats.messages_up(1);
            }
            if target.send_state != SendState::Open {
                continue;
            }
            match self.chain.pass(from, message) {
                Passage::Unchanged => target.writer.message(message),
                Passage::Changed(message) => match message.as_received() {
                    Some(message) => target.writer.message(message),
                    None => return self.close(Ender::Plugin, &CloseReason::plugin_failed()),
                },
                Passage::Dropped => continue,
                Passage::Answered(messages) => {
                    self.answer(from, &messages);
                    continue;
                }
                Passage::Closed(reason) => {
                    self.close(Ender::Plugin, &reason);
                    continue;
                }
            }
            if from == Direction::FromBackend {
                self.stats.messages_down(1);
            }
        }
    }

    /// Passes frames on as they are, with what is ours between two messages.
    fn pass_on(&mut self, from: Direction, mut input: &[u8]) {
        let (source, target) = sides(&mut self.client, &mut self.backend, from);
        let Reader::Frames(tracker) = &mut source.reader else {
            return;
        };
        let before = tracker.messages();
        let mut is_too_big = false;
        while source.recv_state == RecvState::Open && !input.is_empty() {
            let Ok(n) = tracker.frame(input) else {
                is_too_big = true;
                break;
            };
            let (passes, rest) = input.split_at(n);
            input = rest;
            if matches!(target.send_state, SendState::Open | SendState::Closing) {
                target.writer.bytes(passes);
            }
            if tracker.is_between_messages() {
                target.put_aside_in();
            }
            if tracker.close().is_some() {
                break;
            }
        }
        let n = tracker.messages() - before;
        let close = tracker.close();
        match from {
            Direction::FromClient => self.stats.messages_up(n),
            Direction::FromBackend => self.stats.messages_down(n),
        }
        if is_too_big {
            let reason = "a message is too long";
            return self.refuse(
                from,
                Violation {
                    code: close::MESSAGE_TOO_BIG,
                    reason,
                },
            );
        }
        if let Some(code) = close {
            source.recv_state = RecvState::Closed;
            if target.send_state == SendState::Open {
                target.send_state = SendState::Closed;
            }
            self.ends(ender(from), code);
        }
    }

    /// What filters do by themselves.
    fn poll_chain(&mut self, cx: &mut Context<'_>, client_takes: bool) -> Poll<()> {
        if !client_takes {
            return self
                .chain
                .poll_end(cx)
                .map(|reason| self.close(Ender::Plugin, &reason));
        }
        self.chain.poll_aside(cx).map(|queued| match queued {
            Aside::Send(messages) => self.answer(Direction::FromClient, &messages),
            Aside::Close(reason) => self.close(Ender::Plugin, &reason),
        })
    }

    /// Sends something of a filter's to the side that this direction comes from.
    fn answer(&mut self, to: Direction, messages: &[Message]) {
        let (side, feeding) = sides(&mut self.client, &mut self.backend, to);
        if side.send_state != SendState::Open {
            return;
        }
        let at_once = feeding.reader.is_between_messages();
        for message in messages {
            let Some(message) = message.as_received() else {
                return self.close(Ender::Plugin, &CloseReason::plugin_failed());
            };
            match at_once {
                true => side.writer.message(message),
                false => side.writer.queue_message(message, &mut side.queued),
            }
            if to == Direction::FromClient {
                self.stats.messages_down(1);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Ping { client, backend } => {
                for (to, is_asked) in [
                    (Direction::FromClient, client),
                    (Direction::FromBackend, backend),
                ] {
                    let (side, feeding) = sides(&mut self.client, &mut self.backend, to);
                    if is_asked && side.send_state == SendState::Open {
                        side.ping(feeding.reader.is_between_messages());
                    }
                }
            }
            Order::Close(by, code) => {
                let reason = String::new();
                self.close(by, &CloseReason { code, reason });
            }
            Order::Look => self.look(),
            Order::Shed => self.shed(),
            Order::Cut(by) => {
                self.ends(by, None);
                self.is_cut = true;
            }
        }
    }

    /// Begins the closing handshake with both sides.
    fn close(&mut self, by: Ender, CloseReason { code, reason }: &CloseReason) {
        self.ends(by, Some(*code));
        for to in [Direction::FromClient, Direction::FromBackend] {
            self.tell_close(to, Some(*code), reason);
        }
    }

    /// A side has sent its Close, which the other is sent, too.
    fn closed(&mut self, from: Direction, reason: Option<CloseReason>) {
        let (source, _) = sides(&mut self.client, &mut self.backend, from);
        source.recv_state = RecvState::Closed;
        let (code, reason) = match reason {
            Some(CloseReason { code, reason }) => (Some(code), reason),
            None => (None, String::new()),
        };
        self.ends(ender(from), code);
        self.pay();
        self.tell_close(other(from), code, &reason);
    }

    /// A side has broken the protocol.
    fn refuse(&mut self, from: Direction, Violation { code, reason }: Violation) {
        let (source, _) = sides(&mut self.client, &mut self.backend, from);
        source.recv_state = RecvState::Refused;
        source.unread = Vec::new();
        if let Reader::Messages(decoder) = &mut source.reader {
            decoder.forget();
        }
        self.ends(ender(from), Some(code));
        self.tell_close(other(from), Some(close::GOING_AWAY), "");
        self.deferred = Some(DeferredClose {
            to: from,
            code,
            reason,
            at_last: Box::pin(sleep(OWED_MAX)),
        });
        let (_, target) = sides(&mut self.client, &mut self.backend, from);
        let has_more =
            matches!(target.reader, Reader::Messages(_)) && target.recv_state == RecvState::Open;
        if !has_more {
            self.pay();
        }
    }

    /// Tells a side that it has broken the protocol.
    fn pay(&mut self) {
        if let Some(deferred) = self.deferred.take() {
            self.tell_close(deferred.to, Some(deferred.code), deferred.reason);
        }
    }

    /// A side's half of the connection is over, with or without a Close before it.
    fn ended(&mut self, from: Direction) {
        let (source, target) = sides(&mut self.client, &mut self.backend, from);
        let was_open = source.recv_state == RecvState::Open;
        let can_be_told = source.reader.is_between_frames();
        source.recv_state = RecvState::Ended;
        if !was_open {
            return;
        }
        if self.deferred.is_some() {
            return self.pay();
        }
        let route = &self.registration.control.place.route;
        let is_lost = from == Direction::FromBackend && target.send_state == SendState::Open;
        if is_lost && can_be_told && route.on_backend_loss == OnBackendLoss::Close {
            // There is nothing to wait for: what was under way will not be finished.
            source.reader.forget();
            self.ends(Ender::Backend, Some(close::SERVICE_RESTART));
            return self.tell_close(Direction::FromClient, Some(close::SERVICE_RESTART), "");
        }
        if matches!(target.send_state, SendState::Open | SendState::Closing) {
            target.send_state = SendState::Shutting;
        }
        self.ends(ender(from), None);
    }

    /// A side takes nothing more.
    fn lost(&mut self, lost: Direction) {
        let (side, _) = sides(&mut self.client, &mut self.backend, lost);
        side.writer.forget();
        side.queued = Vec::new();
        side.send_state = SendState::Shut;
        self.ended(lost);
    }

    /// Sends a side our Close, behind the message that passes to it.
    fn tell_close(&mut self, to: Direction, code: Option<u16>, reason: &str) {
        let (side, feeding) = sides(&mut self.client, &mut self.backend, to);
        if side.send_state != SendState::Open {
            return;
        }
        if feeding.reader.is_between_messages() {
            side.writer.close(code, reason);
            side.send_state = SendState::Closed;
        } else {
            side.writer.queue_close(code, reason, &mut side.queued);
            side.send_state = SendState::Closing;
        }
    }

    /// The first to end it names the end; the rest should not take long.
    fn ends(&mut self, by: Ender, code: Option<u16>) {
        self.end.get_or_insert((by, code));
        self.registration.control.ending();
    }

    /// Writes what there is for the side that this direction goes to.
    fn poll_flush(&mut self, cx: &mut Context<'_>, direction: Direction) -> Poll<()> {
        let (_, target) = sides(&mut self.client, &mut self.backend, direction);
        while let Some(bytes) = target.writer.rest() {
            let sent = match direction {
                Direction::FromClient => self.backend_stream.poll_send(cx, bytes),
                Direction::FromBackend => self.client_stream.poll_send(cx, bytes),
            };
            match sent {
                Poll::Ready(Ok(n)) => {
                    target.writer.took(n);
                    if direction == Direction::FromBackend {
                        self.stats.bytes_down(n as u64);
                    }
                }
                Poll::Ready(Err(error)) => {
                    let is_client = direction == Direction::FromBackend;
                    if is_client && self.send_timeout.has_ended(&error) {
                        self.held.buffers().counters.ended_by(Limit::SendTimeout);
                        self.ends(Ender::Host, None);
                    }
                    self.lost(other(direction));
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        let must_shut = match (target.send_state, target.recv_state) {
            (SendState::Shutting, _) => true,
            // A reset, which is what a socket dropped with unread input becomes, could overtake our
            // Close.
            (SendState::Closed, RecvState::Refused) => true,
            // It waits for the end, whatever the other side does.
            (SendState::Closed, RecvState::Closed) => true,
            _ => false,
        };
        if must_shut {
            let shut = match direction {
                Direction::FromClient => Pin::new(&mut self.backend_stream).poll_shutdown(cx),
                Direction::FromBackend => Pin::new(&mut self.client_stream).poll_shutdown(cx),
            };
            if shut.is_pending() {
                return Poll::Pending;
            }
            target.send_state = SendState::Shut;
        }
        Poll::Ready(())
    }
}

impl Side {
    fn new(
        Codec {
            reader,
            encoder,
            early,
        }: Codec,
    ) -> Self {
        Self {
            reader,
            unread: early,
            pace: Pace::default(),
            writer: FrameWriter::new(encoder),
            queued: Vec::new(),
            is_ping_queued: false,
            recv_state: RecvState::Open,
            send_state: SendState::Open,
        }
    }

    fn n_held(&self) -> usize {
        self.n_read() + self.n_sent()
    }

    /// Memory for what it has sent.
    fn n_read(&self) -> usize {
        self.reader.n_held() + self.unread.capacity()
    }

    /// Memory for what it has not taken yet.
    fn n_sent(&self) -> usize {
        self.writer.n_held() + self.queued.capacity()
    }

    /// More waits to be sent to it than should, and `allowed` bytes more, as [`FrameWriter::is_behind_by`].
    fn is_behind_by(&self, allowed: usize) -> bool {
        self.writer.is_behind_by(allowed) || self.queued.len() > UNSENT_MAX_BYTES + allowed
    }

    /// What it has begun to send, where that is assembled.
    fn under_way(&self) -> Option<UnderWay> {
        match &self.reader {
            Reader::Messages(decoder) => decoder.under_way(),
            Reader::Frames(_) => None,
        }
    }

    /// Asks it for a sign of life. `at_once`: no message is passing to it.
    fn ping(&mut self, at_once: bool) {
        match at_once {
            true => {
                self.writer.ping(&[]);
                self.writer.note_ping();
            }
            false => {
                self.writer.queue_ping(&mut self.queued);
                self.is_ping_queued = true;
            }
        }
    }

    /// A message has passed to this side: what waited for that may follow.
    fn put_aside_in(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        self.writer.bytes(&std::mem::take(&mut self.queued));
        if std::mem::take(&mut self.is_ping_queued) {
            self.writer.note_ping();
        }
        if self.send_state == SendState::Closing {
            self.send_state = SendState::Closed;
        }
    }
}

impl Reader {
    fn n_held(&self) -> usize {
        match self {
            Self::Messages(decoder) => decoder.n_held(),
            Self::Frames(_) => 0,
        }
    }

    fn is_between_messages(&self) -> bool {
        match self {
            Self::Messages(_) => true,
            Self::Frames(tracker) => tracker.is_between_messages(),
        }
    }

    fn is_between_frames(&self) -> bool {
        match self {
            Self::Messages(_) => true,
            Self::Frames(tracker) => tracker.is_between_frames(),
        }
    }

    /// Whether the peer could say something else now.
    fn is_between_its_frames(&self) -> bool {
        match self {
            Self::Messages(decoder) => decoder.is_between_frames(),
            Self::Frames(tracker) => tracker.is_between_frames(),
        }
    }

    /// Nothing more comes.
    fn forget(&mut self) {
        if let Self::Frames(tracker) = self {
            *tracker = FrameTracker::new(0);
        }
    }
}

/// The side that a direction comes from, and the one that it goes to.
fn sides<'a>(
    client: &'a mut Side,
    backend: &'a mut Side,
    direction: Direction,
) -> (&'a mut Side, &'a mut Side) {
    match direction {
        Direction::FromClient => (client, backend),
        Direction::FromBackend => (backend, client),
    }
}

fn other(direction: Direction) -> Direction {
    match direction {
        Direction::FromClient => Direction::FromBackend,
        Direction::FromBackend => Direction::FromClient,
    }
}

fn ender(from: Direction) -> Ender {
    match from {
        Direction::FromClient => Ender::Client,
        Direction::FromBackend => Ender::Backend,
    }
}
