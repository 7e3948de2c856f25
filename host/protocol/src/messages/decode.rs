//! Bytes in, messages out: frames checked, unmasked, assembled and inflated.
//!
//! The caller reads into a buffer of its own and has the decoder look at it; a message that came whole
//! in one frame is shown where it lies. Only what is incomplete is kept.

use std::str;

use pointsman_contract::close;
use pointsman_contract::message::{CloseReason, MessageKind};

use super::End;
use super::deflate::{InflateError, Inflater};
use crate::header::{CONTROL_MAX_BYTES, Header, Opcode, Prefix, mask};

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered with a Pong of the same payload.
    Ping(&'a [u8]),
    /// An answer, or a sign of life.
    Pong(&'a [u8]),
    /// The peer sends nothing more; its code and reason, if it has said one.
    Close(Option<CloseReason>),
}

/// The peer has broken the protocol: it is told this code, and no more of it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// A protocol error, an invalid payload or too big a message; another where it is a limit of ours.
    pub code: u16,
    /// For the log, and short enough for a Close frame.
    pub reason: &'static str,
}

/// Reads what comes from one peer.
#[derive(Debug)]
pub struct Decoder {
    end: End,
    max_message_bytes: usize,
    inflater: Option<Inflater>,
    /// Bytes of a frame that is not whole yet: a header, or a control frame. Short.
    held: Vec<u8>,
    /// The data frame whose payload is coming in.
    frame: Option<Frame>,
    message: Option<Partial>,
    /// The message that was shown last is let go of at the next call.
    is_shown: bool,
    /// Of the message under way, as it came.
    n_came: u64,
    /// Messages, and control frames that were within none.
    n_whole: u64,
    /// The payload of the control frame that was shown last.
    control: [u8; CONTROL_MAX_BYTES],
}

/// A message, or a frame outside of one, of which some has come and not all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderWay {
    /// Tells it from those before it.
    pub nth: u64,
    /// Its payload so far, as it came, and no more than a message may have. Headers do not count, nor do
    /// control frames within a message.
    pub n_bytes: u64,
}

/// A data frame whose payload is coming in.
#[derive(Debug, Clone, Copy)]
struct Frame {
    header: Header,
    /// How much of the payload is still to come.
    left: u64,
}

/// A message that is not whole yet, or has just become so.
#[derive(Debug)]
struct Partial {
    kind: MessageKind,
    is_compressed: bool,
    payload: Vec<u8>,
    /// How much of a text is known to be valid UTF-8.
    valid: usize,
}

impl Violation {
    /// There is no memory for a message: trying again later helps (RFC 6455 section 11.7).
    pub const NO_ROOM: Self = Self {
        code: close::TRY_AGAIN_LATER,
        reason: "no room for this message now",
    };
    /// A message has begun and does not come (RFC 6455 section 7.4.1: a policy is violated).
    pub const TOO_SLOW: Self = Self {
        code: close::POLICY_VIOLATION,
        reason: "a message takes too long",
    };
}

impl Decoder {
    /// `max_message_bytes`: of one message, inflated. `inflater`: where permessage-deflate was agreed
    /// on.
    pub fn new(end: End, max_message_bytes: usize, inflater: Option<Inflater>) -> Self {
        Self {
            end,
            max_message_bytes,
            inflater,
            held: Vec::new(),
            frame: None,
            message: None,
            is_shown: false,
            n_came: 0,
            n_whole: 0,
            control: [0; CONTROL_MAX_BYTES],
        }
    }

    /// Takes bytes off the front of `input` until something has come; none: all were taken, and more
    /// are needed. Payload in `input` is unmasked where it lies.
    ///
    /// # Errors
    /// See [`Violation`]; nothing may be read after it.
    pub fn next<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i mut [u8],
    ) -> Result<Option<Incoming<'s>>, Violation> {
        if std::mem::take(&mut self.is_shown) {
            self.message = None;
        }
        loop {
            if self.frame.is_none() {
                let Some(header) = self.header(input)? else {
                    return Ok(None);
                };
                if header.opcode.is_control() {
                    return self.control(header, input);
                }
                self.begin(&header)?;
                if is_whole_in_one(&header, input) {
                    return self.show_in_place(&header, input).map(Some);
                }
                self.frame = Some(Frame {
                    header,
                    left: header.payload_bytes,
                });
            }
            let is_frame_over = self.payload(input)?;
            if !is_frame_over {
                return Ok(None);
            }
            if self.frame.take().is_some_and(|frame| frame.header.is_final) {
                return self.show_assembled().map(Some);
            }
        }
    }

    /// Memory for what has come of a message that is not whole yet, and for what the next may refer to.
    pub fn n_held(&self) -> usize {
        let message = self.message.as_ref();
        self.held.capacity()
            + message.map_or(0, |message| message.payload.capacity())
            + self.inflater.as_ref().map_or(0, Inflater::n_held)
    }

    /// What has begun to come, if something has.
    pub fn under_way(&self) -> Option<UnderWay> {
        let n_bytes = match &self.message {
            Some(_) if !self.is_shown => self.n_came.min(self.max_message_bytes as u64),
            _ if self.held.is_empty() => return None,
            _ => 0,
        };
        Some(UnderWay {
            nth: self.n_whole,
            n_bytes,
        })
    }

    /// Whether the last byte that came ended a frame: within one, its sender can say nothing else.
    pub fn is_between_frames(&self) -> bool {
        self.frame.is_none() && self.held.is_empty()
    }

    /// Lets go of what it holds, for good: nothing is read any more.
    pub fn forget(&mut self) {
        self.inflater = None;
        self.held = Vec::new();
        self.frame = None;
        self.message = None;
    }

    /// The next header, with all of it taken off `input`; the payload of a control frame is there, too: in `held`,
    /// or at the front of `input`.
    fn header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, Violation> {
        // Straight from the input where it has all that is needed.
        if self.held.is_empty() {
            if let Some((header, header_bytes)) = self.parse(input)?
                && input.len() >= needed(&header, header_bytes)
            {
                take(input, header_bytes);
                return Ok(Some(header));
            }
            self.held.extend_from_slice(take(input, usize::MAX));
            return Ok(None);
        }
        loop {
            if let Some((header, header_bytes)) = self.parse(&self.held)?
                && self.held.len() >= needed(&header, header_bytes)
            {
                self.held.drain(..header_bytes);
                return Ok(Some(header));
            }
            match take(input, 1) {
                [] => return Ok(None),
                byte => self.held.extend_from_slice(byte),
            }
        }
    }

    /// The header at the front, and its length; none: there is not all of it yet.
    fn parse(&self, bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        let Some(prefix) = Prefix::read(bytes) else {
            return Ok(None);
        };
        let opcode = prefix.opcode();
        let may_compress =
            self.inflater.is_some() && matches!(opcode, Opcode::TEXT | Opcode::BINARY);
        let has_unknown_bits = prefix.has_unknown_bits() || prefix.is_compressed() && !may_compress;
        check(!has_unknown_bits, "a reserved bit is set")?;
        check(!opcode.is_reserved(), "an opcode is reserved")?;
        check(
            prefix.is_masked() == (self.end == End::Server),
            "a frame is masked by the wrong side",
        )?;
        if opcode.is_control() {
            check(prefix.is_final(), "a control frame is fragmented")?;
            let is_short = usize::from(prefix.short_length()) <= CONTROL_MAX_BYTES;
            check(is_short, "a control frame is too long")?;
        }
        let Some(header) = Header::read(bytes) else {
            return Ok(None);
        };
        check(header.payload_bytes >> 63 == 0, "a length is too large")?;
        Ok(Some((header, prefix.header_bytes())))
    }

    fn control(
        &mut self,
        header: Header,
        input: &mut &mut [u8],
    ) -> Result<Option<Incoming<'_>>, Violation> {
        let len = header.payload_bytes as usize;
        let payload = &mut self.control[..len];
        match self.held.is_empty() {
            true => payload.copy_from_slice(take(input, len)),
            false => payload.copy_from_slice(&self.held),
        }
        self.held = Vec::new();
        if self.message.is_none() {
            self.n_whole += 1;
        }
        if let Some(key) = header.key {
            mask(payload, key, 0);
        }
        let payload = &*payload;
        Ok(Some(match header.opcode {
            Opcode::PING => Incoming::Ping(payload),
            Opcode::PONG => Incoming::Pong(payload),
            _ => Incoming::Close(close_reason(payload)?),
        }))
    }

    /// A data frame begins, and with it a message or another piece of one.
    fn begin(&mut self, header: &Header) -> Result<(), Violation> {
        self.held = Vec::new();
        let kind = match header.opcode {
            Opcode::CONTINUATION => {
                check(self.message.is_some(), "a fragment continues nothing")?;
                None
            }
            Opcode::TEXT => Some(MessageKind::Text),
            _ => Some(MessageKind::Binary),
        };
        if let Some(kind) = kind {
            check(self.message.is_none(), "a message begins within another")?;
            self.n_came = 0;
            self.message = Some(Partial {
                kind,
                is_compressed: header.is_compressed,
                payload: Vec::new(),
                valid: 0,
            });
        }
        let so_far = self
            .message
            .as_ref()
            .map_or(0, |message| message.payload.len());
        let room = (self.max_message_bytes - so_far.min(self.max_message_bytes)) as u64;
        // What is compressed is measured while it is inflated.
        let is_compressed = self
            .message
            .as_ref()
            .is_some_and(|message| message.is_compressed);
        match is_compressed || header.payload_bytes <= room {
            true => Ok(()),
            false => Err(too_big()),
        }
    }

    fn show_in_place<'a>(
        &mut self,
        header: &Header,
        input: &mut &'a mut [u8],
    ) -> Result<Incoming<'a>, Violation> {
        self.message = None;
        self.n_whole += 1;
        let payload = take(input, header.payload_bytes as usize);
        if let Some(key) = header.key {
            mask(payload, key, 0);
        }
        match header.opcode {
            Opcode::TEXT => text(payload),
            _ => Ok(Incoming::Binary(payload)),
        }
    }

    /// Takes payload of the frame under way; true: that was all of it.
    fn payload(&mut self, input: &mut &mut [u8]) -> Result<bool, Violation> {
        let (Some(frame), Some(message)) = (&mut self.frame, &mut self.message) else {
            return Ok(true);
        };
        let n = usize::try_from(frame.left).unwrap_or(usize::MAX);
        let piece = take(input, n);
        let header = &frame.header;
        if let Some(key) = header.key {
            mask(piece, key, header.payload_bytes - frame.left);
        }
        frame.left -= piece.len() as u64;
        self.n_came += piece.len() as u64;
        let is_over = frame.left == 0;
        match (&mut self.inflater, message.is_compressed) {
            (Some(inflater), true) => {
                let max = self.max_message_bytes;
                let mut inflated = inflater.piece(piece, &mut message.payload, max);
                if is_over && header.is_final {
                    inflated = inflated.and_then(|()| inflater.end(&mut message.payload, max));
                }
                if inflated.is_err() {
                    // What is wrong first is what is said, however the payload was cut.
                    message.payload.truncate(max);
                    message.check_text(false)?;
                }
                inflated.map_err(Violation::from)?;
            }
            _ => message.payload.extend_from_slice(piece),
        }
        message.check_text(is_over && header.is_final)?;
        Ok(is_over)
    }

    fn show_assembled(&mut self) -> Result<Incoming<'_>, Violation> {
        self.is_shown = true;
        self.n_whole += 1;
        match &self.message {
            Some(message) => match message.kind {
                MessageKind::Text => text(&message.payload),
                MessageKind::Binary => Ok(Incoming::Binary(&message.payload)),
            },
            None => Err(protocol_error("a fragment continues nothing")),
        }
    }
}

impl Partial {
    /// Text is checked as it comes, so that what is wrong ends it at once (RFC 6455 section 8.1).
    fn check_text(&mut self, is_whole: bool) -> Result<(), Violation> {
        if self.kind == MessageKind::Binary {
            return Ok(());
        }
        match str::from_utf8(&self.payload[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_none() && !is_whole => {
                self.valid += error.valid_up_to();
            }
            Err(_) => return Err(invalid_text()),
        }
        Ok(())
    }
}

/// How much there has to be for a frame to be begun: the header, and all of a control frame.
fn needed(header: &Header, header_bytes: usize) -> usize {
    match header.opcode.is_control() {
        true => header_bytes + header.payload_bytes as usize,
        false => header_bytes,
    }
}

fn is_whole_in_one(header: &Header, input: &[u8]) -> bool {
    header.is_final
        && header.opcode != Opcode::CONTINUATION
        && !header.is_compressed
        && input.len() as u64 >= header.payload_bytes
}

fn text(payload: &[u8]) -> Result<Incoming<'_>, Violation> {
    let text = str::from_utf8(payload).map_err(|_| invalid_text())?;
    Ok(Incoming::Text(text))
}

/// Takes `n` bytes off the front, or all there are.
fn take<'a>(input: &mut &'a mut [u8], n: usize) -> &'a mut [u8] {
    let all = std::mem::take(input);
    let (taken, rest) = all.split_at_mut(n.min(all.len()));
    *input = rest;
    taken
}

/// RFC 6455 sections 5.5.1 and 7.4.
fn close_reason(payload: &[u8]) -> Result<Option<CloseReason>, Violation> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(protocol_error("a Close has half a code")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    let may_be_sent = close::may_be_sent(code);
    check(may_be_sent, "a Close has a code that is never sent")?;
    let reason = str::from_utf8(reason).map_err(|_| invalid_text())?;
    Ok(Some(CloseReason {
        code,
        reason: reason.to_owned(),
    }))
}

fn check(is_fine: bool, reason: &'static str) -> Result<(), Violation> {
    match is_fine {
        true => Ok(()),
        false => Err(protocol_error(reason)),
    }
}

fn protocol_error(reason: &'static str) -> Violation {
    Violation {
        code: close::PROTOCOL_ERROR,
        reason,
    }
}

fn invalid_text() -> Violation {
    Violation {
        code: close::INVALID_PAYLOAD,
        reason: "a text is not UTF-8",
    }
}

fn too_big() -> Violation {
    Violation {
        code: close::MESSAGE_TOO_BIG,
        reason: "a message is too long",
    }
}

impl From<InflateError> for Violation {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::TooBig => too_big(),
            InflateError::TooDense => Self {
                code: close::MESSAGE_TOO_BIG,
                reason: "a message is compressed too much",
            },
            InflateError::Corrupt => Self {
                code: close::INVALID_PAYLOAD,
                reason: "a message cannot be inflated",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_contract::message::Received;

    use super::super::Encoder;
    use super::super::deflate::{Compressors, Deflater};
    use super::*;
    use crate::header::KeySource;

    /// What `bytes` come to, given in pieces of `size`, a line each.
    fn read(decoder: &mut Decoder, bytes: &[u8], size: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.chunks(size.max(1)) {
            let mut piece = piece.to_vec();
            let mut input = piece.as_mut_slice();
            loop {
                // The decoder lends what it shows: each look is by itself.
                let line = match decoder.next(&mut input) {
                    Ok(None) => break,
                    Ok(Some(Incoming::Text(text))) => format!("Text {}", outline(text.as_bytes())),
                    Ok(Some(Incoming::Binary(payload))) => format!("Binary {}", outline(payload)),
                    Ok(Some(Incoming::Ping(payload))) => format!("Ping {}", outline(payload)),
                    Ok(Some(Incoming::Pong(payload))) => format!("Pong {}", outline(payload)),
                    Ok(Some(Incoming::Close(None))) => "Close".to_owned(),
                    Ok(Some(Incoming::Close(Some(CloseReason { code, reason })))) => {
                        format!("Close {code} {reason}")
                    }
                    Err(Violation { code, reason }) => {
                        lines.push(format!("{code}: {reason}"));
                        return lines;
                    }
                };
                lines.push(line);
            }
        }
        lines
    }

    fn outline(payload: &[u8]) -> String {
        match payload.len() {
            n if n > 40 => format!(
                "{n} bytes, {}",
                payload.iter().map(|&b| u64::from(b)).sum::<u64>()
            ),
            _ => String::from_utf8_lossy(payload).into_owned(),
        }
    }

    const KEYS: KeySource = || [0x37, 0xfa, 0x21, 0x3d];

    fn server() -> Decoder {
        Decoder::new(End::Server, 1 << 20, None)
    }

    /// A frame as a client sends it, with any bits.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Encoder::client(KEYS, None).message(Received::Binary(payload), &mut bytes);
        bytes[0] = first;
        bytes
    }

    #[test]
    fn messages_come_out_whatever_the_pieces() {
        let long = vec![b'x'; 70_000];
        let bytes = [
            frame(0x81, "grüße".as_bytes()),
            frame(0x82, &long),
            frame(0x01, &"grüße".as_bytes()[..3]),
            frame(0x89, b"are you there"),
            frame(0x00, &"grüße".as_bytes()[3..4]),
            frame(0x80, &"grüße".as_bytes()[4..]),
            frame(0x8a, b""),
            frame(0x81, b""),
            frame(0x02, b""),
            frame(0x80, b""),
            frame(0x82, &long[..300]),
            frame(0x88, b"\x03\xe8bye"),
        ]
        .concat();
        let expected = [
            "Text grüße",
            "Binary 70000 bytes, 8400000",
            "Ping are you there",
            "Text grüße",
            "Pong ",
            "Text ",
            "Binary ",
            "Binary 300 bytes, 36000",
            "Close 1000 bye",
        ];
        for size in [1, 2, 3, 5, 7, 64, 1000, 4096, 65_536, bytes.len()] {
            assert_eq!(read(&mut server(), &bytes, size), expected, "{size}");
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        let unmasked = b"\x81\x02hi".to_vec();
        let half_code = frame(0x88, b"\x03");
        for (bytes, expected) in [
            (frame(0xc1, b"x"), "1002: a reserved bit is set"),
            (frame(0xa1, b"x"), "1002: a reserved bit is set"),
            (frame(0x83, b"x"), "1002: an opcode is reserved"),
            (frame(0x8b, b"x"), "1002: an opcode is reserved"),
            (unmasked, "1002: a frame is masked by the wrong side"),
            (frame(0x09, b"x"), "1002: a control frame is fragmented"),
            (
                frame(0x89, &[b'x'; 126]),
                "1002: a control frame is too long",
            ),
            (frame(0x80, b"x"), "1002: a fragment continues nothing"),
            (
                [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
                "1002: a message begins within another",
            ),
            (half_code, "1002: a Close has half a code"),
            (
                frame(0x88, &1005_u16.to_be_bytes()),
                "1002: a Close has a code that is never sent",
            ),
            (frame(0x88, b"\x03\xe8\xff"), "1007: a text is not UTF-8"),
            (frame(0x81, b"\xff"), "1007: a text is not UTF-8"),
            (
                // Wrong in its first fragment: nobody waits for the last.
                frame(0x01, b"\xce\xba\xed\xa0\x80"),
                "1007: a text is not UTF-8",
            ),
            (
                [frame(0x01, b"\xce"), frame(0x80, b"")].concat(),
                "1007: a text is not UTF-8",
            ),
        ] {
            for size in [1, bytes.len()] {
                assert_eq!(read(&mut server(), &bytes, size), [expected], "{bytes:x?}");
            }
        }
        let masked = frame(0x81, b"x");
        let mut client = Decoder::new(End::Client, 100, None);
        let expected = ["1002: a frame is masked by the wrong side"];
        assert_eq!(read(&mut client, &masked, 100), expected);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_header() {
        let too_long = frame(0x82, &[0; 101]);
        let mut decoder = Decoder::new(End::Server, 100, None);
        let header = &too_long[..6];
        assert_eq!(
            read(&mut decoder, header, 6),
            ["1009: a message is too long"]
        );
        let in_pieces = [frame(0x02, &[0; 60]), frame(0x80, &[0; 41])].concat();
        let mut decoder = Decoder::new(End::Server, 100, None);
        assert_eq!(
            read(&mut decoder, &in_pieces, 9),
            ["1009: a message is too long"]
        );
        let mut decoder = Decoder::new(End::Server, 100, None);
        let fits = [frame(0x02, &[0; 60]), frame(0x80, &[0; 40])].concat();
        assert_eq!(read(&mut decoder, &fits, 9), ["Binary 100 bytes, 0"]);
    }

    #[test]
    fn what_is_under_way_is_measured_by_its_payload() {
        let mut decoder = server();
        let mut n_seen = 0;
        let mut check = |bytes: &[u8], expected: Option<(u64, u64)>| {
            read(&mut decoder, bytes, 3);
            n_seen += 1;
            let found = decoder.under_way().map(|it| (it.nth, it.n_bytes));
            assert_eq!(found, expected, "look {n_seen}");
        };
        check(&[], None);
        check(&frame(0x81, b"whole"), None);
        let long = frame(0x02, &[7; 300]);
        check(&long[..1], Some((1, 0)));
        check(&long[1..8], Some((1, 0)));
        check(&long[8..30], Some((1, 22)));
        check(&long[30..], Some((1, 300)));
        // Neither a Ping nor an empty fragment brings it on.
        check(&frame(0x89, b"?"), Some((1, 300)));
        check(&frame(0x00, b""), Some((1, 300)));
        check(&frame(0x89, b"?")[..4], Some((1, 300)));
        check(&frame(0x89, b"?")[4..], Some((1, 300)));
        check(&frame(0x80, b"end"), None);
        check(&frame(0x89, b"ping")[..7], Some((2, 0)));
        check(&frame(0x89, b"ping")[7..], None);
        check(&frame(0x82, &[7; 300])[..20], Some((3, 12)));

        // Blocks of nothing come to no message, however many.
        let (_, mut decoder) = deflating();
        let nothing = [0x00, 0x00, 0x00, 0xff, 0xff].repeat(100);
        read(&mut decoder, &frame(0x42, &nothing), 1000);
        for _ in 0..300 {
            read(&mut decoder, &frame(0x00, &nothing), 1000);
        }
        let expected = UnderWay {
            nth: 0,
            n_bytes: 100_000,
        };
        assert_eq!(decoder.under_way(), Some(expected));
    }

    #[test]
    fn nothing_is_kept_between_messages() {
        let mut decoder = server();
        let bytes = [frame(0x01, &[b'a'; 500]), frame(0x80, b"b")].concat();
        read(&mut decoder, &bytes, 11);
        assert!(decoder.message.is_none() && decoder.held.capacity() == 0);
    }

    fn deflating() -> (Encoder, Decoder) {
        let encoder = Encoder::client(KEYS, Some(Deflater::new(15, true, &Compressors::default())));
        let decoder = Decoder::new(End::Server, 100_000, Some(Inflater::new(32 << 10, None)));
        (encoder, decoder)
    }

    #[test]
    fn compressed_messages_are_inflated_and_others_pass_between_them() {
        let (mut encoder, _) = deflating();
        let mut bytes = Vec::new();
        encoder.message(Received::Text("Hello, Hello"), &mut bytes);
        encoder.ping(b"?", &mut bytes);
        bytes.extend(frame(0x81, b"not compressed"));
        encoder.message(Received::Binary(&[7; 90_000]), &mut bytes);
        encoder.message(Received::Text(""), &mut bytes);
        let expected = [
            "Text Hello, Hello",
            "Ping ?",
            "Text not compressed",
            "Binary 90000 bytes, 630000",
            "Text ",
        ];
        let n = bytes.len();
        for size in [1, 3, n] {
            let (_, mut decoder) = deflating();
            assert_eq!(read(&mut decoder, &bytes, size), expected, "{size}");
        }
        let (mut encoder, mut decoder) = deflating();
        let mut bytes = Vec::new();
        encoder.message(Received::Binary(&[7; 200_000]), &mut bytes);
        assert_eq!(
            read(&mut decoder, &bytes, 64),
            ["1009: a message is too long"]
        );
    }

    #[test]
    fn a_compressed_fragment_is_marked_at_its_beginning_only() {
        let (_, mut decoder) = deflating();
        let bytes = [frame(0x41, b"\xf2\x48"), frame(0xc0, b"\xcd")].concat();
        assert_eq!(
            read(&mut decoder, &bytes, 100),
            ["1002: a reserved bit is set"]
        );
        let (_, mut decoder) = deflating();
        let bytes = [
            frame(0x41, b"\xf2\x48\xcd"),
            frame(0x80, b"\xc9\xc9\x07\x00"),
        ]
        .concat();
        assert_eq!(read(&mut decoder, &bytes, 2), ["Text Hello"]);
    }

    #[test]
    fn what_is_wrong_first_is_said_whatever_the_pieces() {
        let small = |payload: &[u8]| {
            let mut small = Vec::new();
            Deflater::new(15, true, &Compressors::default()).message(payload, &mut small);
            small
        };
        let bad_then_long = [&b"\xff"[..], &[b'x'; 200]].concat();
        let long_then_bad = [&[b'x'; 101][..], b"\xff"].concat();
        for (payload, expected) in [
            // One byte too many, and behind it no deflate stream.
            (
                vec![0x3a, 0x01, 0, 0, 0, 0, 0, 0],
                "1009: a message is too long",
            ),
            (small(&long_then_bad), "1009: a message is too long"),
            (small(&bad_then_long), "1007: a text is not UTF-8"),
        ] {
            let bytes = frame(0xc1, &payload);
            let max = if payload.len() == 8 { 0 } else { 100 };
            for size in [1, 7, bytes.len()] {
                let mut decoder =
                    Decoder::new(End::Server, max, Some(Inflater::new(32 << 10, None)));
                assert_eq!(read(&mut decoder, &bytes, size), [expected], "{size}");
            }
        }
    }
}
