//! What an operator may say: where a session's topic is, and who may publish.

use std::{fmt, rc::Rc};

use pointsman_sdk::Facts;
use serde::Deserialize;
use serde_json::Value;

/// What the host takes for a topic.
pub(crate) const MAX_TOPIC_BYTES: usize = 1024;

/// Characters. Less could be found by trying.
const MIN_SECRET_LEN: usize = 16;

/// What an operator may say.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `path`, or `query:` and a name. None: `path`, unless `topic` is there.
    topic_from: Option<String>,
    /// The only topic. 1 to [`MAX_TOPIC_BYTES`].
    topic: Option<String>,
    /// `anyone`, `nobody` or `secret`.
    publish: String,
    publisher_header: Option<String>,
    /// A string of [`MIN_SECRET_LEN`] characters at least; not a `String`, because the error of another
    /// type would repeat what it found.
    publisher_secret: Value,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            topic_from: None,
            topic: None,
            publish: "anyone".to_owned(),
            publisher_header: None,
            publisher_secret: Value::Null,
        }
    }
}

/// Without the secret.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

/// Where a session's topic is.
#[derive(Debug)]
pub(crate) enum TopicFrom {
    /// In the path as received, without its query.
    Path,
    /// In the value of this name in the path's query.
    Query(String),
    /// In the configuration.
    Fixed(Rc<str>),
}

/// Who may publish.
pub(crate) enum Publishers {
    Anyone,
    Nobody,
    /// Those who have this value in this header, whose name is in lower case.
    Secret {
        header: String,
        secret: String,
    },
}

/// Without the secret.
impl fmt::Debug for Publishers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anyone => "Anyone",
            Self::Nobody => "Nobody",
            Self::Secret { .. } => "Secret",
        })
    }
}

impl TopicFrom {
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        match (config.topic_from.as_deref(), config.topic.as_deref()) {
            (Some(_), Some(_)) => {
                Err("topic: not allowed beside topic_from: one of them".to_owned())
            }
            (None, Some(topic)) if !(1..=MAX_TOPIC_BYTES).contains(&topic.len()) => Err(format!(
                "topic: {} bytes are not allowed: 1 to {MAX_TOPIC_BYTES}",
                topic.len()
            )),
            (None, Some(topic)) => Ok(Self::Fixed(topic.into())),
            (None | Some("path"), None) => Ok(Self::Path),
            (Some(from), None) => match from.strip_prefix("query:") {
                Some(name) if !name.is_empty() => Ok(Self::Query(name.to_owned())),
                _ => Err(format!(
                    "topic_from: {from:?} is not allowed: \"path\" or \"query:NAME\""
                )),
            },
        }
    }

    /// None: the query has none, or an empty one.
    pub(crate) fn of(&self, facts: &Facts) -> Option<Rc<str>> {
        match self {
            Self::Path => facts.path.split('?').next().map(Rc::from),
            Self::Query(name) => {
                let topic = facts.query(name)?;
                (!topic.is_empty()).then(|| topic.into())
            }
            Self::Fixed(topic) => Some(Rc::clone(topic)),
        }
    }
}

impl Publishers {
    pub(crate) fn new(config: Config) -> Result<Self, String> {
        let publishers = match config.publish.as_str() {
            "anyone" => Self::Anyone,
            "nobody" => Self::Nobody,
            "secret" => {
                return Ok(Self::Secret {
                    header: header(config.publisher_header)?,
                    secret: secret(&config.publisher_secret)?,
                });
            }
            other => {
                return Err(format!(
                    "publish: {other:?} is not allowed: \"anyone\", \"nobody\" or \"secret\""
                ));
            }
        };
        // A secret that is not asked for would look as if it kept somebody out.
        for (key, is_there) in [
            ("publisher_secret", !config.publisher_secret.is_null()),
            ("publisher_header", config.publisher_header.is_some()),
        ] {
            if is_there {
                return Err(format!("{key}: not allowed without publish = \"secret\""));
            }
        }
        Ok(publishers)
    }
}

/// A header's name in lower case (RFC 9110 section 5.6.2).
fn header(name: Option<String>) -> Result<String, String> {
    let name = name.unwrap_or_else(|| "x-publisher".to_owned());
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match !name.is_empty() && name.bytes().all(is_token) {
        true => Ok(name.to_ascii_lowercase()),
        false => Err(format!(
            "publisher_header: {name:?} is not allowed: a header's name"
        )),
    }
}

/// The error says nothing of what was found.
fn secret(value: &Value) -> Result<String, String> {
    let is_possible = |secret: &&str| {
        secret.len() >= MIN_SECRET_LEN && secret.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match value.as_str().filter(is_possible) {
        Some(secret) => Ok(secret.to_owned()),
        None => Err(format!(
            "publisher_secret: at least {MIN_SECRET_LEN} characters are needed, of ASCII without spaces"
        )),
    }
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::HandlerHost;
    use serde_json::{Value, json};

    use crate::Broadcast;

    const SECRET: &str = "of-sixteen-letters";

    #[test]
    fn a_wrong_configuration_is_refused() {
        #[track_caller]
        fn check(config: Value, expected: &str) {
            let refused = HandlerHost::<Broadcast>::start(config).unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
            assert!(!refused.contains("12345"), "{refused}");
        }
        check(
            json!({"echo": true}),
            "unknown field `echo`, expected one of",
        );
        for from in ["query:", "Path", ""] {
            let expected =
                format!("topic_from: {from:?} is not allowed: \"path\" or \"query:NAME\"");
            check(json!({"topic_from": from}), &expected);
        }
        check(
            json!({"topic": ""}),
            "topic: 0 bytes are not allowed: 1 to 1024",
        );
        let both = json!({"topic": "a", "topic_from": "path"});
        check(both, "topic: not allowed beside topic_from");
        check(
            json!({"publish": "all"}),
            "publish: \"all\" is not allowed: \"anyone\", \"nobody\" or \"secret\"",
        );
        let needed = "publisher_secret: at least 16 characters are needed";
        for secret in [
            json!(null),
            json!("12345"),
            json!(1_234_567_890_123_456_u64),
            json!("1234567890 123456"),
        ] {
            check(
                json!({"publish": "secret", "publisher_secret": secret}),
                needed,
            );
        }
        check(
            json!({"publisher_secret": SECRET}),
            "publisher_secret: not allowed without publish = \"secret\"",
        );
        check(
            json!({"publish": "nobody", "publisher_header": "x"}),
            "publisher_header: not allowed without",
        );
        check(
            json!({"publish": "secret", "publisher_secret": SECRET, "publisher_header": "a b"}),
            "publisher_header: \"a b\" is not allowed",
        );
    }
}
