//! The byte pump between a client and a backend, with a frame tracker in each direction.
//!
//! In go two connected streams; out come the bytes, unmodified, and at last a [`RelayEnd`]. A relay
//! that waits holds no buffer: reads go into the caller's scratch buffer, and only what the other
//! side would not take is kept, while reading stops (backpressure end to end). Large payload moves
//! through a [`Pipe`] instead, inside the kernel. Between two frames it can put in a Close or a Ping
//! of our own. It knows no plugin, no registry and no clock.
//!
//! Each direction goes through these phases:
//!
//! ```text
//!   Open ───────── end of stream ──────────────> Finishing ── flushed, shut down ──> Done
//!    │                                               ^
//!    └─ our Close put in ─> Closing ─ their Close, ──┘       a destination that takes no
//!                           (input     or end of stream      bytes leads to Done at once
//!                            dropped)
//! ```
//!
//! A side that has answered our Close is shut at once; the other may take its time.
//!
//! Where a Close has gone each way, the first end of stream ends both.
//!
//! A relay can be asked to stop between two messages and hand back both its streams, so that another relay goes on
//! with one of them, or both ([`Relay::park`]).

pub mod pipe;
pub mod stream;

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pointsman_contract::close;
use pointsman_contract::session::Ender;
use pointsman_protocol::frames::{FrameTracker, write_close, write_ping};
use pointsman_protocol::header::{MAX_HEADER_BYTES, MaskingKey};
use tokio::net::TcpStream;

use self::pipe::{Carried, Pipe};
use self::stream::Stream;
use crate::masking::masking_key;

/// From here on payload goes through the pipe: two more system calls cost less than two copies.
const LARGE_BYTES: u64 = 128 * 1024;

/// Two streams and what is known of the bytes between them.
#[derive(Debug)]
pub struct Relay<C, B> {
    client: C,
    backend: B,
    /// From the client to the backend.
    up: Flow,
    /// From the backend to the client.
    down: Flow,
    /// The first Close, or the first loss of a side: it names the end.
    end: Option<RelayEnd>,
}

/// What moved one way so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Framing included; frames of our own are not.
    pub bytes: u64,
    /// Whole data messages.
    pub messages: u64,
}

/// How far one side is.
#[derive(Debug, Clone, Copy)]
pub struct RelaySide<'a> {
    /// Its connection; none: it is in memory.
    pub connection: Option<&'a TcpStream>,
    /// The last Ping for it has not been written yet.
    pub is_ping_unsent: bool,
    /// Bytes for it were read and not written yet.
    pub holds: bool,
    /// Bytes for it that were written: those that pass.
    pub n_written: u64,
    /// It is in the middle of a frame, as far as it is read.
    pub is_within_frame: bool,
    /// It is read. Not while the other side has to take something first.
    pub is_read: bool,
}

/// Why a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayEnd {
    /// Who closed first, or went away without a Close.
    pub by: Ender,
    /// The code of the first Close frame that went over the wire.
    pub code: Option<u16>,
}

impl<C, B> Relay<C, B>
where
    C: Stream,
    B: Stream,
{
    /// `max_message_bytes`: payload of one message, either way; `u64::MAX`: any.
    pub fn new(client: C, backend: B, max_message_bytes: u64) -> Self {
        let flow = |direction| Flow::new(direction, max_message_bytes);
        Self {
            client,
            backend,
            up: flow(RelayDirection::Up),
            down: flow(RelayDirection::Down),
            end: None,
        }
    }

    /// Sends the client this code where the backend is lost between two frames. Without it the client's connection
    /// ends as the backend's did: without a Close. Call before the first poll.
    pub fn on_backend_loss_close(&mut self, code: u16) {
        self.down.code_of_loss = Some(code);
    }

    /// Takes in bytes that arrived behind the two handshakes. Call before the first poll.
    pub fn preload(&mut self, from_client: &[u8], from_backend: &[u8]) {
        self.up.hold(from_client);
        self.down.hold(from_backend);
    }

    /// Asks both directions to stop at the end of the message under way; with none under way, where they are. Look at
    /// [`Relay::is_parked`] after each poll. From now on no byte of a later message is read: those wait in the
    /// streams. A side that ends meanwhile ends the relay as ever. The caller bounds the wait.
    pub fn park(&mut self) {
        if self.end.is_none() {
            self.up.parking = Parking::Asked;
            self.down.parking = Parking::Asked;
        }
    }

    /// Takes [`Relay::park`] back: poll again.
    pub fn unpark(&mut self) {
        self.up.parking = Parking::No;
        self.down.parking = Parking::No;
    }

    /// Whether the last poll has left both directions between two messages, with every byte that was read taken by
    /// its destination, and nothing has been asked of the relay since. Answers to Pings may still be on their way.
    pub fn is_parked(&self) -> bool {
        let has_stopped = |flow: &Flow| flow.parking == Parking::Stopped;
        self.end.is_none() && has_stopped(&self.up) && has_stopped(&self.down)
    }

    /// The streams to client and backend, of a relay that [is parked](Relay::is_parked): all that is not relayed
    /// yet is still in them.
    pub fn into_streams(self) -> (C, B) {
        debug_assert!(self.is_parked());
        (self.client, self.backend)
    }

    /// Moves what can be moved. Ready when both directions are done; only dropping is left then.
    /// `scratch` and `pipe` are used during the call only.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        pipe: Option<&Pipe>,
    ) -> Poll<RelayEnd> {
        loop {
            let (client, backend) = (&mut self.client, &mut self.backend);
            self.up.is_answered = self.down.tracker.close().is_some();
            let up = self.up.poll(cx, client, backend, scratch, pipe);
            self.down.is_answered = self.up.tracker.close().is_some();
            let down = self.down.poll(cx, backend, client, scratch, pipe);
            if self.answer_too_big() {
                continue;
            }
            self.note_end();
            if self.end.is_some() && self.is_parking() {
                self.unpark();
                continue;
            }
            let are_done = up.is_ready() && down.is_ready();
            return match self.end {
                Some(end) if are_done || self.has_parted() => Poll::Ready(end),
                _ => Poll::Pending,
            };
        }
    }

    /// Whether the closing handshake is complete and one side has ended its connection on it: then
    /// nothing more can come from the other (RFC 6455 section 7.1.1).
    fn has_parted(&self) -> bool {
        let has_said_all = |flow: &Flow| flow.tracker.close().is_some() && flow.held.is_empty();
        let has_ended =
            |flow: &Flow| matches!(flow.phase, RelayPhase::Finishing | RelayPhase::Done);
        let (up, down) = (&self.up, &self.down);
        has_said_all(up) && has_said_all(down) && (has_ended(up) || has_ended(down))
    }

    /// Puts a Close into both directions, each at its next frame boundary. The relay goes on until
    /// both sides have answered or gone; the caller bounds that wait.
    pub fn close(&mut self, by: Ender, code: u16) {
        self.end.get_or_insert(RelayEnd {
            by,
            code: Some(code),
        });
        self.down.inject(Injection::Close(code));
        self.up.inject(Injection::Close(code));
    }

    /// Puts a Ping for the client between two frames of the backend. The Pong passes on to the other
    /// side, where an unsolicited Pong is ignored (RFC 6455 section 5.5.3).
    pub fn ping_client(&mut self) {
        self.down.inject(Injection::Ping);
    }

    /// The same for the backend.
    pub fn ping_backend(&mut self) {
        self.up.inject(Injection::Ping);
    }

    /// How far the client is with what it is sent and what it sends.
    pub fn client_side(&self) -> RelaySide<'_> {
        self.down.to_destination(self.client.connection(), &self.up)
    }

    /// The same of the backend.
    pub fn backend_side(&self) -> RelaySide<'_> {
        self.up
            .to_destination(self.backend.connection(), &self.down)
    }

    /// Once one side has closed or gone, or we have: the end that the relay is coming to.
    pub fn end(&self) -> Option<RelayEnd> {
        self.end
    }

    /// Memory for bytes that were read and not yet taken by the other side.
    pub fn n_held(&self) -> usize {
        self.up.held.capacity() + self.down.held.capacity()
    }

    /// Client to backend.
    pub fn moved_up(&self) -> Moved {
        self.up.moved()
    }

    /// Backend to client.
    pub fn moved_down(&self) -> Moved {
        self.down.moved()
    }

    /// Tells a side that it has sent too long a message; says whether one has.
    fn answer_too_big(&mut self) -> bool {
        let (by, back) = if std::mem::take(&mut self.up.is_too_big) {
            (Ender::Client, &mut self.down)
        } else if std::mem::take(&mut self.down.is_too_big) {
            (Ender::Backend, &mut self.up)
        } else {
            return false;
        };
        self.end.get_or_insert(RelayEnd {
            by,
            code: Some(close::MESSAGE_TOO_BIG),
        });
        back.inject(Injection::Close(close::MESSAGE_TOO_BIG));
        true
    }

    fn is_parking(&self) -> bool {
        [&self.up, &self.down]
            .iter()
            .any(|flow| flow.parking != Parking::No)
    }

    fn note_end(&mut self) {
        if self.end.is_none() {
            self.end = self.down.end().or_else(|| self.up.end());
        }
    }
}

/// One direction.
#[derive(Debug)]
struct Flow {
    direction: RelayDirection,
    tracker: FrameTracker,
    bytes: u64,
    /// Read, and not yet taken by the destination. Empty, without memory, while all is well.
    held: Vec<u8>,
    /// How much of `held` has been taken.
    taken: usize,
    injection: Option<Injection>,
    /// A Ping is in `held`.
    holds_ping: bool,
    phase: RelayPhase,
    /// What the destination is sent where the source goes without a Close; none: nothing.
    code_of_loss: Option<u16>,
    /// The source has gone without a Close, or the destination takes no bytes.
    loss: Option<Loss>,
    /// The source has sent a message over the limit, and nobody was told yet.
    is_too_big: bool,
    /// A Close has come from the destination.
    is_answered: bool,
    /// The destination was told that nothing more comes.
    is_shut: bool,
    parking: Parking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RelayDirection {
    Up,
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RelayPhase {
    Open,
    Closing,
    Finishing,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// With the code that the destination was told, if it could be told.
    Source(Option<u16>),
    Destination,
}

/// Whether a direction is to stop between two messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parking {
    No,
    Asked,
    /// It was there when it was polled last.
    Stopped,
}

/// A frame of ours, waiting for the end of a frame of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Injection {
    Ping,
    Close(u16),
}

impl Flow {
    fn new(direction: RelayDirection, max_message_bytes: u64) -> Self {
        Self {
            direction,
            tracker: FrameTracker::new(max_message_bytes),
            bytes: 0,
            held: Vec::new(),
            taken: 0,
            injection: None,
            holds_ping: false,
            phase: RelayPhase::Open,
            code_of_loss: None,
            loss: None,
            is_too_big: false,
            is_answered: false,
            is_shut: false,
            parking: Parking::No,
        }
    }

    /// One read and one write per turn while both sides keep up. A read shorter than `scratch` is
    /// not followed by another that would find nothing: the runtime has noted that the socket is
    /// empty.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Stream,
        destination: &mut impl Stream,
        scratch: &mut [u8],
        pipe: Option<&Pipe>,
    ) -> Poll<()> {
        self.restart();
        loop {
            self.put_in();
            ready!(self.flush(cx, destination));
            let pipe = pipe.filter(|_| self.is_streaming());
            if let (Some(pipe), Some(from), Some(to)) =
                (pipe, source.socket(), destination.socket())
                && self.tracker.skippable() > 0
            {
                ready!(self.carry(cx, from, to, pipe, &[]));
                continue;
            }
            match self.phase {
                RelayPhase::Done => return Poll::Ready(()),
                // Both sockets are about to be closed, which says it as well.
                RelayPhase::Finishing if self.is_answered && self.tracker.close().is_some() => {
                    self.phase = RelayPhase::Done;
                }
                RelayPhase::Finishing => {
                    // A failure says that the destination is gone already, which is as good.
                    let _ = ready!(Pin::new(&mut *destination).poll_shutdown(cx));
                    self.phase = RelayPhase::Done;
                }
                // It has answered our Close and waits for the end, whatever the source does.
                RelayPhase::Closing if self.is_answered && !self.is_shut => {
                    let _ = ready!(Pin::new(&mut *destination).poll_shutdown(cx));
                    self.is_shut = true;
                }
                RelayPhase::Open
                    if self.parking != Parking::No && self.tracker.is_between_messages() =>
                {
                    self.parking = Parking::Stopped;
                    return Poll::Pending;
                }
                RelayPhase::Closing | RelayPhase::Open => {
                    let room = match (self.parking, pipe) {
                        (Parking::No, None) => scratch.len(),
                        // A header read by itself lets its payload pass unseen.
                        (Parking::No, Some(_)) => MAX_HEADER_BYTES,
                        _ => usize::try_from(self.tracker.missing())
                            .map_or(scratch.len(), |missing| missing.min(scratch.len())),
                    };
                    // A reset ends the stream as an orderly end does: what came before it counts.
                    let n = ready!(source.poll_receive(cx, &mut scratch[..room])).unwrap_or(0);
                    match (&scratch[..n], pipe) {
                        ([], _) => self.source_ended(),
                        (chunk, Some(pipe)) => self.begin(cx, source, destination, pipe, chunk),
                        (chunk, None) => self.forward(cx, destination, chunk),
                    }
                    if self.is_too_big {
                        // The other direction has to tell the source first.
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Passes on a piece that was just read, straight from the scratch buffer if it can be.
    fn forward(&mut self, cx: &mut Context<'_>, destination: &mut impl Stream, chunk: &[u8]) {
        if self.injection.is_some() || self.phase == RelayPhase::Closing {
            return self.hold(chunk);
        }
        self.bytes += chunk.len() as u64;
        let n = self.track(chunk);
        let (passes, refused) = chunk.split_at(n);
        if passes.is_empty() {
            return self.refuse(refused);
        }
        match destination.poll_send(cx, passes) {
            Poll::Ready(Ok(n)) => self.held.extend_from_slice(&passes[n..]),
            Poll::Ready(Err(_)) => return self.destination_lost(),
            Poll::Pending => self.held.extend_from_slice(passes),
        }
        self.refuse(refused);
    }

    /// Whether payload should go through the pipe: the frame under way is large, or the last one was,
    /// for a large message is seldom alone.
    fn is_streaming(&self) -> bool {
        self.phase == RelayPhase::Open
            && self.injection.is_none()
            && self.tracker.frame_bytes() >= LARGE_BYTES
            && (self.tracker.skippable() > 0 || self.tracker.is_between_frames())
    }

    /// Passes on what may be a header by itself, with its payload behind it if that is large.
    fn begin(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Stream,
        destination: &mut impl Stream,
        pipe: &Pipe,
        chunk: &[u8],
    ) {
        let mut ahead = self.tracker.clone();
        let is_large = ahead.frame(chunk) == Ok(chunk.len())
            && ahead.skippable() > 0
            && ahead.frame_bytes() >= LARGE_BYTES;
        match (source.socket(), destination.socket()) {
            (Some(from), Some(to)) if is_large => {
                self.tracker = ahead;
                self.bytes += chunk.len() as u64;
                // Never pending: there is a header to pass on.
                let _ = self.carry(cx, from, to, pipe, chunk);
            }
            _ => self.forward(cx, destination, chunk),
        }
    }

    /// Moves payload through the pipe, behind `before`. Pending: the source has none.
    fn carry(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        destination: &TcpStream,
        pipe: &Pipe,
        before: &[u8],
    ) -> Poll<()> {
        let limit = usize::try_from(self.tracker.skippable()).unwrap_or(usize::MAX);
        let carried = ready!(pipe.carry(cx, source, destination, before, limit));
        match carried {
            Carried::Moved(n, left) => {
                self.moved_unseen(n);
                self.held = left;
            }
            Carried::DestinationLost(n) => {
                self.moved_unseen(n);
                self.destination_lost();
            }
            Carried::SourceEnded => self.source_ended(),
        }
        Poll::Ready(())
    }

    fn moved_unseen(&mut self, n: usize) {
        self.bytes += n as u64;
        self.tracker.skip(n as u64);
    }

    /// Takes in a piece without writing it, and puts in what waits for the end of a frame.
    fn hold(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        let mut rest = chunk;
        while self.phase == RelayPhase::Open && !rest.is_empty() {
            let Ok(n) = self.tracker.frame(rest) else {
                return self.refuse(rest);
            };
            self.held.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            self.put_in();
        }
        self.follow(rest);
    }

    /// Follows a piece; says how much of it may pass on: all, or what is before too long a message.
    fn track(&mut self, chunk: &[u8]) -> usize {
        let mut n = 0;
        while n < chunk.len() {
            let Ok(frame) = self.tracker.frame(&chunk[n..]) else {
                break;
            };
            n += frame;
        }
        n
    }

    /// Stops at the message that is too long, of which `rest` begins: nothing passes on any more.
    fn refuse(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            return;
        }
        self.is_too_big = true;
        // Where half a header is out already no frame of ours fits behind it.
        if self.tracker.is_between_frames() {
            self.hold_close(close::GOING_AWAY);
        }
        self.phase = RelayPhase::Closing;
        self.tracker.lift_limit();
        self.follow(rest);
    }

    /// Follows input that passes on no more, for the Close that answers ours.
    fn follow(&mut self, chunk: &[u8]) {
        self.track(chunk);
        if self.phase == RelayPhase::Closing && self.tracker.close().is_some() {
            self.phase = RelayPhase::Finishing;
        }
    }

    /// Puts in the frame that waits, if this is the end of a frame.
    fn put_in(&mut self) {
        let is_due = self.phase == RelayPhase::Open && self.tracker.is_between_frames();
        match self.injection {
            Some(Injection::Ping) if is_due => {
                write_ping(self.key(), &mut self.held);
                self.holds_ping = true;
            }
            Some(Injection::Close(code)) if is_due => {
                self.hold_close(code);
                self.phase = RelayPhase::Closing;
            }
            Some(_) if self.phase == RelayPhase::Open => return,
            Some(_) | None => {}
        }
        self.injection = None;
    }

    /// Whether it has stopped is for this poll to say.
    fn restart(&mut self) {
        if self.parking == Parking::Stopped {
            self.parking = Parking::Asked;
        }
    }

    /// Asks for a frame to be put in. A Close takes the place of a Ping; after a Close of theirs
    /// nothing follows (RFC 6455 section 5.5.1).
    fn inject(&mut self, injection: Injection) {
        let has_close = matches!(self.injection, Some(Injection::Close(..)));
        if self.phase == RelayPhase::Open && !has_close && self.tracker.close().is_none() {
            self.injection = Some(injection);
            self.restart();
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>, destination: &mut impl Stream) -> Poll<()> {
        while self.taken < self.held.len() {
            match ready!(destination.poll_send(cx, &self.held[self.taken..])) {
                Ok(n) if n > 0 => self.taken += n,
                Ok(_) | Err(_) => self.destination_lost(),
            }
        }
        if self.taken > 0 {
            self.held = Vec::new();
            self.taken = 0;
        }
        if ready!(destination.poll_clear(cx)).is_err() {
            self.destination_lost();
        }
        self.holds_ping = false;
        Poll::Ready(())
    }

    /// How far its destination is, from which the other flow comes.
    fn to_destination<'a>(&self, connection: Option<&'a TcpStream>, back: &Self) -> RelaySide<'a> {
        let n_held = self.held.len() - self.taken;
        RelaySide {
            connection,
            is_ping_unsent: self.holds_ping || self.injection == Some(Injection::Ping),
            holds: n_held > 0,
            n_written: self.bytes.saturating_sub(n_held as u64),
            is_within_frame: !back.tracker.is_between_frames(),
            is_read: back.held.is_empty(),
        }
    }

    fn source_ended(&mut self) {
        if self.tracker.close().is_none() && self.phase == RelayPhase::Open {
            let code = self.code_of_loss;
            let code = code.filter(|_| self.tracker.is_between_frames());
            if let Some(code) = code {
                self.hold_close(code);
            }
            self.loss.get_or_insert(Loss::Source(code));
        }
        self.phase = RelayPhase::Finishing;
    }

    fn destination_lost(&mut self) {
        self.loss.get_or_insert(Loss::Destination);
        self.held = Vec::new();
        self.taken = 0;
        self.phase = RelayPhase::Done;
    }

    /// Once one of this direction's sides has closed or gone: which, with the code that went over
    /// the wire.
    fn end(&self) -> Option<RelayEnd> {
        let (source, destination) = match self.direction {
            RelayDirection::Up => (Ender::Client, Ender::Backend),
            RelayDirection::Down => (Ender::Backend, Ender::Client),
        };
        match (self.tracker.close(), self.loss) {
            (Some(code), _) | (None, Some(Loss::Source(code))) => {
                Some(RelayEnd { by: source, code })
            }
            (None, Some(Loss::Destination)) => Some(RelayEnd {
                by: destination,
                code: None,
            }),
            (None, None) => None,
        }
    }

    /// Has a Close of ours go out behind what is held.
    fn hold_close(&mut self, code: u16) {
        write_close(code, self.key(), &mut self.held);
    }

    /// For a frame of ours: a fresh key towards a backend (RFC 6455 section 5.3).
    fn key(&self) -> Option<MaskingKey> {
        match self.direction {
            RelayDirection::Up => Some(masking_key()),
            RelayDirection::Down => None,
        }
    }

    fn moved(&self) -> Moved {
        Moved {
            bytes: self.bytes,
            messages: self.tracker.messages(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const TEXT: &[u8] = b"\x81\x05hello";
    const MASKED_TEXT: &[u8] = b"\x81\x85\x01\x02\x03\x04iohhl";
    const CLOSE_1000: &[u8] = b"\x88\x02\x03\xe8";

    /// A relay between two pipes that hold `capacity` bytes each, run in a task of its own.
    struct TestRelay {
        client: DuplexStream,
        backend: DuplexStream,
        orders: tokio::sync::mpsc::UnboundedSender<Injection>,
        end: tokio::task::JoinHandle<(RelayEnd, Moved, Moved)>,
    }

    fn relayed(capacity: usize, scratch_bytes: usize, max_message_bytes: u64) -> TestRelay {
        relayed_with(capacity, scratch_bytes, max_message_bytes, None)
    }

    /// `code_of_loss`: for the client of a backend that is lost.
    fn relayed_with(
        capacity: usize,
        scratch_bytes: usize,
        max_message_bytes: u64,
        code_of_loss: Option<u16>,
    ) -> TestRelay {
        let (client, relay_client) = duplex(capacity);
        let (backend, relay_backend) = duplex(capacity);
        let mut relay = Relay::new(relay_client, relay_backend, max_message_bytes);
        if let Some(code) = code_of_loss {
            relay.on_backend_loss_close(code);
        }
        let (orders, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let run = async move {
            let mut scratch = vec![0; scratch_bytes];
            let end = poll_fn(|cx| {
                while let Poll::Ready(Some(order)) = taken.poll_recv(cx) {
                    match order {
                        Injection::Ping => {
                            relay.ping_client();
                            relay.ping_backend();
                        }
                        Injection::Close(code) => relay.close(Ender::Operator, code),
                    }
                }
                relay.poll(cx, &mut scratch, None)
            });
            (end.await, relay.moved_up(), relay.moved_down())
        };
        let end = tokio::task::spawn_local(run);
        TestRelay {
            client,
            backend,
            orders,
            end,
        }
    }

    async fn local<F: Future>(test: F) -> F::Output {
        tokio::task::LocalSet::new().run_until(test).await
    }

    async fn rest(stream: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream
            .read_to_end(&mut bytes)
            .await
            .expect("pipes do not fail");
        bytes
    }

    async fn exactly(stream: &mut DuplexStream, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        stream.read_exact(&mut bytes).await.expect("as many bytes");
        bytes
    }

    #[tokio::test]
    async fn bytes_pass_unmodified_through_pipes_and_buffers_of_any_size() {
        for (capacity, scratch) in [
            (1, 1),
            (1, 64),
            (3, 2),
            (7, 1024),
            (1024, 5),
            (65536, 65536),
        ] {
            local(async {
                let TestRelay {
                    mut client,
                    mut backend,
                    end,
                    ..
                } = relayed(capacity, scratch, u64::MAX);
                let mut sent: Vec<u8> = [0x82, 126, 0x10, 0x00].into();
                sent.extend((0..4096).map(|i| i as u8));
                sent.extend(TEXT);
                sent.extend(CLOSE_1000);
                let writing = async {
                    backend.write_all(&sent).await.expect("room");
                    backend.shutdown().await.expect("open");
                };
                let (received, ()) = tokio::join!(rest(&mut client), writing);
                assert_eq!(received, sent, "{capacity} {scratch}");
                drop(client);
                let (end, _, down) = end.await.expect("ends");
                assert_eq!(
                    end,
                    RelayEnd {
                        by: Ender::Backend,
                        code: Some(1000)
                    }
                );
                assert_eq!(
                    down,
                    Moved {
                        bytes: sent.len() as u64,
                        messages: 2
                    }
                );
            })
            .await;
        }
    }

    #[tokio::test]
    async fn a_side_that_does_not_read_stops_the_other_from_being_read() {
        local(async {
            let TestRelay {
                mut client,
                mut backend,
                ..
            } = relayed(1024, 4096, u64::MAX);
            let flood = async {
                let mut n = 0;
                let header = [0x82, 127, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff];
                backend.write_all(&header).await.expect("room");
                loop {
                    n += backend.write(&[0; 512]).await.expect("open");
                    tokio::task::yield_now().await;
                    if n > 1 << 20 {
                        return n;
                    }
                }
            };
            let stuck = tokio::time::timeout(std::time::Duration::from_millis(200), flood).await;
            assert!(
                stuck.is_err(),
                "the relay took a megabyte that nobody reads"
            );
            assert_eq!(exactly(&mut client, 1).await, [0x82]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_close_of_ours_waits_for_the_end_of_the_frame_and_of_the_session() {
        local(async {
            let TestRelay {
                mut client,
                mut backend,
                orders,
                end,
            } = relayed(64, 64, u64::MAX);
            backend.write_all(&TEXT[..4]).await.expect("room");
            assert_eq!(exactly(&mut client, 4).await, &TEXT[..4]);
            orders.send(Injection::Close(1001)).expect("runs");
            let up = exactly(&mut backend, 8).await;
            assert_eq!(up[..2], [0x88, 0x82], "a masked Close for the backend");
            backend.write_all(&TEXT[4..]).await.expect("room");
            backend.write_all(b"\x81\x04late").await.expect("room");
            assert_eq!(exactly(&mut client, 3).await, &TEXT[4..]);
            assert_eq!(exactly(&mut client, 4).await, b"\x88\x02\x03\xe9");
            client
                .write_all(b"\x88\x82\0\0\0\0\x03\xe9")
                .await
                .expect("room");
            assert_eq!(rest(&mut client).await, b"", "nothing follows a Close");
            assert!(!end.is_finished(), "the backend has not answered yet");
            backend.write_all(b"\x88\x02\x03\xe9").await.expect("room");
            assert_eq!(rest(&mut backend).await, b"");
            assert_eq!(
                end.await.expect("ends").0,
                RelayEnd {
                    by: Ender::Operator,
                    code: Some(1001)
                }
            );
        })
        .await;
    }

    #[tokio::test]
    async fn the_first_end_of_stream_behind_a_closing_handshake_ends_both() {
        local(async {
            let TestRelay {
                mut client,
                mut backend,
                end,
                ..
            } = relayed(1024, 1024, u64::MAX);
            let masked_close = b"\x88\x82\x00\x00\x00\x00\x03\xe8";
            client.write_all(masked_close).await.expect("room");
            assert_eq!(exactly(&mut backend, 8).await, masked_close);
            backend.write_all(CLOSE_1000).await.expect("room");
            assert_eq!(exactly(&mut client, 4).await, CLOSE_1000);
            assert!(!end.is_finished(), "the backend has not ended yet");
            drop(backend);
            // The client has not ended, and need not.
            let (end, ..) = end.await.expect("ends");
            assert_eq!(end.by, Ender::Client);
            assert_eq!(rest(&mut client).await, b"");
        })
        .await;
    }

    #[tokio::test]
    async fn a_ping_of_ours_goes_between_frames() {
        local(async {
            let TestRelay {
                mut client,
                mut backend,
                orders,
                ..
            } = relayed(64, 64, u64::MAX);
            orders.send(Injection::Ping).expect("runs");
            assert_eq!(exactly(&mut client, 2).await, b"\x89\x00");
            assert_eq!(exactly(&mut backend, 6).await[..2], [0x89, 0x80]);
            backend.write_all(TEXT).await.expect("room");
            assert_eq!(exactly(&mut client, TEXT.len()).await, TEXT);
        })
        .await;
    }

    #[tokio::test]
    async fn the_client_of_a_backend_that_vanishes_sees_an_end_of_stream_or_the_code_that_is_asked_for()
     {
        // Between two frames, and within one, where no Close fits.
        for (code, n_sent, expected) in [
            (None, TEXT.len(), None),
            (None, 5, None),
            (Some(1012), TEXT.len(), Some(1012)),
            (Some(1012), 5, None),
        ] {
            local(async {
                let TestRelay {
                    mut client,
                    mut backend,
                    end,
                    ..
                } = relayed_with(64, 64, u64::MAX, code);
                backend.write_all(&TEXT[..n_sent]).await.expect("room");
                drop(backend);
                let close = expected.map_or(&b""[..], |_| b"\x88\x02\x03\xf4");
                let seen = [&TEXT[..n_sent], close].concat();
                assert_eq!(rest(&mut client).await, seen, "{code:?} {n_sent}");
                drop(client);
                assert_eq!(
                    end.await.expect("ends").0,
                    RelayEnd {
                        by: Ender::Backend,
                        code: expected,
                    }
                );
            })
            .await;
        }
    }

    #[tokio::test]
    async fn too_long_a_message_is_stopped_before_its_frame() {
        for split in 1..=MASKED_TEXT.len() {
            local(async {
                let TestRelay {
                    mut client,
                    mut backend,
                    end,
                    ..
                } = relayed(64, 64, 4);
                let first = b"\x81\x81\0\0\0\0x";
                client.write_all(first).await.expect("room");
                assert_eq!(exactly(&mut backend, first.len()).await, first);
                for part in [&MASKED_TEXT[..split], &MASKED_TEXT[split..]] {
                    client.write_all(part).await.expect("room");
                    tokio::task::yield_now().await;
                }
                assert_eq!(
                    exactly(&mut client, 4).await,
                    b"\x88\x02\x03\xf1",
                    "1009 for the sender"
                );
                client
                    .write_all(b"\x88\x82\0\0\0\0\x03\xf1")
                    .await
                    .expect("room");
                if split >= 6 {
                    let close = exactly(&mut backend, 8).await;
                    assert_eq!(close[..2], [0x88, 0x82]);
                    let code: Vec<u8> = (0..2).map(|i| close[6 + i] ^ close[2 + i]).collect();
                    assert_eq!(code, 1001_u16.to_be_bytes(), "and 1001 for the other");
                }
                backend.write_all(b"\x88\x02\x03\xe9").await.expect("room");
                drop((rest(&mut client).await, rest(&mut backend).await));
                let (end, up, _) = end.await.expect("ends");
                assert_eq!(
                    end,
                    RelayEnd {
                        by: Ender::Client,
                        code: Some(1009)
                    }
                );
                assert_eq!(up.messages, 2);
            })
            .await;
        }
    }

    #[tokio::test]
    async fn what_came_behind_the_handshakes_goes_first() {
        local(async {
            let (mut client, relay_client) = duplex(64);
            let (mut backend, relay_backend) = duplex(64);
            let mut relay = Relay::new(relay_client, relay_backend, u64::MAX);
            relay.preload(MASKED_TEXT, TEXT);
            tokio::task::spawn_local(async move {
                poll_fn(|cx| relay.poll(cx, &mut [0; 64], None)).await
            });
            assert_eq!(exactly(&mut client, TEXT.len()).await, TEXT);
            assert_eq!(exactly(&mut backend, MASKED_TEXT.len()).await, MASKED_TEXT);
        })
        .await;
    }

    /// Polls until nothing moves any more, or the relay is parked.
    async fn settle<B: Stream>(
        relay: &mut Relay<DuplexStream, B>,
        scratch_bytes: usize,
    ) -> Poll<RelayEnd> {
        let mut scratch = vec![0; scratch_bytes];
        let mut last = (Moved::default(), Moved::default());
        let mut n_still = 0;
        while n_still < 3 && !relay.is_parked() {
            let polled = poll_fn(|cx| Poll::Ready(relay.poll(cx, &mut scratch, None))).await;
            if polled.is_ready() {
                return polled;
            }
            let moved = (relay.moved_up(), relay.moved_down());
            n_still = if moved == last { n_still + 1 } else { 0 };
            last = moved;
            // Streams in memory give way to other tasks now and then.
            tokio::task::yield_now().await;
        }
        Poll::Pending
    }

    #[tokio::test]
    async fn a_parked_relay_ends_what_is_under_way_and_hands_back_both_streams() {
        let from_backend = [b"\x01\x03abc", &b"\x89\x01?"[..], b"\x80\x02de"].concat();
        for (at_client, at_backend) in [(0, 0), (0, 3), (1, 0), (4, 1), (8, 8), (11, 12)] {
            for scratch in [1, 3, 4096] {
                let (mut client, relay_client) = duplex(64);
                let (mut first, relay_first) = duplex(64);
                let mut relay = Relay::new(relay_client, relay_first, u64::MAX);
                client.write_all(MASKED_TEXT).await.expect("room");
                first.write_all(TEXT).await.expect("room");
                // Parked within a message: its beginning has passed.
                client
                    .write_all(&MASKED_TEXT[..at_client])
                    .await
                    .expect("room");
                first
                    .write_all(&from_backend[..at_backend])
                    .await
                    .expect("room");
                assert!(settle(&mut relay, scratch).await.is_pending());
                assert!(!relay.is_parked(), "nobody has asked");
                relay.park();
                assert!(settle(&mut relay, scratch).await.is_pending());
                let is_between = [0, MASKED_TEXT.len()].contains(&at_client)
                    && [0, from_backend.len()].contains(&at_backend);
                assert_eq!(relay.is_parked(), is_between, "{at_client} {at_backend}");
                // The rest comes together with the next message.
                let up = [&MASKED_TEXT[at_client..], b"\x81\x81\0\0\0\0u"].concat();
                let down = [&from_backend[at_backend..], b"\x81\x01d"].concat();
                client.write_all(&up).await.expect("room");
                first.write_all(&down).await.expect("room");
                assert!(settle(&mut relay, scratch).await.is_pending());
                assert!(relay.is_parked());
                let (n_up, n_down) = (relay.moved_up().messages, relay.moved_down().messages);
                let (relay_client, mut relay_first) = relay.into_streams();

                // All that was under way has gone where it was going, and not a byte of the next.
                let n_first = (n_up as usize) * MASKED_TEXT.len();
                let expected = MASKED_TEXT.repeat(n_up as usize);
                assert_eq!(exactly(&mut first, n_first).await, expected);
                let expected = [TEXT, &from_backend].concat();
                let expected = &expected[..if n_down == 2 {
                    expected.len()
                } else {
                    TEXT.len()
                }];
                assert_eq!(exactly(&mut client, expected.len()).await, expected);

                // Another relay goes on with the client, at another backend.
                let (mut second, relay_second) = duplex(64);
                let mut relay = Relay::new(relay_client, relay_second, u64::MAX);
                second.write_all(TEXT).await.expect("room");
                assert!(settle(&mut relay, scratch).await.is_pending());
                let left = [
                    MASKED_TEXT.repeat(2 - n_up as usize),
                    b"\x81\x81\0\0\0\0u".to_vec(),
                ]
                .concat();
                assert_eq!(exactly(&mut second, left.len()).await, left);
                assert_eq!(exactly(&mut client, TEXT.len()).await, TEXT);
                // What the first backend has sent since is its stream's.
                let left = [
                    if n_down == 2 { &[] } else { &from_backend[..] },
                    b"\x81\x01d",
                ]
                .concat();
                assert_eq!(exactly(&mut relay_first, left.len()).await, left);
                drop((second, relay_first));
                assert!(settle(&mut relay, scratch).await.is_pending());
                drop(relay);
                assert_eq!(rest(&mut client).await, b"");
                assert_eq!(rest(&mut first).await, b"");
            }
        }
    }

    /// A relay that is to be parked within a message of the backend: its client, its backend, itself.
    async fn parking(
        begun: &[u8],
    ) -> (
        DuplexStream,
        DuplexStream,
        Relay<DuplexStream, DuplexStream>,
    ) {
        let (client, relay_client) = duplex(64);
        let (mut backend, relay_backend) = duplex(64);
        let mut relay = Relay::new(relay_client, relay_backend, u64::MAX);
        backend.write_all(begun).await.expect("room");
        assert!(settle(&mut relay, 64).await.is_pending());
        relay.park();
        assert!(settle(&mut relay, 64).await.is_pending());
        assert!(!relay.is_parked());
        (client, backend, relay)
    }

    #[tokio::test]
    async fn a_parked_relay_still_pings_closes_and_goes_on() {
        let (mut client, mut backend, mut relay) = parking(&TEXT[..3]).await;
        backend.write_all(&TEXT[3..]).await.expect("room");
        assert!(settle(&mut relay, 64).await.is_pending());
        assert!(relay.is_parked());
        assert_eq!(exactly(&mut client, TEXT.len()).await, TEXT);

        relay.ping_client();
        relay.ping_backend();
        assert!(!relay.is_parked(), "the Ping has to go out first");
        assert!(settle(&mut relay, 64).await.is_pending());
        assert!(relay.is_parked());
        assert_eq!(exactly(&mut client, 2).await, b"\x89\x00");
        assert_eq!(exactly(&mut backend, 6).await[..2], [0x89, 0x80]);

        client.write_all(MASKED_TEXT).await.expect("room");
        assert!(settle(&mut relay, 64).await.is_pending());
        assert_eq!(relay.moved_up().messages, 0);
        relay.unpark();
        assert!(settle(&mut relay, 64).await.is_pending());
        assert!(!relay.is_parked());
        assert_eq!(exactly(&mut backend, MASKED_TEXT.len()).await, MASKED_TEXT);

        relay.park();
        assert!(settle(&mut relay, 64).await.is_pending());
        relay.close(Ender::Operator, 1001);
        assert!(!relay.is_parked());
        assert!(settle(&mut relay, 64).await.is_pending());
        assert_eq!(exactly(&mut client, 4).await, b"\x88\x02\x03\xe9");
        assert_eq!(exactly(&mut backend, 8).await[..2], [0x88, 0x82]);
        client
            .write_all(b"\x88\x82\0\0\0\0\x03\xe9")
            .await
            .expect("room");
        backend.write_all(b"\x88\x02\x03\xe9").await.expect("room");
        let end = RelayEnd {
            by: Ender::Operator,
            code: Some(1001),
        };
        drop((client, backend));
        assert_eq!(settle(&mut relay, 64).await, Poll::Ready(end));
    }

    #[tokio::test]
    async fn a_side_that_ends_while_a_relay_is_being_parked_ends_it() {
        let masked_close = b"\x88\x82\0\0\0\0\x03\xe8";
        // Lost within its message, or closed between two fragments; the client's direction, which has stopped,
        // goes on.
        for (rest, code) in [(&b""[..], None), (b"\x00\x00\x88\x02\x03\xe8", Some(1000))] {
            let (mut client, mut backend, mut relay) = parking(b"\x01\x00").await;
            backend.write_all(rest).await.expect("room");
            client.write_all(masked_close).await.expect("room");
            if code.is_some() {
                assert!(settle(&mut relay, 64).await.is_pending());
                assert!(!relay.is_parked());
                assert_eq!(exactly(&mut backend, 8).await, masked_close);
            }
            drop(backend);
            let end = RelayEnd {
                by: Ender::Backend,
                code,
            };
            let polled = settle(&mut relay, 64).await;
            assert_eq!(polled, Poll::Ready(end));
            relay.park();
            assert!(!relay.is_parked(), "it has ended");
        }
    }

    #[tokio::test]
    async fn a_relay_is_not_parked_before_what_it_holds_is_taken() {
        let (mut client, relay_client) = duplex(4);
        let (mut backend, relay_backend) = duplex(64);
        let mut relay = Relay::new(relay_client, relay_backend, u64::MAX);
        backend.write_all(TEXT).await.expect("room");
        assert!(settle(&mut relay, 64).await.is_pending());
        relay.park();
        assert!(settle(&mut relay, 64).await.is_pending());
        assert!(!relay.is_parked());
        assert_eq!(exactly(&mut client, 4).await, TEXT[..4]);
        assert!(settle(&mut relay, 64).await.is_pending());
        assert!(relay.is_parked());
        assert_eq!(relay.n_held(), 0);
        assert_eq!(exactly(&mut client, 3).await, TEXT[4..]);
    }

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
        (far.expect("connects"), near.expect("accepts").0)
    }

    fn frame(payload: usize) -> Vec<u8> {
        let mut frame = vec![0x82, 127];
        frame.extend((payload as u64).to_be_bytes());
        frame.extend((0..payload).map(|i| (i / 3) as u8));
        frame
    }

    /// Messages that go through the pipe, with small ones between them, in the end a Close; the
    /// source ends within the last message where `cut` says so.
    async fn stream_through_the_pipe(cut: usize, read_size: usize) {
        let (mut client, relay_client) = sockets().await;
        let (mut backend, relay_backend) = sockets().await;
        let mut relay = Relay::new(relay_client, relay_backend, u64::MAX);
        let pipe = Pipe::new().expect("a pipe");
        let run = async move {
            let mut scratch = vec![0; 64 * 1024];
            let end = poll_fn(|cx| relay.poll(cx, &mut scratch, Some(&pipe))).await;
            (end, relay.moved_down())
        };
        let mut sent = Vec::new();
        for payload in [300_000, 1 << 20, 5, 200_000, 131_072, 131_071, 3 << 20] {
            sent.extend(frame(payload));
        }
        sent.extend(CLOSE_1000);
        sent.truncate(sent.len() - cut);
        let writing = async {
            backend.write_all(&sent).await.expect("open");
            backend.shutdown().await.expect("open");
        };
        let reading = async {
            let (mut received, mut piece) = (Vec::new(), vec![0; read_size]);
            loop {
                match client.read(&mut piece).await.expect("open") {
                    0 => break,
                    n => received.extend_from_slice(&piece[..n]),
                }
                tokio::task::yield_now().await;
            }
            client.shutdown().await.expect("open");
            received
        };
        let (received, (), (end, down)) = tokio::join!(reading, writing, run);
        assert!(
            received == sent,
            "{} of {} bytes",
            received.len(),
            sent.len()
        );
        assert_eq!(down.bytes, sent.len() as u64);
        assert_eq!(down.messages, if cut > CLOSE_1000.len() { 6 } else { 7 });
        let code = (cut == 0).then_some(1000);
        assert_eq!((end.by, end.code), (Ender::Backend, code));
    }

    #[tokio::test]
    async fn a_relay_is_parked_between_messages_that_go_through_the_pipe() {
        let (mut client, relay_client) = sockets().await;
        let (mut backend, relay_backend) = sockets().await;
        let pipe = Pipe::new().expect("a pipe");
        // A large fragment and a short one: a header read with room for any would reach into the next message.
        let mut message = frame(1 << 20);
        message[0] = 0x02;
        message.extend(b"\x80\x03end");
        let sent = message.repeat(3);
        let (begun, rest) = sent.split_at(500_000);
        let (asked, is_asked) = tokio::sync::oneshot::channel();
        let relaying = async {
            let mut scratch = vec![0; 64 * 1024];
            let mut relay = Relay::new(relay_client, relay_backend, u64::MAX);
            poll_fn(|cx| match relay.poll(cx, &mut scratch, Some(&pipe)) {
                Poll::Pending if relay.moved_down().bytes < begun.len() as u64 => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
            relay.park();
            asked.send(()).expect("it waits");
            poll_fn(|cx| match relay.poll(cx, &mut scratch, Some(&pipe)) {
                Poll::Pending if !relay.is_parked() => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
            assert!(relay.is_parked());
            assert_eq!(relay.moved_down().bytes, message.len() as u64);
            let (client, backend) = relay.into_streams();
            let mut relay = Relay::new(client, backend, u64::MAX);
            poll_fn(|cx| match relay.poll(cx, &mut scratch, Some(&pipe)) {
                Poll::Pending if relay.moved_down().messages < 2 => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
            // What the client has not taken yet.
            relay.park();
            poll_fn(|cx| match relay.poll(cx, &mut scratch, Some(&pipe)) {
                Poll::Pending if !relay.is_parked() => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
        };
        let writing = async {
            backend.write_all(begun).await.expect("open");
            is_asked.await.expect("parked");
            backend.write_all(rest).await.expect("open");
        };
        let mut received = vec![0; sent.len()];
        let (read, (), ()) = tokio::join!(client.read_exact(&mut received), writing, relaying);
        read.expect("open");
        assert!(received == sent);
    }

    #[tokio::test]
    async fn large_messages_pass_unmodified_through_the_pipe() {
        for (cut, read_size) in [(0, 1 << 20), (0, 1000), (500_000, 65_536)] {
            stream_through_the_pipe(cut, read_size).await;
        }
    }
}
