//! Close codes by name: those that may go on the wire (RFC 6455 section 7.4, and IANA's registry of WebSocket
//! close codes). 3000 to 4999 are an application's own.
//!
//! ```
//! use pointsman_sdk::{Close, close};
//!
//! let full = Close::new(close::TRY_AGAIN_LATER, "the room is full");
//! assert!(close::may_be_sent(full.code) && close::may_be_sent(4000));
//! ```

/// The purpose of the connection is fulfilled.
pub const NORMAL: u16 = 1000;
/// A server goes down, or a page is left.
pub const GOING_AWAY: u16 = 1001;
/// The client broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// A kind of data that is not accepted, such as binary messages.
pub const UNSUPPORTED_DATA: u16 = 1003;
/// Data that is not what its type says, such as malformed JSON.
pub const INVALID_PAYLOAD: u16 = 1007;
/// A rule of the application was broken.
pub const POLICY_VIOLATION: u16 = 1008;
/// A message is longer than is accepted.
pub const MESSAGE_TOO_BIG: u16 = 1009;
/// An extension is missing that the client needs.
pub const MANDATORY_EXTENSION: u16 = 1010;
/// The server cannot go on.
pub const INTERNAL_ERROR: u16 = 1011;
/// The server restarts: connect again.
pub const SERVICE_RESTART: u16 = 1012;
/// The server is overloaded: connect again later.
pub const TRY_AGAIN_LATER: u16 = 1013;
/// A server behind this one failed.
pub const BAD_GATEWAY: u16 = 1014;

/// Whether a Close may have this code. The host sends 1011 in place of any other.
pub const fn may_be_sent(code: u16) -> bool {
    matches!(
        code,
        NORMAL..=UNSUPPORTED_DATA | INVALID_PAYLOAD..=BAD_GATEWAY | 3000..=4999
    )
}
