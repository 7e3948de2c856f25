//! Constructors and look-ups for the contract's plain structs.

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
    /// A code that may go on the wire: 1000 to 1003, 1007 to 1014, 3000 to 4999. The reason has at
    /// most 123 bytes.
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
}

impl Facts {
    /// The first header of this lower-case name, if `Wants::headers` asked for it.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

fn find<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
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
