//! The contract's imports, with the signatures that `wit-bindgen` gives them, answered by the world
//! of this thread.

pub(crate) mod log {
    use crate::{log::Level, testing::world};

    pub(crate) fn log(level: Level, line: &str) {
        world::with(|world| world.log(level, line));
    }
}

pub(crate) mod metrics {
    use crate::testing::world;

    pub(crate) fn count(name: &str, by: u64) {
        assert_name(name);
        world::with(|world| *world.counts.entry(name.to_owned()).or_default() += by);
    }

    pub(crate) fn gauge(name: &str, value: f64) {
        assert_name(name);
        world::with(|world| world.gauges.insert(name.to_owned(), value));
    }

    /// The host drops a metric of another name; a test should not.
    #[track_caller]
    fn assert_name(name: &str) {
        let is_allowed = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.len() <= 64
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        assert!(
            is_allowed,
            "metric name `{name}` does not match [a-z][a-z0-9_]{{0,63}}"
        );
    }
}

pub(crate) mod clock {
    use crate::testing::world;

    pub(crate) fn now_ms() -> u64 {
        world::with(|world| {
            world.assert_not_policy("clock", "read `Request::now_ms`");
            world.now_ms
        })
    }

    pub(crate) fn monotonic_ns() -> u64 {
        world::with(|world| {
            world.assert_not_policy("clock", "read `Request::now_ms`");
            world.monotonic_ns()
        })
    }
}

pub(crate) mod random {
    use crate::testing::world;

    const MAX_BYTES: u32 = 65_536;

    pub(crate) fn number() -> u64 {
        world::with(|world| {
            world.assert_not_policy("random", "read `Request::random`");
            world.random.number()
        })
    }

    pub(crate) fn bytes(n: u32) -> Vec<u8> {
        assert!(n <= MAX_BYTES, "{n} random bytes are more than {MAX_BYTES}");
        (0..n).map(|_| number() as u8).collect()
    }
}

pub(crate) mod store {
    use crate::{
        store::StoreError,
        testing::world::{self, World},
    };

    pub(crate) fn get(key: &str) -> Option<Vec<u8>> {
        with(|world| world.store_get(key))
    }

    pub(crate) fn set(key: &str, value: &[u8], ttl_ms: Option<u64>) -> Result<(), StoreError> {
        with(|world| world.store_set(key, value, ttl_ms))
    }

    pub(crate) fn delete(key: &str) {
        with(|world| world.store_delete(key));
    }

    pub(crate) fn compare_and_set(
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        ttl_ms: Option<u64>,
    ) -> Result<bool, StoreError> {
        with(|world| match world.store_get(key).as_deref() == expected {
            true => world.store_set(key, value, ttl_ms).map(|()| true),
            false => Ok(false),
        })
    }

    pub(crate) fn increment(key: &str, by: i64, ttl_ms: Option<u64>) -> Result<i64, StoreError> {
        with(|world| world.store_increment(key, by, ttl_ms))
    }

    fn with<R>(call: impl FnOnce(&mut World) -> R) -> R {
        world::with(|world| {
            world.assert_not_policy("store", "keep it in the policy, with `State`");
            call(world)
        })
    }
}

pub(crate) mod topics {
    use crate::{
        Message,
        testing::world::{self, World},
    };

    pub(crate) fn subscribe(session: u64, topic: &str) -> bool {
        with(|world| world.subscribe(session, topic))
    }

    pub(crate) fn unsubscribe(session: u64, topic: &str) {
        with(|world| world.unsubscribe(session, topic));
    }

    pub(crate) fn publish(topic: &str, message: &Message) -> u32 {
        with(|world| world.publish(topic, message))
    }

    fn with<R>(call: impl FnOnce(&mut World) -> R) -> R {
        world::with(|world| {
            world.assert_not_policy("topics", "it has no sessions");
            call(world)
        })
    }
}

pub(crate) mod sessions {
    use crate::{
        Close, Message,
        testing::world::{self, World},
    };

    pub(crate) fn send(session: u64, message: &Message) -> bool {
        with(|world| world.send(session, message))
    }

    pub(crate) fn close(session: u64, close: &Close) -> bool {
        with(|world| world.close(session, close))
    }

    fn with<R>(call: impl FnOnce(&mut World) -> R) -> R {
        world::with(|world| {
            world.assert_not_policy("sessions", "it has no sessions");
            call(world)
        })
    }
}
