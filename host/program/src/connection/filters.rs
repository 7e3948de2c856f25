//! Requests whose route has filters: those that want to be are asked before a backend is, and change
//! what it is asked; of an upgrade they look at the session's messages.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, request};
use pointsman_config::{OnFailure, Route};
use pointsman_contract::failure::PluginError;
use pointsman_contract::filter::{Admission, Direction, Filter};
use pointsman_contract::handler::Facts;
use pointsman_contract::names::PluginName;
use pointsman_contract::policy::Refusal;
use pointsman_contract::session::SessionId;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_protocol::forwarding;
use pointsman_protocol::frames::FrameTracker;
use pointsman_protocol::handshake::{self, Upgrade};
use pointsman_protocol::messages::deflate::{self, Agreement, Compressors};
use pointsman_protocol::messages::{Decoder, Encoder, End};
use pointsman_traffic::masking::masking_key;
use pointsman_traffic::session;
use pointsman_traffic::session::chain::Chain;
use pointsman_traffic::session::filtered::{Codec, Filtered, Reader};
use tokio::net::TcpStream;

use super::answers::Refused;
use super::at_handler::wanted;
use super::at_upstream::RelayedUpgrade;
use super::blame::blame;
use super::{Exchange, target_of};
use crate::context::{ConnectionCount, WorkerContext};

/// The filters of a session that is about to begin.
pub(super) struct Filters {
    id: SessionId,
    all: Vec<(Rc<dyn Filter>, Facts)>,
    on_failure: OnFailure,
    max_message_bytes: u64,
    deflate: Option<Agreement>,
}

/// A backend's upgraded stream, with filters before it.
pub(super) struct FilteredUpgrade {
    pub(super) upgraded: Box<RelayedUpgrade>,
    pub(super) filters: Filters,
}

impl Filters {
    /// Asks the filters of a route, and changes what the backend is asked as they say. None: there are
    /// none.
    ///
    /// # Errors
    /// One refuses, or has failed.
    pub(super) fn admit(
        exchange: &Exchange,
        route: &Route,
        head: &request::Parts,
        asked: &mut Upgrade,
        to_backend: &mut HeaderMap,
    ) -> Result<Option<Self>, Box<Refused>> {
        if route.filters.is_empty() {
            return Ok(None);
        }
        let mut filters = Self {
            id: SessionId::next(),
            all: Vec::with_capacity(route.filters.len()),
            on_failure: route.on_failure,
            max_message_bytes: route.shown_message_bytes(),
            deflate: None,
        };
        for name in &route.filters {
            let asking = filters.ask(exchange, route, name, head, asked, to_backend);
            if let Some(admission) = settle(exchange, route, name, asking)? {
                hide_subprotocols(&admission.hide_subprotocols, asked, to_backend);
                set_fields(&admission.set_headers, to_backend);
            }
        }
        let room = filters
            .all
            .iter()
            .map(|(filter, _)| filter.max_message_bytes());
        filters.max_message_bytes = room.fold(filters.max_message_bytes, u64::min);
        for (_, facts) in &mut filters.all {
            facts.max_message_bytes = filters.max_message_bytes;
        }
        offer_deflate(asked, to_backend);
        Ok(Some(filters))
    }

    fn ask(
        &mut self,
        exchange: &Exchange,
        route: &Route,
        name: &PluginName,
        head: &request::Parts,
        asked: &Upgrade,
        to_backend: &mut HeaderMap,
    ) -> Result<Result<Admission, Refusal>, PluginError> {
        let site = exchange.worker.site();
        let filter = exchange.worker.guests.filter(&site, name)?;
        let facts = Facts {
            offered_subprotocols: asked.subprotocols.clone(),
            ..facts(exchange, route, self.id, &*filter, head, to_backend)
        };
        let accepted = filter.accept(&facts)?;
        self.all.push((filter, facts));
        Ok(accepted)
    }

    /// A backend has accepted.
    ///
    /// # Errors
    /// It agreed on an extension in whose messages nobody could look.
    pub(super) fn agreed(&mut self, answer: &HeaderMap) -> Result<(), &'static str> {
        self.deflate = deflate::agreed(&handshake::offered_extensions(answer))?;
        let subprotocol = answer
            .get(header::SEC_WEBSOCKET_PROTOCOL)
            .and_then(|name| Some(name.to_str().ok()?.to_owned()));
        for (_, facts) in &mut self.all {
            facts.subprotocol.clone_from(&subprotocol);
        }
        Ok(())
    }

    /// For what the peer of `direction` sends; `sees`: filters look at it.
    fn reader(&self, route: &Route, end: End, sees: bool) -> Reader {
        let max = usize::try_from(self.max_message_bytes).unwrap_or(usize::MAX);
        match sees {
            true => {
                let ratio = route.max_inflate_ratio;
                let inflater = self.deflate.map(|agreed| agreed.inflater(end, ratio));
                Reader::Messages(Box::new(Decoder::new(end, max, inflater)))
            }
            false => Reader::Frames(FrameTracker::new(
                route.max_message_bytes.unwrap_or(u64::MAX),
            )),
        }
    }

    /// For what that peer is sent. What we put between frames that pass is not compressed: it would
    /// change what these refer to.
    fn encoder(&self, end: End, sees: bool, compressors: &Compressors) -> Encoder {
        let deflate = self.deflate.filter(|_| sees);
        let deflater = deflate.and_then(|agreed| agreed.deflater(end, compressors));
        match end {
            End::Server => Encoder::server(deflater),
            End::Client => Encoder::client(masking_key, deflater),
        }
    }
}

impl FilteredUpgrade {
    /// Serves until the end, and then says so wherever it matters.
    pub(super) fn run(
        self,
        worker: Rc<WorkerContext>,
        client: TcpStream,
        early: Bytes,
        count: ConnectionCount,
    ) -> impl Future<Output = ()> {
        let Self { upgraded, filters } = self;
        let RelayedUpgrade {
            stream,
            early: from_backend,
            active,
            record,
            pool,
        } = *upgraded;
        let route = Arc::clone(&record.route);
        let counters = worker.target_counters(&route.target);
        let place = session::Place {
            route: Arc::clone(&route),
            backend: Some(Arc::clone(active.backend())),
        };
        let registration = worker.register(filters.id, place);
        record.opened(&worker);
        let chain = Chain::open(&filters.all, filters.on_failure);
        let sees = |from| chain.0.wants(from);
        let (sees_up, sees_down) = (sees(Direction::FromClient), sees(Direction::FromBackend));
        let compressors = &worker.buffers.compressors;
        let to_client = Codec {
            reader: filters.reader(&route, End::Server, sees_up),
            encoder: filters.encoder(End::Server, sees_down, compressors),
            early: early.to_vec(),
        };
        let to_backend = Codec {
            reader: filters.reader(&route, End::Client, sees_down),
            encoder: filters.encoder(End::Client, sees_up, compressors),
            early: from_backend.to_vec(),
        };
        let buffers = Rc::clone(&worker.buffers);
        let mut session = Filtered::new(
            (client, to_client),
            (stream, to_backend),
            chain,
            registration,
            counters,
            buffers,
        );
        let ends_session = filters.on_failure == OnFailure::Close;
        drop((filters, early, from_backend));
        let mut reason = None;
        poll_fn(move |cx| {
            let polled = session.poll_report(cx);
            for error in session.take_failures() {
                if ends_session {
                    reason.get_or_insert_with(|| error.reason().into_boxed_str());
                }
                record.failed(&worker, &error);
            }
            let report = ready!(polled);
            record.closed(&worker, &report, reason.as_deref());
            worker
                .guests
                .session_ended(&pool, active.backend(), &report);
            // Counted until here, and open until the task is dropped.
            let _ = &count;
            Poll::Ready(())
        })
    }
}

/// Asks the filters of a route that want to be about a plain request, and changes what the backend is
/// asked as they say. No session comes of it, so the others have nothing to look at.
///
/// # Errors
/// One refuses, or has failed.
pub(super) fn admit_plain(
    exchange: &Exchange,
    route: &Route,
    head: &request::Parts,
    to_backend: &mut HeaderMap,
) -> Result<(), Box<Refused>> {
    for name in &route.filters {
        let asking = ask_about_plain(exchange, route, name, head, to_backend);
        if let Some(admission) = settle(exchange, route, name, asking)? {
            set_fields(&admission.set_headers, to_backend);
        }
    }
    Ok(())
}

fn ask_about_plain(
    exchange: &Exchange,
    route: &Route,
    name: &PluginName,
    head: &request::Parts,
    to_backend: &mut HeaderMap,
) -> Result<Result<Admission, Refusal>, PluginError> {
    let site = exchange.worker.site();
    let filter = exchange.worker.guests.filter(&site, name)?;
    if !filter.wants_accept() {
        return Ok(Ok(Admission::default()));
    }
    let id = SessionId::next();
    filter.accept(&facts(exchange, route, id, &*filter, head, to_backend))
}

/// What a filter is told of a request. The backend gets no field that it could take for one of them.
fn facts(
    exchange: &Exchange,
    route: &Route,
    session: SessionId,
    filter: &dyn Filter,
    head: &request::Parts,
    to_backend: &mut HeaderMap,
) -> Facts {
    let shown = filter.wanted_headers();
    for name in &shown {
        forwarding::strip_lookalikes_of(to_backend, name);
    }
    Facts {
        session,
        route: route.path.to_string(),
        client_ip: exchange.client_ip,
        is_suspect: exchange.is_suspect,
        host: exchange.host.clone(),
        path: target_of(head).to_owned(),
        request_id: exchange.id().to_owned(),
        max_message_bytes: 0,
        offered_subprotocols: Vec::new(),
        subprotocol: None,
        headers: wanted(shown, head),
    }
}

/// What a filter has said; none: it has failed and is passed by.
fn settle(
    exchange: &Exchange,
    route: &Route,
    name: &PluginName,
    asked: Result<Result<Admission, Refusal>, PluginError>,
) -> Result<Option<Admission>, Box<Refused>> {
    if let Err(error) = &asked {
        blame(&exchange.worker, error, exchange.id(), route);
    }
    match asked {
        Ok(Ok(admission)) => Ok(Some(admission)),
        Ok(Err(refusal)) => Err(Refused::by_plugin(refusal, UpgradeResult::FilterRefused)),
        Err(_) if route.on_failure == OnFailure::Bypass => Ok(None),
        Err(error) => Err(Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            UpgradeResult::PluginFailed,
            format!("filter {name}: {error}"),
        )),
    }
}

fn hide_subprotocols(hidden: &[String], asked: &mut Upgrade, to_backend: &mut HeaderMap) {
    if hidden.is_empty() {
        return;
    }
    asked.subprotocols.retain(|name| !hidden.contains(name));
    to_backend.remove(header::SEC_WEBSOCKET_PROTOCOL);
    let rest = HeaderValue::try_from(asked.subprotocols.join(", ")).ok();
    if let Some(rest) = rest.filter(|_| !asked.subprotocols.is_empty()) {
        to_backend.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
    }
}

/// Puts these fields in the place of the client's. One whose value cannot be sent takes the client's
/// away all the same: the backend would believe it.
fn set_fields(fields: &[(String, String)], to_backend: &mut HeaderMap) {
    let parsed = |(name, value): &(String, String)| {
        let name: HeaderName = name.parse().ok()?;
        Some((name, HeaderValue::from_str(value).ok()))
    };
    let fields: Vec<_> = fields
        .iter()
        .filter_map(parsed)
        .filter(|(name, _)| *name != header::SEC_WEBSOCKET_PROTOCOL)
        .collect();
    for (name, _) in &fields {
        to_backend.remove(name);
        forwarding::strip_lookalikes_of(to_backend, name.as_str());
    }
    for (name, value) in fields {
        if let Some(value) = value {
            to_backend.append(name, value);
        }
    }
}

/// Of the client's extensions, only what is understood here may be agreed on.
fn offer_deflate(asked: &mut Upgrade, to_backend: &mut HeaderMap) {
    let offers = handshake::offered_extensions(to_backend);
    let ours = deflate::only_deflate(&offers).and_then(|ours| HeaderValue::try_from(ours).ok());
    to_backend.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    asked.extensions.retain(|name| name == deflate::NAME);
    if let Some(ours) = ours {
        to_backend.insert(header::SEC_WEBSOCKET_EXTENSIONS, ours);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_takes_the_place_of_what_the_client_says() {
        let check = |set: &[(&str, &str)], expected: &[(&str, &str)]| {
            let mut fields = HeaderMap::new();
            for (name, value) in [
                ("x-user", "root"),
                ("x-user", "admin"),
                ("x_user", "root"),
                ("x.user", "root"),
                ("sec-websocket-protocol", "chat"),
            ] {
                let name: HeaderName = name.parse().expect("a name");
                fields.append(name, HeaderValue::from_static(value));
            }
            let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            set_fields(&set.iter().map(text).collect::<Vec<_>>(), &mut fields);
            let mut found: Vec<_> = fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
                .collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{set:?}");
        };
        let subprotocol = ("sec-websocket-protocol", "chat");
        check(
            &[("X-User", "ada"), ("x-user", "bob")],
            &[subprotocol, ("x-user", "ada"), ("x-user", "bob")],
        );
        check(&[("x-user", "a\nb")], &[subprotocol]);
        check(&[("x_user", "ada")], &[subprotocol, ("x_user", "ada")]);
        check(
            &[("sec-websocket-protocol", "x"), ("not a name", "x")],
            &[
                subprotocol,
                ("x-user", "admin"),
                ("x-user", "root"),
                ("x.user", "root"),
                ("x_user", "root"),
            ],
        );
    }
}
