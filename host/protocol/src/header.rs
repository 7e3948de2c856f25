//! Headers of WebSocket frames and the masks on their payload, read and written here and nowhere else
//! (RFC 6455 sections 5.2 and 5.3).
//!
//! Says what a header says, and judges nothing: whether a bit, an opcode or a length is allowed depends on who reads.
//! No heap, and nothing is kept but by a [`HeaderBuffer`], for headers that come in pieces.

/// Longest header: two bytes, eight of length, four of key.
pub const MAX_HEADER_BYTES: usize = 14;

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_MAX_BYTES: usize = 125;

/// What the payload of a frame is masked with.
pub type MaskingKey = [u8; 4];

/// Gives keys that whoever chooses the payload cannot foresee (RFC 6455 section 10.3). Handed in, because nothing
/// here has random numbers of its own.
pub type KeySource = fn() -> MaskingKey;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_RSV3: u8 = 0x30;
const OPCODE: u8 = 0x0f;
const MASK: u8 = 0x80;
/// In place of a length: it follows, in two bytes.
const LENGTH_IN_2: u8 = 126;
/// In place of a length: it follows, in eight bytes.
const LENGTH_IN_8: u8 = 127;

/// What a frame is (RFC 6455 section 11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opcode(u8);

impl Opcode {
    /// A further fragment of a message.
    pub const CONTINUATION: Self = Self(0);
    /// A text message, or its first fragment.
    pub const TEXT: Self = Self(1);
    /// A binary message, or its first fragment.
    pub const BINARY: Self = Self(2);
    /// The last frame of one side.
    pub const CLOSE: Self = Self(8);
    /// To be answered with a Pong of the same payload.
    pub const PING: Self = Self(9);
    /// The answer, or a sign of life.
    pub const PONG: Self = Self(10);

    /// Whether it is, or would be, a control frame.
    #[inline]
    pub const fn is_control(self) -> bool {
        self.0 & 0x08 != 0
    }

    /// Whether it means nothing yet.
    #[inline]
    pub const fn is_reserved(self) -> bool {
        !matches!(self.0, 0..=2 | 8..=10)
    }
}

/// The first two bytes of a header: all of it but a longer length and the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix([u8; 2]);

impl Prefix {
    /// None: there are not two bytes yet.
    #[inline]
    pub const fn read(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [first, second, ..] => Some(Self([first, second])),
            _ => None,
        }
    }

    /// FIN: it is the last frame of its message.
    #[inline]
    pub const fn is_final(self) -> bool {
        self.0[0] & FIN != 0
    }

    /// RSV1: with permessage-deflate, its message is compressed (RFC 7692 section 6).
    #[inline]
    pub const fn is_compressed(self) -> bool {
        self.0[0] & RSV1 != 0
    }

    /// RSV2 and RSV3: no extension of ours knows them.
    #[inline]
    pub const fn has_unknown_bits(self) -> bool {
        self.0[0] & RSV2_RSV3 != 0
    }

    /// What the frame is.
    #[inline]
    pub const fn opcode(self) -> Opcode {
        Opcode(self.0[0] & OPCODE)
    }

    /// Whether there is a key.
    #[inline]
    pub const fn is_masked(self) -> bool {
        self.0[1] & MASK != 0
    }

    /// The length of the payload in the second byte: over [`CONTROL_MAX_BYTES`] it follows in bytes of its own.
    #[inline]
    pub const fn short_length(self) -> u8 {
        self.0[1] & !MASK
    }

    /// Bytes of the whole header.
    #[inline]
    pub const fn header_bytes(self) -> usize {
        let key = if self.is_masked() { 4 } else { 0 };
        2 + self.length_bytes() + key
    }

    const fn length_bytes(self) -> usize {
        match self.short_length() {
            LENGTH_IN_2 => 2,
            LENGTH_IN_8 => 8,
            _ => 0,
        }
    }
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// FIN.
    pub is_final: bool,
    /// RSV1, as [`Prefix::is_compressed`].
    pub is_compressed: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// What its payload is masked with, if it is.
    pub key: Option<MaskingKey>,
    /// Length of the payload, which need not be in the fewest bytes where it is read, nor below 2^63.
    pub payload_bytes: u64,
}

impl Header {
    /// Of a frame that is a whole message, or a control frame.
    #[inline]
    pub const fn whole(opcode: Opcode, key: Option<MaskingKey>, payload_bytes: u64) -> Self {
        Self {
            is_final: true,
            is_compressed: false,
            opcode,
            key,
            payload_bytes,
        }
    }

    /// The header at the front of `bytes`; none: there is not all of it yet.
    #[inline]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let prefix = Prefix::read(bytes)?;
        let rest = bytes.get(2..prefix.header_bytes())?;
        let (length, key) = rest.split_at(prefix.length_bytes());
        Some(Self {
            is_final: prefix.is_final(),
            is_compressed: prefix.is_compressed(),
            opcode: prefix.opcode(),
            key: key.try_into().ok(),
            payload_bytes: match length {
                [] => prefix.short_length().into(),
                _ => length
                    .iter()
                    .fold(0, |length, &byte| length << 8 | u64::from(byte)),
            },
        })
    }

    /// Appends it, its length in the fewest bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; MAX_HEADER_BYTES];
        let fin = if self.is_final { FIN } else { 0 };
        let rsv1 = if self.is_compressed { RSV1 } else { 0 };
        let mask = if self.key.is_some() { MASK } else { 0 };
        bytes[0] = fin | rsv1 | self.opcode.0;
        let mut n = 2;
        match self.payload_bytes {
            short @ 0..=0x7d => bytes[1] = mask | short as u8,
            medium @ 0x7e..=0xffff => {
                bytes[1] = mask | LENGTH_IN_2;
                bytes[2..4].copy_from_slice(&(medium as u16).to_be_bytes());
                n += 2;
            }
            long => {
                bytes[1] = mask | LENGTH_IN_8;
                bytes[2..10].copy_from_slice(&long.to_be_bytes());
                n += 8;
            }
        }
        if let Some(key) = self.key {
            bytes[n..n + 4].copy_from_slice(&key);
            n += 4;
        }
        out.extend_from_slice(&bytes[..n]);
    }

    /// Appends the frame: the header, and `payload`, which is as long as it says, masked if there is a key.
    pub fn write_frame(&self, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert_eq!(self.payload_bytes, payload.len() as u64);
        out.reserve(MAX_HEADER_BYTES + payload.len());
        self.write(out);
        let from = out.len();
        out.extend_from_slice(payload);
        if let Some(key) = self.key {
            mask(&mut out[from..], key, 0);
        }
    }
}

/// A header that comes in pieces. Once it is whole it says what its frame is, until the next begins.
#[derive(Debug, Clone, Default)]
pub struct HeaderBuffer {
    bytes: [u8; MAX_HEADER_BYTES],
    /// How much of the header under way is there.
    n: u8,
}

impl HeaderBuffer {
    /// Takes what is missing of the header off the front of `input`; says how much that was.
    #[inline]
    pub fn fill(&mut self, input: &[u8]) -> usize {
        // Most headers come whole, with more behind them.
        if self.n == 0
            && let Some(window) = input.first_chunk()
        {
            self.bytes = *window;
            let n = self.prefix().header_bytes();
            self.n = n as u8;
            return n;
        }
        self.fill_bytewise(input)
    }

    fn fill_bytewise(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        while !self.is_whole()
            && let Some(&byte) = input.get(taken)
        {
            self.bytes[usize::from(self.n)] = byte;
            self.n += 1;
            taken += 1;
        }
        taken
    }

    /// Gives back the last `taken` bytes, as if they had not come.
    #[inline]
    pub fn unfill(&mut self, taken: usize) {
        self.n -= taken as u8;
    }

    /// Ends the header: the next byte begins another.
    #[inline]
    pub fn finish(&mut self) {
        self.n = 0;
    }

    /// Whether nothing has come of the header under way.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Whether nothing is missing.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.missing() == 0
    }

    /// How many bytes are missing, as far as that is known: once they are there, more may be.
    #[inline]
    pub fn missing(&self) -> usize {
        let wanted = match self.n {
            0 | 1 => 2,
            _ => self.prefix().header_bytes(),
        };
        wanted - usize::from(self.n)
    }

    /// What the first two bytes say.
    #[inline]
    pub fn prefix(&self) -> Prefix {
        Prefix([self.bytes[0], self.bytes[1]])
    }

    /// What the whole header says of the payload's length.
    #[inline]
    pub fn payload_bytes(&self) -> u64 {
        let [_, second, a, b, c, d, e, f, g, h, ..] = self.bytes;
        match second & !MASK {
            LENGTH_IN_2 => u16::from_be_bytes([a, b]).into(),
            LENGTH_IN_8 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            short => short.into(),
        }
    }

    /// The whole header.
    #[inline]
    pub fn header(&self) -> Option<Header> {
        Header::read(&self.bytes[..usize::from(self.n)])
    }

    /// The key; zeros, which mask nothing, where there is none.
    #[inline]
    pub fn key(&self) -> MaskingKey {
        let prefix = self.prefix();
        match prefix.is_masked() {
            true => {
                let end = prefix.header_bytes();
                std::array::from_fn(|i| self.bytes[end - 4 + i])
            }
            false => [0; 4],
        }
    }
}

/// Applies a mask, or takes it off. `offset`: how much of the frame's payload came before `bytes`.
pub fn mask(bytes: &mut [u8], mut key: MaskingKey, offset: u64) {
    key.rotate_left((offset % 4) as usize);
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: MaskingKey = [0x37, 0xfa, 0x21, 0x3d];

    fn written(header: Header) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        bytes
    }

    #[test]
    fn a_length_is_written_in_the_fewest_bytes() {
        for (length, bytes) in [
            (0, &[0][..]),
            (125, &[125]),
            (126, &[126, 0, 126]),
            (0xffff, &[126, 0xff, 0xff]),
            (0x1_0000, &[127, 0, 0, 0, 0, 0, 1, 0, 0]),
            (
                u64::MAX >> 1,
                &[127, 0x7f, 255, 255, 255, 255, 255, 255, 255],
            ),
        ] {
            let expected = [&[0x82], bytes].concat();
            let header = Header::whole(Opcode::BINARY, None, length);
            assert_eq!(written(header), expected, "{length}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_whole_and_in_pieces() {
        let mut all = Vec::new();
        for opcode in [0, 1, 2, 8, 9, 10].map(Opcode) {
            for key in [None, Some(KEY)] {
                for payload_bytes in [0, 125, 126, 0xffff, 0x1_0000, u64::MAX] {
                    for (is_final, is_compressed) in [(true, false), (false, true)] {
                        all.push(Header {
                            is_final,
                            is_compressed,
                            opcode,
                            key,
                            payload_bytes,
                        });
                    }
                }
            }
        }
        for header in all {
            let bytes = written(header);
            assert_eq!(Header::read(&bytes), Some(header));
            for n in 0..bytes.len() {
                assert_eq!(Header::read(&bytes[..n]), None, "{n} of {bytes:?}");
                // Once as it comes, and once with a piece that is given back.
                let mut buffer = HeaderBuffer::default();
                assert_eq!(buffer.fill(&bytes[..n]), n);
                assert_eq!((buffer.is_empty(), buffer.is_whole()), (n == 0, false));
                assert!((1..=bytes.len() - n).contains(&buffer.missing()));
                let rest = [&bytes[n..], &[0xff; 20]].concat();
                for _ in 0..2 {
                    assert_eq!(buffer.fill(&rest), bytes.len() - n);
                    assert_eq!(buffer.header(), Some(header));
                    buffer.unfill(bytes.len() - n);
                }
                buffer.fill(&rest);
                buffer.finish();
                assert!(buffer.is_empty());
                assert_eq!(buffer.payload_bytes(), header.payload_bytes);
                assert_eq!(buffer.key(), header.key.unwrap_or_default());
                assert_eq!(buffer.prefix().opcode(), header.opcode);
            }
        }
    }

    #[test]
    fn a_frame_is_that_of_the_standard() {
        // RFC 6455 section 5.7.
        let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        for (key, expected) in [(None, &b"\x81\x05Hello"[..]), (Some(KEY), masked)] {
            let mut bytes = Vec::new();
            Header::whole(Opcode::TEXT, key, 5).write_frame(b"Hello", &mut bytes);
            assert_eq!(bytes, expected);
        }
    }

    #[test]
    fn each_bit_is_where_the_standard_has_it() {
        let bits = |first| {
            let prefix = Prefix::read(&[first, 0]).unwrap();
            let (final_, compressed) = (prefix.is_final(), prefix.is_compressed());
            (final_, compressed, prefix.has_unknown_bits())
        };
        for (first, expected) in [
            (0x80, (true, false, false)),
            (0x40, (false, true, false)),
            (0x20, (false, false, true)),
            (0x10, (false, false, true)),
            (0x0f, (false, false, false)),
        ] {
            assert_eq!(bits(first), expected, "{first:#x}");
        }
    }

    #[test]
    fn opcodes_of_control_frames_and_reserved_ones_are_told_apart() {
        for n in 0..16 {
            let (control, reserved) = (Opcode(n).is_control(), Opcode(n).is_reserved());
            assert_eq!(control, n >= 8, "{n}");
            assert_eq!(reserved, (3..=7).contains(&n) || n >= 11, "{n}");
        }
    }

    #[test]
    fn a_mask_is_the_same_in_one_piece_and_in_many() {
        let plain: Vec<u8> = (0..100).collect();
        let naive: Vec<u8> = plain
            .iter()
            .enumerate()
            .map(|(i, b)| b ^ KEY[i % 4])
            .collect();
        for split in 0..=plain.len() {
            let mut pieces = plain.clone();
            let (first, second) = pieces.split_at_mut(split);
            mask(first, KEY, 0);
            mask(second, KEY, split as u64);
            assert_eq!(pieces, naive, "{split}");
        }
    }
}
