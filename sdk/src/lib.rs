//! What a plugin for Pointsman is written with. A plugin is a WebAssembly component that chooses a
//! backend ([`policy`]), sits between a client and a backend ([`filter`]), or is the far end of a
//! WebSocket ([`handler`]). It implements one trait, names itself to [`export!`], and is tested with
//! plain `cargo test` against the test host in [`testing`].
//!
//! A whole policy:
//!
//! ```
//! use pointsman_sdk::{NoConfig, policy::{Backend, Decision, Policy, Request}};
//!
//! /// Each backend in turn.
//! struct Rotation { n_backends: u64 }
//!
//! impl Policy for Rotation {
//!     type Config = NoConfig;
//!     fn configure(_: NoConfig) -> Result<Self, String> { Ok(Self { n_backends: 1 }) }
//!     fn backends_changed(&mut self, backends: &[Backend]) {
//!         self.n_backends = backends.len() as u64;
//!     }
//!     fn choose(&mut self, request: &Request) -> Decision {
//!         Decision::Prefer((request.sequence % self.n_backends) as u32)
//!     }
//! }
//! pointsman_sdk::export!(Rotation: policy);
//!
//! // Its test:
//! use pointsman_sdk::testing::{PolicyHost, backend};
//! let backends = [backend("a:1"), backend("b:1")];
//! let mut host = PolicyHost::<Rotation>::start(serde_json::json!({}), &backends)?;
//! assert_eq!(host.pick_many(3), ["a:1", "b:1", "a:1"]);
//! # Ok::<(), String>(())
//! ```
//!
//! The crate that holds it has `crate-type = ["cdylib"]` and is built with
//! `cargo build --release --target wasm32-unknown-unknown`; the host takes the resulting `.wasm` as
//! it is.
//!
//! One instance of a plugin runs on each worker, and a plugin that changes is replaced under open
//! sessions. So what has to be seen by all of them belongs in the [`store`], and what has to outlive
//! the change in the store or in [`State`].

// The front door, in the order in which an author meets things.
pub mod filter;
pub mod handler;
pub mod policy;

pub mod close;
mod config;
mod host;
mod key;
mod shorthand;
mod state;

#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

#[doc(hidden)]
pub mod bindings;
#[doc(hidden)]
pub mod export;

pub use bindings::pointsman::plugin::types::{
    Close, Ender, Facts, Header, Message, Refusal, Report,
};
pub use config::NoConfig;
pub use host::{clock, log, metrics, random, sessions, store, topics};
pub use state::State;
