//! What a plugin can ask of the host. On other targets than wasm the test host answers.

#[cfg(target_arch = "wasm32")]
use crate::bindings::pointsman::plugin as imports;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::imports;

/// Lines in the host's log, under the plugin's name. Lines longer than 4 KiB are cut, and at most
/// 100 lines a second are kept.
///
/// ```
/// # let room = "lobby";
/// pointsman_sdk::log::warn(format_args!("room {room} is full"));
/// ```
pub mod log {
    use std::fmt::Display;

    use super::imports;
    pub use crate::bindings::pointsman::plugin::log::Level;

    /// What only someone who debugs the plugin wants to see.
    pub fn trace(line: impl Display) {
        write(Level::Trace, line);
    }

    /// What helps to find out why the plugin did what it did.
    pub fn debug(line: impl Display) {
        write(Level::Debug, line);
    }

    /// What an operator wants to know.
    pub fn info(line: impl Display) {
        write(Level::Info, line);
    }

    /// What an operator should look into.
    pub fn warn(line: impl Display) {
        write(Level::Warn, line);
    }

    /// What an operator must repair.
    pub fn error(line: impl Display) {
        write(Level::Error, line);
    }

    /// One line at this level.
    pub fn write(level: Level, line: impl Display) {
        imports::log::log(level, &line.to_string());
    }
}

/// The time. Not for policies: they have `Request::now_ms`.
pub mod clock {
    use super::imports;

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn now_ms() -> u64 {
        imports::clock::now_ms()
    }

    /// Nanoseconds since an arbitrary moment; never goes back.
    pub fn monotonic_ns() -> u64 {
        imports::clock::monotonic_ns()
    }
}

/// Random numbers from the operating system. Not for policies: they have `Request::random`.
pub mod random {
    use super::imports;

    /// 64 random bits.
    pub fn number() -> u64 {
        imports::random::number()
    }

    /// At most 65,536 bytes; a longer request ends the plugin's instance.
    pub fn bytes(n: u32) -> Vec<u8> {
        imports::random::bytes(n)
    }
}

/// Numbers on the host's metrics page, labelled with the plugin's name. Names match
/// `[a-z][a-z0-9_]{0,63}`, and there are at most 64 of each kind; what does not fit is dropped.
pub mod metrics {
    use super::imports;

    /// Adds to `pointsman_plugin_count_total{plugin,name}`.
    pub fn count(name: &str, by: u64) {
        imports::metrics::count(name, by);
    }

    /// Sets `pointsman_plugin_value{plugin,name}`.
    pub fn gauge(name: &str, value: f64) {
        imports::metrics::gauge(name, value);
    }
}

/// Keys and values that all workers, instances and generations of one plugin share. Nothing is kept
/// on disk. Not for policies.
pub mod store {
    use std::time::Duration;

    use super::imports;
    pub use crate::bindings::pointsman::plugin::store::StoreError;

    /// The value, if there is one and it has not expired.
    pub fn get(key: &str) -> Option<Vec<u8>> {
        imports::store::get(key)
    }

    /// Sets a value, which lives for `ttl`, or until it is deleted.
    ///
    /// # Errors
    ///
    /// The plugin's share of the store is used up, the key is longer than 1 KiB, or the value longer
    /// than 1 MiB.
    pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), StoreError> {
        imports::store::set(key, value, millis(ttl))
    }

    /// Removes a value.
    pub fn delete(key: &str) {
        imports::store::delete(key);
    }

    /// Sets the value if the one that is there is `expected`; `None`: if there is none. Says whether
    /// it did. Nothing comes between the look and the change: who finds another value than expected
    /// reads it again and begins anew.
    ///
    /// # Errors
    ///
    /// As for [`set`].
    pub fn compare_and_set(
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        imports::store::compare_and_set(key, expected, value, millis(ttl))
    }

    /// Adds and returns the sum, atomically; a missing key counts as 0. `ttl` counts from the making
    /// of the key.
    ///
    /// # Errors
    ///
    /// As for [`set`]; also, the value was not made by `increment`.
    pub fn increment(key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, StoreError> {
        imports::store::increment(key, by, millis(ttl))
    }

    fn millis(ttl: Option<Duration>) -> Option<u64> {
        ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Named groups of the sessions of one plugin, on all workers. Sessions are named by
/// `Facts::session`. Not for policies.
pub mod topics {
    use super::imports;
    use crate::Message;

    /// False if there is no such session, or if it has 64 topics already.
    pub fn subscribe(session: u64, topic: &str) -> bool {
        imports::topics::subscribe(session, topic)
    }

    /// The opposite. A session that ends does so by itself.
    pub fn unsubscribe(session: u64, topic: &str) {
        imports::topics::unsubscribe(session, topic);
    }

    /// Sends to every session of the topic, and says to how many. A session whose queue is full
    /// misses this message or its oldest, or ends, as the operator wants it.
    pub fn publish(topic: &str, message: &Message) -> u32 {
        imports::topics::publish(topic, message)
    }
}

/// The sessions of one plugin other than by verdict. Sessions are named by `Facts::session`. Not for
/// policies.
pub mod sessions {
    use super::imports;
    use crate::{Close, Message};

    /// False if there is no such session, or its queue is full.
    pub fn send(session: u64, message: &Message) -> bool {
        imports::sessions::send(session, message)
    }

    /// False if there is no such session.
    pub fn close(session: u64, close: &Close) -> bool {
        imports::sessions::close(session, close)
    }
}
