//! The frame tracker says of any bytes, cut anywhere, what a decoder says that sees them whole.

use pointsman_protocol::frames::FrameTracker;

use crate::{Input, pieces};

/// What is known of a stream of frames.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    messages: u64,
    close: Option<Option<u16>>,
    /// How many bytes were before the end of each frame.
    ends: Vec<usize>,
    is_between_frames: bool,
    is_between_messages: bool,
    /// Then the boundaries count as reached: how much of a header was taken depends on the pieces.
    is_too_big: bool,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let cuts = input.byte();
    let max = match input.byte() {
        0 => u64::MAX,
        n => u64::from(n) * 8,
    };
    let bytes = input.rest();
    let expected = decode(bytes, max);
    for skips in [false, true] {
        let tracked = track(&pieces(bytes, cuts), max, skips);
        assert_eq!(tracked, expected, "{cuts} {max} {skips}");
    }
}

/// `skips`: payload is passed over where it may be, as a relay does that moves it in the kernel.
fn track(pieces: &[Vec<u8>], max: u64, skips: bool) -> Seen {
    let mut tracker = FrameTracker::new(max);
    let mut is_too_big = false;
    let mut ends = Vec::new();
    let mut at = 0;
    for piece in pieces {
        let mut rest = &piece[..];
        while !rest.is_empty() && !is_too_big {
            let passed = match tracker.skippable().min(rest.len() as u64) {
                n @ 1.. if skips => {
                    tracker.skip(n);
                    Ok(n as usize)
                }
                _ => tracker.frame(rest),
            };
            match passed {
                Ok(n) => {
                    assert!((1..=rest.len()).contains(&n), "{n} of {}", rest.len());
                    rest = &rest[n..];
                    at += n;
                    if tracker.is_between_frames() {
                        ends.push(at);
                    }
                }
                Err(_) => is_too_big = true,
            }
        }
    }
    Seen {
        messages: tracker.messages(),
        close: tracker.close(),
        ends,
        is_between_frames: is_too_big || tracker.is_between_frames(),
        is_between_messages: is_too_big || tracker.is_between_messages(),
        is_too_big,
    }
}

/// RFC 6455 section 5.2, read the plainest way.
fn decode(bytes: &[u8], max: u64) -> Seen {
    let mut seen = Seen {
        messages: 0,
        close: None,
        ends: Vec::new(),
        is_between_frames: true,
        is_between_messages: true,
        is_too_big: false,
    };
    let (mut at, mut message_bytes) = (0, 0_u64);
    let mut is_in_message = false;
    while at < bytes.len() {
        seen.is_between_frames = false;
        seen.is_between_messages = false;
        let Some(header) = header(&bytes[at..]) else {
            return seen;
        };
        let is_control = header.opcode & 8 != 0;
        let is_too_big = if is_control {
            header.payload > max.max(125)
        } else {
            let begun = match is_in_message && header.opcode == 0 {
                true => message_bytes,
                false => 0,
            };
            message_bytes = begun.saturating_add(header.payload);
            message_bytes > max
        };
        if is_too_big {
            return Seen {
                is_too_big: true,
                is_between_frames: true,
                is_between_messages: true,
                ..seen
            };
        }
        if !is_control {
            is_in_message = !header.is_final;
        }
        let begin = at + header.len;
        let end = usize::try_from(header.payload)
            .ok()
            .and_then(|n| begin.checked_add(n));
        let payload = &bytes[begin.min(bytes.len())..end.unwrap_or(usize::MAX).min(bytes.len())];
        if header.opcode == 8 && seen.close.is_none() {
            seen.close = close(&header, payload);
        }
        match end {
            Some(end) if end <= bytes.len() => at = end,
            _ => return seen,
        }
        if !is_control && header.is_final {
            seen.messages += 1;
        }
        seen.ends.push(at);
        seen.is_between_frames = true;
        seen.is_between_messages = !is_in_message;
    }
    seen
}

struct Header {
    is_final: bool,
    opcode: u8,
    len: usize,
    payload: u64,
    key: [u8; 4],
}

fn header(bytes: &[u8]) -> Option<Header> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let number = |range: std::ops::Range<usize>| {
        let bytes = bytes.get(range)?.iter();
        Some(bytes.fold(0, |n, byte| n << 8 | u64::from(*byte)))
    };
    let (mut len, payload) = match second & 0x7f {
        126 => (4, number(2..4)?),
        127 => (10, number(2..10)?),
        short => (2, u64::from(short)),
    };
    let mut key = [0; 4];
    if second & 0x80 != 0 {
        key.copy_from_slice(bytes.get(len..len + 4)?);
        len += 4;
    }
    Some(Header {
        is_final: first & 0x80 != 0,
        opcode: first & 0x0f,
        len,
        payload,
        key,
    })
}

/// None: not all that there will be of the code has come.
fn close(header: &Header, payload: &[u8]) -> Option<Option<u16>> {
    let byte = |i: usize| Some(payload.get(i)? ^ header.key[i]);
    match header.payload {
        0 => Some(None),
        1 => byte(0).map(|_| None),
        _ => Some(Some(u16::from_be_bytes([byte(0)?, byte(1)?]))),
    }
}
