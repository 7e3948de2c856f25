//! Plain HTTP/1.1 to a backend, over connections that are kept for the next request.
//!
//! In go a request and a backend; out comes its response, both bodies streamed. One [`Connections`]
//! per worker owns the idle connections, but for those that a backend has authenticated: they belong to one
//! client's connection ([`BoundConnections`]). A request is sent a second time where not one byte of it can have
//! reached a backend, and where a kept connection has ended under it and the caller says that it may; whether more
//! may be risked is the caller's to say.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use http::header::{self, HeaderMap, HeaderName};
use http::{Request, Response, StatusCode, request};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use pointsman_protocol::forwarding::KEEP_ALIVE;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::passing::Passing;
use crate::body::{self, Body};
use crate::upstream::dial::{self, Deadlines, Destination, DialError};
use crate::upstream::read_first::ReadFirst;
use crate::upstream::tls::BackendStream;

/// Connections kept for one backend by one worker.
const MAX_KEPT: usize = 64;
/// How long one is kept: less than the 5 s after which common servers (Node's among them) close
/// theirs, so that few requests meet a closing connection.
const MAX_KEPT_AGE: Duration = Duration::from_secs(4);
/// Authenticated connections of one client's connection: more backends than routes usually lead to.
const MAX_BOUND: usize = 8;
/// What may wait in the kernel to be sent to a backend. It holds megabytes by itself, and then nobody could see that
/// an upload over a slow way goes on, after the client has sent all of it.
const MAX_UNSENT_BYTES: u32 = 128 * 1024;

/// The idle connections of one worker.
#[derive(Debug, Default, Clone)]
pub struct Connections(Rc<RefCell<HashMap<String, Vec<Kept>>>>);

/// Connections to backends that are one client connection's own, because NTLM and Negotiate authenticate the
/// connection and not the request (RFC 4559 section 6).
#[derive(Debug, Default)]
pub struct BoundConnections(RefCell<Vec<(String, BackendConnection)>>);

/// A connection that is idle, or will be when its response has been read.
#[derive(Debug)]
struct Kept {
    connection: BackendConnection,
    until: Instant,
}

struct BackendConnection {
    sender: SendRequest<Body>,
    /// Bytes that have come from the backend.
    n_read: Rc<Cell<u64>>,
    /// It has served a request.
    is_reused: bool,
}

/// One exchange.
#[derive(Debug, Clone, Copy)]
pub struct Sending<'a> {
    /// The head, where the request has no body and may be sent twice.
    pub again: Option<&'a request::Parts>,
    /// How long the backend may take.
    pub deadlines: Deadlines,
    /// Of the request's and the response's body.
    pub passing: &'a Passing,
    /// Those of its client's connection.
    pub bound: &'a BoundConnections,
}

/// A request did not get a response.
#[derive(Debug)]
pub enum ProxyError {
    /// Nothing was sent; here is the request for another backend.
    NotSent(DialError, Box<Request<Body>>),
    /// The backend may have seen it.
    Lost(DialError),
    /// A kept connection has ended under it without a byte of an answer. That is nobody's failure: the backend may
    /// have closed it before the request came.
    Stale(DialError),
}

impl Connections {
    /// Sends one request to a backend and waits for the head of its response.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn send(
        &self,
        to: Destination<'_>,
        mut request: Request<Body>,
        sending: Sending<'_>,
    ) -> Result<Response<Incoming>, ProxyError> {
        let Sending {
            deadlines, bound, ..
        } = sending;
        let key = key(to);
        // One with a body cannot be sent again, but would have to be if a kept connection ended under it.
        let may_reuse = sending.again.is_some() || !request.method().is_idempotent();
        let take = || may_reuse.then(|| self.take(&key)).flatten();
        let mut is_bound = authenticates(request.headers(), header::AUTHORIZATION);
        let mut kept = match bound.take(&key, deadlines.connect).await {
            Some(connection) => {
                is_bound = true;
                Some(connection)
            }
            None => take(),
        };
        while let Some(mut connection) = kept {
            match exchange(&mut connection, request, sending).await {
                // The backend closed it while it was idle: the next, or a new one.
                Err(ProxyError::NotSent(_, unsent)) => request = *unsent,
                Err(ProxyError::Stale(error)) => {
                    let Some(head) = sending.again else {
                        return Err(ProxyError::Stale(error));
                    };
                    request = Request::from_parts(head.clone(), body::empty());
                    break;
                }
                Ok(response) => return self.keep(key, connection, response, bound, is_bound),
                lost => return lost,
            }
            kept = take();
        }
        let mut connection = match connect(to, deadlines).await {
            Ok(connection) => connection,
            Err(error) => return Err(ProxyError::NotSent(error, Box::new(request))),
        };
        let response = exchange(&mut connection, request, sending).await?;
        self.keep(key, connection, response, bound, is_bound)
    }

    /// Drops what is closed or has been idle too long. Call once in a while.
    pub fn expire(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, kept| {
            kept.retain(|kept| kept.is_alive(now));
            !kept.is_empty()
        });
    }

    /// The connection used last that is ready for a request.
    fn take(&self, key: &str) -> Option<BackendConnection> {
        let mut all = self.0.borrow_mut();
        let kept = all.get_mut(key)?;
        let now = Instant::now();
        kept.retain(|kept| kept.is_alive(now));
        let place = kept
            .iter()
            .rposition(|kept| kept.connection.sender.is_ready())?;
        Some(kept.remove(place).connection)
    }

    /// Keeps a connection whose response may still be read, for whomever it may serve; a 101 that nobody asked for
    /// ends it, and so does a coding that the client could read as another body.
    fn keep(
        &self,
        key: Cow<'_, str>,
        mut connection: BackendConnection,
        response: Response<Incoming>,
        bound: &BoundConnections,
        is_bound: bool,
    ) -> Result<Response<Incoming>, ProxyError> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyError::Lost(DialError::BadHandshake(
                "it switches protocols unasked",
            )));
        }
        dial::check_framing(response.headers()).map_err(ProxyError::Lost)?;
        connection.is_reused = true;
        let asks = [header::WWW_AUTHENTICATE, header::PROXY_AUTHENTICATE];
        let headers = response.headers();
        if is_bound || asks.into_iter().any(|name| authenticates(headers, name)) {
            bound.keep(key.into_owned(), connection);
            return Ok(response);
        }
        let mut all = self.0.borrow_mut();
        let kept = all.entry(key.into_owned()).or_default();
        if kept.len() < MAX_KEPT {
            kept.push(Kept {
                connection,
                until: Instant::now() + kept_for(headers),
            });
        }
        Ok(response)
    }
}

impl BoundConnections {
    /// Whether one to this backend is open.
    pub fn has(&self, to: Destination<'_>) -> bool {
        let mut all = self.0.borrow_mut();
        all.retain(|(_, connection)| !connection.sender.is_closed());
        !all.is_empty() && {
            let wanted = key(to);
            all.iter().any(|(key, _)| *key == wanted)
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The one with this name. The client has its last answer, so that it is ready, or will be at once.
    async fn take(&self, key: &str, deadline: Duration) -> Option<BackendConnection> {
        let mut connection = {
            let mut all = self.0.borrow_mut();
            let place = all.iter().position(|(known, _)| known == key)?;
            all.remove(place).1
        };
        let ready = timeout(deadline, connection.sender.ready()).await;
        ready.is_ok_and(|ready| ready.is_ok()).then_some(connection)
    }

    fn keep(&self, key: String, connection: BackendConnection) {
        let mut all = self.0.borrow_mut();
        if all.len() == MAX_BOUND {
            all.remove(0);
        }
        all.push((key, connection));
    }
}

impl Kept {
    fn is_alive(&self, now: Instant) -> bool {
        !self.connection.sender.is_closed() && now < self.until
    }
}

/// How long a connection is kept behind this answer. A backend that says how long it keeps it (`Keep-Alive:
/// timeout=5`, in seconds) is believed, and left a fifth of that for the way.
fn kept_for(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(KEEP_ALIVE).into_iter();
    let parameters = values.filter_map(|value| value.to_str().ok());
    let mut said = parameters
        .flat_map(|value| value.split(','))
        .filter_map(|one| {
            let (name, value) = one.split_once('=')?;
            let seconds: u32 = value.trim().trim_matches('"').parse().ok()?;
            (name.trim().eq_ignore_ascii_case("timeout")).then_some(seconds)
        });
    let said = said
        .next()
        .map(|seconds| Duration::from_secs(seconds.into()) * 4 / 5);
    said.map_or(MAX_KEPT_AGE, |said| said.min(MAX_KEPT_AGE))
}

/// Whether a field with challenges or credentials names a scheme that authenticates the connection.
fn authenticates(headers: &HeaderMap, name: HeaderName) -> bool {
    let values = headers.get_all(name).into_iter();
    let mut schemes = values.flat_map(|value| {
        let challenges = value.as_bytes().split(|byte| *byte == b',');
        challenges.map(|challenge| {
            let mut words = challenge.trim_ascii().split(|byte| *byte == b' ');
            words.next().unwrap_or_default()
        })
    });
    schemes.any(|scheme| {
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    })
}

/// Names connections that can stand for each other: those in TLS, only if it is the same.
fn key(to: Destination<'_>) -> Cow<'_, str> {
    match to.tls {
        None => Cow::Borrowed(to.address),
        Some(tls) => Cow::Owned(format!("{} tls {}", to.address, tls.id)),
    }
}

async fn connect(
    to: Destination<'_>,
    deadlines: Deadlines,
) -> Result<BackendConnection, DialError> {
    let stream = dial::connect(to, deadlines.connect).await?;
    // Where it cannot be set, a slow upload has less time.
    let _ = SockRef::from(stream.tcp()).set_tcp_notsent_lowat(MAX_UNSENT_BYTES);
    let n_read = Rc::<Cell<u64>>::default();
    let stream = CountedStream {
        stream,
        n_read: Rc::clone(&n_read),
    };
    let (sender, connection) = dial::client()
        .handshake(TokioIo::new(ReadFirst::new(stream)))
        .await
        .map_err(DialError::Exchange)?;
    // It ends with its sender and with the worker's runtime.
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    Ok(BackendConnection {
        sender,
        n_read,
        is_reused: false,
    })
}

/// One exchange over one connection. The backend's time for the head of its response does not run while the
/// rest of the request's body has to come from the client.
async fn exchange(
    connection: &mut BackendConnection,
    request: Request<Body>,
    sending: Sending<'_>,
) -> Result<Response<Incoming>, ProxyError> {
    let timeout = sending.deadlines.response;
    let mut deadline = Instant::now() + timeout;
    let n_read = connection.n_read.get();
    let mut response = pin!(connection.sender.try_send_request(request));
    let responded = loop {
        if let Ok(responded) = timeout_at(deadline, response.as_mut()).await {
            break responded;
        }
        deadline = sending.passing.client_held_up_until() + timeout;
        if deadline <= Instant::now() {
            return Err(ProxyError::Lost(DialError::ResponseTimeout(timeout)));
        }
    };
    responded.map_err(|mut refused| match refused.take_message() {
        Some(unsent) => {
            ProxyError::NotSent(DialError::Exchange(refused.into_error()), Box::new(unsent))
        }
        None => {
            let error = refused.into_error();
            let is_stale = connection.is_reused && connection.n_read.get() == n_read;
            match is_stale && !error.is_user() {
                true => ProxyError::Stale(DialError::Exchange(error)),
                false => ProxyError::Lost(DialError::Exchange(error)),
            }
        }
    })
}

/// A stream that counts what is read from it.
struct CountedStream {
    stream: BackendStream,
    n_read: Rc<Cell<u64>>,
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let n = (buffer.filled().len() - before) as u64;
        self.n_read.set(self.n_read.get() + n);
        polled
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for BackendConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendConnection")
            .field("n_read", &self.n_read)
            .field("is_reused", &self.is_reused)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_static(value));
        values.map(|value| (name.clone(), value)).collect()
    }

    #[test]
    fn schemes_that_authenticate_a_connection_are_found_in_any_spelling() {
        let check = |values: &[&'static str]| {
            let headers = with(header::WWW_AUTHENTICATE, values);
            authenticates(&headers, header::WWW_AUTHENTICATE)
        };
        assert!(check(&["NTLM"]) && check(&["ntlm TlRMTVNTUAAC"]));
        assert!(check(&["Negotiate oYG2MIGz"]) && check(&["Basic realm=\"a\"", "negotiate"]));
        assert!(check(&["Basic realm=\"a\", NTLM"]) && check(&["Negotiate,NTLM"]));
        assert!(!check(&[]) && !check(&["Basic realm=\"NTLM\""]) && !check(&["NTLMx, Bearer"]));
    }

    #[test]
    fn a_backend_that_says_how_long_it_keeps_a_connection_is_believed() {
        let check = |values: &[&'static str]| kept_for(&with(KEEP_ALIVE, values)).as_millis();
        assert_eq!(check(&[]), MAX_KEPT_AGE.as_millis());
        assert_eq!(check(&["timeout=5"]), 4000);
        assert_eq!(check(&["max=100, Timeout = \"2\""]), 1600);
        assert_eq!(check(&["timeout=75", "max=1"]), 4000);
        assert_eq!(check(&["timeout=0"]), 0);
        assert_eq!(check(&["timeout=soon"]), 4000);
    }
}
