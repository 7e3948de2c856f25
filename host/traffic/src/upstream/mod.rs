//! Groups of backends, and the way to one of them.
//!
//! [`pool`]: who the backends are and what is known of them; [`fitness`]: which of them should get
//! new work; `queue` and `budget`: what may wait, and what may be tried again. [`dial`]:
//! connecting, and the backend's half of the handshake; [`tls`]:
//! what is connected; [`read_first`]: how it ends; [`health`]: asking a backend how it
//! is; [`dns`]: asking who they are.

pub(crate) mod budget;
pub mod dial;
pub mod dns;
pub mod fitness;
pub mod health;
pub mod pool;
pub(crate) mod queue;
pub mod read_first;
pub mod tls;
