//! The frame tracker: follows one direction of a WebSocket by the headers of its frames.
//!
//! In go the bytes as they pass, cut anywhere; out come message boundaries, counts, sizes and the
//! code of a Close frame. A pure state machine (RFC 6455 section 5.2): it knows no socket, copies
//! no payload and judges nothing but size, because what a frame may say is for the two ends to
//! settle. It also writes the few frames that the host sends of its own.

use crate::header::{CONTROL_MAX_BYTES, Header, HeaderBuffer, MaskingKey, Opcode};

/// Follows one direction. No heap.
#[derive(Debug, Clone)]
pub struct FrameTracker {
    /// Messages whose final frame has passed whole.
    messages: u64,
    /// Payload of the frame under way that is still to come; meaningless while a header is read.
    payload_left: u64,
    /// Payload of the message under way, up to and with the frame under way.
    message_bytes: u64,
    max_message_bytes: u64,
    header: HeaderBuffer,
    /// Whether the last data frame was not final. An empty unfinished fragment leaves no bytes, so
    /// `message_bytes` alone does not tell.
    is_in_message: bool,
    phase: FramePhase,
    close: CloseNote,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramePhase {
    /// Between frames, or within a header if some of it is there.
    Header,
    Payload,
}

/// What of a Close frame has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloseNote {
    None,
    /// The header, and none or one byte of the code.
    Begun(Option<u8>),
    /// The whole frame, or enough of it.
    Seen(Option<u16>),
}

/// A message, or a control frame, would be longer than allowed. Nothing of the frame that makes it so was consumed, but
/// for header bytes of earlier calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig;

impl FrameTracker {
    /// `max_message_bytes`: payload of all frames of one data message, and of a control frame if that is
    /// longer than 125 bytes; `u64::MAX`: any.
    pub fn new(max_message_bytes: u64) -> Self {
        Self {
            messages: 0,
            payload_left: 0,
            message_bytes: 0,
            max_message_bytes,
            header: HeaderBuffer::default(),
            is_in_message: false,
            phase: FramePhase::Header,
            close: CloseNote::None,
        }
    }

    /// Consumes bytes up to the end of the frame under way, at most; says how many. Consumes at
    /// least one unless `bytes` is empty.
    ///
    /// # Errors
    /// [`TooBig`]; after [`FrameTracker::lift_limit`] the same bytes may be given again.
    pub fn frame(&mut self, bytes: &[u8]) -> Result<usize, TooBig> {
        let mut consumed = 0;
        if self.phase == FramePhase::Header {
            consumed = self.header(bytes)?;
            if self.phase == FramePhase::Header {
                return Ok(consumed);
            }
        }
        let rest = bytes.get(consumed..).unwrap_or_default();
        let n = usize::try_from(self.payload_left).map_or(rest.len(), |left| left.min(rest.len()));
        self.note_close_payload(&rest[..n]);
        self.payload_left -= n as u64;
        if self.payload_left == 0 {
            self.end_frame();
        }
        Ok(consumed + n)
    }

    /// Consumes `n` bytes of payload that nobody has looked at: at most [`Self::skippable`].
    pub fn skip(&mut self, n: u64) {
        debug_assert!(n <= self.skippable());
        self.payload_left -= n;
        if self.payload_left == 0 {
            self.end_frame();
        }
    }

    /// Payload of the frame under way that is still to come; 0 between frames and within a header.
    pub fn payload_left(&self) -> u64 {
        match self.phase {
            FramePhase::Header => 0,
            FramePhase::Payload => self.payload_left,
        }
    }

    /// What of that payload nobody has to look at: none of a Close frame, whose code would be missed.
    pub fn skippable(&self) -> u64 {
        match self.opcode() {
            Opcode::CLOSE => 0,
            _ => self.payload_left(),
        }
    }

    /// How many bytes have to come at least before the frame under way can end: so many may be read without a byte of
    /// the next. Never 0: between frames, those of the next header.
    pub fn missing(&self) -> u64 {
        match self.phase {
            FramePhase::Header => self.header.missing() as u64,
            FramePhase::Payload => self.payload_left,
        }
    }

    /// Payload of the frame under way, between frames of the last one; 0 before the first.
    pub fn frame_bytes(&self) -> u64 {
        self.header.payload_bytes()
    }

    /// Messages may have any length from now on.
    pub fn lift_limit(&mut self) {
        self.max_message_bytes = u64::MAX;
    }

    /// Whether the last byte consumed ended a frame: here a control frame may be put in.
    pub fn is_between_frames(&self) -> bool {
        self.phase == FramePhase::Header && self.header.is_empty()
    }

    /// Whether the last byte consumed ended a message: here the sender could be exchanged.
    pub fn is_between_messages(&self) -> bool {
        self.is_between_frames() && !self.is_in_message
    }

    /// Whole data messages so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Once a Close frame has passed: its code, if it has one.
    pub fn close(&self) -> Option<Option<u16>> {
        match self.close {
            CloseNote::Seen(code) => Some(code),
            CloseNote::None | CloseNote::Begun(_) => None,
        }
    }

    /// Reads a header, whole or in part; enters [`FramePhase::Payload`] when it is whole.
    fn header(&mut self, bytes: &[u8]) -> Result<usize, TooBig> {
        let consumed = self.header.fill(bytes);
        if !self.header.is_whole() {
            return Ok(consumed);
        }
        let payload = self.header.payload_bytes();
        let Some(message_bytes) = self.allowed(payload) else {
            self.header.unfill(consumed);
            return Err(TooBig);
        };
        self.message_bytes = message_bytes;
        if self.opcode() == Opcode::CLOSE && self.close == CloseNote::None {
            self.close = CloseNote::Begun(None);
        }
        self.payload_left = payload;
        self.phase = FramePhase::Payload;
        Ok(consumed)
    }

    /// Payload of the message under way with this frame of it; none: that is more than is allowed.
    fn allowed(&self, payload: u64) -> Option<u64> {
        let (message, max) = match self.opcode() {
            opcode if opcode.is_control() => {
                let max = self.max_message_bytes.max(CONTROL_MAX_BYTES as u64);
                return (payload <= max).then_some(self.message_bytes);
            }
            Opcode::CONTINUATION => (self.message_bytes, self.max_message_bytes),
            _ => (0, self.max_message_bytes),
        };
        let message = message.saturating_add(payload);
        (message <= max).then_some(message)
    }

    fn note_close_payload(&mut self, payload: &[u8]) {
        if self.opcode() != Opcode::CLOSE {
            return;
        }
        let key = self.header.key();
        for &byte in payload.iter().take(2) {
            let CloseNote::Begun(first) = self.close else {
                return;
            };
            self.close = match first {
                None => CloseNote::Begun(Some(byte ^ key[0])),
                Some(high) => CloseNote::Seen(Some(u16::from_be_bytes([high, byte ^ key[1]]))),
            };
        }
    }

    fn end_frame(&mut self) {
        if let (Opcode::CLOSE, CloseNote::Begun(_)) = (self.opcode(), self.close) {
            self.close = CloseNote::Seen(None);
        }
        let prefix = self.header.prefix();
        if !prefix.opcode().is_control() {
            self.is_in_message = !prefix.is_final();
            if !self.is_in_message {
                self.messages += 1;
                self.message_bytes = 0;
            }
        }
        self.phase = FramePhase::Header;
        self.header.finish();
    }

    fn opcode(&self) -> Opcode {
        self.header.prefix().opcode()
    }
}

/// Appends a Close frame without a reason. `key`: towards a server (RFC 6455 section 5.3).
pub fn write_close(code: u16, key: Option<MaskingKey>, out: &mut Vec<u8>) {
    Header::whole(Opcode::CLOSE, key, 2).write_frame(&code.to_be_bytes(), out);
}

/// Appends a Ping frame without a payload, as [`write_close`].
pub fn write_ping(key: Option<MaskingKey>, out: &mut Vec<u8>) {
    Header::whole(Opcode::PING, key, 0).write_frame(&[], out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let header = Header::whole(Opcode::TEXT, mask, payload.len() as u64);
        let mut bytes = Vec::new();
        header.write_frame(payload, &mut bytes);
        bytes[0] = first;
        bytes
    }

    /// Feeds `bytes` in pieces of `piece`; returns the offsets at which frames ended.
    fn feed(tracker: &mut FrameTracker, bytes: &[u8], piece: usize) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut at = 0;
        for chunk in bytes.chunks(piece) {
            let mut chunk = chunk;
            while !chunk.is_empty() {
                let n = tracker.frame(chunk).expect("within the limit");
                assert!(n > 0, "no progress");
                at += n;
                chunk = &chunk[n..];
                if tracker.is_between_frames() {
                    ends.push(at);
                }
            }
        }
        ends
    }

    #[test]
    fn every_split_of_every_length_finds_the_same_boundaries() {
        for mask in [None, Some([1, 2, 3, 4])] {
            for len in [0, 1, 2, 125, 126, 127, 65535, 65536] {
                let mut bytes = frame(0x82, &vec![7; len], mask);
                let first = bytes.len();
                bytes.extend(frame(0x81, b"next", mask));
                for piece in [1, 2, 3, 5, 13, 14, 15, 1000, bytes.len()] {
                    let mut tracker = FrameTracker::new(u64::MAX);
                    assert_eq!(
                        feed(&mut tracker, &bytes, piece),
                        [first, bytes.len()],
                        "{len} by {piece}"
                    );
                    assert_eq!(tracker.messages(), 2);
                    assert!(tracker.is_between_messages());
                }
            }
        }
    }

    #[test]
    fn what_is_missing_never_reaches_into_the_next_frame() {
        for mask in [None, Some([1, 2, 3, 4])] {
            for len in [0, 1, 125, 126, 65535, 65536] {
                let bytes = frame(0x82, &vec![7; len], mask);
                let mut tracker = FrameTracker::new(u64::MAX);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let missing = tracker.missing() as usize;
                    assert!((1..=rest.len()).contains(&missing), "{missing} of {len}");
                    // All of it at once, or no more than a byte.
                    let piece = missing.min(if missing.is_multiple_of(2) {
                        missing
                    } else {
                        1
                    });
                    assert_eq!(tracker.frame(&rest[..piece]), Ok(piece));
                    rest = &rest[piece..];
                }
                assert_eq!(tracker.messages(), 1);
            }
        }
    }

    #[test]
    fn fragments_and_the_control_frames_between_them_are_one_message() {
        let mut tracker = FrameTracker::new(6);
        for (bytes, messages, between) in [
            (frame(0x01, b"", None), 0, false),
            (frame(0x89, b"ping", None), 0, false),
            (frame(0x00, b"abc", None), 0, false),
            (frame(0x89, b"ping", None), 0, false),
            (frame(0x80, b"def", None), 1, true),
        ] {
            feed(&mut tracker, &bytes, 1);
            assert_eq!(tracker.messages(), messages);
            assert_eq!(tracker.is_between_messages(), between);
        }
    }

    #[test]
    fn a_message_over_the_limit_stops_before_its_frame() {
        let check = |frames: &[Vec<u8>], allowed: usize| {
            let mut tracker = FrameTracker::new(10);
            for frame in &frames[..allowed] {
                feed(&mut tracker, frame, 1);
            }
            assert_eq!(tracker.frame(&frames[allowed]), Err(TooBig));
            assert!(tracker.is_between_frames());
            assert_eq!(tracker.frame(&frames[allowed][..1]), Ok(1));
            assert_eq!(tracker.frame(&frames[allowed][1..]), Err(TooBig));
            assert!(!tracker.is_between_frames());
            tracker.lift_limit();
            assert!(tracker.frame(&frames[allowed][1..]).is_ok());
        };
        check(&[frame(0x82, &[0; 11], None)], 0);
        check(
            &[frame(0x02, &[0; 10], None), frame(0x80, &[0; 1], None)],
            1,
        );
        check(
            &[frame(0x82, &[0; 10], None), frame(0x82, &[0; 200], None)],
            1,
        );
        let mut endless = vec![0x82, 127];
        endless.extend([0xff; 8]);
        check(&[endless], 0);
        // Control frames do not add up, and those that the RFC allows always pass.
        let longest = frame(0x89, &[0; 125], None);
        check(&[longest, frame(0x8b, &[0; 126], None)], 1);
    }

    #[test]
    fn close_codes_are_read_through_the_mask_and_split_anywhere() {
        for mask in [None, Some([0xde, 0xad, 0xbe, 0xef])] {
            for (payload, code) in [
                (&b""[..], None),
                (b"\x03", None),
                (b"\x03\xe9", Some(1001)),
                (b"\x0f\xa0bye", Some(4000)),
            ] {
                for piece in [1, 2, 3, 100] {
                    let mut tracker = FrameTracker::new(u64::MAX);
                    feed(&mut tracker, &frame(0x81, b"hello", mask), piece);
                    assert_eq!(tracker.close(), None);
                    feed(&mut tracker, &frame(0x88, payload, mask), piece);
                    assert_eq!(tracker.close(), Some(code));
                }
            }
        }
    }

    #[test]
    fn a_close_of_any_length_is_looked_at() {
        let mut tracker = FrameTracker::new(u64::MAX);
        let close = frame(
            0x88,
            &[b"\x03\xe9".to_vec(), vec![0; 70_000]].concat(),
            None,
        );
        for (bytes, skippable) in [(&close[..10], 0), (&close[10..], 0)] {
            assert_eq!(tracker.frame(bytes), Ok(bytes.len()));
            assert_eq!(tracker.skippable(), skippable);
        }
        assert_eq!(tracker.close(), Some(Some(1001)));
        let ping = frame(0x89, &[0; 70_000], None);
        assert_eq!(tracker.frame(&ping[..10]), Ok(10));
        assert_eq!(tracker.skippable(), 70_000);
    }

    #[test]
    fn frames_of_ours_are_read_back() {
        for key in [None, Some([9, 8, 7, 6])] {
            let mut tracker = FrameTracker::new(u64::MAX);
            let (mut ping, mut close) = (Vec::new(), Vec::new());
            write_ping(key, &mut ping);
            write_close(1012, key, &mut close);
            assert_eq!(feed(&mut tracker, &ping, 1).len(), 1);
            assert_eq!(feed(&mut tracker, &close, 1).len(), 1);
            assert_eq!(tracker.close(), Some(Some(1012)));
        }
    }
}
