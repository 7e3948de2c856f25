//! What hostile clients and lying backends send, as a table: each case is a value that says what is
//! sent on either side and what has to come of it. The test in `it/hostile.rs` and the program that
//! compares Pointsman with its peers run the same table.
//!
//! `clients` and `backends` are the table, `recorder` is the backend that it is run with, `run` runs one
//! case and `peers` starts what it is run against.

mod backends;
mod clients;
mod paths;
mod peers;
mod recorder;
mod report;
mod run;

use std::time::Duration;

pub use peers::{Peer, Running, config, trusting_config};
pub use recorder::Recorder;
pub use report::{page, summary};
pub use run::{Outcome, run};

/// How long a subject waits for a client's head, and for a backend's answer.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// One exchange, and what has to come of it.
#[derive(Debug)]
pub struct Case {
    /// The heading it stands under.
    pub group: &'static str,
    /// What is odd about it.
    pub name: String,
    /// What the client does.
    pub client: Vec<Step>,
    /// What the backend does when a head is in; where two are asked, the one that is asked first.
    pub backend: Vec<Act>,
    /// What has to come of it.
    pub expected: Expected,
    /// Whether the balancer believes this client about others.
    pub is_trusted: bool,
    /// Why something other than a refusal is right, where one would expect a refusal.
    pub note: &'static str,
}

/// One thing that a client does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends this at once.
    Send(Vec<u8>),
    /// Sends this byte by byte, with a pause before each.
    Dribble(Vec<u8>, Duration),
    /// Waits until the head of an answer is in.
    Answered,
    /// Waits until this has come.
    Receive(&'static [u8]),
    /// Ends its half of the connection.
    Fin,
    /// Resets the connection.
    Reset,
}

/// One thing that a backend does.
#[derive(Clone, Debug)]
pub enum Act {
    /// A correct 101 to an upgrade and `hi` to what comes then; `ok` to another request.
    Usual,
    /// Says this.
    Say(Vec<u8>),
    /// A correct 101, but with this text of it replaced by another.
    Accept(&'static str, &'static str),
    /// Takes note if anything comes for so long: nothing should.
    Quiet(Duration),
    /// Waits until this has come.
    Hear(Vec<u8>),
    /// Waits until the other side has ended its half.
    HearEnd,
    /// Says this again and again.
    Flood(&'static [u8]),
    /// Says this byte by byte, with a pause before each.
    Dribble(Vec<u8>, Duration),
    /// Ends its half of the connection, and reads on.
    Fin,
    /// Resets the connection.
    Reset,
    /// Closes the connection.
    Close,
}

/// What a case has to come to.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The answers' statuses, in order.
    pub statuses: Vec<u16>,
    /// Another status that will do for the only answer.
    pub or: Option<u16>,
    /// How many connections a backend may have heard a request on; none: any number.
    pub n_heard: Option<usize>,
    /// Whether both backends have to be asked in the end.
    pub is_tried_elsewhere: bool,
    /// In what the backend was sent, in lower case.
    pub sent: Vec<String>,
    /// In nothing that a backend was sent, in lower case.
    pub unsent: Vec<String>,
    /// In what the client received, in lower case.
    pub told: Vec<String>,
    /// Not in what the client received, in lower case.
    pub untold: Vec<String>,
    /// The client's connection is ended within so long.
    pub ends_within: Option<Duration>,
    /// The backend's connection is ended, too.
    pub backend_ends: bool,
}

/// The whole table.
pub fn cases() -> Vec<Case> {
    [clients::cases(), paths::cases(), backends::cases()]
        .into_iter()
        .flatten()
        .collect()
}

impl Case {
    /// A client that sends this at once, to a good backend.
    fn new(group: &'static str, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            group,
            name: name.into(),
            client: vec![Step::Send(bytes.into())],
            backend: vec![Act::Usual],
            expected: Expected::default(),
            is_trusted: false,
            note: "",
        }
    }

    fn client(mut self, steps: Vec<Step>) -> Self {
        self.client = steps;
        self
    }

    fn then(mut self, step: Step) -> Self {
        self.client.push(step);
        self
    }

    fn backend(mut self, acts: Vec<Act>) -> Self {
        self.backend = acts;
        self
    }

    fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    fn trusted(mut self) -> Self {
        self.is_trusted = true;
        self
    }

    /// An answer before any backend hears of it.
    fn refused(mut self, status: u16) -> Self {
        self.expected.statuses = vec![status];
        self.expected.n_heard = Some(0);
        self
    }

    /// The connection is ended without an answer, before any backend hears of it.
    fn dropped(mut self) -> Self {
        self.expected.n_heard = Some(0);
        self.expected.ends_within = Some(DEADLINE);
        self
    }

    /// A WebSocket, with one frame each way.
    fn tunnel(mut self) -> Self {
        self.client.push(Step::Answered);
        self.client.push(Step::Send(crate::frame(0x81, b"hi")));
        self.client.push(Step::Receive(b"\x81\x02hi"));
        self.told("\u{81}\u{2}hi").answered(101).heard(1)
    }

    fn answered(mut self, status: u16) -> Self {
        self.expected.statuses.push(status);
        self
    }

    fn or(mut self, status: u16) -> Self {
        self.expected.or = Some(status);
        self
    }

    fn heard(mut self, n: usize) -> Self {
        self.expected.n_heard = Some(n);
        self
    }

    fn elsewhere(mut self) -> Self {
        self.expected.is_tried_elsewhere = true;
        self
    }

    fn sent(mut self, text: impl Into<String>) -> Self {
        self.expected.sent.push(text.into());
        self
    }

    fn unsent(mut self, text: impl Into<String>) -> Self {
        self.expected.unsent.push(text.into());
        self
    }

    fn told(mut self, text: impl Into<String>) -> Self {
        self.expected.told.push(text.into());
        self
    }

    fn untold(mut self, text: impl Into<String>) -> Self {
        self.expected.untold.push(text.into());
        self
    }

    fn ends_within(mut self, time: Duration) -> Self {
        self.expected.ends_within = Some(time);
        self
    }

    fn backend_ends(mut self) -> Self {
        self.expected.backend_ends = true;
        self
    }
}

impl Expected {
    /// All in which `outcome` is not as it has to be; empty: nothing.
    pub fn problems(&self, outcome: &Outcome) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        let is_other = self.or.is_some_and(|other| outcome.statuses == [other]);
        check(
            outcome.statuses == self.statuses || is_other,
            format!("answered {:?}, not {:?}", outcome.statuses, self.statuses),
        );
        if let Some(n) = self.n_heard {
            let heard = outcome.n_heard();
            check(
                heard == n,
                format!("backends heard {heard} requests, not {n}"),
            );
        }
        check(
            !self.is_tried_elsewhere || outcome.heard.iter().all(|heard| !heard.is_empty()),
            "not tried elsewhere".to_owned(),
        );
        check(
            !outcome.was_early,
            "something was sent to the backend too early".to_owned(),
        );
        let sent = outcome.sent();
        for text in &self.sent {
            check(
                sent.contains(text),
                format!("the backend was not sent {text:?}"),
            );
        }
        for text in &self.unsent {
            check(
                !sent.contains(text),
                format!("the backend was sent {text:?}"),
            );
        }
        let told = outcome.told();
        for text in &self.told {
            check(
                told.contains(text),
                format!("the client was not told {text:?}"),
            );
        }
        for text in &self.untold {
            check(
                !told.contains(text),
                format!("the client was told {text:?}"),
            );
        }
        if let Some(limit) = self.ends_within {
            check(
                outcome.ended.is_some_and(|after| after <= limit),
                format!("ended after {:?}, not within {limit:?}", outcome.ended),
            );
        }
        check(
            !self.backend_ends || outcome.has_backend_ended,
            "the backend's connection is not ended".to_owned(),
        );
        problems
    }
}
