//! No path that is let through to one route is, for a server that reads it in another way or ignores
//! case, a path of another route.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use pointsman_config::Config;
use pointsman_traffic::routing::paths;
use pointsman_traffic::routing::table::RouteTable;

/// Each is the paths of one table; behind a `~`, of a route that ignores case.
const TABLES: [&[&str]; 6] = [
    &["/*", "/admin/*", "/exact"],
    &["/*", "/Admin/*", "/admin/keys/*"],
    &["/*", "/Admin/*", "/admin/*", "~/admin/Keys/*"],
    &["/*", "/Admin/*", "~/admin/*", "/a!b/*"],
    &["/*", "/a/*", "/a/b/*", "/a/b/c"],
    // What no route takes is refused, and so is what can be read so.
    &["/open/*", "/open/q/admin/*"],
];

/// The tables, and their patterns in lower case.
static ROUTES: LazyLock<Vec<(RouteTable, RouteTable)>> = LazyLock::new(|| {
    let table = |paths: &[&str]| {
        let mut text = "[[listener]]\nbind = '127.0.0.1:0'\n".to_owned();
        for path in paths {
            let is_case_sensitive = !path.starts_with('~');
            let path = path.trim_start_matches('~');
            text += &format!(
                "[[route]]\npath = '{path}'\ncase_sensitive = {is_case_sensitive}\nhandler = 'a'\n"
            );
        }
        let config = Config::from_toml(&text, Path::new("/")).expect("a good configuration");
        RouteTable::new(&config.routes)
    };
    let both = |paths: &&[&str]| {
        let lower: BTreeSet<String> = paths
            .iter()
            .map(|path| path.trim_start_matches('~').to_lowercase())
            .collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        (table(paths), table(&lower))
    };
    TABLES.iter().map(both).collect()
});

/// A name, and how it reads a path.
type Server = (&'static str, fn(&str) -> String);

/// Each in a few steps.
const SERVERS: [Server; 9] = [
    ("RFC 3986", |path| resolve(&unescape(path, is_unreserved))),
    ("nginx, Go", |path| {
        resolve(&merge(&unescape(path, |_| true)))
    }),
    ("nginx, merge_slashes off", |path| {
        resolve(&unescape(path, |_| true))
    }),
    ("Node.js, by WHATWG", |path| {
        resolve(&unescape(&path.replace('\\', "/"), |byte| byte == b'.'))
    }),
    ("Windows", |path| {
        resolve(&merge(&unescape(path, |_| true).replace('\\', "/")))
    }),
    ("Windows, with %uXXXX", |path| {
        let path = unescape_with(path, unicode_escape, |_| true);
        resolve(&merge(&path.replace('\\', "/")))
    }),
    ("Tomcat", |path| {
        let path = unescape(&cut_parameters(path), |_| true);
        resolve(&merge(&path.replace('\\', "/")))
    }),
    ("parameters cut at last", |path| {
        resolve(&merge(&cut_parameters(&unescape(path, |_| true))))
    }),
    ("Envoy", |path| {
        merge(&resolve(&unescape(path, |byte| {
            is_unreserved(byte) || byte == b'/'
        })))
    }),
];

pub(crate) fn run(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else {
        return;
    };
    // What an HTTP parser takes for the path of a target.
    let is_path = path.starts_with('/')
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    if !is_path {
        return;
    }
    for (routes, lower) in ROUTES.iter() {
        let Some(route) = routes.find("", path) else {
            continue;
        };
        if paths::is_ambiguous(routes, "", route, path) {
            continue;
        }
        let folded_route = route.to_string().to_lowercase();
        for (server, read) in SERVERS {
            let read = read(path);
            let found = routes.find("", &read);
            assert!(
                found.is_some_and(|found| Arc::ptr_eq(found, route)),
                "{path:?} is let through to {route}, and {server} reads {read:?}"
            );
            for folded in [read.to_lowercase(), any_case(&read)] {
                let found = lower.find("", &folded);
                assert!(
                    found.is_some_and(|found| found.to_string() == folded_route),
                    "{path:?} is let through to {route}, and {server}, ignoring case, reads {folded:?}"
                );
            }
        }
    }
}

/// As servers compare that know of all letters, which may be escaped.
fn any_case(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = rest
            .get(1..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|byte| *first == b'%' && !byte.is_ascii()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes)
        .to_uppercase()
        .to_lowercase()
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Reads escapes, once: that of `%` stays, and so does what is no ASCII, for no route is about them.
fn unescape(path: &str, is_read: impl Fn(u8) -> bool) -> String {
    unescape_with(path, |_| None, is_read)
}

/// `other`: an escape of another kind at the beginning of a text, and the text behind it.
fn unescape_with(
    path: &str,
    other: impl Fn(&str) -> Option<(char, &str)>,
    is_read: impl Fn(u8) -> bool,
) -> String {
    let mut read = String::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let byte = rest
            .strip_prefix('%')
            .and_then(|rest| hexadecimal(rest, 2))
            .and_then(|byte| u8::try_from(byte).ok());
        let (letter, behind) =
            match byte.filter(|byte| byte.is_ascii() && *byte != b'%' && is_read(*byte)) {
                Some(byte) => (char::from(byte), &rest[3..]),
                None => other(rest).unwrap_or((first, &rest[first.len_utf8()..])),
            };
        read.push(letter);
        rest = behind;
    }
    read
}

/// `%uXXXX`.
fn unicode_escape(text: &str) -> Option<(char, &str)> {
    let digits = text.strip_prefix("%u")?;
    let letter = char::from_u32(hexadecimal(digits, 4)?)?;
    (letter != '%').then_some((letter, &digits[4..]))
}

fn hexadecimal(text: &str, n: usize) -> Option<u32> {
    let digits = text.get(..n)?;
    let is_hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16)
        .ok()
        .filter(|_| is_hexadecimal)
}

fn cut_parameters(path: &str) -> String {
    let names = path
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or_default());
    names.collect::<Vec<_>>().join("/")
}

fn merge(path: &str) -> String {
    let mut path = path.to_owned();
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    path
}

/// Dot segments, letter for letter as in RFC 3986 section 5.2.4.
fn resolve(path: &str) -> String {
    let mut input = path;
    let mut output = String::new();
    while !input.is_empty() {
        if let Some(rest) = input.strip_prefix("/./") {
            input = &input[input.len() - rest.len() - 1..];
        } else if input == "/." {
            input = "/";
        } else if input.starts_with("/../") || input == "/.." {
            input = if input == "/.." { "/" } else { &input[3..] };
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output += &input[..end];
            input = &input[end..];
        }
    }
    output
}
