//! What lying backends answer (RFC 6455 section 4.1, RFC 9112), and what becomes of the bytes on the
//! way when either side goes.

use std::time::Duration;

use super::{Act, Case, Step};
use crate::{frame, upgrade_request};

/// In which the other side is ended when one has ended.
const ENDS: Duration = Duration::from_secs(5);
const UPGRADE: &str = "Upgrade: websocket\r\n";
const CONNECTION: &str = "Connection: Upgrade\r\n";

pub(super) fn cases() -> Vec<Case> {
    [
        refusals(),
        false_101s(),
        first(),
        broken(),
        elsewhere(),
        plain(),
        ends(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn upgrade() -> String {
    upgrade_request("/ws", &[])
}

fn say(text: impl Into<String>) -> Act {
    Act::Say(text.into().into_bytes())
}

fn raw(bytes: &[u8]) -> Act {
    Act::Say(bytes.to_vec())
}

/// A backend that answers an upgrade so.
fn answers(group: &'static str, name: &str, acts: Vec<Act>) -> Case {
    Case::new(group, name, upgrade()).backend(acts)
}

fn refusals() -> Vec<Case> {
    let group = "A backend that refuses the upgrade";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.example.org\r\n\r\n";
    let mut cases: Vec<Case> = [200, 204, 301, 400, 401, 426, 500, 503]
        .into_iter()
        .map(|status| {
            let length = if status == 204 {
                ""
            } else {
                "Content-Length: 2\r\n"
            };
            let said = format!("HTTP/1.1 {status} So It Is\r\n{length}X-Why: because\r\n\r\n");
            let body = if status == 204 { "" } else { "no" };
            answers(group, &format!("{status}"), vec![say(said + body)])
                .answered(status)
                .heard(1)
                .told("x-why: because")
                .untold("upgrade: websocket")
        })
        .collect();
    cases.push(
        answers(
            group,
            "200, as if it were a 101",
            vec![Act::Accept("101 Switching Protocols", "200 OK")],
        )
        .then(Step::Answered)
        .then(Step::Send(frame(0x81, b"tunnelled")))
        .answered(200)
        .unsent("\u{81}")
        .untold("upgrade: websocket"),
    );
    cases.push(
        answers(
            group,
            "200, and the client goes on as if it were a 101",
            vec![say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")],
        )
        .then(Step::Answered)
        .then(Step::Send(smuggled.into()))
        .answered(200)
        .answered(200)
        .unsent("\r\n\r\nget /smuggled"),
    );
    cases
}

fn false_101s() -> Vec<Case> {
    let group = "A 101 that is none";
    let swap = |name: &str, text: &'static str, other: &'static str| {
        answers(group, name, vec![Act::Accept(text, other)])
            .answered(502)
            .heard(1)
    };
    let adds = |name: &str, line: &'static str| swap(name, UPGRADE, line);
    vec![
        swap("without Upgrade", UPGRADE, ""),
        swap("without Connection", CONNECTION, ""),
        swap(
            "with Connection: close",
            CONNECTION,
            "Connection: close\r\n",
        ),
        swap("with Upgrade: h2c", UPGRADE, "Upgrade: h2c\r\n"),
        swap(
            "without Sec-WebSocket-Accept",
            "Sec-WebSocket-Accept",
            "X-Accept",
        ),
        swap(
            "with the Sec-WebSocket-Accept of another key",
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            "ICX+Yqv66kxgM0FcWaLWlFLwTAI=",
        ),
        swap(
            "with Sec-WebSocket-Accept in lower case",
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            "s3pplmbitxaq9kygzzhzrbk+xoo=",
        ),
        adds(
            "with Sec-WebSocket-Accept twice",
            "Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
        ),
        adds(
            "with a subprotocol that was not offered",
            "Upgrade: websocket\r\nSec-WebSocket-Protocol: surprise\r\n",
        ),
        adds(
            "with an extension that was not offered",
            "Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        ),
        swap("in HTTP/1.0", "HTTP/1.1", "HTTP/1.0"),
        swap("in HTTP/2.0", "HTTP/1.1", "HTTP/2.0"),
        Case::new(
            group,
            "unasked",
            "GET /x HTTP/1.1\r\nHost: app.example.org\r\n\r\n",
        )
        .backend(vec![Act::Accept("", "")])
        .answered(502)
        .untold("101 switching"),
        adds(
            "with a Content-Length",
            "Upgrade: websocket\r\nContent-Length: 5\r\n",
        )
        .then(Step::Answered)
        .or(101)
        .untold("content-length: 5"),
    ]
}

/// What may and may not come before a 101.
fn first() -> Vec<Case> {
    let group = "Before the 101";
    let after = |name: &str, said: &str| answers(group, name, vec![say(said), Act::Usual]).tunnel();
    vec![
        after("100", "HTTP/1.1 100 Continue\r\n\r\n"),
        after(
            "103 with fields",
            "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        ),
        after("three of 1xx", &"HTTP/1.1 102 Processing\r\n\r\n".repeat(3)),
        answers(
            group,
            "1xx without end",
            vec![Act::Flood(b"HTTP/1.1 102 Processing\r\n\r\n")],
        )
        .answered(504)
        .or(502),
        answers(
            group,
            "a 101 in two packets, with a frame behind it",
            vec![Act::Accept("", ""), raw(b"\x81\x02hi")],
        )
        .answered(101)
        .then(Step::Receive(b"\x81\x02hi"))
        .told("\u{81}\u{2}hi"),
        answers(
            group,
            "a 101 that comes byte by byte",
            vec![
                Act::Dribble(good_101(), Duration::from_millis(2)),
                raw(b"\x81\x02hi"),
            ],
        )
        .answered(101)
        .then(Step::Receive(b"\x81\x02hi"))
        .told("\u{81}\u{2}hi"),
    ]
}

fn broken() -> Vec<Case> {
    let group = "A backend that breaks off";
    let case = |name: &str, acts: Vec<Act>| answers(group, name, acts);
    let ok = "HTTP/1.1 200 OK\r\n";
    let bad = |name: &str, text: &str| {
        case(name, vec![say(text), Act::Close])
            .answered(502)
            .heard(1)
    };
    let slow = Duration::from_millis(60);
    vec![
        case("silence", vec![]).answered(504),
        case("a close with nothing said", vec![Act::Close]).answered(502),
        case("a reset with nothing said", vec![Act::Reset]).answered(502),
        case("an end with nothing said", vec![Act::Fin]).answered(502),
        case("a reset within the head", vec![say(ok), Act::Reset]).answered(502),
        case("an end within the head", vec![say(ok), Act::Fin]).answered(502),
        case("a head without an end", vec![say(ok)]).answered(504),
        case(
            "a head that comes byte by byte, past the deadline",
            vec![Act::Dribble(
                format!("{ok}{}", "X: y\r\n".repeat(40)).into(),
                slow,
            )],
        )
        .answered(504),
        case(
            "a field without an end",
            vec![say(ok), Act::Flood(&[b'x'; 4096])],
        )
        .answered(502)
        .or(504),
        case(
            "fields without an end",
            vec![say(ok), Act::Flood(b"X-Odd: even\r\n")],
        )
        .answered(502)
        .or(504),
        bad("garbage", "\u{1}\u{2}\u{3}garbage\r\n\r\n"),
        bad("HTTP/0.9", "<html>hello</html>\r\n"),
        bad("SSH", "SSH-2.0-OpenSSH_9.2p1\r\n"),
        bad(
            "a version that is none",
            "HTTP/4.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        bad(
            "a status that is none",
            "HTTP/1.1 9 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        bad(
            "a status of letters",
            "HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
        ),
        bad(
            "NUL in a value",
            &format!("{ok}X-Odd: a\0b\r\nContent-Length: 0\r\n\r\n"),
        ),
        bad(
            "an empty name",
            &format!("{ok}: a\r\nContent-Length: 0\r\n\r\n"),
        ),
        bad(
            "lengths that differ",
            &format!("{ok}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ),
        bad(
            "a length that is no number",
            &format!("{ok}Content-Length: x\r\n\r\nab"),
        ),
    ]
}

fn elsewhere() -> Vec<Case> {
    let group = "Another backend answers instead";
    let case = |name: &str, acts: Vec<Act>| {
        let asked = upgrade_request("/two/ws", &[]);
        Case::new(group, name, asked)
            .backend(acts)
            .tunnel()
            .heard(2)
            .elsewhere()
    };
    vec![
        case("of one that closes", vec![Act::Close]),
        case("of one that resets", vec![Act::Reset]),
        case("of one that is silent", vec![]),
        case("of one that says garbage", vec![say("garbage\r\n\r\n")]),
        case(
            "of one that breaks off its head",
            vec![say("HTTP/1.1 101 X\r\n"), Act::Close],
        ),
        case(
            "of one whose head has no end",
            vec![say("HTTP/1.1 101 X\r\n")],
        ),
        case(
            "of one with a wrong Sec-WebSocket-Accept",
            vec![Act::Accept(
                "Sec-WebSocket-Accept: ",
                "Sec-WebSocket-Accept: x",
            )],
        ),
        case(
            "of one with a 101 without Upgrade",
            vec![Act::Accept(UPGRADE, "")],
        ),
    ]
}

/// Answers to requests that are no upgrades.
fn plain() -> Vec<Case> {
    let group = "Answers to other requests";
    let case = |name: &str, said: &str| {
        let asked = "GET /x HTTP/1.1\r\nHost: app.example.org\r\n\r\n";
        Case::new(group, name, asked).backend(vec![say(said), Act::Close])
    };
    vec![
        case(
            "a length, and chunks",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .answered(200)
        .or(502)
        .untold("content-length: 3"),
        case(
            "a field that Connection names",
            "HTTP/1.1 200 OK\r\nConnection: close, X-Secret\r\nX-Secret: a\r\nContent-Length: 0\r\n\r\n",
        )
        .answered(200)
        .untold("x-secret"),
        case(
            "a second answer behind the first",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nX-Second: a\r\nContent-Length: 0\r\n\r\n",
        )
        .answered(200)
        .untold("x-second"),
        case("a bare CR in a value", "HTTP/1.1 200 OK\r\nX-Odd: a\rX-Even: b\r\nContent-Length: 0\r\n\r\n")
            .answered(502),
        case("a body that is shorter than it says", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
            .answered(200)
        .told("\r\n\r\nhe")
            .ends_within(ENDS),
        case("a chunk size that is no number", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nhello\r\n0\r\n\r\n")
                .or(502)
            .untold("hello")
            .ends_within(ENDS),
    ]
}

/// All that was sent before an end is delivered, and the other side is ended.
fn ends() -> Vec<Case> {
    let group = "The end of a session";
    let hello = frame(0x81, b"hello");
    let case = |name: &str, acts: Vec<Act>| {
        answers(group, name, [vec![Act::Accept("", "")], acts].concat())
            .then(Step::Answered)
            .answered(101)
            .ends_within(ENDS)
            .backend_ends()
    };
    let whole = || raw(b"\x81\x05hello");
    let half = || raw(b"\x81\x05hel");
    vec![
        case(
            "the backend closes within a frame",
            vec![half(), Act::Close],
        )
        .told("\u{81}\u{5}hel"),
        case(
            "the backend resets within a frame",
            vec![half(), Act::Reset],
        ),
        case(
            "the backend ends its half within a frame",
            vec![half(), Act::Fin],
        )
        .told("\u{81}\u{5}hel"),
        case(
            "the backend closes behind a frame",
            vec![whole(), Act::Close],
        )
        .told("\u{81}\u{5}hello"),
        case(
            "the backend ends its half behind a frame",
            vec![whole(), Act::Fin],
        )
        .told("\u{81}\u{5}hello"),
        case("the backend resets at once", vec![Act::Reset]),
        case("the backend closes at once", vec![Act::Close]),
        case("the client ends its half within a frame", vec![])
            .then(Step::Send(hello[..8].to_vec()))
            .then(Step::Fin)
            .sent(text(&hello[..8])),
        case("the client ends its half behind a frame", vec![])
            .then(Step::Send(hello.clone()))
            .then(Step::Fin)
            .sent(text(&hello)),
        answers(
            group,
            "the client ends its half, and the backend has more to say",
            vec![Act::Accept("", ""), Act::Hear(hello.clone()), whole()],
        )
        .then(Step::Answered)
        .then(Step::Send(hello.clone()))
        .then(Step::Fin)
        .answered(101)
        .told("\u{81}\u{5}hello")
        .ends_within(ENDS)
        .backend_ends(),
        case(
            "a closing handshake",
            vec![
                Act::Hear(frame(0x88, &[0x03, 0xe8])),
                raw(b"\x88\x02\x03\xe8"),
                Act::Close,
            ],
        )
        .then(Step::Send(frame(0x88, &[0x03, 0xe8])))
        .told("\u{88}\u{2}\u{3}\u{e8}"),
        answers(
            group,
            "the client resets within a frame that the backend waits for",
            vec![Act::Accept("", "")],
        )
        .then(Step::Answered)
        .then(Step::Send(hello[..8].to_vec()))
        .then(Step::Reset)
        .answered(101)
        .backend_ends(),
    ]
}

/// A correct 101 to the key that all upgrades here have.
fn good_101() -> Vec<u8> {
    crate::accept_upgrade(&upgrade(), &[]).into_bytes()
}

/// A byte is a character, in lower case.
fn text(bytes: &[u8]) -> String {
    let chars = bytes.iter().map(|byte| char::from(*byte));
    chars.collect::<String>().to_ascii_lowercase()
}
