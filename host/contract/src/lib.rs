//! What the balancer and whoever decides for it say to each other, in plain values and three traits.
//!
//! [`policy`] chooses backends, [`filter`] sits between client and backend, [`handler`] is the far end of
//! WebSockets. The traffic calls them, `pointsman-plugins` implements them for wasm; neither knows the other. Depends on
//! nothing of ours.

pub mod client;
pub mod close;
pub mod failure;
pub mod fields;
pub mod filter;
pub mod handler;
pub mod message;
pub mod names;
pub mod outbox;
pub mod policy;
pub mod session;
