//! permessage-deflate (RFC 7692): what is agreed on in the handshake, and the two halves that follow
//! from it.
//!
//! The library is flate2 on zlib-rs: the reference implementation's behaviour (window bits, sync
//! flushes) in Rust.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::End;

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
/// For all of a worker's sessions. Where more than so many compress in turn, each message begins with an empty
/// window and comes to half as many bytes again. A window for each would take more time (43 us of an echo of
/// 1.5 KiB by one of a thousand, and 28 with these), for it is in no cache when its turn comes.
const MAX_WINDOWS: usize = 32;
/// Calls of [`Compressors::age`] after which a window is let go.
const IDLE_AGE: u8 = 4;
/// What a [`Compress`] of zlib-rs takes beside four times its window: hash heads of 128 KiB, and what it
/// touches of buffers for symbols and output.
const DEFLATER_BYTES: usize = 144 << 10;
/// What a [`Decompress`] takes: a window of 32 KiB and its tables.
const INFLATER_BYTES: usize = 44 << 10;

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
        Inflater::new(self.window_bytes(end), max_ratio)
    }

    /// How far back a message of the other end may refer into those before it. 0: not at all.
    pub fn window_bytes(&self, end: End) -> usize {
        let (bits, begins_anew) = match end {
            End::Server => (self.client_max_window_bits, self.client_no_context_takeover),
            End::Client => (self.server_max_window_bits, self.server_no_context_takeover),
        };
        match begins_anew {
            true => 0,
            // Where 8 was agreed on, zlib uses 9.
            false => 1 << bits.max(MIN_WINDOW_BITS),
        }
    }

    /// For what this end sends. None: its window is too small to be written, so it sends everything
    /// as it is, which is allowed.
    pub fn deflater(&self, end: End, compressors: &Compressors) -> Option<Deflater> {
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
        (bits >= MIN_WINDOW_BITS).then(|| Deflater::new(bits, keeps_context, compressors))
    }
}

/// To an answer of ours: has the client begin each message with an empty window, whether or not it has
/// offered to (RFC 7692 section 7.1.1.2).
pub fn without_client_context(agreed: &mut Agreement, answer: &mut String) {
    if !agreed.client_no_context_takeover {
        agreed.client_no_context_takeover = true;
        *answer += "; client_no_context_takeover";
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

/// What compresses for all of a worker's sessions: windows of some 270 KiB, far fewer than there are sessions.
///
/// A window belongs to the session that has used it last. When all are taken, the one that was not used for
/// longest goes to whoever needs one; its session goes on with an empty window, which is always allowed: a
/// message may refer to those before it, and need not (RFC 7692 section 7.1.1).
#[derive(Debug, Clone, Default)]
pub struct Compressors(Rc<RefCell<Shared>>);

struct Shared {
    max: usize,
    slots: Vec<CompressorSlot>,
    /// Deflaters so far, of which each has its number.
    n_deflaters: u64,
    /// Messages and ages so far: the clock by which a slot is the oldest.
    now: u64,
}

struct CompressorSlot {
    stream: Compress,
    window_bits: u8,
    /// 0: nobody.
    owner: u64,
    used_at: u64,
    /// Calls of [`Compressors::age`] since it was used.
    age: u8,
}

impl Compressors {
    /// There may be so many windows from now on, at least one.
    pub fn allow(&self, max: usize) {
        let mut all = self.0.borrow_mut();
        all.max = max.max(1);
        while all.slots.len() > all.max {
            let oldest = all.oldest();
            all.slots.swap_remove(oldest);
        }
    }

    /// To be called twice a second: lets go of what was not used for two seconds.
    pub fn age(&self) {
        self.0.borrow_mut().slots.retain_mut(|slot| {
            slot.age += 1;
            slot.age < IDLE_AGE
        });
    }

    /// Memory for the windows.
    pub fn n_held(&self) -> usize {
        let all = self.0.borrow();
        let windows = all.slots.iter().map(|slot| window_bytes(slot.window_bits));
        windows.sum()
    }
}

impl Shared {
    /// The window of this deflater, or an empty one that is its own from now on.
    fn of(&mut self, owner: u64, window_bits: u8) -> &mut CompressorSlot {
        self.now += 1;
        let place = match self.slots.iter().position(|slot| slot.owner == owner) {
            Some(own) => own,
            None => self.empty(window_bits),
        };
        let slot = &mut self.slots[place];
        (slot.owner, slot.used_at, slot.age) = (owner, self.now, 0);
        slot
    }

    fn empty(&mut self, window_bits: u8) -> usize {
        if self.slots.len() < self.max {
            self.slots.push(CompressorSlot::new(window_bits));
            return self.slots.len() - 1;
        }
        let oldest = self.oldest();
        match &mut self.slots[oldest] {
            slot if slot.window_bits == window_bits => slot.stream.reset(),
            slot => *slot = CompressorSlot::new(window_bits),
        }
        oldest
    }

    /// Where there is one at all.
    fn oldest(&self) -> usize {
        let oldest = (self.slots.iter().enumerate()).min_by_key(|(_, slot)| slot.used_at);
        oldest.map_or(0, |(place, _)| place)
    }
}

impl CompressorSlot {
    fn new(window_bits: u8) -> Self {
        Self {
            stream: Compress::new_with_window_bits(Compression::fast(), false, window_bits),
            window_bits,
            owner: 0,
            used_at: 0,
            age: 0,
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            max: MAX_WINDOWS,
            slots: Vec::new(),
            n_deflaters: 0,
            now: 0,
        }
    }
}

/// How many windows there may be in so much memory.
pub fn windows_in(n_bytes: usize) -> usize {
    (n_bytes / window_bytes(MAX_WINDOW_BITS)).min(MAX_WINDOWS)
}

fn window_bytes(window_bits: u8) -> usize {
    (4 << window_bits) + DEFLATER_BYTES
}

/// Makes messages smaller.
#[derive(Debug)]
pub struct Deflater {
    window_bits: u8,
    keeps_context: bool,
    number: u64,
    compressors: Compressors,
}

impl Deflater {
    /// `window_bits`: 9 to 15. `keeps_context`: a message may refer to those before it.
    pub fn new(window_bits: u8, keeps_context: bool, compressors: &Compressors) -> Self {
        let mut all = compressors.0.borrow_mut();
        all.n_deflaters += 1;
        Self {
            window_bits,
            keeps_context,
            number: all.n_deflaters,
            compressors: compressors.clone(),
        }
    }

    /// Appends a whole message.
    pub fn message(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if payload.is_empty() {
            // Nothing makes no block, and a message has to have one (RFC 7692 section 7.2.3.6).
            return out.push(0x00);
        }
        let mut all = self.compressors.0.borrow_mut();
        let slot = all.of(self.number, self.window_bits);
        let stream = &mut slot.stream;
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
            stream.reset();
        }
    }
}

impl Drop for Deflater {
    /// Its window is the next to be taken.
    fn drop(&mut self) {
        let mut all = self.compressors.0.borrow_mut();
        let own = all.slots.iter_mut().find(|slot| slot.owner == self.number);
        if let Some(slot) = own {
            (slot.owner, slot.used_at) = (0, 0);
        }
    }
}

/// Makes messages what they were. Between two of them it holds what the next may refer to, and nothing
/// else.
pub struct Inflater {
    window: Window,
    max_ratio: Option<u32>,
    /// Of the message under way, as it came.
    n_taken: u64,
    /// Of the message under way.
    stream: Option<Decompress>,
}

impl Inflater {
    /// `window_bytes`: how far back a message may refer into those before it. `max_ratio`: how many times
    /// as long as it came a message may become, from [`RATIO_FROM_BYTES`] on.
    pub fn new(window_bytes: usize, max_ratio: Option<u32>) -> Self {
        Self {
            window: Window::new(window_bytes),
            max_ratio,
            n_taken: 0,
            stream: None,
        }
    }

    /// Appends what a piece of a message comes to; `out` has what came before it of this message, and may
    /// become no longer than `max`.
    ///
    /// # Errors
    /// See [`InflateError`]; the message, and with it the stream, is lost.
    pub fn piece(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        max: usize,
    ) -> Result<(), InflateError> {
        let stream = self.stream.get_or_insert_with(|| self.window.stream());
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
                // A final block within a message: legal, and the stream starts over behind it.
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

    /// The message has come to its end; `out` is all of it.
    ///
    /// # Errors
    /// As [`Inflater::piece`].
    pub fn end(&mut self, out: &mut Vec<u8>, max: usize) -> Result<(), InflateError> {
        self.piece(&TAIL, out, max)?;
        self.n_taken = 0;
        self.stream = None;
        self.window.push(out);
        Ok(())
    }

    /// Memory for what messages may refer to, and for the stream of one that is not whole yet.
    pub fn n_held(&self) -> usize {
        let stream = self.stream.as_ref().map_or(0, |_| INFLATER_BYTES);
        self.window.bytes.capacity() + stream
    }
}

/// The last bytes of what a peer has sent, in a ring.
struct Window {
    max: usize,
    /// Grows to `max`, and has its oldest byte at `oldest` then.
    bytes: Vec<u8>,
    oldest: usize,
}

impl Window {
    fn new(max: usize) -> Self {
        Self {
            max,
            bytes: Vec::new(),
            oldest: 0,
        }
    }

    /// What inflates a message that may refer to these bytes.
    fn stream(&self) -> Decompress {
        let mut stream = Decompress::new_with_window_bits(false, MAX_WINDOW_BITS);
        let (newer, older) = self.bytes.split_at(self.oldest);
        for bytes in [older, newer] {
            // Raw deflate takes any bytes for its dictionary, and one piece after the other.
            let taken = bytes.is_empty() || stream.set_dictionary(bytes).is_ok();
            debug_assert!(taken);
        }
        stream
    }

    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.max)..];
        let (grown, bytes) = bytes.split_at(bytes.len().min(self.max - self.bytes.len()));
        let wanted = self.bytes.len() + grown.len();
        if wanted > self.bytes.capacity() {
            let capacity = wanted.max(self.bytes.capacity() * 2).min(self.max);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(grown);
        // What is left takes the place of the oldest.
        let (first, second) = bytes.split_at(bytes.len().min(self.bytes.len() - self.oldest));
        self.bytes[self.oldest..][..first.len()].copy_from_slice(first);
        self.bytes[..second.len()].copy_from_slice(second);
        self.oldest = (self.oldest + bytes.len()) % self.max.max(1);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("n", &self.slots.len())
            .finish_non_exhaustive()
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
    fn a_client_is_told_to_begin_anew_whatever_it_has_offered() {
        for offer in [
            "permessage-deflate",
            "permessage-deflate; client_no_context_takeover",
        ] {
            let (mut ours, mut answer) = accept(offer).unwrap();
            without_client_context(&mut ours, &mut answer);
            assert_eq!(answer, "permessage-deflate; client_no_context_takeover");
            assert_eq!(agreed(&answer), Ok(Some(ours)));
            assert_eq!(ours.window_bytes(End::Server), 0);
            assert_eq!(ours.window_bytes(End::Client), 32 << 10);
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
                let mut deflater =
                    Deflater::new(window_bits, keeps_context, &Compressors::default());
                let window_bytes = if keeps_context { 1 << window_bits } else { 0 };
                let mut inflater = Inflater::new(window_bytes, None);
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

    /// A message there and back; what it came to on the way.
    fn pass(deflater: &mut Deflater, inflater: &mut Inflater, text: &[u8]) -> usize {
        let (mut small, mut whole) = (Vec::new(), Vec::new());
        deflater.message(text, &mut small);
        inflater.piece(&small, &mut whole, 1 << 20).unwrap();
        inflater.end(&mut whole, 1 << 20).unwrap();
        assert!(whole == text, "{} bytes", text.len());
        small.len()
    }

    /// Bytes that do not repeat.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..len).map(|_| random.u8(..)).collect()
    }

    #[test]
    fn a_message_may_refer_to_any_of_the_last_bytes_however_they_came() {
        for window_bits in [9, 11, 15] {
            let window = 1 << window_bits;
            for len in [1, 7, window / 3, window - 300, window, 2 * window + 5] {
                let mut deflater = Deflater::new(window_bits, true, &Compressors::default());
                let mut inflater = Inflater::new(window, None);
                for round in 0..3 {
                    // New bytes over more than the window, then the last of them once more.
                    let mut last = Vec::new();
                    for seed in 0..(window as u64 * 2 / len as u64).clamp(1, 300) {
                        last = noise(1000 * round + seed, len);
                        pass(&mut deflater, &mut inflater, &last);
                    }
                    let again = pass(&mut deflater, &mut inflater, &last);
                    // zlib does not look quite as far back as the window reaches.
                    if len <= window - 300 {
                        assert!(
                            again <= len / 8 + 20,
                            "{again} of {len}, {window_bits} bits"
                        );
                    }
                    assert!(inflater.n_held() <= window, "{} held", inflater.n_held());
                }
            }
        }
    }

    #[test]
    fn between_two_messages_only_what_the_next_may_refer_to_is_held() {
        let mut inflater = Inflater::new(32 << 10, None);
        let mut deflater = Deflater::new(15, true, &Compressors::default());
        pass(&mut deflater, &mut inflater, &noise(1, 100));
        assert_eq!(inflater.n_held(), 100);
        let mut small = Vec::new();
        deflater.message(&noise(2, 100_000), &mut small);
        let mut whole = Vec::new();
        inflater
            .piece(&small[..50_000], &mut whole, 1 << 20)
            .unwrap();
        assert!(inflater.n_held() > 40 << 10, "a stream is under way");
        inflater
            .piece(&small[50_000..], &mut whole, 1 << 20)
            .unwrap();
        inflater.end(&mut whole, 1 << 20).unwrap();
        assert_eq!(inflater.n_held(), 32 << 10);

        let mut forgetful = Inflater::new(0, None);
        pass(
            &mut Deflater::new(15, false, &Compressors::default()),
            &mut forgetful,
            b"Hello",
        );
        assert_eq!(forgetful.n_held(), 0);
    }

    #[test]
    fn the_window_that_was_not_used_for_longest_goes_to_who_needs_one() {
        let compressors = Compressors::default();
        compressors.allow(2);
        let text = noise(3, 5000);
        let mut all: Vec<_> = (0..3)
            .map(|_| {
                (
                    Deflater::new(15, true, &compressors),
                    Inflater::new(32 << 10, None),
                )
            })
            .collect();
        let mut remembers = |n: usize| {
            let (deflater, inflater) = &mut all[n];
            pass(deflater, inflater, &text) < 1000
        };
        assert!(!remembers(0) && !remembers(1) && remembers(0) && remembers(1));
        assert!(!remembers(2), "the first's");
        assert!(remembers(1) && remembers(2));
        assert!(!remembers(0), "the second's");
        assert!(remembers(2) && remembers(0) && !remembers(1));
        assert_eq!(compressors.n_held(), 2 * window_bytes(15));
        drop(all.remove(1));
        let slots = compressors.0.borrow();
        assert_eq!(slots.slots[slots.oldest()].owner, 0, "nobody's now");
    }

    #[test]
    fn windows_that_are_not_used_are_let_go() {
        let compressors = Compressors::default();
        let text = noise(4, 5000);
        let mut sizes = Vec::new();
        let mut inflater = Inflater::new(32 << 10, None);
        let mut deflater = Deflater::new(15, true, &compressors);
        for n_ages in [0, IDLE_AGE - 1, IDLE_AGE, 1] {
            (0..n_ages).for_each(|_| compressors.age());
            assert_eq!(
                compressors.n_held() > 0,
                [IDLE_AGE - 1, 1].contains(&n_ages)
            );
            sizes.push(pass(&mut deflater, &mut inflater, &text));
        }
        let is_long: Vec<_> = sizes.iter().map(|&size| size > text.len()).collect();
        assert_eq!(is_long, [true, false, true, false], "{sizes:?}");
    }

    #[test]
    fn windows_of_different_sizes_take_each_others_place() {
        let compressors = Compressors::default();
        compressors.allow(1);
        let mut all = [9, 15, 12].map(|bits| {
            (
                Deflater::new(bits, true, &compressors),
                Inflater::new(1 << bits, None),
            )
        });
        for round in 0..3 {
            for (deflater, inflater) in &mut all {
                pass(deflater, inflater, &noise(round, 40_000));
            }
        }
        assert_eq!(compressors.n_held(), window_bytes(12));
        assert_eq!(windows_in(3 << 20), 11);
        assert_eq!(windows_in(usize::MAX), MAX_WINDOWS);
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7692 sections 7.2.3.1 to 7.2.3.5.
        let hello = |bytes: &[u8]| {
            let (mut inflater, mut out) = (Inflater::new(32 << 10, None), Vec::new());
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
        Deflater::new(15, false, &Compressors::default()).message(&vec![0; 10_000_000], &mut small);
        assert!(small.len() < 100_000, "{}", small.len());
        let (mut inflater, mut out) = (Inflater::new(0, None), Vec::new());
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
            Deflater::new(15, true, &Compressors::default()).message(payload, &mut small);
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
            let (mut inflater, mut out) = (Inflater::new(32 << 10, Some(ratio)), Vec::new());
            // The second message starts counting from zero.
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
        Deflater::new(15, false, &Compressors::default()).message(&text, &mut small);
        let mut inflater = Inflater::new(0, None);
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
        let (mut inflater, mut out) = (Inflater::new(32 << 10, None), Vec::new());
        let garbage = [0xff, 0xff, 0xff, 0xff];
        assert_eq!(
            inflater.piece(&garbage, &mut out, 100),
            Err(InflateError::Corrupt)
        );
    }
}
