//! The host's side of the imports, in memory, one per thread. Knows the limits that the contract
//! names, and nothing of plugins.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{Close, Message, log::Level, store::StoreError};

const MAX_LINE_BYTES: usize = 4096;
const MAX_TOPICS: usize = 64;
const MAX_KEY_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 1024 * 1024;

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new(Kind::Sessions));
}

/// One call into the world. Plugins call it from within their own calls only, so it is never
/// borrowed twice.
pub(crate) fn with<R>(call: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with_borrow_mut(call)
}

pub(crate) fn restart(kind: Kind) {
    with(|world| *world = World::new(kind));
}

/// Which imports there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Log and metrics.
    Policy,
    /// All of them.
    Sessions,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// What it says.
    pub text: String,
}

pub(crate) struct World {
    kind: Kind,
    pub(crate) now_ms: u64,
    monotonic_ns: u64,
    pub(crate) random: Random,
    pub(crate) log: Vec<LogLine>,
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) gauges: BTreeMap<String, f64>,
    store: BTreeMap<String, Entry>,
    pub(crate) store_max_bytes: usize,
    next_session: u64,
    sessions: BTreeMap<u64, Session>,
    pub(crate) closes: BTreeMap<u64, Close>,
}

struct Entry {
    value: Value,
    expires_at_ms: Option<u64>,
}

enum Value {
    Bytes(Vec<u8>),
    Number(i64),
}

#[derive(Default)]
struct Session {
    topics: BTreeSet<String>,
    sent: Vec<Message>,
}

impl World {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            now_ms: 1_700_000_000_000,
            monotonic_ns: 0,
            random: Random::new(1),
            log: Vec::new(),
            counts: BTreeMap::new(),
            gauges: BTreeMap::new(),
            store: BTreeMap::new(),
            store_max_bytes: 16 * 1024 * 1024,
            next_session: 1,
            sessions: BTreeMap::new(),
            closes: BTreeMap::new(),
        }
    }

    /// Panics where the host would refuse to load the plugin.
    #[track_caller]
    pub(crate) fn assert_not_policy(&self, import: &str, instead: &str) {
        assert!(
            self.kind != Kind::Policy,
            "a policy may not use `{import}`: {instead}"
        );
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now_ms += by.as_millis() as u64;
        self.monotonic_ns += by.as_nanos() as u64;
    }

    pub(crate) fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns
    }

    pub(crate) fn log(&mut self, level: Level, line: &str) {
        let end = line.floor_char_boundary(MAX_LINE_BYTES);
        let text = line[..end].to_owned();
        self.log.push(LogLine { level, text });
    }

    pub(crate) fn store_get(&mut self, key: &str) -> Option<Vec<u8>> {
        self.expire();
        Some(match &self.store.get(key)?.value {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Number(number) => number.to_string().into_bytes(),
        })
    }

    pub(crate) fn store_set(
        &mut self,
        key: &str,
        value: &[u8],
        ttl_ms: Option<u64>,
    ) -> Result<(), StoreError> {
        self.expire();
        let expires_at_ms = self.expiry(ttl_ms);
        let value = Value::Bytes(value.to_vec());
        self.store_put(
            key,
            Entry {
                value,
                expires_at_ms,
            },
        )
    }

    pub(crate) fn store_delete(&mut self, key: &str) {
        self.store.remove(key);
    }

    pub(crate) fn store_increment(
        &mut self,
        key: &str,
        by: i64,
        ttl_ms: Option<u64>,
    ) -> Result<i64, StoreError> {
        self.expire();
        match self.store.get_mut(key).map(|entry| &mut entry.value) {
            Some(Value::Number(number)) => {
                *number = number.saturating_add(by);
                Ok(*number)
            }
            Some(Value::Bytes(_)) => Err(StoreError::NotANumber),
            None => {
                let expires_at_ms = self.expiry(ttl_ms);
                let value = Value::Number(by);
                self.store_put(
                    key,
                    Entry {
                        value,
                        expires_at_ms,
                    },
                )?;
                Ok(by)
            }
        }
    }

    fn store_put(&mut self, key: &str, entry: Entry) -> Result<(), StoreError> {
        if key.len() > MAX_KEY_BYTES || entry.value.n_bytes() > MAX_VALUE_BYTES {
            return Err(StoreError::TooLarge);
        }
        let others = self.store.iter().filter(|(other, _)| *other != key);
        let used: usize = others
            .map(|(key, entry)| key.len() + entry.value.n_bytes())
            .sum();
        if used + key.len() + entry.value.n_bytes() > self.store_max_bytes {
            return Err(StoreError::Full);
        }
        self.store.insert(key.to_owned(), entry);
        Ok(())
    }

    fn expiry(&self, ttl_ms: Option<u64>) -> Option<u64> {
        ttl_ms.map(|ttl_ms| self.now_ms.saturating_add(ttl_ms))
    }

    fn expire(&mut self) {
        let now_ms = self.now_ms;
        self.store
            .retain(|_, entry| entry.expires_at_ms.is_none_or(|at_ms| at_ms > now_ms));
    }

    /// A session begins; its number.
    pub(crate) fn open_session(&mut self) -> u64 {
        let session = self.next_session;
        self.next_session += 1;
        self.sessions.insert(session, Session::default());
        session
    }

    pub(crate) fn end_session(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    pub(crate) fn take_sent(&mut self, session: u64) -> Vec<Message> {
        let session = self.sessions.get_mut(&session);
        session
            .map(|session| std::mem::take(&mut session.sent))
            .unwrap_or_default()
    }

    pub(crate) fn subscribe(&mut self, session: u64, topic: &str) -> bool {
        let Some(session) = self.sessions.get_mut(&session) else {
            return false;
        };
        if session.topics.len() >= MAX_TOPICS && !session.topics.contains(topic) {
            return false;
        }
        session.topics.insert(topic.to_owned());
        true
    }

    pub(crate) fn unsubscribe(&mut self, session: u64, topic: &str) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.topics.remove(topic);
        }
    }

    pub(crate) fn publish(&mut self, topic: &str, message: &Message) -> u32 {
        let mut n_sent = 0;
        for session in self.sessions.values_mut() {
            if session.topics.contains(topic) {
                session.sent.push(message.clone());
                n_sent += 1;
            }
        }
        n_sent
    }

    pub(crate) fn send(&mut self, session: u64, message: &Message) -> bool {
        let session = self.sessions.get_mut(&session);
        session
            .map(|session| session.sent.push(message.clone()))
            .is_some()
    }

    pub(crate) fn close(&mut self, session: u64, close: &Close) -> bool {
        let is_open = self.sessions.contains_key(&session);
        if is_open {
            self.closes.insert(session, close.clone());
        }
        is_open
    }
}

impl Value {
    fn n_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Number(_) => size_of::<i64>(),
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_keeps_to_its_limits() {
        let mut world = World::new(Kind::Sessions);
        world.store_max_bytes = 10;
        assert_eq!(world.store_set("k", b"123456789", None), Ok(()));
        assert_eq!(world.store_set("k", b"123456780", None), Ok(()));
        assert_eq!(world.store_set("l", b"", None), Err(StoreError::Full));
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        assert_eq!(world.store_set(&long, b"", None), Err(StoreError::TooLarge));
        assert_eq!(
            world.store_increment("k", 1, None),
            Err(StoreError::NotANumber)
        );
    }

    #[test]
    fn a_counter_lives_from_its_making() {
        let mut world = World::new(Kind::Sessions);
        assert_eq!(world.store_increment("n", 2, Some(1000)), Ok(2));
        world.advance(Duration::from_millis(900));
        assert_eq!(world.store_increment("n", 3, Some(1000)), Ok(5));
        world.advance(Duration::from_millis(100));
        assert_eq!(world.store_get("n"), None);
        assert_eq!(world.store_increment("n", 1, None), Ok(1));
    }

    #[test]
    fn topics_reach_their_sessions_and_no_others() {
        let mut world = World::new(Kind::Sessions);
        let (a, b) = (world.open_session(), world.open_session());
        assert!(world.subscribe(a, "news"));
        assert!(!world.subscribe(b + 1, "news"));
        assert_eq!(world.publish("news", &Message::text("1")), 1);
        world.unsubscribe(a, "news");
        assert_eq!(world.publish("news", &Message::text("2")), 0);
        assert_eq!(world.take_sent(a), [Message::text("1")]);
        assert_eq!(world.take_sent(b), []);
        world.end_session(a);
        assert!(!world.send(a, &Message::text("3")));
    }
}
