//! Plain HTTP/1.1 to a backend, over connections that are kept for the next request.
//!
//! In go a request and a backend; out comes its response, both bodies streamed. One [`Connections`]
//! per worker owns the idle connections. It sends a request a second time only where not one byte of
//! it can have reached a backend; whether more may be risked is the caller's to say.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use crate::body::Body;
use crate::body::passing::Passing;
use crate::upstream::dial::{self, Deadlines, Destination, DialError};
use crate::upstream::read_first::ReadFirst;

/// Connections kept for one backend by one worker.
const MAX_KEPT: usize = 64;
/// How long one is kept: less than the 5 s after which common servers (Node's among them) close
/// theirs, so that few requests meet a closing connection.
const MAX_KEPT_AGE: Duration = Duration::from_secs(4);

/// The idle connections of one worker.
#[derive(Debug, Default, Clone)]
pub struct Connections(Rc<RefCell<HashMap<String, Vec<Kept>>>>);

/// A connection that is idle, or will be when its response has been read.
struct Kept {
    sender: SendRequest<Body>,
    since: Instant,
}

/// A request did not get a response.
#[derive(Debug)]
pub enum ProxyError {
    /// Nothing was sent; here is the request for another backend.
    NotSent(DialError, Box<Request<Body>>),
    /// The backend may have seen it.
    Lost(DialError),
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
        deadlines: Deadlines,
        passing: &Passing,
    ) -> Result<Response<Incoming>, ProxyError> {
        let key = key(to);
        while let Some(mut sender) = self.take(&key) {
            match exchange(&mut sender, request, deadlines.response, passing).await {
                // The backend closed it while it was idle: the next, or a new one.
                Err(ProxyError::NotSent(_, unsent)) => request = *unsent,
                Ok(response) => return self.keep(key, sender, response),
                lost => return lost,
            }
        }
        let mut sender = match connect(to, deadlines).await {
            Ok(sender) => sender,
            Err(error) => return Err(ProxyError::NotSent(error, Box::new(request))),
        };
        let response = exchange(&mut sender, request, deadlines.response, passing).await?;
        self.keep(key, sender, response)
    }

    /// Drops what is closed or has been idle too long. Call once in a while.
    pub fn expire(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, kept| {
            kept.retain(|kept| !kept.sender.is_closed() && now - kept.since < MAX_KEPT_AGE);
            !kept.is_empty()
        });
    }

    /// The connection used last that is ready for a request.
    fn take(&self, key: &str) -> Option<SendRequest<Body>> {
        let mut all = self.0.borrow_mut();
        let kept = all.get_mut(key)?;
        let now = Instant::now();
        kept.retain(|kept| !kept.sender.is_closed() && now - kept.since < MAX_KEPT_AGE);
        let place = kept.iter().rposition(|kept| kept.sender.is_ready())?;
        Some(kept.remove(place).sender)
    }

    /// Keeps a connection whose response may still be read; a 101 that nobody asked for ends it, and so does a
    /// coding that the client could read as another body.
    fn keep(
        &self,
        key: Cow<'_, str>,
        sender: SendRequest<Body>,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, ProxyError> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyError::Lost(DialError::BadHandshake(
                "it switches protocols unasked",
            )));
        }
        dial::check_framing(response.headers()).map_err(ProxyError::Lost)?;
        let mut all = self.0.borrow_mut();
        let kept = all.entry(key.into_owned()).or_default();
        if kept.len() < MAX_KEPT {
            kept.push(Kept {
                sender,
                since: Instant::now(),
            });
        }
        Ok(response)
    }
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
) -> Result<SendRequest<Body>, DialError> {
    let stream = dial::connect(to, deadlines.connect).await?;
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
    Ok(sender)
}

/// One exchange over one connection. The backend's time for the head of its response does not run while the
/// rest of the request's body has to come from the client.
async fn exchange(
    sender: &mut SendRequest<Body>,
    request: Request<Body>,
    timeout: Duration,
    passing: &Passing,
) -> Result<Response<Incoming>, ProxyError> {
    let mut deadline = Instant::now() + timeout;
    let mut response = pin!(sender.try_send_request(request));
    let responded = loop {
        if let Ok(responded) = timeout_at(deadline, response.as_mut()).await {
            break responded;
        }
        deadline = passing.client_held_up_until() + timeout;
        if deadline <= Instant::now() {
            return Err(ProxyError::Lost(DialError::ResponseTimeout(timeout)));
        }
    };
    responded.map_err(|mut refused| match refused.take_message() {
        Some(unsent) => {
            ProxyError::NotSent(DialError::Exchange(refused.into_error()), Box::new(unsent))
        }
        None => ProxyError::Lost(DialError::Exchange(refused.into_error())),
    })
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}
