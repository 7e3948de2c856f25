//! Upgrades whose route has filters: these are asked before a backend is, change what it is asked, and
//! look at the session's messages.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, request};
use tokio::net::TcpStream;

use super::at_handler::wanted;
use super::at_upstream::Upgraded;
use super::{Exchange, Refused, target_of};
use crate::admin::metrics::UpgradeResult;
use crate::config::{OnFailure, PluginName, Route};
use crate::frames::FrameTracker;
use crate::handshake::{self, Upgrade};
use crate::messages::deflate::{self, Agreement};
use crate::messages::{Decoder, Encoder, End};
use crate::session::filter::{Admission, Chain, Direction, Filter};
use crate::session::filtered::{Codec, Filtered, Reader};
use crate::session::handler::{Facts, PluginError};
use crate::session::{self, SessionId};
use crate::worker::{ConnectionCount, Worker};

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
    pub(super) upgraded: Box<Upgraded>,
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
            match filters.ask(exchange, route, name, head, asked) {
                Ok(Ok(admission)) => apply(admission, asked, to_backend),
                Ok(Err(refused)) => return Err(refused),
                Err(error) if route.on_failure == OnFailure::Bypass => {
                    tracing::debug!(filter = %name, %error, "filter is passed by");
                }
                Err(error) => {
                    return Err(Refused::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        UpgradeResult::PluginFailed,
                        format!("filter {name}: {error}"),
                    ));
                }
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
    ) -> Result<Result<Admission, Box<Refused>>, PluginError> {
        let site = exchange.worker.site();
        let filter = exchange.worker.guests.filter(&site, name)?;
        let facts = Facts {
            session: self.id,
            route: route.path.to_string(),
            client_ip: exchange.client_ip,
            host: exchange.host.clone(),
            path: target_of(head).to_owned(),
            request_id: exchange.id().to_owned(),
            max_message_bytes: 0,
            offered_subprotocols: asked.subprotocols.clone(),
            subprotocol: None,
            headers: wanted(filter.wanted_headers(), head),
        };
        let accepted = filter.accept(&facts)?;
        self.all.push((filter, facts));
        Ok(accepted.map_err(|refusal| Refused::by_plugin(refusal, UpgradeResult::FilterRefused)))
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

    /// For what the far end of `direction` sends; `sees`: filters look at it.
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

    /// For what that far end is sent. What we put between frames that pass is not compressed: it would
    /// change what these refer to.
    fn encoder(&self, end: End, sees: bool) -> Encoder {
        let deflate = self.deflate.filter(|_| sees);
        Encoder::new(end, deflate.and_then(|agreed| agreed.deflater(end)))
    }
}

impl FilteredUpgrade {
    /// Serves until the end, and then says so wherever it matters.
    pub(super) fn run(
        self,
        worker: Rc<Worker>,
        client: TcpStream,
        early: Bytes,
        count: ConnectionCount,
    ) -> impl Future<Output = ()> {
        let Self { upgraded, filters } = self;
        let Upgraded {
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
        let sees = |from| chain.as_ref().is_ok_and(|chain| chain.wants(from));
        let (sees_up, sees_down) = (sees(Direction::FromClient), sees(Direction::FromBackend));
        let to_client = Codec {
            reader: filters.reader(&route, End::Server, sees_up),
            encoder: filters.encoder(End::Server, sees_down),
            early: early.to_vec(),
        };
        let to_backend = Codec {
            reader: filters.reader(&route, End::Client, sees_down),
            encoder: filters.encoder(End::Client, sees_up),
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
        drop((filters, early, from_backend));
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

fn apply(admission: Admission, asked: &mut Upgrade, to_backend: &mut HeaderMap) {
    if !admission.hide_subprotocols.is_empty() {
        let is_hidden = |name: &String| admission.hide_subprotocols.contains(name);
        asked.subprotocols.retain(|name| !is_hidden(name));
        to_backend.remove(header::SEC_WEBSOCKET_PROTOCOL);
        let rest = HeaderValue::try_from(asked.subprotocols.join(", ")).ok();
        if let Some(rest) = rest.filter(|_| !asked.subprotocols.is_empty()) {
            to_backend.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
        }
    }
    let fields: Vec<(HeaderName, HeaderValue)> = admission
        .set_headers
        .iter()
        .filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
        .filter(|(name, _)| *name != header::SEC_WEBSOCKET_PROTOCOL)
        .collect();
    for (name, _) in &fields {
        to_backend.remove(name);
    }
    for (name, value) in fields {
        to_backend.append(name, value);
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
