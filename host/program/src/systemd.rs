//! What a service manager hands over and wants to hear: sockets that it has opened (`LISTEN_FDS`), and
//! how the process is doing (`NOTIFY_SOCKET`).
//!
//! See sd_listen_fds(3) and sd_notify(3). Without a service manager nothing happens here.

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::{env, io};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Listening sockets that were there before this process.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Those that the service manager has handed over. Call once, at the start.
    pub fn from_env() -> Self {
        let mut handed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for i in 0..handed.len() {
            let socket = handed.take_tcp_listener(i);
            let socket = socket.and_then(|socket| match socket {
                Some(socket) => Ok(Some((socket.local_addr()?, socket))),
                None => Ok(None),
            });
            match socket {
                Ok(socket) => sockets.extend(socket),
                Err(error) => {
                    tracing::warn!(number = i, %error, "socket of the service manager is not used: no TCP listener");
                }
            }
        }
        Self(sockets)
    }

    /// The socket at this address, if there is one.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let place = self.0.iter().position(|(at, _)| *at == address)?;
        Some(self.0.swap_remove(place).1)
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        for (address, _) in &self.0 {
            tracing::warn!(%address, "socket of the service manager is not used: no [[listener]] has its address");
        }
    }
}

/// Connections are accepted, and the configuration is active.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] says that this is over.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock"),
    }
}

/// The process is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    let Some(manager) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&manager, state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// As `sd_notify::notify`, which waits for a manager that does not read.
fn send(manager: &OsStr, state: &[NotifyState<'_>]) -> io::Result<()> {
    let address = match manager.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::from_abstract_name(name)?,
        None => UnixAddr::from_pathname(manager)?,
    };
    let lines: String = state.iter().map(|state| format!("{state}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(lines.as_bytes(), &address).map(drop)
}
