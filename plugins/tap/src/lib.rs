//! Filter `tap`: looks at messages and changes nothing. It counts them and their bytes, by direction and
//! kind, and writes every so many into the log.

use std::cell::Cell;
use std::rc::Rc;

use pointsman_sdk::{
    Facts, Message, Report,
    filter::{Direction, Directions, Filter, FilterSession, Interest, Verdict},
    log, metrics,
};
use serde::Deserialize;

/// Longest sample: a line of the log has 4 KiB.
const MAX_SAMPLE_BYTES: usize = 3072;

/// What an operator may say.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is looked at.
    #[serde(default = "default_directions")]
    directions: Directions,
    /// Every so many messages of an instance, one is logged; 0: none.
    #[serde(default)]
    sample_every: u64,
    /// How much of it, in bytes; 1 to [`MAX_SAMPLE_BYTES`].
    #[serde(default = "default_sample_bytes")]
    sample_bytes: usize,
}

fn default_directions() -> Directions {
    Directions::Both
}

fn default_sample_bytes() -> usize {
    256
}

/// Counts for all sessions of its instance.
#[derive(Debug)]
pub struct Tap {
    config: Config,
    counts: Rc<Counts>,
}

/// One session.
#[derive(Debug)]
pub struct TapSession {
    config: Config,
    counts: Rc<Counts>,
    request_id: String,
}

/// What an instance has seen. The host is told of it now and then: telling costs more than counting.
#[derive(Debug, Default)]
struct Counts {
    seen: Cell<u64>,
    /// By [`NAMES`], what the host was not told yet.
    untold: [Cell<u64>; NAMES.len()],
    n_untold: Cell<u64>,
}

/// Messages and bytes, in the order of [`place`].
const NAMES: [&str; 8] = [
    "client_text_messages",
    "client_text_bytes",
    "client_binary_messages",
    "client_binary_bytes",
    "backend_text_messages",
    "backend_text_bytes",
    "backend_binary_messages",
    "backend_binary_bytes",
];

/// Messages that the host may not have been told of.
const UNTOLD_MAX: u64 = 256;
/// After so long it is told in any case.
const TELL_MS: u32 = 1000;

impl Filter for Tap {
    type Config = Config;
    type Session = TapSession;

    fn configure(config: Config) -> Result<Self, String> {
        let bytes = config.sample_bytes;
        if !(1..=MAX_SAMPLE_BYTES).contains(&bytes) {
            return Err(format!(
                "sample_bytes: {bytes} is not allowed: a number of bytes, 1 to {MAX_SAMPLE_BYTES}"
            ));
        }
        let counts = Rc::default();
        Ok(Self { config, counts })
    }

    fn open(&mut self, facts: Facts) -> TapSession {
        TapSession {
            config: self.config,
            counts: Rc::clone(&self.counts),
            request_id: facts.request_id,
        }
    }
}

impl FilterSession for TapSession {
    fn interest(&self) -> Interest {
        self.config.directions.interest()
    }

    fn message(&mut self, from: Direction, message: Message) -> Verdict {
        let seen = self.counts.count(from, &message);
        let every = self.config.sample_every;
        if every > 0 && seen.is_multiple_of(every) {
            log::info(self.sample(from, &message));
        }
        Verdict::Forward
    }

    fn tick_interval_ms(&self) -> u32 {
        TELL_MS
    }

    fn tick(&mut self) -> Verdict {
        self.counts.tell();
        Verdict::Drop
    }

    fn closed(&mut self, _report: &Report) {
        self.counts.tell();
    }
}

impl Counts {
    /// Returns how many the instance has seen.
    fn count(&self, from: Direction, message: &Message) -> u64 {
        let add = |cell: &Cell<u64>, n| cell.set(cell.get() + n);
        let place = place(from, message);
        add(&self.untold[place], 1);
        add(&self.untold[place + 1], message.len() as u64);
        add(&self.seen, 1);
        add(&self.n_untold, 1);
        if self.n_untold.get() >= UNTOLD_MAX {
            self.tell();
        }
        self.seen.get()
    }

    fn tell(&self) {
        if self.n_untold.replace(0) == 0 {
            return;
        }
        for (name, untold) in NAMES.iter().zip(&self.untold) {
            match untold.replace(0) {
                0 => {}
                n => metrics::count(name, n),
            }
        }
    }
}

impl TapSession {
    /// Text as it is but for control characters, bytes as hexadecimal digits.
    fn sample(&self, from: Direction, message: &Message) -> String {
        let max = self.config.sample_bytes;
        let (kind, shown) = match message {
            Message::Text(text) => {
                let cut = &text[..text.floor_char_boundary(max)];
                ("text", cut.escape_debug().to_string())
            }
            Message::Binary(bytes) => {
                let digits = bytes.iter().take(max / 2).map(|byte| format!("{byte:02x}"));
                ("binary", digits.collect())
            }
        };
        let from = match from {
            Direction::FromClient => "client",
            Direction::FromBackend => "backend",
        };
        let (id, n) = (&self.request_id, message.len());
        format!("{kind} of {n} bytes from the {from}, request {id}: {shown}")
    }
}

fn place(from: Direction, message: &Message) -> usize {
    let side = match from {
        Direction::FromClient => 0,
        Direction::FromBackend => 4,
    };
    match message {
        Message::Text(_) => side,
        Message::Binary(_) => side + 2,
    }
}

pointsman_sdk::export!(Tap: filter);

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{FilterHost, counted, facts, log_lines, report};
    use serde_json::{Value, json};

    use super::*;

    fn start(config: Value) -> FilterHost<Tap> {
        FilterHost::start(config).unwrap()
    }

    #[test]
    fn everything_passes_and_is_counted() {
        let mut host = start(json!({}));
        let mut session = host.open(facts()).unwrap();
        for verdict in [
            session.from_client(Message::text("four")),
            session.from_client(Message::binary([1, 2])),
            session.from_backend(Message::text("")),
            session.from_backend(Message::binary([1, 2, 3])),
            session.from_backend(Message::binary([1])),
        ] {
            assert_eq!(verdict, Verdict::Forward);
        }
        assert_eq!(counted("client_text_messages"), 0, "not yet");
        assert_eq!(session.tick(), Verdict::Drop);
        for (name, n) in [
            ("client_text_messages", 1),
            ("client_text_bytes", 4),
            ("client_binary_messages", 1),
            ("client_binary_bytes", 2),
            ("backend_text_messages", 1),
            ("backend_text_bytes", 0),
            ("backend_binary_messages", 2),
            ("backend_binary_bytes", 4),
        ] {
            assert_eq!(counted(name), n, "{name}");
        }
        assert!(log_lines().is_empty());
        session.from_client(Message::text("once more"));
        session.end(&report());
        assert_eq!(counted("client_text_messages"), 2);
    }

    #[test]
    fn a_busy_instance_tells_what_it_counts_in_lots() {
        let mut host = start(json!({}));
        let mut session = host.open(facts()).unwrap();
        for n in 1..=600 {
            session.from_client(Message::text("x"));
            assert_eq!(counted("client_text_messages"), n / 256 * 256);
        }
    }

    #[test]
    fn a_direction_that_is_not_looked_at_costs_nothing() {
        for (directions, client, backend) in [
            ("from_client", true, false),
            ("from_backend", false, true),
            ("both", true, true),
        ] {
            let mut host = start(json!({ "directions": directions }));
            let interest = host.open(facts()).unwrap().session().interest();
            assert_eq!(interest.contains(Interest::CLIENT_TEXT), client);
            assert_eq!(interest.contains(Interest::CLIENT_BINARY), client);
            assert_eq!(interest.contains(Interest::BACKEND_TEXT), backend);
            assert_eq!(interest.contains(Interest::BACKEND_BINARY), backend);
        }
    }

    #[test]
    fn samples_are_taken_over_all_sessions_and_cut() {
        let mut host = start(json!({ "sample_every": 2, "sample_bytes": 4 }));
        let mut first = host.open(facts()).unwrap();
        let mut second = host.open(facts()).unwrap();
        first.from_client(Message::text("one"));
        second.from_client(Message::text("grüße\n"));
        first.from_backend(Message::text("three"));
        second.from_backend(Message::binary([0, 255, 7]));
        let lines: Vec<String> = log_lines().into_iter().map(|line| line.text).collect();
        assert_eq!(
            lines,
            [
                "text of 8 bytes from the client, request test: grü",
                "binary of 3 bytes from the backend, request test: 00ff",
            ]
        );
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        for (config, named) in [
            (json!({ "sample_bytes": 0 }), "sample_bytes: 0"),
            (json!({ "sample_bytes": 4096 }), "1 to 3072"),
            (json!({ "directions": "up" }), "up"),
            (json!({ "loud": true }), "`loud`"),
        ] {
            let refused = FilterHost::<Tap>::start(config).unwrap_err();
            assert!(refused.contains(named), "{refused}");
        }
    }
}
