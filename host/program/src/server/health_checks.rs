//! Which backends are being probed: those of every upstream with `[upstream.health]`, as the active
//! snapshot has them.

use std::collections::HashMap;
use std::sync::Arc;

use pointsman_config::{Health, UpstreamName};
use pointsman_traffic::upstream::health;
use pointsman_traffic::upstream::pool::Backend;
use pointsman_traffic::upstream::tls::Tls;
use tokio::task::{AbortHandle, JoinSet};

use crate::site::Site;

/// The probes under way. Dropping it ends them.
#[derive(Debug, Default)]
pub(super) struct HealthChecks {
    tasks: JoinSet<()>,
    running: HashMap<Key, RunningProbe>,
}

type Key = (UpstreamName, String);

#[derive(Debug)]
struct RunningProbe {
    health: Health,
    tls: Option<Arc<Tls>>,
    backend: Arc<Backend>,
    task: AbortHandle,
}

impl HealthChecks {
    /// Begins and ends probes, so that they are those of `site`. One that stays goes on undisturbed.
    pub(super) fn follow(&mut self, site: &Site) {
        let mut wanted = HashMap::new();
        for pool in site.pools.values() {
            let Some(health) = &pool.config.health else {
                continue;
            };
            for backend in &pool.backends {
                let key = (pool.config.name.clone(), backend.address().to_owned());
                wanted.insert(key, (health, backend, &pool.tls));
            }
        }
        self.running.retain(|key, running| {
            let stays = wanted
                .get(key)
                .is_some_and(|(health, _, tls)| **health == running.health && **tls == running.tls);
            if !stays {
                running.task.abort();
                running.backend.fitness().unprobed();
            }
            stays
        });
        for (key, (health, backend, tls)) in wanted {
            if self.running.contains_key(&key) {
                continue;
            }
            let upstream = key.0.to_string();
            let probes = health::watch(upstream, Arc::clone(backend), tls.clone(), health.clone());
            let running = RunningProbe {
                health: health.clone(),
                tls: tls.clone(),
                backend: Arc::clone(backend),
                task: self.tasks.spawn_local(probes),
            };
            self.running.insert(key, running);
        }
        // Those that were ended; otherwise their results would pile up.
        while self.tasks.try_join_next().is_some() {}
    }
}
