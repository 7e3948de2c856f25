//! Plugins at work on one worker: for each upstream its policy, for each name its filter and handler.
//!
//! Each follows the snapshot: the first use after a change makes a new instance, hands it the state
//! of the one before, and lets that one go. Sessions that are open keep the instance they began with.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use pointsman_config::{PluginSettings, UpstreamName};
use pointsman_contract::failure::PluginError;
use pointsman_contract::filter::Filter;
use pointsman_contract::handler::Handler;
use pointsman_contract::names::PluginName;
use pointsman_contract::policy::{Policy as _, PolicyError};
use pointsman_contract::session::EndReport;
use pointsman_plugins::failure::CallError;
use pointsman_plugins::filter::GuestFilter;
use pointsman_plugins::generation::{Generation, Saved};
use pointsman_plugins::handler::GuestHandler;
use pointsman_plugins::host::PluginHost;
use pointsman_plugins::limits::Limits;
use pointsman_plugins::policy::GuestPolicy;
use pointsman_plugins::stats::Penalty;
use pointsman_traffic::body::Body;
use pointsman_traffic::routing::chooser::{Chooser, Plan, RequestFacts};
use pointsman_traffic::upstream::pool::{Backend, Pool};

use crate::site::Site;

/// All plugins at work on one worker.
#[derive(Debug)]
pub(crate) struct Guests {
    host: PluginHost,
    policies: RefCell<HashMap<UpstreamName, PolicyAtWork>>,
    filters: RefCell<HashMap<PluginName, AtWork<GuestFilter>>>,
    handlers: RefCell<HashMap<PluginName, AtWork<GuestHandler>>>,
}

/// Which policy placed a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicyLabel {
    /// The plugin.
    pub name: PluginName,
    /// 0 where the plugin could not be had and the host's own round robin chose.
    pub generation: u64,
}

/// What the instances of one plugin on one worker know.
#[derive(Debug, Default)]
pub(crate) struct States {
    /// Of policies, by upstream.
    pub policies: Vec<(UpstreamName, Saved)>,
    /// As a filter.
    pub filters: Vec<Saved>,
    /// As a handler.
    pub handlers: Vec<Saved>,
}

/// One upstream's policy. It is another one as soon as any of this differs.
#[derive(Debug)]
struct PolicyAtWork {
    label: Arc<PolicyLabel>,
    config: serde_json::Value,
    limits: Limits,
    chooser: Chooser<GuestPolicy>,
    /// What it takes the place of, until its first instance has been made.
    before: Option<GuestPolicy>,
}

/// One filter or handler. It is another one as soon as any of this differs.
#[derive(Debug)]
struct AtWork<G> {
    generation: u64,
    settings: Option<PluginSettings>,
    limits: Limits,
    guest: Rc<G>,
}

/// A plugin that has sessions.
trait HasSessions: Sized {
    fn make(
        generation: &Arc<Generation>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<Self, CallError>;
    fn save(&self) -> Result<Option<Saved>, CallError>;
    fn restore(&self, saved: &Saved) -> Result<(), CallError>;
}

impl HasSessions for GuestFilter {
    fn make(
        generation: &Arc<Generation>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<Self, CallError> {
        generation.filter(settings, host)
    }

    fn save(&self) -> Result<Option<Saved>, CallError> {
        Self::save(self)
    }

    fn restore(&self, saved: &Saved) -> Result<(), CallError> {
        Self::restore(self, saved)
    }
}

impl HasSessions for GuestHandler {
    fn make(
        generation: &Arc<Generation>,
        settings: &PluginSettings,
        host: &PluginHost,
    ) -> Result<Self, CallError> {
        generation.handler(settings, host)
    }

    fn save(&self) -> Result<Option<Saved>, CallError> {
        Self::save(self)
    }

    fn restore(&self, saved: &Saved) -> Result<(), CallError> {
        Self::restore(self, saved)
    }
}

impl Guests {
    /// Nothing is made before it is used.
    pub(crate) fn new(host: PluginHost) -> Self {
        Self {
            host,
            policies: RefCell::default(),
            filters: RefCell::default(),
            handlers: RefCell::default(),
        }
    }

    /// Asks an upstream's policy about a request; says who was asked.
    pub(crate) fn choose(
        &self,
        site: &Site,
        pool: &Pool,
        facts: &RequestFacts<'_>,
    ) -> (Plan, Arc<PolicyLabel>) {
        let generation = site.plugins.get(&pool.config.policy);
        let mut policies = self.policies.borrow_mut();
        let next = || PolicyAtWork::new(site, pool);
        let policy = policies
            .entry(pool.config.name.clone())
            .or_insert_with(next);
        if !policy.is_for(site, pool) {
            policy.replace(PolicyAtWork::new(site, pool));
        }
        let PolicyAtWork {
            label,
            chooser,
            before,
            ..
        } = policy;
        let mut make = || match generation {
            Some(generation) => self.make_policy(generation, pool, before.take()),
            None => Err(PolicyError("it is not loaded".to_owned())),
        };
        (chooser.choose(pool, facts, &mut make), Arc::clone(label))
    }

    /// A backend has accepted: what the policy that placed it adds to the client's answer.
    pub(crate) fn placed(
        &self,
        by: &PolicyLabel,
        pool: &Pool,
        backend: &Backend,
        facts: &RequestFacts<'_>,
    ) -> Vec<(String, String)> {
        let mut policies = self.policies.borrow_mut();
        let policy = policies
            .get_mut(&pool.config.name)
            .filter(|policy| *policy.label == *by);
        policy
            .map(|policy| policy.chooser.placed(backend, facts))
            .unwrap_or_default()
    }

    /// The names of the headers that the policy which placed a request is shown.
    pub(crate) fn shown_headers(&self, by: &PolicyLabel, pool: &Pool) -> Vec<String> {
        let mut policies = self.policies.borrow_mut();
        let policy = policies
            .get_mut(&pool.config.name)
            .filter(|policy| *policy.label == *by);
        let policy = policy.and_then(|policy| policy.chooser.policy_mut());
        policy
            .map(|policy| policy.wants().headers.clone())
            .unwrap_or_default()
    }

    /// Tells the active policy of the end of a session that it, or one before it, has placed.
    pub(crate) fn session_ended(&self, pool: &Pool, backend: &Backend, report: &EndReport) {
        let mut policies = self.policies.borrow_mut();
        let is_same = |policy: &&mut PolicyAtWork| policy.label.name == pool.config.policy;
        if let Some(policy) = policies.get_mut(&pool.config.name).filter(is_same) {
            policy.chooser.session_ended(backend.address(), report);
        }
    }

    /// The filter of this name.
    ///
    /// # Errors
    /// There is none, or it cannot be made.
    pub(crate) fn filter(
        &self,
        site: &Site,
        name: &PluginName,
    ) -> Result<Rc<dyn Filter>, PluginError> {
        let filter = self.at_work(&self.filters, site, name)?;
        Ok(filter as Rc<dyn Filter>)
    }

    /// The handler of this name.
    ///
    /// # Errors
    /// There is none, or it cannot be made.
    pub(crate) fn handler(
        &self,
        site: &Site,
        name: &PluginName,
    ) -> Result<Rc<dyn Handler>, PluginError> {
        let handler = self.at_work(&self.handlers, site, name)?;
        Ok(handler as Rc<dyn Handler>)
    }

    fn at_work<G: HasSessions>(
        &self,
        all: &RefCell<HashMap<PluginName, AtWork<G>>>,
        site: &Site,
        name: &PluginName,
    ) -> Result<Rc<G>, PluginError> {
        let generation = site.plugins.get(name);
        let generation = generation.ok_or_else(|| PluginError::new("it is not loaded"))?;
        let mut all = all.borrow_mut();
        let before = all.get(name);
        if let Some(before) = before.filter(|before| before.is_for(site, generation)) {
            return Ok(Rc::clone(&before.guest));
        }
        let made = G::make(generation, &site.config.plugin_settings(name), &self.host);
        let guest = Rc::new(made.map_err(|error| PluginError::new(error.to_string()))?);
        if let Some(before) = before {
            let saved = before.guest.save();
            hand_over(generation, saved, |saved| guest.restore(saved));
        }
        let at_work = AtWork {
            generation: generation.number,
            settings: site.config.plugin.get(name).cloned(),
            limits: site.limits.of(name),
            guest: Rc::clone(&guest),
        };
        all.insert(name.clone(), at_work);
        Ok(guest)
    }

    /// Counts what became of a handshake of a client that this plugin has failed for.
    pub(crate) fn penalized(&self, plugin: &PluginName, penalty: Penalty) {
        self.host.penalized(plugin, penalty);
    }

    /// Lets an HTTP plugin answer.
    ///
    /// # Errors
    /// There is none, or it failed before the head of its answer.
    pub(crate) async fn answer(
        &self,
        site: &Site,
        name: &PluginName,
        request: Request<Body>,
    ) -> Result<Response<Body>, CallError> {
        let generation = site.plugins.get(name).ok_or(CallError::Dead)?;
        let response = generation.http(&self.host).handle(request).await?;
        Ok(response.map(|body| body.boxed_unsync()))
    }

    /// `before`: the one that it takes the place of.
    fn make_policy(
        &self,
        generation: &Arc<Generation>,
        pool: &Pool,
        before: Option<GuestPolicy>,
    ) -> Result<GuestPolicy, PolicyError> {
        let config = &pool.config.policy_config;
        let make = || {
            generation
                .policy(config, &self.host)
                .map_err(|error| PolicyError(error.to_string()))
        };
        let mut policy = make()?;
        if let Some(mut before) = before
            && !hand_over(generation, before.save(), |saved| policy.restore(saved))
        {
            policy = make()?;
        }
        Ok(policy)
    }

    /// What the instances of a plugin know at this moment. One that cannot say is as one that knows
    /// nothing.
    pub(crate) fn save(&self, name: &PluginName) -> States {
        let mut states = States::default();
        for (upstream, policy) in self.policies.borrow_mut().iter_mut() {
            if policy.label.name == *name
                && let Some(Ok(Some(saved))) = policy.chooser.policy_mut().map(GuestPolicy::save)
            {
                states.policies.push((upstream.clone(), saved));
            }
        }
        states.filters.extend(saved(&self.filters, name));
        states.handlers.extend(saved(&self.handlers, name));
        states
    }
}

impl PolicyAtWork {
    fn new(site: &Site, pool: &Pool) -> Self {
        let generation = site
            .plugins
            .get(&pool.config.policy)
            .map_or(0, |generation| generation.number);
        let label = PolicyLabel {
            name: pool.config.policy.clone(),
            generation,
        };
        Self {
            label: Arc::new(label),
            config: pool.config.policy_config.clone(),
            limits: site.limits.of(&pool.config.policy),
            chooser: Chooser::new(pool),
            before: None,
        }
    }

    fn is_for(&self, site: &Site, pool: &Pool) -> bool {
        let generation = site
            .plugins
            .get(&pool.config.policy)
            .map_or(0, |generation| generation.number);
        self.label.generation == generation
            && self.label.name == pool.config.policy
            && self.config == pool.config.policy_config
            && self.limits == site.limits.of(&pool.config.policy)
    }

    /// Another plugin's state is no use to `next`.
    fn replace(&mut self, next: Self) {
        let old = std::mem::replace(self, next);
        if old.label.name == self.label.name {
            self.before = old.chooser.into_policy().or(old.before);
        }
    }
}

impl<G> AtWork<G> {
    fn is_for(&self, site: &Site, generation: &Generation) -> bool {
        self.generation == generation.number
            && self.settings.as_ref() == site.config.plugin.get(&generation.name)
            && self.limits == site.limits.of(&generation.name)
    }
}

/// What the sessions of a plugin's kind know; one that cannot say is as one that knows nothing.
fn saved<G: HasSessions>(
    all: &RefCell<HashMap<PluginName, AtWork<G>>>,
    name: &PluginName,
) -> Option<Saved> {
    let all = all.borrow();
    all.get(name)?.guest.save().ok().flatten()
}

/// Hands the state of one instance to the next. False: the next must begin afresh. The trial before
/// the swap has been through this, so a refusal here is about what has changed since.
fn hand_over(
    generation: &Generation,
    saved: Result<Option<Saved>, CallError>,
    restore: impl FnOnce(&Saved) -> Result<(), CallError>,
) -> bool {
    let handed = saved.and_then(|saved| saved.map_or(Ok(()), |saved| restore(&saved)));
    if let Err(error) = &handed {
        tracing::warn!(
            plugin = %generation.name, generation = generation.number, %error,
            "plugin begins without the state of the generation before"
        );
    }
    handed.is_ok()
}
