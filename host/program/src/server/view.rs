//! What the admin pages show: figures of all rooms, gathered on request.

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use pointsman_admin::commands::{AdminCommand, CommandOutcome};
use pointsman_admin::http::{Readiness, View};
use pointsman_admin::status::{
    BackendState, BackendStatus, PolicyStatus, RouteStatus, Status, UpstreamStatus, WorkerStatus,
};
use pointsman_config::{Route, Target};
use pointsman_metrics::labels::Format;
use pointsman_metrics::scrape::{
    BackendSample, CallSample, PluginSample, Scrape, UpstreamSample, UsageSample,
};
use pointsman_plugins::stats::{
    BUCKETS_NS, FAILURE_KINDS, FAILURE_SCOPES, PENALTIES, PluginFigures, VERDICTS,
};
use pointsman_traffic::upstream::fitness::{HealthState, Unfit};
use pointsman_traffic::upstream::pool::{Backend, Pool};
use tokio::time::Instant;

use super::control::ControlPlane;
use super::problems;
use super::reload::{self, Cause};
use crate::site::Site;

/// The control plane, as the admin pages see it.
pub(super) struct Pages(pub(super) Rc<RefCell<ControlPlane>>);

impl View for Pages {
    fn readiness(&self) -> Readiness {
        let control = self.0.borrow();
        if control.is_leaving() {
            return Readiness::Draining;
        }
        let without_backend = match control.config.ready_needs_backend {
            true => without_backend(&control.site()),
            false => Vec::new(),
        };
        match without_backend.is_empty() {
            true => Readiness::Ready,
            false => Readiness::NoBackend(without_backend),
        }
    }

    fn status(&self) -> Status {
        let control = self.0.borrow();
        let site = control.site();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_secs: control.started.elapsed().as_secs(),
            is_draining: control.is_leaving(),
            workers: (control.metrics.workers().into_iter())
                .map(WorkerStatus::from)
                .collect(),
            upstreams: upstreams(&site),
            routes: routes(&site),
            plugins: control.plugin_statuses(),
            sessions: control.metrics.sessions(),
            problems: problems::all(&control),
        }
    }

    fn metrics(&self, format: Format) -> String {
        let control = self.0.borrow();
        let site = control.site();
        let figures = control.registry.stats().read();
        let mut scrape = Scrape {
            backends: pools(&site).flat_map(backend_samples).collect(),
            upstreams: pools(&site).map(upstream_sample).collect(),
            plugins: site
                .plugins
                .iter()
                .map(|generation| PluginSample {
                    plugin: generation.name.to_string(),
                    generation: generation.number,
                })
                .collect(),
            access_log_dropped: control.logs.access.n_dropped(),
            error_log_dropped: control.logs.error.n_dropped(),
            config_reload: control.last_reload,
            ..Scrape::default()
        };
        for problem in problems::all(&control) {
            scrape.problems[problem.kind as usize] += 1;
        }
        for plugin in &figures {
            add_figures(&mut scrape, plugin);
        }
        control.metrics.encode(scrape, format)
    }

    fn steer(&self, order: AdminCommand) -> LocalBoxFuture<'static, CommandOutcome> {
        let control = Rc::clone(&self.0);
        Box::pin(async move {
            match order {
                AdminCommand::Reload => reload::reload(&control, Cause::Asked).await,
                AdminCommand::Drain { what, is_out } => control.borrow_mut().drain(what, is_out),
                AdminCommand::ReloadPlan(proposal) => reload::plan(&control, proposal).await,
            }
        })
    }
}

/// The upstreams that routes lead to and that have no fit backend, in the order configured.
fn without_backend(site: &Site) -> Vec<String> {
    let now = Instant::now();
    let is_used = |pool: &&Pool| {
        let mut routes = site.config.routes.iter();
        let leads_here = |route: &Route| matches!(&route.target, Target::Upstream(name) if *name == pool.config.name);
        routes.any(|route| leads_here(route) && !site.is_drained(route))
    };
    let without = pools(site).filter(|pool| !pool.has_fit_backend(now) && is_used(pool));
    without.map(|pool| pool.config.name.to_string()).collect()
}

/// In the order configured.
fn pools(site: &Site) -> impl Iterator<Item = &Pool> {
    site.config
        .upstreams
        .iter()
        .filter_map(|upstream| site.pools.get(&upstream.name))
        .map(AsRef::as_ref)
}

fn upstreams(site: &Site) -> Vec<UpstreamStatus> {
    let backends = |pool: &Pool| {
        pool.backends
            .iter()
            .map(|backend| {
                let figures = backend.figures();
                let (state, reason) = state(backend);
                BackendStatus {
                    address: backend.address().to_owned(),
                    weight: backend.config.weight,
                    is_up: backend.is_up(),
                    state,
                    reason,
                    active: figures.active.into(),
                    pending: figures.pending.into(),
                    failures: backend.failures(),
                    is_backup: backend.config.is_backup,
                }
            })
            .collect()
    };
    let upstream = |pool: &Pool| {
        let policy = &pool.config.policy;
        let generation = site
            .plugins
            .get(policy)
            .map_or(0, |generation| generation.number);
        UpstreamStatus {
            name: pool.config.name.to_string(),
            policy: PolicyStatus {
                name: policy.to_string(),
                generation,
            },
            backends: backends(pool),
            waiting: pool.queue().len().into(),
        }
    };
    pools(site).map(upstream).collect()
}

fn routes(site: &Site) -> Vec<RouteStatus> {
    let target = |target: &Target| match target {
        Target::Upstream(name) => format!("upstream {name}"),
        Target::Handler(name) => format!("handler {name}"),
        Target::Http(name) => format!("http {name}"),
    };
    let route = |route: &Route| RouteStatus {
        host: route.host.as_ref().map(ToString::to_string),
        path: route.path.to_string(),
        target: target(&route.target),
        is_draining: site.is_drained(route),
    };
    site.config.routes.iter().map(route).collect()
}

fn state(backend: &Backend) -> (BackendState, Option<String>) {
    match backend.fitness().why_unfit(Instant::now()) {
        _ if backend.config.is_draining => (BackendState::Draining, None),
        None => (BackendState::Up, None),
        Some(Unfit::Down(reason)) => (BackendState::Down, Some(reason)),
        Some(Unfit::Ejected(reason, left)) => {
            let reason = format!("{reason}; back in {} s", left.as_secs() + 1);
            (BackendState::Ejected, Some(reason))
        }
        Some(Unfit::Unreachable(reason, left)) => {
            let reason = format!("{reason}; tried again in {} s", left.as_secs() + 1);
            (BackendState::Ejected, Some(reason))
        }
    }
}

fn backend_samples(pool: &Pool) -> impl Iterator<Item = BackendSample> {
    let now = Instant::now();
    pool.backends.iter().map(move |backend| {
        let fitness = backend.fitness();
        BackendSample {
            upstream: pool.config.name.to_string(),
            backend: backend.address().to_owned(),
            is_up: backend.is_up(),
            is_healthy: fitness.health() != HealthState::Down,
            is_ejected: fitness.is_ejected(now),
            is_draining: backend.config.is_draining,
            ejections: fitness.ejections(),
            active: backend.figures().active.into(),
            failures: backend.failures(),
        }
    })
}

fn upstream_sample(pool: &Pool) -> UpstreamSample {
    UpstreamSample {
        upstream: pool.config.name.to_string(),
        waiting: pool.queue().len().into(),
        retries: pool.retries(),
    }
}

fn add_figures(scrape: &mut Scrape, plugin: &PluginFigures) {
    let name = || plugin.plugin.to_string();
    let mut failures = [0; FAILURE_KINDS.len()];
    for (call, figures) in &plugin.calls {
        let bounds = BUCKETS_NS.iter().map(|&ns| ns as f64 / 1e9);
        scrape.calls.push(CallSample {
            plugin: name(),
            call: call.name().to_owned(),
            buckets: bounds.zip(figures.buckets).collect(),
            sum: figures.sum_ns as f64 / 1e9,
            count: figures.n_calls,
        });
        for (sum, n) in failures.iter_mut().zip(figures.failures) {
            *sum += n;
        }
    }
    scrape.usage.push(UsageSample {
        plugin: name(),
        instances: plugin.n_instances,
        memory_bytes: plugin.memory_bytes,
        sessions: plugin.n_sessions,
        store_bytes: plugin.store_bytes,
        bytes_in: plugin.bytes_in,
        bytes_out: plugin.bytes_out,
        dropped_messages: plugin.dropped_messages,
        verdicts: VERDICTS
            .into_iter()
            .zip(plugin.verdicts)
            .filter(|&(_, n)| n > 0)
            .collect(),
        session_failures: FAILURE_SCOPES
            .into_iter()
            .zip(plugin.session_failures)
            .collect(),
        sessions_lost: plugin.sessions_lost,
        penalties: PENALTIES.into_iter().zip(plugin.penalties).collect(),
    });
    scrape.failures.extend(
        FAILURE_KINDS
            .iter()
            .zip(failures)
            .map(|(kind, n)| (name(), (*kind).to_owned(), n)),
    );
    scrape.guest_counts.extend(
        plugin
            .counts
            .iter()
            .map(|(key, n)| (name(), key.clone(), *n)),
    );
    scrape.guest_gauges.extend(
        plugin
            .gauges
            .iter()
            .map(|(key, value)| (name(), key.clone(), *value)),
    );
}
