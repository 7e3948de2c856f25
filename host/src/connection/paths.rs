//! Paths that a backend may read as another than is written, so that a request could get round the
//! rules of a route (RFC 3986 section 6.2.2).
//!
//! Pure functions over text. The path itself is passed on as it came.

use std::sync::Arc;

use crate::config::{PathPattern, Route};
use crate::routing::table::RouteTable;

/// Whether a path that leads along `route` leads along another one if it is read as some servers do.
pub fn may_lead_elsewhere(routes: &RouteTable, host: &str, route: &Arc<Route>, path: &str) -> bool {
    if is_plain(path) {
        return false;
    }
    ways(path).into_iter().any(|way| {
        let path = way.read(path);
        let found = routes.find(host, &path);
        // A pattern that is not plain itself is meant as a server would read it.
        let is_meant = match &route.path {
            PathPattern::Exact(exact) => !is_plain(exact) && path == way.read(exact),
            PathPattern::Prefix(prefix) => !is_plain(prefix) && path.starts_with(&way.read(prefix)),
        };
        !is_meant && !found.is_some_and(|found| Arc::ptr_eq(found, route))
    })
}

/// One way to read a path, in which dot segments are always resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Escaped letters, digits, `-`, `.`, `_` and `~` are what they stand for.
    decodes: bool,
    /// `%2f` is a slash.
    has_escaped_slashes: bool,
    backslashes: Backslashes,
    merging: Merging,
    parameters: Parameters,
}

/// Which backslashes are slashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslashes {
    None,
    /// `\`, as URLs are read by browsers and Node.js (WHATWG URL section 4.4).
    Written,
    /// `%5c`, too, as where paths are those of Windows.
    Escaped,
}

/// When slashes in a row become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Merging {
    Never,
    BeforeDots,
    /// As Envoy does.
    AfterDots,
}

/// What follows a `;` in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameters {
    /// It is part of the name.
    None,
    /// It is left out before escapes are read, as Tomcat does.
    Written,
    /// It is left out, also behind a `%3b`.
    Escaped,
}

/// All ways in which servers are known to read a path, but for those that are the same for this one.
fn ways(path: &str) -> Vec<Way> {
    let written = path.to_ascii_lowercase();
    let has = |text: &str| written.contains(text);
    let either = |differs: bool| {
        if differs {
            &[false, true][..]
        } else {
            &[false]
        }
    };
    let backslashes: &[_] = match (has("\\"), has("%5c")) {
        (false, false) => &[Backslashes::None],
        (true, false) => &[Backslashes::None, Backslashes::Written],
        (_, true) => &[
            Backslashes::None,
            Backslashes::Written,
            Backslashes::Escaped,
        ],
    };
    let parameters: &[_] = match (has(";"), has("%3b")) {
        (false, false) => &[Parameters::None],
        _ => &[Parameters::None, Parameters::Written, Parameters::Escaped],
    };
    let mut ways = Vec::new();
    for &decodes in either(has("%")) {
        for &has_escaped_slashes in either(has("%2f")) {
            for &backslashes in backslashes {
                for &parameters in parameters {
                    for merging in [Merging::Never, Merging::BeforeDots, Merging::AfterDots] {
                        ways.push(Way {
                            decodes,
                            has_escaped_slashes,
                            backslashes,
                            merging,
                            parameters,
                        });
                    }
                }
            }
        }
    }
    ways
}

/// Whether a path reads the same in every way, as almost all do.
fn is_plain(path: &str) -> bool {
    !path.contains(['%', ';', '\\']) && !path.contains("//") && !path.contains("/.")
}

impl Way {
    /// `path` in its plainest form. Begins with a slash, as `path` does.
    fn read(self, path: &str) -> String {
        let path = self.decode(path);
        let merged = self.merging == Merging::BeforeDots;
        let resolved = resolve(&path, merged, self.parameters == Parameters::Escaped);
        match self.merging {
            Merging::AfterDots => merge(&resolved),
            Merging::Never | Merging::BeforeDots => resolved,
        }
    }

    fn decode(self, path: &str) -> String {
        const SPECIAL: [char; 3] = ['%', ';', '\\'];
        let mut decoded = String::with_capacity(path.len());
        let mut rest = path;
        while let Some(at) = rest.find(SPECIAL) {
            let (plain, special) = rest.split_at(at);
            decoded.push_str(plain);
            let escaped = special.get(..3).and_then(unescape);
            let (read, length) = match (special.as_bytes()[0], escaped) {
                (b';', _) if self.parameters == Parameters::Written => {
                    rest = special.find('/').map_or("", |at| &special[at..]);
                    continue;
                }
                (b'\\', _) if self.backslashes != Backslashes::None => ('/', 1),
                (_, Some(b'\\')) if self.backslashes == Backslashes::Escaped => ('/', 3),
                (_, Some(byte)) if self.is_read(byte) => (char::from(byte), 3),
                (byte, _) => (char::from(byte), 1),
            };
            decoded.push(read);
            rest = &special[length..];
        }
        decoded + rest
    }

    fn is_read(self, escaped: u8) -> bool {
        match escaped {
            b'-' | b'.' | b'_' | b'~' => self.decodes,
            b'/' => self.has_escaped_slashes,
            b';' => self.parameters == Parameters::Escaped,
            other => self.decodes && other.is_ascii_alphanumeric(),
        }
    }
}

/// Without dot segments (RFC 3986 section 5.2.4).
fn resolve(path: &str, merges_slashes: bool, has_parameters: bool) -> String {
    let mut resolved = String::with_capacity(path.len());
    let mut rest = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = rest.next() {
        let segment = match segment.split_once(';') {
            Some((name, _)) if has_parameters => name,
            _ => segment,
        };
        let is_last = rest.peek().is_none();
        if segment == ".." {
            resolved.truncate(resolved.rfind('/').unwrap_or(0));
        }
        match segment {
            "" if merges_slashes && !is_last => {}
            "." | ".." if !is_last => {}
            "." | ".." => resolved.push('/'),
            name => {
                resolved.push('/');
                resolved.push_str(name);
            }
        }
    }
    resolved
}

fn merge(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for read in path.chars() {
        if read != '/' || !merged.ends_with('/') {
            merged.push(read);
        }
    }
    merged
}

/// The byte that `%XX` stands for.
fn unescape(text: &str) -> Option<u8> {
    let digits = text.strip_prefix('%')?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some way reads `path` as `other`.
    #[track_caller]
    fn check(path: &str, other: &str) {
        let readings: Vec<_> = ways(path).iter().map(|way| way.read(path)).collect();
        assert!(
            readings.iter().any(|reading| reading == other),
            "{path}: {readings:?}"
        );
        assert!(!is_plain(path), "{path}");
    }

    #[test]
    fn every_known_reading_is_found() {
        check("//private/x", "/private/x");
        check("/open/../private/x", "/private/x");
        check("/open/%2e%2E/private/x", "/private/x");
        check("/open/..%2fprivate/x", "/private/x");
        check("/%70rivate/x", "/private/x");
        check("/private;a=b/x", "/private/x");
        check("/open/..;a/private/x", "/private/x");
        check("/open/..%3ba/private/x", "/private/x");
        check("/private%5Cx", "/private/x");
        check("/\\private/x", "/private/x");
        check("/../private/x", "/private/x");
        // Slashes are merged, but an escaped one is none.
        check("/q//r%2fs/../../private/x", "/private/x");
        // A slash of one kind beside those of another, which is none there.
        check("/a\\b%2f../private/x", "/private/x");
        check("/a%5cb\\../private/x", "/private/x");
        check("/a%2fb/..\\private/x", "/private/x");
        // Parameters go before slashes are read, and slashes are merged after dots.
        check("/;a%2fb/q%2f../private/x", "/private/x");
        check("/.;..\\a/private/x", "/private/x");
        check("/q//..//private/x", "/q/private/x");
        check("/a/..", "/");
        check("/a/.", "/a/");
    }

    #[test]
    fn what_cannot_be_read_otherwise_stays() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a%20b/%C3%A9",
            "/.well-known/x",
            "/a%zz",
            "/a%2",
            "/%252e/x",
            "/a..b",
        ] {
            for way in ways(path) {
                assert_eq!(way.read(path), path, "{way:?}");
            }
        }
    }
}
