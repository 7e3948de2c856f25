//! The backend's half of the opening handshake: connects, sends the client's request, and believes
//! no answer before it is checked (RFC 6455 section 4.1).
//!
//! In go a backend's address and a request's head; out comes an upgraded stream, or an ordinary
//! response with its body, or a [`DialError`] after which another backend may be tried.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version, request, response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pointsman_protocol::handshake::{self, Upgrade};
use rustix::io::Errno;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::tls::{BackendStream, Tls};
use crate::body::{Body, BoxError};

/// The longest head of an answer, and how much of a body is read ahead of its client. Measured with 64, 128 and
/// 256 KiB, and with the library's own bound: an answer that is not read holds 250, 440, 890 and 1,460 KB; a GB takes
/// 0.66, 0.58, 0.55 and 0.48 s of a core.
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// Most header fields of an answer. Parsing one with up to 100, 256, 500 and 1000 takes 2.1, 2.4, 2.9 and 3.6 us for a
/// small answer: the library makes room for all of them each time.
const MAX_HEADERS: usize = 500;

/// How long a backend may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Name resolution, connect and TLS.
    pub connect: Duration,
    /// From the request to the head of the answer.
    pub response: Duration,
}

/// What a backend said to an upgrade.
#[derive(Debug)]
pub enum UpgradeAnswer {
    /// A checked 101.
    Upgraded {
        /// Positioned behind the head.
        stream: BackendStream,
        /// Bytes that arrived behind the head.
        early: Bytes,
        /// For the client, as received.
        head: response::Parts,
    },
    /// Anything else: an ordinary response, which ends the connection.
    Refused(Response<Body>),
}

/// A backend did not answer. All of these may be tried elsewhere: no client has seen anything.
#[derive(Debug)]
pub enum DialError {
    /// The name of the backend has no address, as far as its resolver says.
    Resolve(io::Error),
    /// Refused, unreachable.
    Connect(io::Error),
    /// No TLS, or a certificate that proves nothing.
    Tls(io::Error),
    /// Longer than [`Deadlines::connect`].
    ConnectTimeout(Duration),
    /// Reset, closed early, or no HTTP.
    Exchange(hyper::Error),
    /// Longer than [`Deadlines::response`].
    ResponseTimeout(Duration),
    /// An answer that breaks the protocol, or a 101 that does not answer what was asked.
    BadHandshake(&'static str),
}

/// Where to connect, and how.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// Host and port.
    pub address: &'a str,
    /// None: as it is.
    pub tls: Option<&'a Arc<Tls>>,
}

/// Opens a connection, with small writes sent at once. `deadline` is for all of it.
///
/// # Errors
/// [`DialError::Resolve`], [`DialError::Connect`], [`DialError::Tls`] and [`DialError::ConnectTimeout`].
pub async fn connect(to: Destination<'_>, deadline: Duration) -> Result<BackendStream, DialError> {
    let is_resolved = Cell::new(false);
    let connect = async {
        let addresses = lookup_host(to.address).await;
        let addresses = addresses.map_err(DialError::Resolve)?;
        is_resolved.set(true);
        let stream = connect_first(addresses).await?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        match to.tls {
            None => Ok(BackendStream::Plain(stream)),
            Some(tls) => tls
                .connect(stream, to.address)
                .await
                .map_err(DialError::Tls),
        }
    };
    let connected = timeout(deadline, connect).await;
    connected.map_err(|_| match is_resolved.get() {
        true => DialError::ConnectTimeout(deadline),
        false => DialError::Resolve(io::ErrorKind::TimedOut.into()),
    })?
}

/// The first of them that takes a connection.
async fn connect_first(
    addresses: impl Iterator<Item = SocketAddr>,
) -> Result<TcpStream, DialError> {
    let mut failed = DialError::Resolve(io::Error::other("the name has no address"));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = DialError::Connect(error),
        }
    }
    Err(failed)
}

/// Asks a backend for a WebSocket. `head`: as [`upgrade_request`] makes it.
///
/// # Errors
/// See [`DialError`].
pub async fn upgrade(
    to: Destination<'_>,
    head: request::Parts,
    asked: &Upgrade,
    deadlines: Deadlines,
) -> Result<UpgradeAnswer, DialError> {
    let stream = connect(to, deadlines.connect).await?;
    let exchange = exchange(stream, head);
    let exchanged = timeout(deadlines.response, exchange).await;
    let (response, mut connection, is_over) =
        exchanged.map_err(|_| DialError::ResponseTimeout(deadlines.response))??;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        check_framing(&head.headers)?;
        let body = Driven {
            connection: Some(connection).filter(|_| !is_over),
            body,
        }
        .boxed_unsync();
        return Ok(UpgradeAnswer::Refused(Response::from_parts(head, body)));
    }
    if !is_over {
        poll_fn(|cx| connection.poll_without_shutdown(cx))
            .await
            .map_err(DialError::Exchange)?;
    }
    if head.version != Version::HTTP_11 {
        return Err(DialError::BadHandshake("its 101 is not HTTP/1.1"));
    }
    check_answer(asked, &head.headers).map_err(DialError::BadHandshake)?;
    let parts = connection.into_parts();
    Ok(UpgradeAnswer::Upgraded {
        stream: parts.io.into_inner(),
        early: parts.read_buf,
        head,
    })
}

/// The head to send to a backend, from one whose hop-by-hop fields are off already.
pub fn upgrade_request(mut head: request::Parts) -> request::Parts {
    head.uri = origin_form(&head.uri);
    head.headers
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    head.headers
        .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    head
}

/// The target as a server that is no proxy wants it (RFC 9112 section 3.2.1).
pub fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        // An absolute target may have no path, and is then written as nothing at all.
        Some(path) if path.as_str() != "/" => Uri::from(path.clone()),
        Some(_) | None => Uri::from_static("/"),
    }
}

/// How this program speaks HTTP/1.1 to a backend: fields keep the case that their sender gave them.
pub fn client() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(MAX_BUFFER_BYTES)
        .max_headers(MAX_HEADERS)
        .preserve_header_case(true)
        .title_case_headers(true);
    builder
}

pub(super) type Connection = http1::Connection<TokioIo<BackendStream>, Empty<Bytes>>;

/// Sends a request without a body and waits for the head of the answer. Also says whether the
/// connection has come to its end as HTTP, after which it must not be polled.
///
/// # Errors
/// [`DialError::Exchange`].
pub(super) async fn exchange(
    stream: BackendStream,
    head: request::Parts,
) -> Result<(Response<Incoming>, Connection, bool), DialError> {
    let (mut sender, mut connection) = client()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(DialError::Exchange)?;
    let mut answer = pin!(sender.send_request(Request::from_parts(head, Empty::new())));
    let mut is_over = false;
    let response = poll_fn(|cx| {
        // The answer's future learns of a connection's error by itself.
        is_over = is_over || connection.poll_without_shutdown(cx).is_ready();
        answer.as_mut().poll(cx)
    });
    let response = response.await.map_err(DialError::Exchange)?;
    Ok((response, connection, is_over))
}

/// Checks how the body of an answer is framed.
///
/// # Errors
/// [`DialError::BadHandshake`]: not as this program reads it.
pub fn check_framing(headers: &HeaderMap) -> Result<(), DialError> {
    match handshake::has_known_coding(headers) {
        true => Ok(()),
        false => Err(DialError::BadHandshake(
            "its Transfer-Encoding is not chunked",
        )),
    }
}

/// Checks a 101 against what was asked (RFC 6455 section 4.1).
///
/// # Errors
/// What is wrong with it.
pub fn check_answer(asked: &Upgrade, headers: &HeaderMap) -> Result<(), &'static str> {
    let check = |is_fine: bool, reason| if is_fine { Ok(()) } else { Err(reason) };
    check(
        handshake::has_token(headers, header::UPGRADE, "websocket"),
        "its 101 has no Upgrade: websocket",
    )?;
    check(
        handshake::has_token(headers, header::CONNECTION, "upgrade"),
        "its 101 has no Connection: upgrade",
    )?;
    let accept = handshake::only(headers, header::SEC_WEBSOCKET_ACCEPT);
    let expected = derive_accept_key(asked.key.as_bytes());
    check(
        accept.is_some_and(|accept| accept == expected.as_str()),
        "its Sec-WebSocket-Accept is wrong",
    )?;
    let subprotocols = handshake::list(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let is_offered = |chosen: &Vec<String>| {
        chosen.len() <= 1 && chosen.iter().all(|name| asked.subprotocols.contains(name))
    };
    check(
        subprotocols.is_some_and(|chosen| is_offered(&chosen)),
        "it chose a subprotocol that was not offered",
    )?;
    let extensions = handshake::extension_names(headers);
    let is_offered =
        |chosen: &Vec<String>| chosen.iter().all(|name| asked.extensions.contains(name));
    check(
        extensions.is_some_and(|chosen| is_offered(&chosen)),
        "it chose an extension that was not offered",
    )
}

/// A body that drives the connection it comes from, so that both go together.
struct Driven {
    connection: Option<Connection>,
    body: Incoming,
}

impl hyper::body::Body for Driven {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self
            .connection
            .as_mut()
            .is_some_and(|connection| Pin::new(connection).poll(cx).is_ready())
        {
            self.connection = None;
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl DialError {
    /// Whether it is for want of something on this machine: descriptors, ports, memory. Then it says
    /// nothing of the backend.
    pub fn is_ours(&self) -> bool {
        let (Self::Resolve(error) | Self::Connect(error)) = self else {
            return false;
        };
        let number = error.raw_os_error().map(Errno::from_raw_os_error);
        let ours = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::ADDRNOTAVAIL,
        ];
        number.is_some_and(|number| ours.contains(&number))
    }

    /// What a client is answered when no other backend is left.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ConnectTimeout(_) | Self::ResponseTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::Exchange(_)
            | Self::BadHandshake(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(error) => write!(f, "cannot resolve its name: {error}"),
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Tls(error) => write!(f, "no TLS: {error}"),
            Self::ConnectTimeout(after) => write!(f, "no connection after {after:?}"),
            Self::Exchange(error) => match std::error::Error::source(error) {
                Some(source) => write!(f, "no answer: {error}: {source}"),
                None => write!(f, "no answer: {error}"),
            },
            Self::ResponseTimeout(after) => write!(f, "no answer after {after:?}"),
            Self::BadHandshake(reason) => f.write_str(reason),
        }
    }
}

/// Each says its cause itself.
impl std::error::Error for DialError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_path_whatever_it_was() {
        for (asked, sent) in [
            ("/a?b", "/a?b"),
            ("http://example.org/a?b", "/a?b"),
            ("http://example.org", "/"),
            // The HTTP library leaves out fragments, and then there is no path.
            ("http://example.org#/a", "/"),
        ] {
            let uri: Uri = asked.parse().unwrap();
            assert_eq!(origin_form(&uri).to_string(), sent, "{asked}");
        }
    }
}
