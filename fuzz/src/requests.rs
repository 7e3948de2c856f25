//! Plain requests, one behind the other as a client pipelines them: each comes to a backend as one
//! request, which can be read in one way only, and with the body that was sent.

use std::cell::RefCell;
use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode, request};
use http_body_util::Empty;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pointsman_protocol::{forwarding, handshake};
use pointsman_traffic::body;
use pointsman_traffic::client_http::{self, HeadClock};
use pointsman_traffic::upstream::dial;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::head::{LIMITS, PIPE_BYTES, check_fields, forward, origin_form};
use crate::idle::until_idle;
use crate::strict::{self, No};

/// Enough to answer whatever was asked.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

pub(crate) fn run(data: &[u8]) {
    let sent = RefCell::new(Vec::new());
    until_idle(async {
        let (mut client, server) = duplex(PIPE_BYTES);
        let service = service_fn(|request| answer(request, &sent));
        let connection = client_http::server(&LIMITS, &HeadClock::new(&LIMITS))
            .serve_connection(TokioIo::new(server), service);
        client.write_all(data).await.expect("a pipe takes all");
        client.shutdown().await.expect("a pipe ends");
        let _ = connection.await;
    });
    check(data, &sent.into_inner());
}

/// None: it ended before it was whole.
type Sent = Option<strict::Request>;

async fn answer(
    request: Request<Incoming>,
    sent: &RefCell<Vec<Sent>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Empty::new());
    if is_plain(&head, &body) {
        to_backend(head, body, sent).await;
    } else {
        // As the server does, after which it reads nothing more.
        *response.status_mut() = StatusCode::BAD_REQUEST;
        *response.headers_mut() = handshake::refusal_headers(StatusCode::BAD_REQUEST);
    }
    Ok(response)
}

fn is_plain(head: &request::Parts, body: &Incoming) -> bool {
    handshake::check_head(head).is_ok()
        && handshake::read_host(head).is_ok()
        && handshake::read_upgrade(head, !body.is_end_stream()) == Ok(None)
}

async fn to_backend(mut head: request::Parts, body: Incoming, sent: &RefCell<Vec<Sent>>) {
    forward(&mut head);
    forwarding::frame_body(&mut head.headers, body.size_hint().exact());
    head.uri = dial::origin_form(&head.uri);
    let request = Request::from_parts(head, body::incoming(body));
    let (ours, backend) = duplex(PIPE_BYTES);
    let (mut sender, connection) = dial::client()
        .handshake(TokioIo::new(ours))
        .await
        .expect("a pipe takes all");
    let exchange = async {
        // Without it the connection ends when the exchange does.
        let _ = sender.send_request(request).await;
        drop(sender);
    };
    sent.borrow_mut().push(None);
    let n = sent.borrow().len();
    let (_, _, read) = tokio::join!(exchange, connection, read(backend));
    sent.borrow_mut()[n - 1] = read;
}

/// Reads one request and answers it.
async fn read(mut backend: DuplexStream) -> Sent {
    let mut bytes = Vec::new();
    loop {
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        match strict::Request::read(&bytes) {
            Ok((request, end)) => {
                assert_eq!(end, bytes.len(), "more than a request: {:?}", text());
                // It may have gone, with all it wanted to say.
                let _ = backend.write_all(ANSWER).await;
                let mut rest = Vec::new();
                let _ = backend.read_to_end(&mut rest).await;
                assert!(rest.is_empty(), "{rest:?} behind {:?}", text());
                return Some(request);
            }
            Err(No::NotYet) => {}
            Err(No::Bad(reason)) => panic!("{reason} in {:?}", text()),
        }
        if backend.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// What was forwarded is what a strict reader finds in the input, up to where it finds something odd.
fn check(data: &[u8], sent: &[Sent]) {
    let mut rest = data;
    for sent in sent {
        let Ok((asked, end)) = strict::Request::read(rest) else {
            return;
        };
        rest = &rest[end..];
        let Some(sent) = sent else {
            return;
        };
        assert_eq!(sent.method, asked.method);
        assert_eq!(sent.target, origin_form(&asked.target));
        assert!(sent.body == asked.body, "{asked:?} became {sent:?}");
        check_fields(&asked.fields, sent);
    }
}
