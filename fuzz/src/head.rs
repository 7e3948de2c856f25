//! A request's head that is accepted as an upgrade is one upgrade, for a parser that is not ours, too; and
//! the head that a backend gets of it says the same, and nothing that concerns one connection only.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, request};
use http_body_util::Empty;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pointsman_config::{Config, Listener};
use pointsman_protocol::forwarding;
use pointsman_protocol::handshake::{self, Upgrade};
use pointsman_traffic::client_http::{self, HeadClock};
use pointsman_traffic::upstream::dial;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use crate::idle::until_idle;
use crate::strict;

/// More than any head may have.
pub(crate) const PIPE_BYTES: usize = 1 << 20;

/// What is about one connection only (RFC 9110 section 7.6.1), or that we write.
const OURS: [&str; 13] = [
    "connection",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "transfer-encoding",
    "forwarded",
    "x-real-ip",
    "x-request-id",
    // A body is compared as such, and how it is framed is for each connection to say.
    "content-length",
];

pub(crate) static LIMITS: LazyLock<Listener> = LazyLock::new(|| {
    let text = "[[listener]]\nbind = '127.0.0.1:0'\n[[route]]\npath = '/*'\nhandler = 'echo'\n";
    let config = Config::from_toml(text, Path::new("/")).expect("a good configuration");
    config.listeners[0].clone()
});

pub(crate) fn run(data: &[u8]) {
    if let Some((upgrade, sent)) = exchange(data) {
        check_as_others_read_it(data, &upgrade);
        check_sent(data, &sent, &upgrade);
    }
}

/// What is asked for, and the bytes that a backend gets; none: it is refused, or is no upgrade.
pub(crate) fn exchange(data: &[u8]) -> Option<(Upgrade, Vec<u8>)> {
    let (head, upgrade) = accepted(data)?;
    Some((upgrade, to_backend(head)))
}

/// As the server reads it, from the HTTP library on.
fn accepted(data: &[u8]) -> Option<(request::Parts, Upgrade)> {
    let found = RefCell::new(None);
    until_idle(async {
        let (mut client, server) = duplex(PIPE_BYTES);
        let service = service_fn(|request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            let is_first = found.borrow().is_none();
            if is_first {
                *found.borrow_mut() = Some(check(head, !body.is_end_stream()));
            }
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        });
        let connection = client_http::server(&LIMITS, &HeadClock::new(&LIMITS))
            .serve_connection(TokioIo::new(server), service);
        client.write_all(data).await.expect("a pipe takes all");
        client.shutdown().await.expect("a pipe ends");
        let _ = connection.await;
    });
    found.into_inner().flatten()
}

fn check(head: request::Parts, has_body: bool) -> Option<(request::Parts, Upgrade)> {
    handshake::check_head(&head).ok()?;
    handshake::read_host(&head).ok()?;
    let upgrade = handshake::read_upgrade(&head, has_body).ok()??;
    Some((head, upgrade))
}

/// Makes a client's head into one for a backend.
pub(crate) fn forward(head: &mut request::Parts) {
    let client = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    let id = HeaderValue::from_static("id");
    forwarding::write_forwarded(&mut head.headers, client, &[], &id);
    forwarding::strip_lookalikes(&mut head.headers);
    forwarding::strip_hop_by_hop(&mut head.headers);
}

/// The bytes that a backend would get.
fn to_backend(mut head: request::Parts) -> Vec<u8> {
    forward(&mut head);
    let head = dial::upgrade_request(head);
    let mut sent = Vec::new();
    until_idle(async {
        let (ours, mut backend) = duplex(PIPE_BYTES);
        let (mut sender, connection) = dial::client()
            .handshake::<_, Empty<Bytes>>(TokioIo::new(ours))
            .await
            .expect("a pipe takes all");
        let request = Request::from_parts(head, Empty::new());
        // Nobody answers, so this comes to no end.
        let _ = tokio::join!(
            sender.send_request(request),
            connection,
            backend.read_to_end(&mut sent)
        );
    });
    sent
}

/// A head as another parser reads it, which takes a bare LF and the like as the host's library does.
struct Parsed {
    target: String,
    /// Names in lower case.
    fields: Vec<(String, Vec<u8>)>,
}

fn parse(bytes: &[u8]) -> Option<Parsed> {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(_) = request.parse(bytes).ok()? else {
        return None;
    };
    assert_eq!((request.method, request.version), (Some("GET"), Some(1)));
    let fields = request.headers.iter();
    let fields = fields.map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec()));
    Some(Parsed {
        target: request.path.unwrap_or_default().to_owned(),
        fields: fields.collect(),
    })
}

fn values<'a>(fields: &'a [(String, Vec<u8>)], name: &'a str) -> Vec<&'a [u8]> {
    let named = fields.iter().filter(move |(field, _)| field == name);
    named.map(|(_, value)| value.as_slice()).collect()
}

fn check_as_others_read_it(data: &[u8], upgrade: &Upgrade) {
    let Parsed { fields, .. } = parse(data).expect("what we accept, others can read");
    assert_eq!(
        values(&fields, "sec-websocket-key"),
        [upgrade.key.as_bytes()]
    );
    assert_eq!(values(&fields, "sec-websocket-version"), [b"13"]);
    assert_eq!(values(&fields, "host").len(), 1, "{fields:?}");
    assert!(
        values(&fields, "transfer-encoding").is_empty(),
        "{fields:?}"
    );
    let lengths = values(&fields, "content-length");
    assert!(
        lengths
            .iter()
            .all(|length| length.iter().all(|c| *c == b'0')),
        "{fields:?}"
    );
}

fn check_sent(data: &[u8], sent: &[u8], upgrade: &Upgrade) {
    let text = String::from_utf8_lossy(sent);
    let (request, end) = strict::Request::read(sent)
        .unwrap_or_else(|no| panic!("a backend cannot read {text:?}: {no:?}"));
    assert_eq!(end, sent.len(), "more than a head: {text:?}");
    assert!(request.body.is_empty(), "{text:?}");
    let asked = parse(data).expect("parsed before");
    assert_eq!(request.method, "GET");
    assert_eq!(request.target, origin_form(&asked.target), "{text:?}");
    assert_eq!(request.values("connection"), [b"Upgrade"]);
    assert_eq!(request.values("upgrade"), [b"websocket"]);
    let key = request.values("sec-websocket-key");
    assert_eq!(key, [upgrade.key.as_bytes()]);
    check_fields(&asked.fields, &request);
}

/// What a client sent comes to its backend, unless it is for one connection only or ours to say.
pub(crate) fn check_fields(asked: &[(String, Vec<u8>)], sent: &strict::Request) {
    let named: Vec<_> = values(asked, "connection")
        .iter()
        .flat_map(|line| line.split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    let is_for_all = |name: &str| name == "host" || name.starts_with("sec-websocket-");
    let is_ours = |name: &str| OURS.contains(&name) || name.starts_with("x-forwarded-");
    // As CGI names variables, or more so.
    let folded = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let is_lookalike = |name: &str| {
        let folded = folded(name);
        let is_another = is_ours(&folded)
            || folded.starts_with("sec-websocket-")
            || asked.iter().any(|(name, _)| *name == folded);
        name != folded && is_another
    };
    let passes = |name: &str| {
        let is_named = named.iter().any(|named| named == name);
        !is_ours(name) && !is_lookalike(name) && (!is_named || is_for_all(name))
    };
    let mut expected: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
    for (name, value) in asked.iter().filter(|(name, _)| passes(name)) {
        expected.entry(name).or_default().push(value.trim_ascii());
    }
    let mut found: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
    for (name, value) in sent.fields.iter().filter(|(name, _)| !is_ours(name)) {
        found.entry(name).or_default().push(value);
    }
    assert_eq!(found, expected);
    assert_eq!(sent.values("x-forwarded-for"), [b"127.0.0.1"]);
    assert_eq!(sent.values("x-request-id"), [b"id"]);
    let text = |value: &&[u8]| String::from_utf8_lossy(value).into_owned();
    let host: Vec<_> = sent.values("host").iter().map(text).collect();
    let forwarded_host: Vec<_> = sent.values("x-forwarded-host").iter().map(text).collect();
    assert_eq!(forwarded_host, host);
    let said = host.first().map(|host| {
        assert!(!host.contains(['"', '\\', ' ']), "{host:?}");
        format!(";host=\"{host}\"")
    });
    let forwarded = format!("for=127.0.0.1{};proto=http", said.unwrap_or_default());
    assert_eq!(sent.values("forwarded"), [forwarded.as_bytes()]);
    for name in &OURS[2..9] {
        let is_framing = *name == "transfer-encoding";
        assert!(is_framing || sent.values(name).is_empty(), "{name}");
    }
}

/// RFC 9112 section 3.2.1, and without a fragment.
pub(crate) fn origin_form(target: &str) -> String {
    let target = target.split('#').next().unwrap_or_default();
    let behind_scheme = match target.find("://") {
        Some(at) if !target.starts_with('/') => &target[at + 3..],
        _ => return target.to_owned(),
    };
    let at = behind_scheme.find(['/', '?']);
    let path = at.map_or("", |at| &behind_scheme[at..]);
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}
