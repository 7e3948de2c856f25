//! No path that is let through to one route is, for a server that reads it in another way, a path of
//! another route.

use std::path::Path;
use std::sync::LazyLock;

use pointsman::config::Config;
use pointsman::connection::paths;
use pointsman::routing::table::RouteTable;

static ROUTES: LazyLock<RouteTable> = LazyLock::new(|| {
    let text = r#"
[[listener]]
bind = "127.0.0.1:0"
[[route]]
path = "/*"
handler = "open"
[[route]]
path = "/admin/*"
handler = "guarded"
[[route]]
path = "/exact"
handler = "exact"
"#;
    let config = Config::from_toml(text, Path::new("/")).expect("a good configuration");
    RouteTable::new(&config.routes)
});

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
    let route = ROUTES.find("", path).expect("one route takes all");
    if paths::may_lead_elsewhere(&ROUTES, "", route, path) {
        return;
    }
    let is_guarded = |path: &str| path.starts_with("/admin/");
    for read in [
        resolve(path),
        resolve(&decode(path)),
        resolve(&decode(path).replace('\\', "/")),
    ] {
        assert!(
            is_guarded(&read) == is_guarded(path),
            "{path:?} is let through, and can be read as {read:?}"
        );
    }
}

/// All escapes, once, as most servers do (RFC 3986 section 2.1).
fn decode(path: &str) -> String {
    let mut decoded = String::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let code = rest.strip_prefix('%').and_then(|rest| rest.get(..2));
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        let is_sign = code.is_some_and(|code| code.starts_with('+'));
        match byte.filter(|byte| byte.is_ascii() && !is_sign) {
            Some(byte) => {
                decoded.push(char::from(byte));
                rest = &rest[3..];
            }
            None => {
                decoded.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    decoded
}

/// Dot segments (RFC 3986 section 5.2.4), with empty segments left out.
fn resolve(path: &str) -> String {
    let mut segments = vec![""];
    let mut is_folder = false;
    for segment in path.split('/') {
        is_folder = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." if segments.len() == 1 => {}
            ".." => _ = segments.pop(),
            name => segments.push(name),
        }
    }
    if is_folder {
        segments.push("");
    }
    segments.join("/")
}
