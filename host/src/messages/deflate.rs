//! permessage-deflate (RFC 7692): what is agreed on in the handshake, and the two halves that follow
//! from it.
//!
//! The library is flate2 on zlib-rs: the reference implementation's behaviour (window bits, sync
//! flushes) in Rust.

use std::fmt;

use super::End;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// As it is written in `Sec-WebSocket-Extensions`.
pub const NAME: &str = "permessage-deflate";
/// What a sender leaves off the end of a message (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// zlib writes no smaller windows in raw deflate.
const MIN_WINDOW_BITS: u8 = 9;
const MAX_WINDOW_BITS: u8 = 15;
/// Messages up to this length may be as dense as they like.
pub const RATIO_FROM_BYTES: usize = 64 << 10;
/// Room that is made at a time.
const STEP_BYTES: usize = 4096;

/// What both ends have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The server begins each message with an empty window.
    pub server_no_context_takeover: bool,
    /// Likewise the client.
    pub client_no_context_takeover: bool,
    /// 8 to 15: the server's window.
    pub server_max_window_bits: u8,
    /// 8 to 15: the client's window.
    pub client_max_window_bits: u8,
}

impl Agreement {
    /// For what the other end sends to this one.
    /// `max_ratio`: see [`Inflater::new`].
    pub fn inflater(&self, end: End, max_ratio: Option<u32>) -> Inflater {
        let begins_anew = match end {
            End::Server => self.client_no_context_takeover,
            End::Client => self.server_no_context_takeover,
        };
        Inflater::new(!begins_anew, max_ratio)
    }

    /// For what this end sends. None: its window is too small to be written, so it sends everything
    /// as it is, which is allowed.
    pub fn deflater(&self, end: End) -> Option<Deflater> {
        let (bits, keeps_context) = match end {
            End::Server => (
                self.server_max_window_bits,
                !self.server_no_context_takeover,
            ),
            End::Client => (
                self.client_max_window_bits,
                !self.client_no_context_takeover,
            ),
        };
        (bits >= MIN_WINDOW_BITS).then(|| Deflater::new(bits, keeps_context))
    }
}

/// A message could not be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InflateError {
    /// Longer than allowed: noticed as soon as it is.
    TooBig,
    /// Longer than allowed for what it came as.
    TooDense,
    /// No deflate stream.
    Corrupt,
}

/// One parameter of an extension, `name` or `name=value`.
type Parameter<'a> = (&'a str, Option<&'a str>);

/// Reads a server's answer, whose parameters it was offered (RFC 7692 section 7.1). None: it has agreed
/// on no extension.
///
/// # Errors
/// It has agreed on another extension, or on parameters that there are not.
pub fn agreed(answer: &str) -> Result<Option<Agreement>, &'static str> {
    const UNREADABLE: &str = "its permessage-deflate cannot be read";
    let mut all = extensions(answer).filter(|(name, _)| !name.is_empty());
    let Some((name, parameters)) = all.next() else {
        return Ok(None);
    };
    if !name.eq_ignore_ascii_case(NAME) || all.next().is_some() {
        return Err("it agreed on an extension that is not looked into");
    }
    let mut agreed = Agreement {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        server_max_window_bits: MAX_WINDOW_BITS,
        client_max_window_bits: MAX_WINDOW_BITS,
    };
    for (name, value) in parameters.ok_or(UNREADABLE)? {
        let bits = || value.and_then(|bits| window_bits(bits, MIN_WINDOW_BITS - 1));
        match (name, value) {
            ("server_no_context_takeover", None) => agreed.server_no_context_takeover = true,
            ("client_no_context_takeover", None) => agreed.client_no_context_takeover = true,
            ("server_max_window_bits", _) => {
                agreed.server_max_window_bits = bits().ok_or(UNREADABLE)?;
            }
            ("client_max_window_bits", _) => {
                agreed.client_max_window_bits = bits().ok_or(UNREADABLE)?;
            }
            _ => return Err(UNREADABLE),
        }
    }
    Ok(Some(agreed))
}

/// What of a client's offers is permessage-deflate; none: nothing.
pub fn only_deflate(offers: &str) -> Option<String> {
    let ours = offers.split(',').map(str::trim).filter(|offer| {
        let name = offer.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(NAME)
    });
    let ours = ours.collect::<Vec<_>>().join(", ");
    Some(ours).filter(|ours| !ours.is_empty())
}

/// Takes the first acceptable offer of a client (`Sec-WebSocket-Extensions`, all fields joined by
/// commas). Also the text to answer with.
pub fn accept(offers: &str) -> Option<(Agreement, String)> {
    extensions(offers)
        .filter(|(name, _)| name.eq_ignore_ascii_case(NAME))
        .find_map(|(_, parameters)| accept_one(&parameters?))
}

fn accept_one(parameters: &[Parameter<'_>]) -> Option<(Agreement, String)> {
    let mut agreed = Agreement {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        server_max_window_bits: MAX_WINDOW_BITS,
        client_max_window_bits: MAX_WINDOW_BITS,
    };
    let mut answer = NAME.to_owned();
    let mut seen = Vec::new();
    for &(name, value) in parameters {
        let is_again = seen.contains(&name);
        seen.push(name);
        match (name, value) {
            _ if is_again => return None,
            ("server_no_context_takeover", None) => {
                agreed.server_no_context_takeover = true;
                answer += "; server_no_context_takeover";
            }
            ("client_no_context_takeover", None) => {
                agreed.client_no_context_takeover = true;
                answer += "; client_no_context_takeover";
            }
            ("server_max_window_bits", Some(bits)) => {
                agreed.server_max_window_bits = window_bits(bits, MIN_WINDOW_BITS)?;
                answer += &format!("; server_max_window_bits={bits}");
            }
            // A hint that it could: nothing follows from it, for any window can be inflated.
            ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(bits)) => {
                agreed.client_max_window_bits = window_bits(bits, MIN_WINDOW_BITS - 1)?;
                answer += &format!("; client_max_window_bits={bits}");
            }
            _ => return None,
        }
    }
    Some((agreed, answer))
}

fn window_bits(text: &str, min: u8) -> Option<u8> {
    // Without leading zeros (RFC 7692 section 7.1.2.1).
    let bits: u8 = text.parse().ok().filter(|_| !text.starts_with('0'))?;
    (min..=MAX_WINDOW_BITS).contains(&bits).then_some(bits)
}

/// Each extension with its parameters; without them where they cannot be read.
fn extensions(list: &str) -> impl Iterator<Item = (&str, Option<Vec<Parameter<'_>>>)> {
    list.split(',').map(|extension| {
        let mut parts = extension.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        (name, parts.map(parameter).collect())
    })
}

fn parameter(part: &str) -> Option<Parameter<'_>> {
    let Some((name, value)) = part.split_once('=') else {
        return (!part.is_empty()).then_some((part, None));
    };
    let value = value.trim();
    // A value may be quoted, and has to be a token then too.
    let unquoted = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => value,
    };
    Some((name.trim(), Some(unquoted)))
}

/// Makes messages smaller. Holds memory (some 260 KiB at the widest window) from the first message on,
/// or within one only where none refers to those before it.
pub struct Deflater {
    window_bits: u8,
    keeps_context: bool,
    stream: Option<Compress>,
}

impl Deflater {
    /// `window_bits`: 9 to 15. `keeps_context`: a message may refer to those before it.
    pub fn new(window_bits: u8, keeps_context: bool) -> Self {
        Self {
            window_bits,
            keeps_context,
            stream: None,
        }
    }

    /// Appends a whole message.
    pub fn message(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if payload.is_empty() {
            // Nothing makes no block, and a message has to have one (RFC 7692 section 7.2.3.6).
            return out.push(0x00);
        }
        let make = || Compress::new_with_window_bits(Compression::fast(), false, self.window_bits);
        let stream = self.stream.get_or_insert_with(make);
        let (begun, from) = (stream.total_in(), out.len());
        loop {
            out.reserve(STEP_BYTES.max(payload.len() / 4));
            let taken = (stream.total_in() - begun) as usize;
            // Only wrong parameters could fail here.
            let compressed = stream.compress_vec(&payload[taken..], out, FlushCompress::Sync);
            debug_assert!(compressed.is_ok());
            let is_all_in = stream.total_in() - begun == payload.len() as u64;
            if is_all_in && out.len() < out.capacity() {
                break;
            }
        }
        if out[from..].ends_with(&TAIL) {
            out.truncate(out.len() - TAIL.len());
        }
        if !self.keeps_context {
            self.stream = None;
        }
    }
}

/// Makes messages what they were. Holds memory (some 40 KiB) as a [`Deflater`] does.
pub struct Inflater {
    keeps_context: bool,
    max_ratio: Option<u32>,
    /// Of the message under way, as it came.
    n_taken: u64,
    stream: Option<Decompress>,
}

impl Inflater {
    /// `keeps_context`: a message may refer to those before it. `max_ratio`: how many times as long as
    /// it came a message may become, from [`RATIO_FROM_BYTES`] on.
    pub fn new(keeps_context: bool, max_ratio: Option<u32>) -> Self {
        Self {
            keeps_context,
            max_ratio,
            n_taken: 0,
            stream: None,
        }
    }

    /// Appends what a piece of a message comes to; `out` may become no longer than `max`.
    ///
    /// # Errors
    /// See [`InflateError`]; the message, and with it the stream, is lost.
    pub fn piece(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        max: usize,
    ) -> Result<(), InflateError> {
        let make = || Decompress::new_with_window_bits(false, MAX_WINDOW_BITS);
        let stream = self.stream.get_or_insert_with(make);
        let mut taken = 0;
        loop {
            // One byte of room more than is allowed tells a message that fits from one that does not.
            let room = (max.saturating_add(1))
                .saturating_sub(out.len())
                .min(STEP_BYTES.max(input.len() * 2));
            if room == 0 {
                return Err(InflateError::TooBig);
            }
            let before = out.len();
            out.resize(before + room, 0);
            let (read, written) = (stream.total_in(), stream.total_out());
            let status =
                stream.decompress(&input[taken..], &mut out[before..], FlushDecompress::Sync);
            taken += (stream.total_in() - read) as usize;
            let n = (stream.total_out() - written) as usize;
            out.truncate(before + n);
            // Before what is corrupt, which comes behind it.
            if out.len() > max {
                return Err(InflateError::TooBig);
            }
            match status {
                Err(_) => return Err(InflateError::Corrupt),
                // A final block within a message: legal, and the stream begins anew behind it.
                Ok(Status::StreamEnd) => stream.reset(false),
                Ok(Status::Ok | Status::BufError) => {}
            }
            let is_dense =
                |ratio| out.len() as u64 > (self.n_taken + taken as u64) * u64::from(ratio);
            if out.len() > RATIO_FROM_BYTES && self.max_ratio.is_some_and(is_dense) {
                return Err(InflateError::TooDense);
            }
            if taken == input.len() && n < room {
                self.n_taken += taken as u64;
                return Ok(());
            }
        }
    }

    /// The message has come to its end.
    ///
    /// # Errors
    /// As [`Inflater::piece`].
    pub fn end(&mut self, out: &mut Vec<u8>, max: usize) -> Result<(), InflateError> {
        self.piece(&TAIL, out, max)?;
        self.n_taken = 0;
        if !self.keeps_context {
            self.stream = None;
        }
        Ok(())
    }
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater").finish_non_exhaustive()
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(offers: &str) -> Option<String> {
        accept(offers).map(|(_, answer)| answer)
    }

    #[test]
    fn the_first_acceptable_offer_is_taken() {
        for (offers, expected) in [
            ("permessage-deflate", Some("permessage-deflate")),
            (
                "permessage-deflate; client_max_window_bits",
                Some("permessage-deflate"),
            ),
            (
                "x, Permessage-Deflate; server_no_context_takeover; client_no_context_takeover",
                Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
            ),
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=\"10\"",
                Some("permessage-deflate; server_max_window_bits=10"),
            ),
            (
                "permessage-deflate; client_max_window_bits=8",
                Some("permessage-deflate; client_max_window_bits=8"),
            ),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=010", None),
            ("permessage-deflate; client_no_context_takeover=1", None),
            ("permessage-deflate; mystery", None),
            (
                "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
                None,
            ),
            ("permessage-deflate;", None),
            ("deflate-frame", None),
            ("", None),
        ] {
            assert_eq!(answer(offers).as_deref(), expected, "{offers}");
        }
    }

    #[test]
    fn a_servers_answer_is_read() {
        let check = |answer: &str, expected: Result<Option<(bool, bool, u8, u8)>, ()>| {
            let agreed = agreed(answer).map_err(|_| ()).map(|agreed| {
                agreed.map(|agreed| {
                    (
                        agreed.server_no_context_takeover,
                        agreed.client_no_context_takeover,
                        agreed.server_max_window_bits,
                        agreed.client_max_window_bits,
                    )
                })
            });
            assert_eq!(agreed, expected, "{answer}");
        };
        check("", Ok(None));
        check("permessage-deflate", Ok(Some((false, false, 15, 15))));
        check(
            "permessage-deflate; server_no_context_takeover; client_max_window_bits=8",
            Ok(Some((true, false, 15, 8))),
        );
        check(
            "Permessage-Deflate;client_no_context_takeover;server_max_window_bits=\"9\"",
            Ok(Some((false, true, 9, 15))),
        );
        check("permessage-deflate; client_max_window_bits", Err(()));
        check("permessage-deflate; server_max_window_bits=16", Err(()));
        check("permessage-deflate; other", Err(()));
        check("permessage-deflate, permessage-deflate", Err(()));
        check("x-webkit-deflate-frame", Err(()));
    }

    #[test]
    fn of_the_offers_only_those_that_are_understood_are_handed_on() {
        let check = |offers: &str, expected: Option<&str>| {
            assert_eq!(only_deflate(offers).as_deref(), expected, "{offers}");
        };
        check("", None);
        check("x-webkit-deflate-frame", None);
        check(
            "x-a, permessage-deflate; client_max_window_bits,permessage-deflate",
            Some("permessage-deflate; client_max_window_bits, permessage-deflate"),
        );
    }

    fn texts() -> Vec<Vec<u8>> {
        let long: Vec<u8> = (0..200_000_u32)
            .map(|i| (i.wrapping_mul(i) >> 7) as u8)
            .collect();
        vec![
            b"Hello".to_vec(),
            b"Hello".to_vec(),
            Vec::new(),
            b"Hello, Hello, Hello".to_vec(),
            vec![b'a'; 100_000],
            long,
            b"Hello".to_vec(),
        ]
    }

    #[test]
    fn what_goes_in_comes_out_with_and_without_context() {
        for keeps_context in [true, false] {
            for window_bits in [9, 12, 15] {
                let mut deflater = Deflater::new(window_bits, keeps_context);
                let mut inflater = Inflater::new(keeps_context, None);
                for text in texts() {
                    let (mut small, mut whole) = (Vec::new(), Vec::new());
                    deflater.message(&text, &mut small);
                    // In pieces of any size.
                    for piece in small.chunks(7) {
                        inflater.piece(piece, &mut whole, usize::MAX - 1).unwrap();
                    }
                    inflater.end(&mut whole, usize::MAX - 1).unwrap();
                    assert!(
                        whole == text,
                        "{keeps_context} {window_bits} {}",
                        text.len()
                    );
                }
            }
        }
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7692 sections 7.2.3.1 to 7.2.3.5.
        let hello = |bytes: &[u8]| {
            let (mut inflater, mut out) = (Inflater::new(true, None), Vec::new());
            inflater.piece(bytes, &mut out, 100).unwrap();
            inflater.end(&mut out, 100).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(hello(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]), "Hello");
        let stored = [
            0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00,
        ];
        assert_eq!(hello(&stored), "Hello");
        let with_final_block = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
        assert_eq!(hello(&with_final_block), "Hello");
        let two_blocks = [
            0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
        ];
        assert_eq!(hello(&two_blocks), "Hello");
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit_and_not_after_it() {
        let mut small = Vec::new();
        Deflater::new(15, false).message(&vec![0; 10_000_000], &mut small);
        assert!(small.len() < 100_000, "{}", small.len());
        let (mut inflater, mut out) = (Inflater::new(false, None), Vec::new());
        assert_eq!(
            inflater.piece(&small, &mut out, 65_536),
            Err(InflateError::TooBig)
        );
        assert!(out.capacity() <= 4 * 65_536, "{}", out.capacity());
    }

    #[test]
    fn a_message_may_not_be_denser_than_allowed() {
        let small = |payload: &[u8]| {
            let mut small = Vec::new();
            Deflater::new(15, true).message(payload, &mut small);
            small
        };
        let words: Vec<u8> = (0..200_000_u32)
            .map(|i| (i / 7 % 26) as u8 + b'a')
            .collect();
        for (payload, ratio, expected) in [
            (vec![0; 60_000], 10, Ok(())),
            (vec![0; 200_000], 100, Err(InflateError::TooDense)),
            (vec![0; 200_000], 2_000, Ok(())),
            (words, 500, Ok(())),
        ] {
            let (mut inflater, mut out) = (Inflater::new(true, Some(ratio)), Vec::new());
            // The second message begins to count anew.
            for _ in 0..2 {
                out.clear();
                let inflated = inflater.piece(&small(&payload), &mut out, 1 << 20);
                let inflated = inflated.and_then(|()| inflater.end(&mut out, 1 << 20));
                assert_eq!(inflated, expected, "{} {ratio}", payload.len());
                if inflated.is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_message_of_exactly_the_limit_fits() {
        let text = vec![b'x'; 5000];
        let mut small = Vec::new();
        Deflater::new(15, false).message(&text, &mut small);
        let mut inflater = Inflater::new(false, None);
        let mut out = Vec::new();
        inflater.piece(&small, &mut out, 5000).unwrap();
        inflater.end(&mut out, 5000).unwrap();
        assert_eq!(out.len(), 5000);
        let mut out = Vec::new();
        let ended = inflater
            .piece(&small, &mut out, 4999)
            .and_then(|()| inflater.end(&mut out, 4999));
        assert_eq!(ended, Err(InflateError::TooBig));
    }

    #[test]
    fn garbage_is_corrupt() {
        let (mut inflater, mut out) = (Inflater::new(true, None), Vec::new());
        let garbage = [0xff, 0xff, 0xff, 0xff];
        assert_eq!(
            inflater.piece(&garbage, &mut out, 100),
            Err(InflateError::Corrupt)
        );
    }
}
