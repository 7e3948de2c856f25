//! A client's socket while HTTP is spoken over it, for what the HTTP library leaves out: interim answers before an
//! answer, clients that leave or only end their half, and answers to requests whose rest nobody reads.
//!
//! The kernel ends the connection when the client takes nothing of an answer for too long (TCP_USER_TIMEOUT,
//! tcp(7)), since it alone sees each byte that is taken; it is told only once a write finds no room. An answer that
//! is not whole ends with a reset.
//!
//! The library flushes each time it has written all that it has to write: then one answer is out, and the next has
//! not begun.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use pointsman_contract::session::Ender;
use pointsman_traffic::body::passing::Passing;
use pointsman_traffic::client_http::HeadClock;
use pointsman_traffic::relay::stream::set_send_timeout;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

/// What the library writes by itself when somebody begins to read a body that its client waits to send.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// A client that ends its half in the middle of an answer which then pauses for so long has left. One that is still
/// there has ended its half behind its request, before the answer.
const LEFT_AFTER: Duration = Duration::from_millis(100);
/// How long a client may go on sending, in all and with a pause, after an answer that did not wait for all of its
/// request. As nginx's `lingering_time` and `lingering_timeout`.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_PAUSE: Duration = Duration::from_secs(5);
/// How much of what nobody wants is read at a time.
const DISCARD_BYTES: usize = 8 * 1024;

/// What a connection has to know of the exchange that is under way, or was last.
#[derive(Debug)]
pub(super) struct Answering {
    /// How long the client may take nothing.
    send_timeout: Cell<Duration>,
    /// None before the first request.
    passing: RefCell<Option<Arc<Passing>>>,
    stage: Cell<ExchangeStage>,
    /// The answer was given before all of its request had come, and ends the connection.
    is_last: Cell<bool>,
    /// All that there was to write has been taken.
    is_flushed: Cell<bool>,
    /// Who waits for that.
    waiting: RefCell<Option<Waker>>,
    /// Of the head that went out last; 0 before the first.
    status: Cell<u16>,
}

/// How far an exchange is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExchangeStage {
    /// Its answer is awaited.
    Asked { is_upgrade: bool },
    /// There is an answer, and nothing of it is written.
    Due,
    /// The answer's head has begun to be written. Also before the first request.
    Begun,
}

/// The socket, and the answer that goes over it.
#[derive(Debug)]
pub(super) struct ClientIo {
    /// None once it was taken out.
    stream: Option<TcpStream>,
    answering: Rc<Answering>,
    clock: Arc<HeadClock>,
    /// The timeout that the kernel has been given.
    set: Option<Duration>,
    /// The last write found no room, so that something waits to be sent.
    is_blocked: bool,
    /// The rest of interim answers that have begun to be sent.
    interim: Bytes,
    client_end: ClientEnd,
}

/// What is known of whether the client is still there, while the library does not read.
#[derive(Debug)]
enum ClientEnd {
    /// It has not ended its half.
    Open,
    /// It has sent more, behind which its end cannot be seen.
    SendsMore,
    /// It has ended its half.
    HalfClosed {
        /// In the middle of an answer, of which nothing has been sent since.
        is_silent: bool,
        /// When to look whether it is there; none: it was when it was last sent something.
        alarm: Option<Pin<Box<Sleep>>>,
    },
}

impl Answering {
    pub(super) fn new(send_timeout: Duration) -> Self {
        Self {
            send_timeout: Cell::new(send_timeout),
            passing: RefCell::default(),
            stage: Cell::new(ExchangeStage::Begun),
            is_last: Cell::new(false),
            is_flushed: Cell::new(true),
            waiting: RefCell::default(),
            status: Cell::new(0),
        }
    }

    /// A request has come.
    pub(super) fn ask(&self, passing: Arc<Passing>, is_upgrade: bool) {
        self.stage.set(ExchangeStage::Asked { is_upgrade });
        self.passing.replace(Some(passing));
    }

    /// Its answer begins. `is_last`: it ends the connection, though more of its request may come.
    pub(super) fn begin(&self, send_timeout: Duration, is_last: bool) {
        self.send_timeout.set(send_timeout);
        self.is_last.set(is_last);
        self.stage.set(ExchangeStage::Due);
    }

    /// The connection is given up for `by`.
    pub(super) fn cut(&self, by: Ender) {
        self.with(|passing| passing.abort(by));
    }

    /// Of the head that went out last: where it was no answer of ours, the library's own.
    pub(super) fn status(&self) -> u16 {
        self.status.get()
    }

    /// Waits until all is sent that was to be sent before the answer to this request.
    pub(super) async fn flushed(&self) {
        poll_fn(|cx| {
            if self.is_flushed.get() && !self.with(|passing| passing.interim().is_waiting()) {
                return Poll::Ready(());
            }
            self.waiting.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Whether the client may have sent more of its request than was read.
    pub(super) fn is_request_unread(&self) -> bool {
        self.passing
            .borrow()
            .as_ref()
            .is_some_and(|passing| !passing.is_request_whole())
    }

    /// Whether the last answer is out.
    fn is_over(&self) -> bool {
        self.is_last.get() && self.stage.get() == ExchangeStage::Begun && !self.is_under_way()
    }

    fn is_under_way(&self) -> bool {
        self.with(Passing::is_answering)
    }

    /// Of the exchange; false or nothing before the first.
    fn with<T: Default>(&self, of: impl FnOnce(&Passing) -> T) -> T {
        self.passing.borrow().as_deref().map(of).unwrap_or_default()
    }
}

impl ClientIo {
    pub(super) fn new(stream: TcpStream, answering: Rc<Answering>, clock: Arc<HeadClock>) -> Self {
        Self {
            stream: Some(stream),
            answering,
            clock,
            set: None,
            is_blocked: false,
            interim: Bytes::new(),
            client_end: ClientEnd::Open,
        }
    }

    /// The bare socket, without a timeout.
    pub(super) fn into_stream(mut self) -> Option<TcpStream> {
        let stream = self.stream.take()?;
        if self.set.is_some() {
            // A failure says that the client is gone, which the next write finds, too.
            let _ = set_send_timeout(&stream, None);
        }
        Some(stream)
    }

    /// Ends the connection behind an answer that has not waited for all that the client sends: read away, so that no
    /// reset takes the answer with it (RFC 9112 section 9.6). An answer that is not whole gets none of this.
    pub(super) async fn linger(mut self) {
        if self.is_blocked || self.answering.is_under_way() {
            return;
        }
        let Some(mut stream) = self.stream.take() else {
            return;
        };
        let until = Instant::now() + LINGER;
        if stream.shutdown().await.is_err() {
            return;
        }
        loop {
            let pause = LINGER_PAUSE.min(until - Instant::now());
            let more = timeout(pause, poll_fn(|cx| poll_discard(&mut stream, cx)));
            if !matches!(more.await, Ok(true)) || until <= Instant::now() {
                return;
            }
        }
    }

    /// Whether the client has sent what was not read.
    pub(super) fn has_unread(&self) -> bool {
        if matches!(self.client_end, ClientEnd::HalfClosed { .. }) {
            return false;
        }
        let mut byte = [0];
        let cx = &mut Context::from_waker(Waker::noop());
        let peek = |stream: &TcpStream| stream.poll_peek(cx, &mut ReadBuf::new(&mut byte));
        matches!(self.stream.as_ref().map(peek), Some(Poll::Ready(Ok(1..))))
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(stream))
    }

    /// Looks at what the library is about to write. Some: it is taken for written, so much of it.
    fn begins(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> io::Result<Option<usize>> {
        if !self.answering.is_flushed.get() {
            return Ok(None);
        }
        if bytes.starts_with(CONTINUE) && self.answering.with(Passing::is_relayed) {
            return Ok(Some(CONTINUE.len()));
        }
        self.answering.is_flushed.set(false);
        if let Some(status) = status_of(bytes) {
            self.answering.status.set(status);
        }
        if self.answering.stage.get() == ExchangeStage::Due {
            self.look(cx)?;
            self.answering.stage.set(ExchangeStage::Begun);
        }
        Ok(None)
    }

    /// Sends what backends have said before their answer.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.interim.is_empty() {
                let is_waiting = || {
                    self.answering
                        .with(|passing| passing.interim().is_waiting())
                };
                if !self.answering.is_flushed.get() || !is_waiting() {
                    return Poll::Ready(Ok(()));
                }
                self.interim = self
                    .answering
                    .with(|passing| passing.interim().take())
                    .into();
            }
            let polled = match &mut self.stream {
                Some(stream) => Pin::new(stream).poll_write(cx, &self.interim),
                None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            };
            let n = ready!(self.wrote(polled))?;
            self.interim.advance(n);
        }
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.is_blocked = polled.is_pending();
        match &polled {
            Poll::Pending => self.blocked(),
            Poll::Ready(Ok(1..)) => self.sent(),
            Poll::Ready(_) => {}
        }
        polled
    }

    fn blocked(&mut self) {
        let wanted = Some(self.answering.send_timeout.get());
        if self.set != wanted
            && let Some(stream) = &self.stream
        {
            self.set = wanted;
            // As above.
            let _ = set_send_timeout(stream, wanted);
        }
    }

    /// A client that has ended its half and is gone answers this with a reset.
    fn sent(&mut self) {
        if let ClientEnd::HalfClosed { is_silent, alarm } = &mut self.client_end {
            *is_silent = false;
            alarm.get_or_insert_with(|| Box::pin(sleep(LEFT_AFTER)));
        }
    }

    /// While the library does not read, finds out whether the client is still there.
    ///
    /// # Errors
    /// It is not.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let is_watched = match self.answering.stage.get() {
            ExchangeStage::Asked { .. } => self.answering.with(Passing::is_request_whole),
            ExchangeStage::Due => true,
            ExchangeStage::Begun => self.answering.is_under_way(),
        };
        match is_watched {
            true => self.look(cx),
            false => Ok(()),
        }
    }

    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(stream) = &self.stream else {
            return Ok(());
        };
        if matches!(self.client_end, ClientEnd::Open) {
            let mut byte = [0];
            self.client_end = match stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => half_closed(self.answering.stage.get())?,
                Poll::Ready(Ok(_)) => ClientEnd::SendsMore,
                Poll::Ready(Err(error)) => return Err(error),
            };
        }
        let ClientEnd::HalfClosed { is_silent, alarm } = &mut self.client_end else {
            return Ok(());
        };
        let is_time = |alarm: &mut Pin<Box<Sleep>>| alarm.as_mut().poll(cx).is_ready();
        if !alarm.as_mut().is_some_and(is_time) {
            return Ok(());
        }
        *alarm = None;
        match stream.take_error()? {
            Some(error) => Err(error),
            None if *is_silent => Err(io::ErrorKind::ConnectionAborted.into()),
            None => Ok(()),
        }
    }
}

impl Drop for ClientIo {
    /// An answer without a length ends with its connection: where it is not whole, only a reset says so.
    fn drop(&mut self) {
        if let Some(stream) = &self.stream
            && (self.is_blocked || self.answering.is_under_way())
        {
            // Where it fails, the connection is broken already.
            let _ = stream.set_zero_linger();
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.stream()?.poll_read(cx, buffer))?;
        let has_come = buffer.filled().len() > before;
        if has_come {
            self.clock.read();
        }
        self.client_end = match has_come {
            true => ClientEnd::Open,
            false => ClientEnd::HalfClosed {
                is_silent: false,
                alarm: None,
            },
        };
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        if let Some(n) = self.begins(bytes, cx)? {
            return Poll::Ready(Ok(n));
        }
        let polled = self.stream()?.poll_write(cx, bytes);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        if let Some(n) = self.begins(bytes.first().map_or(&[], |first| first), cx)? {
            return Poll::Ready(Ok(n));
        }
        let polled = self.stream()?.poll_write_vectored(cx, bytes);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    /// Called whenever the library has nothing more to write, each time that it was woken.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.answering.is_flushed.set(true);
        ready!(self.poll_interim(cx))?;
        if let Some(waiting) = self.answering.waiting.take() {
            waiting.wake();
        }
        self.watch(cx)?;
        if self.answering.is_over() {
            // The rest of the request may still be wanted, while its client waits for this end.
            self.answering.is_last.set(false);
            ready!(self.stream()?.poll_shutdown(cx))?;
        }
        self.stream()?.poll_flush(cx)
    }

    /// The connection ends with the socket, or lingers first.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What it means that a client has ended its half behind its whole request. It may wait for its answer so (RFC 9112
/// section 9.6), but not for a WebSocket.
///
/// # Errors
/// The client has left.
fn half_closed(stage: ExchangeStage) -> io::Result<ClientEnd> {
    match stage {
        ExchangeStage::Asked { is_upgrade: true } => Err(io::ErrorKind::ConnectionAborted.into()),
        ExchangeStage::Asked { .. } | ExchangeStage::Due => Ok(ClientEnd::HalfClosed {
            is_silent: false,
            alarm: None,
        }),
        ExchangeStage::Begun => Ok(ClientEnd::HalfClosed {
            is_silent: true,
            alarm: Some(Box::pin(sleep(LEFT_AFTER))),
        }),
    }
}

/// Reads away what the client sends; false: there will be no more.
fn poll_discard(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<bool> {
    let mut room = [0; DISCARD_BYTES];
    let mut room = ReadBuf::new(&mut room);
    let read = ready!(Pin::new(stream).poll_read(cx, &mut room));
    Poll::Ready(read.is_ok() && !room.filled().is_empty())
}

/// Of the head that these bytes begin with, if they do.
fn status_of(bytes: &[u8]) -> Option<u16> {
    let status = bytes.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(status).ok()?.parse().ok()
}
