//! A request's head that is accepted as an upgrade is one upgrade, for a parser that is not ours, too; and
//! the head that a backend gets of it says the same, and nothing that concerns one connection only.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, request};
use http_body_util::Empty;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pointsman::config::{Config, Listener};
use pointsman::handshake::{self, Upgrade};
use pointsman::upstream::dial;
use pointsman::{connection, forwarding};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// More than any head may have.
const PIPE_BYTES: usize = 1 << 20;

static LIMITS: LazyLock<Listener> = LazyLock::new(|| {
    let text = "[[listener]]\nbind = '127.0.0.1:0'\n[[route]]\npath = '/*'\nhandler = 'echo'\n";
    let config = Config::from_toml(text, Path::new("/")).expect("a good configuration");
    config.listeners[0].clone()
});

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

pub(crate) fn run(data: &[u8]) {
    let Some((head, upgrade)) = RUNTIME.with(|runtime| runtime.block_on(accepted(data))) else {
        return;
    };
    check_as_others_read_it(data, &upgrade);
    let sent = RUNTIME.with(|runtime| runtime.block_on(to_backend(head)));
    check_sent(data, &sent, &upgrade);
}

/// As the server reads it, from the HTTP library on.
async fn accepted(data: &[u8]) -> Option<(request::Parts, Upgrade)> {
    let (mut client, server) = duplex(PIPE_BYTES);
    let found = RefCell::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let is_first = found.borrow().is_none();
        if is_first {
            *found.borrow_mut() = Some(check(head, !body.is_end_stream()));
        }
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let connection = connection::http(&LIMITS).serve_connection(TokioIo::new(server), service);
    client.write_all(data).await.ok()?;
    client.shutdown().await.ok()?;
    // Who sends half a head is waited for; nothing more comes here.
    let _ = timeout(Duration::from_millis(50), connection).await;
    found.into_inner().flatten()
}

fn check(head: request::Parts, has_body: bool) -> Option<(request::Parts, Upgrade)> {
    handshake::check_head(&head).ok()?;
    handshake::read_host(&head).ok()?;
    let upgrade = handshake::read_upgrade(&head, has_body).ok()??;
    Some((head, upgrade))
}

/// A head as another parser reads it.
struct Parsed {
    /// Names in lower case.
    fields: Vec<(String, Vec<u8>)>,
    target: String,
    n_bytes: usize,
}

fn parse(bytes: &[u8]) -> Option<Parsed> {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(n_bytes) = request.parse(bytes).ok()? else {
        return None;
    };
    assert_eq!((request.method, request.version), (Some("GET"), Some(1)));
    let target = request.path.unwrap_or_default().to_owned();
    let fields = request.headers.iter();
    let fields = fields.map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec()));
    Some(Parsed {
        fields: fields.collect(),
        target,
        n_bytes,
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

/// The bytes that a backend would get.
async fn to_backend(mut head: request::Parts) -> Vec<u8> {
    forwarding::strip_hop_by_hop(&mut head.headers);
    let client = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    let id = HeaderValue::from_static("id");
    forwarding::write_forwarded(&mut head.headers, client, &[], &id);
    let head = dial::upgrade_request(head);
    let (ours, mut backend) = duplex(PIPE_BYTES);
    let (mut sender, connection) = dial::client()
        .handshake::<_, Empty<Bytes>>(TokioIo::new(ours))
        .await
        .expect("a pipe takes all");
    let exchange = async {
        tokio::join!(
            sender.send_request(Request::from_parts(head, Empty::new())),
            connection
        )
    };
    let mut sent = Vec::new();
    let read = async {
        let mut room = [0; 4096];
        while !sent.ends_with(b"\r\n\r\n") {
            match backend.read(&mut room).await {
                Ok(n @ 1..) => sent.extend_from_slice(&room[..n]),
                _ => break,
            }
        }
    };
    tokio::select! {
        _ = exchange => {}
        () = read => {}
    }
    sent
}

fn check_sent(data: &[u8], sent: &[u8], upgrade: &Upgrade) {
    let text = String::from_utf8_lossy(sent);
    let Parsed {
        fields,
        target,
        n_bytes,
    } = parse(sent).unwrap_or_else(|| panic!("a backend cannot read {text:?}"));
    assert_eq!(n_bytes, sent.len(), "more than a head: {text:?}");
    assert!(!sent.contains(&0), "{text:?}");
    let lines = sent.split(|byte| *byte == b'\n');
    let bare = lines
        .filter(|line| !line.is_empty() && !line.ends_with(b"\r"))
        .count();
    assert_eq!(bare, 0, "a bare LF in {text:?}");
    assert!(target.starts_with('/'), "{target:?}");
    let asked = parse(data).expect("parsed before").fields;
    assert_eq!(values(&fields, "connection"), [b"Upgrade"]);
    assert_eq!(values(&fields, "upgrade"), [b"websocket"]);
    assert_eq!(
        values(&fields, "sec-websocket-key"),
        [upgrade.key.as_bytes()]
    );
    assert_eq!(values(&fields, "host"), values(&asked, "host"));
    assert_eq!(values(&fields, "x-forwarded-for"), [b"127.0.0.1"]);
    for name in [
        "te",
        "trailer",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
    ] {
        assert!(values(&fields, name).is_empty(), "{name} in {text:?}");
    }
    for named in values(&asked, "connection")
        .iter()
        .flat_map(|line| line.split(|byte| *byte == b','))
    {
        let named = String::from_utf8_lossy(named.trim_ascii()).to_ascii_lowercase();
        // What makes the request what it is cannot be taken out of it, and what we write is ours.
        let is_ours = ["host", "connection", "upgrade", "forwarded"].contains(&named.as_str())
            || named.starts_with("sec-websocket-")
            || named.starts_with("x-forwarded-")
            || named == "x-request-id";
        assert!(
            is_ours || values(&fields, &named).is_empty(),
            "{named:?} in {text:?}"
        );
    }
}
