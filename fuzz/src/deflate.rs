//! Nothing is inflated past its bounds, whatever it is; and what was deflated becomes what it was.

use pointsman_protocol::messages::deflate::{
    Compressors, Deflater, InflateError, Inflater, RATIO_FROM_BYTES, accept, agreed,
};

use crate::{Input, pieces};

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let cuts = input.byte();
    let flags = input.byte();
    let keeps_context = flags & 1 == 0;
    let ratio = (flags & 2 != 0).then_some(10);
    let bits = 9 + (flags >> 2) % 7;
    let bytes = input.rest();
    inflate(bytes, cuts, keeps_context, ratio);
    round_trip(bytes, cuts, keeps_context, bits);
    if let Ok(text) = std::str::from_utf8(bytes) {
        negotiate(text);
    }
}

fn inflate(bytes: &[u8], cuts: u8, keeps_context: bool, ratio: Option<u32>) {
    const MAX: usize = 100_000;
    let window_bytes = if keeps_context { 32 << 10 } else { 0 };
    let mut inflater = Inflater::new(window_bytes, ratio);
    let mut out = Vec::new();
    for piece in pieces(bytes, cuts) {
        let inflated = inflater.piece(&piece, &mut out, MAX);
        let dense = u64::from(ratio.unwrap_or(u32::MAX)) * (bytes.len() as u64 + 4);
        match inflated {
            Ok(()) => assert!(
                out.len() <= MAX && (out.len() <= RATIO_FROM_BYTES || out.len() as u64 <= dense),
                "{} bytes of {}",
                out.len(),
                bytes.len()
            ),
            Err(InflateError::TooBig) => return assert!(out.len() == MAX + 1 || out.len() == MAX),
            Err(InflateError::TooDense | InflateError::Corrupt) => return,
        }
    }
    // Whether this is an end is the sender's business.
    let _ = inflater.end(&mut out, MAX);
}

fn round_trip(bytes: &[u8], cuts: u8, keeps_context: bool, bits: u8) {
    let compressors = Compressors::default();
    compressors.allow(1);
    let mut deflater = Deflater::new(bits, keeps_context, &compressors);
    let window_bytes = if keeps_context { 1 << bits } else { 0 };
    let mut inflater = Inflater::new(window_bytes, None);
    // The second is nothing, the third begins with an empty window, and the last refers to it.
    for (message, begins_anew) in [(bytes, false), (&[], false), (bytes, true), (bytes, false)] {
        if begins_anew {
            // Somebody else's message takes the window.
            Deflater::new(15, true, &compressors).message(bytes, &mut Vec::new());
        }
        let mut small = Vec::new();
        deflater.message(message, &mut small);
        let mut back = Vec::new();
        for piece in pieces(&small, cuts) {
            let read = inflater.piece(&piece, &mut back, message.len());
            assert_eq!(read, Ok(()), "of {} bytes", message.len());
        }
        assert_eq!(inflater.end(&mut back, message.len()), Ok(()));
        assert!(
            back == message,
            "{} bytes became {}",
            message.len(),
            back.len()
        );
    }
}

/// Whatever is offered, what we answer is an answer that we would take ourselves.
fn negotiate(offers: &str) {
    if let Some((ours, answer)) = accept(offers) {
        assert_eq!(agreed(&answer), Ok(Some(ours)), "{answer:?}");
    }
    // A refusal is as good.
    let _ = agreed(offers);
}
