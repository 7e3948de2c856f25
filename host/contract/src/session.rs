//! What is known of a session when it ends, and whose doing that was.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Names a session; unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Whose doing an end was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ender {
    /// The peer that connected to us.
    Client,
    /// The server that we connected to.
    Backend,
    /// A filter's or handler's verdict or failure.
    Plugin,
    /// A drain or a command.
    Operator,
    /// A limit or timeout of ours.
    Host,
}

impl Ender {
    /// As in log and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Plugin => "plugin",
            Self::Operator => "operator",
            Self::Host => "host",
        }
    }
}

/// What was true of a session when it ended. "Up" is from the client, "down" is to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndReport {
    /// Whose doing it was.
    pub ended_by: Ender,
    /// The close code that went over the wire, if one did.
    pub code: Option<u16>,
    /// From the 101.
    pub duration: Duration,
    /// All bytes after the handshake, framing included.
    pub bytes_up: u64,
    /// See `bytes_up`.
    pub bytes_down: u64,
    /// Whole data messages.
    pub messages_up: u64,
    /// See `messages_up`.
    pub messages_down: u64,
}

impl SessionId {
    /// The next of this process.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
