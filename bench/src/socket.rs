//! A non-blocking socket in an epoll set, and the bytes that it could not take yet.
//!
//! A [`Socket`] waits for one thing at a time: to write while bytes are left over, else to read.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, connect, recv, send,
    socket_with,
};

/// Sockets handled in a turn.
const EVENTS: usize = 1024;

/// An epoll set.
#[derive(Debug)]
pub struct Poll(OwnedFd);

impl Poll {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn new() -> Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Waits until something is ready and puts its tokens into `ready`; none, once `timeout` is over.
    ///
    /// # Errors
    /// Never, short of a mistake here.
    pub fn wait(&self, ready: &mut Vec<usize>, timeout: Duration) -> Result<()> {
        let mut events = Vec::<epoll::Event>::with_capacity(EVENTS);
        let timeout = Timespec::try_from(timeout)?;
        ready.clear();
        match epoll::wait(&self.0, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for event in &events {
            ready.push(usize::try_from(event.data.u64())?);
        }
        Ok(())
    }

    /// Has `token` reported while `listener` has connections to accept.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn add_listener(&self, listener: &TcpListener, token: usize) -> Result<()> {
        self.add(listener, token, epoll::EventFlags::IN)
    }

    fn add(&self, socket: impl AsFd, token: usize, flags: epoll::EventFlags) -> Result<()> {
        epoll::add(
            &self.0,
            socket,
            epoll::EventData::new_u64(token as u64),
            flags,
        )
        .context("epoll_ctl")
    }
}

/// One side of a connection.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    token: usize,
    /// What is still to be written, from `written` on.
    left: Vec<u8>,
    written: usize,
}

/// What [`Socket::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes; at least one.
    Bytes(usize),
    /// None for now.
    Nothing,
    /// No more: the other side has ended.
    End,
}

impl Socket {
    /// Accepts a connection if one waits. `token` is what the set reports.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn accept(listener: &TcpListener, poll: &Poll, token: usize) -> Result<Option<Self>> {
        match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(fd) => Self::new(fd, poll, token, epoll::EventFlags::IN).map(Some),
            Err(Errno::AGAIN | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error).context("accept"),
        }
    }

    /// Begins to connect; the first report of `token` says that it is done, or that it failed.
    ///
    /// # Errors
    /// No descriptor or no port is free.
    pub fn connect(target: SocketAddr, poll: &Poll, token: usize) -> Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match connect(&fd, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => Self::new(fd, poll, token, epoll::EventFlags::OUT),
            Err(error) => Err(error).context("connect"),
        }
    }

    fn new(fd: OwnedFd, poll: &Poll, token: usize, flags: epoll::EventFlags) -> Result<Self> {
        set_tcp_nodelay(&fd, true)?;
        poll.add(&fd, token, flags)?;
        Ok(Self {
            fd,
            token,
            left: vec![],
            written: 0,
        })
    }

    /// Reads what is there, up to the length of `scratch`.
    ///
    /// # Errors
    /// The connection broke.
    pub fn receive(&self, scratch: &mut [u8]) -> Result<Received> {
        match recv(&self.fd, scratch, RecvFlags::empty()) {
            Ok((0, _)) => Ok(Received::End),
            Ok((n, _)) => Ok(Received::Bytes(n)),
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            Err(error) => Err(error).context("recv"),
        }
    }

    /// Writes `bytes`, now or as soon as they can be taken.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, poll: &Poll, bytes: &[u8]) -> Result<()> {
        if self.is_behind() {
            self.left.extend_from_slice(bytes);
            return Ok(());
        }
        let n = self.write(bytes)?;
        if n < bytes.len() {
            self.left.extend_from_slice(&bytes[n..]);
            self.wait_for(poll, epoll::EventFlags::OUT)?;
        }
        Ok(())
    }

    /// Whether bytes are left over, so that a report means that the socket takes more.
    pub fn is_behind(&self) -> bool {
        !self.left.is_empty()
    }

    /// Writes of what is left over as much as can be taken.
    ///
    /// # Errors
    /// The connection broke.
    pub fn flush(&mut self, poll: &Poll) -> Result<()> {
        self.written += self.write(&self.left[self.written..])?;
        if self.written == self.left.len() {
            (self.left, self.written) = (vec![], 0);
            self.wait_to_read(poll)?;
        }
        Ok(())
    }

    /// From now on a report means that there is something to read.
    ///
    /// # Errors
    /// Never, short of a mistake here.
    pub fn wait_to_read(&self, poll: &Poll) -> Result<()> {
        self.wait_for(poll, epoll::EventFlags::IN)
    }

    fn wait_for(&self, poll: &Poll, flags: epoll::EventFlags) -> Result<()> {
        let token = epoll::EventData::new_u64(self.token as u64);
        epoll::modify(&poll.0, &self.fd, token, flags).context("epoll_ctl")
    }

    fn write(&self, bytes: &[u8]) -> Result<usize> {
        match send(&self.fd, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error).context("send"),
        }
    }
}
