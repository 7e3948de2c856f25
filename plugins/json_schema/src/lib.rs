//! Filter `json_schema`: text messages pass if they are JSON of the shape that a schema describes
//! (JSON Schema, draft 2020-12 or draft-07).
//!
//! `schema` reads the operator's schema, `validate` holds messages against it, in bounded time, by
//! patterns that `pattern` bounds. Libraries have no such bound. `boon` 0.6 makes a plugin of 1.4 MB (1.2 s
//! to compile; ours: 0.2 MB, 0.3 s), in which 64 KiB of objects that are the last of ten kinds take 32 ms of
//! the 10 that a call has, and a recursive `oneOf` of three kinds 205 ms at 15 levels. `jsonschema` 0.61 is as
//! quick as this but for patterns (`[ab]*a[ab]{100}c` takes 192 ms for 64 KiB), and makes one of 2.7 MB (2.9 s).

mod pattern;
mod schema;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;
mod validate;

use std::rc::Rc;

use pointsman_sdk::{
    Close, Facts, Message, close,
    filter::{Direction, Filter, FilterSession, Interest, Verdict},
    metrics,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{schema::Schema, validate::Failure};

/// RFC 6455 section 5.5: what a Close frame has room for.
const MAX_REASON_BYTES: usize = 123;

/// Reading the worst of so many bytes takes 4 ms of the 10 that a call has.
const DEFAULT_MAX_BYTES: u64 = 64 << 10;

/// The worst of these take 4 ms.
const DEFAULT_MAX_STEPS: u64 = 80_000;

/// Of both.
const MAX_BOUND: usize = 16 << 20;

/// What an operator may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A table, or the text of a JSON object, since TOML has no `null`.
    schema: Value,
    #[serde(default)]
    directions: Directions,
    #[serde(default)]
    on_invalid: OnInvalid,
    #[serde(default)]
    binary: Binary,
    /// The longest text, in bytes. This and the next may rise with the operator's `call_timeout_ms`.
    #[serde(default = "default_max_bytes")]
    max_bytes: u64,
    /// How much work a message may ask for; see [`Schema::validate`].
    #[serde(default = "default_max_steps")]
    max_steps: u64,
}

fn default_max_bytes() -> u64 {
    DEFAULT_MAX_BYTES
}

fn default_max_steps() -> u64 {
    DEFAULT_MAX_STEPS
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Directions {
    #[default]
    FromClient,
    FromBackend,
    Both,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnInvalid {
    #[default]
    Close,
    Answer,
    Drop,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Binary {
    #[default]
    Forward,
    Close,
    Drop,
}

/// Knows the schema.
#[derive(Debug)]
pub struct JsonSchema {
    rules: Rc<Rules>,
}

/// What sessions share.
#[derive(Debug)]
struct Rules {
    schema: Schema,
    directions: Directions,
    on_invalid: OnInvalid,
    binary: Binary,
    max_bytes: usize,
    max_steps: usize,
}

impl Filter for JsonSchema {
    type Config = Config;
    type Session = JsonSchemaSession;

    fn configure(config: Config) -> Result<Self, String> {
        Ok(Self {
            rules: Rc::new(Rules {
                schema: schema(&config.schema)?,
                directions: config.directions,
                on_invalid: config.on_invalid,
                binary: config.binary,
                max_bytes: bound("max_bytes", config.max_bytes)?,
                max_steps: bound("max_steps", config.max_steps)?,
            }),
        })
    }

    fn open(&mut self, _facts: Facts) -> JsonSchemaSession {
        JsonSchemaSession {
            rules: Rc::clone(&self.rules),
        }
    }
}

pointsman_sdk::export!(JsonSchema: filter);

fn bound(key: &str, value: u64) -> Result<usize, String> {
    match usize::try_from(value) {
        Ok(bound @ 1..=MAX_BOUND) => Ok(bound),
        _ => Err(format!("{key}: {value} is not allowed: 1 to {MAX_BOUND}")),
    }
}

fn schema(config: &Value) -> Result<Schema, String> {
    let parsed = match config {
        Value::String(text) => serde_json::from_str(text),
        other => Ok(other.clone()),
    };
    let document = parsed.map_err(|error| format!("schema: not JSON: {error}"))?;
    if !document.is_object() {
        return Err("schema: not allowed: a table, or the text of a JSON object".to_owned());
    }
    Schema::new(&document).map_err(|error| format!("schema{error}"))
}

/// Has nothing to remember.
#[derive(Debug)]
pub struct JsonSchemaSession {
    rules: Rc<Rules>,
}

impl FilterSession for JsonSchemaSession {
    fn interest(&self) -> Interest {
        let directions = match self.rules.directions {
            Directions::FromClient => Interest::CLIENT_TEXT | Interest::CLIENT_BINARY,
            Directions::FromBackend => Interest::BACKEND_TEXT | Interest::BACKEND_BINARY,
            Directions::Both => Interest::all(),
        };
        let kinds = match self.rules.binary {
            Binary::Forward => Interest::CLIENT_TEXT | Interest::BACKEND_TEXT,
            Binary::Close | Binary::Drop => Interest::all(),
        };
        directions & kinds
    }

    fn message(&mut self, _from: Direction, message: Message) -> Verdict {
        match message {
            Message::Text(text) => match self.rules.fault(&text) {
                None => Verdict::Forward,
                Some(fault) => {
                    metrics::count(fault.counted_as(), 1);
                    self.rules.verdict(&fault)
                }
            },
            Message::Binary(_) => {
                metrics::count("binary", 1);
                match self.rules.binary {
                    Binary::Close => {
                        Verdict::Close(Close::new(close::UNSUPPORTED_DATA, "not text"))
                    }
                    Binary::Drop | Binary::Forward => Verdict::Drop,
                }
            }
        }
    }
}

/// Why a text does not pass.
enum Fault {
    TooLong,
    NotJson,
    Invalid(Failure),
}

impl Fault {
    fn counted_as(&self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::NotJson => "not_json",
            Self::Invalid(failure) if failure.is_too_much_work() => "too_much_work",
            Self::Invalid(_) => "invalid",
        }
    }

    fn code(&self) -> u16 {
        match self {
            Self::NotJson => close::INVALID_PAYLOAD,
            Self::TooLong => close::MESSAGE_TOO_BIG,
            Self::Invalid(_) => close::POLICY_VIOLATION,
        }
    }

    /// What fails: a keyword of the schema, or all.
    fn error(&self) -> &'static str {
        match self {
            Self::TooLong => "too long",
            Self::NotJson => "not JSON",
            Self::Invalid(failure) => failure.keyword,
        }
    }

    /// The place in the message, within this many bytes.
    fn path(&self, max_bytes: usize) -> String {
        match self {
            Self::TooLong | Self::NotJson => String::new(),
            Self::Invalid(failure) => failure.path(max_bytes),
        }
    }
}

impl Rules {
    fn fault(&self, text: &str) -> Option<Fault> {
        if text.len() > self.max_bytes {
            return Some(Fault::TooLong);
        }
        let Ok(message) = serde_json::from_str(text) else {
            return Some(Fault::NotJson);
        };
        self.schema
            .validate(&message, self.max_steps)
            .err()
            .map(Fault::Invalid)
    }

    fn verdict(&self, fault: &Fault) -> Verdict {
        let error = fault.error();
        match self.on_invalid {
            OnInvalid::Drop => Verdict::Drop,
            OnInvalid::Answer => {
                let path = fault.path(MAX_REASON_BYTES);
                let answer = json!({"type": "error", "error": error, "path": path});
                Verdict::Answer(vec![Message::text(answer.to_string())])
            }
            OnInvalid::Close => {
                let room = MAX_REASON_BYTES - error.len() - ": ".len();
                let reason = match fault.path(room) {
                    path if path.is_empty() => error.to_owned(),
                    path => format!("{path}: {error}"),
                };
                Verdict::Close(Close::new(fault.code(), reason))
            }
        }
    }
}
