//! The sandbox: WebAssembly components that choose backends, speak WebSocket and answer requests.
//!
//! In come the bytes of a plugin, its configuration and what the traits of `routing` and `session`
//! hand over; out come a [`policy::GuestPolicy`], a [`filter::GuestFilter`], a
//! [`handler::GuestHandler`] or a `http::GuestHttp`. A guest is a stranger: bounded in time, memory and output, and thrown away
//! after a trap. This room knows no sockets, and nobody else knows wasm.
//!
//! ```text
//! bytes -> load -> Generation -> trial -> registry::publish -> Catalog -> policy | sessions (filter, handler) | http
//!                                                                            | calls
//!                                             host_api, wasi <- imports - guest -> stats, failures
//! ```

mod bindings;
mod breaker;
pub mod call;
mod engine;
pub mod failure;
pub mod filter;
pub mod generation;
mod grace;
mod guest;
#[cfg(test)]
mod guests;
pub mod handler;
pub mod host;
mod host_api;
mod http;
mod instantiate;
pub mod isolated_compile;
mod kv;
pub mod limits;
pub mod load;
mod log_lines;
mod placement;
pub mod policy;
pub mod registry;
mod sessions;
mod share;
pub mod stats;
mod topics;
mod wasi;
