//! What hostile clients send (RFC 9110, RFC 9112, RFC 6455 section 4.2).

use std::time::Duration;

use super::{Act, Case, DEADLINE, Step};
use crate::edit::Edit;
use crate::{frame, upgrade_request};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
/// A second request, that must never be heard as one where it stands behind a first that is odd.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app.example.org\r\n\r\n";

pub(super) fn cases() -> Vec<Case> {
    [
        upgrades(),
        hosts(),
        fields(),
        bodies(),
        targets(),
        methods(),
        sizes(),
        hop_by_hop(),
        forwarding(),
        lookalikes(),
        order(),
        strangers(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// An upgrade with these lines in place of those of the same name.
fn asks(changed: &[&str]) -> String {
    upgrade_request("/ws", changed)
}

/// A GET with these lines behind its Host.
fn gets(lines: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: app.example.org\r\n{lines}\r\n")
}

/// A POST with these lines behind its Host, and this body.
fn posts(lines: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: app.example.org\r\n{lines}\r\n\r\n{body}")
}

fn upgrades() -> Vec<Case> {
    let group = "The upgrade (RFC 6455 section 4.2.1)";
    let case = |name: &str, bytes: String| Case::new(group, name, bytes);
    let good = asks(&[]);
    let mut cases = vec![
        case("a good upgrade", good.clone()).tunnel(),
        case("by POST", good.replace_once("GET", "POST")).refused(400),
        case("by HEAD", good.replace_once("GET", "HEAD")).refused(400),
        case("by `get`", good.replace_once("GET", "get")).refused(400),
        case("in HTTP/1.0", good.replace_once("HTTP/1.1", "HTTP/1.0")).refused(400),
        case(
            "a body by Content-Length",
            asks(&["Content-Length: 5"]) + "hello",
        )
        .refused(400),
        case(
            "a body by chunks",
            asks(&["Transfer-Encoding: chunked"]) + "5\r\nhello\r\n0\r\n\r\n",
        )
        .refused(400),
        case(
            "an empty body by chunks, and a request behind it",
            asks(&["Transfer-Encoding: chunked"]) + "0\r\n\r\n" + SMUGGLED,
        )
        .refused(400)
        .unsent("smuggled")
        .ends_within(Duration::from_secs(3)),
        case("Content-Length: 0", asks(&["Content-Length: 0"])).tunnel(),
        case("no Connection", asks(&["Connection:"])).refused(400),
        case("Connection: close", asks(&["Connection: close"])).refused(400),
    ];
    for (name, line) in [
        ("no key", "Sec-WebSocket-Key:"),
        ("an empty key", "Sec-WebSocket-Key: "),
        ("a key that is too short", "Sec-WebSocket-Key: c2hvcnQ="),
        (
            "a key that is too long",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSB0aGF0IGlz",
        ),
        (
            "a key that is no base64",
            "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!!!",
        ),
        (
            "a key of 24 letters that are 18 bytes",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTEx",
        ),
        (
            "two keys in a line",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==",
        ),
    ] {
        cases.push(case(name, asks(&[line])).refused(400));
    }
    cases.push(case("two keys", asks(&[KEY, KEY])).refused(400));
    for (name, lines) in [
        ("no version", &["Sec-WebSocket-Version:"][..]),
        ("version 8", &["Sec-WebSocket-Version: 8"]),
        ("version 14", &["Sec-WebSocket-Version: 14"]),
        ("version 013", &["Sec-WebSocket-Version: 013"]),
        ("version `13, 8`", &["Sec-WebSocket-Version: 13, 8"]),
        (
            "two versions",
            &["Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"],
        ),
    ] {
        cases.push(
            case(name, asks(lines))
                .refused(426)
                .told("sec-websocket-version: 13\r\n"),
        );
    }
    for (name, lines) in [
        (
            "Connection: keep-alive, Upgrade",
            &["Connection: keep-alive, Upgrade"][..],
        ),
        ("Connection: UPGRADE", &["Connection: UPGRADE"]),
        (
            "Connection on two lines",
            &["Connection: keep-alive", "Connection: ,upgrade ,"],
        ),
        ("Upgrade: WebSocket", &["Upgrade: WebSocket"]),
        (
            "names in lower case",
            &["upgrade: websocket", "connection: upgrade"],
        ),
    ] {
        cases.push(case(name, asks(lines)).tunnel());
    }
    cases.extend([
        case("Upgrade: h2c, websocket", asks(&["Upgrade: h2c, websocket"]))
            .tunnel()
            .unsent("h2c"),
        case(
            "Upgrade: h2c, with HTTP2-Settings",
            gets("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"),
        )
        .answered(200)
        .unsent("h2c")
        .unsent("http2-settings")
        .unsent("upgrade:"),
        case(
            "Upgrade: TLS/1.0",
            gets("Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n"),
        )
        .answered(200)
        .unsent("tls/1.0"),
        case(
            "Upgrade: websocket/13",
            asks(&["Upgrade: websocket/13"]),
        )
        .answered(200)
        .unsent("upgrade:"),
        case(
            "a subprotocol that is no token",
            asks(&["Sec-WebSocket-Protocol: a b"]),
        )
        .refused(400),
        case(
            "an extension that is no token",
            asks(&["Sec-WebSocket-Extensions: a b; c"]),
        )
        .refused(400),
    ]);
    cases
}

fn hosts() -> Vec<Case> {
    let group = "Host (RFC 9112 section 3.2)";
    let case = |name: &str, bytes: String| Case::new(group, name, bytes);
    vec![
        case("no Host", asks(&["Host:"])).refused(400),
        case("an empty Host", asks(&["Host: "])).refused(400),
        case("two Hosts", asks(&["Host: a", "Host: a"])).refused(400),
        case("two Hosts in a line", asks(&["Host: a, b"])).refused(400),
        case("a Host with a user", asks(&["Host: me@a"])).refused(400),
        case("a Host with a path", asks(&["Host: a/b"])).refused(400),
        case("a Host with a space", asks(&["Host: a b"])).refused(400),
        case("a Host with a bad port", asks(&["Host: a:b"])).refused(400),
        case("a Host with port 65536", asks(&["Host: a:65536"])).refused(400),
        case("no Host, plain", "GET /x HTTP/1.1\r\n\r\n".to_owned()).refused(400),
    ]
}

fn fields() -> Vec<Case> {
    let group = "Fields (RFC 9112 section 5, RFC 9110 section 5.5)";
    let case = |name: &str, bytes: Vec<u8>| Case::new(group, name, bytes);
    let mut cases = Vec::new();
    for (name, line) in [
        ("NUL in a value", &b"X-Odd: a\0b\r\n"[..]),
        ("NUL in a name", b"X-\0dd: a\r\n"),
        ("a bare CR in a value", b"X-Odd: a\rb\r\n"),
        ("a bare CR before a field", b"X-Odd: a\rX-Even: b\r\n"),
        ("a folded line", b"X-Odd: a\r\n b\r\n"),
        ("a folded line with a tab", b"X-Odd: a\r\n\tb\r\n"),
        ("a space before the colon", b"X-Odd : a\r\n"),
        ("a tab before the colon", b"X-Odd\t: a\r\n"),
        ("a control character in a value", b"X-Odd: a\x01b\r\n"),
        ("a bell in a value", b"X-Odd: a\x07b\r\n"),
        ("DEL in a value", b"X-Odd: a\x7fb\r\n"),
        ("an escape in a value", b"X-Odd: a\x1bb\r\n"),
        ("an empty name", b": a\r\n"),
        ("a line without a colon", b"X-Odd\r\n"),
        ("a space in a name", b"X Odd: a\r\n"),
        ("a name with a quote", b"X\"Odd: a\r\n"),
        ("a name with a parenthesis", b"X(Odd: a\r\n"),
        ("a name of raw bytes", b"X-\xc3\x96dd: a\r\n"),
    ] {
        let mut upgrade = asks(&[]).into_bytes();
        let end = upgrade.len() - 2;
        upgrade.splice(end..end, line.iter().copied());
        cases.push(case(name, upgrade).refused(400));
    }
    let mut first = b"GET /ws HTTP/1.1\r\n X-Odd: a\r\n".to_vec();
    first.extend(
        asks(&[])
            .split_once("\r\n")
            .map_or("", |(_, rest)| rest)
            .bytes(),
    );
    cases.push(case("a folded line as the first", first).refused(400));
    let mut raw = asks(&[]).into_bytes();
    let end = raw.len() - 2;
    raw.splice(end..end, *b"X-Odd: caf\xc3\xa9\r\n");
    cases.push(
        case("raw bytes in a value", raw)
            .tunnel()
            .note("obs-text is allowed, and is passed on as it is"),
    );
    cases.push(
        case(
            "lines that end in a bare LF",
            asks(&[]).replace_all("\r\n", "\n").into_bytes(),
        )
        .tunnel()
        .unsent("websocket\nconnection")
        .note("RFC 9112 section 2.2 allows it; what is passed on has CRLF"),
    );
    cases.push(
        case(
            "a bare LF that would make two fields of one",
            asks(&["X-Odd: a\nX-Even: b"]).into_bytes(),
        )
        .tunnel()
        .sent("\r\nx-even: b\r\n")
        .note("two fields, to us and to the backend"),
    );
    cases
}

fn bodies() -> Vec<Case> {
    let group = "Bodies (RFC 9112 sections 6 and 7)";
    let case = |name: &str, bytes: String| Case::new(group, name, bytes);
    let mut cases = Vec::new();
    for (name, lines) in [
        (
            "lengths that differ",
            "Content-Length: 1\r\nContent-Length: 2",
        ),
        ("lengths that differ in a line", "Content-Length: 1, 2"),
        ("a negative length", "Content-Length: -1"),
        ("a length with a sign", "Content-Length: +1"),
        ("a length in hex", "Content-Length: 0x1"),
        ("a length with a fraction", "Content-Length: 1.0"),
        ("a length with a space", "Content-Length: 1 1"),
        ("an empty length", "Content-Length: "),
        (
            "a length past 64 bits",
            "Content-Length: 18446744073709551617",
        ),
        (
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked, identity",
        ),
        ("Transfer-Encoding: identity", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: xchunked", "Transfer-Encoding: xchunked"),
        (
            "Transfer-Encoding: chunked;q=1",
            "Transfer-Encoding: chunked;q=1",
        ),
        (
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked, chunked",
        ),
        (
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: gzip, chunked",
        ),
        (
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: identity, chunked",
        ),
        (
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: \"chunked\"",
        ),
        ("an empty Transfer-Encoding", "Transfer-Encoding: "),
        (
            "Transfer-Encoding twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        (
            "Transfer-Encoding twice, the last odd",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        ),
        (
            "a vertical tab before `chunked`",
            "Transfer-Encoding: \x0bchunked",
        ),
    ] {
        cases.push(case(name, posts(lines, "0\r\n\r\n")).refused(400));
    }
    cases.push(
        case(
            "a length of 64 bits",
            posts("Content-Length: 18446744073709551615", "ab"),
        )
        .refused(400)
        .or(431),
    );
    cases.push(
        case(
            "chunks in HTTP/1.0",
            posts("Transfer-Encoding: chunked", "0\r\n\r\n").replace_once("HTTP/1.1", "HTTP/1.0"),
        )
        .refused(400),
    );
    cases.push(
        case(
            "the same length twice",
            posts("Content-Length: 2\r\nContent-Length: 2", "ab"),
        )
        .answered(200)
        .sent("\r\ncontent-length: 2\r\n")
        .unsent("content-length: 2\r\ncontent-length")
        .note("one of them is passed on"),
    );
    for (name, lines) in [
        (
            "a length, and chunks",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
        ),
        (
            "chunks, and a length",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
        ),
    ] {
        cases.push(
            case(name, posts(lines, "0\r\n\r\n") + SMUGGLED)
                .answered(200)
                .unsent("content-length")
                .unsent("smuggled")
                .ends_within(Duration::from_secs(3))
                .note("read as chunks, the length is taken out, the connection is ended: RFC 9112 section 6.3"),
        );
    }
    for (name, body) in [
        ("a chunk size that is no number", "x\r\nhello\r\n0\r\n\r\n"),
        ("a negative chunk size", "-1\r\nhello\r\n0\r\n\r\n"),
        ("a chunk size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a chunk size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        (
            "a chunk size past 64 bits",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        ("an empty chunk size", "\r\nhello\r\n0\r\n\r\n"),
        (
            "a chunk that is longer than it says",
            "5\r\nhello!\r\n0\r\n\r\n",
        ),
        ("a bare LF behind a chunk size", "5\nhello\r\n0\r\n\r\n"),
        (
            "a bare CR in a chunk extension",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
        ),
    ] {
        cases.push(case(name, posts("Transfer-Encoding: chunked", body) + SMUGGLED).bad_chunk());
    }
    cases
}

fn targets() -> Vec<Case> {
    let group = "Targets (RFC 9112 section 3.2)";
    let at =
        |name: &str, target: &str| Case::new(group, name, asks(&[]).replace_once("/ws", target));
    let mut raw = asks(&[]).into_bytes();
    raw.splice(7..7, *b"/\xc3\xa9");
    vec![
        at("absolute form", "http://app.example.org/ws")
            .tunnel()
            .sent("get /ws http/1.1\r\n"),
        at("absolute form, another host", "http://other.example.org/ws").refused(400),
        at("absolute form, with a user", "http://me@app.example.org/ws").refused(400),
        at(
            "absolute form with a fragment and no path",
            "http://app.example.org#/ws",
        )
        .tunnel()
        .sent("get / http/1.1\r\n"),
        at("absolute form without a path", "http://app.example.org")
            .tunnel()
            .sent("get / http/1.1\r\n"),
        at("authority form", "app.example.org:80").refused(400),
        at("asterisk form", "*").refused(400),
        Case::new(
            group,
            "OPTIONS *",
            "OPTIONS * HTTP/1.1\r\nHost: app.example.org\r\n\r\n",
        )
        .refused(400),
        at("without a slash", "ws").refused(400),
        at("only a query", "?a").refused(400),
        at("with a fragment", "/ws#odd")
            .tunnel()
            .unsent("odd")
            .note("the fragment is not passed on"),
        at("with a space", "/w s").refused(400),
        at("with a tab", "/w\ts").refused(400),
        at("with NUL", "/w\0s").refused(400),
        at("with DEL", "/w\x7fs").refused(400),
        at("with an escape that is none", "/w%zzs")
            .tunnel()
            .note("passed on as it is"),
        Case::new(group, "with raw bytes", raw).refused(400),
        at("empty", "").refused(400),
        at("two spaces before it", " /ws").refused(400),
    ]
}

fn methods() -> Vec<Case> {
    let group = "Methods and versions (RFC 9112 sections 2 and 3)";
    let case = |name: &str, bytes: &str| Case::new(group, name, bytes);
    let host = "Host: app.example.org\r\n\r\n";
    let line = |line: &str| format!("{line}\r\n{host}");
    vec![
        case("a method in lower case", &line("get /x HTTP/1.1"))
            .answered(200)
            .sent("get /x http/1.1\r\n")
            .note("methods are case-sensitive: another method, passed on as it is"),
        case("a method of its own", &line("SPAM /x HTTP/1.1"))
            .answered(200)
            .note("passed on"),
        case("no method", &line("/x HTTP/1.1")).refused(400),
        case("a method that is no token", &line("G@T /x HTTP/1.1")).refused(400),
        case("a method with NUL", &line("G\0T /x HTTP/1.1")).refused(400),
        case(
            "CONNECT, authority form",
            &line("CONNECT db.internal:5432 HTTP/1.1"),
        )
        .refused(400),
        case("CONNECT, a path", &line("CONNECT /x HTTP/1.1")).refused(400),
        case("TRACE", &line("TRACE /x HTTP/1.1"))
            .answered(200)
            .note("passed on, like any method"),
        case("HTTP/1.2", &line("GET /x HTTP/1.2")).refused(400),
        case("HTTP/3.0", &line("GET /x HTTP/3.0")).refused(400),
        case("HTTP/0.9", "GET /x\r\n\r\n").refused(400),
        case("http/1.1 in lower case", &line("GET /x http/1.1")).refused(400),
        case("HTTP/1.10", &line("GET /x HTTP/1.10")).refused(400),
        case("no version", &line("GET /x ")).refused(400),
        case("empty lines before it", &format!("\r\n\r\n{}", asks(&[]))).tunnel(),
        case("a space before it", &format!(" {}", asks(&[]))).refused(400),
        case("NUL before it", &format!("\0{}", asks(&[]))).refused(400),
    ]
}

fn sizes() -> Vec<Case> {
    let group = "Sizes";
    let case = |name: &str, bytes: String| Case::new(group, name, bytes);
    let long = |n: usize| "x".repeat(n);
    let many: String = (0..101).map(|n| format!("X-{n}: a\r\n")).collect();
    let some: String = (0..90).map(|n| format!("X-{n}: a\r\n")).collect();
    vec![
        case(
            "a field of 12 KiB",
            gets(&format!("X-Long: {}\r\n", long(12 << 10))),
        )
        .answered(200),
        case(
            "a field of 17 KiB",
            gets(&format!("X-Long: {}\r\n", long(17 << 10))),
        )
        .refused(431),
        case(
            "a name of 17 KiB",
            gets(&format!("X-{}: a\r\n", long(17 << 10))),
        )
        .refused(431),
        case(
            "a head of 1 MiB",
            gets(&format!("X-Long: {}\r\n", long(1 << 20))),
        )
        .refused(431),
        case("91 fields", gets(&some)).answered(200),
        case("102 fields", gets(&many)).refused(431),
        case(
            "a target of 7 KiB",
            gets("").replace_once("/x", &format!("/{}", long(7 << 10))),
        )
        .answered(200),
        case(
            "a target of 9 KiB",
            gets("").replace_once("/x", &format!("/{}", long(9 << 10))),
        )
        .refused(414),
        case(
            "a target of 70 KiB",
            gets("").replace_once("/x", &format!("/{}", long(70 << 10))),
        )
        .refused(431),
        case(
            "a method of 17 KiB",
            gets("").replace_once("GET", &long(17 << 10)),
        )
        .refused(431),
    ]
}

fn hop_by_hop() -> Vec<Case> {
    let group = "What concerns one connection only (RFC 9110 section 7.6.1)";
    let case = |name: &str, lines: &[&str]| Case::new(group, name, asks(lines)).tunnel();
    let mut cases = vec![
        case(
            "a field that Connection names",
            &["Connection: Upgrade, X-Secret", "X-Secret: a"],
        )
        .unsent("x-secret"),
        case(
            "a field that a second Connection names, in another case",
            &["Connection: Upgrade", "Connection: x-SECRET", "X-Secret: a"],
        )
        .unsent("x-secret"),
        case("Connection names Host", &["Connection: Upgrade, Host"])
            .sent("\r\nhost: app.example.org\r\n"),
        case(
            "Connection names the key",
            &["Connection: Upgrade, Sec-WebSocket-Key"],
        )
        .sent("\r\nsec-websocket-key: "),
        case(
            "Connection names X-Forwarded-For",
            &["Connection: Upgrade, X-Forwarded-For"],
        )
        .sent("\r\nx-forwarded-for: 127.0.0.1\r\n"),
    ];
    for line in [
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: X-Odd",
        "Proxy-Authenticate: Basic",
        "Proxy-Authorization: Basic Zm9vOmJhcg==",
    ] {
        let name = line.split(':').next().unwrap_or_default();
        cases.push(case(name, &[line]).unsent(format!("\r\n{}:", name.to_lowercase())));
    }
    cases.push(
        Case::new(
            group,
            "Connection names Content-Length",
            posts("Connection: Content-Length\r\nContent-Length: 2", "ab"),
        )
        .answered(200)
        .sent("\r\ncontent-length: 2\r\n"),
    );
    cases
}

fn forwarding() -> Vec<Case> {
    let group = "Who the client is (RFC 7239)";
    let case = |name: &str, lines: &[&str]| Case::new(group, name, asks(lines)).tunnel();
    let mut cases = Vec::new();
    for line in [
        "X-Forwarded-For: 203.0.113.7",
        "X-Forwarded-Host: 203.0.113.7",
        "X-Forwarded-Proto: 203.0.113.7",
        "X-Forwarded-Port: 203.0.113.7",
        "X-Real-IP: 203.0.113.7",
        "Forwarded: for=203.0.113.7",
    ] {
        let name = line.split(':').next().unwrap_or_default();
        cases.push(case(&format!("{name} of a stranger"), &[line]).unsent("203.0.113.7"));
    }
    cases.extend([
        case(
            "X-Forwarded-For of a stranger, on two lines",
            &[
                "X-Forwarded-For: 203.0.113.7",
                "X-Forwarded-For: 203.0.113.8",
            ],
        )
        .unsent("203.0.113."),
        case(
            "X-Forwarded-For of a trusted proxy",
            &["X-Forwarded-For: 203.0.113.7"],
        )
        .trusted()
        .sent("\r\nx-forwarded-for: 203.0.113.7, 127.0.0.1\r\n"),
        case(
            "Forwarded of a trusted proxy",
            &["Forwarded: for=203.0.113.7"],
        )
        .trusted()
        .sent("\r\nforwarded: for=203.0.113.7, for=127.0.0.1"),
        case("X-Real-IP of a trusted proxy", &["X-Real-IP: 203.0.113.7"])
            .trusted()
            .sent("\r\nx-real-ip: 203.0.113.7\r\n"),
    ]);
    cases
}

fn lookalikes() -> Vec<Case> {
    let group = "Fields that can be read as others (RFC 3875 section 4.1.18)";
    let tunnel = |name: &str, lines: &[&str]| Case::new(group, name, asks(lines)).tunnel();
    let mut cases = Vec::new();
    for line in [
        "X_Forwarded_For: odd",
        "X.Forwarded.For: odd",
        "X-Forwarded_Port: odd",
        "X_Real_IP: odd",
        "X_Request_Id: odd",
        "Sec_WebSocket_Protocol: odd",
        "Sec-WebSocket_Key: odd",
        "Keep_Alive: odd",
        "Content_Length: odd",
        "Transfer_Encoding: odd",
    ] {
        let name = line.split(':').next().unwrap_or_default();
        cases.push(tunnel(name, &[line]).unsent(": odd"));
    }
    cases.extend([
        tunnel(
            "X_Forwarded_For of a trusted proxy",
            &["X_Forwarded_For: odd"],
        )
        .trusted()
        .unsent(": odd"),
        tunnel("X_User beside X-User", &["X-User: ada", "X_User: odd"])
            .sent("\r\nx-user: ada\r\n")
            .unsent(": odd"),
        tunnel("X.User beside X-User", &["X.User: odd", "X-User: ada"])
            .sent("\r\nx-user: ada\r\n")
            .unsent(": odd"),
        tunnel("X_User alone", &["X_User: ada"])
            .sent("\r\nx_user: ada\r\n")
            .note("a field of its own"),
        Case::new(
            group,
            "Transfer_Encoding of a body",
            posts(
                "Transfer_Encoding: chunked\r\nContent-Length: 5",
                "0\r\n\r\n",
            ),
        )
        .answered(200)
        .sent("\r\ncontent-length: 5\r\n")
        .unsent("chunked"),
        Case::new(
            group,
            "fields behind a body",
            posts(
                "Transfer-Encoding: chunked\r\nTrailer: X-User, X-Forwarded-For",
                "2\r\nab\r\n0\r\nX-User: odd\r\nX-Forwarded-For: odd\r\n\r\n",
            ),
        )
        .answered(200)
        .unsent(": odd")
        .unsent("\r\ntrailer:"),
    ]);
    cases
}

fn order() -> Vec<Case> {
    let group = "Time and order";
    let good = asks(&[]);
    let case = |name: &str, steps: Vec<Step>| Case::new(group, name, "").client(steps);
    let early: Vec<u8> = [good.as_bytes(), &frame(0x81, b"hi")].concat();
    let smuggles: Vec<u8> = [good.as_bytes(), SMUGGLED.as_bytes()].concat();
    let slow = Duration::from_millis(60);
    let patience = DEADLINE + Duration::from_secs(2);
    let mut held = vec![Act::Quiet(Duration::from_millis(200))];
    held.extend([Act::Usual]);
    vec![
        case(
            "a head that never ends",
            vec![Step::Send(gets("").into_bytes()[..20].to_vec())],
        )
        .heard(0)
        .ends_within(patience),
        case("nothing at all", vec![])
            .heard(0)
            .ends_within(patience),
        case(
            "a head that comes byte by byte, past the deadline",
            vec![Step::Dribble(
                gets(&"X: y\r\n".repeat(20)).into_bytes(),
                slow,
            )],
        )
        .heard(0)
        .ends_within(patience),
        case(
            "empty lines that come byte by byte, past the deadline",
            vec![Step::Dribble(b"\r\n".repeat(50), slow)],
        )
        .heard(0)
        .ends_within(patience),
        case(
            "a second head that comes byte by byte, past the deadline",
            vec![
                Step::Send(gets("").into_bytes()),
                Step::Answered,
                Step::Dribble(gets(&"X: y\r\n".repeat(20)).into_bytes(), slow),
            ],
        )
        .answered(200)
        .heard(1)
        .ends_within(patience),
        case(
            "a head in two pieces",
            vec![
                Step::Send(good.as_bytes()[..30].to_vec()),
                Step::Send(good.as_bytes()[30..].to_vec()),
            ],
        )
        .tunnel(),
        case(
            "a frame behind the upgrade, before its 101",
            vec![Step::Send(early), Step::Receive(b"\x81\x02hi")],
        )
        .backend(held.clone())
        .answered(101)
        .told("\u{81}\u{2}hi"),
        case(
            "a request behind the upgrade, before its 101",
            vec![Step::Send(smuggles.clone())],
        )
        .backend(held)
        .answered(101)
        .heard(1),
        case(
            "a request behind an upgrade that is refused here",
            vec![Step::Send(
                [asks(&["Sec-WebSocket-Key:"]), SMUGGLED.to_owned()]
                    .concat()
                    .into_bytes(),
            )],
        )
        .refused(400)
        .ends_within(Duration::from_secs(3)),
        case(
            "two requests in one packet",
            vec![Step::Send(gets("").repeat(2).into_bytes())],
        )
        .answered(200)
        .answered(200)
        .heard(2),
        case(
            "a client that resets the connection behind its upgrade",
            vec![
                Step::Send(good.clone().into_bytes()),
                Step::Answered,
                Step::Reset,
            ],
        )
        .answered(101)
        .backend_ends(),
        case(
            "a client that resets the connection within a frame",
            vec![
                Step::Send(good.clone().into_bytes()),
                Step::Answered,
                Step::Send(frame(0x81, b"whole")),
                Step::Send(frame(0x81, b"half")[..4].to_vec()),
                Step::Receive(b"\x81\x02hi"),
                Step::Reset,
            ],
        )
        .answered(101)
        .backend_ends(),
        case(
            "a client that resets the connection before its 101",
            vec![Step::Send(good.clone().into_bytes()), Step::Reset],
        )
        .backend(vec![Act::HearEnd])
        .backend_ends(),
        case(
            "a client that ends its half behind its upgrade",
            vec![
                Step::Send(good.into_bytes()),
                Step::Answered,
                Step::Send(frame(0x81, b"hi")),
                Step::Fin,
            ],
        )
        .answered(101)
        .told("\u{81}\u{2}hi")
        .ends_within(Duration::from_secs(5))
        .backend_ends(),
    ]
}

fn strangers() -> Vec<Case> {
    let group = "Not HTTP/1.1";
    // RFC 8446 section 4.1.2, cut off behind the random bytes.
    let mut hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03".to_vec();
    hello.extend([0x5a; 32]);
    vec![
        Case::new(
            group,
            "the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        )
        .dropped(),
        Case::new(group, "a TLS ClientHello", hello).refused(400),
        Case::new(group, "SSH", "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n").refused(400),
        Case::new(
            group,
            "the PROXY protocol",
            format!("PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n{}", asks(&[])),
        )
        .refused(400),
        Case::new(
            group,
            "a WebSocket frame without a handshake",
            frame(0x81, b"hi"),
        )
        .refused(400),
        Case::new(
            group,
            "an answer",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        )
        .refused(400),
    ]
}

impl Case {
    /// A body that breaks off: a backend may have heard its head, but never the request behind it, and
    /// the connection is ended.
    fn bad_chunk(self) -> Self {
        self.answered(400)
            .unsent("smuggled")
            .ends_within(Duration::from_secs(3))
    }
}
