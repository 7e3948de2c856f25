//! Large payload on its way from socket to socket without passing through memory of ours:
//! `splice(2)` into a pipe and out of it.
//!
//! One pipe serves all relays of a worker, one at a time: it is empty before and after every call,
//! and what a destination does not take is read back. It knows no frames.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What the pipe holds at most. A worker's relays share it, so that its size costs nothing, and one
/// turn of a fast sender is to be about as long as with a scratch buffer.
const PIPE_BYTES: usize = 256 * 1024;

/// A pipe between two sockets, empty between two calls of [`Pipe::carry`].
#[derive(Debug)]
pub struct Pipe {
    inlet: OwnedFd,
    outlet: OwnedFd,
}

/// What one [`Pipe::carry`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Carried {
    /// So many bytes left the source; those that the destination did not take.
    Moved(usize, Vec<u8>),
    /// So many bytes left the source, and the destination takes no more.
    DestinationLost(usize),
    /// The source has ended, in order or by a reset.
    SourceEnded,
}

impl Pipe {
    /// # Errors
    /// No descriptor is free.
    pub fn new() -> io::Result<Self> {
        let (outlet, inlet) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Refused where the user has many pipes already: then it holds what pipes hold.
        let _ = fcntl_setpipe_size(&inlet, PIPE_BYTES);
        Ok(Self { inlet, outlet })
    }

    /// Moves at most `limit` bytes, which is more than 0, behind `before`, which were read already.
    /// Pending, with nothing moved, only where there are neither bytes before nor bytes to read.
    pub fn carry(
        &self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        destination: &TcpStream,
        before: &[u8],
        limit: usize,
    ) -> Poll<Carried> {
        let mut inside = self.put(before);
        debug_assert_eq!(inside, before.len(), "an empty pipe takes a header");
        let moved = match self.fill(cx, source, limit) {
            Poll::Ready(Ok(n)) if n > 0 => n,
            // The end is found again by the next read.
            Poll::Ready(_) if before.is_empty() => return Poll::Ready(Carried::SourceEnded),
            Poll::Pending if before.is_empty() => return Poll::Pending,
            Poll::Ready(_) | Poll::Pending => 0,
        };
        inside += moved;
        while inside > 0 {
            match self.drain(cx, destination, inside) {
                Poll::Ready(Ok(n)) if n > 0 => inside -= n,
                Poll::Ready(_) => {
                    self.take(inside);
                    return Poll::Ready(Carried::DestinationLost(moved));
                }
                Poll::Pending => break,
            }
        }
        Poll::Ready(Carried::Moved(moved, self.take(inside)))
    }

    fn put(&self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        rustix::io::writev(&self.inlet, &[IoSlice::new(bytes)]).unwrap_or(0)
    }

    fn fill(
        &self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        let limit = limit.min(PIPE_BYTES);
        loop {
            ready!(source.poll_read_ready(cx))?;
            let filled = source.try_io(Interest::READABLE, || {
                Ok(splice(source, None, &self.inlet, None, limit, FLAGS)?)
            });
            match filled {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => return Poll::Ready(filled),
            }
        }
    }

    fn drain(
        &self,
        cx: &mut Context<'_>,
        destination: &TcpStream,
        inside: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(destination.poll_write_ready(cx))?;
            let drained = destination.try_io(Interest::WRITABLE, || {
                Ok(splice(
                    &self.outlet,
                    None,
                    destination,
                    None,
                    inside,
                    FLAGS,
                )?)
            });
            match drained {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                drained => return Poll::Ready(drained),
            }
        }
    }

    /// Empties the pipe of the `inside` bytes that are in it.
    fn take(&self, inside: usize) -> Vec<u8> {
        let mut bytes = vec![0; inside];
        let mut taken = 0;
        while taken < inside {
            match rustix::io::read(&self.outlet, &mut bytes[taken..]) {
                Ok(n) if n > 0 => taken += n,
                Ok(_) | Err(_) => break,
            }
        }
        bytes.truncate(taken);
        bytes
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
