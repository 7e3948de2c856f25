//! One file per promise, each test a sentence. They run the real binary: `cargo xtask build` makes
//! it, `cargo xtask test` makes it and runs these. `harness/` is what they are told with.

mod backends;
mod check;
mod drain;
mod fences;
mod handlers;
mod handshake;
mod harness;
mod limits;
mod observe;
mod proxy;
mod relay;
mod reload;
mod swap;
mod tutorial;
