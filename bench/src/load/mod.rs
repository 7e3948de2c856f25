//! The load generator: many WebSocket clients on one thread, every payload verified.
//!
//! In goes a [`Plan`]; out comes an [`Outcome`]. Raw framing on epoll, so that what is measured is the
//! peer and not this.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

/// What to do to a peer.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the peer listens.
    pub target: SocketAddr,
    /// Path of the upgrade request, for example `/websocket`.
    pub path: String,
    /// Open WebSockets at a time.
    pub connections: usize,
    /// What they do.
    pub shape: Shape,
    /// Load before the measured span.
    pub warm_up: Duration,
    /// The measured span.
    pub duration: Duration,
}

/// What the connections of a plan do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Each sends a message, waits for its echo, sends the next.
    Echo {
        /// Payload of a message.
        bytes: usize,
    },
    /// All together send so many messages a second, in turn, whether or not the echoes keep up;
    /// latency counts from when a message was due.
    Paced {
        /// Payload of a message.
        bytes: usize,
        /// Of all connections together.
        messages_per_second: u32,
    },
    /// Each connects, upgrades, has one message echoed, closes with the closing handshake, and begins
    /// again. `messages` of the outcome counts sessions, latency is that of connect to 101.
    Churn {
        /// Payload of the message.
        bytes: usize,
    },
    /// Each connects and has one message echoed, then waits.
    Idle,
    /// Each sends messages, each acknowledged by a short one (path `/sink`).
    Upload {
        /// Payload of a message.
        bytes: usize,
    },
    /// Each asks with a short message for a long one (path `/source/BYTES`).
    Download {
        /// Payload of a message.
        bytes: usize,
    },
}

/// What came of a plan within the measured span.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Length of the measured span, as it really was.
    pub duration: Duration,
    /// Messages that were answered (sessions, for [`Shape::Churn`]).
    pub messages: u64,
    /// Payload that was verified, in bytes; without the short messages of up- and downloads.
    pub payload_bytes: u64,
    /// Nanoseconds from a message to its answer.
    pub latency: Histogram<u64>,
}

/// Carries out a plan on the calling thread. `at_start` is called when the measured span begins and
/// `at_end` when it ends, both while all connections are open.
///
/// # Errors
/// A connection was refused, closed, or answered with anything but what was sent. One failure fails
/// the plan: a peer that loses messages has no cost per message.
pub fn run<T>(plan: &Plan, at_start: impl FnOnce() -> T, at_end: impl FnOnce(T)) -> Result<Outcome> {
    let _ = (plan, at_start, at_end);
    anyhow::bail!("not written")
}
