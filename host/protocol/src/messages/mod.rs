//! Whole WebSocket messages: bytes in, messages out, and back (RFC 6455, RFC 7692).
//!
//! Pure state machines that know no socket: a [`Decoder`] for what comes from one far end, an
//! [`Encoder`] for what goes there, and [`deflate`] for the one extension that there is. They are for
//! sessions whose messages somebody looks at; a plain relay only follows frames.

pub(crate) mod decode;
pub mod deflate;
pub(crate) mod encode;

pub use decode::{Decoder, Incoming, UnderWay, Violation};
pub use encode::Encoder;

/// Which end of a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Frames that come are masked, and ours are not.
    Server,
    /// The other way round.
    Client,
}

/// Opcodes of RFC 6455 section 5.2.
mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;
}

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const MASKED: u8 = 0x80;
/// Longest payload of a control frame.
const CONTROL_MAX_BYTES: usize = 125;

/// Applies a mask, or takes it off (RFC 6455 section 5.3). `offset`: how much of the frame's payload
/// came before `bytes`.
fn mask(bytes: &mut [u8], key: [u8; 4], offset: u64) {
    let mut key = key;
    key.rotate_left((offset % 4) as usize);
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let mut value = [0; 8];
        value.copy_from_slice(word);
        word.copy_from_slice(&(u64::from_ne_bytes(value) ^ wide).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_the_same_in_one_piece_and_in_many() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        let plain: Vec<u8> = (0..100).collect();
        let naive: Vec<u8> = plain
            .iter()
            .enumerate()
            .map(|(i, b)| b ^ key[i % 4])
            .collect();
        for split in 0..=plain.len() {
            let mut pieces = plain.clone();
            let (first, second) = pieces.split_at_mut(split);
            mask(first, key, 0);
            mask(second, key, split as u64);
            assert_eq!(pieces, naive, "{split}");
        }
    }
}
