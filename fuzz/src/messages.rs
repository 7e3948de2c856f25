//! The decoder shows the same messages however its input is cut, holds no more than it may, and reads
//! back what the encoder writes.

use pointsman::messages::deflate::Agreement;
use pointsman::messages::{Decoder, Encoder, End, Incoming};
use pointsman::session::handler::Received;

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

const AGREED: Agreement = Agreement {
    server_no_context_takeover: false,
    client_no_context_takeover: false,
    server_max_window_bits: 15,
    client_max_window_bits: 15,
};

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
    let decoder = |max| {
        let inflater = is_compressed.then(|| AGREED.inflater(end, None));
        Decoder::new(end, max, inflater)
    };
    let whole = shown(decoder(max), &pieces(bytes, 0), max);
    let cut = shown(decoder(max), &pieces(bytes, cuts), max);
    assert_eq!(cut, whole, "cut by {cuts}");

    // Back: what was shown is written by the other end, and read again.
    let other = if end == End::Server {
        End::Client
    } else {
        End::Server
    };
    let deflater = is_compressed.then(|| AGREED.deflater(other)).flatten();
    let mut encoder = Encoder::new(other, deflater);
    let mut written = Vec::new();
    let sent: Vec<_> = whole
        .into_iter()
        .filter(|one| write(&mut encoder, one, &mut written))
        .collect();
    let read = shown(decoder(max), &pieces(&written, cuts), max);
    assert_eq!(read, sent);
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
        // As much again for a vector that has grown, and a frame's header or a control frame.
        let held = decoder.n_held();
        assert!(held <= 2 * max + 8192, "{held} bytes held of {max}");
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
