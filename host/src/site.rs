//! The snapshot that the data plane works by: routes, backends and plugins of one moment.
//!
//! The control plane makes a new one for every change and publishes it; a worker reads one, whole,
//! per request.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::{Config, Upstream, UpstreamName};
use crate::plugins::registry::Catalog;
use crate::routing::table::RouteTable;
use crate::upstream::pool::Pool;

/// One moment's view. Never changes.
#[derive(Debug)]
pub struct Site {
    /// What the operator wrote.
    pub config: Arc<Config>,
    /// Every route.
    pub routes: RouteTable,
    /// The pool of every upstream.
    pub pools: HashMap<UpstreamName, Arc<Pool>>,
    /// Every plugin's generation in force.
    pub plugins: Arc<Catalog>,
}

impl Site {
    /// Makes a snapshot; `before` is the one that it takes the place of. What the backends' figures
    /// are is kept.
    pub fn new(config: Arc<Config>, plugins: Arc<Catalog>, before: Option<&Self>) -> Self {
        let pool = |upstream: &Upstream| {
            let pool = match before.and_then(|site| site.pools.get(&upstream.name)) {
                Some(same) if same.config == *upstream => Arc::clone(same),
                other => Arc::new(Pool::new(upstream.clone(), other.map(Arc::as_ref))),
            };
            (upstream.name.clone(), pool)
        };
        let pools = config.upstreams.iter().map(pool).collect();
        Self {
            routes: RouteTable::new(&config.routes),
            pools,
            plugins,
            config,
        }
    }
}
