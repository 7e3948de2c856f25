//! Where a request goes: first its route, then, at an upstream, a backend.
//!
//! [`table`] finds the route, and [`paths`] what could get round it. [`chooser`] asks the policy for a
//! backend; `fallback` is the host's own.

pub mod chooser;
pub(crate) mod fallback;
pub mod paths;
pub mod table;
