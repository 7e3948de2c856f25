//! The messages between client and room: JSON objects in text messages, told apart by `type`.

use serde::{Deserialize, Serialize};

/// What a client sends.
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

/// Of all kinds of requests. What else a client writes is passed over, and takes no memory.
#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    room: Option<String>,
    name: Option<String>,
}

impl Request {
    /// What does not begin as an object is said as it is.
    ///
    /// # Errors
    ///
    /// The text is for the client. It quotes what it sent, and may be as long.
    pub(crate) fn read(message: String) -> Result<Self, String> {
        if !message.trim_start().starts_with('{') {
            return Ok(Self::Say { text: message });
        }
        let fields: Fields = serde_json::from_str(&message).map_err(|error| error.to_string())?;
        match fields.kind.as_str() {
            "say" => match fields.text {
                Some(text) => Ok(Self::Say { text }),
                None => Err("missing field `text`".to_owned()),
            },
            "join" => Ok(Self::Join {
                room: fields.room,
                name: fields.name,
            }),
            "who" => Ok(Self::Who),
            other => Err(format!(
                "unknown variant `{other}`, expected one of `say`, `join`, `who`"
            )),
        }
    }
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
