//! Whole data messages, and the end of them (RFC 6455 sections 5.6 and 7.1).

use bytes::Bytes;

use crate::close;

/// A whole data message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Text or binary.
    pub kind: MessageKind,
    /// Valid UTF-8 where the kind is text.
    pub payload: Bytes,
}

/// A whole data message, where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received<'a> {
    /// Opcode 1.
    Text(&'a str),
    /// Opcode 2.
    Binary(&'a [u8]),
}

/// The two kinds of data messages (RFC 6455 section 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// Opcode 1.
    Text,
    /// Opcode 2.
    Binary,
}

/// A close code that may go on the wire, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// See RFC 6455 section 7.4.
    pub code: u16,
    /// At most 123 bytes.
    pub reason: String,
}

impl Received<'_> {
    /// The payload's length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// No payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Message {
    /// None: it says that it is text, and is no UTF-8.
    pub fn as_received(&self) -> Option<Received<'_>> {
        match self.kind {
            MessageKind::Binary => Some(Received::Binary(&self.payload)),
            MessageKind::Text => std::str::from_utf8(&self.payload).ok().map(Received::Text),
        }
    }
}

impl CloseReason {
    /// For the sessions of an instance that is dead, or that misbehaved.
    pub fn plugin_failed() -> Self {
        Self {
            code: close::INTERNAL_ERROR,
            reason: "plugin failed".to_owned(),
        }
    }
}
