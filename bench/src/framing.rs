//! Frames found in a stream of bytes, for the load generator and the backend, and the payload that
//! both know by heart.
//!
//! A [`Reader`] finds frames in whatever pieces they arrive, holds no payload and allocates nothing.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use pointsman_protocol::header::{Header, HeaderBuffer, MaskingKey, Opcode, mask};

/// Longest payload that [`payload`] has.
pub const LONGEST: usize = 1 << 20;
/// Payloads begin somewhere in so many bytes, so that neighbours differ.
const SLACK: usize = 1 << 16;

/// What an echo server answers a frame with: the same, but a pong to a ping.
pub fn answer(opcode: Opcode) -> Opcode {
    match opcode {
        Opcode::PING => Opcode::PONG,
        opcode => opcode,
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
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, key: Option<MaskingKey>, payload: &[u8]) {
    Header::whole(opcode, key, payload.len() as u64).write_frame(payload, out);
}

/// Finds frames in a stream of bytes.
#[derive(Debug, Default)]
pub struct Reader {
    header: HeaderBuffer,
    frame: Option<Frame>,
}

/// A frame whose header is known.
#[derive(Debug, Clone, Copy)]
struct Frame {
    header: Header,
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
        let header = frame.header;
        if bytes.is_empty() && header.payload_bytes > 0 {
            self.frame = Some(frame);
            return Ok(None);
        }
        let left = usize::try_from(header.payload_bytes - frame.seen).unwrap_or(usize::MAX);
        let n = left.min(bytes.len());
        let (payload, rest) = std::mem::take(bytes).split_at_mut(n);
        *bytes = rest;
        if let Some(key) = header.key {
            mask(payload, key, frame.seen);
        }
        let piece = Piece {
            opcode: header.opcode,
            is_final: header.is_final,
            frame_bytes: header.payload_bytes,
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
        let n = self.header.fill(bytes);
        *bytes = &mut std::mem::take(bytes)[n..];
        let Some(header) = self.header.header() else {
            return Ok(None);
        };
        self.header.finish();
        let prefix = self.header.prefix();
        if prefix.is_compressed() || prefix.has_unknown_bits() {
            bail!("a frame with reserved bits: {prefix:02x?}");
        }
        Ok(Some(Frame { header, seen: 0 }))
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
    fn a_compressed_frame_is_refused() {
        let mut bytes = [0xc1, 0];
        assert!(Reader::default().next(&mut bytes.as_mut_slice()).is_err());
    }
}
