//! One client: connects, upgrades, asks, reads answers, closes.
//!
//! Knows what must come back, and nothing of the other clients.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use pointsman_contract::close;
use pointsman_protocol::header::Opcode;

use super::{Shape, rooms};
use crate::backend::{ACKNOWLEDGEMENT, STREAM};
use crate::framing::{Piece, Reader, payload, write_frame};
use crate::socket::{Poll, Received, Socket};

/// Bytes read at a time.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Longest answer to the upgrade that is waited for.
const HEAD_BYTES: usize = 16 * 1024;
/// Header fields that a peer may answer with.
const FIELDS: usize = 64;
/// Payload of a Close.
const NORMAL_CLOSURE: [u8; 2] = close::NORMAL.to_be_bytes();

/// What all clients of a plan share.
#[derive(Debug)]
pub struct Scratch {
    shape: Shape,
    request: String,
    accept: String,
    received: Vec<u8>,
    out: Vec<u8>,
}

impl Scratch {
    /// `accept` is the `Sec-WebSocket-Accept` that belongs to the key in `request`.
    pub fn new(shape: Shape, request: String, accept: String) -> Self {
        Self {
            shape,
            request,
            accept,
            received: vec![0; SCRATCH_BYTES],
            out: vec![],
        }
    }
}

/// What a report came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More is to come.
    None,
    /// The 101 has come.
    Opened {
        /// When it began to connect.
        asked: Instant,
    },
    /// An answer has come, whole and right.
    Answered {
        /// When the message was due.
        asked: Instant,
        /// Likewise those whose answers came with it: only paced messages are under way together.
        others: Vec<Instant>,
    },
    /// So many messages that were said in the client's room have come, each in its turn.
    Delivered {
        /// One or more.
        n: usize,
    },
    /// The closing handshake is done and the peer has closed.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    index: usize,
    state: State,
    reader: Reader,
    /// When each message was due that has no answer yet.
    asked: VecDeque<Instant>,
    /// Messages sent, and answers had.
    sent: u64,
    answered: u64,
    /// Bytes of the next answer that have come.
    seen: usize,
    /// What has come of the next message of a room.
    heard: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Connecting,
    /// The head of the answer, as far as it has come.
    Upgrading(Vec<u8>),
    Open,
    /// A Close has been sent; whether one has come.
    Closing {
        is_answered: bool,
    },
}

impl Client {
    /// Begins to connect. `index` is what the set reports, and which payloads it has.
    ///
    /// # Errors
    /// No descriptor or no port is free.
    pub fn connect(target: SocketAddr, poll: &Poll, index: usize) -> Result<Self> {
        Ok(Self {
            socket: Socket::connect(target, poll, index)?,
            index,
            state: State::Connecting,
            reader: Reader::default(),
            asked: VecDeque::from([Instant::now()]),
            sent: 0,
            answered: 0,
            seen: 0,
            heard: vec![],
        })
    }

    /// Sends the next message, which was due at `due`.
    ///
    /// # Errors
    /// The connection broke.
    pub fn ask(&mut self, poll: &Poll, scratch: &mut Scratch, due: Instant) -> Result<()> {
        let question = match scratch.shape {
            Shape::Download { .. } => payload(STREAM, self.sent, ACKNOWLEDGEMENT),
            Shape::Upload { bytes } => payload(STREAM, self.sent, bytes),
            Shape::Echo { bytes } | Shape::Paced { bytes, .. } | Shape::Churn { bytes } => {
                payload(self.index, self.sent, bytes)
            }
            Shape::Idle | Shape::Storm | Shape::Fanout { .. } => {
                payload(self.index, self.sent, ACKNOWLEDGEMENT)
            }
        };
        self.sent += 1;
        self.asked.push_back(due);
        self.send(poll, scratch, Opcode::BINARY, question)
    }

    /// Says something to its room.
    ///
    /// # Errors
    /// The connection broke.
    pub fn say(&mut self, poll: &Poll, scratch: &mut Scratch, text: &str) -> Result<()> {
        self.send(poll, scratch, Opcode::TEXT, text.as_bytes())
    }

    /// Begins the closing handshake.
    ///
    /// # Errors
    /// The connection broke.
    pub fn close(&mut self, poll: &Poll, scratch: &mut Scratch) -> Result<()> {
        self.state = State::Closing { is_answered: false };
        self.send(poll, scratch, Opcode::CLOSE, &NORMAL_CLOSURE)
    }

    fn send(
        &mut self,
        poll: &Poll,
        scratch: &mut Scratch,
        opcode: Opcode,
        payload: &[u8],
    ) -> Result<()> {
        let key = fastrand::u32(..).to_ne_bytes();
        scratch.out.clear();
        write_frame(&mut scratch.out, opcode, Some(key), payload);
        self.socket.send(poll, &scratch.out)
    }

    /// It has had its 101.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Messages that have no answer yet, of a client that is open.
    pub fn n_unanswered(&self) -> usize {
        self.asked.len()
    }

    /// Does what the set has reported to be possible.
    ///
    /// # Errors
    /// The peer refused, closed, or answered with anything but what it must.
    pub fn go_on(&mut self, poll: &Poll, scratch: &mut Scratch) -> Result<Event> {
        if matches!(self.state, State::Connecting) {
            self.state = State::Upgrading(vec![]);
            self.socket.wait_to_read(poll)?;
            let room = match scratch.shape {
                Shape::Fanout { rooms, .. } => self.index % rooms,
                _ => 0,
            };
            let request = scratch.request.replace("{room}", &room.to_string());
            self.socket.send(poll, request.as_bytes())?;
            return Ok(Event::None);
        }
        if self.socket.is_behind() {
            self.socket.flush(poll)?;
            return Ok(Event::None);
        }
        match self.socket.receive(&mut scratch.received)? {
            Received::Nothing => Ok(Event::None),
            Received::End => self.ended(),
            Received::Bytes(n) => self.received(n, scratch),
        }
    }

    fn ended(&self) -> Result<Event> {
        match self.state {
            State::Closing { is_answered: true } => Ok(Event::Closed),
            State::Closing { .. } => bail!("closed without a Close in return"),
            State::Open => bail!("closed by the peer"),
            State::Connecting | State::Upgrading(_) => {
                bail!("closed before the answer to the upgrade")
            }
        }
    }

    fn received(&mut self, n: usize, scratch: &mut Scratch) -> Result<Event> {
        let mut bytes = &mut scratch.received[..n];
        if let State::Upgrading(head) = &mut self.state {
            head.extend_from_slice(bytes);
            let Some(head_bytes) = switched(head, &scratch.accept)? else {
                return Ok(Event::None);
            };
            let is_greeted = matches!(scratch.shape, Shape::Fanout { .. });
            let behind = head.split_off(head_bytes);
            if !behind.is_empty() && !is_greeted {
                bail!(
                    "{} bytes behind the 101, before anything was asked",
                    behind.len()
                );
            }
            self.state = State::Open;
            self.pass_over(behind)?;
            return self
                .asked
                .pop_front()
                .map(|asked| Event::Opened { asked })
                .context("never connected");
        }
        if let Shape::Fanout { rooms, .. } = scratch.shape {
            return self.hear(bytes, self.index % rooms);
        }
        let mut event = Event::None;
        while let Some(piece) = self.reader.next(&mut bytes)? {
            if piece.opcode == Opcode::CLOSE {
                let State::Closing { is_answered } = &mut self.state else {
                    bail!("a Close that nobody asked for: {:?}", piece.payload);
                };
                *is_answered = true;
            } else if is_whole_answer(
                &mut self.seen,
                scratch.shape,
                self.index,
                self.answered,
                &piece,
            )? {
                self.answered += 1;
                let asked = self.asked.pop_front().context("an answer to nothing")?;
                match &mut event {
                    Event::Answered { others, .. } => others.push(asked),
                    _ => {
                        let others = vec![];
                        event = Event::Answered { asked, others };
                    }
                }
            }
        }
        Ok(event)
    }
}

impl Client {
    /// What comes with the 101, before anybody has said anything.
    fn pass_over(&mut self, mut bytes: Vec<u8>) -> Result<()> {
        let mut bytes = bytes.as_mut_slice();
        while let Some(piece) = self.reader.next(&mut bytes)? {
            self.heard.extend_from_slice(piece.payload);
            if piece.is_last() && piece.is_final {
                self.heard.clear();
            }
        }
        Ok(())
    }

    /// Counts what was said in the room, which must come in its turn; passes over anything else.
    fn hear(&mut self, mut bytes: &mut [u8], room: usize) -> Result<Event> {
        let mut n = 0;
        while let Some(piece) = self.reader.next(&mut bytes)? {
            if piece.opcode == Opcode::CLOSE {
                bail!("a Close that nobody asked for: {:?}", piece.payload);
            }
            self.heard.extend_from_slice(piece.payload);
            if !(piece.is_last() && piece.is_final) {
                continue;
            }
            let text = std::str::from_utf8(&self.heard)?;
            if text.contains(&rooms::mark(room, self.answered)) {
                self.answered += 1;
                n += 1;
            } else if text.contains(&format!("<{room}:")) && !text.contains("history") {
                bail!(
                    "message {} of room {room} was due, not {text}",
                    self.answered
                );
            }
            self.heard.clear();
        }
        Ok(match n {
            0 => Event::None,
            n => Event::Delivered { n },
        })
    }
}

/// Length of the head, once it is whole.
fn switched(head: &[u8], accept: &str) -> Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(bytes) = response.parse(head)? else {
        if head.len() > HEAD_BYTES {
            bail!("an answer of over {HEAD_BYTES} bytes");
        }
        return Ok(None);
    };
    if response.code != Some(101) {
        bail!(
            "the upgrade was answered with {:?}",
            response.code.unwrap_or_default()
        );
    }
    let mut fields = response.headers.iter();
    let field = fields.find(|field| field.name.eq_ignore_ascii_case("sec-websocket-accept"));
    if field.map(|field| field.value) != Some(accept.as_bytes()) {
        bail!("the 101 has a wrong Sec-WebSocket-Accept");
    }
    Ok(Some(bytes))
}

/// Compares a piece with what must come; whether the answer is whole with it.
fn is_whole_answer(
    seen: &mut usize,
    shape: Shape,
    index: usize,
    answered: u64,
    piece: &Piece<'_>,
) -> Result<bool> {
    let expected = match shape {
        Shape::Upload { .. } => payload(STREAM, answered, ACKNOWLEDGEMENT),
        Shape::Download { bytes } => payload(STREAM, answered, bytes),
        Shape::Echo { bytes } | Shape::Paced { bytes, .. } | Shape::Churn { bytes } => {
            payload(index, answered, bytes)
        }
        Shape::Idle | Shape::Storm | Shape::Fanout { .. } => {
            payload(index, answered, ACKNOWLEDGEMENT)
        }
    };
    if expected.get(*seen..*seen + piece.payload.len()) != Some(piece.payload) {
        bail!(
            "the answer is not the message of {} bytes that was due",
            expected.len()
        );
    }
    *seen += piece.payload.len();
    if !(piece.is_last() && piece.is_final) {
        return Ok(false);
    }
    if *seen < expected.len() {
        bail!(
            "the answer has {seen} bytes instead of {} bytes",
            expected.len()
        );
    }
    *seen = 0;
    Ok(true)
}
