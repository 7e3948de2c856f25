//! JSON pointers (RFC 6901), and a step of our own: `*` is every member and every element. Knows
//! nothing of JSON texts.

/// Where in a document values are.
#[derive(Debug)]
pub(crate) struct Pointer(Vec<Step>);

/// From a value to one of those in it.
#[derive(Debug)]
pub(crate) enum Step {
    Every,
    One {
        /// Of a member.
        name: String,
        /// Of an element, if the name is a number as the RFC writes it: without sign and leading zeros.
        index: Option<usize>,
    },
}

impl Pointer {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let mut tokens = text.split('/');
        if tokens.next() != Some("") {
            return Err("a pointer is empty or begins with \"/\"");
        }
        tokens.map(step).collect::<Result<_, _>>().map(Self)
    }

    /// It leads to the document itself.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.0
    }
}

fn step(token: &str) -> Result<Step, &'static str> {
    if token == "*" {
        return Ok(Step::Every);
    }
    let mut parts = token.split('~');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escaped, rest) = match part.as_bytes().first() {
            Some(b'0') => ('~', &part[1..]),
            Some(b'1') => ('/', &part[1..]),
            _ => return Err("\"~\" is written \"~0\", and \"/\" in a name \"~1\""),
        };
        name.push(escaped);
        name.push_str(rest);
    }
    let is_number = name == "0" || !name.starts_with(['0', '+']);
    let index = name.parse().ok().filter(|_| is_number);
    Ok(Step::One { name, index })
}

impl Step {
    /// `name`: none if it is not Unicode, which JSON can write (`"\ud800"`) and a pointer cannot.
    pub(crate) fn leads_to_member(&self, name: Option<&str>) -> bool {
        match self {
            Self::Every => true,
            Self::One { name: wanted, .. } => name == Some(wanted),
        }
    }

    pub(crate) fn leads_to_element(&self, index: usize) -> bool {
        match self {
            Self::Every => true,
            Self::One { index: wanted, .. } => *wanted == Some(index),
        }
    }
}
