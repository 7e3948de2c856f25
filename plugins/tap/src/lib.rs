//! Filter `tap`: counts the messages that pass, their bytes and their sizes, and logs one of so many.
//! It changes nothing: every message is forwarded.

use std::{cell::Cell, fmt::Write, rc::Rc};

use pointsman_sdk::{
    Facts, Message,
    filter::{Direction, Directions, Filter, FilterSession, Interest, Verdict},
    log, metrics,
};
use serde::Deserialize;

/// Of a sample: what the host's log keeps of a line.
const MAX_SAMPLE_BYTES: i64 = 4096;

/// What an operator may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 0: no samples; n: every n-th message of the instance is logged.
    #[serde(default)]
    sample_every: i64,
    /// 1 to [`MAX_SAMPLE_BYTES`].
    #[serde(default = "default_sample_bytes")]
    sample_bytes: i64,
    #[serde(default = "default_directions")]
    directions: Directions,
}

fn default_sample_bytes() -> i64 {
    256
}

fn default_directions() -> Directions {
    Directions::Both
}

/// What the sessions of this instance share.
#[derive(Debug)]
pub struct Tap {
    samples: Rc<Samples>,
    directions: Directions,
}

#[derive(Debug)]
struct Samples {
    /// 0: there are none.
    every: u64,
    max_bytes: usize,
    n_messages: Cell<u64>,
}

impl Filter for Tap {
    type Config = Config;
    type Session = TappedSession;

    fn configure(config: Config) -> Result<Self, String> {
        let mut problems = Vec::new();
        let (every, bytes) = (config.sample_every, config.sample_bytes);
        if every < 0 {
            problems.push(format!(
                "sample_every: {every} is not allowed: 1 or more, or 0 for no samples"
            ));
        }
        if !(1..=MAX_SAMPLE_BYTES).contains(&bytes) {
            problems.push(format!(
                "sample_bytes: {bytes} is not allowed: 1 to {MAX_SAMPLE_BYTES}"
            ));
        }
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let samples = Samples {
            every: every.unsigned_abs(),
            max_bytes: bytes.unsigned_abs() as usize,
            n_messages: Cell::new(0),
        };
        Ok(Self {
            samples: Rc::new(samples),
            directions: config.directions,
        })
    }

    fn open(&mut self, facts: Facts) -> TappedSession {
        TappedSession {
            id: facts.session,
            samples: Rc::clone(&self.samples),
            directions: self.directions,
        }
    }
}

pointsman_sdk::export!(Tap: filter);

/// One session that is listened to.
#[derive(Debug)]
pub struct TappedSession {
    id: u64,
    samples: Rc<Samples>,
    directions: Directions,
}

impl FilterSession for TappedSession {
    fn interest(&self) -> Interest {
        self.directions.interest()
    }

    fn message(&mut self, from: Direction, message: Message) -> Verdict {
        count(from, &message);
        if self.samples.is_next() {
            log::info(sample(self.id, from, &message, self.samples.max_bytes));
        }
        Verdict::Forward
    }
}

/// Names are whole and constant, so that one who looks for a metric of the page finds it here, and no
/// message makes a new one.
fn count(from: Direction, message: &Message) {
    let (messages, bytes) = match (from, message) {
        (Direction::FromClient, Message::Text(_)) => ("client_text_messages", "client_text_bytes"),
        (Direction::FromClient, Message::Binary(_)) => {
            ("client_binary_messages", "client_binary_bytes")
        }
        (Direction::FromBackend, Message::Text(_)) => {
            ("backend_text_messages", "backend_text_bytes")
        }
        (Direction::FromBackend, Message::Binary(_)) => {
            ("backend_binary_messages", "backend_binary_bytes")
        }
    };
    metrics::count(messages, 1);
    metrics::count(bytes, message.len() as u64);
    metrics::count(size_class(from, message.len()), 1);
}

/// Each message is in one class. The first bound is what fits into the shortest header of a frame
/// (RFC 6455 section 5.2).
fn size_class(from: Direction, n_bytes: usize) -> &'static str {
    match (from, n_bytes) {
        (Direction::FromClient, 0..=125) => "client_sizes_to_125",
        (Direction::FromClient, 126..=1024) => "client_sizes_to_1024",
        (Direction::FromClient, 1025..=16_384) => "client_sizes_to_16384",
        (Direction::FromClient, 16_385..=262_144) => "client_sizes_to_262144",
        (Direction::FromClient, _) => "client_sizes_above_262144",
        (Direction::FromBackend, 0..=125) => "backend_sizes_to_125",
        (Direction::FromBackend, 126..=1024) => "backend_sizes_to_1024",
        (Direction::FromBackend, 1025..=16_384) => "backend_sizes_to_16384",
        (Direction::FromBackend, 16_385..=262_144) => "backend_sizes_to_262144",
        (Direction::FromBackend, _) => "backend_sizes_above_262144",
    }
}

impl Samples {
    /// Counts a message.
    fn is_next(&self) -> bool {
        let n_messages = self.n_messages.get() + 1;
        self.n_messages.set(n_messages);
        self.every > 0 && n_messages.is_multiple_of(self.every)
    }
}

/// One line. Text is quoted and escaped, so that no client can write lines of its own; binary is
/// hexadecimal.
fn sample(session: u64, from: Direction, message: &Message, max_bytes: usize) -> String {
    let from = match from {
        Direction::FromClient => "client",
        Direction::FromBackend => "backend",
    };
    let (kind, shown, content) = match message {
        Message::Text(text) => {
            let start = &text[..text.floor_char_boundary(max_bytes)];
            ("text", start.len(), format!("{start:?}"))
        }
        Message::Binary(bytes) => {
            let start = &bytes[..bytes.len().min(max_bytes)];
            ("binary", start.len(), hex(start))
        }
    };
    let n_bytes = message.len();
    let more = if shown < n_bytes { "..." } else { "" };
    format!("session {session}: {kind} of {n_bytes} bytes from the {from}: {content}{more}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        log::Level,
        testing::{FilterHost, counted, facts, log_lines},
    };
    use serde_json::{Value, json};

    use super::*;

    fn start(config: Value) -> FilterHost<Tap> {
        FilterHost::start(config).unwrap()
    }

    fn lines() -> Vec<String> {
        let lines = log_lines().into_iter();
        lines
            .inspect(|line| assert_eq!(line.level, Level::Info))
            .map(|line| line.text)
            .collect()
    }

    #[test]
    fn messages_and_bytes_are_counted_by_direction_and_kind() {
        let mut session = start(json!({})).open(facts()).unwrap();
        for text in ["", "a", "ü"] {
            assert_eq!(session.from_client(Message::text(text)), Verdict::Forward);
        }
        assert_eq!(
            session.from_client(Message::binary([0; 5])),
            Verdict::Forward
        );
        assert_eq!(
            session.from_backend(Message::text("abcd")),
            Verdict::Forward
        );
        assert_eq!(
            session.from_backend(Message::binary([0; 126])),
            Verdict::Forward
        );
        assert_eq!(
            session.from_backend(Message::binary([0; 4])),
            Verdict::Forward
        );
        for (name, messages, bytes) in [
            ("client_text", 3, 3),
            ("client_binary", 1, 5),
            ("backend_text", 1, 4),
            ("backend_binary", 2, 130),
        ] {
            assert_eq!(counted(&format!("{name}_messages")), messages, "{name}");
            assert_eq!(counted(&format!("{name}_bytes")), bytes, "{name}");
        }
        assert_eq!(counted("client_sizes_to_125"), 4);
        assert_eq!(counted("backend_sizes_to_125"), 2);
        assert_eq!(counted("backend_sizes_to_1024"), 1);
        assert!(lines().is_empty());
    }

    #[test]
    fn sizes_are_bounded_by_the_numbers_in_their_names() {
        for (n_bytes, class) in [
            (0, "to_125"),
            (125, "to_125"),
            (126, "to_1024"),
            (1024, "to_1024"),
            (1025, "to_16384"),
            (16_384, "to_16384"),
            (16_385, "to_262144"),
            (262_144, "to_262144"),
            (262_145, "above_262144"),
        ] {
            let name = |from| size_class(from, n_bytes);
            assert_eq!(name(Direction::FromClient), format!("client_sizes_{class}"));
            assert_eq!(
                name(Direction::FromBackend),
                format!("backend_sizes_{class}")
            );
        }
    }

    #[test]
    fn every_nth_message_of_the_instance_is_logged() {
        let mut host = start(json!({"sample_every": 3}));
        let mut sessions = [host.open(facts()).unwrap(), host.open(facts()).unwrap()];
        for n in 1..=7 {
            let session = &mut sessions[n % 2];
            session.from_client(Message::text(n.to_string()));
        }
        assert_eq!(
            lines(),
            [
                "session 2: text of 1 bytes from the client: \"3\"",
                "session 1: text of 1 bytes from the client: \"6\"",
            ]
        );
    }

    #[test]
    fn samples_are_cut_and_escaped() {
        let check = |message: Message, expected: &str| {
            let config = json!({"sample_every": 1, "sample_bytes": 4});
            let mut session = start(config).open(facts()).unwrap();
            session.from_backend(message);
            let expected = format!("session 1: {expected}");
            assert_eq!(lines(), [expected]);
        };
        check(
            Message::text("abcd"),
            "text of 4 bytes from the backend: \"abcd\"",
        );
        check(
            Message::text("abcde"),
            "text of 5 bytes from the backend: \"abcd\"...",
        );
        check(
            Message::text("abcü"),
            "text of 5 bytes from the backend: \"abc\"...",
        );
        check(
            Message::text("a\n\"\u{1b}"),
            r#"text of 4 bytes from the backend: "a\n\"\u{1b}""#,
        );
        check(Message::text(""), "text of 0 bytes from the backend: \"\"");
        check(
            Message::binary([0, 255, 16, 1, 2]),
            "binary of 5 bytes from the backend: 00ff1001...",
        );
        // What every sample has at most without a word, and a whole line has.
        let config = json!({"sample_every": 1, "sample_bytes": 4096});
        let mut session = start(config).open(facts()).unwrap();
        session.from_backend(Message::text("x".repeat(5000)));
        assert_eq!(lines()[0].len(), 4096);
    }

    #[test]
    fn only_the_directions_asked_for_are_seen() {
        for (directions, interest) in [
            (
                "from_client",
                Interest::CLIENT_TEXT | Interest::CLIENT_BINARY,
            ),
            (
                "from_backend",
                Interest::BACKEND_TEXT | Interest::BACKEND_BINARY,
            ),
            ("both", Interest::all()),
        ] {
            let mut session = start(json!({"directions": directions}))
                .open(facts())
                .unwrap();
            assert_eq!(session.session().interest(), interest);
        }
        let mut session = start(json!({})).open(facts()).unwrap();
        assert_eq!(session.session().interest(), Interest::all());
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let check = |config, expected| {
            let refused = FilterHost::<Tap>::start(config);
            assert_eq!(refused.unwrap_err(), expected);
        };
        check(
            json!({"sample_every": -1, "sample_bytes": 4097}),
            "sample_every: -1 is not allowed: 1 or more, or 0 for no samples; \
             sample_bytes: 4097 is not allowed: 1 to 4096",
        );
        check(
            json!({"sample_bytes": 0}),
            "sample_bytes: 0 is not allowed: 1 to 4096",
        );
        check(
            json!({"sample_every": "2"}),
            "sample_every: invalid type: string \"2\", expected i64",
        );
        check(
            json!({"directions": "up"}),
            "directions: \"up\" is not allowed: one of \"from_client\", \"from_backend\", \"both\"",
        );
        check(
            json!({"sample": 2}),
            "unknown field `sample`, expected one of `sample_every`, `sample_bytes`, `directions`",
        );
    }
}
