//! The keys and values that the workers, instances and generations of one plugin share.
//!
//! Bounded in memory; time comes in as an argument. Knows no wasm.

use std::collections::HashMap;

/// The share of one plugin, keys and overhead included.
const STORE_MAX_BYTES: usize = 64 << 20;
const KEY_MAX_BYTES: usize = 1 << 10;
const VALUE_MAX_BYTES: usize = 1 << 20;

/// Least time between two walks through all of it.
const SWEEP_MS: u64 = 1000;

/// What an entry costs besides its key and value: the map's slot and two allocations, rounded up.
const ENTRY_BYTES: usize = 128;

/// See the contract's `store`.
#[derive(Debug, Default)]
pub(super) struct KeyValues {
    entries: HashMap<String, Entry>,
    used_bytes: usize,
    /// When all of it was last looked through for what has expired.
    swept_at_ms: Option<u64>,
}

#[derive(Debug)]
struct Entry {
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

impl KeyValues {
    /// Bytes that are taken of the share.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Numbers are read as decimal text.
    pub(super) fn get(&mut self, key: &str, now_ms: u64) -> Option<Vec<u8>> {
        self.expire(key, now_ms);
        match &self.entries.get(key)?.value {
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
        if let Some(entry) = self.entries.remove(key) {
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
        match self.entries.get_mut(&key) {
            Some(Entry {
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
        if !self.has_room(&key, added) {
            // Whoever fills the store must not make every call of others a walk through it.
            let is_due = |then: u64| now_ms.abs_diff(then) >= SWEEP_MS;
            if self.swept_at_ms.is_none_or(is_due) {
                self.swept_at_ms = Some(now_ms);
                self.expire_all(now_ms);
            }
            if !self.has_room(&key, added) {
                return Err(KeepError::Full);
            }
        }
        self.delete(&key);
        self.used_bytes += added;
        self.entries.insert(
            key,
            Entry {
                value,
                expires_at_ms,
            },
        );
        Ok(())
    }

    fn has_room(&self, key: &str, added: usize) -> bool {
        let freed = self
            .entries
            .get(key)
            .map_or(0, |entry| cost(key, &entry.value));
        self.used_bytes - freed + added <= STORE_MAX_BYTES
    }

    fn expire(&mut self, key: &str, now_ms: u64) {
        if self
            .entries
            .get(key)
            .is_some_and(|entry| entry.is_over(now_ms))
        {
            self.delete(key);
        }
    }

    fn expire_all(&mut self, now_ms: u64) {
        let used_bytes = &mut self.used_bytes;
        self.entries.retain(|key, entry| {
            let is_over = entry.is_over(now_ms);
            if is_over {
                *used_bytes -= cost(key, &entry.value);
            }
            !is_over
        });
    }
}

impl Entry {
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
}
