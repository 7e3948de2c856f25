//! A configuration without a file: one upstream, `app`, and one route, `/*`, that leads to it.
//!
//! In come the flags of `pointsman run`, out goes a checked [`Config`] or every [`Problem`], with
//! the flag as its key. Every other value is the default that `file.rs` gives it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use pointsman_contract::names::PluginName;

use super::names::{self, BACKEND_ADDRESS};
use super::reader::{self, Section, Taken};
use super::upstream::{self, BackendSources};
use super::{
    Admin, BackendConfig, Config, Draft, DraftKeys, Flags, Listener, PathPattern, Plugins, Problem,
    Target, Upstream, UpstreamName, file,
};

impl Config {
    /// Serves `flags.backends` at `flags.listen`, whatever host and path a client asks for.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the flags.
    pub fn from_flags(flags: Flags) -> Result<Self, Vec<Problem>> {
        let draft = Draft::from_flags(flags);
        match draft.config {
            Some(config) if draft.problems.is_empty() => Ok(config),
            _ => Err(draft.problems),
        }
    }
}

impl Draft {
    /// Reads flags as [`Config::from_flags`] does, and keeps what could be read where there are problems.
    pub fn from_flags(flags: Flags) -> Self {
        // A section of an empty text has the default of every key.
        let read = reader::read_all("", |s| config(s, flags));
        let keys = read.0.as_ref().map(DraftKeys::of).unwrap_or_default();
        Self::new(read, keys)
    }
}

impl Problem {
    /// Names the flag in place of the key that it stands for: for what turns out only after the flags
    /// were read.
    #[must_use]
    pub fn of_flags(mut self) -> Self {
        let flag = match self.key.as_str() {
            "listener[0].bind" => "--listen",
            "upstream[0].policy" => "--policy",
            "plugins.dir" => "--plugins",
            "admin.listen" => "--admin",
            _ => return self,
        };
        self.key = flag.to_owned();
        self
    }
}

fn config(s: &mut Section<'_, '_>, flags: Flags) -> Option<Config> {
    let mut binds = Taken::new();
    let listener = listener(s, flags.listen, &mut binds);
    let admin = admin(s, flags.admin, &mut binds);
    let upstream = upstream(s, &flags.backends, flags.policy);
    let every_path = PathPattern::Prefix("/".to_owned());
    let target = upstream
        .as_ref()
        .map(|upstream| Target::Upstream(upstream.name.clone()));
    let route = file::route_to(s, None, Some(every_path), true, target);
    Some(Config {
        workers: file::workers(s),
        drain_timeout: file::drain_timeout(s),
        drain_delay: file::drain_delay(s),
        ready_needs_backend: false,
        access_log: file::access_log(s, Path::new("")),
        error_log: file::error_log(s, Path::new("")),
        trusted_proxies: Vec::new(),
        overload: file::overload(s),
        admin,
        listeners: vec![listener?],
        plugins: Plugins {
            dir: flags.plugins,
            ..file::plugins(s, Path::new(""))
        },
        plugin: BTreeMap::new(),
        upstreams: vec![upstream?],
        routes: vec![route?],
    })
}

fn listener(
    s: &mut Section<'_, '_>,
    listen: SocketAddr,
    binds: &mut Taken<SocketAddr>,
) -> Option<Listener> {
    file::unique_bind(s, s.spot("--listen"), listen, binds);
    file::listener_at(s, Some(listen))
}

fn admin(
    s: &mut Section<'_, '_>,
    listen: Option<SocketAddr>,
    binds: &mut Taken<SocketAddr>,
) -> Admin {
    let default = file::admin(s, binds);
    let Some(listen) = listen else { return default };
    let spot = s.spot("--admin");
    if !names::is_loopback(listen) {
        let wanted = "a loopback address; another one asks for admin.token in a file";
        s.problem(&spot, format!("\"{listen}\" is not allowed: {wanted}"));
    }
    file::unique_bind(s, spot, listen, binds);
    Admin {
        listen,
        is_explicit: true,
        ..default
    }
}

fn upstream(
    s: &mut Section<'_, '_>,
    addresses: &[String],
    policy: Option<String>,
) -> Option<Upstream> {
    let mut taken = Taken::new();
    let read = |address: &String| backend(s, address, &mut taken);
    let backends: Vec<BackendConfig> = addresses.iter().filter_map(read).collect();
    if addresses.is_empty() {
        s.problem(&s.spot("--backend"), "missing: at least one backend");
    }
    let found = BackendSources {
        backends,
        ..BackendSources::default()
    };
    let upstream = upstream::upstream_of(s, Some(UpstreamName("app".to_owned())), found)?;
    let Some(policy) = policy else {
        return Some(upstream);
    };
    let Some(policy) = PluginName::parse(&policy) else {
        let allowed = PluginName::ALLOWED;
        s.problem(
            &s.spot("--policy"),
            format!("{policy:?} is not allowed: {allowed}"),
        );
        return None;
    };
    s.names_plugin(&policy, "upstream[0].policy".to_owned());
    Some(Upstream { policy, ..upstream })
}

fn backend(
    s: &mut Section<'_, '_>,
    address: &str,
    taken: &mut Taken<String>,
) -> Option<BackendConfig> {
    let spot = s.spot("--backend");
    if names::canonical_backend(address).is_none() {
        s.problem(
            &spot,
            format!("{address:?} is not allowed: {BACKEND_ADDRESS}"),
        );
        return None;
    }
    upstream::unique_backend(s, spot, address, taken);
    upstream::backend_at(s, Some(address.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn flags(backends: &[&str]) -> Flags {
        Flags {
            listen: "0.0.0.0:8080".parse().unwrap(),
            backends: backends.iter().map(ToString::to_string).collect(),
            policy: None,
            plugins: None,
            admin: None,
        }
    }

    fn check(flags: Flags, expected: &[&str]) {
        let problems = Config::from_flags(flags).err().unwrap_or_default();
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(lines, expected);
        assert!(problems.iter().all(|problem| problem.line.is_none()));
    }

    #[test]
    fn flags_are_a_file_with_one_upstream_and_one_route() {
        let text = "
            listener = [{ bind = '0.0.0.0:8080' }]
            upstream = [{ name = 'app', backends = ['127.0.0.1:3001', 'app:3002'] }]
            route = [{ path = '/*', upstream = 'app' }]";
        let backends = flags(&["127.0.0.1:3001", "app:3002"]);
        assert_eq!(
            Config::from_flags(backends),
            Config::from_toml(text, Path::new(""))
        );
    }

    #[test]
    fn each_flag_is_heard() {
        let config = Config::from_flags(Flags {
            policy: Some("sticky".to_owned()),
            plugins: Some(PathBuf::from("here/plugins")),
            admin: Some("[::1]:0".parse().unwrap()),
            ..flags(&["a:1"])
        })
        .unwrap();
        assert_eq!(config.upstreams[0].policy.as_str(), "sticky");
        assert_eq!(config.plugins.dir, Some(PathBuf::from("here/plugins")));
        assert_eq!(config.plugins.call_timeout, Duration::from_millis(10));
        assert_eq!(config.admin.listen, "[::1]:0".parse().unwrap());
        assert!(config.admin.is_explicit);
    }

    #[test]
    fn a_problem_names_the_flag() {
        check(flags(&["a:1"]), &[]);
        check(flags(&[]), &["--backend: missing: at least one backend"]);
        check(
            Flags {
                policy: Some("Sticky".to_owned()),
                admin: Some("0.0.0.0:8080".parse().unwrap()),
                ..flags(&["app", "app:1", "APP:1"])
            },
            &[
                "--admin: \"0.0.0.0:8080\" is not allowed: a loopback address; another one asks for admin.token in a file",
                "--admin: \"0.0.0.0:8080\" is not allowed: --listen has it already",
                &format!("--backend: \"app\" is not allowed: {BACKEND_ADDRESS}"),
                "--backend: \"APP:1\" is not allowed: --backend has it already",
                &format!(
                    "--policy: \"Sticky\" is not allowed: {}",
                    PluginName::ALLOWED
                ),
            ],
        );
        let admin = Some("0.0.0.0:0".parse().unwrap());
        let lines = [
            "--admin: \"0.0.0.0:0\" is not allowed: a loopback address; another one asks for admin.token in a file",
        ];
        check(
            Flags {
                admin,
                ..flags(&["a:1"])
            },
            &lines,
        );
    }
}
