//! The snapshot that the data plane works by: routes, backends and plugins of one moment.
//!
//! The control plane makes a new one for every change and publishes it; a worker reads one, whole,
//! per request.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use pointsman_config::{
    self as config, Config, HostPattern, PathPattern, Route, Target, Upstream, UpstreamName,
};
use pointsman_plugins::limits::AllLimits;
use pointsman_plugins::registry::Catalog;
use pointsman_traffic::routing::table::RouteTable;
use pointsman_traffic::session::Place;
use pointsman_traffic::upstream::pool::Pool;
use pointsman_traffic::upstream::tls::Tls;

/// One moment's view. Never changes.
#[derive(Debug)]
pub(crate) struct Site {
    /// What the operator wrote.
    pub config: Arc<Config>,
    /// Every route.
    pub routes: RouteTable,
    /// The pool of every upstream.
    pub pools: HashMap<UpstreamName, Arc<Pool>>,
    /// What the instances of plugins may take.
    pub limits: AllLimits,
    /// Every plugin's generation in force.
    pub plugins: Arc<Catalog>,
    /// What takes nothing new.
    pub drained: Arc<Drained>,
}

/// What a configuration leads to outside of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outside {
    /// Backends that files name.
    pub found: Found,
    /// Backends that names stand for.
    pub resolved: Found,
    /// Certificates that were read, by upstream.
    pub tls: Connectors,
}

/// How backends are connected to, by upstream.
pub(crate) type Connectors = BTreeMap<UpstreamName, Arc<Tls>>;

/// Backends that were found beside those that are written, by upstream.
pub(crate) type Found = BTreeMap<UpstreamName, Vec<config::Backend>>;

/// What the operator has taken out of service without writing it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// By upstream and address.
    pub backends: BTreeSet<(UpstreamName, String)>,
    /// As [`Route`] is shown.
    pub routes: BTreeSet<String>,
}

impl Site {
    /// Makes a snapshot; `before` is the one that it takes the place of. What is known of backends is
    /// kept.
    pub(crate) fn new(
        config: Arc<Config>,
        plugins: Arc<Catalog>,
        outside: &Outside,
        drained: Arc<Drained>,
        before: Option<&Self>,
    ) -> Self {
        let pool = |upstream: &Upstream| {
            let backends = backends(upstream, outside, &drained);
            let tls = outside.tls.get(&upstream.name);
            let pool = match before.and_then(|site| site.pools.get(&upstream.name)) {
                Some(same) if same.is_same(upstream, &backends, tls) => Arc::clone(same),
                other => Arc::new(Pool::new(
                    upstream.clone(),
                    &backends,
                    tls.cloned(),
                    other.map(Arc::as_ref),
                )),
            };
            (upstream.name.clone(), pool)
        };
        let pools = config.upstreams.iter().map(pool).collect();
        Self {
            routes: RouteTable::new(&config.routes),
            limits: AllLimits::new(&config),
            pools,
            plugins,
            drained,
            config,
        }
    }

    /// Whether a route takes nothing new.
    pub(crate) fn is_drained(&self, route: &Route) -> bool {
        !self.drained.routes.is_empty() && self.drained.routes.contains(&route.to_string())
    }

    /// Whether no session that `before` keeps has to go.
    pub(crate) fn keeps_the_same_as(&self, before: &Self) -> bool {
        let is_same_pool = |(name, pool): (&UpstreamName, &Arc<Pool>)| {
            before
                .pools
                .get(name)
                .is_some_and(|other| Arc::ptr_eq(pool, other))
        };
        Arc::ptr_eq(&self.config, &before.config)
            && self.drained == before.drained
            && self.pools.iter().all(is_same_pool)
    }
}

/// Those written, and behind them those found; the first of an address counts.
pub(crate) fn backends(
    upstream: &Upstream,
    outside: &Outside,
    drained: &Drained,
) -> Vec<config::Backend> {
    let mut known = HashSet::new();
    let all = upstream
        .backends
        .iter()
        .chain(outside.found.get(&upstream.name).into_iter().flatten())
        .chain(outside.resolved.get(&upstream.name).into_iter().flatten());
    let mut backends: Vec<_> = all
        .filter(|backend| known.insert(backend.address.as_str()))
        .cloned()
        .collect();
    for backend in &mut backends {
        let place = (upstream.name.clone(), backend.address.clone());
        backend.is_draining |= drained.backends.contains(&place);
    }
    backends
}

/// Where sessions may stay: what a snapshot still has and does not drain.
#[derive(Debug, Default)]
pub(crate) struct Keeps {
    routes: HashSet<RouteKey>,
    backends: HashMap<UpstreamName, HashSet<String>>,
}

/// What makes a route the same for a session.
type RouteKey = (Option<HostPattern>, PathPattern, Target);

impl Keeps {
    /// What this snapshot keeps.
    pub(crate) fn new(site: &Site) -> Self {
        let routes = site
            .config
            .routes
            .iter()
            .filter(|route| !site.is_drained(route))
            .map(route_key)
            .collect();
        let backends = site.pools.iter().map(|(name, pool)| {
            let kept = pool.backends.iter().filter(|b| !b.config.is_draining);
            (name.clone(), kept.map(|b| b.address().to_owned()).collect())
        });
        Self {
            routes,
            backends: backends.collect(),
        }
    }

    /// Whether a session at this place may stay.
    pub(crate) fn keeps(&self, place: &Place) -> bool {
        let has_backend = match (&place.route.target, &place.backend) {
            (Target::Upstream(upstream), Some(backend)) => self
                .backends
                .get(upstream)
                .is_some_and(|kept| kept.contains(backend.address())),
            _ => true,
        };
        has_backend && self.routes.contains(&route_key(&place.route))
    }
}

fn route_key(route: &Route) -> RouteKey {
    (route.host.clone(), route.path.clone(), route.target.clone())
}
