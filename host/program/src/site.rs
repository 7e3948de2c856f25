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
use pointsman_traffic::environment::Environment;
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
    /// Every plugin's active generation.
    pub plugins: Arc<Catalog>,
    /// What takes nothing new.
    pub drained: Arc<Drained>,
}

/// What a configuration leads to outside of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Discovered {
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
pub(crate) type Found = BTreeMap<UpstreamName, Vec<config::BackendConfig>>;

/// What the operator has taken out of service without writing it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// By upstream and address.
    pub backends: BTreeSet<(UpstreamName, String)>,
    /// As [`Route`] is shown.
    pub routes: BTreeSet<String>,
}

impl Discovered {
    /// What was read for `config`, with what is newer by now. `read_beside`: what `now` had found when the reading
    /// began.
    #[must_use]
    pub(crate) fn brought_up_to_date(
        mut self,
        config: &Config,
        old_config: &Config,
        now: &Self,
        read_beside: &Found,
    ) -> Self {
        let old = old_config.upstreams.iter().map(|u| (&u.name, u));
        let old: HashMap<_, _> = old.collect();
        for upstream in &config.upstreams {
            let (name, old) = (&upstream.name, old.get(&upstream.name));
            // What a name has stood for stays until it is asked again.
            let is_same = |old: &&Upstream| upstream.dns.is_some() && old.dns == upstream.dns;
            if let Some(resolved) = now.resolved.get(name)
                && old.is_some_and(is_same)
            {
                self.resolved.insert(name.clone(), resolved.clone());
            }
            // A file that has been read again by whoever follows it is not news any more.
            let is_same = |old: &&Upstream| {
                upstream.backends_file.is_some() && old.backends_file == upstream.backends_file
            };
            if let Some(found) = now.found.get(name)
                && read_beside.get(name) != Some(found)
                && old.is_some_and(is_same)
            {
                self.found.insert(name.clone(), found.clone());
            }
        }
        self
    }
}

impl Site {
    /// Makes a snapshot; `before` is the one that it takes the place of. What is known of backends is
    /// kept.
    pub(crate) fn new(
        config: Arc<Config>,
        plugins: Arc<Catalog>,
        outside: &Discovered,
        drained: Arc<Drained>,
        before: Option<&Self>,
    ) -> Self {
        let pool = |upstream: &Upstream| {
            let backends = backends(upstream, outside, &drained);
            let tls = outside.tls.get(&upstream.name);
            let pool = match before.and_then(|site| site.pools.get(&upstream.name)) {
                Some(same) if same.is_same(upstream, &backends, tls) => Arc::clone(same),
                other => Arc::new(Pool::new(
                    &Environment::System,
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
    outside: &Discovered,
    drained: &Drained,
) -> Vec<config::BackendConfig> {
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
pub(crate) struct Retention {
    routes: HashSet<RouteKey>,
    backends: HashMap<UpstreamName, HashSet<String>>,
}

/// What makes a route the same for a session.
type RouteKey = (Option<HostPattern>, PathPattern, Target);

impl Retention {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BEFORE: &str = r#"
[[listener]]
bind = "127.0.0.1:0"

[[upstream]]
name = "app"
backends = ["127.0.0.1:1", "127.0.0.1:2"]

[[upstream]]
name = "other"
backends = ["127.0.0.1:1"]

[[route]]
path = "/ws"
upstream = "app"

[[route]]
path = "/echo"
handler = "echo"
"#;

    fn config(text: &str) -> Arc<Config> {
        Arc::new(Config::from_toml(text, Path::new("")).expect("a good configuration"))
    }

    fn site(text: &str, outside: &Discovered, drained: &Drained, before: Option<&Site>) -> Site {
        let (plugins, drained) = (Arc::default(), Arc::new(drained.clone()));
        Site::new(config(text), plugins, outside, drained, before)
    }

    /// One session at each backend of `app`, and one at the handler.
    fn sessions(site: &Site) -> Vec<Place> {
        let route = |i: usize| Arc::new(site.config.routes[i].clone());
        let pool = site
            .pools
            .iter()
            .find(|(name, _)| name.to_string() == "app");
        let backends = &pool.expect("there is one").1.backends;
        let places = backends.iter().map(|backend| Place {
            route: route(0),
            backend: Some(Arc::clone(backend)),
        });
        let at_handler = Place {
            route: route(1),
            backend: None,
        };
        places.chain([at_handler]).collect()
    }

    /// Which of those stay when `after` takes the place of `before`.
    fn kept(before: &Site, after: &Site) -> Vec<bool> {
        let keeps = Retention::new(after);
        let kept: Vec<_> = sessions(before).iter().map(|p| keeps.keeps(p)).collect();
        // Who looks at no session where nothing has changed must not miss one.
        assert!(!after.keeps_the_same_as(before) || kept.iter().all(|kept| *kept));
        kept
    }

    fn edited(from: &str, to: &str) -> String {
        assert_eq!(BEFORE.matches(from).count(), 1, "{from}");
        BEFORE.replace(from, to)
    }

    #[test]
    fn a_reload_keeps_the_sessions_whose_route_and_backend_it_still_has() {
        let whole_app = "name = \"app\"\nbackends = [\"127.0.0.1:1\", \"127.0.0.1:2\"]";
        let cases = [
            ("nothing", BEFORE.to_owned(), [true; 3]),
            (
                "a route's other keys",
                edited("\"/ws\"", "\"/ws\"\nidle_timeout_secs = 7"),
                [true; 3],
            ),
            (
                "a route's path",
                edited("\"/ws\"", "\"/elsewhere\""),
                [false, false, true],
            ),
            (
                "a route's host",
                edited("\"/ws\"", "\"/ws\"\nhost = \"app.example.org\""),
                [false, false, true],
            ),
            (
                "a route's upstream, at the same address",
                edited("upstream = \"app\"", "upstream = \"other\""),
                [false, false, true],
            ),
            (
                "a handler in place of an upstream",
                edited("upstream = \"app\"", "handler = \"echo\""),
                [false, false, true],
            ),
            (
                "another handler",
                edited("handler = \"echo\"", "handler = \"chat\""),
                [true, true, false],
            ),
            (
                "one backend less",
                edited(", \"127.0.0.1:2\"]", "]"),
                [true, false, true],
            ),
            (
                "a weight",
                edited(
                    ", \"127.0.0.1:2\"]",
                    ", { address = \"127.0.0.1:2\", weight = 3 }]",
                ),
                [true; 3],
            ),
            (
                "a backend that is drained by the file",
                edited(
                    ", \"127.0.0.1:2\"]",
                    ", { address = \"127.0.0.1:2\", drain = true }]",
                ),
                [true, false, true],
            ),
            (
                "the order of backends, and a policy",
                edited(
                    whole_app,
                    "name = \"app\"\npolicy = \"random\"\nbackends = [\"127.0.0.1:2\", \"127.0.0.1:1\"]",
                ),
                [true; 3],
            ),
        ];
        let nothing = (Discovered::default(), Drained::default());
        let before = site(BEFORE, &nothing.0, &nothing.1, None);
        for (what, text, expected) in cases {
            let after = site(&text, &nothing.0, &nothing.1, Some(&before));
            assert_eq!(kept(&before, &after), expected, "{what}");
        }
    }

    #[test]
    fn what_the_operator_drains_keeps_no_session_until_it_is_put_back() {
        let outside = Discovered::default();
        let before = site(BEFORE, &outside, &Drained::default(), None);
        let app = before.config.upstreams[0].name.clone();
        let backend = Drained {
            backends: BTreeSet::from([(app, "127.0.0.1:1".to_owned())]),
            routes: BTreeSet::new(),
        };
        let route = Drained {
            backends: BTreeSet::new(),
            routes: BTreeSet::from(["/echo".to_owned()]),
        };
        for (drained, expected) in [
            (&backend, [false, true, true]),
            (&route, [true, true, false]),
        ] {
            let after = site(BEFORE, &outside, drained, Some(&before));
            assert_eq!(kept(&before, &after), expected);
            let again = site(BEFORE, &outside, &Drained::default(), Some(&after));
            assert_eq!(kept(&before, &again), [true; 3]);
        }
    }

    #[test]
    fn a_backend_that_is_found_no_more_keeps_no_session() {
        let app = config(BEFORE).upstreams[0].name.clone();
        let found = config(&edited("127.0.0.1:2", "127.0.0.1:3"));
        let found = found.upstreams[0].backends.clone();
        let with = Discovered {
            resolved: BTreeMap::from([(app, found)]),
            ..Discovered::default()
        };
        let before = site(BEFORE, &with, &Drained::default(), None);
        let after = site(
            BEFORE,
            &Discovered::default(),
            &Drained::default(),
            Some(&before),
        );
        // Two are written, and one of them was found as well; the third was found alone.
        assert_eq!(kept(&before, &after), [true, true, false, true]);
    }

    #[test]
    fn a_snapshot_in_which_nothing_has_changed_needs_no_look_at_sessions() {
        let drained = Drained::default();
        let before = site(BEFORE, &Discovered::default(), &drained, None);
        let config = Arc::clone(&before.config);
        let plugins = Arc::new(Catalog::default());
        let after = Site::new(
            config,
            plugins,
            &Discovered::default(),
            Arc::clone(&before.drained),
            Some(&before),
        );
        assert!(after.keeps_the_same_as(&before));
    }

    fn found(addresses: &[&str]) -> Found {
        let name = UpstreamName::parse("app").unwrap();
        let backends = addresses
            .iter()
            .map(|a| config::BackendConfig::at((*a).to_owned()));
        [(name, backends.collect())].into()
    }

    fn of_app(upstream: &str) -> Config {
        let text = format!(
            "[[listener]]\nbind = \"127.0.0.1:1\"\n[[route]]\npath = \"/\"\nupstream = \"app\"\n[[upstream]]\nname = \"app\"\n{upstream}\n"
        );
        Config::from_toml(&text, Path::new("")).unwrap()
    }

    #[test]
    fn of_what_a_file_says_the_newest_counts() {
        let file = of_app("backends_file = \"a.json\"");
        let [old, read, newer] = [["1.1.1.1:1"], ["1.1.1.1:2"], ["1.1.1.1:3"]].map(|a| found(&a));
        let outside = |found: &Found| Discovered {
            found: found.clone(),
            ..Discovered::default()
        };
        let update = |old_config: &Config, now: &Found| {
            let read_now = outside(&read);
            let updated = read_now.brought_up_to_date(&file, old_config, &outside(now), &old);
            updated.found
        };
        assert_eq!(update(&file, &old), read, "nothing was found meanwhile");
        assert_eq!(update(&file, &newer), newer);
        let other_file = of_app("backends_file = \"b.json\"");
        assert_eq!(update(&other_file, &newer), read, "of another file");
    }

    #[test]
    fn what_a_name_stands_for_stays_as_long_as_the_name() {
        let dns = |name: &str| of_app(&format!("dns = {{ name = \"{name}\", port = 1 }}"));
        let now = Discovered {
            resolved: found(&["1.1.1.1:1"]),
            ..Discovered::default()
        };
        let update = |old: &Config, new: &Config| {
            let updated = Discovered::default().brought_up_to_date(new, old, &now, &Found::new());
            updated.resolved
        };
        assert_eq!(update(&dns("a"), &dns("a")), now.resolved);
        assert_eq!(update(&dns("a"), &dns("b")), Found::new());
    }
}
