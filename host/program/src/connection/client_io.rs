//! A client's socket while HTTP is spoken over it. The kernel ends the connection when the client takes nothing
//! of an answer for too long (TCP_USER_TIMEOUT, tcp(7)), since it alone sees each byte that is taken; an answer
//! that is not whole ends with a reset.
//!
//! The kernel is told only once a write finds no room.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pointsman_contract::session::Ender;
use pointsman_traffic::body::passing::Passing;
use pointsman_traffic::relay::stream::set_send_timeout;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a connection has to know of the answer that it sends, or sent last.
#[derive(Debug)]
pub(super) struct Answering {
    /// How long the client may take nothing.
    send_timeout: Cell<Duration>,
    /// None before the first answer.
    passing: RefCell<Option<Arc<Passing>>>,
}

/// The socket, and the answer that goes over it.
#[derive(Debug)]
pub(super) struct ClientIo {
    /// None once it was taken out.
    stream: Option<TcpStream>,
    answering: Rc<Answering>,
    /// The timeout that the kernel has been given.
    set: Option<Duration>,
    /// The last write found no room, so that something waits to be sent.
    is_blocked: bool,
}

impl Answering {
    pub(super) fn new(send_timeout: Duration) -> Self {
        Self {
            send_timeout: Cell::new(send_timeout),
            passing: RefCell::default(),
        }
    }

    /// The next answer begins.
    pub(super) fn begin(&self, passing: Arc<Passing>, send_timeout: Duration) {
        self.send_timeout.set(send_timeout);
        self.passing.replace(Some(passing));
    }

    /// The connection is given up for `by`.
    pub(super) fn cut(&self, by: Ender) {
        if let Some(passing) = &*self.passing.borrow() {
            passing.abort(by);
        }
    }

    fn is_under_way(&self) -> bool {
        let passing = self.passing.borrow();
        passing
            .as_ref()
            .is_some_and(|passing| passing.is_answering())
    }
}

impl ClientIo {
    pub(super) fn new(stream: TcpStream, answering: Rc<Answering>) -> Self {
        Self {
            stream: Some(stream),
            answering,
            set: None,
            is_blocked: false,
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

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(stream))
    }

    fn wrote<T>(&mut self, polled: Poll<T>) -> Poll<T> {
        self.is_blocked = polled.is_pending();
        let wanted = Some(self.answering.send_timeout.get());
        if self.is_blocked
            && self.set != wanted
            && let Some(stream) = &self.stream
        {
            self.set = wanted;
            // As above.
            let _ = set_send_timeout(stream, wanted);
        }
        polled
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
        self.stream()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.stream()?.poll_write(cx, bytes);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.stream()?.poll_write_vectored(cx, bytes);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}
