//! The messages between client and room: JSON objects in text messages, told apart by `type`.

use serde::{Deserialize, Serialize};

/// What a client sends.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Request {
    Say {
        text: String,
    },
    Join {
        room: Option<String>,
        name: Option<String>,
    },
    Who,
}

/// What clients are sent.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    /// The history is put behind it.
    Welcome {
        room: &'a str,
        you: &'a str,
        present: u64,
    },
    Joined {
        room: &'a str,
        name: &'a str,
        present: u64,
    },
    Left {
        room: &'a str,
        name: &'a str,
        present: u64,
    },
    Said {
        room: &'a str,
        from: &'a str,
        text: &'a str,
        seq: u64,
        /// Milliseconds since 1970.
        at: u64,
    },
    Who {
        room: &'a str,
        present: u64,
    },
    Error {
        error: &'a str,
    },
}

impl Event<'_> {
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("it has strings and numbers only")
    }
}
