//! Frames (RFC 6455 section 5.2) as bytes, for the load generator and the backend, and the payload
//! that both know by heart.
//!
//! A [`Reader`] finds frames in whatever pieces they arrive, holds no payload and allocates nothing.

use std::sync::OnceLock;

use anyhow::{Result, bail};

/// Longest payload that [`payload`] has.
pub const LONGEST: usize = 1 << 20;
/// Payloads begin somewhere in so many bytes, so that neighbours differ.
const SLACK: usize = 1 << 16;
/// Longest header: two bytes, a length of eight, a key of four.
const LONGEST_HEADER: usize = 14;

/// What a frame is (RFC 6455 section 11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opcode(u8);

impl Opcode {
    /// A message of text.
    pub const TEXT: Self = Self(1);
    /// A message of bytes.
    pub const BINARY: Self = Self(2);
    /// The last frame of a connection.
    pub const CLOSE: Self = Self(8);
    const PING: Self = Self(9);
    const PONG: Self = Self(10);

    /// What an echo server answers with: itself, but a pong to a ping.
    #[must_use]
    pub fn answer(self) -> Self {
        if self == Self::PING { Self::PONG } else { self }
    }
}

/// The payload of message `sequence` of a connection: pseudo-random, and the same on either side.
///
/// # Panics
/// `bytes` is over [`LONGEST`].
pub fn payload(connection: usize, sequence: u64, bytes: usize) -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table = vec![0; LONGEST + SLACK];
        fastrand::Rng::with_seed(6455).fill(&mut table);
        table
    });
    let sequence = usize::try_from(sequence).unwrap_or_default();
    let start = connection
        .wrapping_mul(7919)
        .wrapping_add(sequence.wrapping_mul(31))
        % SLACK;
    &table[start..start + bytes]
}

/// Appends a whole, final frame; masked, if there is a key.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, key: Option<[u8; 4]>, payload: &[u8]) {
    write_header(out, opcode, true, key, payload.len() as u64);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = key {
        mask(&mut out[start..], key, 0);
    }
}

/// Appends the header of a frame with so many bytes of payload.
pub fn write_header(
    out: &mut Vec<u8>,
    opcode: Opcode,
    is_final: bool,
    key: Option<[u8; 4]>,
    bytes: u64,
) {
    out.push(opcode.0 | if is_final { 0x80 } else { 0 });
    let masked = if key.is_some() { 0x80 } else { 0 };
    match (u8::try_from(bytes), u16::try_from(bytes)) {
        (Ok(short @ ..126), _) => out.push(masked | short),
        (_, Ok(medium)) => {
            out.push(masked | 126);
            out.extend(medium.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend(bytes.to_be_bytes());
        }
    }
    out.extend(key.into_iter().flatten());
}

/// Masks or unmasks, the first byte being byte `offset` of the frame's payload (RFC 6455 section 5.3).
fn mask(bytes: &mut [u8], mut key: [u8; 4], offset: u64) {
    key.rotate_left(usize::from(offset.to_le_bytes()[0] & 3));
    let wide = u32::from_ne_bytes(key);
    let (chunks, rest) = bytes.as_chunks_mut::<4>();
    for chunk in chunks {
        *chunk = (u32::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// Finds frames in a stream of bytes.
#[derive(Debug, Default)]
pub struct Reader {
    header: [u8; LONGEST_HEADER],
    header_bytes: usize,
    frame: Option<Frame>,
}

/// A frame whose header is known.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: Opcode,
    is_final: bool,
    key: Option<[u8; 4]>,
    bytes: u64,
    seen: u64,
}

/// A piece of a frame's payload, unmasked; a frame without payload has one empty piece.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Of the frame.
    pub opcode: Opcode,
    /// Whether the frame ends its message.
    pub is_final: bool,
    /// Payload of the whole frame, in bytes.
    pub frame_bytes: u64,
    /// Where in it this piece begins.
    pub offset: u64,
    /// The piece.
    pub payload: &'a [u8],
}

impl Piece<'_> {
    /// Whether it begins its frame.
    pub fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// Whether it ends its frame.
    pub fn is_last(&self) -> bool {
        self.offset + self.payload.len() as u64 == self.frame_bytes
    }
}

impl Reader {
    /// The next piece in `bytes`, which is shortened by what was read. None if they are used up.
    ///
    /// # Errors
    /// A bit is set that no extension was agreed on for.
    pub fn next<'a>(&mut self, bytes: &mut &'a mut [u8]) -> Result<Option<Piece<'a>>> {
        let Some(mut frame) = self
            .frame
            .take()
            .map_or_else(|| self.header(bytes), |frame| Ok(Some(frame)))?
        else {
            return Ok(None);
        };
        if bytes.is_empty() && frame.bytes > 0 {
            self.frame = Some(frame);
            return Ok(None);
        }
        let left = usize::try_from(frame.bytes - frame.seen).unwrap_or(usize::MAX);
        let n = left.min(bytes.len());
        let (payload, rest) = std::mem::take(bytes).split_at_mut(n);
        *bytes = rest;
        if let Some(key) = frame.key {
            mask(payload, key, frame.seen);
        }
        let piece = Piece {
            opcode: frame.opcode,
            is_final: frame.is_final,
            frame_bytes: frame.bytes,
            offset: frame.seen,
            payload,
        };
        frame.seen += payload.len() as u64;
        if !piece.is_last() {
            self.frame = Some(frame);
        }
        Ok(Some(piece))
    }

    fn header(&mut self, bytes: &mut &mut [u8]) -> Result<Option<Frame>> {
        loop {
            let wanted = self.wanted();
            if self.header_bytes == wanted {
                self.header_bytes = 0;
                return self.parsed(wanted).map(Some);
            }
            let n = bytes.len().min(wanted - self.header_bytes);
            if n == 0 {
                return Ok(None);
            }
            let (taken, rest) = std::mem::take(bytes).split_at_mut(n);
            *bytes = rest;
            self.header[self.header_bytes..][..n].copy_from_slice(taken);
            self.header_bytes += n;
        }
    }

    /// Bytes of the header, as far as it is known.
    fn wanted(&self) -> usize {
        if self.header_bytes < 2 {
            return 2;
        }
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.header[1] & 0x80 == 0 { 0 } else { 4 }
    }

    fn parsed(&self, header_bytes: usize) -> Result<Frame> {
        let [first, second, rest @ ..] = self.header;
        if first & 0x70 != 0 {
            bail!("a frame with reserved bits: {first:#04x}");
        }
        let bytes = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => u64::from_be_bytes(std::array::from_fn(|i| rest[i])),
            short => u64::from(short),
        };
        let key = (second & 0x80 != 0)
            .then(|| std::array::from_fn(|i| self.header[header_bytes - 4 + i]));
        Ok(Frame {
            opcode: Opcode(first & 0x0f),
            is_final: first & 0x80 != 0,
            key,
            bytes,
            seen: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// Reads `stream` in pieces of `step` bytes; each frame as opcode and payload.
    fn frames(stream: &[u8], step: usize) -> Vec<(Opcode, Vec<u8>)> {
        let mut reader = Reader::default();
        let mut found = vec![];
        let mut frame = vec![];
        for piece in stream.chunks(step) {
            let mut piece = piece.to_vec();
            let mut bytes = piece.as_mut_slice();
            while let Some(piece) = reader.next(&mut bytes).unwrap() {
                assert_eq!(piece.is_first(), frame.is_empty());
                frame.extend_from_slice(piece.payload);
                if piece.is_last() {
                    found.push((piece.opcode, std::mem::take(&mut frame)));
                }
            }
        }
        found
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        for key in [None, Some(KEY)] {
            let messages = [0, 1, 5, 125, 126, 127, 65_535, 65_536, 3]
                .map(|n| payload(1, n as u64, n).to_vec());
            let mut stream = vec![];
            for message in &messages {
                write_frame(&mut stream, Opcode::BINARY, key, message);
            }
            for step in [1, 2, 3, 7, 4096, stream.len()] {
                let found: Vec<_> = frames(&stream, step)
                    .into_iter()
                    .map(|(_, payload)| payload)
                    .collect();
                assert!(found == messages, "in pieces of {step}");
            }
        }
    }

    #[test]
    fn a_masked_text_is_that_of_the_standard() {
        // RFC 6455 section 5.7.
        let hello = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(frames(&hello, 4), [(Opcode(1), b"Hello".to_vec())]);
        let mut written = vec![];
        write_frame(&mut written, Opcode(1), Some(KEY), b"Hello");
        assert_eq!(written, hello);
    }

    #[test]
    fn a_compressed_frame_is_refused() {
        let mut bytes = [0xc1, 0];
        assert!(Reader::default().next(&mut bytes.as_mut_slice()).is_err());
    }
}
