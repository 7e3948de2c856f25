//! No path that is let through to one route is, for a server that reads it in another way, a path of
//! another route.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use pointsman::config::Config;
use pointsman::connection::paths;
use pointsman::routing::table::RouteTable;

/// Each is the paths of one table.
const TABLES: [&[&str]; 3] = [
    &["/*", "/admin/*", "/exact"],
    &["/*", "/a/*", "/a/b/*", "/a/b/c"],
    // What no route takes is refused, and so is what can be read so.
    &["/open/*", "/open/q/admin/*"],
];

static ROUTES: LazyLock<Vec<RouteTable>> = LazyLock::new(|| {
    let table = |paths: &&[&str]| {
        let mut text = "[[listener]]\nbind = '127.0.0.1:0'\n".to_owned();
        for path in *paths {
            text += &format!("[[route]]\npath = '{path}'\nhandler = 'a'\n");
        }
        let config = Config::from_toml(&text, Path::new("/")).expect("a good configuration");
        RouteTable::new(&config.routes)
    };
    TABLES.iter().map(table).collect()
});

/// A name, and how it reads a path.
type Server = (&'static str, fn(&str) -> String);

/// Each in a few steps.
const SERVERS: [Server; 8] = [
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
    for routes in ROUTES.iter() {
        let Some(route) = routes.find("", path) else {
            continue;
        };
        if paths::may_lead_elsewhere(routes, "", route, path) {
            continue;
        }
        for (server, read) in SERVERS {
            let read = read(path);
            let found = routes.find("", &read);
            assert!(
                found.is_some_and(|found| Arc::ptr_eq(found, route)),
                "{path:?} is let through to {route}, and {server} reads {read:?}"
            );
        }
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Reads escapes, once. What is no ASCII stays, for no route is about it.
fn unescape(path: &str, is_read: impl Fn(u8) -> bool) -> String {
    let mut read = String::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let digits = rest
            .strip_prefix('%')
            .and_then(|rest| rest.get(..2))
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|byte| byte.is_ascii() && is_read(*byte)) {
            Some(byte) => {
                read.push(char::from(byte));
                rest = &rest[3..];
            }
            None => {
                read.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    read
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
