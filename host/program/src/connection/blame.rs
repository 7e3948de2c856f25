//! Clients for whom a plugin fails: named in the log when it happens, and kept waiting when they come again.

use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderValue};
use pointsman_config::{Route, Target};
use pointsman_contract::failure::PluginError;
use pointsman_contract::names::PluginName;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_plugins::stats::Penalty;
use pointsman_traffic::overload::penalties::{PenaltyTurn, WAIT_MAX};
use tokio::time::{Instant, sleep_until};

use super::Exchange;
use super::answers::Refused;
use crate::context::WorkerContext;
use crate::site::Site;

/// Says for whom a plugin's call has failed and what that has cost, and has that client wait the next time.
pub(super) fn blame(worker: &WorkerContext, error: &PluginError, request_id: &str, route: &Route) {
    let Some(call) = &error.call else {
        tracing::debug!(request_id, %route, %error, "plugin failed");
        return;
    };
    // A proxy that is believed and names nobody speaks for many clients.
    let must_wait = call.is_clients_doing && !worker.is_trusted(call.client);
    let penalty = must_wait.then(|| {
        let penalties = &worker.penalties;
        penalties.add(&call.plugin, call.generation, call.client, Instant::now())
    });
    tracing::warn!(
        plugin = call.plugin.as_str(),
        generation = call.generation,
        call = call.call,
        client = %call.client,
        request_id,
        session = call.session.0,
        %route,
        scope = call.scope(),
        sessions_lost = call.n_lost.unwrap_or_default(),
        penalty_ms = penalty.map(|penalty| penalty.as_millis() as u64),
        %error,
        "plugin call failed for a client"
    );
}

impl Exchange {
    /// Waits for as long as a client has to for whom plugins of this route have failed that its request would be
    /// shown to.
    ///
    /// # Errors
    /// That is too long.
    pub(super) async fn serve_penalty(
        &mut self,
        site: &Site,
        route: &Route,
        is_upgrade: bool,
    ) -> Result<(), Box<Refused>> {
        if self.worker.penalties.is_empty() || self.worker.is_trusted(self.client_ip) {
            return Ok(());
        }
        let until = Instant::now() + WAIT_MAX;
        let handler = match &route.target {
            Target::Handler(plugin) if is_upgrade => Some(plugin),
            Target::Handler(_) | Target::Upstream(_) | Target::Http(_) => None,
        };
        let is_shown = |filter: &&PluginName| {
            let filter = || self.worker.guests.filter(site, filter);
            is_upgrade || filter().is_ok_and(|filter| filter.wants_accept())
        };
        let filters = route.filters.iter().filter(is_shown);
        for plugin in handler.into_iter().chain(filters).collect::<Vec<_>>() {
            if let Some(generation) = site.plugins.get(plugin) {
                self.is_suspect |= self.wait_turn(plugin, generation.number, until).await?;
            }
        }
        Ok(())
    }

    /// True: the client is penalized there, and its turn has come.
    async fn wait_turn(
        &self,
        plugin: &PluginName,
        generation: u64,
        until: Instant,
    ) -> Result<bool, Box<Refused>> {
        let (penalties, client) = (&self.worker.penalties, self.client_ip);
        let mut has_waited = false;
        loop {
            match penalties.turn(plugin, generation, client, Instant::now(), until) {
                PenaltyTurn::Free => return Ok(false),
                PenaltyTurn::Now => return Ok(true),
                PenaltyTurn::At(then, ticket) => {
                    if !std::mem::replace(&mut has_waited, true) {
                        self.worker.guests.penalized(plugin, Penalty::Delayed);
                    }
                    sleep_until(then).await;
                    if penalties.is_still(ticket, plugin, generation, client, Instant::now()) {
                        return Ok(true);
                    }
                }
                PenaltyTurn::TooLate(after) => {
                    self.worker.guests.penalized(plugin, Penalty::Rejected);
                    return Err(come_again(plugin, after));
                }
            }
        }
    }
}

fn come_again(plugin: &PluginName, after: Duration) -> Box<Refused> {
    let mut refused = Refused::new(
        StatusCode::TOO_MANY_REQUESTS,
        UpgradeResult::Penalized,
        format!("client penalty: plugin {plugin} has failed on what it sent"),
    );
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    refused.body = format!("{}: try again in {seconds} s", refused.status);
    let later = HeaderValue::from(seconds);
    refused.headers.insert(header::RETRY_AFTER, later);
    refused
}
