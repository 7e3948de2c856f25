//! HTTP/1.1 messages as the most exact reader would have them (RFC 9112): no second way to read any is
//! let pass, and nothing of it is shared with the library that the host reads by.

/// A request, whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    is_http_1_1: bool,
    /// In order, with names in lower case.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

/// What there is instead of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum No {
    /// More bytes are needed.
    NotYet,
    /// It can be read in two ways, or in none.
    Bad(&'static str),
}

impl Request {
    /// Takes one off the front of `bytes`; says how long it is.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Self, usize), No> {
        let mut lines = Lines { bytes, at: 0 };
        let (method, target, is_http_1_1) = request_line(lines.next()?)?;
        let mut fields = Vec::new();
        loop {
            match lines.next()? {
                [] => break,
                line => fields.push(field(line)?),
            }
        }
        let at = lines.at;
        let mut request = Self {
            method,
            target,
            is_http_1_1,
            fields,
            body: Vec::new(),
        };
        request.check_host()?;
        let end = request.read_body(bytes, at)?;
        Ok((request, end))
    }

    /// All lines of a field.
    pub(crate) fn values(&self, name: &str) -> Vec<&[u8]> {
        let lines = self.fields.iter().filter(|(field, _)| field == name);
        lines.map(|(_, value)| value.as_slice()).collect()
    }

    fn check_host(&self) -> Result<(), No> {
        match self.values("host").len() {
            1 => Ok(()),
            0 if !self.is_http_1_1 => Ok(()),
            _ => Err(No::Bad("not one Host")),
        }
    }

    /// RFC 9112 section 6.3.
    fn read_body(&mut self, bytes: &[u8], at: usize) -> Result<usize, No> {
        let codings = self.values("transfer-encoding");
        let lengths = self.values("content-length");
        match (codings.as_slice(), lengths.as_slice()) {
            ([], []) => Ok(at),
            ([], [length]) => {
                let end = at + number(length, 10)?;
                self.body = bytes.get(at..end).ok_or(No::NotYet)?.to_vec();
                Ok(end)
            }
            ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => {
                self.read_chunks(bytes, at)
            }
            _ => Err(No::Bad("two framings, or an unknown one")),
        }
    }

    fn read_chunks(&mut self, bytes: &[u8], at: usize) -> Result<usize, No> {
        let mut lines = Lines { bytes, at };
        loop {
            let n = number(lines.next()?, 16)?;
            if n == 0 {
                break;
            }
            let end = lines.at + n;
            let chunk = bytes.get(lines.at..end).ok_or(No::NotYet)?;
            self.body.extend_from_slice(chunk);
            lines.at = end;
            if !lines.next()?.is_empty() {
                return Err(No::Bad("a chunk is longer than it says"));
            }
        }
        while let line @ [_, ..] = lines.next()? {
            field(line)?;
        }
        Ok(lines.at)
    }
}

/// Lines that end in CRLF, and have neither within.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a [u8], No> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..n.ok_or(No::NotYet)?];
        self.at += line.len() + 1;
        let line = line.strip_suffix(b"\r").ok_or(No::Bad("a bare LF"))?;
        match line.contains(&b'\r') {
            true => Err(No::Bad("a bare CR")),
            false => Ok(line),
        }
    }
}

fn request_line(line: &[u8]) -> Result<(String, String, bool), No> {
    let line = std::str::from_utf8(line).map_err(|_| No::Bad("a request line that is no text"))?;
    let words: Vec<_> = line.split(' ').collect();
    let [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = words[..] else {
        return Err(No::Bad("a request line of other than three words"));
    };
    let is_target = !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_graphic());
    match is_token(method.as_bytes()) && is_target {
        true => Ok((method.to_owned(), target.to_owned(), version == "HTTP/1.1")),
        false => Err(No::Bad("a method or target with other signs")),
    }
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), No> {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.ok_or(No::Bad("a field without a colon"))?);
    let value = value[1..].trim_ascii();
    let is_text = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
    if !is_token(name) || !value.iter().all(is_text) {
        return Err(No::Bad("a field with other signs"));
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    Ok((name, value.to_vec()))
}

/// RFC 9110 section 5.6.2.
fn is_token(name: &[u8]) -> bool {
    let is_tchar = |c: &u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.iter().all(is_tchar)
}

fn number(text: &[u8], radix: u32) -> Result<usize, No> {
    let digits = std::str::from_utf8(text).ok();
    let is_digit = |c: char| c.is_digit(radix);
    let digits = digits.filter(|digits| !digits.is_empty() && digits.chars().all(is_digit));
    let n = digits.and_then(|digits| usize::from_str_radix(digits, radix).ok());
    // More than this comes from nobody.
    n.filter(|n| *n < usize::MAX / 2)
        .ok_or(No::Bad("a length that is none"))
}
