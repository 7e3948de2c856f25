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
    WAYS.iter().any(|way| {
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

/// All ways in which servers are known to read a path.
const WAYS: [Way; 16] = ways();

/// One way to read a path, in which dot segments are always resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Escaped letters, digits, `-`, `.`, `_` and `~` are what they stand for.
    decodes: bool,
    /// `%2f`, `%5c` and `\` are slashes.
    has_other_slashes: bool,
    /// Slashes in a row are one.
    merges_slashes: bool,
    /// What follows a `;` in a segment is no part of its name.
    has_parameters: bool,
}

/// Whether a path reads the same in every way, as almost all do.
fn is_plain(path: &str) -> bool {
    !path.contains(['%', ';', '\\']) && !path.contains("//") && !path.contains("/.")
}

impl Way {
    /// `path` in its plainest form. Begins with a slash, as `path` does.
    fn read(self, path: &str) -> String {
        let path = self.decode(path);
        let mut segments = Vec::new();
        let mut rest = path
            .strip_prefix('/')
            .unwrap_or(&path)
            .split('/')
            .peekable();
        while let Some(segment) = rest.next() {
            let segment = match segment.split_once(';') {
                Some((name, _)) if self.has_parameters => name,
                _ => segment,
            };
            let is_last = rest.peek().is_none();
            match segment {
                "" if self.merges_slashes && !is_last => {}
                "." | ".." => {
                    if segment == ".." {
                        segments.pop();
                    }
                    if is_last {
                        segments.push("");
                    }
                }
                name => segments.push(name),
            }
        }
        format!("/{}", segments.join("/"))
    }

    fn decode(self, path: &str) -> String {
        let mut decoded = String::with_capacity(path.len());
        let mut rest = path;
        while let Some(first) = rest.chars().next() {
            let escaped = rest.get(..3).and_then(unescape);
            let (read, length) = match escaped {
                Some(byte) if self.is_read(byte) => (char::from(byte), 3),
                _ => (first, first.len_utf8()),
            };
            decoded.push(match read {
                '\\' if self.has_other_slashes => '/',
                other => other,
            });
            rest = rest.get(length..).unwrap_or_default();
        }
        decoded
    }

    fn is_read(self, escaped: u8) -> bool {
        match escaped {
            b'-' | b'.' | b'_' | b'~' => self.decodes,
            b'/' | b'\\' => self.has_other_slashes,
            b';' => self.has_parameters,
            other => self.decodes && other.is_ascii_alphanumeric(),
        }
    }
}

const fn ways() -> [Way; 16] {
    let mut ways = [Way {
        decodes: false,
        has_other_slashes: false,
        merges_slashes: false,
        has_parameters: false,
    }; 16];
    let mut n = 0;
    while n < ways.len() {
        ways[n].decodes = n & 1 != 0;
        ways[n].has_other_slashes = n & 2 != 0;
        ways[n].merges_slashes = n & 4 != 0;
        ways[n].has_parameters = n & 8 != 0;
        n += 1;
    }
    ways
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
        let readings = WAYS.map(|way| way.read(path));
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
            for way in WAYS {
                assert_eq!(way.read(path), path, "{way:?}");
            }
        }
    }
}
