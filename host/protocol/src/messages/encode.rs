//! Messages in, frames out.

use pointsman_contract::message::Received;

use super::deflate::Deflater;
use super::{CONTROL_MAX_BYTES, End, FIN, MASKED, RSV1, mask, opcode};

/// Shorter messages are sent as they are, which the extension allows: they gain less than they cost.
const DEFLATE_FROM_BYTES: usize = 1024;
/// Longer than any header.
const MAX_HEADER_BYTES: usize = 14;

/// Writes what goes to one far end.
#[derive(Debug)]
pub struct Encoder {
    end: End,
    deflater: Option<Deflater>,
}

impl Encoder {
    /// `deflater`: where permessage-deflate was agreed on.
    pub fn new(end: End, deflater: Option<Deflater>) -> Self {
        Self { end, deflater }
    }

    /// Appends a whole data message, in one frame.
    pub fn message(&mut self, message: Received<'_>, out: &mut Vec<u8>) {
        let (opcode, payload) = match message {
            Received::Text(text) => (opcode::TEXT, text.as_bytes()),
            Received::Binary(bytes) => (opcode::BINARY, bytes),
        };
        match &mut self.deflater {
            Some(deflater) if payload.len() >= DEFLATE_FROM_BYTES => {
                let mut small = Vec::new();
                deflater.message(payload, &mut small);
                self.frame(FIN | RSV1 | opcode, &small, out);
            }
            _ => self.frame(FIN | opcode, payload, out),
        }
    }

    /// Appends a Ping; at most 125 bytes of payload are sent.
    pub fn ping(&self, payload: &[u8], out: &mut Vec<u8>) {
        self.control(opcode::PING, payload, out);
    }

    /// Appends a Pong, as [`Encoder::ping`].
    pub fn pong(&self, payload: &[u8], out: &mut Vec<u8>) {
        self.control(opcode::PONG, payload, out);
    }

    /// Appends a Close; without a code where there is none to answer.
    pub fn close(&self, code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
        let payload = match code {
            Some(code) => [&code.to_be_bytes(), reason.as_bytes()].concat(),
            None => Vec::new(),
        };
        self.control(opcode::CLOSE, &payload, out);
    }

    fn control(&self, opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
        self.frame(
            FIN | opcode,
            &payload[..payload.len().min(CONTROL_MAX_BYTES)],
            out,
        );
    }

    /// RFC 6455 section 5.2.
    fn frame(&self, first: u8, payload: &[u8], out: &mut Vec<u8>) {
        out.reserve(MAX_HEADER_BYTES + payload.len());
        let masked = match self.end {
            End::Server => 0,
            End::Client => MASKED,
        };
        out.push(first);
        match payload.len() {
            n @ 0..=125 => out.push(masked | n as u8),
            n @ 126..=0xffff => {
                out.push(masked | 126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                out.push(masked | 127);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        let key = match self.end {
            End::Server => return out.extend_from_slice(payload),
            End::Client => fastrand::u32(..).to_ne_bytes(),
        };
        out.extend_from_slice(&key);
        let from = out.len();
        out.extend_from_slice(payload);
        mask(&mut out[from..], key, 0);
    }
}
