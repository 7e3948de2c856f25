//! What is made of a generation: policies, filters, handlers, and a trial of each before it serves.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ::http::HeaderMap;
use pointsman_config::PluginSettings;
use pointsman_contract::filter::Filter as _;
use pointsman_contract::handler::Facts;
use pointsman_contract::outbox::outbox;
use pointsman_contract::policy::{Candidate, ChoiceRequest, Figures, Policy};
use pointsman_contract::session::SessionId;

use super::failure::CallError;
use super::filter::GuestFilter;
use super::generation::{Generation, Saved};
use super::handler::GuestHandler;
use super::host::PluginHost;
use super::http::GuestHttp;
use super::limits::Limits;
use super::load::LoadError;
use super::policy::GuestPolicy;

impl Generation {
    /// A policy of its own for one upstream on one worker, configured.
    ///
    /// # Errors
    /// The guest failed or refused its configuration.
    pub fn policy(
        self: &Arc<Self>,
        config: &serde_json::Value,
        host: &PluginHost,
    ) -> Result<GuestPolicy, CallError> {
        GuestPolicy::new(self, config, host)
    }

    /// What makes this plugin's sessions on one worker, with a first instance configured.
    ///
    /// # Errors
    /// As [`Generation::policy`].
    pub fn handler(
        self: &Arc<Self>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<GuestHandler, CallError> {
        GuestHandler::new(self, settings, host)
    }

    /// As [`Generation::handler`], for sessions between a client and a backend.
    ///
    /// # Errors
    /// As [`Generation::policy`].
    pub fn filter(
        self: &Arc<Self>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<GuestFilter, CallError> {
        GuestFilter::new(self, settings, host)
    }

    /// What answers requests on one worker. It makes an instance for each.
    pub fn http(self: &Arc<Self>, host: &PluginHost) -> GuestHttp {
        GuestHttp::new(self, host)
    }

    /// Configures it as a policy, hands it `candidates` and asks for one choice; then hands each of
    /// `saved` to an instance of its own.
    ///
    /// # Errors
    /// [`LoadError::NotKind`], or [`LoadError::Trial`] with what went wrong.
    pub fn trial_policy(
        self: &Arc<Self>,
        config: &serde_json::Value,
        candidates: &[Candidate],
        saved: &[Saved],
        limits: Limits,
    ) -> Result<(), LoadError> {
        self.is_kind(self.kinds().policy, "policy")?;
        let make = || self.policy(config, &PluginHost::for_trial(limits));
        let mut policy = tried(make, GuestPolicy::restore, saved)?;
        if candidates.is_empty() {
            return Ok(());
        }
        let figures = vec![Figures::default(); candidates.len()];
        let request = ChoiceRequest {
            sequence: 0,
            random: 0,
            now_ms: 0,
            client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host: "localhost",
            path: "/",
            headers: &HeaderMap::new(),
            figures: if policy.wants().figures {
                &figures
            } else {
                &[]
            },
        };
        policy
            .try_backends_changed(candidates)
            .map_err(LoadError::Trial)?;
        policy.try_choose(&request).map_err(LoadError::Trial)?;
        Ok(())
    }

    /// Instantiates and configures it as a handler, and hands each of `saved` to an instance of its
    /// own.
    ///
    /// # Errors
    /// As [`Generation::trial_policy`].
    pub fn trial_handler(
        self: &Arc<Self>,
        settings: &PluginSettings,
        saved: &[Saved],
        limits: Limits,
    ) -> Result<(), LoadError> {
        self.is_kind(self.kinds().handler, "handler")?;
        let make = || self.handler(settings, &PluginHost::for_trial(limits));
        tried(make, |handler, saved| handler.restore(saved), saved).map(drop)
    }

    /// As [`Generation::trial_handler`], as a filter.
    ///
    /// # Errors
    /// As [`Generation::trial_policy`].
    pub fn trial_filter(
        self: &Arc<Self>,
        settings: &PluginSettings,
        saved: &[Saved],
        limits: Limits,
    ) -> Result<(), LoadError> {
        self.is_kind(self.kinds().filter, "filter")?;
        let make = || self.filter(settings, &PluginHost::for_trial(limits));
        tried(make, |filter, saved| filter.restore(saved), saved).map(drop)
    }

    /// Whether it looks at the messages of a session as a filter: asked of a session that nobody has. One that
    /// does not begin looks at none.
    pub fn sees_messages(self: &Arc<Self>, settings: &PluginSettings, limits: Limits) -> bool {
        let facts = Facts {
            session: SessionId::next(),
            route: "/".to_owned(),
            client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            is_suspect: false,
            host: "localhost".to_owned(),
            path: "/".to_owned(),
            request_id: String::new(),
            max_message_bytes: limits.message_max_bytes() as u64,
            offered_subprotocols: Vec::new(),
            subprotocol: None,
            headers: Vec::new(),
        };
        let Ok(filter) = self.filter(settings, &PluginHost::for_trial(limits)) else {
            return false;
        };
        let (outbox, _inbox) = outbox(settings.queue);
        filter.open(&facts, outbox).is_ok_and(|session| {
            let interest = session.interest();
            let kinds = [interest.client, interest.backend];
            kinds.iter().any(|kinds| kinds.text || kinds.binary)
        })
    }

    /// Says whether it is an HTTP handler; its instances come into being with requests.
    ///
    /// # Errors
    /// [`LoadError::NotKind`]
    pub fn trial_http(&self) -> Result<(), LoadError> {
        self.is_kind(self.kinds().http, "http")
    }

    fn is_kind(&self, is_exported: bool, wanted: &'static str) -> Result<(), LoadError> {
        let kinds = self.kinds();
        if is_exported {
            Ok(())
        } else {
            Err(LoadError::NotKind { wanted, kinds })
        }
    }
}

/// Hands each of `saved` to an instance of its own, and makes one more.
fn tried<G>(
    make: impl Fn() -> Result<G, CallError>,
    restore: impl Fn(&mut G, &Saved) -> Result<(), CallError>,
    saved: &[Saved],
) -> Result<G, LoadError> {
    let try_all = || {
        for saved in saved {
            restore(&mut make()?, saved)?;
        }
        make()
    };
    try_all().map_err(LoadError::Trial)
}
