//! Upgrades whose route leads to a handler: the WebSocket ends here, in a plugin.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{StatusCode, request};
use pointsman_config::Route;
use pointsman_contract::failure::PluginError;
use pointsman_contract::handler::{Facts, Handler};
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::outbox;
use pointsman_contract::session::SessionId;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_protocol::handshake::{self, Upgrade};
use pointsman_protocol::messages::deflate::{self, Agreement};
use pointsman_protocol::messages::{Decoder, Encoder, End};
use pointsman_traffic::session::buffers::WindowRoom;
use pointsman_traffic::session::handled::Handled;
use pointsman_traffic::{session, spelling};
use tokio::net::TcpStream;

use super::answers::{Answered, Refused};
use super::blame::blame;
use super::record::{Record, SessionTarget};
use super::{Exchange, Next, target_of};
use crate::context::{ConnectionCount, WorkerContext};

/// What a session at a handler begins with.
pub(super) struct HandledUpgrade {
    handler: Rc<dyn Handler>,
    facts: Facts,
    record: Record,
    deflate: Option<Agreement>,
    window: Option<WindowRoom>,
}

/// Leads an upgrade to a handler.
pub(super) fn upgrade(
    exchange: &Exchange,
    route: &Arc<Route>,
    plugin: &PluginName,
    asked: Upgrade,
    head: request::Parts,
) -> Result<Answered, Box<Refused>> {
    let failed = |error: PluginError| {
        blame(&exchange.worker, &error, exchange.id(), route);
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            UpgradeResult::PluginFailed,
            format!("handler {plugin}: {error}"),
        )
    };
    let site = exchange.worker.site();
    let handler = exchange
        .worker
        .guests
        .handler(&site, plugin)
        .map_err(failed)?;
    let mut facts = Facts {
        session: SessionId::next(),
        route: route.path.to_string(),
        client_ip: exchange.client_ip,
        is_suspect: exchange.is_suspect,
        host: exchange.host.clone(),
        path: target_of(&head).to_owned(),
        request_id: exchange.id().to_owned(),
        max_message_bytes: route.shown_message_bytes().min(handler.max_message_bytes()),
        offered_subprotocols: asked.subprotocols.clone(),
        subprotocol: None,
        headers: wanted(handler.wanted_headers(), &head),
    };
    let subprotocol = match handler.accept(&facts).map_err(failed)? {
        Ok(subprotocol) => subprotocol.filter(|name| asked.subprotocols.contains(name)),
        Err(refusal) => return Err(Refused::by_plugin(refusal, UpgradeResult::HandlerRefused)),
    };
    facts.subprotocol.clone_from(&subprotocol);
    let mut headers = handshake::accept_headers(&asked, subprotocol.as_deref());
    let offers = handshake::offered_extensions(&head.headers);
    let deflate = deflate::accept(&offers).filter(|_| route.deflate);
    let mut window = None;
    let deflate = deflate.map(|(mut agreed, mut answer)| {
        let buffers = &exchange.worker.buffers;
        window = buffers.window_room(agreed.window_bytes(End::Server));
        if window.is_none() {
            deflate::without_client_context(&mut agreed, &mut answer);
        }
        let answer = HeaderValue::try_from(answer).ok();
        headers.extend(answer.map(|answer| (header::SEC_WEBSOCKET_EXTENSIONS, answer)));
        agreed
    });
    let record = Record::new(exchange, route, &head, SessionTarget::Handler);
    let upgraded = HandledUpgrade {
        handler,
        facts,
        record,
        deflate,
        window,
    };
    Ok(Answered::upgraded(
        headers,
        spelling::of_the_rfcs(),
        Next::Handle(Box::new(upgraded)),
    ))
}

impl HandledUpgrade {
    /// Serves until the end, and then says so wherever it matters.
    pub(super) fn run(
        self: Box<Self>,
        worker: Rc<WorkerContext>,
        client: TcpStream,
        early: Bytes,
        count: ConnectionCount,
    ) -> impl Future<Output = ()> {
        let Self {
            handler,
            facts,
            record,
            deflate,
            window,
        } = *self;
        let route = Arc::clone(&record.route);
        let max_ratio = route.max_inflate_ratio;
        let counters = worker.target_counters(&route.target);
        let place = session::Place {
            route,
            backend: None,
        };
        let registration = worker.register(facts.session, place);
        let (outbox, inbox) = outbox(handler.queue());
        let max = usize::try_from(facts.max_message_bytes).unwrap_or(usize::MAX);
        let codec = (
            Decoder::new(
                End::Server,
                max,
                deflate.map(|agreed| agreed.inflater(End::Server, max_ratio)),
            ),
            Encoder::server(
                deflate
                    .and_then(|agreed| agreed.deflater(End::Server, &worker.buffers.compressors)),
            ),
        );
        record.opened(&worker);
        let opened = handler.open(&facts, outbox);
        let buffers = Rc::clone(&worker.buffers);
        let mut session = Handled::new(
            client,
            &early,
            codec,
            opened,
            inbox,
            registration,
            counters,
            buffers,
        );
        drop((handler, facts, early));
        let mut reason = None;
        poll_fn(move |cx| {
            let polled = session.poll_report(cx);
            if let Some(error) = session.take_failure() {
                reason.get_or_insert_with(|| error.reason().into_boxed_str());
                record.failed(&worker, &error);
            }
            let report = ready!(polled);
            record.closed(&worker, &report, reason.as_deref());
            // Counted until here, and open until the task is dropped.
            let _ = (&count, &window);
            Poll::Ready(())
        })
    }
}

/// The fields of these names, in lower case, in the order received.
pub(super) fn wanted(names: Vec<String>, head: &request::Parts) -> Vec<(String, String)> {
    let text = |name: &str| {
        let values = head.headers.get_all(name).into_iter();
        let name = name.to_owned();
        values.map(move |value| {
            (
                name.clone(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
    };
    names
        .iter()
        .flat_map(|name| text(name).collect::<Vec<_>>())
        .collect()
}
