//! The route table: (host, path) -> route.
//!
//! An exact host goes before a `*.` pattern, a longer pattern before a shorter, and any host last;
//! among routes of one host an exact path goes before a prefix, and a longer prefix before a
//! shorter; of two that differ only in case, the one that is case-sensitive first. A host whose routes do not fit the path leaves it to the less exact hosts.

use std::cmp::Reverse;
use std::sync::Arc;

use pointsman_config::{HostPattern, PathPattern, Route};

use super::paths::Spelling;

/// All routes, the most exact first.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    spelling: Spelling,
}

/// How exact a route is among those that match a request.
pub(super) type Rank = ((u8, usize), (u8, usize));

impl RouteTable {
    /// Sorts the routes of a checked configuration.
    pub fn new(routes: &[Route]) -> Self {
        let spelling = routes.iter().map(|route| &route.path).collect();
        let mut routes: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
        routes.sort_by_key(|route| {
            let rank = rank(route.host.as_ref(), &route.path);
            Reverse((rank, route.is_case_sensitive))
        });
        Self { routes, spelling }
    }

    /// `host`: in lower case, without port. `path`: without the query.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        self.of_host(host)
            .find(|route| matches_path(&route.path, path, !route.is_case_sensitive))
    }

    /// The routes for a host, the most exact first.
    pub(super) fn of_host(&self, host: &str) -> impl Iterator<Item = &Arc<Route>> {
        let is_for_host = move |route: &&Arc<Route>| {
            let pattern = route.host.as_ref();
            pattern.is_none_or(|pattern| pattern.matches(host))
        };
        self.routes.iter().filter(is_for_host)
    }

    pub(super) fn spelling(&self) -> &Spelling {
        &self.spelling
    }
}

pub(super) fn rank(host: Option<&HostPattern>, path: &PathPattern) -> Rank {
    (host_rank(host), path_rank(path))
}

fn host_rank(pattern: Option<&HostPattern>) -> (u8, usize) {
    match pattern {
        Some(HostPattern::Exact(_)) => (2, 0),
        Some(HostPattern::Suffix(suffix)) => (1, suffix.len()),
        None => (0, 0),
    }
}

fn path_rank(pattern: &PathPattern) -> (u8, usize) {
    match pattern {
        PathPattern::Exact(_) => (1, 0),
        PathPattern::Prefix(prefix) => (0, prefix.len()),
    }
}

/// `ignores_case`: that of ASCII letters.
pub(super) fn matches_path(pattern: &PathPattern, path: &str, ignores_case: bool) -> bool {
    let is_same = |written: &str, found: &[u8]| match ignores_case {
        true => written.as_bytes().eq_ignore_ascii_case(found),
        false => written.as_bytes() == found,
    };
    let path = path.as_bytes();
    match pattern {
        PathPattern::Exact(exact) => is_same(exact, path),
        PathPattern::Prefix(prefix) => {
            let start = path.get(..prefix.len());
            start.is_some_and(|start| is_same(prefix, start))
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_config::Config;

    use super::*;

    const ROUTES: &str = r#"
        [[listener]]
        bind = "127.0.0.1:0"
        [[route]]
        path = "/*"
        handler = "rest"
        [[route]]
        path = "/chat/*"
        handler = "chat"
        [[route]]
        path = "/chat/admin/*"
        handler = "admin"
        [[route]]
        path = "/chat/admin/ws"
        handler = "exact"
        [[route]]
        host = "*.example.org"
        path = "/chat/*"
        handler = "org"
        [[route]]
        host = "*.eu.example.org"
        path = "/chat/*"
        handler = "eu"
        [[route]]
        host = "one.eu.example.org"
        path = "/*"
        handler = "one"
    "#;

    #[test]
    fn the_most_exact_host_and_then_the_longest_path_win() {
        let config =
            Config::from_toml(ROUTES, std::path::Path::new(".")).expect("a good configuration");
        let table = RouteTable::new(&config.routes);
        let check = |host: &str, path: &str, handler: &str| {
            let target = format!("{:?}", table.find(host, path).expect("a route").target);
            assert_eq!(
                target,
                format!("Handler(PluginName({handler:?}))"),
                "{host}{path}"
            );
        };
        check("any", "/", "rest");
        check("any", "/chat", "rest");
        check("any", "/chat/x", "chat");
        check("any", "/chat/admin/x", "admin");
        check("any", "/chat/admin/ws", "exact");
        check("a.example.org", "/chat/admin/ws", "org");
        check("a.example.org", "/", "rest");
        check("example.org", "/chat/x", "chat");
        check("a.eu.example.org", "/chat/x", "eu");
        check("one.eu.example.org", "/chat/x", "one");
        assert!(RouteTable::default().find("any", "/").is_none());
    }
}
