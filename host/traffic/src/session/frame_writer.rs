//! What goes to one far end of a session that speaks for itself: encoded, and kept until it is taken.

use pointsman_contract::message::Received;
use pointsman_protocol::messages::Encoder;

/// What a session may have had sent before its peer has taken any of it; then what feeds it waits.
pub(super) const UNSENT_MAX_BYTES: usize = 64 * 1024;

/// Says things to one peer.
#[derive(Debug)]
pub(super) struct FrameWriter {
    encoder: Encoder,
    /// Empty, without memory, while the peer takes what it is sent.
    unsent: Vec<u8>,
    sent: usize,
    /// Taken before `unsent` began.
    n_taken: u64,
    /// Where in `unsent` the last Ping of ours ends.
    ping_end: usize,
}

impl FrameWriter {
    pub(super) fn new(encoder: Encoder) -> Self {
        Self {
            encoder,
            unsent: Vec::new(),
            sent: 0,
            n_taken: 0,
            ping_end: 0,
        }
    }

    pub(super) fn message(&mut self, message: Received<'_>) {
        self.encoder.message(message, &mut self.unsent);
    }

    /// A message that waits elsewhere for its turn.
    pub(super) fn queue_message(&mut self, message: Received<'_>, aside: &mut Vec<u8>) {
        self.encoder.message(message, aside);
    }

    /// Frames of somebody else's.
    pub(super) fn bytes(&mut self, frames: &[u8]) {
        self.unsent.extend_from_slice(frames);
    }

    pub(super) fn ping(&mut self, payload: &[u8]) {
        self.encoder.ping(payload, &mut self.unsent);
    }

    /// Pongs to a peer that does not read are not piled up (RFC 6455 section 5.5.3).
    pub(super) fn pong(&mut self, payload: &[u8]) {
        if !self.is_behind() {
            self.encoder.pong(payload, &mut self.unsent);
        }
    }

    pub(super) fn close(&mut self, code: Option<u16>, reason: &str) {
        self.encoder.close(code, reason, &mut self.unsent);
    }

    /// A Ping of ours ends what there is to send.
    pub(super) fn note_ping(&mut self) {
        self.ping_end = self.unsent.len();
    }

    /// That Ping has not been taken yet.
    pub(super) fn is_ping_unsent(&self) -> bool {
        self.sent < self.ping_end
    }

    /// Bytes that were taken so far.
    pub(super) fn n_taken(&self) -> u64 {
        self.n_taken + self.sent as u64
    }

    /// A Ping that waits elsewhere for its turn.
    pub(super) fn queue_ping(&self, aside: &mut Vec<u8>) {
        self.encoder.ping(&[], aside);
    }

    /// A Close that waits elsewhere for its turn.
    pub(super) fn queue_close(&self, code: Option<u16>, reason: &str, aside: &mut Vec<u8>) {
        self.encoder.close(code, reason, aside);
    }

    /// Memory for what waits.
    pub(super) fn n_held(&self) -> usize {
        self.unsent.capacity()
    }

    /// More waits than should.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind_by(0)
    }

    /// More waits than should, and `allowed` bytes more: what one read brings may come to as much again.
    pub(super) fn is_behind_by(&self, allowed: usize) -> bool {
        self.unsent.len() - self.sent > UNSENT_MAX_BYTES + allowed
    }

    pub(super) fn rest(&self) -> Option<&[u8]> {
        Some(&self.unsent[self.sent..]).filter(|rest| !rest.is_empty())
    }

    pub(super) fn took(&mut self, n: usize) {
        self.sent += n;
        if self.sent == self.unsent.len() {
            self.forget();
        }
    }

    pub(super) fn forget(&mut self) {
        self.n_taken += self.sent as u64;
        self.unsent = Vec::new();
        self.sent = 0;
        self.ping_end = 0;
    }
}
