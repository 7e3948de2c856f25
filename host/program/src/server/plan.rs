//! What a configuration would change, compared with the active one, and how many open sessions each
//! change would end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pointsman_admin::commands::{ChangeKind, PlannedChange, ReloadPlan};
use pointsman_config::{BackendConfig, Config, Listener, Route, Target, Upstream};
use pointsman_traffic::session::Place;

use crate::site::{Discovered, Retention, Site};
use crate::worker::Census;

/// Open sessions and the places where they run.
pub(super) struct RunningSessions<'a> {
    pub(super) census: &'a Census,
    /// Where sessions may stay by the new configuration.
    pub(super) keeps: Retention,
}

impl RunningSessions<'_> {
    /// Sessions that have to go from such places.
    fn leaving(&self, is_there: impl Fn(&Place) -> bool) -> u64 {
        self.census
            .iter()
            .filter(|(place, _)| !self.keeps.keeps(place) && is_there(place))
            .map(|(_, n)| n)
            .sum()
    }
}

/// Everything that differs, in the order of the file.
pub(super) fn plan(site: &Site, new: &Config, running: &RunningSessions<'_>) -> ReloadPlan {
    let old = &*site.config;
    let mut changes = Vec::new();
    let mut changed = |what: &str, is_same: bool| {
        if !is_same {
            changes.push(change(what, ChangeKind::Changed, String::new(), 0));
        }
    };
    // Named one by one, so that a new one cannot be left out.
    let Config {
        workers,
        drain_timeout,
        drain_delay,
        ready_needs_backend,
        access_log,
        error_log,
        trusted_proxies,
        overload,
        admin,
        listeners,
        plugins,
        plugin,
        upstreams,
        routes,
    } = old;
    changed("workers", *workers == new.workers);
    changed("drain_timeout_secs", *drain_timeout == new.drain_timeout);
    changed("drain_delay_secs", *drain_delay == new.drain_delay);
    let is_same = *ready_needs_backend == new.ready_needs_backend;
    changed("ready_needs_backend", is_same);
    changed("access_log", *access_log == new.access_log);
    changed("error_log", *error_log == new.error_log);
    changed("trusted_proxies", *trusted_proxies == new.trusted_proxies);
    changed("overload", *overload == new.overload);
    changed("admin", *admin == new.admin);
    changed("plugins", *plugins == new.plugins);
    let settings = plugin.keys().chain(new.plugin.keys());
    let settings: BTreeSet<_> = settings.collect();
    for name in settings {
        changed(
            &format!("plugin {name}"),
            plugin.get(name) == new.plugin.get(name),
        );
    }
    let key = |listener: &Listener| listener.bind.to_string();
    compare(listeners, &new.listeners, key, |name, kind, _, _| {
        changes.push(change(&format!("listener {name}"), kind, String::new(), 0));
    });
    let key = |upstream: &Upstream| upstream.name.to_string();
    compare(
        upstreams,
        &new.upstreams,
        key,
        |name, kind, before, after| {
            let what = format!("upstream {name}");
            let (Some(before), Some(after)) = (before, after) else {
                changes.push(change(&what, kind, String::new(), 0));
                return;
            };
            let details = upstream_details(before, after);
            if !details.is_empty() {
                changes.push(change(&what, kind, details.join(", "), 0));
            }
            let key = |backend: &BackendConfig| backend.address.clone();
            compare(
                &before.backends,
                &after.backends,
                key,
                |address, kind, before, after| {
                    let ends = running.leaving(|place| is_at(place, name, address));
                    let details = before
                        .zip(after)
                        .map(|(b, a)| backend_details(b, a).join(", "));
                    let what = format!("{what}: backend {address}");
                    changes.push(change(&what, kind, details.unwrap_or_default(), ends));
                },
            );
        },
    );
    compare(
        routes,
        &new.routes,
        Route::to_string,
        |name, kind, before, after| {
            let is_led_elsewhere =
                !matches!((before, after), (Some(b), Some(a)) if b.target == a.target);
            let ends = match is_led_elsewhere {
                true => running.leaving(|place| place.route.to_string() == name),
                false => 0,
            };
            changes.push(change(&format!("route {name}"), kind, String::new(), ends));
        },
    );
    ReloadPlan { changes }
}

fn is_at(place: &Place, upstream: &str, address: &str) -> bool {
    let is_of_upstream =
        matches!(&place.route.target, Target::Upstream(name) if name.as_str() == upstream);
    let backend = place.backend.as_ref().map(|backend| backend.address());
    is_of_upstream && backend == Some(address)
}

/// Where sessions may stay by a configuration that is not active.
pub(super) fn keeps(site: &Site, new: &Config, outside: &Discovered) -> Retention {
    let config = Arc::new(new.clone());
    let (plugins, drained) = (Arc::clone(&site.plugins), Arc::clone(&site.drained));
    // No predecessor: nothing of what is known of backends may change by asking.
    Retention::new(&Site::new(config, plugins, outside, drained, None))
}

fn change(what: &str, kind: ChangeKind, details: String, sessions_ended: u64) -> PlannedChange {
    PlannedChange {
        what: what.to_owned(),
        kind,
        details,
        sessions_ended,
    }
}

/// Calls `say` for each that is in one list only, or differs.
fn compare<T: PartialEq>(
    old: &[T],
    new: &[T],
    key: impl Fn(&T) -> String,
    mut say: impl FnMut(&str, ChangeKind, Option<&T>, Option<&T>),
) {
    let by_key = |list: &'_ [T]| -> BTreeMap<String, usize> {
        list.iter()
            .enumerate()
            .map(|(i, item)| (key(item), i))
            .collect()
    };
    let (before, after) = (by_key(old), by_key(new));
    for item in old {
        let name = key(item);
        match after.get(&name).map(|&i| &new[i]) {
            None => say(&name, ChangeKind::Removed, Some(item), None),
            Some(other) if other != item => {
                say(&name, ChangeKind::Changed, Some(item), Some(other));
            }
            Some(_) => {}
        }
    }
    for item in new.iter().filter(|item| !before.contains_key(&key(item))) {
        say(&key(item), ChangeKind::Added, None, Some(item));
    }
}

fn upstream_details(before: &Upstream, after: &Upstream) -> Vec<String> {
    let Upstream {
        name: _,
        policy,
        policy_config,
        backends: _,
        backends_file,
        dns,
        tls,
        connect_timeout,
        response_timeout,
        head_timeout,
        retry_on_timeout,
        retries,
        retry_budget_percent,
        queue,
        slow_start,
        panic_threshold_percent,
        health,
        ejection,
    } = before;
    let mut details = Vec::new();
    if *policy != after.policy {
        details.push(format!("policy {policy} -> {}", after.policy));
    }
    let mut changed = |key: &str, is_same: bool| {
        if !is_same {
            details.push(key.to_owned());
        }
    };
    changed("policy_config", *policy_config == after.policy_config);
    changed("backends_file", *backends_file == after.backends_file);
    changed("dns", *dns == after.dns);
    changed("tls", *tls == after.tls);
    let is_same = *connect_timeout == after.connect_timeout;
    changed("connect_timeout_ms", is_same);
    let is_same = *response_timeout == after.response_timeout;
    changed("response_timeout_ms", is_same);
    changed("head_timeout_ms", *head_timeout == after.head_timeout);
    let is_same = *retry_on_timeout == after.retry_on_timeout;
    changed("retry_on_timeout", is_same);
    changed("retries", *retries == after.retries);
    let is_same = *retry_budget_percent == after.retry_budget_percent;
    changed("retry_budget_percent", is_same);
    changed("queue", *queue == after.queue);
    changed("slow_start_secs", *slow_start == after.slow_start);
    let is_same = *panic_threshold_percent == after.panic_threshold_percent;
    changed("panic_threshold_percent", is_same);
    changed("health", *health == after.health);
    changed("ejection", *ejection == after.ejection);
    details
}

fn backend_details(before: &BackendConfig, after: &BackendConfig) -> Vec<String> {
    let BackendConfig {
        address: _,
        weight,
        max_sessions,
        is_backup,
        is_draining,
        labels,
    } = before;
    let mut details = Vec::new();
    if *weight != after.weight {
        details.push(format!("weight {weight} -> {}", after.weight));
    }
    let mut changed = |key: &str, is_same: bool| {
        if !is_same {
            details.push(key.to_owned());
        }
    };
    changed("max_sessions", *max_sessions == after.max_sessions);
    changed("backup", *is_backup == after.is_backup);
    changed("drain", *is_draining == after.is_draining);
    changed("labels", *labels == after.labels);
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        workers = 1
        [[listener]]
        bind = "127.0.0.1:1"
        [[upstream]]
        name = "app"
        backends = [{ address = "127.0.0.1:2", weight = 1 }]
        retries = 1
        [[route]]
        path = "/*"
        upstream = "app"
    "#;

    fn parsed(text: &str) -> Config {
        Config::from_toml(text, std::path::Path::new("")).unwrap()
    }

    #[test]
    fn what_differs_is_said_and_nothing_else() {
        let outside = Discovered::default();
        let config = Arc::new(parsed(TEXT));
        let site = Site::new(config, Arc::default(), &outside, Arc::default(), None);
        let said = |from: &str, to: &str| {
            assert!(TEXT.contains(from), "{from}");
            let new = parsed(&TEXT.replacen(from, to, 1));
            let running = RunningSessions {
                census: &Census::new(),
                keeps: keeps(&site, &new, &outside),
            };
            let plan = plan(&site, &new, &running);
            let said = plan.changes.iter().map(|change| {
                assert_eq!(change.sessions_ended, 0);
                format!("{:?} {} ({})", change.kind, change.what, change.details)
            });
            said.collect::<Vec<_>>().join(", ")
        };
        for (from, to, expected) in [
            ("workers = 1", "workers = 1", ""),
            ("workers = 1", "workers = 2", "Changed workers ()"),
            (
                "workers = 1",
                "workers = 1\ndrain_delay_secs = 1",
                "Changed drain_delay_secs ()",
            ),
            (
                "[[listener]]",
                "[overload]\nmax_sessions = 9\n[[listener]]",
                "Changed overload ()",
            ),
            (
                "[[listener]]",
                "[plugin.chat]\nmemory_max_bytes = 1048576\n[[listener]]",
                "Changed plugin chat ()",
            ),
            (
                "127.0.0.1:1",
                "127.0.0.1:3",
                "Removed listener 127.0.0.1:1 (), Added listener 127.0.0.1:3 ()",
            ),
            (
                "retries = 1",
                "retries = 2\npolicy = \"random\"",
                "Changed upstream app (policy round_robin -> random, retries)",
            ),
            (
                "weight = 1",
                "weight = 2, backup = true",
                "Changed upstream app: backend 127.0.0.1:2 (weight 1 -> 2, backup)",
            ),
            (
                "127.0.0.1:2",
                "127.0.0.1:3",
                "Removed upstream app: backend 127.0.0.1:2 (), Added upstream app: backend 127.0.0.1:3 ()",
            ),
            ("/*", "/a", "Removed route /* (), Added route /a ()"),
        ] {
            assert_eq!(said(from, to), expected, "{to}");
        }
    }

    /// Seven sessions at the one backend, by the one route.
    #[test]
    fn a_session_ends_with_its_route_or_backend_and_with_nothing_else() {
        let outside = Discovered::default();
        let config = Arc::new(parsed(TEXT));
        let site = Site::new(config, Arc::default(), &outside, Arc::default(), None);
        let pool = site.pools.values().next().expect("one upstream");
        let place = Place {
            route: Arc::new(site.config.routes[0].clone()),
            backend: Some(Arc::clone(&pool.backends[0])),
        };
        let census: Census = vec![(place, 7)];
        for (from, to, expected) in [
            ("workers = 1", "workers = 2", vec![]),
            ("retries = 1", "retries = 2", vec![]),
            ("weight = 1", "weight = 2", vec![]),
            ("weight = 1", "weight = 1, backup = true", vec![]),
            (
                "upstream = \"app\"\n",
                "upstream = \"app\"\nping_interval_secs = 9\n",
                vec![],
            ),
            (
                "[[route]]",
                "[[route]]\npath = \"/more\"\nupstream = \"app\"\n[[route]]",
                vec![],
            ),
            (
                "127.0.0.1:2",
                "127.0.0.1:3",
                vec!["upstream app: backend 127.0.0.1:2"],
            ),
            (
                "weight = 1",
                "drain = true",
                vec!["upstream app: backend 127.0.0.1:2"],
            ),
            ("/*", "/a", vec!["route /*"]),
            (
                "upstream = \"app\"\n",
                "handler = \"echo\"\n",
                vec!["route /*"],
            ),
        ] {
            assert!(TEXT.contains(from), "{from}");
            let new = parsed(&TEXT.replacen(from, to, 1));
            let keeps = keeps(&site, &new, &outside);
            let running = RunningSessions {
                census: &census,
                keeps,
            };
            let plan = plan(&site, &new, &running);
            let ended = plan.changes.iter().filter(|c| c.sessions_ended > 0);
            let ended: Vec<_> = ended.map(|c| (c.what.as_str(), c.sessions_ended)).collect();
            let expected: Vec<_> = expected.into_iter().map(|what| (what, 7)).collect();
            assert_eq!(ended, expected, "{to}");
        }
    }
}
