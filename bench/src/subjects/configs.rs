//! What each peer is told: the text of its configuration.
//!
//! In comes a [`Setup`], out goes text; nothing here touches a file. All are equal where it matters:
//! the same backends in turn, access logs everywhere or nowhere, no limit that a run could reach.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

/// What a peer is to do.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where Pointsman serves its metrics.
    pub admin: SocketAddr,
    /// Where relays lead.
    pub backends: Vec<SocketAddr>,
    /// Threads or processes of the data plane, for peers that have a choice.
    pub workers: usize,
    /// The only processor that the peer may use; all of them if none.
    pub cpu: Option<usize>,
    /// Folder that Pointsman watches for plugins.
    pub plugins: Option<PathBuf>,
    /// A line of each session is written to a file.
    pub has_access_log: bool,
}

/// What Pointsman does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Relays it to a backend that this policy picks.
    Relay(&'static str),
    /// Relays it with the `tap` filter looking in these `directions`.
    Filter(&'static str),
    /// Answers it by this handler.
    Handle(&'static str),
}

/// Where access logs are written, in the folder of the run.
const ACCESS_LOG: &str = "access.log";

/// Longest wait for a client's or a backend's handshake, in milliseconds, where a peer has a setting for it:
/// nginx's default. Thousands that connect at once on one processor wait for each other.
const WAIT_MS: u32 = 60_000;

/// More than any run opens, twice over where a relay counts both of its sides.
const MAX_CONNECTIONS: usize = 20_000;

/// `pointsman.toml`.
pub fn pointsman(setup: &Setup, job: Job) -> String {
    let Setup { workers, .. } = setup;
    let access_log = match setup.has_access_log {
        true => format!("file:{ACCESS_LOG}"),
        false => "off".to_owned(),
    };
    let plugins = setup.plugins.as_ref().map_or_else(String::new, |folder| {
        format!("\n[plugins]\ndir = {:?}\n", folder.display().to_string())
    });
    let (policy, filter) = match job {
        Job::Relay(policy) => (policy, String::new()),
        Job::Filter(directions) => (
            "round_robin",
            format!(
                "\nfilters = [\"tap\"]\n\n[plugin.tap]\nconfig = {{ directions = \"{directions}\" }}"
            ),
        ),
        Job::Handle(_) => ("", String::new()),
    };
    let route = match job {
        Job::Relay(_) | Job::Filter(_) => format!(
            r#"[[upstream]]
name = "backends"
policy = "{policy}"
connect_timeout_ms = 5000
response_timeout_ms = {WAIT_MS}
backends = [{}]

[[route]]
path = "/*"
upstream = "backends"{filter}"#,
            listed(&setup.backends, |backend| format!(
                "{:?}",
                backend.to_string()
            )),
        ),
        Job::Handle(handler) => format!("[[route]]\npath = \"/*\"\nhandler = \"{handler}\""),
    };
    format!(
        r#"workers = {workers}
drain_timeout_secs = 1
access_log = "{access_log}"

[admin]
listen = "{}"
{plugins}
[[listener]]
bind = "{}"
handshake_timeout_ms = {WAIT_MS}

{route}
"#,
        setup.admin, setup.listen,
    )
}

/// `nginx.conf`. `buffers` are lines of its own for the sizes of buffers, or none.
pub fn nginx(setup: &Setup, buffers: &str) -> String {
    let servers: String = setup
        .backends
        .iter()
        .map(|backend| format!("        server {backend};\n"))
        .collect();
    let access_log = match setup.has_access_log {
        true => format!("{ACCESS_LOG} combined buffer=64k flush=1s"),
        false => "off".to_owned(),
    };
    format!(
        r#"daemon off;
worker_processes {};
worker_rlimit_nofile {};
pid nginx.pid;
error_log stderr error;

events {{
    worker_connections {MAX_CONNECTIONS};
}}

http {{
    access_log {access_log};
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;

    upstream backends {{
{servers}    }}

    server {{
        listen {};

        location / {{
            proxy_pass http://backends;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
{buffers}        }}
    }}
}}
"#,
        setup.workers, MAX_CONNECTIONS, setup.listen,
    )
}

/// Lets nginx move as much at a time as the others do; by default it is one page.
pub const NGINX_64K: &str =
    "            proxy_buffer_size 64k;\n            proxy_buffers 8 64k;\n";

/// `haproxy.cfg`. Its sessions count both sides, and one descriptor each is left for checks; so the
/// bound is what the limit of descriptors allows.
pub fn haproxy(setup: &Setup, max_connections: usize) -> String {
    let servers: String = setup
        .backends
        .iter()
        .enumerate()
        .map(|(n, backend)| format!("    server backend{n} {backend}\n"))
        .collect();
    let max_connections = max_connections.min(MAX_CONNECTIONS);
    // Its standard output is the file.
    let (target, lines) = match setup.has_access_log {
        true => (
            "    log stdout format raw local0\n",
            "    log global\n    option httplog\n",
        ),
        false => ("", ""),
    };
    format!(
        "global
    nbthread {}
    maxconn {max_connections}
{target}
defaults
    mode http
{lines}    timeout connect 5s
    timeout http-request 60s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h

frontend clients
    bind {}
    maxconn {max_connections}
    default_backend backends

backend backends
    balance roundrobin
{servers}",
        setup.workers, setup.listen,
    )
}

/// `envoy.json`. The circuit breakers are widened: 1024 requests is their default. A connection is
/// closed as soon as its session has ended: by default Envoy waits a second for the client to close
/// first, which would make of the churn a measure of that second.
pub fn envoy(setup: &Setup) -> String {
    let socket = |address: &SocketAddr| {
        json!({"socket_address": {
            "address": address.ip().to_string(), "port_value": address.port(),
        }})
    };
    let endpoints: Vec<_> = setup
        .backends
        .iter()
        .map(|backend| json!({"endpoint": {"address": socket(backend)}}))
        .collect();
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "stream_idle_timeout": "3600s",
        "delayed_close_timeout": "0s",
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{
                "match": {"prefix": "/"},
                "route": {"cluster": "backends", "timeout": "0s"},
            }],
        }]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        }],
    });
    if setup.has_access_log {
        manager["access_log"] = json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": ACCESS_LOG,
            },
        }]);
    }
    let config = json!({"static_resources": {
        "listeners": [{
            "name": "clients",
            "address": socket(&setup.listen),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }]}],
        }],
        "clusters": [{
            "name": "backends",
            "type": "STATIC",
            "lb_policy": "ROUND_ROBIN",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{
                "max_connections": MAX_CONNECTIONS,
                "max_pending_requests": MAX_CONNECTIONS,
                "max_requests": MAX_CONNECTIONS,
            }]},
            "load_assignment": {
                "cluster_name": "backends",
                "endpoints": [{"lb_endpoints": endpoints}],
            },
        }],
    }});
    format!("{config:#}\n")
}

fn listed<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    items.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        Setup {
            listen: ([127, 0, 0, 1], 8001).into(),
            admin: ([127, 0, 0, 1], 8002).into(),
            backends: (9001..9004)
                .map(|port| ([127, 0, 0, 1], port).into())
                .collect(),
            workers: 2,
            cpu: None,
            plugins: None,
            has_access_log: false,
        }
    }

    #[track_caller]
    fn holds(config: &str, wanted: &[&str]) {
        for wanted in wanted {
            assert!(
                config.contains(wanted),
                "{wanted:?} is missing in\n{config}"
            );
        }
    }

    #[test]
    fn every_relay_leads_to_every_backend_and_listens_where_it_should() {
        let setup = setup();
        for config in [
            pointsman(&setup, Job::Relay("round_robin")),
            nginx(&setup, ""),
            haproxy(&setup, 9000),
        ] {
            let addresses = [
                "127.0.0.1:8001",
                "127.0.0.1:9001",
                "127.0.0.1:9002",
                "127.0.0.1:9003",
            ];
            holds(&config, &addresses);
        }
        let ports = ["8001", "9001", "9002", "9003"].map(|port| format!("\"port_value\": {port}"));
        holds(&envoy(&setup), &ports.each_ref().map(String::as_str));
    }

    #[test]
    fn every_relay_passes_upgrades_on_and_writes_no_access_log() {
        let setup = setup();
        holds(
            &nginx(&setup, NGINX_64K),
            &[
                "access_log off;",
                "worker_processes 2;",
                "proxy_http_version 1.1;",
                "proxy_set_header Upgrade $http_upgrade;",
                "proxy_buffer_size 64k;",
            ],
        );
        holds(
            &haproxy(&setup, 9000),
            &["nbthread 2", "maxconn 9000", "timeout tunnel 1h"],
        );
        assert!(!haproxy(&setup, 9000).contains("log"));
        holds(
            &envoy(&setup),
            &["\"upgrade_type\": \"websocket\"", "\"max_requests\": 20000"],
        );
        assert!(!envoy(&setup).contains("access_log"));
    }

    #[test]
    fn every_relay_writes_an_access_log_where_all_do() {
        let setup = Setup {
            has_access_log: true,
            ..setup()
        };
        let pointsman = pointsman(&setup, Job::Relay("round_robin"));
        holds(&pointsman, &["access_log = \"file:access.log\""]);
        holds(&nginx(&setup, ""), &["access_log access.log combined"]);
        let haproxy = haproxy(&setup, 9000);
        holds(&haproxy, &["log stdout format raw", "option httplog"]);
        holds(&envoy(&setup), &["\"path\": \"access.log\""]);
    }

    #[test]
    fn pointsman_relays_or_handles_and_watches_a_folder_if_there_is_one() {
        let mut setup = setup();
        setup.plugins = Some(PathBuf::from("/tmp/watched"));
        let relay = pointsman(&setup, Job::Relay("least_connections"));
        holds(
            &relay,
            &[
                "workers = 2",
                "policy = \"least_connections\"",
                "connect_timeout_ms = 5000",
                "dir = \"/tmp/watched\"",
            ],
        );
        holds(
            &relay,
            &["listen = \"127.0.0.1:8002\"", "upstream = \"backends\""],
        );
        setup.plugins = None;
        let handle = pointsman(&setup, Job::Handle("echo"));
        holds(&handle, &["handler = \"echo\"", "path = \"/*\""]);
        assert!(!handle.contains("upstream") && !handle.contains("plugins"));
    }
}
