//! Paths that a backend may read differently from how they are written, so that a request could get
//! round the rules of a route (RFC 3986 section 6.2).
//!
//! Pure functions over text. The path itself is passed on as it came.

use std::borrow::Cow;

use pointsman_config::{PathPattern, Route};

use super::table::{RouteTable, matches_path, rank};

/// What may be read of one path, over all ways to read it. A longer one is refused: a path of so many
/// kinds of escapes and signs is made to be read differently, or to take time.
const MAX_READ_BYTES: usize = 64 * 1024;

/// Whether a server that reads `path` in another way would find a route more exact than `route`,
/// which the path matches as it is written.
///
/// A server may decode escapes, resolve dot segments, merge slashes, take `\` for a slash, leave out
/// `;` parameters and ignore case, in any combination. Patterns are read in the same way, so routes
/// whose patterns differ only in spelling each keep the paths that are spelled like them.
pub fn is_ambiguous(routes: &RouteTable, host: &str, route: &Route, path: &str) -> bool {
    let spelling = routes.spelling();
    if is_plain(path) && spelling.odd.is_empty() {
        let may_differ = spelling.has_capitals || has_capitals(path);
        return may_differ && leads_elsewhere_in_another_case(routes, host, route, path);
    }
    if takes_everything(route) && routes.of_host(host).nth(1).is_none() {
        return false;
    }
    let decodings = Oddities::of(path)
        .and(Oddities::of(&spelling.odd))
        .decodings();
    if decodings.len() * path.len() > MAX_READ_BYTES {
        return true;
    }
    decodings.into_iter().any(|decoding| {
        let decoded = decoding.decode(path);
        mergings(&decoded, &spelling.odd).any(|merging| {
            let mut reading = Reading {
                decoding,
                merging,
                ignores_case: false,
            };
            let read = reading.normalize(&decoded);
            if reading.leads_elsewhere(routes, host, route, &read) {
                return true;
            }
            reading.ignores_case = true;
            reading.leads_elsewhere(routes, host, route, &fold(&read))
        })
    })
}

/// For a path and patterns in which nothing but the case of letters can be read in another way.
fn leads_elsewhere_in_another_case(
    routes: &RouteTable,
    host: &str,
    route: &Route,
    path: &str,
) -> bool {
    let rank = |route: &Route| rank(route.host.as_ref(), &route.path);
    let mut more_exact = routes
        .of_host(host)
        .take_while(|other| rank(other) > rank(route));
    more_exact.any(|other| matches_path(&other.path, path, true))
}

fn takes_everything(route: &Route) -> bool {
    matches!(&route.path, PathPattern::Prefix(prefix) if prefix == "/")
}

/// How the patterns of a table are written, as far as a path has to be looked at closely for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Spelling {
    /// The patterns that are not plain, joined.
    odd: String,
    has_capitals: bool,
}

impl<'a> FromIterator<&'a PathPattern> for Spelling {
    fn from_iter<I: IntoIterator<Item = &'a PathPattern>>(patterns: I) -> Self {
        let mut spelling = Self::default();
        for pattern in patterns {
            let (PathPattern::Exact(text) | PathPattern::Prefix(text)) = pattern;
            spelling.has_capitals |= has_capitals(text);
            if !is_plain(text) {
                spelling.odd.push_str(text);
            }
        }
        spelling
    }
}

/// One way to read a path, in which dot segments are always resolved.
#[derive(Debug, Clone, Copy)]
struct Reading {
    decoding: Decoding,
    merging: Merging,
    ignores_case: bool,
}

/// The part of a [`Reading`] that comes before dot segments are resolved.
#[derive(Debug, Clone, Copy)]
struct Decoding {
    escapes: Escapes,
    /// `%2f` is a slash.
    has_escaped_slashes: bool,
    backslashes: Backslashes,
    parameters: Parameters,
}

/// Which escapes are decoded, apart from those of slashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Escapes {
    None,
    /// Letters, digits, `-`, `.`, `_` and `~` (RFC 3986 section 6.2.2.2).
    Unreserved,
    /// All visible ASCII characters but `%`: nothing is decoded twice.
    Visible,
    /// `%uXXXX` as well, as Windows has it.
    Unicode,
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

/// What of a text can be read in more than one way.
#[derive(Debug, Clone, Copy, Default)]
struct Oddities {
    escaped_unreserved: bool,
    escaped_visible: bool,
    escaped_unicode: bool,
    escaped_slash: bool,
    backslash: bool,
    escaped_backslash: bool,
    parameter: bool,
}

impl Oddities {
    fn of(text: &str) -> Self {
        let mut found = Self {
            backslash: text.contains('\\'),
            parameter: text.contains(';'),
            ..Self::default()
        };
        for (at, _) in text.match_indices('%') {
            let Some((character, length)) = unescape(&text[at..]) else {
                continue;
            };
            found.escaped_unicode |= length == UNICODE_ESCAPE_BYTES;
            found.escaped_slash |= character == '/';
            found.escaped_backslash |= character == '\\';
            found.parameter |= character == ';';
            found.escaped_unreserved |= is_unreserved(character);
            found.escaped_visible |= is_visible(character) && !is_unreserved(character);
        }
        found
    }

    fn and(self, other: Self) -> Self {
        Self {
            escaped_unreserved: self.escaped_unreserved | other.escaped_unreserved,
            escaped_visible: self.escaped_visible | other.escaped_visible,
            escaped_unicode: self.escaped_unicode | other.escaped_unicode,
            escaped_slash: self.escaped_slash | other.escaped_slash,
            backslash: self.backslash | other.backslash,
            escaped_backslash: self.escaped_backslash | other.escaped_backslash,
            parameter: self.parameter | other.parameter,
        }
    }

    /// All ways of decoding in which servers are known to differ on such a text.
    fn decodings(self) -> Vec<Decoding> {
        let escapes = [
            (Escapes::None, true),
            (Escapes::Unreserved, self.escaped_unreserved),
            (Escapes::Visible, self.escaped_visible),
            (Escapes::Unicode, self.escaped_unicode),
        ];
        let slashes = [(false, true), (true, self.escaped_slash)];
        let backslashes = [
            (Backslashes::None, true),
            (Backslashes::Written, self.backslash),
            (Backslashes::Escaped, self.escaped_backslash),
        ];
        let parameters = [
            (Parameters::None, true),
            (Parameters::Written, self.parameter),
            (Parameters::Escaped, self.parameter),
        ];
        let mut decodings = Vec::new();
        for escapes in applicable(escapes) {
            for has_escaped_slashes in applicable(slashes) {
                for backslashes in applicable(backslashes) {
                    for parameters in applicable(parameters) {
                        decodings.push(Decoding {
                            escapes,
                            has_escaped_slashes,
                            backslashes,
                            parameters,
                        });
                    }
                }
            }
        }
        decodings
    }
}

fn applicable<T, const N: usize>(ways: [(T, bool); N]) -> impl Iterator<Item = T> {
    ways.into_iter()
        .filter_map(|(way, applies)| applies.then_some(way))
}

impl Decoding {
    fn decode(self, path: &str) -> String {
        const SPECIAL: [char; 3] = ['%', ';', '\\'];
        let mut decoded = String::with_capacity(path.len());
        let mut rest = path;
        while let Some(at) = rest.find(SPECIAL) {
            let (plain, special) = rest.split_at(at);
            decoded.push_str(plain);
            let first = char::from(special.as_bytes()[0]);
            let (read, length) = match (first, unescape(special)) {
                (';', _) if self.parameters == Parameters::Written => {
                    rest = special.find('/').map_or("", |at| &special[at..]);
                    continue;
                }
                ('\\', _) if self.backslashes != Backslashes::None => ('/', 1),
                (_, Some((escaped, length))) => match self.read(escaped, length) {
                    Some(read) => (read, length),
                    None => (first, 1),
                },
                _ => (first, 1),
            };
            decoded.push(read);
            rest = &special[length..];
        }
        decoded + rest
    }

    /// What an escape of this character is; none: it stays.
    fn read(self, escaped: char, length: usize) -> Option<char> {
        let is_known = length < UNICODE_ESCAPE_BYTES || self.escapes == Escapes::Unicode;
        let is_read = match escaped {
            '/' => self.has_escaped_slashes,
            '\\' if self.backslashes == Backslashes::Escaped => return is_known.then_some('/'),
            ';' if self.parameters == Parameters::Escaped => true,
            c if is_unreserved(c) => self.escapes >= Escapes::Unreserved,
            c if is_visible(c) => self.escapes >= Escapes::Visible,
            c => !c.is_ascii(),
        };
        (is_known && is_read).then_some(escaped)
    }
}

impl Reading {
    /// `path`: as it reads.
    fn leads_elsewhere(self, routes: &RouteTable, host: &str, route: &Route, path: &str) -> bool {
        let rank = |route: &Route| {
            let pattern = self.read_pattern(&route.path);
            let is_case_sensitive = route.is_case_sensitive && !self.ignores_case;
            matches_path(&pattern, path, !is_case_sensitive)
                .then(|| (rank(route.host.as_ref(), &pattern), is_case_sensitive))
        };
        let own = rank(route);
        own.is_none() || routes.of_host(host).any(|other| rank(other) > own)
    }

    fn read_pattern(self, pattern: &PathPattern) -> Cow<'_, PathPattern> {
        let read = |text: &str| {
            let read = self.normalize(&self.decoding.decode(text));
            match self.ignores_case {
                true => fold(&read),
                false => read,
            }
        };
        match pattern {
            PathPattern::Exact(text) | PathPattern::Prefix(text) if is_plain(text) => {
                Cow::Borrowed(pattern)
            }
            PathPattern::Exact(text) => Cow::Owned(PathPattern::Exact(read(text))),
            PathPattern::Prefix(text) => Cow::Owned(PathPattern::Prefix(read(text))),
        }
    }

    /// What has been decoded, in its plainest form but for its case. Begins with a slash, as `decoded`
    /// does.
    fn normalize(self, decoded: &str) -> String {
        let merges_first = self.merging == Merging::BeforeDots;
        let has_parameters = self.decoding.parameters == Parameters::Escaped;
        let resolved = resolve(decoded, merges_first, has_parameters);
        match self.merging {
            Merging::AfterDots => merge(&resolved),
            Merging::Never | Merging::BeforeDots => resolved,
        }
    }
}

/// Whether a text reads the same in every way but for its case, as almost all do.
fn is_plain(text: &str) -> bool {
    !text.contains(['%', ';', '\\']) && !text.contains("//") && !text.contains("/.")
}

fn has_capitals(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// The ways to merge slashes that make a difference. Leaving out parameters makes slashes in a row.
fn mergings(decoded: &str, patterns: &str) -> impl Iterator<Item = Merging> {
    let may_merge = |text: &str| text.contains("//") || text.contains(';');
    let differ = may_merge(decoded) || may_merge(patterns);
    applicable([
        (Merging::Never, true),
        (Merging::BeforeDots, differ),
        (Merging::AfterDots, differ),
    ])
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

/// As servers compare that ignore case: letters of all scripts, also in escaped UTF-8, by Unicode's
/// upper and lower case, and full-width letters as those of ASCII.
fn fold(path: &str) -> String {
    /// Behind an `i`, what is left of the Turkish `İ` in lower case.
    const DOT_ABOVE: char = '\u{307}';
    if path.is_ascii() && !path.contains('%') {
        return path.to_ascii_lowercase();
    }
    let bytes = decode_utf8(path);
    let mut folded = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_ascii() {
                folded.push(letter.to_ascii_lowercase());
                continue;
            }
            let letters = narrow(letter).to_uppercase().flat_map(char::to_lowercase);
            folded.extend(letters.filter(|letter| *letter != DOT_ABOVE));
        }
        for byte in chunk.invalid() {
            folded.push_str(&format!("%{byte:02x}"));
        }
    }
    folded
}

/// Decodes the escapes of bytes that are not ASCII.
fn decode_utf8(path: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (plain, escape) = rest.split_at(at);
        bytes.extend_from_slice(plain.as_bytes());
        let byte = escape.get(1..3).and_then(hexadecimal);
        let decoded = byte.and_then(|byte| u8::try_from(byte).ok());
        let (byte, length) = match decoded.filter(|byte| !byte.is_ascii()) {
            Some(byte) => (byte, 3),
            None => (b'%', 1),
        };
        bytes.push(byte);
        rest = &escape[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// Full-width forms as what they are in ASCII.
fn narrow(letter: char) -> char {
    match letter {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(letter) - 0xfee0).unwrap_or(letter),
        other => other,
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '.' | '_' | '~')
}

fn is_visible(character: char) -> bool {
    character.is_ascii_graphic() && character != '%'
}

/// Of `%uXXXX`.
const UNICODE_ESCAPE_BYTES: usize = 6;

/// What the escape at the beginning of a text stands for, and how long it is. Bytes that are not ASCII
/// stand for nothing by themselves.
fn unescape(text: &str) -> Option<(char, usize)> {
    let (digits, length) = match text.get(..2)? {
        "%u" | "%U" => (text.get(2..UNICODE_ESCAPE_BYTES)?, UNICODE_ESCAPE_BYTES),
        escape => {
            escape.strip_prefix('%')?;
            (text.get(1..3)?, 3)
        }
    };
    let character = char::from_u32(hexadecimal(digits)?)?;
    (character.is_ascii() || length == UNICODE_ESCAPE_BYTES).then_some((character, length))
}

fn hexadecimal(digits: &str) -> Option<u32> {
    let is_hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16)
        .ok()
        .filter(|_| is_hexadecimal)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pointsman_config::Config;

    use super::*;

    fn readings(path: &str) -> Vec<String> {
        let mut readings = Vec::new();
        for decoding in Oddities::of(path).decodings() {
            let decoded = decoding.decode(path);
            for merging in mergings(&decoded, "") {
                let reading = Reading {
                    decoding,
                    merging,
                    ignores_case: false,
                };
                let read = reading.normalize(&decoded);
                readings.extend([fold(&read), read]);
            }
        }
        readings
    }

    /// Some server reads `path` as `other`.
    #[track_caller]
    fn check(path: &str, other: &str) {
        let readings = readings(path);
        assert!(
            readings.iter().any(|reading| reading == other),
            "{path}: {readings:?}"
        );
        assert!(!is_plain(path), "{path}");
    }

    fn table(patterns: &[&str]) -> RouteTable {
        let mut text = "[[listener]]\nbind = '127.0.0.1:0'\n".to_owned();
        for pattern in patterns {
            let (pattern, case_sensitive) = match pattern.strip_suffix(" i") {
                Some(pattern) => (pattern, false),
                None => (*pattern, true),
            };
            text += &format!(
                "[[route]]\npath = '{pattern}'\ncase_sensitive = {case_sensitive}\nhandler = 'a'\n"
            );
        }
        let config = Config::from_toml(&text, Path::new("/")).expect("a good configuration");
        RouteTable::new(&config.routes)
    }

    /// The pattern of the route that a path leads along; or whether it is ambiguous, or has none.
    fn route(routes: &RouteTable, path: &str) -> String {
        match routes.find("", path) {
            None => "none".to_owned(),
            Some(route) if is_ambiguous(routes, "", route, path) => "ambiguous".to_owned(),
            Some(route) => route.to_string(),
        }
    }

    #[test]
    fn every_known_reading_is_found() {
        check("//private/x", "/private/x");
        check("/open/../private/x", "/private/x");
        check("/open/%2e%2E/private/x", "/private/x");
        check("/open/..%2fprivate/x", "/private/x");
        check("/%70rivate/x", "/private/x");
        check("/private%21/x", "/private!/x");
        check("/%u0070rivate%U002fx", "/private/x");
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
        check("/q/;a/../private/x", "/q/private/x");
        check("/q/;a/../private/x", "/private/x");
        check("/a/..", "/");
        check("/a/.", "/a/");
    }

    #[test]
    fn letters_of_all_scripts_and_spellings_have_two_cases() {
        check("/%50RIVATE/x", "/private/x");
        check("/PR%C4%B0VATE/x", "/private/x");
        check("/pr%C4%B1vate/x", "/private/x");
        check("/%E2%84%AAey%C5%BF", "/keys");
        check("/%EF%BC%B0rivate/x", "/private/x");
        check("/%uFF50rivate/x", "/private/x");
        check("/caf%C3%89", "/caf\u{e9}");
        check("/caf%c3%a9", "/caf\u{e9}");
        check("/stra%C3%9fe", "/strasse");
        check("/%ffA", "/%ffa");
    }

    #[test]
    fn what_cannot_be_read_otherwise_stays() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a%20b/",
            "/.well-known/x",
            "/a%zz",
            "/a%2",
            "/a%u12",
            "/%252e/x",
            "/a..b",
        ] {
            for read in readings(path) {
                assert_eq!(read, path);
            }
        }
    }

    #[test]
    fn a_path_that_is_a_guarded_one_in_another_case_is_ambiguous() {
        let routes = table(&["/*", "/admin/*", "/exact"]);
        for (path, expected) in [
            ("/", "/*"),
            ("/Other/%41", "/*"),
            ("/admin", "/*"),
            ("/Admin", "/*"),
            ("/admin/x", "/admin/*"),
            ("/admin/X", "/admin/*"),
            ("/Admin/x", "ambiguous"),
            ("/ADMIN/", "ambiguous"),
            ("/%41dmin/x", "ambiguous"),
            ("/%61dmin/x", "ambiguous"),
            ("/x/../Admin/x", "ambiguous"),
            ("/adm%C4%B1n/x", "ambiguous"),
            ("/exact", "/exact"),
            ("/Exact", "ambiguous"),
            ("/Exact/", "/*"),
        ] {
            assert_eq!(route(&routes, path), expected, "{path}");
        }
        // The capitals may be those of the pattern.
        let routes = table(&["/*", "/Admin/*"]);
        assert_eq!(route(&routes, "/admin/x"), "ambiguous");
        assert_eq!(route(&routes, "/Admin/x"), "/Admin/*");
        // Nobody else takes it.
        let routes = table(&["/admin/*"]);
        assert_eq!(route(&routes, "/Admin/x"), "none");
        let routes = table(&["/*"]);
        assert_eq!(route(&routes, "/A/../%41//;x"), "/*");
    }

    #[test]
    fn a_route_may_ignore_case_or_be_there_in_two() {
        let routes = table(&["/*", "/admin/* i"]);
        for (path, expected) in [
            ("/Admin/x", "/admin/*"),
            ("/ADMIN/%41", "/admin/*"),
            ("/%41dmin/x", "ambiguous"),
            ("/ADM%C4%B0N/x", "ambiguous"),
            ("/Admins/x", "/*"),
        ] {
            assert_eq!(route(&routes, path), expected, "{path}");
        }
        let routes = table(&["/*", "/admin/*", "/Admin/*"]);
        for (path, expected) in [
            ("/Admin/x", "/Admin/*"),
            ("/admin/x", "/admin/*"),
            ("/ADMIN/x", "ambiguous"),
            ("/Admin/..%2fadmin/x", "ambiguous"),
        ] {
            assert_eq!(route(&routes, path), expected, "{path}");
        }
        let routes = table(&["/*", "/admin/* i", "/Admin/*"]);
        for (path, expected) in [
            ("/Admin/x", "/Admin/*"),
            ("/admin/x", "/admin/*"),
            ("/ADMIN/x", "/admin/*"),
            ("/ADMIN/../Admin/x", "ambiguous"),
        ] {
            assert_eq!(route(&routes, path), expected, "{path}");
        }
        // A more exact one is another route in any case.
        let routes = table(&["/*", "/admin/* i", "/admin/keys/*"]);
        assert_eq!(route(&routes, "/admin/keys/x"), "/admin/keys/*");
        assert_eq!(route(&routes, "/Admin/keys/x"), "ambiguous");
        assert_eq!(route(&routes, "/Admin/x"), "/admin/*");
    }

    #[test]
    fn patterns_are_read_as_paths_are() {
        let routes = table(&[
            "/*",
            "/a!b/*",
            "/caf%C3%A9/*",
            "/%61dmin/*",
            "/admin/keys/*",
        ]);
        for (path, expected) in [
            ("/a%21b/x", "ambiguous"),
            ("/caf%C3%A9/x", "/caf%C3%A9/*"),
            ("/caf%c3%a9/x", "ambiguous"),
            ("/caf%C3%89/x", "ambiguous"),
            ("/%61dmin/x", "/%61dmin/*"),
            ("/%61dmin/keys/x", "ambiguous"),
            // One server reads the pattern as it reads the path, whichever way.
            ("/admin/x", "ambiguous"),
            ("/admin/keys/x", "/admin/keys/*"),
        ] {
            assert_eq!(route(&routes, path), expected, "{path}");
        }
    }

    #[test]
    fn a_path_is_read_for_so_long_only() {
        let routes = table(&["/*", "/admin/*"]);
        let all = "/;a%2f%5c\\%41%21%u0041";
        assert_eq!(route(&routes, all), "/*");
        assert_eq!(route(&routes, &all.repeat(100)), "ambiguous");
        assert_eq!(route(&table(&["/*"]), &all.repeat(100)), "/*");
        // One kind of escapes may fill it.
        assert_eq!(route(&routes, &"/%41%C3%A9".repeat(800)), "/*");
    }
}
