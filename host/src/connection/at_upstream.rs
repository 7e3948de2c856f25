//! Requests whose route leads to an upstream: the policy chooses, backends are tried in its order,
//! and the first that answers is it.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, StatusCode, request};
use hyper::body::{Body as _, Incoming};
use tokio::net::TcpStream;

use super::record::{Place, Record};
use super::{Answered, Exchange, Next, Refused, append_all};
use crate::admin::metrics::UpgradeResult;
use crate::body;
use crate::config::{Route, UpstreamName};
use crate::forwarding;
use crate::handshake::Upgrade;
use crate::proxy::ProxyError;
use crate::relay::Relay;
use crate::routing::chooser::Plan;
use crate::session::relayed::Relayed;
use crate::session::{SessionId, Timeouts};
use crate::site::Site;
use crate::upstream::dial::{self, Answer, Deadlines, DialError};
use crate::upstream::pool::{Active, Backend, Pool};
use crate::worker::guests::PolicyLabel;
use crate::worker::{ConnectionCount, Worker};

/// A backend's upgraded stream, and what the session's record says.
pub(super) struct Upgraded {
    stream: TcpStream,
    early: Bytes,
    active: Active,
    record: Record,
    pool: Arc<Pool>,
}

/// Leads an upgrade to a backend.
pub(super) async fn upgrade(
    exchange: &Exchange,
    route: &Arc<Route>,
    site: &Site,
    upstream: &UpstreamName,
    asked: Upgrade,
    head: request::Parts,
) -> Result<Answered, Box<Refused>> {
    let pool = pool(site, upstream)?;
    let choice = choose(exchange, site, pool, &head)?;
    let mut to_backend = head.clone();
    exchange.forward_head(&mut to_backend);
    let to_backend = dial::upgrade_request(to_backend);
    let mut failures = Failures::default();
    for backend in &choice.order {
        let pending = backend.dialling();
        let answer = dial::upgrade(
            backend.address(),
            to_backend.clone(),
            &asked,
            deadlines(pool),
        )
        .await;
        match answer {
            Ok(Answer::Upgraded {
                stream,
                early,
                head: mut answer,
            }) => {
                let active = pending.answered();
                let headers = &mut answer.headers;
                finish_headers(exchange, &choice, pool, backend, &head, headers);
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                let place = Place::Backend(Arc::clone(backend), choice.policy);
                let record = Record::new(exchange, route, &head, place);
                let upgraded = Upgraded {
                    stream,
                    early,
                    active,
                    record,
                    pool: Arc::clone(pool),
                };
                let next = Next::Relay(Box::new(upgraded));
                return Ok(Answered::upgraded(answer.headers, answer.extensions, next));
            }
            Ok(Answer::Refused(mut response)) => {
                drop(pending.answered());
                finish_headers(
                    exchange,
                    &choice,
                    pool,
                    backend,
                    &head,
                    response.headers_mut(),
                );
                let result = UpgradeResult::BackendRefused;
                return Ok(Answered::plain(response, result, Some(backend.address())));
            }
            Err(error) => failures.note(exchange, backend, error),
        }
    }
    Err(failures.into_refused())
}

/// Leads a plain request to a backend.
pub(super) async fn request(
    exchange: &Exchange,
    site: &Site,
    upstream: &UpstreamName,
    head: request::Parts,
    body: Incoming,
) -> Result<Answered, Box<Refused>> {
    let pool = pool(site, upstream)?;
    let choice = choose(exchange, site, pool, &head)?;
    let mut to_backend = head.clone();
    exchange.forward_head(&mut to_backend);
    to_backend.uri = dial::origin_form(&to_backend.uri);
    let again = may_send_again(&to_backend, &body).then(|| to_backend.clone());
    let mut request = Request::from_parts(to_backend, body::incoming(body));
    let mut failures = Failures::default();
    for backend in &choice.order {
        let pending = backend.dialling();
        match exchange
            .worker
            .connections
            .send(backend.address(), request, deadlines(pool))
            .await
        {
            Ok(response) => {
                let active = pending.answered();
                let hold = |answer| body::holding(body::incoming(answer), active);
                let mut response = response.map(hold);
                finish_headers(
                    exchange,
                    &choice,
                    pool,
                    backend,
                    &head,
                    response.headers_mut(),
                );
                let result = UpgradeResult::BackendRefused;
                return Ok(Answered::plain(response, result, Some(backend.address())));
            }
            Err(ProxyError::NotSent(error, unsent)) => {
                failures.note(exchange, backend, error);
                request = *unsent;
            }
            Err(ProxyError::Lost(error)) => {
                failures.note(exchange, backend, error);
                match &again {
                    Some(head) => request = Request::from_parts(head.clone(), body::empty()),
                    None => break,
                }
            }
        }
    }
    Err(failures.into_refused())
}

/// Whether a request that a backend may have seen can go to another: it has no body to lose, and
/// says itself that twice is as good as once (RFC 9110 section 9.2.2).
fn may_send_again(head: &request::Parts, body: &Incoming) -> bool {
    head.method.is_idempotent() && body.is_end_stream()
}

impl Upgraded {
    /// Relays until the end, and then says so wherever it matters.
    pub(super) fn run(
        self: Box<Self>,
        worker: Rc<Worker>,
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
        relay.preload(&early, &from_backend);
        drop((early, from_backend));
        let timeouts = Timeouts {
            idle: route.idle_timeout,
            ping: route.ping_interval,
        };
        let registration = worker.sessions.register(SessionId::next(), timeouts);
        let counters = worker.target_counters(&route.target);
        let (scratch, pipe) = (Rc::clone(&worker.scratch), worker.pipe.clone());
        let mut session = Relayed::new(relay, registration, counters, scratch, pipe);
        record.opened(&worker);
        poll_fn(move |cx| {
            let report = ready!(session.poll_report(cx));
            record.closed(&worker, &report);
            worker
                .guests
                .session_ended(&pool, active.backend(), &report);
            // Counted until here, and open until the task is dropped.
            let _ = &count;
            Poll::Ready(())
        })
    }
}

fn pool<'a>(site: &'a Site, upstream: &UpstreamName) -> Result<&'a Arc<Pool>, Box<Refused>> {
    let gone = || {
        Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            UpgradeResult::NoBackend,
            "the upstream is gone",
        )
    };
    site.pools.get(upstream).ok_or_else(gone)
}

fn deadlines(pool: &Pool) -> Deadlines {
    Deadlines {
        connect: pool.config.connect_timeout,
        response: pool.config.response_timeout,
    }
}

/// Whom to try, and who says so.
struct Choice {
    /// Never empty.
    order: Vec<Arc<Backend>>,
    policy: Arc<PolicyLabel>,
}

fn choose(
    exchange: &Exchange,
    site: &Site,
    pool: &Pool,
    head: &request::Parts,
) -> Result<Choice, Box<Refused>> {
    let guests = &exchange.worker.guests;
    let (plan, policy) = guests.choose(site, pool, &exchange.facts(head));
    match plan {
        Plan::Dial(order) => Ok(Choice { order, policy }),
        Plan::Refuse(refusal) => Err(Refused::by_plugin(refusal, UpgradeResult::PolicyRefused)),
        Plan::Redirect { status, location } => Err(redirect(status, &location)),
        Plan::NoBackend => Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            UpgradeResult::NoBackend,
            "no backend can take it",
        )),
    }
}

/// Makes the fields of a backend's answer into those of the client's.
fn finish_headers(
    exchange: &Exchange,
    choice: &Choice,
    pool: &Pool,
    backend: &Backend,
    head: &request::Parts,
    headers: &mut HeaderMap,
) {
    forwarding::strip_hop_by_hop(headers);
    let guests = &exchange.worker.guests;
    let added = guests.placed(&choice.policy, pool, backend, &exchange.facts(head));
    append_all(headers, added);
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
        &mut refused.headers,
        vec![("location".to_owned(), location.to_owned())],
    );
    refused
}

/// The backends that were tried in vain.
#[derive(Default)]
struct Failures {
    last: Option<DialError>,
    n_tried: u32,
}

impl Failures {
    fn note(&mut self, exchange: &Exchange, backend: &Backend, error: DialError) {
        backend.failed();
        tracing::info!(backend = backend.address(), request_id = exchange.id(), %error, "backend failed");
        self.last = Some(error);
        self.n_tried += 1;
    }

    fn into_refused(self) -> Box<Refused> {
        let Some(error) = self.last else {
            return Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                UpgradeResult::NoBackend,
                "no backend can take it",
            );
        };
        let result = match error.status() {
            StatusCode::GATEWAY_TIMEOUT => UpgradeResult::Timeout,
            _ => UpgradeResult::BackendFailed,
        };
        let reason = format!("{} backends tried; the last: {error}", self.n_tried);
        Refused::new(error.status(), result, reason)
    }
}
