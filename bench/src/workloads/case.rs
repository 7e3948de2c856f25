//! What is done to a fresh subject, as values: a [`Kind`] of work, and its name within a workload.
//!
//! The list of questions builds [`Case`]s, a run carries their kinds out. Knows no subject.

use crate::load::Shape;

/// One thing that is done to a fresh subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What sets it apart from other cases of its workload; empty if there is one case only.
    pub label: String,
    /// What is done.
    pub kind: Kind,
}

/// What is done in a [`Case`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Load, with time and processor time taken.
    Load {
        /// Open WebSockets at a time.
        connections: usize,
        /// What they do.
        shape: Shape,
    },
    /// Sessions that wait; what they take of memory.
    Memory {
        /// How many.
        sessions: usize,
    },
    /// As [`Kind::Load`], with a line of each session in an access log.
    Logged {
        /// Open WebSockets at a time.
        connections: usize,
        /// What they do.
        shape: Shape,
    },
    /// Sessions whose backends end all connections: until all clients are back.
    Storm {
        /// How many.
        sessions: usize,
    },
    /// Echoes under `strace`.
    Calls,
    /// Sessions that wait; how they are spread over the workers.
    Placement {
        /// How many.
        sessions: usize,
    },
    /// Paced messages, first in peace and then while a plugin is replaced every 500 ms.
    Reload,
}

/// Paced messages of the workloads `paced` and `reload`: below what any peer can do with
/// one processor, so that latency is not that of a queue.
pub const PACED: Kind = Kind::Load {
    connections: 64,
    shape: Shape::Paced {
        bytes: 64,
        messages_per_second: 8000,
    },
};
/// Clients that connect, have one message echoed and close, again and again.
pub const CHURN: (usize, Shape) = (32, Shape::Churn { bytes: 64 });
/// The echo that most other figures are compared with.
pub const ECHO_64: Kind = echo(64, 64);

/// Enough connections that the peer, and not a round trip, is the limit.
const STREAMS: usize = 8;

/// Echoes over so many connections, each busy all the time.
pub const fn echo(connections: usize, bytes: usize) -> Kind {
    Kind::Load {
        connections,
        shape: Shape::Echo { bytes },
    }
}

/// Rooms of 100 in which one says five messages at a time.
pub const fn chat(rooms: usize) -> Kind {
    Kind::Load {
        connections: rooms * 100,
        shape: Shape::Fanout {
            rooms,
            bytes: 64,
            burst: 5,
        },
    }
}

/// Long messages over a few connections.
pub const fn stream(shape: Shape) -> Kind {
    Kind::Load {
        connections: STREAMS,
        shape,
    }
}
