//! The load generator: many WebSocket clients on one thread, every payload verified.
//!
//! In goes a [`Plan`]; out comes an [`Outcome`]. Raw framing on epoll, so that what is measured is the
//! peer and not this. [`client`] is one connection; here is what all of them do together.

pub mod client;
mod rooms;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::socket::Poll;
use client::{Client, Event, Scratch};
use rooms::Rooms;

/// Connections that are opened at a time: a peer's queue of new connections may be as short as 128.
const OPENING: usize = 64;
/// A peer that does nothing for so long does nothing any more.
const STALL: Duration = Duration::from_secs(10);
/// Longest wait for all who were cut off to be back.
const STORM_TIMEOUT: Duration = Duration::from_secs(60);
/// Latencies are kept to two digits: under a percent off.
const DIGITS: u8 = 2;

/// What to do to a peer.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the peer listens.
    pub target: SocketAddr,
    /// Path of the upgrade request, for example `/websocket`.
    pub path: String,
    /// Open WebSockets at a time.
    pub connections: usize,
    /// What they do.
    pub shape: Shape,
    /// Load before the measured span.
    pub warm_up: Duration,
    /// The measured span.
    pub duration: Duration,
}

/// What the connections of a plan do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Each sends a message, waits for its echo, sends the next.
    Echo {
        /// Payload of a message.
        bytes: usize,
    },
    /// All together send so many messages a second, in turn, whether or not the echoes keep up;
    /// latency counts from when a message was due.
    Paced {
        /// Payload of a message.
        bytes: usize,
        /// Of all connections together.
        messages_per_second: u32,
    },
    /// Each connects, upgrades, has one message echoed, closes with the closing handshake, and begins
    /// again. `messages` of the outcome counts sessions, latency is that of connect to 101.
    Churn {
        /// Payload of the message.
        bytes: usize,
    },
    /// Each connects and has one message echoed, then waits.
    Idle,
    /// As [`Shape::Idle`], and whoever is cut off connects again, however often: see [`storm`].
    Storm,
    /// Each sends messages, each acknowledged by a short one (path `/sink`).
    Upload {
        /// Payload of a message.
        bytes: usize,
    },
    /// In each room (path with `{room}`) one member says `burst` messages, everybody in the room is
    /// sent them in that order, and the next member says the next. `messages` of the outcome counts
    /// deliveries; what else is sent, greetings for example, is passed over.
    Fanout {
        /// As many rooms, with as many members each.
        rooms: usize,
        /// Length of what is said.
        bytes: usize,
        /// Said without waiting.
        burst: u64,
    },
    /// Each asks with a short message for a long one (path `/source/BYTES`).
    Download {
        /// Payload of a message.
        bytes: usize,
    },
}

/// What came of a plan within the measured span.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Length of the measured span, as it really was.
    pub duration: Duration,
    /// Messages that were answered (sessions, for [`Shape::Churn`]).
    pub messages: u64,
    /// Payload that went through and was verified, in bytes; without the short messages of up- and
    /// downloads.
    pub payload_bytes: u64,
    /// Nanoseconds from a message to its answer.
    pub latency: Histogram<u64>,
}

/// Carries out a plan on the calling thread. `at_start` is called when the measured span begins and
/// `at_end` when it ends, both while all connections are open.
///
/// # Errors
/// A connection was refused, closed, or answered with anything but what was sent; or nothing came
/// for 10 s. One failure fails the plan: a peer that loses messages has no cost per message.
pub fn run<T>(
    plan: &Plan,
    at_start: impl FnOnce() -> T,
    at_end: impl FnOnce(T),
) -> Result<Outcome> {
    let mut load = Load::new(plan)?;
    load.open_all()?;
    load.is_loaded = true;
    load.ask_all()?;
    load.go_on_until(Instant::now() + plan.warm_up)?;
    load.clear();
    let started = at_start();
    let begin = Instant::now();
    load.go_on_until(begin + plan.duration)?;
    let outcome = load.outcome(begin.elapsed());
    at_end(started);
    load.is_loaded = false;
    load.settle()?;
    Ok(outcome)
}

/// What came of a [`storm`].
#[derive(Debug, Clone)]
pub struct Storm {
    /// From the cut until the last was served again.
    pub duration: Duration,
    /// Nanoseconds from the cut until each was served again.
    pub latency: Histogram<u64>,
    /// Attempts that were refused or broke; each was made again at once.
    pub refused: u64,
}

/// Has `cut` end all connections, once they are open and each was answered; all connect again at once, and
/// have a message answered. `cut` returns when it began; `at_start` is called before it, and `at_end` when all
/// are back.
///
/// # Errors
/// They are not back in a minute.
pub fn storm<T>(
    plan: &Plan,
    at_start: impl FnOnce() -> T,
    cut: impl FnOnce() -> Result<Instant>,
    at_end: impl FnOnce(T),
) -> Result<Storm> {
    let mut load = Load::new(plan)?;
    load.open_all()?;
    load.go_on_until(Instant::now() + plan.warm_up)?;
    load.clear();
    let started = at_start();
    let cut_at = cut()?;
    load.cut_at = Some(cut_at);
    while load.latency.len() < load.clients.len() as u64 {
        if cut_at.elapsed() > STORM_TIMEOUT {
            bail!(
                "{} of {} were back in {STORM_TIMEOUT:?}, {} attempts were refused",
                load.latency.len(),
                load.clients.len(),
                load.refused
            );
        }
        load.turn(STALL)?;
    }
    let duration = cut_at.elapsed();
    at_end(started);
    Ok(Storm {
        duration,
        latency: load.latency,
        refused: load.refused,
    })
}

struct Load<'a> {
    plan: &'a Plan,
    poll: Poll,
    scratch: Scratch,
    clients: Vec<Client>,
    ready: Vec<usize>,
    /// Clients that have no 101 yet.
    opening: usize,
    /// Messages that have no answer yet.
    unanswered: usize,
    /// Whether an answer leads to the next message.
    is_loaded: bool,
    /// When [`Shape::Paced`] sends the next message, and on which connection.
    due: Instant,
    turn: usize,
    rooms: Rooms,
    /// When all connections of [`Shape::Storm`] were ended; none: not yet.
    cut_at: Option<Instant>,
    refused: u64,
    messages: u64,
    latency: Histogram<u64>,
}

impl<'a> Load<'a> {
    fn new(plan: &'a Plan) -> Result<Self> {
        let key = BASE64_STANDARD.encode(std::array::from_fn::<u8, 16, _>(|_| fastrand::u8(..)));
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n",
            plan.path, plan.target
        );
        Ok(Self {
            plan,
            poll: Poll::new()?,
            scratch: Scratch::new(plan.shape, request, derive_accept_key(key.as_bytes())),
            clients: vec![],
            ready: vec![],
            opening: 0,
            unanswered: 0,
            is_loaded: false,
            due: Instant::now(),
            turn: 0,
            rooms: Rooms::new(plan),
            cut_at: None,
            refused: 0,
            messages: 0,
            latency: Histogram::new(DIGITS)?,
        })
    }

    fn open_all(&mut self) -> Result<()> {
        // Those of the churn are never all open at once.
        if matches!(self.plan.shape, Shape::Churn { .. }) {
            return Ok(());
        }
        while self.clients.len() < self.plan.connections || self.opening > 0 {
            while self.clients.len() < self.plan.connections && self.opening < OPENING {
                self.open()?;
            }
            self.turn(STALL)?;
        }
        if matches!(self.plan.shape, Shape::Idle | Shape::Storm) {
            self.ask_all()?;
            self.settle()?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        let index = self.clients.len();
        self.clients
            .push(Client::connect(self.plan.target, &self.poll, index)?);
        self.opening += 1;
        Ok(())
    }

    /// The first message of each.
    fn ask_all(&mut self) -> Result<()> {
        match self.plan.shape {
            Shape::Churn { .. } => (0..self.plan.connections).try_for_each(|_| self.open()),
            Shape::Idle | Shape::Storm if self.is_loaded => Ok(()),
            Shape::Fanout { rooms, .. } => (0..rooms).try_for_each(|room| self.say(room)),
            Shape::Paced { .. } => {
                self.due = Instant::now();
                Ok(())
            }
            _ => (0..self.clients.len()).try_for_each(|index| self.ask(index, Instant::now())),
        }
    }

    fn ask(&mut self, index: usize, due: Instant) -> Result<()> {
        self.unanswered += 1;
        self.clients[index]
            .ask(&self.poll, &mut self.scratch, due)
            .with_context(|| format!("connection {index}"))
    }

    /// Has the next member of a room say its messages.
    fn say(&mut self, room: usize) -> Result<()> {
        let Shape::Fanout { bytes, .. } = self.plan.shape else {
            bail!("there are no rooms");
        };
        let said = self.rooms.say(room, Instant::now());
        self.unanswered += said.deliveries;
        for number in said.numbers {
            let text = rooms::text(room, number, bytes);
            self.clients[said.speaker].say(&self.poll, &mut self.scratch, &text)?;
        }
        Ok(())
    }

    fn go_on_until(&mut self, end: Instant) -> Result<()> {
        loop {
            let now = Instant::now();
            let Some(left) = end.checked_duration_since(now) else {
                return Ok(());
            };
            let due = self.ask_what_is_due(now)?;
            self.turn(left.min(due))?;
        }
    }

    /// Sends what is due in [`Shape::Paced`], and says how long nothing else is.
    fn ask_what_is_due(&mut self, now: Instant) -> Result<Duration> {
        let Shape::Paced {
            messages_per_second,
            ..
        } = self.plan.shape
        else {
            return Ok(STALL);
        };
        while self.due <= now {
            self.ask(self.turn, self.due)?;
            self.turn = (self.turn + 1) % self.clients.len();
            self.due += Duration::from_secs(1) / messages_per_second;
        }
        Ok(self.due - now)
    }

    /// Waits for the answers that are under way.
    fn settle(&mut self) -> Result<()> {
        while self.unanswered > 0 {
            self.turn(STALL)?;
        }
        Ok(())
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        self.poll.wait(&mut ready, timeout)?;
        if ready.is_empty() && timeout >= STALL && self.opening + self.unanswered > 0 {
            bail!(
                "nothing came for {STALL:?}; {} handshakes and {} messages are unanswered",
                self.opening,
                self.unanswered
            );
        }
        for &index in &ready {
            self.go_on_with(index).with_context(|| {
                format!(
                    "connection {index} of {}, {} messages in",
                    self.clients.len(),
                    self.messages
                )
            })?;
        }
        self.ready = ready;
        Ok(())
    }

    fn go_on_with(&mut self, index: usize) -> Result<()> {
        let event = self.clients[index].go_on(&self.poll, &mut self.scratch);
        if event.is_err() && self.cut_at.is_some() {
            return self.connect_again(index);
        }
        match event? {
            Event::None => {}
            Event::Opened { asked } => {
                self.opening -= 1;
                if let Some(cut_at) = self.cut_at {
                    self.ask(index, cut_at)?;
                }
                if let Shape::Churn { .. } = self.plan.shape {
                    self.record(asked)?;
                    self.ask(index, Instant::now())?;
                }
            }
            Event::Answered { asked, others } => {
                self.unanswered -= 1 + others.len();
                others.into_iter().try_for_each(|asked| self.count(asked))?;
                match self.plan.shape {
                    Shape::Churn { .. } => {
                        self.clients[index].close(&self.poll, &mut self.scratch)?
                    }
                    Shape::Paced { .. } | Shape::Idle | Shape::Storm | Shape::Fanout { .. } => {
                        self.count(asked)?
                    }
                    Shape::Echo { .. } | Shape::Upload { .. } | Shape::Download { .. } => {
                        self.count(asked)?;
                        if self.is_loaded {
                            self.ask(index, Instant::now())?;
                        }
                    }
                }
            }
            Event::Delivered { n } => {
                let asked = self.rooms.said_at(index);
                for _ in 0..n {
                    self.count(asked)?;
                }
                self.unanswered -= n;
                let everybody_has_heard = self.rooms.delivered(index, n);
                if everybody_has_heard && self.is_loaded {
                    self.say(self.rooms.of(index))?;
                }
            }
            Event::Closed => {
                self.messages += 1;
                if self.is_loaded {
                    self.clients[index] = Client::connect(self.plan.target, &self.poll, index)?;
                    self.opening += 1;
                }
            }
        }
        Ok(())
    }

    /// For one that was cut off, or that was refused since.
    fn connect_again(&mut self, index: usize) -> Result<()> {
        let client = &self.clients[index];
        match client.is_open() {
            true => {
                self.unanswered -= client.n_unanswered();
                self.opening += 1;
            }
            false => self.refused += 1,
        }
        self.clients[index] = Client::connect(self.plan.target, &self.poll, index)?;
        Ok(())
    }

    fn count(&mut self, asked: Instant) -> Result<()> {
        self.messages += 1;
        self.record(asked)
    }

    fn record(&mut self, asked: Instant) -> Result<()> {
        Ok(self
            .latency
            .record(u64::try_from(asked.elapsed().as_nanos())?)?)
    }

    fn clear(&mut self) {
        self.messages = 0;
        self.latency.clear();
    }

    fn outcome(&self, duration: Duration) -> Outcome {
        let bytes = match self.plan.shape {
            Shape::Echo { bytes }
            | Shape::Paced { bytes, .. }
            | Shape::Churn { bytes }
            | Shape::Fanout { bytes, .. }
            | Shape::Upload { bytes }
            | Shape::Download { bytes } => bytes,
            Shape::Idle | Shape::Storm => 0,
        };
        Outcome {
            duration,
            messages: self.messages,
            payload_bytes: self.messages * bytes as u64,
            latency: self.latency.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    const SPAN: Duration = Duration::from_millis(100);

    fn outcome(path: &str, connections: usize, shape: Shape) -> Result<Outcome> {
        let backend = Backend::start(1, None).unwrap();
        let plan = Plan {
            target: backend.addresses()[0],
            path: path.to_owned(),
            connections,
            shape,
            warm_up: SPAN,
            duration: SPAN,
        };
        run(&plan, || (), |()| ())
    }

    #[track_caller]
    fn check(path: &str, connections: usize, shape: Shape) {
        let outcome = outcome(path, connections, shape).unwrap();
        assert!(outcome.messages > 0, "{outcome:?}");
        assert!(outcome.latency.max() > 0, "{outcome:?}");
    }

    #[test]
    fn every_shape_is_answered_by_the_backend() {
        check("/", 3, Shape::Echo { bytes: 64 });
        check("/", 2, Shape::Echo { bytes: 100_000 });
        check("/", 3, Shape::Churn { bytes: 64 });
        check("/sink", 2, Shape::Upload { bytes: 1 << 20 });
        check("/source/1048576", 2, Shape::Download { bytes: 1 << 20 });
    }

    #[test]
    fn paced_messages_are_as_many_as_were_asked_for() {
        let shape = Shape::Paced {
            bytes: 64,
            messages_per_second: 1000,
        };
        let outcome = outcome("/", 5, shape).unwrap();
        assert!((90..=130).contains(&outcome.messages), "{outcome:?}");
    }

    #[test]
    fn paced_messages_that_are_answered_together_are_all_counted() {
        // On one connection, and faster than they are read one by one; all of them fit into its buffers,
        // for neither side reads while it cannot write.
        let shape = Shape::Paced {
            bytes: 64,
            messages_per_second: 20_000,
        };
        let outcome = outcome("/", 1, shape).unwrap();
        assert!(outcome.messages > 100, "{outcome:?}");
    }

    #[test]
    fn idle_connections_have_been_answered_before_the_span() {
        let outcome = outcome("/", 100, Shape::Idle).unwrap();
        assert_eq!(outcome.messages, 0);
    }

    #[test]
    fn all_who_were_cut_off_are_served_again() {
        let backend = Backend::start(1, None).unwrap();
        let plan = Plan {
            target: backend.addresses()[0],
            path: "/".to_owned(),
            connections: 200,
            shape: Shape::Storm,
            warm_up: SPAN,
            duration: SPAN,
        };
        let storm = storm(&plan, || (), || backend.cut(), |()| ()).unwrap();
        assert_eq!(storm.latency.len(), 200);
        assert!(storm.duration > Duration::ZERO, "{storm:?}");
    }

    #[test]
    fn everybody_in_a_room_hears_everything_in_its_turn() {
        use crate::native::{Library, serve};
        use crate::subjects::process::free_address;

        let target = free_address().unwrap();
        // It serves until the process ends.
        std::thread::spawn(move || serve(Library::TokioTungsteniteChat, target));
        while std::net::TcpStream::connect(target).is_err() {
            std::thread::yield_now();
        }
        let plan = Plan {
            target,
            path: "/chat?room={room}".to_owned(),
            connections: 12,
            shape: Shape::Fanout {
                rooms: 3,
                bytes: 64,
                burst: 4,
            },
            warm_up: SPAN,
            duration: SPAN,
        };
        let outcome = run(&plan, || (), |()| ()).unwrap();
        assert!(
            outcome.messages > 0 && outcome.latency.max() > 0,
            "{outcome:?}"
        );
    }

    #[test]
    fn a_wrong_answer_fails_the_plan() {
        let error = outcome("/sink", 1, Shape::Echo { bytes: 64 }).unwrap_err();
        assert!(format!("{error:#}").contains("64 bytes"), "{error:#}");
        let error = outcome("/", 1, Shape::Upload { bytes: 64 }).unwrap_err();
        assert!(format!("{error:#}").contains("2 bytes"), "{error:#}");
    }
}
