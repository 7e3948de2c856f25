//! One client's connection: its HTTP requests, each led to where its route says, until it closes
//! or becomes a session.
//!
//! In goes an accepted socket; it moves on, whole, into a session's task when a request was
//! upgraded. `at_upstream`, `at_handler` and `at_plugin` each answer for one kind of target; `filters` are
//! on the way to an upstream. `blame` is what becomes of clients for whom a plugin fails. `client_io` is the
//! client's socket while HTTP is spoken over it.

mod at_handler;
mod at_plugin;
mod at_upstream;
mod blame;
mod client_io;
mod filters;
mod record;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, request};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pointsman_admin::access_log::{Aborted, LoggedTarget, Requested};
use pointsman_config::{Listener, Route, Target};
use pointsman_contract::policy::Refusal;
use pointsman_contract::session::Ender;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_protocol::forwarding;
use pointsman_protocol::handshake::{self, HandshakeError};
use pointsman_traffic::body::passing::Passing;
use pointsman_traffic::body::{self, Body};
use pointsman_traffic::overload::handshakes::Waiting;
use pointsman_traffic::routing::chooser::RequestFacts;
use pointsman_traffic::routing::paths;
use pointsman_traffic::upstream::pool::Backend;
use pointsman_traffic::{client_http, spelling};
use tokio::net::TcpStream;
use tokio::time::Instant;

use self::client_io::{Answering, ClientIo};
use crate::context::loads::SessionSlot;
use crate::context::{ConnectionCount, WorkerContext};
use crate::site::Site;

/// How long a client may take nothing of an answer that no route has a part in: the default of `send_timeout_ms`.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// For a client that came when there was too much to do (RFC 9110 section 10.2.3).
const RETRY_AFTER_SECS: RangeInclusive<u32> = 1..=5;

/// Serves a connection to its end, or to the birth of its session.
pub(crate) async fn serve(
    worker: Rc<WorkerContext>,
    stream: TcpStream,
    far_end: SocketAddr,
    limits: Arc<Listener>,
    count: ConnectionCount,
    waiting: Waiting,
) {
    let next = Rc::<RefCell<Option<Next>>>::default();
    let answering = Rc::new(Answering::new(SEND_TIMEOUT));
    let waiting = Cell::new(Some(waiting));
    let is_turned_away = count.is_turned_away();
    let service = service_fn(|request| {
        drop(waiting.take());
        let (worker, next) = (Rc::clone(&worker), Rc::clone(&next));
        let answering = Rc::clone(&answering);
        Box::pin(async move {
            let answer = answer(worker, far_end, request, is_turned_away, &next, &answering).await;
            Ok::<_, Infallible>(answer)
        })
    });
    let io = ClientIo::new(stream, Rc::clone(&answering));
    let mut connection = client_http::server(&limits)
        .keep_alive(!is_turned_away)
        .serve_connection(TokioIo::new(io), service);
    let cut = Cut(Some(&answering));
    // One that is turned away is there for one answer. Shut down before its request, it would get none.
    let mut is_draining = is_turned_away;
    let mut drain = worker.drain();
    let mut drain = std::pin::pin!(drain.started());
    let served = poll_fn(|cx| {
        if !is_draining && drain.as_mut().poll(cx).is_ready() {
            is_draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    });
    let served = served.await;
    cut.served();
    if let Err(error) = served {
        tracing::debug!(client = %far_end, %error, "connection ended");
        return;
    }
    let Some(next): Option<Next> = next.take() else {
        return;
    };
    let parts = connection.into_parts();
    if let Some(stream) = parts.io.into_inner().into_stream() {
        next.start(&worker, stream, parts.read_buf, count);
    }
}

/// Notes whose doing it is when a connection is dropped before it is served: only the end of a drain does so
/// while an answer is sent.
struct Cut<'a>(Option<&'a Answering>);

impl Cut<'_> {
    fn served(mut self) {
        self.0 = None;
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Some(answering) = self.0 {
            answering.cut(Ender::Operator);
        }
    }
}

/// What follows a 101, once the HTTP library has let go of the socket.
enum Next {
    Relay(Box<at_upstream::RelayedUpgrade>),
    Filter(Box<filters::FilteredUpgrade>),
    Handle(Box<at_handler::HandledUpgrade>),
}

impl Next {
    /// Begins the session, in a task of its own: it is smaller than this connection's.
    fn start(
        self,
        worker: &Rc<WorkerContext>,
        stream: TcpStream,
        early: Bytes,
        count: ConnectionCount,
    ) {
        let worker = Rc::clone(worker);
        match self {
            Self::Relay(upgraded) => {
                tokio::task::spawn_local(upgraded.run(worker, stream, early, count))
            }
            Self::Filter(upgraded) => {
                tokio::task::spawn_local(upgraded.run(worker, stream, early, count))
            }
            Self::Handle(upgraded) => {
                tokio::task::spawn_local(upgraded.run(worker, stream, early, count))
            }
        };
    }
}

/// One request, and who sent it.
struct Exchange {
    worker: Rc<WorkerContext>,
    far_end: SocketAddr,
    /// Behind trusted proxies the one they vouch for.
    client_ip: IpAddr,
    request_id: HeaderValue,
    host: String,
    /// Whether a plugin of the route has failed for this client lately.
    is_suspect: bool,
    begun: Instant,
    /// What its two bodies share.
    passing: Arc<Passing>,
    /// What a session that comes of it counts as.
    slot: Cell<Option<SessionSlot>>,
}

/// A request that ends here.
struct Refused {
    status: StatusCode,
    headers: HeaderMap,
    /// Empty: an explanation.
    body: String,
    /// For the log, and for the client where it is the client's fault.
    reason: String,
    result: UpgradeResult,
}

/// What an exchange came to.
struct Answered {
    response: Response<Body>,
    next: Option<Next>,
    /// What came of an upgrade.
    result: Option<UpgradeResult>,
    backend: Option<String>,
    reason: Option<String>,
}

/// Counts an upgrade whose client left before the answer: then the HTTP library drops the future
/// that would have answered, and this with it.
struct Unanswered(Option<Rc<WorkerContext>>);

impl Unanswered {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(worker) = &self.0 {
            worker.counters.upgrade(UpgradeResult::ClientGone);
        }
    }
}

/// Answers one request; where that is a 101, leaves behind what follows.
async fn answer(
    worker: Rc<WorkerContext>,
    far_end: SocketAddr,
    request: Request<Incoming>,
    is_turned_away: bool,
    next: &RefCell<Option<Next>>,
    answering: &Answering,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let is_upgrade = handshake::has_token(&head.headers, header::UPGRADE, "websocket");
    let (method, path) = (head.method.clone(), head.uri.path().to_owned());
    let site = worker.site();
    let far_end = SocketAddr::new(far_end.ip().to_canonical(), far_end.port());
    let begun = Instant::now();
    let mut exchange = Exchange {
        client_ip: forwarding::client_ip(far_end.ip(), &head.headers, &site.config.trusted_proxies),
        request_id: forwarding::request_id(&head.headers),
        host: String::new(),
        is_suspect: false,
        begun,
        passing: Arc::new(Passing::new(begun)),
        slot: Cell::new(None),
        worker,
        far_end,
    };
    let mut route: Option<Arc<Route>> = None;
    let unanswered = Unanswered(is_upgrade.then(|| Rc::clone(&exchange.worker)));
    let answered = match is_turned_away {
        true => Err(going_away()),
        false => exchange.lead(head, body, &mut route).await,
    };
    let answered = answered.unwrap_or_else(|refused| refused.into_answer());
    unanswered.answered();
    let status = answered.response.status().as_u16();
    let ends_at_http = |route: &Arc<Route>| matches!(route.target, Target::Http(_));
    if is_upgrade && !route.as_ref().is_some_and(ends_at_http) {
        if let Some(result) = answered.result {
            exchange.worker.counters.upgrade(result);
        }
    } else if let Some(route) = &route {
        exchange
            .worker
            .target_counters(&route.target)
            .request(status);
    }
    let log = exchange.worker.access_log();
    if let Some(log) = log.filter(|_| answered.next.is_none()) {
        let pattern = route.as_ref().map(ToString::to_string);
        log.request(&Requested {
            request_id: exchange.id(),
            client: exchange.far_end,
            client_ip: exchange.client_ip,
            method: method.as_str(),
            path: &path,
            route: pattern.as_deref(),
            target: route.as_ref().map(|route| log_target(&route.target)),
            backend: answered.backend.as_deref(),
            status,
            reason: answered.reason.as_deref(),
            duration: exchange.begun.elapsed(),
        });
    }
    let send_timeout = route.map_or(SEND_TIMEOUT, |route| route.send_timeout);
    answering.begin(exchange.passing, send_timeout);
    *next.borrow_mut() = answered.next;
    answered.response
}

impl Exchange {
    /// Finds the route and goes along it.
    async fn lead(
        &mut self,
        mut head: request::Parts,
        body: Incoming,
        found: &mut Option<Arc<Route>>,
    ) -> Result<Answered, Box<Refused>> {
        let site = self.worker.site();
        handshake::check_head(&head)?;
        self.host = handshake::read_host(&head)?;
        let route = site
            .routes
            .find(&self.host, head.uri.path())
            .ok_or_else(|| {
                Refused::new(
                    StatusCode::NOT_FOUND,
                    UpgradeResult::NotFound,
                    "no route matches",
                )
            })?;
        let route = found.insert(Arc::clone(route));
        self.check_path(&site, route, head.uri.path())?;
        if site.is_drained(route) {
            return Err(drained());
        }
        if self.worker.is_too_late() {
            return Err(overloaded("overloaded"));
        }
        let trusted = &site.config.trusted_proxies;
        // Whoever is told of the request is told the same of its client: plugins and backends.
        forwarding::write_forwarded(&mut head.headers, self.far_end, trusted, &self.request_id);
        if let Target::Http(plugin) = &route.target {
            return at_plugin::request(self, route, plugin, head, body).await;
        }
        let upgrade = handshake::read_upgrade(&head, !body.is_end_stream())?;
        if upgrade.is_some() {
            check_origin(route, &head.headers)?;
        }
        self.serve_penalty(&site, route, upgrade.is_some()).await?;
        if upgrade.is_some() {
            let slot = self.worker.session_slot();
            let slot = slot.ok_or_else(|| overloaded("overload.max_sessions is reached"))?;
            self.slot.set(Some(slot));
        }
        match (&route.target, upgrade) {
            (Target::Upstream(upstream), Some(asked)) => {
                at_upstream::upgrade(self, route, upstream, asked, head).await
            }
            (Target::Upstream(upstream), None) => {
                at_upstream::request(self, route, upstream, head, body).await
            }
            (Target::Handler(plugin), Some(asked)) => {
                at_handler::upgrade(self, route, plugin, asked, head)
            }
            (Target::Handler(_) | Target::Http(_), _) => Err(HandshakeError {
                status: StatusCode::UPGRADE_REQUIRED,
                reason: "a WebSocket is served here",
            }
            .into()),
        }
    }

    /// Refuses a path that would lead along another route if it were read as some servers do: its
    /// backend could take the request for one that this route keeps out.
    fn check_path(
        &self,
        site: &Site,
        route: &Arc<Route>,
        path: &str,
    ) -> Result<(), HandshakeError> {
        match paths::is_ambiguous(&site.routes, &self.host, route, path) {
            true => Err(HandshakeError {
                status: StatusCode::BAD_REQUEST,
                reason: "the path can be read as one of another route",
            }),
            false => Ok(()),
        }
    }

    fn facts<'a>(&'a self, head: &'a request::Parts) -> RequestFacts<'a> {
        RequestFacts {
            client_ip: self.client_ip,
            host: &self.host,
            path: target_of(head),
            headers: &head.headers,
        }
    }

    /// Watches the body of an answer on its way to the client, and says in log and metrics where it breaks off.
    /// That does not count against the backend: a client could find an answer that pauses for long, and have
    /// good backends ejected by it.
    fn follow(
        &self,
        route: &Arc<Route>,
        backend: Option<&Arc<Backend>>,
        answer: Response<Body>,
    ) -> Response<Body> {
        let counters = self.worker.target_counters(&route.target);
        let log = self.worker.access_log().cloned();
        let (request_id, begun) = (self.request_id.clone(), self.begun);
        let (client, client_ip) = (self.far_end, self.client_ip);
        // HTTP handlers have their own bound, `http_idle_timeout_ms`.
        let (from, timeout) = match backend {
            Some(_) => (Ender::Backend, Some(route.read_timeout)),
            None => (Ender::Plugin, None),
        };
        let (route, backend) = (Arc::clone(route), backend.cloned());
        let on_abort = move |by: Ender, reason: &str| {
            counters.aborted(by.label());
            let Some(log) = &log else { return };
            log.abort(&Aborted {
                request_id: request_id.to_str().unwrap_or_default(),
                client,
                client_ip,
                route: &route.to_string(),
                target: log_target(&route.target),
                backend: backend.as_ref().map(|backend| backend.address()),
                by,
                reason,
                duration: begun.elapsed(),
            });
        };
        self.passing.answer(answer, from, timeout, on_abort)
    }

    fn id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// Makes a client's head into one for a backend.
    fn forward_head(&self, head: &mut request::Parts) {
        forwarding::strip_lookalikes(&mut head.headers);
        forwarding::strip_hop_by_hop(&mut head.headers);
    }
}

impl Answered {
    /// What a backend or an HTTP handler answers to a plain request.
    fn plain(response: Response<Body>, backend: Option<&str>) -> Self {
        Self {
            response,
            next: None,
            result: None,
            backend: backend.map(str::to_owned),
            reason: None,
        }
    }

    fn upgraded(headers: HeaderMap, extensions: http::Extensions, next: Next) -> Self {
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        *response.extensions_mut() = extensions;
        Self {
            response,
            next: Some(next),
            result: Some(UpgradeResult::Accepted),
            backend: None,
            reason: None,
        }
    }
}

impl Refused {
    fn new(status: StatusCode, result: UpgradeResult, reason: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            status,
            headers: HeaderMap::new(),
            body: String::new(),
            reason: reason.into(),
            result,
        })
    }

    /// What a plugin wants said; fields that speak of the connection or its framing are dropped.
    fn by_plugin(refusal: Refusal, result: UpgradeResult) -> Box<Self> {
        let status = StatusCode::from_u16(refusal.status)
            .ok()
            .filter(|status| status.is_client_error() || status.is_server_error());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut headers = HeaderMap::new();
        append_all(status, &mut headers, refusal.headers);
        Box::new(Self {
            status,
            headers,
            body: refusal.body,
            reason: "refused by the plugin".to_owned(),
            result,
        })
    }

    fn into_answer(self) -> Answered {
        let status = self.status;
        let mut response = match self.body.as_str() {
            "" => body::text(status, &self.explanation()),
            said => body::text(status, said),
        };
        if !self.headers.is_empty() {
            *response.extensions_mut() = spelling::of_the_rfcs();
        }
        response.headers_mut().extend(self.headers);
        Answered {
            response,
            next: None,
            result: Some(self.result),
            backend: None,
            reason: Some(self.reason),
        }
    }

    /// For the client: what it did wrong, but not what is wrong behind us.
    fn explanation(&self) -> String {
        match self.status.is_client_error() {
            true => format!("{}: {}", self.status, self.reason),
            false => self.status.to_string(),
        }
    }
}

impl From<HandshakeError> for Box<Refused> {
    fn from(error: HandshakeError) -> Self {
        let mut refused = Refused::new(error.status, UpgradeResult::BadRequest, error.reason);
        refused.headers = handshake::refusal_headers(error.status);
        refused
    }
}

/// For a request whose body came to no good end.
fn bad_body(passing: &Passing) -> HandshakeError {
    let (status, reason) = match passing.is_body_late() {
        true => (
            StatusCode::REQUEST_TIMEOUT,
            "the rest of the request's body does not come",
        ),
        false => (StatusCode::BAD_REQUEST, "the request's body cannot be read"),
    };
    HandshakeError { status, reason }
}

/// Adds what a plugin wants added to an answer; fields that are invalid, or that speak of the connection or its
/// framing, are dropped.
fn append_all(status: StatusCode, headers: &mut HeaderMap, fields: Vec<(String, String)>) {
    let mut added = HeaderMap::new();
    for (name, value) in fields {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value)) {
            added.append(name, value);
        }
    }
    forwarding::strip_answer(status, &mut added);
    added.remove(header::CONTENT_LENGTH);
    for (name, value) in &added {
        headers.append(name, value.clone());
    }
}

/// Clients that come again should not do so all at once.
fn overloaded(reason: impl Into<String>) -> Box<Refused> {
    let mut refused = Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        UpgradeResult::Overloaded,
        reason,
    );
    let later = HeaderValue::from(fastrand::u32(RETRY_AFTER_SECS));
    refused.headers.insert(header::RETRY_AFTER, later);
    refused
}

fn drained() -> Box<Refused> {
    out_of_service("the route is drained", HeaderValue::from_static("10"))
}

/// The next process may be there soon.
fn going_away() -> Box<Refused> {
    let soon = HeaderValue::from(fastrand::u32(RETRY_AFTER_SECS));
    out_of_service("the process is being drained", soon)
}

fn out_of_service(reason: &str, retry_after: HeaderValue) -> Box<Refused> {
    let mut refused = Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        UpgradeResult::NoBackend,
        reason,
    );
    let headers = &mut refused.headers;
    headers.insert(header::RETRY_AFTER, retry_after);
    refused
}

fn check_origin(route: &Route, headers: &HeaderMap) -> Result<(), Box<Refused>> {
    let origin = handshake::only(headers, header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let is_allowed = |origin: &str| route.origins.iter().any(|allowed| allowed.matches(origin));
    if route.origins.is_empty() || origin.is_some_and(is_allowed) {
        return Ok(());
    }
    Err(Refused::new(
        StatusCode::FORBIDDEN,
        UpgradeResult::ForbiddenOrigin,
        "this origin is not allowed here",
    ))
}

/// Path and query.
fn target_of(head: &request::Parts) -> &str {
    head.uri
        .path_and_query()
        .map_or("/", |target| target.as_str())
}

fn log_target(target: &Target) -> LoggedTarget<'_> {
    match target {
        Target::Upstream(name) => LoggedTarget::Upstream(name.as_str()),
        Target::Handler(name) => LoggedTarget::Handler(name.as_str()),
        Target::Http(name) => LoggedTarget::Http(name.as_str()),
    }
}
