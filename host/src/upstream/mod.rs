//! Groups of backends, and the way to one of them.
//!
//! [`pool`]: who the backends are and what is known of them. [`dial`]: connecting, and the
//! backend's half of the handshake.

pub mod dial;
pub mod pool;
