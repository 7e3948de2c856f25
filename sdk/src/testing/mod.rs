//! The test host: runs a plugin in a plain `cargo test`, without wasm. Start one with
//! [`PolicyHost::start`], [`HandlerHost::start`] or [`FilterHost::start`]; what the plugin asks of
//! the host is then answered on this thread, the same way in every run: the clock stands still until
//! [`advance`], random numbers come from a [`seed`], and the store, the topics and the messages sent
//! are in memory, to be looked at.
//!
//! ```
//! use std::time::Duration;
//! use pointsman_sdk::{store, testing};
//!
//! testing::restart();
//! store::set("greeting", b"hello", Some(Duration::from_secs(1)))?;
//! testing::advance(Duration::from_millis(999));
//! assert!(store::get("greeting").is_some());
//! testing::advance(Duration::from_millis(1));
//! assert!(store::get("greeting").is_none());
//! # Ok::<(), store::StoreError>(())
//! ```

mod filter;
mod handler;
pub(crate) mod imports;
mod policy;
mod world;

use std::time::Duration;

pub use filter::{FilterHost, OpenFilterSession};
pub use handler::{HandlerHost, OpenHandlerSession};
pub use policy::PolicyHost;
pub use world::LogLine;

use crate::{
    Close, Ender, Facts, Header, Message, Report,
    policy::{Backend, Request},
};

/// Forgets everything and starts with an empty host, as `start` does.
pub fn restart() {
    world::restart(world::Kind::Sessions);
}

/// Milliseconds since 1970 for everything from now on; 1,700,000,000,000 at first.
pub fn set_now_ms(now_ms: u64) {
    world::with(|world| world.now_ms = now_ms);
}

/// Lets time pass.
pub fn advance(by: Duration) {
    world::with(|world| world.advance(by));
}

/// The random numbers to come.
pub fn seed(seed: u64) {
    world::with(|world| world.random = world::Random::new(seed));
}

/// How much the store takes, keys and values together; 16 MiB at first.
pub fn set_store_max_bytes(max_bytes: usize) {
    world::with(|world| world.store_max_bytes = max_bytes);
}

/// What was logged so far.
pub fn log_lines() -> Vec<LogLine> {
    world::with(|world| world.log.clone())
}

/// The sum of what was counted under this name; 0 if nothing was.
pub fn counted(name: &str) -> u64 {
    world::with(|world| world.counts.get(name).copied().unwrap_or(0))
}

/// The gauge of this name, if it was set.
pub fn gauge(name: &str) -> Option<f64> {
    world::with(|world| world.gauges.get(name).copied())
}

/// Takes what was sent to a session by `sessions::send` and `topics::publish`, oldest first.
/// Verdicts are not among it.
pub fn take_sent(session: u64) -> Vec<Message> {
    world::with(|world| world.take_sent(session))
}

/// How `sessions::close` closed a session, if it did.
pub fn close_of(session: u64) -> Option<Close> {
    world::with(|world| world.closes.get(&session).cloned())
}

/// A backend of weight 1 without labels.
pub fn backend(address: &str) -> Backend {
    weighted(address, 1)
}

/// A backend of this weight without labels.
pub fn weighted(address: &str, weight: u32) -> Backend {
    Backend {
        address: address.to_owned(),
        weight,
        labels: Vec::new(),
    }
}

/// A request of `GET / HTTP/1.1` to `example.org` from `192.0.2.1`, without headers. The host fills
/// in the rest: `Request { client_ip: "192.0.2.7".into(), ..request() }`.
pub fn request() -> Request {
    Request {
        sequence: 0,
        random: 0,
        now_ms: 0,
        client_ip: "192.0.2.1".to_owned(),
        host: "example.org".to_owned(),
        path: "/".to_owned(),
        headers: Vec::new(),
        figures: Vec::new(),
    }
}

/// What is known of a session from `192.0.2.1` on the route `/websocket`, without headers. The host
/// numbers it.
pub fn facts() -> Facts {
    Facts {
        session: 0,
        route: "/websocket".to_owned(),
        client_ip: "192.0.2.1".to_owned(),
        host: "example.org".to_owned(),
        path: "/websocket".to_owned(),
        request_id: "test".to_owned(),
        offered_subprotocols: Vec::new(),
        subprotocol: None,
        headers: Vec::new(),
    }
}

/// A session that the client closed with 1000 and in which nothing moved.
pub fn report() -> Report {
    Report {
        ended_by: Ender::Client,
        code: Some(1000),
        duration_ms: 0,
        bytes_up: 0,
        bytes_down: 0,
        messages_up: 0,
        messages_down: 0,
    }
}

/// Those that the plugin asked for.
fn keep_wanted(headers: &mut Vec<Header>, wanted: &[String]) {
    headers.retain(|header| wanted.contains(&header.name));
}
