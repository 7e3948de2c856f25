//! What an operator may say, and what the rest may rely on.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;

use crate::history::History;

/// Characters in the name of a room or of a person.
const MAX_NAME_LEN: usize = 64;

/// A byte of a text may be written with so many: `\u0061`.
const MAX_WRITTEN_BYTES: usize = 6;

/// Around a text, or in a request without one: room and name, with 768 bytes each if every character of
/// them is written as two escapes, and signs and spaces.
const MAX_OTHER_BYTES: usize = 4096;

/// What an operator may say. Numbers are wider than what is allowed, for errors that say what is.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Of sessions that ask for none.
    default_room: String,
    /// Sessions in one room; 0: any number. 0 to 1,000,000.
    room_limit: i64,
    /// 1 to 65,536.
    max_text_bytes: i64,
    /// Messages of a room that a newcomer gets. 0 to 200.
    history: i64,
    /// 60 to 31,536,000, a year.
    history_ttl_secs: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_room: "lobby".to_owned(),
            room_limit: 0,
            max_text_bytes: 4096,
            history: 20,
            history_ttl_secs: 86_400,
        }
    }
}

/// What is the same for all sessions.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) default_room: String,
    /// None: any number.
    pub(crate) room_limit: Option<u64>,
    pub(crate) max_text_bytes: usize,
    pub(crate) history: History,
}

impl TryFrom<Config> for Settings {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        check_name("default_room", &config.default_room)?;
        let room_limit = number("room_limit", config.room_limit, 0..=1_000_000)?;
        let max_text_bytes = number("max_text_bytes", config.max_text_bytes, 1..=65_536)?;
        let n_messages = number("history", config.history, 0..=200)?;
        let ttl_secs = number("history_ttl_secs", config.history_ttl_secs, 60..=31_536_000)?;
        Ok(Self {
            default_room: config.default_room,
            room_limit: (room_limit > 0).then_some(room_limit),
            max_text_bytes: max_text_bytes as usize,
            history: History {
                n_messages,
                ttl: Duration::from_secs(ttl_secs),
            },
        })
    }
}

impl Settings {
    /// Refuses what no request can be as long as, before anything looks at it.
    ///
    /// # Errors
    ///
    /// The text is for the client.
    pub(crate) fn check_length(&self, message: &str) -> Result<(), String> {
        let max_bytes = MAX_WRITTEN_BYTES * self.max_text_bytes + MAX_OTHER_BYTES;
        match message.len() {
            n if n <= max_bytes => Ok(()),
            n => Err(format!(
                "message: {n} bytes are not allowed: {max_bytes} at most"
            )),
        }
    }
}

fn number(key: &str, number: i64, allowed: RangeInclusive<i64>) -> Result<u64, String> {
    if allowed.contains(&number) {
        return Ok(number.unsigned_abs());
    }
    let (min, max) = allowed.into_inner();
    Err(format!("{key}: {number} is not allowed: {min} to {max}"))
}

/// Of a room or of a person.
///
/// # Errors
///
/// The text names the key, and is short, however long the name is.
pub(crate) fn check_name(key: &str, name: &str) -> Result<(), String> {
    match name.chars().count() {
        1..=MAX_NAME_LEN if name.contains(char::is_control) => Err(format!(
            "{key}: {name:?} is not allowed: no control characters"
        )),
        1..=MAX_NAME_LEN => Ok(()),
        n => Err(format!(
            "{key}: {n} characters are not allowed: 1 to {MAX_NAME_LEN}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::HandlerHost;
    use serde_json::{Value, json};

    use crate::Chat;

    #[track_caller]
    fn check(config: Value, expected: &str) {
        let refused = HandlerHost::<Chat>::start(config).unwrap_err();
        assert!(refused.starts_with(expected), "{refused}");
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        check(
            json!({"room_limit": -1}),
            "room_limit: -1 is not allowed: 0 to 1000000",
        );
        check(
            json!({"max_text_bytes": 0}),
            "max_text_bytes: 0 is not allowed: 1 to 65536",
        );
        check(
            json!({"history": 201}),
            "history: 201 is not allowed: 0 to 200",
        );
        check(
            json!({"history_ttl_secs": 59}),
            "history_ttl_secs: 59 is not allowed: 60 to 31536000",
        );
        check(
            json!({"default_room": ""}),
            "default_room: 0 characters are not allowed: 1 to 64",
        );
        check(
            json!({"default_room": "a\tb"}),
            r#"default_room: "a\tb" is not allowed: no control characters"#,
        );
        check(
            json!({"history": "20"}),
            "history: invalid type: string \"20\", expected i64",
        );
        check(
            json!({"limit": 5}),
            "unknown field `limit`, expected one of",
        );
    }

    #[test]
    fn the_bounds_themselves_are_allowed() {
        for config in [
            json!({"room_limit": 1_000_000, "max_text_bytes": 65_536, "history": 200}),
            json!({"room_limit": 0, "max_text_bytes": 1, "history": 0, "history_ttl_secs": 60}),
            json!({"default_room": "\u{1f980}".repeat(64), "history_ttl_secs": 31_536_000}),
        ] {
            HandlerHost::<Chat>::start(config).unwrap();
        }
    }
}
