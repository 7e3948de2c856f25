//! Pointsman beside its peers: what a message, a session and a megabyte cost.
//!
//! [`subjects`] starts each peer, [`backend`] is what relays lead to, [`load`] drives them, [`usage`]
//! reads what they used, [`workloads`] are the questions, [`report`] says what came of them.
//! [`native`] are echo servers to compare handlers with.

pub mod backend;
pub mod framing;
pub mod load;
pub mod native;
pub mod report;
pub mod socket;
pub mod subjects;
pub mod usage;
pub mod workloads;
