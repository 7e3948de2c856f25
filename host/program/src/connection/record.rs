//! What is kept of a session's handshake while it lives: for the access log, small.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::HeaderValue;
use http::{Method, request};
use pointsman_admin::access_log::{Closed, Opened, Session};
use pointsman_config::Route;
use pointsman_contract::failure::PluginError;
use pointsman_contract::session::EndReport;
use pointsman_traffic::upstream::pool::Backend;

use super::blame::blame;
use super::{Exchange, log_target};
use crate::context::WorkerContext;
use crate::context::guests::PolicyLabel;
use crate::context::loads::SessionSlot;

/// The handshake of one session.
pub(super) struct Record {
    request_id: HeaderValue,
    client: SocketAddr,
    client_ip: IpAddr,
    method: Method,
    path: Box<str>,
    pub(super) route: Arc<Route>,
    place: SessionTarget,
    _slot: Option<SessionSlot>,
}

/// Where a session was placed.
pub(super) enum SessionTarget {
    /// At a backend, by this policy.
    Backend(Arc<Backend>, Arc<PolicyLabel>),
    /// At a handler.
    Handler,
}

impl Record {
    pub(super) fn new(
        exchange: &Exchange,
        route: &Arc<Route>,
        head: &request::Parts,
        place: SessionTarget,
    ) -> Self {
        Self {
            request_id: exchange.request_id.clone(),
            client: exchange.far_end,
            client_ip: exchange.client_ip,
            method: head.method.clone(),
            path: head.uri.path().into(),
            route: Arc::clone(route),
            place,
            _slot: exchange.slot.take(),
        }
    }

    /// Logs that the session begins.
    pub(super) fn opened(&self, worker: &WorkerContext) {
        let Some(log) = worker.access_log() else {
            return;
        };
        let route = self.route.to_string();
        log.open(&Opened {
            session: self.session(&route),
            method: self.method.as_str(),
            path: &self.path,
        });
    }

    /// A plugin has failed in it.
    pub(super) fn failed(&self, worker: &WorkerContext, error: &PluginError) {
        let request_id = self.request_id.to_str().unwrap_or_default();
        blame(worker, error, request_id, &self.route);
    }

    /// Logs that it has ended. `reason`: which plugin has ended it by failing.
    pub(super) fn closed(&self, worker: &WorkerContext, report: &EndReport, reason: Option<&str>) {
        let Some(log) = worker.access_log() else {
            return;
        };
        let route = self.route.to_string();
        log.close(&Closed {
            session: self.session(&route),
            report,
            reason,
        });
    }

    fn session<'a>(&'a self, route: &'a str) -> Session<'a> {
        let (backend, policy, generation) = match &self.place {
            SessionTarget::Backend(backend, policy) => (
                Some(backend.address()),
                Some(policy.name.as_str()),
                Some(policy.generation),
            ),
            SessionTarget::Handler => (None, None, None),
        };
        Session {
            request_id: self.request_id.to_str().unwrap_or_default(),
            client: self.client,
            client_ip: self.client_ip,
            route,
            target: log_target(&self.route.target),
            backend,
            policy,
            policy_generation: generation,
        }
    }
}
