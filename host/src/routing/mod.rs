//! Where a request goes: first its route, then, at an upstream, a backend.
//!
//! [`table`] finds the route. [`chooser`] asks the policy for a backend; [`policy`] says what a
//! policy is, and [`fallback`] is the one of the host's own.

pub mod chooser;
pub mod fallback;
pub mod policy;
pub mod table;
