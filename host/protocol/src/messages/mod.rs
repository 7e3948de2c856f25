//! Whole WebSocket messages: bytes in, messages out, and back (RFC 6455, RFC 7692).
//!
//! Pure state machines that know no socket: a [`Decoder`] for what comes from one peer, an
//! [`Encoder`] for what goes there, and [`deflate`] for the one extension that there is. They are for
//! sessions whose messages somebody looks at; a plain relay only follows frames.

pub(crate) mod decode;
pub mod deflate;
pub(crate) mod encode;

pub use decode::{Decoder, Incoming, UnderWay, Violation};
pub use encode::Encoder;

/// Which end of a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Frames that come are masked, and ours are not.
    Server,
    /// The other way round.
    Client,
}
