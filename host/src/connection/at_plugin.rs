//! Requests whose route leads to an HTTP plugin: it answers them.

use http::{Request, StatusCode, request};
use hyper::body::Incoming;

use super::{Answered, Exchange, Refused};
use crate::admin::metrics::UpgradeResult;
use crate::body;
use crate::config::PluginName;
use crate::forwarding;
use crate::plugins::failure::CallError;

/// Leads a request to an HTTP plugin.
pub(super) async fn request(
    exchange: &Exchange,
    plugin: &PluginName,
    mut head: request::Parts,
    body: Incoming,
) -> Result<Answered, Box<Refused>> {
    exchange.forward_head(&mut head);
    let failed = |error: CallError| {
        let status = match error.kind() {
            "timeout" => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        Refused::new(
            status,
            UpgradeResult::PluginFailed,
            format!("http plugin {plugin}: {error}"),
        )
    };
    let site = exchange.worker.site();
    let request = Request::from_parts(head, body::incoming(body));
    let answered = exchange.worker.guests.answer(&site, plugin, request).await;
    let mut response = answered.map_err(failed)?;
    forwarding::strip_hop_by_hop(response.headers_mut());
    Ok(Answered::plain(response, UpgradeResult::Accepted, None))
}
