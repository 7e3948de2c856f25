//! Requests whose route leads to an HTTP plugin: it answers them.

use std::sync::Arc;

use http::{Request, StatusCode, request};
use pointsman_config::Route;
use pointsman_contract::names::PluginName;
use pointsman_contract::session::Ender;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_plugins::failure::CallError;
use pointsman_protocol::forwarding;
use pointsman_traffic::spelling;

use super::answers::{Answered, Refused, bad_body};
use super::{Exchange, forward_head};

/// Leads a request to an HTTP plugin.
pub(super) async fn request(
    exchange: &Exchange,
    route: &Arc<Route>,
    plugin: &PluginName,
    mut head: request::Parts,
) -> Result<Answered, Box<Refused>> {
    forward_head(&mut head);
    let passing = Arc::clone(&exchange.passing);
    let failed = |error: CallError| {
        // Whatever the plugin makes of it.
        if passing.aborted_by() == Some(Ender::Client) {
            return bad_body(&passing).into();
        }
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
    let request = Request::from_parts(head, exchange.take_body(route));
    let answered = exchange.worker.guests.answer(&site, plugin, request).await;
    let mut response = answered.map_err(failed)?;
    *response.extensions_mut() = spelling::of_the_rfcs();
    forwarding::strip_answer(response.status(), response.headers_mut());
    let response = exchange.follow(route, None, response);
    Ok(Answered::plain(response, None))
}
