//! The contract in Rust, as `cargo xtask bindings` generated it from `wit/plugin.wit`, and the
//! sections that tell `wit-component` which world a module is made for. Not for use by plugins: what
//! they need is at the crate's front door.
#![allow(
    unsafe_code,
    reason = "the canonical ABI hands values over as raw pointers; wit-bindgen generated all of it"
)]

// Left as generated: rustfmt and the lints are for code that people write.
#[rustfmt::skip]
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    missing_debug_implementations,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    clippy::use_self,
    reason = "generated"
)]
mod contract;

pub use contract::{exports, pointsman};

macro_rules! section {
    ($name:ident, $file:literal) => {
        /// The section of the world after which this is named.
        pub const $name: &[u8; include_bytes!($file).len()] = include_bytes!($file);
    };
}

section!(POLICY, "policy-plugin.component-type");
section!(STATEFUL_POLICY, "stateful-policy-plugin.component-type");
section!(FILTER, "filter-plugin.component-type");
section!(STATEFUL_FILTER, "stateful-filter-plugin.component-type");
section!(HANDLER, "handler-plugin.component-type");
section!(STATEFUL_HANDLER, "stateful-handler-plugin.component-type");
