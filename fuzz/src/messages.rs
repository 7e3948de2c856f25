//! The decoder shows the same messages however its input is cut, and the same as another library does; it
//! holds no more than it may, and reads back what the encoder writes.

use std::io::{self, Read, Write};

use pointsman_contract::message::Received;
use pointsman_protocol::messages::deflate::{Agreement, Compressors};
use pointsman_protocol::messages::{Decoder, Encoder, End, Incoming};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

use crate::{Input, pieces};

/// What came, or the code of what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Violation(u16),
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let cuts = input.byte();
    let flags = input.byte();
    let end = if flags & 1 == 0 {
        End::Server
    } else {
        End::Client
    };
    let max = usize::from(flags >> 2) * 64;
    let is_compressed = flags & 2 != 0;
    let bytes = input.rest();
    let agreed = agreement(cuts);
    let decoder = |max| {
        let inflater = is_compressed.then(|| agreed.inflater(end, None));
        Decoder::new(end, max, inflater)
    };
    let whole = shown(decoder(max), &pieces(bytes, 0), max);
    let cut = shown(decoder(max), &pieces(bytes, cuts), max);
    assert_eq!(cut, whole, "cut by {cuts}");
    if !is_compressed {
        check_as_tungstenite_reads_it(bytes, end, &whole);
    }

    // Back: what was shown is written by the other end, and read again.
    let other = if end == End::Server {
        End::Client
    } else {
        End::Server
    };
    let deflater = is_compressed
        .then(|| agreed.deflater(other, &Compressors::default()))
        .flatten();
    let mut encoder = match other {
        End::Server => Encoder::server(deflater),
        End::Client => Encoder::client(|| [0x37, 0xfa, 0x21, 0x3d], deflater),
    };
    let mut written = Vec::new();
    let sent: Vec<_> = whole
        .into_iter()
        .filter(|one| write(&mut encoder, one, &mut written))
        .collect();
    let read = shown(decoder(max), &pieces(&written, cuts), max);
    assert_eq!(read, sent);
}

/// Any that there may be, by numbers that are there.
fn agreement(n: u8) -> Agreement {
    Agreement {
        server_no_context_takeover: n & 0x40 != 0,
        client_no_context_takeover: n & 0x80 != 0,
        server_max_window_bits: 15 - n % 7,
        client_max_window_bits: 15 - n % 7,
    }
}

fn shown(mut decoder: Decoder, pieces: &[Vec<u8>], max: usize) -> Vec<Shown> {
    let mut all = Vec::new();
    for piece in pieces {
        let mut piece = piece.clone();
        let mut rest = &mut piece[..];
        loop {
            let one = match decoder.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(Incoming::Text(text))) => Shown::Text(text.to_owned()),
                Ok(Some(Incoming::Binary(bytes))) => Shown::Binary(bytes.to_vec()),
                Ok(Some(Incoming::Ping(payload))) => Shown::Ping(payload.to_vec()),
                Ok(Some(Incoming::Pong(payload))) => Shown::Pong(payload.to_vec()),
                Ok(Some(Incoming::Close(None))) => Shown::Close(None, String::new()),
                Ok(Some(Incoming::Close(Some(reason)))) => {
                    Shown::Close(Some(reason.code), reason.reason)
                }
                Err(violation) => Shown::Violation(violation.code),
            };
            let is_last = matches!(one, Shown::Close(..) | Shown::Violation(_));
            let len = match &one {
                Shown::Text(text) => text.len(),
                Shown::Binary(bytes) => bytes.len(),
                _ => 0,
            };
            assert!(len <= max, "{len} of {max} bytes");
            all.push(one);
            if is_last {
                return all;
            }
        }
        // As much again for a vector that has grown, a frame's header or a control frame, and a window with
        // what inflates by it.
        let held = decoder.n_held();
        assert!(
            held <= 2 * max + 8192 + (80 << 10),
            "{held} bytes held of {max}"
        );
    }
    all
}

/// False: it is not written.
fn write(encoder: &mut Encoder, shown: &Shown, out: &mut Vec<u8>) -> bool {
    match shown {
        Shown::Text(text) => encoder.message(Received::Text(text), out),
        Shown::Binary(bytes) => encoder.message(Received::Binary(bytes), out),
        Shown::Ping(payload) => encoder.ping(payload, out),
        Shown::Pong(payload) => encoder.pong(payload, out),
        Shown::Close(code, reason) => encoder.close(*code, reason, out),
        Shown::Violation(_) => return false,
    }
    true
}

/// It has no extensions, knows other limits, and sees what is wrong with a text at the end of its frame.
fn check_as_tungstenite_reads_it(bytes: &[u8], end: End, ours: &[Shown]) {
    let role = match end {
        End::Server => Role::Server,
        End::Client => Role::Client,
    };
    let mut limits = WebSocketConfig::default();
    limits.max_message_size = None;
    // It makes room for all that a header speaks of.
    limits.max_frame_size = Some(1 << 20);
    let mut theirs = WebSocket::from_raw_socket(Arrived(bytes), role, Some(limits));
    for ours in ours {
        let read = theirs.read();
        let is_same = match (ours, &read) {
            (Shown::Text(ours), Ok(Message::Text(text))) => ours == text.as_str(),
            (Shown::Binary(ours), Ok(Message::Binary(bytes)))
            | (Shown::Ping(ours), Ok(Message::Ping(bytes)))
            | (Shown::Pong(ours), Ok(Message::Pong(bytes))) => ours == bytes,
            // Of codes it thinks otherwise, and of 1014 it has not heard.
            (Shown::Close(..), Ok(Message::Close(_))) => return,
            (Shown::Violation(1009), _) | (_, Err(Error::Capacity(_))) => return,
            (Shown::Violation(_), Err(_) | Ok(Message::Close(_))) => return,
            // A control frame's length may be written longer than it has to be.
            (Shown::Violation(1002), Ok(Message::Ping(_) | Message::Pong(_))) => return,
            _ => false,
        };
        assert!(is_same, "{ours:?} is to others {read:?}");
    }
    let read = theirs.read();
    let is_over =
        matches!(&read, Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock);
    let is_too_big = matches!(&read, Err(Error::Capacity(_)));
    assert!(is_over || is_too_big, "nothing is to others {read:?}");
}

/// A connection on which no more comes.
struct Arrived<'a>(&'a [u8]);

impl Read for Arrived<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for Arrived<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
