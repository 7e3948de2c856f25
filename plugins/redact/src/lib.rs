//! Filter `redact`: takes values out of JSON messages, by pointer (RFC 6901). The text is edited where
//! the values are and nowhere else: the order of members, numbers and spaces stay as they were, and a
//! message in which nothing is found passes on byte for byte.

mod json;
mod pointer;

use std::rc::Rc;

use pointsman_sdk::{
    Close, Facts, Message, close,
    filter::{Direction, Directions, Filter, FilterSession, Interest, Verdict},
    metrics,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    json::{Limits, Outcome},
    pointer::{Pointer, Pointers},
};

/// What an operator may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    pointers: Vec<String>,
    /// None: [`DEFAULT_REPLACEMENT`].
    replacement: Option<Value>,
    /// Members and elements go, instead of being replaced.
    #[serde(default)]
    remove: bool,
    #[serde(default = "default_directions")]
    directions: Directions,
    #[serde(default)]
    on_invalid: OnInvalid,
    /// The longest text, before and after, in bytes. This and the next may rise with the operator's
    /// `call_timeout_ms`.
    #[serde(default = "default_max_bytes")]
    max_bytes: u64,
    /// How much work a message may ask for; see [`Limits`].
    #[serde(default = "default_max_steps")]
    max_steps: u64,
}

/// As long as messages are unless the route says otherwise.
const DEFAULT_MAX_BYTES: u64 = 1 << 20;
/// With the longest text the worst of these take 5 ms of the 10 that a call has.
const DEFAULT_MAX_STEPS: u64 = 200_000;
/// Of both.
const MAX_BOUND: usize = 16 << 20;

fn default_max_bytes() -> u64 {
    DEFAULT_MAX_BYTES
}

fn default_max_steps() -> u64 {
    DEFAULT_MAX_STEPS
}

/// As JSON.
const DEFAULT_REPLACEMENT: &str = "\"[redacted]\"";

fn default_directions() -> Directions {
    Directions::FromBackend
}

/// What becomes of text that is no JSON.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnInvalid {
    #[default]
    Forward,
    Drop,
    Close,
}

/// The checked configuration.
#[derive(Debug)]
pub struct Redact {
    rules: Rc<Rules>,
}

/// What holds for every session.
#[derive(Debug)]
struct Rules {
    pointers: Pointers,
    /// As JSON; none: what is found is removed.
    replacement: Option<String>,
    directions: Directions,
    on_invalid: OnInvalid,
    limits: Limits,
}

impl Filter for Redact {
    type Config = Config;
    type Session = RedactedSession;

    fn configure(config: Config) -> Result<Self, String> {
        let (pointers, mut problems) = pointers(&config);
        if config.remove && config.replacement.is_some() {
            problems.push("replacement: not allowed with remove = true".to_owned());
        }
        let mut bound = |key, value| {
            bound(key, value).unwrap_or_else(|problem| {
                problems.push(problem);
                0
            })
        };
        let limits = Limits {
            max_bytes: bound("max_bytes", config.max_bytes),
            max_steps: bound("max_steps", config.max_steps),
        };
        let pointers = Pointers::new(&pointers).unwrap_or_else(|problem| {
            problems.push(format!("pointers: {problem}"));
            Pointers::default()
        });
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let replacement = match config.replacement {
            Some(value) => value.to_string(),
            None => DEFAULT_REPLACEMENT.to_owned(),
        };
        let rules = Rules {
            pointers,
            replacement: (!config.remove).then_some(replacement),
            directions: config.directions,
            on_invalid: config.on_invalid,
            limits,
        };
        Ok(Self {
            rules: Rc::new(rules),
        })
    }

    fn open(&mut self, _facts: Facts) -> RedactedSession {
        RedactedSession {
            rules: Rc::clone(&self.rules),
        }
    }
}

pointsman_sdk::export!(Redact: filter);

fn bound(key: &str, value: u64) -> Result<usize, String> {
    match usize::try_from(value) {
        Ok(bound @ 1..=MAX_BOUND) => Ok(bound),
        _ => Err(format!("{key}: {value} is not allowed: 1 to {MAX_BOUND}")),
    }
}

/// Those that are fit, and what is wrong with the others.
fn pointers(config: &Config) -> (Vec<Pointer>, Vec<String>) {
    let (mut pointers, mut problems) = (Vec::new(), Vec::new());
    if config.pointers.is_empty() {
        problems.push("pointers: one at least is needed".to_owned());
    }
    for (n, text) in config.pointers.iter().enumerate() {
        let problem = match Pointer::parse(text) {
            Ok(pointer) if pointer.is_whole() && config.remove => "would remove all of the message",
            Ok(pointer) => {
                pointers.push(pointer);
                continue;
            }
            Err(problem) => problem,
        };
        problems.push(format!("pointers[{n}]: {text:?} is not allowed: {problem}"));
    }
    (pointers, problems)
}

/// Has nothing to remember: every message is looked at by itself.
#[derive(Debug)]
pub struct RedactedSession {
    rules: Rc<Rules>,
}

impl FilterSession for RedactedSession {
    fn interest(&self) -> Interest {
        self.rules.directions.interest() & (Interest::CLIENT_TEXT | Interest::BACKEND_TEXT)
    }

    fn message(&mut self, _from: Direction, message: Message) -> Verdict {
        let Message::Text(text) = message else {
            return Verdict::Forward;
        };
        let rules = &*self.rules;
        let replacement = rules.replacement.as_deref();
        match json::redact(&text, &rules.pointers, replacement, rules.limits) {
            Outcome::Unchanged => Verdict::Forward,
            Outcome::Redacted(text) => {
                metrics::count("messages_redacted", 1);
                Verdict::Replace(Message::Text(text))
            }
            Outcome::TooLong => {
                metrics::count("messages_too_long", 1);
                let reason = match text.len() > rules.limits.max_bytes {
                    true => "too long to be redacted",
                    false => "too long when redacted",
                };
                Verdict::Close(Close::new(close::MESSAGE_TOO_BIG, reason))
            }
            Outcome::TooMuchWork => {
                metrics::count("messages_too_much_work", 1);
                Verdict::Close(Close::new(
                    close::MESSAGE_TOO_BIG,
                    "too much work to be redacted",
                ))
            }
            Outcome::NotJson => {
                metrics::count("messages_not_json", 1);
                match rules.on_invalid {
                    OnInvalid::Forward => Verdict::Forward,
                    OnInvalid::Drop => Verdict::Drop,
                    OnInvalid::Close => {
                        Verdict::Close(Close::new(close::INVALID_PAYLOAD, "not JSON"))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{FilterHost, OpenFilterSession, counted, facts};
    use serde_json::json;

    use super::*;

    fn open(config: Value) -> OpenFilterSession<RedactedSession> {
        let mut host = FilterHost::<Redact>::start(config).unwrap();
        host.open(facts()).unwrap()
    }

    fn replaced(text: &str) -> Verdict {
        Verdict::Replace(Message::text(text))
    }

    #[test]
    fn values_are_replaced_by_what_the_operator_wrote() {
        let check = |config, expected: &str| {
            let mut session = open(config);
            let message = Message::text(r#"{"user": {"mail": "a@b"}}"#);
            assert_eq!(session.from_backend(message), replaced(expected));
        };
        let pointers = json!(["/user/mail"]);
        check(
            json!({"pointers": pointers}),
            r#"{"user": {"mail": "[redacted]"}}"#,
        );
        check(
            json!({"pointers": pointers, "replacement": {"gone": 1.5}}),
            r#"{"user": {"mail": {"gone":1.5}}}"#,
        );
        check(
            json!({"pointers": pointers, "remove": true}),
            r#"{"user": {}}"#,
        );
    }

    #[test]
    fn what_is_not_looked_at_or_not_found_passes_unchanged() {
        let secret = || Message::text(r#"{"a":1}"#);
        let check = |directions: &str, is_client_read, is_backend_read| {
            let mut session = open(json!({"pointers": ["/a"], "directions": directions}));
            let is_read = |verdict| verdict != Verdict::Forward;
            assert_eq!(is_read(session.from_client(secret())), is_client_read);
            assert_eq!(is_read(session.from_backend(secret())), is_backend_read);
            let binary = || Message::binary(*b"{\"a\":1}");
            assert_eq!(session.session().interest() & BINARY, Interest::empty());
            assert_eq!(session.from_backend(binary()), Verdict::Forward);
            let other = Message::text(r#"{"b": {"a" : 1.0e5} }"#);
            assert_eq!(session.from_backend(other), Verdict::Forward);
        };
        const BINARY: Interest = Interest::CLIENT_BINARY.union(Interest::BACKEND_BINARY);
        check("from_client", true, false);
        check("from_backend", false, true);
        check("both", true, true);
        let mut default = open(json!({"pointers": ["/a"]}));
        assert_eq!(default.from_client(secret()), Verdict::Forward);
        assert_ne!(default.from_backend(secret()), Verdict::Forward);
        assert_eq!(counted("messages_redacted"), 1);
    }

    #[test]
    fn text_that_is_no_json_is_the_operators_choice() {
        let check = |on_invalid: &str, expected| {
            let mut session = open(json!({"pointers": ["/a"], "on_invalid": on_invalid}));
            for text in ["", "hello", "{\"a\":1}}", "{\"a\":01}", "\u{feff}{\"a\":1}"] {
                assert_eq!(
                    session.from_backend(Message::text(text)),
                    expected,
                    "{text}"
                );
            }
            assert_eq!(counted("messages_not_json"), 5);
        };
        check("forward", Verdict::Forward);
        check("drop", Verdict::Drop);
        check(
            "close",
            Verdict::Close(Close::new(close::INVALID_PAYLOAD, "not JSON")),
        );
        let mut default = open(json!({"pointers": ["/a"]}));
        assert_eq!(default.from_backend(Message::text("x")), Verdict::Forward);
    }

    #[test]
    fn a_message_that_is_or_would_be_too_long_never_passes() {
        let check = |bound: u64, message: &str, expected| {
            for on_invalid in ["forward", "drop", "close"] {
                let config =
                    json!({"pointers": ["/*"], "on_invalid": on_invalid, "max_bytes": bound});
                let verdict = open(config).from_backend(Message::text(message));
                assert_eq!(verdict, expected, "{on_invalid}");
            }
        };
        let grown = Verdict::Close(Close::new(close::MESSAGE_TOO_BIG, "too long when redacted"));
        check(14, "[1]", replaced("[\"[redacted]\"]"));
        check(13, "[1]", grown);
        let long = Verdict::Close(Close::new(
            close::MESSAGE_TOO_BIG,
            "too long to be redacted",
        ));
        check(5, "{\"a\":1}", long.clone());
        check(5, "no JSON", long);
        assert_eq!(counted("messages_too_long"), 1);
    }

    #[test]
    fn a_message_that_is_too_much_work_never_passes() {
        let mut session = open(json!({"pointers": ["/a"], "directions": "from_client"}));
        let values = |n: usize| Message::text(format!("[{}1]", "1,".repeat(n - 2)));
        assert_eq!(session.from_client(values(200_000)), Verdict::Forward);
        let closed = Verdict::Close(Close::new(
            close::MESSAGE_TOO_BIG,
            "too much work to be redacted",
        ));
        assert_eq!(session.from_client(values(200_001)), closed);
        assert_eq!(counted("messages_too_much_work"), 1);
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let check = |config, expected| {
            let refused = FilterHost::<Redact>::start(config);
            assert_eq!(refused.unwrap_err(), expected);
        };
        check(json!({}), "pointers: one at least is needed");
        check(
            json!({"pointers": ["a", "/a~", "", "/b"], "remove": true, "replacement": "x"}),
            "pointers[0]: \"a\" is not allowed: a pointer is empty or begins with \"/\"; \
             pointers[1]: \"/a~\" is not allowed: \"~\" is written \"~0\", and \"/\" in a name \"~1\"; \
             pointers[2]: \"\" is not allowed: would remove all of the message; \
             replacement: not allowed with remove = true",
        );
        check(
            json!({"pointers": ["/a"], "on_invalid": "ignore"}),
            "on_invalid: unknown variant `ignore`, expected one of `forward`, `drop`, `close`",
        );
        check(
            json!({"pointers": ["/a"], "directions": "up"}),
            "directions: \"up\" is not allowed: one of \"from_client\", \"from_backend\", \"both\"",
        );
        check(
            json!({"pointers": ["/a"], "removed": true}),
            "unknown field `removed`, expected one of `pointers`, `replacement`, `remove`, \
             `directions`, `on_invalid`, `max_bytes`, `max_steps`",
        );
        check(
            json!({"pointers": ["/a"], "max_bytes": 0, "max_steps": 16_777_217}),
            "max_bytes: 0 is not allowed: 1 to 16777216; \
             max_steps: 16777217 is not allowed: 1 to 16777216",
        );
        check(
            json!({"pointers": vec!["/a"; 129]}),
            "pointers: 129 are not allowed: 1 to 128",
        );
    }
}
