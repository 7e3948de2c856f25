//! The keys and values that the workers, instances and generations of one plugin share.
//!
//! Bounded in memory, and in what one call may have to do however much there is: a call that was slow
//! because of the store would be held against the plugin and its client. Time comes in as an argument.
//! Knows no wasm.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// The share of one plugin, keys and overhead included.
const STORE_MAX_BYTES: usize = 64 << 20;
const KEY_MAX_BYTES: usize = 1 << 10;
const VALUE_MAX_BYTES: usize = 1 << 20;

/// Least time between the beginnings of two walks through all of it.
const SWEEP_MS: u64 = 1000;

/// What one call walks through at most, and one shard: a fraction of a millisecond.
const SWEEP_ENTRIES: usize = 4096;

/// A map that grows moves all that it has, which takes tens of milliseconds for half a million entries.
const N_SHARDS: usize = 64;

/// What an entry costs besides its key and value: the map's slot and two allocations, rounded up.
const ENTRY_BYTES: usize = 128;

/// See the contract's `store`.
#[derive(Debug)]
pub(super) struct KeyValues {
    /// By the hash of the key.
    shards: [HashMap<String, StoredValue>; N_SHARDS],
    hasher: RandomState,
    used_bytes: usize,
    /// When the last walk through all of it, for what has expired, began.
    sweep_began_ms: Option<u64>,
    /// Shards that this walk has behind it.
    n_swept: usize,
}

#[derive(Debug)]
struct StoredValue {
    value: Value,
    /// None: until it is deleted.
    expires_at_ms: Option<u64>,
}

#[derive(Debug)]
enum Value {
    Bytes(Vec<u8>),
    Number(i64),
}

/// Why something was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeepError {
    /// The share is used up.
    Full,
    /// Key or value is over its bound.
    TooLarge,
    /// `increment` of what `increment` did not make.
    NotANumber,
}

impl Default for KeyValues {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| HashMap::new()),
            hasher: RandomState::new(),
            used_bytes: 0,
            sweep_began_ms: None,
            n_swept: N_SHARDS,
        }
    }
}

impl KeyValues {
    /// Bytes that are taken of the share.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Numbers are read as decimal text.
    pub(super) fn get(&mut self, key: &str, now_ms: u64) -> Option<Vec<u8>> {
        self.expire(key, now_ms);
        match &self.shard(key).get(key)?.value {
            Value::Bytes(bytes) => Some(bytes.clone()),
            Value::Number(number) => Some(number.to_string().into_bytes()),
        }
    }

    pub(super) fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<(), KeepError> {
        if value.len() > VALUE_MAX_BYTES {
            return Err(KeepError::TooLarge);
        }
        self.keep(key, Value::Bytes(value), expiry(ttl_ms, now_ms), now_ms)
    }

    /// False: there is another value than `expected`, which stays. None: there is to be no value.
    pub(super) fn compare_and_set(
        &mut self,
        key: String,
        expected: Option<&[u8]>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<bool, KeepError> {
        if self.get(&key, now_ms).as_deref() != expected {
            return Ok(false);
        }
        self.set(key, value, ttl_ms, now_ms).map(|()| true)
    }

    pub(super) fn delete(&mut self, key: &str) {
        if let Some(entry) = self.shard(key).remove(key) {
            self.used_bytes -= cost(key, &entry.value);
        }
    }

    /// The sum wraps around rather than to fail.
    pub(super) fn increment(
        &mut self,
        key: String,
        by: i64,
        ttl_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<i64, KeepError> {
        self.expire(&key, now_ms);
        match self.shard(&key).get_mut(&key) {
            Some(StoredValue {
                value: Value::Number(number),
                ..
            }) => {
                *number = number.wrapping_add(by);
                Ok(*number)
            }
            Some(_) => Err(KeepError::NotANumber),
            None => {
                self.keep(key, Value::Number(by), expiry(ttl_ms, now_ms), now_ms)?;
                Ok(by)
            }
        }
    }

    fn keep(
        &mut self,
        key: String,
        value: Value,
        expires_at_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<(), KeepError> {
        if key.len() > KEY_MAX_BYTES {
            return Err(KeepError::TooLarge);
        }
        let added = cost(&key, &value);
        if !self.make_room(&key, added, now_ms) {
            return Err(KeepError::Full);
        }
        self.delete(&key);
        self.used_bytes += added;
        let entry = StoredValue {
            value,
            expires_at_ms,
        };
        self.shard(&key).insert(key, entry);
        Ok(())
    }

    /// Goes on with the walk through all of it until there is room, for as long as one call may.
    fn make_room(&mut self, key: &str, added: usize, now_ms: u64) -> bool {
        let mut n_seen = 0;
        while !self.has_room(key, added) {
            if self.n_swept == N_SHARDS {
                let is_due = |then: u64| now_ms.abs_diff(then) >= SWEEP_MS;
                if !self.sweep_began_ms.is_none_or(is_due) {
                    return false;
                }
                self.sweep_began_ms = Some(now_ms);
                self.n_swept = 0;
            }
            if n_seen >= SWEEP_ENTRIES {
                return false;
            }
            n_seen += self.shards[self.n_swept].len();
            self.sweep(self.n_swept, now_ms);
            self.n_swept += 1;
        }
        true
    }

    fn has_room(&mut self, key: &str, added: usize) -> bool {
        let freed = self
            .shard(key)
            .get(key)
            .map_or(0, |entry| cost(key, &entry.value));
        self.used_bytes - freed + added <= STORE_MAX_BYTES
    }

    fn expire(&mut self, key: &str, now_ms: u64) {
        if self
            .shard(key)
            .get(key)
            .is_some_and(|entry| entry.is_over(now_ms))
        {
            self.delete(key);
        }
    }

    fn sweep(&mut self, shard: usize, now_ms: u64) {
        let used_bytes = &mut self.used_bytes;
        self.shards[shard].retain(|key, entry| {
            let is_over = entry.is_over(now_ms);
            if is_over {
                *used_bytes -= cost(key, &entry.value);
            }
            !is_over
        });
    }

    fn shard(&mut self, key: &str) -> &mut HashMap<String, StoredValue> {
        let hash = self.hasher.hash_one(key) as usize;
        &mut self.shards[hash % N_SHARDS]
    }
}

impl StoredValue {
    fn is_over(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }
}

fn expiry(ttl_ms: Option<u64>, now_ms: u64) -> Option<u64> {
    ttl_ms.map(|ttl| now_ms.saturating_add(ttl))
}

fn cost(key: &str, value: &Value) -> usize {
    let value_bytes = match value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Number(_) => 0,
    };
    ENTRY_BYTES + key.len() + value_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_live_as_long_as_they_are_told() {
        let mut store = KeyValues::default();
        store
            .set("a".to_owned(), b"1".to_vec(), Some(10), 100)
            .unwrap();
        store.set("b".to_owned(), b"2".to_vec(), None, 100).unwrap();
        assert_eq!(store.get("a", 109).as_deref(), Some(&b"1"[..]));
        assert_eq!(store.get("a", 110), None);
        assert_eq!(store.get("b", u64::MAX).as_deref(), Some(&b"2"[..]));
        store.delete("b");
        assert_eq!((store.get("b", 0), store.used_bytes()), (None, 0));
    }

    #[test]
    fn numbers_count_from_their_making() {
        let mut store = KeyValues::default();
        let mut increment = |by, now_ms| store.increment("n".to_owned(), by, Some(10), now_ms);
        assert_eq!(increment(2, 0), Ok(2));
        assert_eq!(increment(-5, 9), Ok(-3));
        assert_eq!(increment(1, 10), Ok(1));
        assert_eq!(store.get("n", 11).as_deref(), Some(&b"1"[..]));
        store.set("n".to_owned(), b"7".to_vec(), None, 11).unwrap();
        assert_eq!(
            store.increment("n".to_owned(), 1, None, 11),
            Err(KeepError::NotANumber)
        );
    }

    #[test]
    fn the_share_is_bounded_and_what_is_over_makes_room() {
        let mut store = KeyValues::default();
        let mib = vec![0; VALUE_MAX_BYTES];
        let fits = STORE_MAX_BYTES / (VALUE_MAX_BYTES + ENTRY_BYTES + 3);
        for n in 0..fits {
            store
                .set(format!("{n:03}"), mib.clone(), Some(10_000), 0)
                .unwrap();
        }
        assert_eq!(
            store.set("new".to_owned(), mib.clone(), None, 9_000),
            Err(KeepError::Full)
        );
        assert_eq!(
            store.set("000".to_owned(), mib.clone(), Some(10_000), 9_000),
            Ok(())
        );
        assert_eq!(store.set("new".to_owned(), mib, None, 10_000), Ok(()));
        assert_eq!(
            store.set("k".repeat(1025), vec![], None, 0),
            Err(KeepError::TooLarge)
        );
        assert_eq!(
            store.set("k".to_owned(), vec![0; (1 << 20) + 1], None, 0),
            Err(KeepError::TooLarge)
        );
    }

    #[test]
    fn no_call_walks_through_all_of_a_large_store() {
        let mut store = KeyValues::default();
        let mut n = 0;
        while store.set(n.to_string(), Vec::new(), Some(10), 0).is_ok() {
            n += 1;
        }
        assert!(n > 400_000, "{n} entries");
        // That has begun a walk, in vain.
        let mut freed = Vec::new();
        for at in 0..100 {
            let before = store.used_bytes();
            // Empties a part of what is over, and takes the room of one.
            let _ = store.set(format!("new{at}"), vec![0; VALUE_MAX_BYTES], None, 10);
            let after = store.used_bytes().saturating_sub(VALUE_MAX_BYTES);
            freed.push(before.saturating_sub(after) / ENTRY_BYTES);
        }
        let most = freed.iter().max().unwrap();
        assert!((1000..20_000).contains(most), "{most} at once");
    }
}
