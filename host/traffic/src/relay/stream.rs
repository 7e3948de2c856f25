//! What a relay runs over: a socket, or in tests a pipe in memory.
//!
//! A socket is read and written by one system call each, without the layers between; readiness is
//! the runtime's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt::set_tcp_user_timeout;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A stream that a relay runs over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// The socket below, if bytes can move from it and to it inside the kernel.
    fn socket(&self) -> Option<&TcpStream>;

    /// The connection below, whatever is between; a pipe in memory has none.
    fn connection(&self) -> Option<&TcpStream> {
        self.socket()
    }

    /// Reads what is there into `buffer`, which is not empty. 0: the end.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(self).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes as much of `bytes`, which are not none, as can be taken.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    /// Sends on what was taken and has not left yet: only what encrypts keeps anything.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_clear(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Stream for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            let read = attempt(self, Interest::READABLE, buffer.len(), || {
                Ok(recv(&*self, &mut *buffer, RecvFlags::empty())?.0)
            });
            if let Some(read) = read {
                return Poll::Ready(read);
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            let written = attempt(self, Interest::WRITABLE, bytes.len(), || {
                Ok(send(&*self, bytes, SendFlags::NOSIGNAL)?)
            });
            if let Some(written) = written {
                return Poll::Ready(written);
            }
        }
    }
}

/// A pipe in memory.
#[cfg(test)]
impl Stream for tokio::io::DuplexStream {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// Has the kernel end a connection whose peer takes nothing of what waits for it, for so long: the next
/// write fails with [`io::ErrorKind::TimedOut`] then. None: never. The kernel sees each byte that is taken;
/// whether a write would succeed tells of a third of its buffer at a time only.
///
/// # Errors
/// The connection is broken.
pub fn set_send_timeout(socket: &TcpStream, timeout: Option<Duration>) -> io::Result<()> {
    let millis = timeout.map_or(0, |timeout| timeout.as_millis().clamp(1, u32::MAX.into()));
    set_tcp_user_timeout(socket, millis as u32)?;
    Ok(())
}

/// Moves up to `room` bytes; none: the socket is not ready. Where fewer were moved it is not ready
/// either from now on, so that the next attempt waits for the kernel's word instead of asking.
fn attempt(
    socket: &TcpStream,
    interest: Interest,
    room: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> Option<io::Result<usize>> {
    let mut moved = 0;
    let attempted = socket.try_io(interest, || {
        moved = call()?;
        match moved {
            n if n > 0 && n < room => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    });
    match attempted {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (moved > 0).then_some(Ok(moved)),
        attempted => Some(attempted),
    }
}
