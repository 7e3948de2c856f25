//! A session whose far end is a handler: speaks RFC 6455 to the client and shows the handler whole
//! messages.
//!
//! In go an upgraded stream and a handler's session; out comes the [`EndReport`]. Pings, fragments,
//! sizes, UTF-8 and the closing handshake are settled here; the handler sees data messages only.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message as WsMessage, Utf8Bytes};

use super::handler::{
    CloseReason, HandlerError, HandlerSession, Interest, Message, MessageKind, Outbound, Verdict,
};
use super::{Control, EndReport, Ender, LINGER, OpenCount, Order, Registration};
use crate::admin::metrics::TargetCounters;

/// Messages that wait for one session other than as verdicts: sends of the plugin and of topics.
pub const OUTBOX_MESSAGES: usize = 64;

/// Read and write buffers of one session: enough for a few small messages, kept while it idles.
const BUFFER_BYTES: usize = 4096;

/// A session at a handler.
#[derive(Debug)]
pub struct Handled {
    socket: WebSocketStream<Counted>,
    /// None: it failed when the session was opened.
    handler: Option<Box<dyn HandlerSession>>,
    interest: Interest,
    outbox: mpsc::Receiver<Outbound>,
    registration: Registration,
    counters: Arc<TargetCounters>,
    _open: OpenCount,
    begun: Instant,
    messages_up: u64,
    messages_down: u64,
}

/// Why a session is over, and which code the client has sent or is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The client has sent its Close, or vanished without (then the code is none).
    Theirs(Option<u16>),
    /// We send this.
    Ours(Ender, CloseReason),
    /// Nothing can be sent any more.
    Cut(Ender),
}

/// What happened next.
enum Event {
    Message(Option<Result<WsMessage, WsError>>),
    Outbound(Option<Outbound>),
    Order(Order),
    Tick,
}

impl Handled {
    /// Begins at the moment of the call. `early`: bytes that arrived behind the request.
    pub async fn new(
        stream: TcpStream,
        early: Bytes,
        max_message_bytes: u64,
        handler: Result<Box<dyn HandlerSession>, HandlerError>,
        outbox: mpsc::Receiver<Outbound>,
        registration: Registration,
        counters: Arc<TargetCounters>,
    ) -> Self {
        let max = usize::try_from(max_message_bytes).ok();
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(max)
            .max_frame_size(max);
        let stream = Counted {
            stream,
            counters: Arc::clone(&counters),
            bytes_up: early.len() as u64,
            bytes_down: 0,
        };
        let _open = OpenCount::new(&counters);
        counters.bytes_up.add(early.len() as u64);
        let socket =
            WebSocketStream::from_partially_read(stream, early.into(), Role::Server, Some(config))
                .await;
        let handler = handler
            .inspect_err(|error| tracing::debug!(%error, "handler failed"))
            .ok();
        let interest = handler
            .as_ref()
            .map_or(Interest::NONE, |handler| handler.interest());
        Self {
            socket,
            handler,
            interest,
            outbox,
            registration,
            counters,
            _open,
            begun: Instant::now(),
            messages_up: 0,
            messages_down: 0,
        }
    }

    /// Runs until the session is over. Dropping it cuts the client off.
    pub async fn run(mut self) -> EndReport {
        let end = match self.talk().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let (ended_by, code) = self.close(end).await;
        let moved = self.socket.get_ref();
        let report = EndReport {
            ended_by,
            code,
            duration: self.begun.elapsed(),
            bytes_up: moved.bytes_up,
            bytes_down: moved.bytes_down,
            messages_up: self.messages_up,
            messages_down: self.messages_down,
        };
        if let Some(Err(error)) = self.handler.map(|handler| handler.closed(&report)) {
            tracing::debug!(%error, "handler failed at the end of a session");
        }
        report
    }

    /// Greets, then answers one event after the other.
    async fn talk(&mut self) -> Result<std::convert::Infallible, End> {
        let greeting = self.ask(|handler| handler.opened())?;
        self.obey(greeting, None).await?;
        let mut ticks = ticks(self.interest.tick_interval_ms);
        loop {
            match self.next_event(&mut ticks).await {
                Event::Message(message) => self.receive(message).await?,
                Event::Outbound(Some(Outbound::Send(message))) => {
                    self.send(websocket_message(message)?).await?
                }
                Event::Outbound(Some(Outbound::Close(reason))) => {
                    return Err(End::Ours(Ender::Plugin, reason));
                }
                Event::Outbound(Some(Outbound::Failed) | None) => {
                    return Err(End::Ours(Ender::Plugin, plugin_failed()));
                }
                Event::Order(Order::Ping) => self.send(WsMessage::Ping(Bytes::new())).await?,
                Event::Order(Order::Close(by, code)) => {
                    return Err(End::Ours(
                        by,
                        CloseReason {
                            code,
                            reason: String::new(),
                        },
                    ));
                }
                Event::Order(Order::Cut(by)) => return Err(End::Cut(by)),
                Event::Tick => {
                    let verdict = self.ask(|handler| handler.tick())?;
                    self.obey(verdict, None).await?;
                }
            }
        }
    }

    fn ask(
        &mut self,
        call: impl FnOnce(&mut dyn HandlerSession) -> Result<Verdict, HandlerError>,
    ) -> Result<Verdict, End> {
        let failed = || End::Ours(Ender::Plugin, plugin_failed());
        let handler = self.handler.as_deref_mut().ok_or_else(failed)?;
        call(handler).map_err(|error| {
            tracing::debug!(%error, "handler failed");
            failed()
        })
    }

    /// Cancel safe: each arm is.
    async fn next_event(&mut self, ticks: &mut Option<Interval>) -> Event {
        let control = &self.registration.control;
        tokio::select! {
            biased;
            order = poll_fn(|cx| control.poll_order(cx)) => Event::Order(order),
            message = self.socket.next() => Event::Message(message),
            outbound = self.outbox.recv() => Event::Outbound(outbound),
            () = tick(ticks) => Event::Tick,
        }
    }

    async fn receive(&mut self, message: Option<Result<WsMessage, WsError>>) -> Result<(), End> {
        self.registration.control.client_heard();
        self.registration.control.backend_heard();
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(end_for(&error)),
            None => return Err(End::Theirs(None)),
        };
        let (kind, is_wanted) = match &message {
            WsMessage::Text(_) => (MessageKind::Text, self.interest.text),
            WsMessage::Binary(_) => (MessageKind::Binary, self.interest.binary),
            WsMessage::Close(frame) => {
                return Err(End::Theirs(frame.as_ref().map(|frame| frame.code.into())));
            }
            // Pongs to their Pings go out with the next write or read, by the library.
            WsMessage::Ping(_) | WsMessage::Pong(_) | WsMessage::Frame(_) => return Ok(()),
        };
        self.messages_up += 1;
        self.counters.messages_up.add(1);
        if !is_wanted {
            return Ok(());
        }
        let shown = Message {
            kind,
            payload: message.clone().into_data(),
        };
        let verdict = self.ask(|handler| handler.message(&shown))?;
        self.obey(verdict, Some(message)).await
    }

    async fn obey(&mut self, verdict: Verdict, received: Option<WsMessage>) -> Result<(), End> {
        match verdict {
            Verdict::Ignore => {}
            Verdict::Echo => {
                if let Some(message) = received {
                    self.send(message).await?;
                }
            }
            Verdict::Reply(messages) => {
                for message in messages {
                    self.send(websocket_message(message)?).await?;
                }
            }
            Verdict::Close(reason) => return Err(End::Ours(Ender::Plugin, reason)),
        }
        Ok(())
    }

    /// Waits for the client to take it: a client that does not read is not read from either.
    async fn send(&mut self, message: WsMessage) -> Result<(), End> {
        let is_data = message.is_text() || message.is_binary();
        let control = &self.registration.control;
        let mut sending = std::pin::pin!(self.socket.send(message));
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => {
                    sent.map_err(|error| end_for(&error))?;
                    break;
                }
                order = poll_fn(|cx| control.poll_order(cx)) => match order {
                    Order::Ping => {}
                    // Half a message is out: no Close fits behind it, but it may yet go.
                    Order::Close(..) => control.ending(),
                    Order::Cut(by) => return Err(End::Cut(by)),
                },
            }
        }
        if is_data {
            control.backend_heard();
            self.messages_down += 1;
            self.counters.messages_down.add(1);
        }
        Ok(())
    }

    /// Ends the connection by RFC 6455 section 7.1; the client has [`LINGER`] for its part.
    async fn close(&mut self, end: End) -> (Ender, Option<u16>) {
        self.registration.control.ending();
        let (by, code, frame) = match end {
            End::Cut(by) => return (by, None),
            End::Theirs(code) => (Ender::Client, code, None),
            End::Ours(by, CloseReason { code, reason }) => (
                by,
                Some(code),
                Some(CloseFrame {
                    code: code.into(),
                    reason: reason.into(),
                }),
            ),
        };
        let (socket, control) = (&mut self.socket, &self.registration.control);
        tokio::select! {
            _ = timeout(LINGER, shake_hands(socket, frame)) => {}
            () = cut(control) => {}
        }
        (by, code)
    }
}

/// Sends our Close, if it is for us to begin, and reads on until both sides have closed.
async fn shake_hands(socket: &mut WebSocketStream<Counted>, ours: Option<CloseFrame>) {
    if ours.is_some() && socket.close(ours).await.is_err() {
        return;
    }
    // Where theirs came first, the library has its answer ready and writes it now.
    while let Some(read) = socket.next().await {
        if read.is_err() {
            return discard(socket.get_mut()).await;
        }
    }
}

/// Ends the stream and reads it to its end: a reset, which is what a socket dropped with unread
/// input becomes, could overtake our Close.
async fn discard(stream: &mut Counted) {
    let mut unread = [0; BUFFER_BYTES];
    if stream.shutdown().await.is_ok() {
        while stream.read(&mut unread).await.is_ok_and(|n| n > 0) {}
    }
}

async fn cut(control: &Control) {
    while !matches!(poll_fn(|cx| control.poll_order(cx)).await, Order::Cut(_)) {}
}

fn ticks(interval_ms: u32) -> Option<Interval> {
    let period = Duration::from_millis(interval_ms.into());
    (!period.is_zero()).then(|| {
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    })
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => _ = ticks.tick().await,
        None => std::future::pending().await,
    }
}

/// What a failure of the socket means (RFC 6455 section 7.4.1).
fn end_for(error: &WsError) -> End {
    let ours = |code, reason: &str| {
        End::Ours(
            Ender::Client,
            CloseReason {
                code,
                reason: reason.to_owned(),
            },
        )
    };
    match error {
        WsError::Capacity(_) => ours(1009, "message too big"),
        WsError::Utf8(_) => ours(1007, "text is not UTF-8"),
        WsError::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => End::Theirs(None),
        WsError::Protocol(error) => ours(1002, &error.to_string()),
        _ => End::Theirs(None),
    }
}

fn plugin_failed() -> CloseReason {
    CloseReason {
        code: 1011,
        reason: "plugin failed".to_owned(),
    }
}

fn websocket_message(message: Message) -> Result<WsMessage, End> {
    match message.kind {
        MessageKind::Binary => Ok(WsMessage::Binary(message.payload)),
        MessageKind::Text => match Utf8Bytes::try_from(message.payload) {
            Ok(text) => Ok(WsMessage::Text(text)),
            Err(_) => Err(End::Ours(Ender::Plugin, plugin_failed())),
        },
    }
}

/// A stream that counts.
#[derive(Debug)]
struct Counted {
    stream: TcpStream,
    counters: Arc<TargetCounters>,
    bytes_up: u64,
    bytes_down: u64,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let n = (buffer.filled().len() - before) as u64;
        self.bytes_up += n;
        self.counters.bytes_up.add(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.bytes_down += n as u64;
        self.counters.bytes_down.add(n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
