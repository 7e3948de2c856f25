//! How long a client may take nothing of what waits for it: the kernel keeps this time (TCP_USER_TIMEOUT,
//! tcp(7)), since it alone sees each byte that is taken. Set only while something waits.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::relay::stream::set_send_timeout;

/// Whether the kernel ends one client's connection when it takes nothing for too long.
#[derive(Debug, Default)]
pub(super) struct SendTimeout {
    is_set: bool,
}

impl SendTimeout {
    /// Sets it where something waits to be sent, and takes it back where nothing does. `client`: none where
    /// the stream is no socket.
    pub(super) fn follow(
        &mut self,
        client: Option<&TcpStream>,
        is_sending: bool,
        timeout: Duration,
    ) {
        if is_sending != self.is_set
            && let Some(client) = client
        {
            let timeout = is_sending.then_some(timeout);
            // A failure says that the client is gone, which the next write finds, too.
            self.is_set = set_send_timeout(client, timeout).is_ok() && is_sending;
        }
    }

    /// It has to be taken back, or is about to end the connection.
    pub(super) fn is_set(&self) -> bool {
        self.is_set
    }

    /// Whether it is why a write has failed.
    pub(super) fn has_ended(&self, error: &io::Error) -> bool {
        self.is_set && error.kind() == io::ErrorKind::TimedOut
    }
}
