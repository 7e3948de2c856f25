//! WebSocket (RFC 6455, RFC 7692) and the heads of HTTP, without any I/O: bytes and heads in, values out.
//!
//! [`header`] is the one codec of frame headers; [`frames`] follows frames without looking into them, [`messages`] reads and writes whole messages,
//! [`handshake`] is the opening handshake's half towards clients, [`forwarding`] turns a request or an answer into
//! what the other side gets. Knows no socket, no runtime and no clock.

pub mod forwarding;
pub mod frames;
pub mod handshake;
pub mod header;
pub mod messages;
