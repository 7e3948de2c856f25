//! Constructors and look-ups for the contract's plain structs.

use std::borrow::Cow;

use crate::{
    Close, Facts, Header, Message, Refusal, filter, handler,
    policy::{self, Request},
};

impl Header {
    /// `name` in lower case.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

impl Message {
    /// A text message.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A binary message.
    pub fn binary(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Binary(bytes.into())
    }

    /// The payload.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The payload's length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// No payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Close {
    /// A code that may go on the wire, by one of the names in [`crate::close`] or 3000 to 4999. The reason has
    /// at most 123 bytes.
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

impl Refusal {
    /// Without headers. `status` is 400 to 599.
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// Adds a header.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push(Header::new(name, value));
        self
    }
}

impl Request {
    /// The first header of this lower-case name, if [`policy::Wants::headers`] asked for it.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The values of the cookies of this name in the order received, if [`policy::Wants::headers`]
    /// asked for `cookie`. Names are compared with their case, and values are as received: nothing
    /// is decoded, and quotes belong to them (RFC 6265 section 5.4).
    pub fn cookies<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        cookies(&self.headers, name)
    }

    /// The first value of this name in the path's query, decoded as a form is: `+` is a space, `%`
    /// and two hexadecimal digits are a byte, other `%` stand for themselves, and what is not UTF-8
    /// becomes U+FFFD. A name without `=` has an empty value.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        query(&self.path, name)
    }
}

impl policy::Figures {
    /// What the backend is busy with: open sessions, requests under way, and dials.
    pub fn load(&self) -> u64 {
        u64::from(self.active) + u64::from(self.pending)
    }
}

impl Facts {
    /// The first header of this lower-case name, if `Wants::headers` asked for it.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// As [`Request::cookies`].
    pub fn cookies<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        cookies(&self.headers, name)
    }

    /// As [`Request::query`].
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        query(&self.path, name)
    }
}

pub(crate) fn cookies<'a>(headers: &'a [Header], name: &'a str) -> impl Iterator<Item = &'a str> {
    // HTTP/2 cuts the field into several, and proxies hand them on so.
    let fields = headers.iter().filter(|header| header.name == "cookie");
    let pairs = fields.flat_map(|field| field.value.split(';'));
    pairs
        .filter_map(|pair| pair.split_once('='))
        .filter(move |(found, _)| found.trim() == name)
        .map(|(_, value)| value.trim())
}

pub(crate) fn query<'a>(path: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (_, query) = path.split_once('?')?;
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(found, _)| form_decoded(found) == name)?;
    Some(form_decoded(value))
}

fn form_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'+', _) => (b' ', after),
            (b'%', [high, low, after @ ..]) => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', &rest[1..]),
            },
            (&byte, _) => (byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

pub(crate) fn find<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    let header = headers.iter().find(|header| header.name == name)?;
    Some(&header.value)
}

/// Nothing.
impl Default for policy::Wants {
    fn default() -> Self {
        Self {
            headers: Vec::new(),
            figures: false,
            placed: false,
            session_ended: false,
        }
    }
}

/// Nothing.
impl Default for handler::Wants {
    fn default() -> Self {
        Self {
            headers: Vec::new(),
            accept: false,
        }
    }
}

/// Nothing.
impl Default for filter::Wants {
    fn default() -> Self {
        Self {
            headers: Vec::new(),
            accept: false,
        }
    }
}

/// Nothing changes.
impl Default for filter::Admission {
    fn default() -> Self {
        Self {
            hide_subprotocols: Vec::new(),
            set_headers: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;

    #[test]
    fn cookies_are_found_in_all_fields() {
        let request = Request {
            headers: vec![
                Header::new("cookie", "a=1; b = two ;ab=3;broken;  a=4"),
                Header::new("x-other", "a=5"),
                Header::new("cookie", "a=\"6=7\"; A=8; empty="),
            ],
            ..request()
        };
        let check = |name, expected: &[&str]| {
            assert_eq!(
                request.cookies(name).collect::<Vec<_>>(),
                expected,
                "{name}"
            );
        };
        check("a", &["1", "4", "\"6=7\""]);
        check("b", &["two"]);
        check("A", &["8"]);
        check("empty", &[""]);
        check("broken", &[]);
    }

    #[test]
    fn a_query_is_decoded_as_a_form() {
        let check = |path: &str, expected: Option<&str>| {
            let request = Request {
                path: path.to_owned(),
                ..request()
            };
            assert_eq!(request.query("room").as_deref(), expected, "{path}");
        };
        check("/room=1", None);
        check("/?", None);
        check("/?rooms=1&mushroom=2", None);
        check("/?room=1&room=2", Some("1"));
        check("/?a=b&room", Some(""));
        check("/?&&room=a=b?c", Some("a=b?c"));
        check("/?%72oom=red+green%20%62lue", Some("red green blue"));
        check("/?room=%C3%bc", Some("ü"));
        check("/?room=ü", Some("ü"));
        check("/?room=%ff", Some("\u{fffd}"));
        check("/?room=100%", Some("100%"));
        check("/?room=%4", Some("%4"));
        check("/?room=%4g%%34", Some("%4g%4"));
        check("/?room=%+1", Some("% 1"));
    }
}
