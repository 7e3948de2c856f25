//! The route table: (host, path) -> route.
//!
//! An exact host goes before a `*.` pattern, a longer pattern before a shorter, and any host last;
//! among routes of one host an exact path goes before a prefix, and a longer prefix before a
//! shorter. A host whose routes do not fit the path leaves it to the less exact hosts.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::config::{HostPattern, PathPattern, Route};

/// All routes, the most exact first.
#[derive(Debug, Clone, Default)]
pub struct RouteTable(Vec<Arc<Route>>);

impl RouteTable {
    /// Sorts the routes of a checked configuration.
    pub fn new(routes: &[Route]) -> Self {
        let mut routes: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
        routes
            .sort_by_key(|route| Reverse((host_rank(route.host.as_ref()), path_rank(&route.path))));
        Self(routes)
    }

    /// `host`: in lower case, without port. `path`: without the query.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        self.0.iter().find(|route| {
            route
                .host
                .as_ref()
                .is_none_or(|pattern| matches_host(pattern, host))
                && matches_path(&route.path, path)
        })
    }
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

fn matches_host(pattern: &HostPattern, host: &str) -> bool {
    match pattern {
        HostPattern::Exact(exact) => host == exact,
        HostPattern::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
    }
}

fn matches_path(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Exact(exact) => path == exact,
        PathPattern::Prefix(prefix) => path.starts_with(prefix.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
