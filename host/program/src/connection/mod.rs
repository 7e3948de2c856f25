//! One client's connection: its HTTP requests, each led to where its route says, until it closes
//! or becomes a session.
//!
//! In goes an accepted socket; it moves on, whole, into a session's task when a request was
//! upgraded. `at_upstream`, `at_handler` and `at_plugin` each answer for one kind of target; `filters` are
//! on the way to an upstream, and `answers` is what it comes to. `blame` is what becomes of clients for whom a plugin fails. `client_io` is the
//! client's socket while HTTP is spoken over it: interim answers, clients that leave, and the end of a connection.

mod answers;
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
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pointsman_admin::access_log::{Aborted, LoggedTarget, Requested};
use pointsman_config::{Listener, Route, Target};
use pointsman_contract::session::Ender;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_protocol::forwarding;
use pointsman_protocol::handshake::{self, HandshakeError};
use pointsman_traffic::body::passing::{Passing, RequestBody};
use pointsman_traffic::body::{self, Body};
use pointsman_traffic::client_http::{self, HeadClock};
use pointsman_traffic::overload::handshakes::Waiting;
use pointsman_traffic::proxy::BoundConnections;
use pointsman_traffic::routing::chooser::RequestFacts;
use pointsman_traffic::routing::paths;
use pointsman_traffic::upstream::pool::Backend;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::Instant;

use self::answers::{Answered, Refused, drained, going_away, overloaded};
use self::client_io::{Answering, ClientIo};
use crate::context::loads::SessionSlot;
use crate::context::{ConnectionCount, WorkerContext};
use crate::site::Site;

/// How long a client may take nothing of an answer that no route has a part in: the default of `send_timeout_ms`.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may send nothing of a body that no route has a part in.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a body that nobody wants is read for the sake of its connection.
const DRAIN_BYTES: usize = 64 * 1024;
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
    let bound = Rc::<BoundConnections>::default();
    let waiting = Cell::new(Some(waiting));
    let is_turned_away = count.is_turned_away();
    let keep_alive_timeout = limits.keep_alive_timeout;
    let service = service_fn(|request| {
        drop(waiting.take());
        let (worker, next) = (Rc::clone(&worker), Rc::clone(&next));
        let (answering, bound) = (Rc::clone(&answering), Rc::clone(&bound));
        Box::pin(async move {
            let answering = &answering;
            let kept_for = told_keep_alive(&request, keep_alive_timeout);
            let context = Rc::clone(&worker);
            let answer = answer(
                worker,
                far_end,
                request,
                is_turned_away,
                &next,
                answering,
                bound,
            );
            let mut answer = answer.await;
            let is_ending = is_turned_away || context.drain.has_begun();
            if let Some(kept_for) = kept_for.filter(|_| !is_ending) {
                tell_keep_alive(answer.headers_mut(), kept_for);
            }
            Ok::<_, Infallible>(answer)
        })
    });
    let clock = HeadClock::new(&limits);
    let io = ClientIo::new(stream, Rc::clone(&answering), Arc::clone(&clock));
    let mut connection = client_http::server(&limits, &clock)
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
        Pin::new(&mut connection).poll(cx)
    });
    let served = served.await;
    cut.served();
    let parts = connection.into_parts();
    let io = parts.io.into_inner();
    let mut is_unread = answering.is_request_unread() || !parts.read_buf.is_empty();
    if let Err(error) = served {
        tracing::debug!(client = %far_end, %error, "connection ended");
        let status = status_of_unread(&error, &answering, &parts.read_buf);
        let Some(status) = status else { return };
        unread(&worker, far_end, status, &error);
        if error.is_timeout() {
            return;
        }
        is_unread = true;
    }
    let next: Option<Next> = next.take();
    match next {
        Some(next) => {
            if let Some(stream) = io.into_stream() {
                next.start(&worker, stream, parts.read_buf, count);
            }
        }
        None if is_unread || io.has_unread() => io.linger().await,
        None => {}
    }
}

/// What the HTTP library has answered to a head that it could not read; None: that was not what has ended the
/// connection. A head that has begun and does not come whole in time gets no answer, and counts as 408.
fn status_of_unread(error: &hyper::Error, answering: &Answering, read: &[u8]) -> Option<u16> {
    if error.is_timeout() {
        return (!read.is_empty()).then_some(StatusCode::REQUEST_TIMEOUT.as_u16());
    }
    (error.is_parse() && !error.is_parse_version_h2()).then(|| answering.status())
}

/// Counts and logs what could not be read as a request.
fn unread(worker: &WorkerContext, far_end: SocketAddr, status: u16, error: &hyper::Error) {
    worker.counters.request_refused(status);
    let Some(log) = worker.access_log() else {
        return;
    };
    let request_id = forwarding::request_id(&HeaderMap::new());
    let client = canonical(far_end);
    log.request(&Requested {
        request_id: request_id.to_str().unwrap_or_default(),
        client,
        client_ip: client.ip(),
        method: None,
        path: None,
        route: None,
        target: None,
        backend: None,
        status,
        reason: Some(&error.to_string()),
        duration: None,
    });
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What a client that asks for a kept connection is told of how long it is kept (RFC 2068 section 19.7.1.1); none
/// where it does not ask.
fn told_keep_alive(request: &Request<Incoming>, timeout: Duration) -> Option<HeaderValue> {
    let says = |token| handshake::has_token(request.headers(), header::CONNECTION, token);
    let is_asked = says("keep-alive") && !says("close") && !says("upgrade");
    (is_asked && timeout.as_secs() > 0)
        .then(|| HeaderValue::try_from(format!("timeout={}", timeout.as_secs())).ok())?
}

fn tell_keep_alive(headers: &mut HeaderMap, kept_for: HeaderValue) {
    if !headers.contains_key(header::CONNECTION) {
        let keep_alive = HeaderValue::from_static("keep-alive");
        headers.insert(header::CONNECTION, keep_alive);
        headers.insert(forwarding::KEEP_ALIVE, kept_for);
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
    /// None once somebody reads it.
    body: RefCell<Option<RequestBody>>,
    /// Of this client's connection.
    bound: Rc<BoundConnections>,
    /// What a session that comes of it counts as.
    slot: Cell<Option<SessionSlot>>,
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
    bound: Rc<BoundConnections>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let is_upgrade = handshake::has_token(&head.headers, header::UPGRADE, "websocket");
    let waits_for_continue = head.headers.contains_key(header::EXPECT);
    let (method, path) = (head.method.clone(), head.uri.path().to_owned());
    let site = worker.site();
    let far_end = canonical(far_end);
    let begun = Instant::now();
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let passing = Arc::new(Passing::new(begun, waker));
    let body = passing.request(body, BODY_TIMEOUT);
    answering.ask(Arc::clone(&passing), is_upgrade);
    if waits_for_continue {
        // The library would write its 100 into the answer before.
        answering.flushed().await;
    }
    let mut exchange = Exchange {
        client_ip: forwarding::client_ip(far_end.ip(), &head.headers, &site.config.trusted_proxies),
        request_id: forwarding::request_id(&head.headers),
        host: String::new(),
        is_suspect: false,
        begun,
        passing,
        body: RefCell::new(Some(body)),
        bound,
        slot: Cell::new(None),
        worker,
        far_end,
    };
    let mut route: Option<Arc<Route>> = None;
    let unanswered = Unanswered(is_upgrade.then(|| Rc::clone(&exchange.worker)));
    let answered = match is_turned_away {
        true => Err(going_away()),
        false => exchange.lead(head, &mut route).await,
    };
    let mut answered = answered.unwrap_or_else(|refused| refused.into_answer());
    let is_last = exchange
        .end_request(&mut answered, waits_for_continue)
        .await;
    // What its backend has said before goes first.
    answering.flushed().await;
    unanswered.answered();
    let route = route.as_ref();
    exchange.count(is_upgrade, route, &answered);
    exchange.log((&method, &path), route, &answered);
    let send_timeout = route.map_or(SEND_TIMEOUT, |route| route.send_timeout);
    answering.begin(send_timeout, is_last);
    *next.borrow_mut() = answered.next;
    answered.response
}

impl Exchange {
    /// Finds the route and goes along it.
    async fn lead(
        &mut self,
        mut head: request::Parts,
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
            return at_plugin::request(self, route, plugin, head).await;
        }
        let upgrade = handshake::read_upgrade(&head, !self.passing.is_request_whole())?;
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
                at_upstream::request(self, route, upstream, head).await
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

    /// The request's body, for whoever answers it.
    fn take_body(&self, route: &Route) -> Body {
        let body = self.body.take();
        body.map_or_else(body::empty, |body| {
            body.with_timeout(route.body_timeout).boxed_unsync()
        })
    }

    /// Sees to what of the request is unread when its answer is there. True: the answer ends the connection.
    async fn end_request(&self, answered: &mut Answered, waits_for_continue: bool) -> bool {
        if answered.next.is_some() {
            return false;
        }
        // To read from one whose client waits would have the library tell it to go on.
        let unread = self.body.take().filter(|_| !waits_for_continue);
        if let Some(body) = unread {
            drain(body).await;
        }
        let is_last = !self.passing.is_request_whole() && !is_streamed(&answered.response);
        if is_last {
            close_behind(answered.response.headers_mut());
        }
        is_last
    }

    /// Counts an answer, once.
    fn count(&self, is_upgrade: bool, route: Option<&Arc<Route>>, answered: &Answered) {
        let status = answered.response.status().as_u16();
        let ends_at_http = |route: &Arc<Route>| matches!(route.target, Target::Http(_));
        if is_upgrade && !route.is_some_and(ends_at_http) {
            if let Some(result) = answered.result {
                self.worker.counters.upgrade(result);
            }
        } else if let Some(route) = route {
            self.worker.target_counters(&route.target).request(status);
        } else {
            self.worker.counters.request_refused(status);
        }
    }

    /// Logs an answer that begins no session.
    fn log(
        &self,
        (method, path): (&Method, &str),
        route: Option<&Arc<Route>>,
        answered: &Answered,
    ) {
        let log = self.worker.access_log();
        let Some(log) = log.filter(|_| answered.next.is_none()) else {
            return;
        };
        let pattern = route.map(ToString::to_string);
        log.request(&Requested {
            request_id: self.id(),
            client: self.far_end,
            client_ip: self.client_ip,
            method: Some(method.as_str()),
            path: Some(path),
            route: pattern.as_deref(),
            target: route.map(|route| log_target(&route.target)),
            backend: answered.backend.as_deref(),
            status: answered.response.status().as_u16(),
            reason: answered.reason.as_deref(),
            duration: Some(self.begun.elapsed()),
        });
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
}

/// Makes a client's head into one for a backend or plugin.
fn forward_head(head: &mut request::Parts) {
    forwarding::strip_lookalikes(&mut head.headers);
    forwarding::strip_hop_by_hop(&mut head.headers);
}

/// Reads what has come already of a body that nobody wants, so that its connection can be kept where that is all.
async fn drain(mut body: RequestBody) {
    let mut left = DRAIN_BYTES;
    let mut has_waited = false;
    loop {
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                has_waited = false;
                let n = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(n) {
                    Some(less) => left = less,
                    None => return,
                }
            }
            Poll::Ready(_) => return,
            // The library hands on what it has read when it is asked the next time.
            Poll::Pending if !has_waited => {
                has_waited = true;
                yield_now().await;
            }
            Poll::Pending => return,
        }
    }
}

/// Whether an answer may well go on for as long as its request does, as one does that sends back what comes.
fn is_streamed(answer: &Response<Body>) -> bool {
    answer.status().is_success()
        && !answer.headers().contains_key(header::CONTENT_LENGTH)
        && answer.body().size_hint().exact().is_none()
}

/// Says that nothing more is read behind this answer (RFC 9112 section 9.6).
fn close_behind(headers: &mut HeaderMap) {
    if !handshake::has_token(headers, header::CONNECTION, "close") {
        headers.append(header::CONNECTION, HeaderValue::from_static("close"));
    }
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
