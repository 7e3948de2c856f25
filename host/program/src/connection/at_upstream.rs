//! Requests whose route leads to an upstream: the policy chooses, backends are tried in its order,
//! and the first that answers is it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, StatusCode, request};
use hyper::body::Body as _;
use pointsman_config::{OnBackendLoss, Route, UpstreamName};
use pointsman_contract::close;
use pointsman_contract::session::SessionId;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_protocol::forwarding;
use pointsman_protocol::handshake::Upgrade;
use pointsman_traffic::body::{self, Body};
use pointsman_traffic::proxy::{ProxyError, Sending};
use pointsman_traffic::relay::Relay;
use pointsman_traffic::routing::chooser::Plan;
use pointsman_traffic::session;
use pointsman_traffic::session::relayed::Relayed;
use pointsman_traffic::upstream::dial::{self, Deadlines, DialError, UpgradeAnswer};
use pointsman_traffic::upstream::fitness::ConnectTrial;
use pointsman_traffic::upstream::pool::{
    Active, Backend, BackendFailure, Ejected, PendingDial, Pool,
};
use pointsman_traffic::upstream::tls::BackendStream;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};

use super::answers::{Answered, Refused, append_all, bad_body, overloaded};
use super::filters::{self, FilteredUpgrade, Filters};
use super::record::{Record, SessionTarget};
use super::{Exchange, Next, forward_head};
use crate::context::guests::PolicyLabel;
use crate::context::{ConnectionCount, WorkerContext};
use crate::site::Site;

/// How often who waits for room looks for itself: room can come without a sign, as when an ejection
/// is over.
const QUEUE_LOOK: Duration = Duration::from_millis(250);
/// In seconds, for a client that found no room (RFC 9110 section 10.2.3).
const RETRY_AFTER_FULL: HeaderValue = HeaderValue::from_static("1");

/// A backend's upgraded stream, and what the session's record says.
pub(super) struct RelayedUpgrade {
    pub(super) stream: BackendStream,
    pub(super) early: Bytes,
    pub(super) active: Active,
    pub(super) record: Record,
    pub(super) pool: Arc<Pool>,
}

/// Leads an upgrade to a backend.
pub(super) async fn upgrade(
    exchange: &Exchange,
    route: &Arc<Route>,
    upstream: &UpstreamName,
    mut asked: Upgrade,
    head: request::Parts,
) -> Result<Answered, Box<Refused>> {
    let mut to_backend = head.clone();
    forward_head(&mut to_backend);
    if !route.deflate {
        to_backend.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        asked.extensions.clear();
    }
    let headers = &mut to_backend.headers;
    let mut filters = Filters::admit(exchange, route, &head, &mut asked, headers)?;
    let mut choice = place(exchange, upstream, &head).await?;
    let pool = Arc::clone(&choice.pool);
    choice.strip_lookalikes(exchange, &mut to_backend.headers);
    let to_backend = exchange.passing.relay(dial::upgrade_request(to_backend));
    let mut failures = DialFailures::default();
    while let Some(pending) = choice.next(&mut failures)? {
        let backend = &Arc::clone(pending.backend());
        let answer = dial::upgrade(
            pool.way_to(backend),
            to_backend.clone(),
            &asked,
            upgrade_deadlines(&pool),
        )
        .await;
        match answer {
            Ok(UpgradeAnswer::Upgraded {
                stream,
                early,
                head: mut answer,
            }) => {
                let agreed = filters
                    .as_mut()
                    .map_or(Ok(()), |filters| filters.agreed(&answer.headers));
                if let Err(reason) = agreed {
                    let failure = BackendFailure::BadAnswer;
                    let error = DialError::BadHandshake(reason);
                    failures.note(exchange, &pool, backend, failure, error);
                    continue;
                }
                let active = pending.answered(true);
                let (status, headers) = (answer.status, &mut answer.headers);
                finish_headers(exchange, &choice, backend, &head, status, headers);
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                let place = SessionTarget::Backend(Arc::clone(backend), choice.policy);
                let record = Record::new(exchange, route, &head, place);
                let upgraded = Box::new(RelayedUpgrade {
                    stream,
                    early,
                    active,
                    record,
                    pool,
                });
                let next = match filters {
                    None => Next::Relay(upgraded),
                    Some(filters) => Next::Filter(Box::new(FilteredUpgrade { upgraded, filters })),
                };
                return Ok(Answered::upgraded(answer.headers, answer.extensions, next));
            }
            Ok(UpgradeAnswer::Refused(mut response)) => {
                let status = response.status();
                if status.is_server_error() {
                    let reason = format!("it answered {status}");
                    pool.failed(backend, BackendFailure::BadAnswer, &reason);
                }
                drop(pending.answered(!status.is_server_error()));
                let headers = response.headers_mut();
                finish_headers(exchange, &choice, backend, &head, status, headers);
                let response = exchange.follow(route, Some(backend), response);
                return Ok(Answered {
                    result: Some(UpgradeResult::BackendRefused),
                    ..Answered::plain(response, Some(backend.address()))
                });
            }
            Err(error) => {
                let failure = failure(&error, BackendFailure::LateUpgrade);
                failures.note(exchange, &pool, backend, failure, error);
                // A slow backend still has what this client belongs to.
                if choice.is_by_key && failure == BackendFailure::LateUpgrade {
                    break;
                }
            }
        }
    }
    Err(failures.into_refused())
}

/// Leads a plain request to a backend.
pub(super) async fn request(
    exchange: &Exchange,
    route: &Arc<Route>,
    upstream: &UpstreamName,
    head: request::Parts,
) -> Result<Answered, Box<Refused>> {
    let mut to_backend = head.clone();
    forward_head(&mut to_backend);
    filters::admit_plain(exchange, route, &head, &mut to_backend.headers)?;
    let mut choice = place(exchange, upstream, &head).await?;
    choice.stay_bound(exchange);
    let pool = Arc::clone(&choice.pool);
    choice.strip_lookalikes(exchange, &mut to_backend.headers);
    let body = exchange.take_body(route);
    forwarding::frame_body(&mut to_backend.headers, body.size_hint().exact());
    to_backend.uri = dial::origin_form(&to_backend.uri);
    let passing = &exchange.passing;
    let to_backend = passing.relay(to_backend);
    let again = may_send_again(&to_backend, &body).then(|| to_backend.clone());
    let mut request = Request::from_parts(to_backend, body);
    let sending = Sending {
        again: again.as_ref(),
        deadlines: Deadlines {
            connect: pool.config.connect_timeout,
            response: route.head_timeout.unwrap_or(pool.config.head_timeout),
        },
        passing,
        bound: &exchange.bound,
    };
    let mut failures = DialFailures::default();
    while let Some(mut pending) = choice.next(&mut failures)? {
        let backend = &Arc::clone(pending.backend());
        match exchange
            .worker
            .connections
            .send(pool.way_to(backend), request, sending)
            .await
        {
            Ok(response) => {
                let is_owing = passing.is_client_owing();
                // Of half a request a backend may make what it likes.
                let is_gateway_error = matches!(response.status().as_u16(), 502..=504) && !is_owing;
                if is_gateway_error {
                    let reason = format!("it answered {}", response.status());
                    pool.failed(backend, BackendFailure::BadAnswer, &reason);
                }
                pending.held_up_until((!is_owing).then(|| passing.client_held_up_until()));
                let active = pending.answered(!is_gateway_error);
                let hold = |answer| body::holding(body::incoming(answer), active);
                let mut response = response.map(hold);
                let (status, headers) = (response.status(), response.headers_mut());
                finish_headers(exchange, &choice, backend, &head, status, headers);
                let response = exchange.follow(route, Some(backend), response);
                return Ok(Answered::plain(response, Some(backend.address())));
            }
            Err(ProxyError::NotSent(error, unsent)) => {
                let failure = failure(&error, BackendFailure::LateAnswer);
                failures.note(exchange, &pool, backend, failure, error);
                request = *unsent;
            }
            // Counted against the backend, it would let any client have a good one ejected.
            Err(ProxyError::Lost(DialError::Exchange(error))) if error.is_user() => {
                return Err(bad_body(passing).into());
            }
            // Nor when it gave up on a client that did not go on, or had closed a kept connection.
            Err(ProxyError::Lost(error)) if passing.is_client_owing() => {
                failures.note_innocent(error);
                break;
            }
            Err(ProxyError::Stale(error)) => {
                failures.note_innocent(error);
                break;
            }
            Err(ProxyError::Lost(error)) => {
                let failure = failure(&error, BackendFailure::LateAnswer);
                failures.note(exchange, &pool, backend, failure, error);
                let may_repeat = match failure {
                    // No proof that nothing happened.
                    BackendFailure::LateAnswer => pool.config.retry_on_timeout,
                    _ => true,
                };
                match &again {
                    Some(head) if may_repeat && !choice.is_by_key => {
                        request = Request::from_parts(head.clone(), body::empty());
                    }
                    _ => break,
                }
            }
        }
    }
    Err(failures.into_refused())
}

/// Whether a request that a backend may have seen can go to another: it has no body to lose, and
/// says itself that twice is as good as once (RFC 9110 section 9.2.2).
fn may_send_again(head: &request::Parts, body: &Body) -> bool {
    head.method.is_idempotent() && body.is_end_stream()
}

impl RelayedUpgrade {
    /// Relays until the end, and then says so wherever it matters.
    pub(super) fn run(
        self: Box<Self>,
        worker: Rc<WorkerContext>,
        client: TcpStream,
        early: Bytes,
        count: ConnectionCount,
    ) -> impl Future<Output = ()> {
        let Self {
            stream,
            early: from_backend,
            active,
            record,
            pool,
        } = *self;
        let route = Arc::clone(&record.route);
        let mut relay = Relay::new(client, stream, route.max_message_bytes.unwrap_or(u64::MAX));
        if route.on_backend_loss == OnBackendLoss::Close {
            relay.on_backend_loss_close(close::SERVICE_RESTART);
        }
        relay.preload(&early, &from_backend);
        drop((early, from_backend));
        let counters = worker.target_counters(&route.target);
        let place = session::Place {
            route,
            backend: Some(Arc::clone(active.backend())),
        };
        let registration = worker.register(SessionId::next(), place);
        let (buffers, pipe) = (Rc::clone(&worker.buffers), worker.pipe.clone());
        let mut session = Relayed::new(relay, registration, counters, buffers, pipe);
        record.opened(&worker);
        poll_fn(move |cx| {
            let report = ready!(session.poll_report(cx));
            record.closed(&worker, &report, None);
            worker
                .guests
                .session_ended(&pool, active.backend(), &report);
            // Counted until here, and open until the task is dropped.
            let _ = &count;
            Poll::Ready(())
        })
    }
}

/// What it means for a backend that this came of a dial. `late`: an answer that did not come in time.
fn failure(error: &DialError, late: BackendFailure) -> BackendFailure {
    match error {
        DialError::Connect(_) | DialError::ConnectTimeout(_) | DialError::Tls(_) => {
            BackendFailure::Unreachable
        }
        DialError::ResponseTimeout(_) => late,
        DialError::Resolve(_) | DialError::Exchange(_) | DialError::BadHandshake(_) => {
            BackendFailure::BadAnswer
        }
    }
}

fn upgrade_deadlines(pool: &Pool) -> Deadlines {
    Deadlines {
        connect: pool.config.connect_timeout,
        response: pool.config.response_timeout,
    }
}

/// Whom to try, and who says so.
struct Choice {
    /// Its place is taken already.
    first: Option<PendingDial>,
    others: std::vec::IntoIter<Arc<Backend>>,
    /// The first is where the request belongs: what it may have seen, no other gets.
    is_by_key: bool,
    policy: Arc<PolicyLabel>,
    pool: Arc<Pool>,
}

impl Choice {
    /// Takes out what a backend could take for a field that the policy has gone by.
    fn strip_lookalikes(&self, exchange: &Exchange, headers: &mut HeaderMap) {
        let guests = &exchange.worker.guests;
        for name in guests.shown_headers(&self.policy, &self.pool) {
            forwarding::strip_lookalikes_of(headers, &name);
        }
    }

    /// Leads to the backend that has authenticated this client's connection, if there is one.
    fn stay_bound(&mut self, exchange: &Exchange) {
        if exchange.bound.is_empty() {
            return;
        }
        let pool = &self.pool;
        let is_bound = |backend: &&Arc<Backend>| {
            !backend.config.is_draining && exchange.bound.has(pool.way_to(backend))
        };
        let bound = self.pool.backends.iter().find(is_bound);
        if let Some(dial) = bound.and_then(Backend::dialling) {
            self.first = Some(dial);
            self.others = Vec::new().into_iter();
            self.is_by_key = true;
        }
    }

    /// Begins with the next backend that has room; none: all were tried.
    ///
    /// # Errors
    /// So much was tried again already that this is not.
    fn next(&mut self, failures: &mut DialFailures) -> Result<Option<PendingDial>, Box<Refused>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        for backend in self.others.by_ref() {
            if !self.pool.may_retry() {
                return Err(std::mem::take(failures).into_refused());
            }
            if let Some(pending) = backend.dialling() {
                return Ok(Some(pending));
            }
        }
        Ok(None)
    }
}

/// Has the policy choose; where every backend has its `max_sessions`, waits for room.
async fn place(
    exchange: &Exchange,
    upstream: &UpstreamName,
    head: &request::Parts,
) -> Result<Choice, Box<Refused>> {
    let pool = pool(&exchange.worker.site(), upstream)?;
    pool.request_begins();
    // Who comes later does not overtake those who wait.
    if pool.queue().is_empty()
        && let Some(choice) = choose(exchange, upstream, head)?
    {
        return Ok(choice);
    }
    let queue = pool.config.queue;
    let ticket = pool.queue().enter(queue.max).ok_or_else(full)?;
    let deadline = Instant::now() + queue.timeout;
    loop {
        let mut turn = pin!(ticket.turn());
        turn.as_mut().enable();
        loop {
            if let Some(choice) = choose(exchange, upstream, head)? {
                // There may be room for more than one.
                if choice.pool.tier(Instant::now()).is_ok() {
                    pool.queue().wake_one();
                }
                return Ok(choice);
            }
            let look_again = deadline.min(Instant::now() + QUEUE_LOOK);
            tokio::select! {
                () = turn.as_mut() => break,
                () = sleep_until(look_again) => {}
            }
            if Instant::now() >= deadline {
                return Err(full());
            }
        }
    }
}

/// None: every backend has its `max_sessions`.
fn choose(
    exchange: &Exchange,
    upstream: &UpstreamName,
    head: &request::Parts,
) -> Result<Option<Choice>, Box<Refused>> {
    let site = exchange.worker.site();
    let pool = pool(&site, upstream)?;
    let guests = &exchange.worker.guests;
    let (plan, policy) = guests.choose(&site, &pool, &exchange.facts(head));
    match plan {
        Plan::Dial { order, is_by_key } => {
            let mut others = order.into_iter();
            // Another worker may have taken the last place since.
            let first = others.next().and_then(|backend| backend.dialling());
            Ok(first.map(|first| Choice {
                first: Some(first),
                others,
                is_by_key,
                policy,
                pool,
            }))
        }
        Plan::Refuse(refusal) => Err(Refused::by_plugin(refusal, UpgradeResult::PolicyRefused)),
        Plan::Redirect { status, location } => Err(redirect(status, &location)),
        Plan::NoBackend => Err(nobody()),
        Plan::Full => Ok(None),
    }
}

fn pool(site: &Site, upstream: &UpstreamName) -> Result<Arc<Pool>, Box<Refused>> {
    site.pools.get(upstream).cloned().ok_or_else(nobody)
}

fn nobody() -> Box<Refused> {
    Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        UpgradeResult::NoBackend,
        "no backend can take it",
    )
}

fn full() -> Box<Refused> {
    let mut refused = Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        UpgradeResult::NoBackend,
        "every backend has its max_sessions",
    );
    refused
        .headers
        .insert(header::RETRY_AFTER, RETRY_AFTER_FULL);
    refused
}

/// Connects to a backend that is out because that failed, until it works, or the backend is no more. So no client
/// waits for it.
async fn find_again(
    worker: Rc<WorkerContext>,
    upstream: UpstreamName,
    backend: Arc<Backend>,
    mut trial: ConnectTrial,
) {
    loop {
        sleep(trial.delay()).await;
        let pool = worker.site().pools.get(&upstream).cloned();
        let pool = pool.filter(|pool| pool.has(&backend));
        let Some(pool) = pool.filter(|_| backend.fitness().is_due(&trial)) else {
            return;
        };
        match dial::connect(pool.way_to(&backend), pool.config.connect_timeout).await {
            Ok(_) => return backend.reached(),
            Err(error) => {
                let now = Instant::now();
                (backend.fitness()).still_unreachable(error.to_string(), &trial, now);
            }
        }
    }
}

/// Makes the fields of a backend's answer into those of the client's.
fn finish_headers(
    exchange: &Exchange,
    choice: &Choice,
    backend: &Backend,
    head: &request::Parts,
    status: StatusCode,
    headers: &mut HeaderMap,
) {
    forwarding::strip_answer(status, headers);
    let guests = &exchange.worker.guests;
    let added = guests.placed(&choice.policy, &choice.pool, backend, &exchange.facts(head));
    append_all(status, headers, added);
}

fn redirect(status: u16, location: &str) -> Box<Refused> {
    let status = match status {
        301 | 302 | 303 | 308 => {
            StatusCode::from_u16(status).unwrap_or(StatusCode::TEMPORARY_REDIRECT)
        }
        _ => StatusCode::TEMPORARY_REDIRECT,
    };
    let mut refused = Refused::new(
        status,
        UpgradeResult::PolicyRefused,
        "redirected by the policy",
    );
    append_all(
        status,
        &mut refused.headers,
        vec![("location".to_owned(), location.to_owned())],
    );
    refused
}

/// The backends that were tried in vain.
#[derive(Default)]
struct DialFailures {
    last: Option<DialError>,
    n_tried: u32,
}

impl DialFailures {
    fn note(
        &mut self,
        exchange: &Exchange,
        pool: &Pool,
        backend: &Arc<Backend>,
        failure: BackendFailure,
        error: DialError,
    ) {
        let reason = error.to_string();
        tracing::debug!(
            backend = backend.address(),
            request_id = exchange.id(),
            reason,
            "dial failed"
        );
        match error.is_ours() {
            true => pool.not_dialled(backend, &reason),
            false => {
                let out = pool.failed(backend, failure, &reason);
                if let Some(Ejected::UntilReached(trial)) = out {
                    let worker = Rc::clone(&exchange.worker);
                    let upstream = pool.config.name.clone();
                    tokio::task::spawn_local(find_again(
                        worker,
                        upstream,
                        Arc::clone(backend),
                        trial,
                    ));
                }
            }
        }
        self.note_innocent(error);
    }

    /// One that is not the backend's doing.
    fn note_innocent(&mut self, error: DialError) {
        self.last = Some(error);
        self.n_tried += 1;
    }

    fn into_refused(self) -> Box<Refused> {
        let Some(error) = self.last else {
            return full();
        };
        let result = match error.status() {
            StatusCode::GATEWAY_TIMEOUT => UpgradeResult::Timeout,
            _ => UpgradeResult::BackendFailed,
        };
        let reason = format!("{} backends tried; the last: {error}", self.n_tried);
        if error.is_ours() {
            return overloaded(reason);
        }
        Refused::new(error.status(), result, reason)
    }
}
