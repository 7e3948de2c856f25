//! Messages in, frames out.

use pointsman_contract::message::Received;

use super::deflate::Deflater;
use crate::header::{CONTROL_MAX_BYTES, Header, KeySource, Opcode};

/// Shorter messages are sent as they are, which the extension allows: they gain less than they cost.
const DEFLATE_FROM_BYTES: usize = 1024;

/// Writes what goes to one peer.
#[derive(Debug)]
pub struct Encoder {
    /// None: ours are the frames of a server, which are not masked.
    keys: Option<KeySource>,
    deflater: Option<Deflater>,
}

impl Encoder {
    /// As a server, for a client. `deflater`: where permessage-deflate was agreed on.
    pub fn server(deflater: Option<Deflater>) -> Self {
        Self {
            keys: None,
            deflater,
        }
    }

    /// As a client, for a server: each frame is masked with a key of its own.
    pub fn client(keys: KeySource, deflater: Option<Deflater>) -> Self {
        Self {
            keys: Some(keys),
            deflater,
        }
    }

    /// Appends a whole data message, in one frame.
    pub fn message(&mut self, message: Received<'_>, out: &mut Vec<u8>) {
        let (opcode, payload) = match message {
            Received::Text(text) => (Opcode::TEXT, text.as_bytes()),
            Received::Binary(bytes) => (Opcode::BINARY, bytes),
        };
        match &mut self.deflater {
            Some(deflater) if payload.len() >= DEFLATE_FROM_BYTES => {
                let mut small = Vec::new();
                deflater.message(payload, &mut small);
                self.frame(opcode, true, &small, out);
            }
            _ => self.frame(opcode, false, payload, out),
        }
    }

    /// Appends a Ping; at most 125 bytes of payload are sent.
    pub fn ping(&self, payload: &[u8], out: &mut Vec<u8>) {
        self.control(Opcode::PING, payload, out);
    }

    /// Appends a Pong, as [`Encoder::ping`].
    pub fn pong(&self, payload: &[u8], out: &mut Vec<u8>) {
        self.control(Opcode::PONG, payload, out);
    }

    /// Appends a Close; without a code where there is none to answer.
    pub fn close(&self, code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
        let mut payload = [0; CONTROL_MAX_BYTES];
        let mut n = 0;
        if let Some(code) = code {
            let reason = &reason.as_bytes()[..reason.len().min(CONTROL_MAX_BYTES - 2)];
            n = 2 + reason.len();
            payload[..2].copy_from_slice(&code.to_be_bytes());
            payload[2..n].copy_from_slice(reason);
        }
        self.control(Opcode::CLOSE, &payload[..n], out);
    }

    fn control(&self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
        let n = payload.len().min(CONTROL_MAX_BYTES);
        self.frame(opcode, false, &payload[..n], out);
    }

    fn frame(&self, opcode: Opcode, is_compressed: bool, payload: &[u8], out: &mut Vec<u8>) {
        let key = self.keys.map(|next| next());
        let header = Header {
            is_compressed,
            ..Header::whole(opcode, key, payload.len() as u64)
        };
        header.write_frame(payload, out);
    }
}
