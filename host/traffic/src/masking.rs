//! Keys for the frames that this program masks: those to backends (RFC 6455 section 5.3).
//!
//! Whoever chooses the payload must not foresee the key (section 10.3), so keys come from the kernel's
//! generator. They are fetched by the thousand: a system call for each would cost more than the frame.

use std::cell::RefCell;

use pointsman_protocol::header::MaskingKey;

/// Keys fetched at once.
const BLOCK_KEYS: usize = 1024;
/// Bytes of a key.
const KEY_BYTES: usize = size_of::<MaskingKey>();

thread_local! {
    static BLOCK: RefCell<Block> = const { RefCell::new(Block::USED_UP) };
}

/// A key that nobody can foresee. Each thread has a block of its own.
///
/// # Panics
/// The kernel has no random bytes, which Linux always has once it is up.
pub fn masking_key() -> MaskingKey {
    BLOCK.with_borrow_mut(|block| block.next(getrandom::fill))
}

/// Random bytes, given out once each.
struct Block {
    bytes: [u8; BLOCK_KEYS * KEY_BYTES],
    n_used: usize,
}

impl Block {
    const USED_UP: Self = Self {
        bytes: [0; _],
        n_used: BLOCK_KEYS,
    };

    fn next<E: std::fmt::Debug>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> MaskingKey {
        if self.n_used == BLOCK_KEYS {
            fill(&mut self.bytes).expect("the kernel always has random bytes");
            self.n_used = 0;
        }
        let (keys, _) = self.bytes.as_chunks();
        let key = keys[self.n_used];
        self.n_used += 1;
        key
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_key_is_given_out_once_and_then_a_new_block_is_fetched() {
        let mut block = Block::USED_UP;
        let mut n_fetched = 0_u32;
        let keys: Vec<_> = (0..3 * BLOCK_KEYS as u32)
            .map(|_| {
                block.next(|bytes| {
                    for (i, key) in bytes.chunks_mut(KEY_BYTES).enumerate() {
                        let n = n_fetched * BLOCK_KEYS as u32 + i as u32;
                        key.copy_from_slice(&n.to_ne_bytes());
                    }
                    n_fetched += 1;
                    Ok::<(), ()>(())
                })
            })
            .map(u32::from_ne_bytes)
            .collect();
        let expected: Vec<_> = (0..3 * BLOCK_KEYS as u32).collect();
        assert_eq!(keys, expected);
        assert_eq!(n_fetched, 3);
    }

    #[test]
    fn keys_are_the_kernels_and_differ_from_thread_to_thread() {
        let draw = || -> Vec<_> { (0..2 * BLOCK_KEYS).map(|_| masking_key()).collect() };
        let there = std::thread::spawn(draw).join().expect("it draws");
        let n = 4 * BLOCK_KEYS;
        let keys: HashSet<_> = draw().into_iter().chain(there).collect();
        // Of 4,096 random keys two are equal once in 512 runs; six are not in the life of this test.
        assert!(keys.len() > n - 6, "{} of {n}", keys.len());
    }
}
