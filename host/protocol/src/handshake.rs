//! The client's half of the opening handshake (RFC 6455 section 4.2): an HTTP request in, an
//! [`Upgrade`] and its facts out, or a status and a reason.
//!
//! Also who the client is, as far as the request tells. Reads heads only: knows no socket, route or
//! backend.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, StatusCode, Version, request};
use tungstenite::handshake::derive_accept_key;

/// What a valid upgrade request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// The client's `Sec-WebSocket-Key`: 16 bytes in base64.
    pub key: String,
    /// `Sec-WebSocket-Protocol`, in the client's order.
    pub subprotocols: Vec<String>,
    /// The names in `Sec-WebSocket-Extensions`, in lower case.
    pub extensions: Vec<String>,
}

/// Why a request is refused before anyone else hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeError {
    /// What the client is answered with.
    pub status: StatusCode,
    /// One clause, for the client and for the log.
    pub reason: &'static str,
}

const VERSION: &str = "13";

/// Longest path with its query; RFC 9112 section 3 wants no less than 8000 bytes.
const MAX_TARGET_BYTES: usize = 8192;

/// Refuses what the HTTP parser lets pass, but other servers could read as something else.
///
/// # Errors
/// The target is no path or too long, or the body's framing is not plain (RFC 9112 sections 3.2
/// and 6.1).
pub fn check_head(head: &request::Parts) -> Result<(), HandshakeError> {
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    if target.len() > MAX_TARGET_BYTES {
        return Err(HandshakeError {
            status: StatusCode::URI_TOO_LONG,
            reason: "the target is longer than 8 KiB",
        });
    }
    if head.method == Method::CONNECT || !target.starts_with('/') {
        return Err(bad_request("the target is no path"));
    }
    if !target.is_ascii() || head.uri.path().contains("%00") {
        return Err(bad_request("the target has bytes that no path has"));
    }
    match has_known_coding(&head.headers) {
        true => Ok(()),
        false => Err(bad_request("the only transfer coding here is chunked")),
    }
}

/// Whether a message has no transfer coding, or is chunked, once: all that is spoken here, on either side. Of
/// others the two ends could read different bodies (RFC 9112 section 6.1).
pub fn has_known_coding(headers: &HeaderMap) -> bool {
    let coding = only(headers, header::TRANSFER_ENCODING);
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    !headers.contains_key(header::TRANSFER_ENCODING) || coding.is_some_and(is_chunked)
}

/// Reads a request's head. None: it does not ask for a WebSocket. `has_body`: as the HTTP parser
/// found it.
///
/// # Errors
/// It asks for a WebSocket, but not as RFC 6455 section 4.2.1 wants it.
pub fn read_upgrade(
    head: &request::Parts,
    has_body: bool,
) -> Result<Option<Upgrade>, HandshakeError> {
    let headers = &head.headers;
    let names_websocket = has_token(headers, header::UPGRADE, "websocket");
    if !names_websocket {
        return Ok(None);
    }
    let check = |is_fine: bool, reason| {
        if is_fine {
            Ok(())
        } else {
            Err(bad_request(reason))
        }
    };
    check(
        has_token(headers, header::CONNECTION, "upgrade"),
        "Upgrade without Connection: upgrade",
    )?;
    check(head.method == Method::GET, "a WebSocket upgrade is a GET")?;
    check(
        head.version == Version::HTTP_11,
        "a WebSocket upgrade is HTTP/1.1",
    )?;
    check(
        !has_body && !headers.contains_key(header::TRANSFER_ENCODING),
        "a WebSocket upgrade has no body",
    )?;
    let version = only(headers, header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version.as_bytes() != VERSION.as_bytes()) {
        let reason = "only version 13 of the WebSocket protocol is spoken here";
        return Err(HandshakeError {
            status: StatusCode::UPGRADE_REQUIRED,
            reason,
        });
    }
    let key = only(headers, header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let is_key =
        |key: &&str| key.len() == 24 && BASE64.decode(key).is_ok_and(|nonce| nonce.len() == 16);
    let key = key.filter(is_key).ok_or(bad_request(
        "Sec-WebSocket-Key is not one nonce of 16 bytes",
    ))?;
    let subprotocols = list(headers, header::SEC_WEBSOCKET_PROTOCOL)
        .ok_or(bad_request("Sec-WebSocket-Protocol is no list of tokens"))?;
    check(
        subprotocols.iter().all(|name| is_token(name)),
        "Sec-WebSocket-Protocol is no list of tokens",
    )?;
    let extensions =
        extension_names(headers).ok_or(bad_request("Sec-WebSocket-Extensions cannot be read"))?;
    Ok(Some(Upgrade {
        key: key.to_owned(),
        subprotocols,
        extensions,
    }))
}

/// The request's host, in lower case and without its port (RFC 9112 section 3.2).
///
/// # Errors
/// There is not exactly one valid `Host`, or the target names another (RFC 9112 section 3.2.2).
pub fn read_host(head: &request::Parts) -> Result<String, HandshakeError> {
    let error = bad_request("Host is missing, repeated or invalid");
    let host = match only(&head.headers, header::HOST) {
        Some(host) => host.to_str().map_err(|_| error)?,
        None if head.version < Version::HTTP_11 && !head.headers.contains_key(header::HOST) => {
            return Ok(String::new());
        }
        None => return Err(error),
    };
    let authority: Authority = host.parse().map_err(|_| error)?;
    if authority.as_str().contains('@') || !has_valid_port(&authority) {
        return Err(error);
    }
    if let Some(named) = head.uri.authority() {
        if named.as_str().contains('@') || !named.host().eq_ignore_ascii_case(authority.host()) {
            return Err(bad_request("the target names another host than Host"));
        }
        if !has_valid_port(named) {
            return Err(bad_request("the target names a port that there is not"));
        }
    }
    Ok(authority.host().trim_end_matches('.').to_ascii_lowercase())
}

/// None, or an empty one, is the scheme's own (RFC 3986 section 3.2.3).
fn has_valid_port(authority: &Authority) -> bool {
    let behind_host = authority.as_str().strip_prefix(authority.host());
    match behind_host.map(|port| port.strip_prefix(':').unwrap_or(port)) {
        Some("") => true,
        Some(port) => port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok(),
        None => false,
    }
}

/// What the client's 101 must carry (RFC 6455 section 4.2.2).
pub fn accept_headers(upgrade: &Upgrade, subprotocol: Option<&str>) -> HeaderMap {
    let accept = derive_accept_key(upgrade.key.as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let chosen = subprotocol.map(|name| (header::SEC_WEBSOCKET_PROTOCOL, name));
    for (name, value) in [(header::SEC_WEBSOCKET_ACCEPT, accept.as_str())]
        .into_iter()
        .chain(chosen)
    {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    headers
}

/// All that the client offers in `Sec-WebSocket-Extensions`, as one list.
pub fn offered_extensions(headers: &HeaderMap) -> String {
    let fields = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS);
    let texts = fields.iter().filter_map(|field| field.to_str().ok());
    texts.collect::<Vec<_>>().join(", ")
}

/// Headers that go with a refusal's status. After a bad request nothing more is read: what follows
/// may be its body, or may not.
pub fn refusal_headers(status: StatusCode) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if status == StatusCode::BAD_REQUEST {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static(VERSION),
        );
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    headers
}

/// Whether a list-valued field names `token`, in any case and over any number of lines.
pub fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let lines = headers
        .get_all(name)
        .into_iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .any(|element| element.trim().eq_ignore_ascii_case(token))
}

/// The elements of a list-valued field, over any number of lines; none if it is no text.
pub fn list(headers: &HeaderMap, name: HeaderName) -> Option<Vec<String>> {
    let mut elements = Vec::new();
    for line in headers.get_all(name) {
        let line = line.to_str().ok()?;
        elements.extend(
            line.split(',')
                .map(str::trim)
                .filter(|e| !e.is_empty())
                .map(str::to_owned),
        );
    }
    Some(elements)
}

/// The names in `Sec-WebSocket-Extensions`, in lower case; none if one is no token.
pub fn extension_names(headers: &HeaderMap) -> Option<Vec<String>> {
    let elements = list(headers, header::SEC_WEBSOCKET_EXTENSIONS)?;
    let name = |element: &String| {
        element
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase()
    };
    let names: Vec<_> = elements.iter().map(name).collect();
    names.iter().all(|name| is_token(name)).then_some(names)
}

/// The field's value if it has exactly one line.
pub fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(name).into_iter();
    lines.next().filter(|_| lines.next().is_none())
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_tchar = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(is_tchar)
}

const fn bad_request(reason: &'static str) -> HandshakeError {
    HandshakeError {
        status: StatusCode::BAD_REQUEST,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("Host", "example.org"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    /// A request whose fields are [`GOOD`], less those named in `changes`, and then `changes`
    /// (less those with an empty value).
    fn head(method: &str, version: Version, changes: &[(&str, &str)]) -> request::Parts {
        let kept = GOOD
            .iter()
            .filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        let mut request = http::Request::builder()
            .method(method)
            .version(version)
            .uri("/");
        for (name, value) in kept.chain(changes.iter().filter(|(_, value)| !value.is_empty())) {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn status(changes: &[(&str, &str)]) -> u16 {
        read_upgrade(&head("GET", Version::HTTP_11, changes), false)
            .err()
            .map_or(101, |error| error.status.as_u16())
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let upgrade = read_upgrade(&head("GET", Version::HTTP_11, &[]), false)
            .expect("valid")
            .expect("an upgrade");
        let headers = accept_headers(&upgrade, Some("chat"));
        assert_eq!(
            headers[header::SEC_WEBSOCKET_ACCEPT],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(headers[header::SEC_WEBSOCKET_PROTOCOL], "chat");
    }

    #[test]
    fn tokens_are_found_in_lists_in_any_case_and_over_lines() {
        assert_eq!(
            status(&[
                ("Connection", "keep-alive, UPGRADE"),
                ("Upgrade", "WebSocket")
            ]),
            101
        );
        assert_eq!(
            status(&[("Connection", "keep-alive"), ("Connection", "upgrade")]),
            101
        );
    }

    #[test]
    fn what_is_no_valid_upgrade_is_refused() {
        for changes in [
            &[("Connection", "keep-alive")][..],
            &[("Connection", "")],
            &[("Sec-WebSocket-Key", "")],
            &[("Sec-WebSocket-Key", "short")],
            &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=")],
            &[
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ],
            &[("Sec-WebSocket-Protocol", "a b")],
            &[("Sec-WebSocket-Extensions", "a b; c")],
            &[("Transfer-Encoding", "chunked")],
        ] {
            assert_eq!(status(changes), 400, "{changes:?}");
        }
        for changes in [
            &[("Sec-WebSocket-Version", "")][..],
            &[("Sec-WebSocket-Version", "8")],
            &[
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Version", "8"),
            ],
        ] {
            assert_eq!(status(changes), 426, "{changes:?}");
        }
        assert!(read_upgrade(&head("POST", Version::HTTP_11, &[]), false).is_err());
        assert!(read_upgrade(&head("GET", Version::HTTP_10, &[]), false).is_err());
        assert!(read_upgrade(&head("GET", Version::HTTP_11, &[]), true).is_err());
    }

    #[test]
    fn other_requests_are_no_upgrades() {
        for upgrade in ["", "h2c", "TLS/1.0"] {
            assert_eq!(
                read_upgrade(
                    &head("POST", Version::HTTP_11, &[("Upgrade", upgrade)]),
                    true
                ),
                Ok(None)
            );
        }
    }

    #[test]
    fn offers_are_listed_in_order() {
        let changes = [
            ("Sec-WebSocket-Protocol", "chat, superchat"),
            ("Sec-WebSocket-Protocol", "v2"),
            (
                "Sec-WebSocket-Extensions",
                "Permessage-Deflate; client_max_window_bits, x",
            ),
        ];
        let upgrade = read_upgrade(&head("GET", Version::HTTP_11, &changes), false)
            .expect("valid")
            .expect("an upgrade");
        assert_eq!(upgrade.subprotocols, ["chat", "superchat", "v2"]);
        assert_eq!(upgrade.extensions, ["permessage-deflate", "x"]);
    }

    #[test]
    fn what_other_servers_could_read_as_something_else_is_refused() {
        let at = |target: &str, field: (&str, &str)| {
            let mut head = head("GET", Version::HTTP_11, &[field]);
            head.uri = target.parse().expect("a target");
            let checked = check_head(&head).and_then(|()| read_host(&head));
            checked.err().map_or(200, |error| error.status.as_u16())
        };
        let long = |n| format!("/{}", "x".repeat(n));
        for (target, status) in [
            ("/", 200),
            ("http://example.org/", 200),
            ("http://EXAMPLE.org:80", 200),
            ("http://example.org:/", 200),
            ("http://example.org:65536/", 400),
            ("http://example.org:+80/", 400),
            ("http://example.org:http/", 400),
            ("http://example.net/", 400),
            ("http://me@example.org/", 400),
            ("example.org:80", 400),
            ("*", 400),
            ("/a%00b", 400),
            ("/?a%00b", 200),
            ("/caf\u{e9}", 400),
            (&long(8191), 200),
            (&long(8192), 414),
        ] {
            assert_eq!(at(target, ("X", "y")), status, "{target}");
        }
        for (coding, status) in [
            ("chunked", 200),
            ("Chunked", 200),
            ("gzip, chunked", 400),
            ("chunked, chunked", 400),
            ("identity", 400),
        ] {
            assert_eq!(at("/", ("Transfer-Encoding", coding)), status, "{coding}");
        }
    }

    #[test]
    fn the_host_is_read_without_port_and_case() {
        for (host, expected) in [
            ("Example.ORG:8080", Some("example.org")),
            ("[::1]:80", Some("[::1]")),
            ("example.org.", Some("example.org")),
            ("", None),
            ("a b", None),
            ("user@example.org", None),
            ("example.org:", Some("example.org")),
            ("example.org:65536", None),
            ("example.org:+80", None),
            ("[::1]:x", None),
        ] {
            assert_eq!(
                read_host(&head("GET", Version::HTTP_11, &[("Host", host)]))
                    .ok()
                    .as_deref(),
                expected
            );
        }
        assert!(
            read_host(&head(
                "GET",
                Version::HTTP_11,
                &[("Host", "a"), ("Host", "a")]
            ))
            .is_err()
        );
        assert_eq!(
            read_host(&head("GET", Version::HTTP_10, &[("Host", "")])).as_deref(),
            Ok("")
        );
    }
}
