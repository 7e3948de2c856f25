//! What an operator writes: the keys of the TOML file, each with its range and its default.
//!
//! In comes the text, out goes a checked [`Config`] or every [`Problem`]. `docs/configuration.md`
//! lists the same keys for operators. Nothing here opens a file: a path is taken as it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::thread;
use std::time::Duration;

use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::{QueueSettings, SlowConsumer};

use super::entry::Spot;
use super::names::{self, NETWORK, SOCKET_ADDRESS};
use super::nearest::nearest;
use super::reader::{self, BYTES, MAX_SILENCE_MS, MAX_TIMEOUT_MS, MILLISECONDS, Section, Taken};
use super::{
    AccessLogTarget, Admin, Config, Draft, DraftKeys, ErrorLogSettings, HostPattern,
    HttpLimitsConfig, Isolation, Listener, LogFormat, OnBackendLoss, OnFailure, OriginPattern,
    Overload, PathPattern, PluginSettings, Plugins, Problem, Route, Target, UpstreamName, upstream,
};

const TOKEN: &str = "a token of at least 16 visible ASCII characters";
const ACCESS_LOG: &str = "\"stdout\", \"off\" or \"file:PATH\"";
const LOG_FORMAT: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
const DEFLATE: &[(&str, bool)] = &[("on", true), ("strip", false)];
const ISOLATION: &[(&str, Isolation)] = &[
    ("shared", Isolation::Shared),
    ("session", Isolation::Session),
];
const SLOW_CONSUMER: &[(&str, SlowConsumer)] = &[
    ("close", SlowConsumer::Close),
    ("drop_newest", SlowConsumer::DropNewest),
    ("drop_oldest", SlowConsumer::DropOldest),
];
const ON_FAILURE: &[(&str, OnFailure)] =
    &[("close", OnFailure::Close), ("bypass", OnFailure::Bypass)];
const ON_BACKEND_LOSS: &[(&str, OnBackendLoss)] = &[
    ("abort", OnBackendLoss::Abort),
    ("close", OnBackendLoss::Close),
];
const FILTER: &str =
    "a plugin's name: a lower-case letter, then at most 63 letters, digits, '_' or '-'";
const MAX_SESSIONS_PER_INSTANCE: usize = 65_536;
const MAX_QUEUE_MESSAGES: usize = 65_536;
const MAX_QUEUE_BYTES: usize = 1 << 30;

const MAX_WORKERS: usize = 256;
const MAX_CONNECTIONS: usize = 10_000_000;
/// The least is what a request without a body needs, many times over; the most takes some 130 MB.
const HTTP_RESOURCES: RangeInclusive<usize> = 256..=1_000_000;
const MAX_DRAIN_SECS: u64 = 86_400;
const MAX_DRAIN_DELAY_SECS: u64 = 3600;
const MAX_IDLE_SECS: u64 = 31_536_000;
const MAX_PING_SECS: u64 = 86_400;
/// Short enough to type, too long to guess.
const MIN_TOKEN_BYTES: usize = 16;
const MAX_MESSAGE_BYTES: u64 = 1 << 40;
/// No deflate stream comes near it.
const MAX_INFLATE_RATIO: u32 = 10_000;

/// Keys of the design that this version does not serve: section, key, and the one value that is
/// accepted because it asks for nothing. A key that comes to be served loses its line here.
const RESERVED_KEYS: &[(&str, &str, Option<&str>)] = &[
    ("listener", "proxy_protocol", Some("\"off\"")),
    ("listener", "tls", None),
];

impl Config {
    /// Reads the text of a configuration file; relative paths in it are relative to `base_dir`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with `text`, in the order of its lines; for a text that is no
    /// TOML, the first place where it is none.
    pub fn from_toml(text: &str, base_dir: &Path) -> Result<Self, Vec<Problem>> {
        let draft = Draft::from_toml(text, base_dir);
        match draft.config {
            Some(config) if draft.problems.is_empty() => Ok(config),
            _ => Err(draft.problems),
        }
    }
}

impl Draft {
    /// Reads a text as [`Config::from_toml`] does, and keeps what could be read where there are problems.
    pub fn from_toml(text: &str, base_dir: &Path) -> Self {
        let mut keys = DraftKeys::default();
        let read = reader::read_all(text, |s| root(s, base_dir, &mut keys));
        Self::new(read, keys)
    }
}

// The functions below read all keys of a section before one of them is missed: a key that was not
// asked for counts as unknown. So `?` on a required value stands last.

fn root(s: &mut Section<'_, '_>, base_dir: &Path, keys: &mut DraftKeys) -> Option<Config> {
    s.require_some("listener", "at least one [[listener]]");
    s.require_some("route", "at least one [[route]]");
    let mut binds = Taken::new();
    let mut upstreams = Taken::new();
    let mut routes = Taken::new();
    Some(Config {
        workers: workers(s),
        drain_timeout: drain_timeout(s),
        drain_delay: drain_delay(s),
        ready_needs_backend: s.flag("ready_needs_backend"),
        access_log: access_log(s, base_dir),
        error_log: s.section("error_log", |s| error_log(s, base_dir)),
        trusted_proxies: s.texts("trusted_proxies", NETWORK, names::network),
        overload: s.section("overload", overload),
        admin: s.section("admin", |s| admin(s, &mut binds)),
        listeners: s.sections("listener", |s| listener(s, &mut binds)),
        plugins: s.section("plugins", |s| plugins(s, base_dir)),
        plugin: s.section("plugin", plugin_settings),
        upstreams: s.sections("upstream", |s| {
            let read = upstream::upstream(s, base_dir, &mut upstreams)?;
            keys.upstreams.push(s.spot.path.clone());
            Some(read)
        }),
        routes: s.sections("route", |s| {
            let read = route(s, &upstreams, &mut routes)?;
            keys.routes.push(s.spot.path.clone());
            Some(read)
        }),
    })
}

/// 0 asks for one worker per core.
pub(super) fn workers(s: &mut Section<'_, '_>) -> usize {
    match s.number("workers", "a number of threads", 0..=MAX_WORKERS, 0) {
        0 => thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS)),
        workers => workers,
    }
}

pub(super) fn drain_timeout(s: &mut Section<'_, '_>) -> Duration {
    s.secs("drain_timeout_secs", 0..=MAX_DRAIN_SECS, 30)
}

pub(super) fn drain_delay(s: &mut Section<'_, '_>) -> Duration {
    s.secs("drain_delay_secs", 0..=MAX_DRAIN_DELAY_SECS, 0)
}

pub(super) fn access_log(s: &mut Section<'_, '_>, base_dir: &Path) -> AccessLogTarget {
    let Some(entry) = s.entry("access_log") else {
        return AccessLogTarget::default();
    };
    let text = entry.as_str().unwrap_or_default();
    match (text, text.strip_prefix("file:")) {
        ("stdout", _) => return AccessLogTarget::Stdout,
        ("off", _) => return AccessLogTarget::Off,
        (_, Some(path)) if !path.is_empty() => return AccessLogTarget::File(base_dir.join(path)),
        _ if text.starts_with("syslog:") => s.unsupported(&entry, ACCESS_LOG),
        _ => s.refuse_near(&entry, ACCESS_LOG, nearest(text, ["stdout", "off"])),
    }
    AccessLogTarget::default()
}

pub(super) fn error_log(s: &mut Section<'_, '_>, base_dir: &Path) -> ErrorLogSettings {
    // An empty path is that of no file.
    let file = |text: &str| Some(Some(base_dir.join(text)).filter(|_| !text.is_empty()));
    ErrorLogSettings {
        format: s.word("format", LOG_FORMAT).unwrap_or_default(),
        file: s.text("file", "the path of a file", file).flatten(),
    }
}

pub(super) fn overload(s: &mut Section<'_, '_>) -> Overload {
    let max_sessions = s.number(
        "max_sessions",
        "a number of sessions (0: any)",
        0..=10_000_000,
        0,
    );
    let shed_delay = s.millis("shed_delay_ms", 0..=MAX_TIMEOUT_MS, 1000);
    Overload {
        max_sessions: Some(max_sessions).filter(|max| *max > 0),
        max_buffered_bytes: s.number("max_buffered_bytes", BYTES, 1 << 20..=1 << 40, 256 << 20),
        shed_delay: Some(shed_delay).filter(|delay| !delay.is_zero()),
    }
}

pub(super) fn admin(s: &mut Section<'_, '_>, binds: &mut Taken<SocketAddr>) -> Admin {
    let written = s.text("listen", SOCKET_ADDRESS, |text| text.parse().ok());
    let token = token(s);
    let listen = written.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9900)));
    if written.is_some() {
        unique_bind(s, s.spot("listen"), listen, binds);
    }
    if !names::is_loopback(listen) && !s.has("token") {
        let spot = Spot {
            path: s.spot("token").path,
            ..s.spot("listen")
        };
        let wanted = format!("{listen} is not a loopback address, which asks for {TOKEN}");
        s.problem(&spot, format!("missing: {wanted}"));
    }
    Admin {
        listen,
        is_explicit: written.is_some(),
        token,
        hosts: s.texts("hosts", HostPattern::ALLOWED, HostPattern::parse),
    }
}

/// A problem with the token does not repeat it: problems are logged.
fn token(s: &mut Section<'_, '_>) -> Option<String> {
    let is_fine = |token: &&str| {
        token.len() >= MIN_TOKEN_BYTES && token.chars().all(|c| c.is_ascii_graphic())
    };
    let entry = s.entry("token")?;
    let token = entry.as_str().filter(is_fine);
    if token.is_none() {
        s.problem(&entry.spot, format!("this value is not allowed: {TOKEN}"));
    }
    token.map(str::to_owned)
}

fn listener(s: &mut Section<'_, '_>, binds: &mut Taken<SocketAddr>) -> Option<Listener> {
    let bind = s.required_text("bind", SOCKET_ADDRESS, |text| text.parse().ok());
    if let Some(bind) = bind {
        unique_bind(s, s.spot("bind"), bind, binds);
    }
    refuse_unserved(s, "listener");
    listener_at(s, bind)
}

/// All of a listener but its address.
pub(super) fn listener_at(s: &mut Section<'_, '_>, bind: Option<SocketAddr>) -> Option<Listener> {
    let per_client = s.number(
        "max_connections_per_client",
        "a number of connections (0: any)",
        0..=MAX_CONNECTIONS,
        0,
    );
    let connections = "a number of connections";
    Some(Listener {
        max_connections: s.number("max_connections", connections, 1..=MAX_CONNECTIONS, 100_000),
        max_connections_per_client: Some(per_client).filter(|max| *max > 0),
        max_handshakes: s.number("max_handshakes", connections, 1..=MAX_CONNECTIONS, 10_000),
        handshake_timeout: s.millis("handshake_timeout_ms", 1..=MAX_TIMEOUT_MS, 5000),
        keep_alive_timeout: s.millis("keep_alive_timeout_ms", 1..=MAX_SILENCE_MS, 75_000),
        max_request_header_bytes: s.number(
            "max_request_header_bytes",
            BYTES,
            8192..=1_048_576,
            16_384,
        ),
        bind: bind?,
    })
}

/// Reports an address that is bound already. Port 0 is a new port each time.
pub(super) fn unique_bind(
    s: &mut Section<'_, '_>,
    spot: Spot,
    bind: SocketAddr,
    binds: &mut Taken<SocketAddr>,
) {
    if bind.port() != 0 {
        s.unique(spot, &format!("\"{bind}\""), bind, binds);
    }
}

pub(super) fn plugins(s: &mut Section<'_, '_>, base_dir: &Path) -> Plugins {
    let dir = |text: &str| Some(base_dir.join(text)).filter(|_| !text.is_empty());
    Plugins {
        dir: s.text("dir", "the path of a folder", dir),
        call_timeout: call_timeout(s).unwrap_or(Duration::from_millis(10)),
        memory_max_bytes: memory_max_bytes(s).unwrap_or(16 << 20),
        compile_timeout: s.millis("compile_timeout_ms", 1..=MAX_TIMEOUT_MS, 60_000),
        http: http_limits(s),
    }
}

fn http_limits(s: &mut Section<'_, '_>) -> HttpLimitsConfig {
    let mut millis = |key, max| {
        let written = s.number_if_written(key, MILLISECONDS, 1..=max);
        written.map(Duration::from_millis)
    };
    HttpLimitsConfig {
        head_timeout: millis("http_head_timeout_ms", MAX_TIMEOUT_MS),
        idle_timeout: millis("http_idle_timeout_ms", MAX_SILENCE_MS),
        max_resources: s.number_if_written(
            "http_max_resources",
            "a number of resources",
            HTTP_RESOURCES,
        ),
    }
}

fn call_timeout(s: &mut Section<'_, '_>) -> Option<Duration> {
    let written = s.number_if_written("call_timeout_ms", MILLISECONDS, 1..=10_000);
    written.map(Duration::from_millis)
}

fn memory_max_bytes(s: &mut Section<'_, '_>) -> Option<usize> {
    let written: u64 = s.number_if_written("memory_max_bytes", BYTES, 65_536..=4_294_967_296)?;
    // 4 GiB does not fit where an address has 32 bits; one byte less does.
    Some(usize::try_from(written).unwrap_or(usize::MAX))
}

fn plugin_settings(s: &mut Section<'_, '_>) -> BTreeMap<PluginName, PluginSettings> {
    let mut settings = BTreeMap::new();
    for key in s.names() {
        let read = s.section(&key, |s| PluginSettings {
            config: s.json("config"),
            isolation: s.word("isolation", ISOLATION).unwrap_or_default(),
            sessions_per_instance: s.number(
                "sessions_per_instance",
                "a number of sessions",
                1..=MAX_SESSIONS_PER_INSTANCE,
                PluginSettings::SESSIONS_PER_INSTANCE,
            ),
            call_timeout: call_timeout(s),
            memory_max_bytes: memory_max_bytes(s),
            http: http_limits(s),
            queue: queue(s),
        });
        match PluginName::parse(&key) {
            Some(name) => {
                settings.insert(name, read);
            }
            None => {
                let allowed = PluginName::ALLOWED;
                s.problem(&s.spot(&key), format!("{key:?} is not allowed: {allowed}"));
            }
        }
    }
    settings
}

fn queue(s: &mut Section<'_, '_>) -> QueueSettings {
    let default = QueueSettings::default();
    QueueSettings {
        max_messages: s.number(
            "queue_max_messages",
            "a number of messages",
            1..=MAX_QUEUE_MESSAGES,
            default.max_messages,
        ),
        max_bytes: s.number(
            "queue_max_bytes",
            BYTES,
            1..=MAX_QUEUE_BYTES,
            default.max_bytes,
        ),
        slow_consumer: s.word("slow_consumer", SLOW_CONSUMER).unwrap_or_default(),
    }
}

/// Host, path, and whether the path's case counts.
type Matched = (Option<String>, PathPattern, bool);

fn route(
    s: &mut Section<'_, '_>,
    upstreams: &Taken<UpstreamName>,
    taken: &mut Taken<Matched>,
) -> Option<Route> {
    let host = s.text("host", HostPattern::ALLOWED, HostPattern::parse);
    let path = s.required_text("path", PathPattern::ALLOWED, PathPattern::parse);
    let is_case_sensitive = s.flag_or("case_sensitive", true);
    // A host that was refused is no reason to say that the route is there twice.
    if let Some(path) = &path
        && s.has("host") == host.is_some()
    {
        let host = host.as_ref().map(ToString::to_string);
        let matched = (host.clone(), path.clone(), true);
        let is_new = !taken.contains_key(&matched);
        s.unique(s.spot.clone(), "this host and path", matched, taken);
        if is_new && !is_case_sensitive {
            let matched = (host, path.to_ascii_lowercase(), false);
            let what = "this host and path, whose case does not count,";
            s.unique(s.spot.clone(), what, matched, taken);
        }
    }
    let target = target(s, upstreams);
    route_to(s, host, path, is_case_sensitive, target)
}

/// All of a route but what it matches and where it leads.
pub(super) fn route_to(
    s: &mut Section<'_, '_>,
    host: Option<HostPattern>,
    path: Option<PathPattern>,
    is_case_sensitive: bool,
    target: Option<Target>,
) -> Option<Route> {
    let ping_interval = s.secs("ping_interval_secs", 0..=MAX_PING_SECS, 0);
    Some(Route {
        filters: filters(s, target.as_ref()),
        on_failure: s.word("on_failure", ON_FAILURE).unwrap_or_default(),
        on_backend_loss: s
            .word("on_backend_loss", ON_BACKEND_LOSS)
            .unwrap_or_default(),
        host,
        origins: s.texts("origins", OriginPattern::ALLOWED, OriginPattern::parse),
        idle_timeout: s.secs("idle_timeout_secs", 1..=MAX_IDLE_SECS, 3600),
        ping_interval: Some(ping_interval).filter(|interval| !interval.is_zero()),
        message_timeout: s.millis("message_timeout_ms", 1..=MAX_SILENCE_MS, 30_000),
        send_timeout: s.millis("send_timeout_ms", 1..=MAX_SILENCE_MS, 60_000),
        head_timeout: s
            .number_if_written("head_timeout_ms", MILLISECONDS, 1..=MAX_SILENCE_MS)
            .map(Duration::from_millis),
        read_timeout: s.millis("read_timeout_ms", 1..=MAX_SILENCE_MS, 60_000),
        body_timeout: s.millis("body_timeout_ms", 1..=MAX_SILENCE_MS, 60_000),
        max_message_bytes: s.number_if_written("max_message_bytes", BYTES, 1..=MAX_MESSAGE_BYTES),
        max_inflate_ratio: Some(s.number(
            "max_inflate_ratio",
            "a ratio (0: any)",
            0..=MAX_INFLATE_RATIO,
            0,
        ))
        .filter(|ratio| *ratio > 0),
        deflate: s.word("deflate", DEFLATE).unwrap_or(true),
        path: path?,
        is_case_sensitive,
        target: target?,
    })
}

/// Filters stand between a client and a backend; a handler is told everything itself.
fn filters(s: &mut Section<'_, '_>, target: Option<&Target>) -> Vec<PluginName> {
    let filters = s.texts_at("filters", FILTER, PluginName::parse);
    let named = |s: &mut Section<'_, '_>, (name, path)| {
        s.names_plugin(&name, path);
        name
    };
    let filters: Vec<_> = (filters.into_iter().map(|filter| named(s, filter))).collect();
    let leads_elsewhere = matches!(target, Some(Target::Handler(_) | Target::Http(_)));
    if !filters.is_empty() && leads_elsewhere {
        let message = "only a route to an upstream has filters";
        s.problem(&s.spot("filters"), message);
    }
    filters
}

fn target(s: &mut Section<'_, '_>, upstreams: &Taken<UpstreamName>) -> Option<Target> {
    const KEYS: [&str; 3] = ["upstream", "handler", "http"];
    let upstream = s.text("upstream", UpstreamName::ALLOWED, UpstreamName::parse);
    let handler = s.text("handler", PluginName::ALLOWED, PluginName::parse);
    let http = s.text("http", PluginName::ALLOWED, PluginName::parse);
    for (key, name) in [("handler", &handler), ("http", &http)] {
        if let Some(name) = name {
            s.names_plugin(name, s.spot(key).path);
        }
    }
    if let Some(name) = upstream
        .as_ref()
        .filter(|name| !upstreams.contains_key(name))
    {
        let names: Vec<&str> = upstreams.keys().map(UpstreamName::as_str).collect();
        let allowed = match names.as_slice() {
            [] => "there is no [[upstream]]".to_owned(),
            names => format!("one of {}", names.join(", ")),
        };
        let near = nearest(name.as_str(), names);
        let meant = near.map(|near| format!("; did you mean \"{near}\"?"));
        let meant = meant.unwrap_or_default();
        s.problem(
            &s.spot("upstream"),
            format!("\"{name}\" is not allowed: {allowed}{meant}"),
        );
    }
    let written: Vec<&str> = KEYS.into_iter().filter(|key| s.has(key)).collect();
    match written.as_slice() {
        [] => s.problem(&s.spot.clone(), "missing: one of upstream, handler, http"),
        [_] => {}
        several => {
            let found = several.join(" and ");
            let allowed = "exactly one of upstream, handler, http";
            s.problem(
                &s.spot.clone(),
                format!("{found} together are not allowed: {allowed}"),
            );
        }
    }
    let handler = handler.map(Target::Handler).or(http.map(Target::Http));
    upstream.map(Target::Upstream).or(handler)
}

fn refuse_unserved(s: &mut Section<'_, '_>, section: &str) {
    for (_, key, only) in RESERVED_KEYS.iter().filter(|(of, _, _)| *of == section) {
        s.refuse_unserved(key, *only);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::names::BACKEND_ADDRESS;
    use super::super::{
        BackendConfig, BackendTls, Dns, Ejection, Health, Probe, QueueConfig, Statuses, Upstream,
    };
    use super::*;

    /// All that this version serves, with values other than the defaults where that shows more.
    const SAMPLE: &str = r#"
workers = 3
drain_timeout_secs = 30
drain_delay_secs = 5
ready_needs_backend = true
access_log = "file:logs/access.log"
trusted_proxies = ["127.0.0.0/8", "10.0.0.1"]

[error_log]
format = "json"
file = "/var/log/pointsman.log"

[overload]
max_sessions = 90000
max_buffered_bytes = 1048576
shed_delay_ms = 0

[admin]
listen = "127.0.0.1:9900"
hosts = ["LB1", "*.ops.example"]

[[listener]]
bind = "0.0.0.0:8080"
max_connections = 100000
max_connections_per_client = 200
max_handshakes = 5000
proxy_protocol = "off"
handshake_timeout_ms = 5000
keep_alive_timeout_ms = 10000
max_request_header_bytes = 16384

[plugins]
dir = "plugins"
call_timeout_ms = 10
memory_max_bytes = 16777216
compile_timeout_ms = 30000
http_head_timeout_ms = 5000

[plugin.chat]
config = { room_limit = 500, since = 2026-01-02T03:04:05Z }
isolation = "session"
sessions_per_instance = 8
call_timeout_ms = 50
memory_max_bytes = 1048576
http_idle_timeout_ms = 3600000
http_max_resources = 1000
queue_max_messages = 100
queue_max_bytes = 65536
slow_consumer = "drop_oldest"

[[upstream]]
name = "app"
policy = "least_connections"
policy_config = { of = ["a", 2.5, true] }
backends = ["127.0.0.1:3001", { address = "App:3002", weight = 2, max_sessions = 5000, backup = true, labels = { zone = "a" } }]
connect_timeout_ms = 1000
response_timeout_ms = 5000
head_timeout_ms = 90000
retry_on_timeout = true
retries = 2
slow_start_secs = 30
retry_budget_percent = 20
queue_max = 100
queue_timeout_ms = 3000
panic_threshold_percent = 50
backends_file = "backends.toml"
dns = { name = "_ws._tcp.app.internal", refresh_secs = 7, server = "127.0.0.1:5353" }
tls = { ca = "ca.pem", server_name = "app", insecure_skip_verify = true }
[upstream.health]
kind = "websocket"
path = "/websocket"
host = "app.example.org"
headers = { Authorization = "Bearer of-probes" }
expect = "101, 401-403"
[upstream.ejection]
failures = 3
eject_on_timeout = true

[[route]]
host = "*.Example.org"
path = "/websocket"
case_sensitive = false
upstream = "app"
filters = ["rate_limit", "tap"]
on_failure = "bypass"
on_backend_loss = "close"
origins = ["https://app.example.org"]
idle_timeout_secs = 3600
ping_interval_secs = 20
message_timeout_ms = 10000
send_timeout_ms = 86400000
head_timeout_ms = 86400000
read_timeout_ms = 20000
body_timeout_ms = 40000
max_message_bytes = 1048576
deflate = "strip"
max_inflate_ratio = 200

[[route]]
path = "/chat/*"
handler = "chat"

[[route]]
path = "/hello"
http = "hello"
"#;

    const LISTENER: &str = "[[listener]]\nbind = '127.0.0.1:0'\n";
    const UPSTREAM: &str = "[[upstream]]
name = 'app'
backends = ['a:1']
";
    const ROUTE: &str = "[[route]]
path = '/'
handler = 'echo'
";

    fn parse(text: &str) -> Result<Config, Vec<Problem>> {
        Config::from_toml(text, Path::new("/etc/pointsman"))
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let problems = parse(text).err().unwrap_or_default();
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(lines, expected, "{text}");
    }

    /// `text` is the first line and on, and lacks a listener and a route.
    #[track_caller]
    fn check_root(text: &str, expected: &[&str]) {
        check(&format!("{text}\n{LISTENER}{ROUTE}"), expected);
    }

    /// `lines` go into a listener from line 3 on.
    #[track_caller]
    fn check_listener(lines: &str, expected: &[&str]) {
        check(&format!("{LISTENER}{lines}\n{ROUTE}"), expected);
    }

    /// `lines` go into an upstream from line 4 on.
    #[track_caller]
    fn check_upstream(lines: &str, expected: &[&str]) {
        check(&format!("{UPSTREAM}{lines}\n{LISTENER}{ROUTE}"), expected);
    }

    /// `lines` go into a route to a handler from line 4 on.
    #[track_caller]
    fn check_route(lines: &str, expected: &[&str]) {
        check(&format!("{ROUTE}{lines}\n{LISTENER}{UPSTREAM}"), expected);
    }

    fn upstream_name(name: &str) -> UpstreamName {
        UpstreamName::parse(name).unwrap()
    }

    fn plugin_name(name: &str) -> PluginName {
        PluginName::parse(name).unwrap()
    }

    #[test]
    fn the_sample_is_read_whole() {
        let expected = Config {
            workers: 3,
            drain_timeout: Duration::from_secs(30),
            drain_delay: Duration::from_secs(5),
            ready_needs_backend: true,
            access_log: AccessLogTarget::File(PathBuf::from("/etc/pointsman/logs/access.log")),
            error_log: ErrorLogSettings {
                format: LogFormat::Json,
                file: Some(PathBuf::from("/var/log/pointsman.log")),
            },
            trusted_proxies: vec![
                "127.0.0.0/8".parse().unwrap(),
                "10.0.0.1/32".parse().unwrap(),
            ],
            overload: Overload {
                max_sessions: Some(90_000),
                max_buffered_bytes: 1 << 20,
                shed_delay: None,
            },
            admin: Admin {
                listen: "127.0.0.1:9900".parse().unwrap(),
                is_explicit: true,
                token: None,
                hosts: vec![
                    HostPattern::Exact("lb1".to_owned()),
                    HostPattern::Suffix(".ops.example".to_owned()),
                ],
            },
            listeners: vec![Listener {
                bind: "0.0.0.0:8080".parse().unwrap(),
                max_connections: 100_000,
                max_connections_per_client: Some(200),
                max_handshakes: 5000,
                handshake_timeout: Duration::from_secs(5),
                keep_alive_timeout: Duration::from_secs(10),
                max_request_header_bytes: 16_384,
            }],
            plugins: Plugins {
                dir: Some(PathBuf::from("/etc/pointsman/plugins")),
                call_timeout: Duration::from_millis(10),
                memory_max_bytes: 16 << 20,
                compile_timeout: Duration::from_secs(30),
                http: HttpLimitsConfig {
                    head_timeout: Some(Duration::from_secs(5)),
                    ..HttpLimitsConfig::default()
                },
            },
            plugin: BTreeMap::from([(
                plugin_name("chat"),
                PluginSettings {
                    config: serde_json::json!({ "room_limit": 500, "since": "2026-01-02T03:04:05Z" }),
                    isolation: Isolation::Session,
                    sessions_per_instance: 8,
                    call_timeout: Some(Duration::from_millis(50)),
                    memory_max_bytes: Some(1 << 20),
                    http: HttpLimitsConfig {
                        head_timeout: None,
                        idle_timeout: Some(Duration::from_secs(3600)),
                        max_resources: Some(1000),
                    },
                    queue: QueueSettings {
                        max_messages: 100,
                        max_bytes: 65_536,
                        slow_consumer: SlowConsumer::DropOldest,
                    },
                },
            )]),
            upstreams: vec![Upstream {
                name: upstream_name("app"),
                policy: plugin_name("least_connections"),
                policy_config: serde_json::json!({ "of": ["a", 2.5, true] }),
                backends: vec![
                    BackendConfig::at("127.0.0.1:3001".to_owned()),
                    BackendConfig {
                        address: "App:3002".to_owned(),
                        weight: 2,
                        max_sessions: Some(5000),
                        is_backup: true,
                        is_draining: false,
                        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
                    },
                ],
                connect_timeout: Duration::from_secs(1),
                response_timeout: Duration::from_secs(5),
                head_timeout: Duration::from_secs(90),
                retry_on_timeout: true,
                retries: 2,
                backends_file: Some(PathBuf::from("/etc/pointsman/backends.toml")),
                dns: Some(Dns {
                    name: "_ws._tcp.app.internal".to_owned(),
                    port: None,
                    refresh: Duration::from_secs(7),
                    server: Some("127.0.0.1:5353".parse().unwrap()),
                }),
                tls: Some(BackendTls {
                    ca: Some(PathBuf::from("/etc/pointsman/ca.pem")),
                    server_name: Some("app".to_owned()),
                    insecure_skip_verify: true,
                }),
                retry_budget_percent: 20,
                queue: QueueConfig {
                    max: 100,
                    timeout: Duration::from_secs(3),
                },
                slow_start: Duration::from_secs(30),
                panic_threshold_percent: 50,
                health: Some(Health {
                    probe: Probe::WebSocket {
                        path: "/websocket".to_owned(),
                    },
                    host: Some("app.example.org".to_owned()),
                    headers: vec![("Authorization".to_owned(), "Bearer of-probes".to_owned())],
                    expect: Statuses::parse("101,401-403"),
                    interval: Duration::from_secs(2),
                    timeout: Duration::from_secs(1),
                    rise: 2,
                    fall: 3,
                }),
                ejection: Some(Ejection {
                    failures: 3,
                    window: Duration::from_secs(10),
                    eject: Duration::from_secs(10),
                    max_ejected_percent: 50,
                    eject_on_timeout: true,
                }),
            }],
            routes: vec![
                Route {
                    host: Some(HostPattern::Suffix(".example.org".to_owned())),
                    path: PathPattern::Exact("/websocket".to_owned()),
                    is_case_sensitive: false,
                    target: Target::Upstream(upstream_name("app")),
                    filters: vec![plugin_name("rate_limit"), plugin_name("tap")],
                    on_failure: OnFailure::Bypass,
                    on_backend_loss: OnBackendLoss::Close,
                    origins: vec![OriginPattern::parse("https://app.example.org").unwrap()],
                    idle_timeout: Duration::from_secs(3600),
                    ping_interval: Some(Duration::from_secs(20)),
                    message_timeout: Duration::from_secs(10),
                    send_timeout: Duration::from_secs(86_400),
                    head_timeout: Some(Duration::from_secs(86_400)),
                    read_timeout: Duration::from_secs(20),
                    body_timeout: Duration::from_secs(40),
                    max_message_bytes: Some(1 << 20),
                    max_inflate_ratio: Some(200),
                    deflate: false,
                },
                Route {
                    host: None,
                    path: PathPattern::Prefix("/chat/".to_owned()),
                    is_case_sensitive: true,
                    target: Target::Handler(plugin_name("chat")),
                    filters: Vec::new(),
                    on_failure: OnFailure::Close,
                    on_backend_loss: OnBackendLoss::Abort,
                    origins: Vec::new(),
                    idle_timeout: Duration::from_secs(3600),
                    ping_interval: None,
                    message_timeout: Duration::from_secs(30),
                    send_timeout: Duration::from_secs(60),
                    head_timeout: None,
                    read_timeout: Duration::from_secs(60),
                    body_timeout: Duration::from_secs(60),
                    max_message_bytes: None,
                    max_inflate_ratio: None,
                    deflate: true,
                },
                Route {
                    host: None,
                    path: PathPattern::Exact("/hello".to_owned()),
                    is_case_sensitive: true,
                    target: Target::Http(plugin_name("hello")),
                    filters: Vec::new(),
                    on_failure: OnFailure::Close,
                    on_backend_loss: OnBackendLoss::Abort,
                    origins: Vec::new(),
                    idle_timeout: Duration::from_secs(3600),
                    ping_interval: None,
                    message_timeout: Duration::from_secs(30),
                    send_timeout: Duration::from_secs(60),
                    head_timeout: None,
                    read_timeout: Duration::from_secs(60),
                    body_timeout: Duration::from_secs(60),
                    max_message_bytes: None,
                    max_inflate_ratio: None,
                    deflate: true,
                },
            ],
        };
        assert_eq!(parse(SAMPLE), Ok(expected));
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let config = parse(&format!(
            "{LISTENER}{UPSTREAM}[plugin.echo]
{ROUTE}[[route]]
path = '/*'
upstream = 'app'"
        ))
        .unwrap();
        let cores = thread::available_parallelism().unwrap().get();
        assert_eq!(config.workers, cores.min(256));
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
        assert_eq!(config.trusted_proxies, []);
        assert!(!config.ready_needs_backend);
        let listen = "127.0.0.1:9900".parse().unwrap();
        assert_eq!(
            config.admin,
            Admin {
                listen,
                is_explicit: false,
                token: None,
                hosts: vec![],
            }
        );
        assert_eq!(config.listeners[0].max_connections, 100_000);
        assert_eq!(
            config.listeners[0].handshake_timeout,
            Duration::from_secs(5)
        );
        assert_eq!(config.listeners[0].max_request_header_bytes, 16_384);
        let call_timeout = Duration::from_millis(10);
        let expected = Plugins {
            dir: None,
            call_timeout,
            memory_max_bytes: 16 << 20,
            compile_timeout: Duration::from_secs(60),
            http: HttpLimitsConfig::default(),
        };
        assert_eq!(config.plugins, expected);
        assert_eq!(
            config.plugin[&plugin_name("echo")],
            PluginSettings::default()
        );
        let upstream = &config.upstreams[0];
        assert_eq!(upstream.policy, plugin_name("round_robin"));
        assert_eq!(upstream.policy_config, serde_json::json!({}));
        assert_eq!(upstream.connect_timeout, Duration::from_secs(1));
        assert_eq!(upstream.response_timeout, Duration::from_secs(5));
        assert_eq!((upstream.retries, upstream.retry_budget_percent), (2, 100));
        assert_eq!(upstream.queue.max, 0);
        assert_eq!((&upstream.health, &upstream.ejection), (&None, &None));
        assert_eq!((&upstream.dns, &upstream.tls), (&None, &None));
        let route = &config.routes[1];
        assert_eq!(route.idle_timeout, Duration::from_secs(3600));
        assert_eq!((route.ping_interval, route.max_message_bytes), (None, None));
        assert_eq!(config.routes[0].shown_message_bytes(), 1 << 20);
    }

    #[test]
    fn a_folder_is_relative_to_the_file() {
        for (dir, expected) in [("p/q", "/etc/pointsman/p/q"), ("/srv/p", "/srv/p")] {
            let config = parse(&format!("plugins.dir = '{dir}'\n{LISTENER}{ROUTE}")).unwrap();
            assert_eq!(config.plugins.dir, Some(PathBuf::from(expected)));
        }
        check_root(
            "plugins.dir = ''",
            &["line 1: plugins.dir: '' is not allowed: the path of a folder"],
        );
    }

    #[test]
    fn keys_of_the_design_that_are_not_served_are_named() {
        check(
            r#"
[[listener]]
bind = "0.0.0.0:8080"
proxy_protocol = "v1"
tls = { cert = "cert.pem", key = "key.pem", client_ca = "ca.pem" }
[[upstream]]
name = "app"
backends = ["127.0.0.1:3001"]
[[route]]
path = "/websocket"
upstream = "app"
"#,
            &[
                "line 4: listener[0].proxy_protocol: \"v1\" is not supported by this version: only \"off\"",
                "line 5: listener[0].tls: this key is not supported by this version",
            ],
        );
    }

    #[test]
    fn filters_stand_before_an_upstream_and_queues_have_bounds() {
        check(
            &format!(
                "[plugin.chat]
queue_max_messages = 0
queue_max_bytes = '1M'
slow_consumer = 'wait'
{LISTENER}{UPSTREAM}[[route]]
path = '/a'
upstream = 'app'
filters = ['Tap', 1, 'tap']
on_failure = 'ignore'
on_backend_loss = 'reset'
[[route]]
path = '/b'
handler = 'echo'
filters = ['tap']
"
            ),
            &[
                "line 2: plugin.chat.queue_max_messages: 0 is not allowed: a number of messages, 1 to 65536",
                "line 3: plugin.chat.queue_max_bytes: '1M' is not allowed: a number of bytes, 1 to 1073741824",
                "line 4: plugin.chat.slow_consumer: 'wait' is not allowed: \"close\", \"drop_newest\" or \"drop_oldest\"",
                "line 13: route[0].filters[0]: 'Tap' is not allowed: a plugin's name: a lower-case letter, then at most 63 letters, digits, '_' or '-'",
                "line 13: route[0].filters[1]: 1 is not allowed: a plugin's name: a lower-case letter, then at most 63 letters, digits, '_' or '-'",
                "line 14: route[0].on_failure: 'ignore' is not allowed: \"close\" or \"bypass\"",
                "line 15: route[0].on_backend_loss: 'reset' is not allowed: \"abort\" or \"close\"",
                "line 19: route[1].filters: only a route to an upstream has filters",
            ],
        );
    }

    #[test]
    fn a_file_without_the_essentials_says_what_is_missing() {
        let lines = [
            "listener: missing: at least one [[listener]]",
            "route: missing: at least one [[route]]",
        ];
        check("", &lines);
        check(
            "listener = []\nroute = []",
            &[
                "line 1: listener: [] is not allowed: at least one [[listener]]",
                "line 2: route: [] is not allowed: at least one [[route]]",
            ],
        );
        check(
            "[[listener]]\n[[upstream]]\n[[route]]",
            &[
                &format!("line 1: listener[0].bind: missing: {SOCKET_ADDRESS}"),
                &format!(
                    "line 2: upstream[0].name: missing: {}",
                    UpstreamName::ALLOWED
                ),
                "line 2: upstream[0].backends: missing: at least one backend",
                &format!("line 3: route[0].path: missing: {}", PathPattern::ALLOWED),
                "line 3: route[0]: missing: one of upstream, handler, http",
            ],
        );
    }

    #[test]
    fn a_wrong_type_hides_no_other_problem() {
        check_upstream(
            "retries = 'two'\nretires = 2\n[route_]",
            &[
                "line 4: upstream[0].retries: 'two' is not allowed: a number of backends, 0 to 100",
                "line 5: upstream[0].retires: unknown key: did you mean retries?",
                "line 6: route_: unknown key: did you mean route?",
            ],
        );
        check_root("admin = 5", &["line 1: admin: 5 is not allowed: a table"]);
        check_root(
            "access_log = false",
            &[&format!(
                "line 1: access_log: false is not allowed: {ACCESS_LOG}"
            )],
        );
    }

    #[test]
    fn logs_have_their_places() {
        let config = |text: &str| parse(&format!("{text}\n{LISTENER}{ROUTE}")).unwrap();
        for (text, expected) in [
            ("", AccessLogTarget::Stdout),
            ("access_log = 'stdout'", AccessLogTarget::Stdout),
            ("access_log = 'off'", AccessLogTarget::Off),
            (
                "access_log = 'file:/a b'",
                AccessLogTarget::File(PathBuf::from("/a b")),
            ),
        ] {
            assert_eq!(config(text).access_log, expected, "{text}");
        }
        let nothing = ErrorLogSettings::default();
        assert_eq!(config("error_log = { file = '' }").error_log, nothing);
        let file = Some(PathBuf::from("/etc/pointsman/a"));
        assert_eq!(config("error_log.file = 'a'").error_log.file, file);
        for (value, meant) in [
            ("'file:'", ""),
            ("'/a'", ""),
            ("'Off'", "; did you mean \"off\"?"),
            ("'stdot'", "; did you mean \"stdout\"?"),
            ("''", ""),
        ] {
            check_root(
                &format!("access_log = {value}"),
                &[&format!(
                    "line 1: access_log: {value} is not allowed: {ACCESS_LOG}{meant}"
                )],
            );
        }
        check_root(
            "access_log = 'syslog:127.0.0.1:514'",
            &[&format!(
                "line 1: access_log: 'syslog:127.0.0.1:514' is not supported by this version: only {ACCESS_LOG}"
            )],
        );
        check_root(
            "error_log = { format = 'xml', file = 1, level = 'info' }",
            &[
                "line 1: error_log.format: 'xml' is not allowed: \"text\" or \"json\"",
                "line 1: error_log.file: 1 is not allowed: the path of a file",
                "line 1: error_log.level: unknown key: one of format, file",
            ],
        );
    }

    #[test]
    fn numbers_have_a_range() {
        let root = |key: &str, low: &str, high: &str, allowed: &str| {
            for value in [low, high, "1.0", "'1'", "-1"] {
                let line = format!("line 1: {key}: {value} is not allowed: {allowed}");
                check_root(&format!("{key} = {value}"), &[&line]);
            }
        };
        root("workers", "-2", "257", "a number of threads, 0 to 256");
        root(
            "drain_timeout_secs",
            "-2",
            "86401",
            "a number of seconds, 0 to 86400",
        );
        root(
            "drain_delay_secs",
            "-2",
            "3601",
            "a number of seconds, 0 to 3600",
        );
        for (key, low, high, allowed) in [
            (
                "max_sessions",
                "-1",
                "10000001",
                "a number of sessions (0: any), 0 to 10000000",
            ),
            (
                "max_buffered_bytes",
                "1048575",
                "1099511627777",
                "a number of bytes, 1048576 to 1099511627776",
            ),
            (
                "shed_delay_ms",
                "-1",
                "600001",
                "a number of milliseconds, 0 to 600000",
            ),
        ] {
            root(&format!("overload.{key}"), low, high, allowed);
        }
        root(
            "plugins.call_timeout_ms",
            "0",
            "10001",
            "a number of milliseconds, 1 to 10000",
        );
        let allowed = "a number of bytes, 65536 to 4294967296";
        let wanted = "a number of milliseconds, 1 to 600000";
        root("plugins.compile_timeout_ms", "0", "600001", wanted);
        root("plugins.memory_max_bytes", "65535", "4294967297", allowed);
        root("plugins.http_head_timeout_ms", "0", "600001", wanted);
        let wanted = "a number of milliseconds, 1 to 86400000";
        root("plugins.http_idle_timeout_ms", "0", "86400001", wanted);
        let wanted = "a number of resources, 256 to 1000000";
        root("plugins.http_max_resources", "255", "1000001", wanted);
        for (key, low, high, allowed) in [
            (
                "max_connections",
                "0",
                "10000001",
                "a number of connections, 1 to 10000000",
            ),
            (
                "max_connections_per_client",
                "-1",
                "10000001",
                "a number of connections (0: any), 0 to 10000000",
            ),
            (
                "max_handshakes",
                "0",
                "10000001",
                "a number of connections, 1 to 10000000",
            ),
            (
                "handshake_timeout_ms",
                "0",
                "600001",
                "a number of milliseconds, 1 to 600000",
            ),
            (
                "max_request_header_bytes",
                "8191",
                "1048577",
                "a number of bytes, 8192 to 1048576",
            ),
        ] {
            for value in [low, high] {
                let line = format!("line 3: listener[0].{key}: {value} is not allowed: {allowed}");
                check_listener(&format!("{key} = {value}"), &[&line]);
            }
        }
        for (key, low, high, allowed) in [
            (
                "connect_timeout_ms",
                "0",
                "600001",
                "a number of milliseconds, 1 to 600000",
            ),
            (
                "response_timeout_ms",
                "0",
                "600001",
                "a number of milliseconds, 1 to 600000",
            ),
            ("retries", "-1", "101", "a number of backends, 0 to 100"),
        ] {
            for value in [low, high] {
                let line = format!("line 4: upstream[0].{key}: {value} is not allowed: {allowed}");
                check_upstream(&format!("{key} = {value}"), &[&line]);
            }
        }
        for (key, low, high, allowed) in [
            (
                "idle_timeout_secs",
                "0",
                "31536001",
                "a number of seconds, 1 to 31536000",
            ),
            (
                "ping_interval_secs",
                "-1",
                "86401",
                "a number of seconds, 0 to 86400",
            ),
            (
                "message_timeout_ms",
                "0",
                "86400001",
                "a number of milliseconds, 1 to 86400000",
            ),
            (
                "send_timeout_ms",
                "0",
                "86400001",
                "a number of milliseconds, 1 to 86400000",
            ),
            (
                "max_message_bytes",
                "0",
                "1099511627777",
                "a number of bytes, 1 to 1099511627776",
            ),
        ] {
            for value in [low, high] {
                let line = format!("line 4: route[0].{key}: {value} is not allowed: {allowed}");
                check_route(&format!("{key} = {value}"), &[&line]);
            }
        }
    }

    #[test]
    fn the_ends_of_a_range_belong_to_it() {
        check_root("workers = 256\ndrain_timeout_secs = 0", &[]);
        check_root("drain_timeout_secs = 86400", &[]);
        check_root(
            "[plugins]\ncall_timeout_ms = 1\nmemory_max_bytes = 65536",
            &[],
        );
        check_root(
            "[plugins]\ncall_timeout_ms = 10000\nmemory_max_bytes = 4294967296",
            &[],
        );
        check_listener(
            "max_connections = 1\nhandshake_timeout_ms = 1\nmax_request_header_bytes = 8192",
            &[],
        );
        check_listener(
            "max_connections = 10_000_000\nhandshake_timeout_ms = 600000\nmax_request_header_bytes = 1048576",
            &[],
        );
        check_upstream(
            "connect_timeout_ms = 1\nresponse_timeout_ms = 1\nretries = 0",
            &[],
        );
        check_upstream(
            "connect_timeout_ms = 600000\nresponse_timeout_ms = 600000\nretries = 100",
            &[],
        );
        check_route(
            "idle_timeout_secs = 1\nping_interval_secs = 0\nmax_message_bytes = 1",
            &[],
        );
        check_route(
            "idle_timeout_secs = 31536000\nping_interval_secs = 86400\nmax_message_bytes = 1099511627776",
            &[],
        );
    }

    #[test]
    fn the_admin_door_needs_a_token_where_others_can_reach_it() {
        check_root(
            "admin.listen = '0.0.0.0:9900'\nadmin.token = '0123456789abcdef'",
            &[],
        );
        check_root(
            "[admin]\n\nlisten = '10.0.0.1:9900'",
            &[
                "line 3: admin.token: missing: 10.0.0.1:9900 is not a loopback address, which asks for a token of at least 16 visible ASCII characters",
            ],
        );
        for token in ["'0123456789abcde'", "'0123456789 abcdef'", "5"] {
            check_root(
                &format!("[admin]\nlisten = '[::]:9900'\ntoken = {token}"),
                &[
                    "line 3: admin.token: this value is not allowed: a token of at least 16 visible ASCII characters",
                ],
            );
        }
        check_root(
            "[admin]\nhosts = ['lb1:9900', 5]",
            &[
                &format!(
                    "line 2: admin.hosts[0]: 'lb1:9900' is not allowed: {}",
                    HostPattern::ALLOWED
                ),
                &format!(
                    "line 2: admin.hosts[1]: 5 is not allowed: {}",
                    HostPattern::ALLOWED
                ),
            ],
        );
        check_root(
            "admin.listen = 'localhost:9900'",
            &[&format!(
                "line 1: admin.listen: 'localhost:9900' is not allowed: {SOCKET_ADDRESS}"
            )],
        );
    }

    #[test]
    fn proxies_are_networks() {
        check_root(
            "trusted_proxies = ['10.0.0.0/8',\n 'proxy', 5]",
            &[
                &format!("line 2: trusted_proxies[1]: 'proxy' is not allowed: {NETWORK}"),
                &format!("line 2: trusted_proxies[2]: 5 is not allowed: {NETWORK}"),
            ],
        );
    }

    #[test]
    fn an_address_is_bound_once() {
        check_listener("[[listener]]\nbind = '127.0.0.1:0'", &[]);
        check_listener(
            "[[listener]]
bind = '[::1]:80'
[[listener]]
bind = '[0::1]:80'
[admin]
listen = '127.0.0.1:80'
[[listener]]
bind = '127.0.0.1:80'",
            &[
                "line 6: listener[2].bind: \"[::1]:80\" is not allowed: listener[1].bind has it already, on line 4",
                "line 10: listener[3].bind: \"127.0.0.1:80\" is not allowed: admin.listen has it already, on line 8",
            ],
        );
        check_listener(
            "[[listener]]\nbind = 8080",
            &[&format!(
                "line 4: listener[1].bind: 8080 is not allowed: {SOCKET_ADDRESS}"
            )],
        );
    }

    #[test]
    fn plugins_are_settled_by_name() {
        check_root(
            "[plugin.Chat]
isolation = 'none'
sessions_per_instance = 0
[plugin.chat]
config = { x = inf }
isolations = 1
[plugin]
echo = 5",
            &[
                &format!(
                    "line 1: plugin.Chat: \"Chat\" is not allowed: {}",
                    PluginName::ALLOWED
                ),
                "line 2: plugin.Chat.isolation: 'none' is not allowed: \"shared\" or \"session\"",
                "line 3: plugin.Chat.sessions_per_instance: 0 is not allowed: a number of sessions, 1 to 65536",
                "line 5: plugin.chat.config.x: inf is not allowed: a finite number",
                "line 6: plugin.chat.isolations: unknown key: did you mean isolation?",
                "line 8: plugin.echo: 5 is not allowed: a table",
            ],
        );
        let text = format!("plugin.a.isolation = 'shared'\n{LISTENER}{ROUTE}");
        let config = parse(&text).unwrap();
        assert_eq!(
            config.plugin_settings(&plugin_name("a")).isolation,
            Isolation::Shared
        );
    }

    #[test]
    fn probes_say_what_is_allowed_of_them() {
        check_upstream(
            "[upstream.health]
kind = 'http'
host = 'http://app'
headers = { Host = 'a', 'X-A' = \"b\\nc\", 'X-B' = 1, Authorization = 'Bearer t' }
expect = '2xx'",
            &[
                "line 6: upstream[0].health.host: 'http://app' is not allowed: a host such as \"app.example.org\", with or without a port; or empty",
                "line 7: upstream[0].health.headers.Host: \"Host\" is not allowed: the name of a field, other than Host (which is `host`), and not one of the connection, the body or the handshake",
                "line 7: upstream[0].health.headers.X-A: \"b\\nc\" is not allowed: visible ASCII characters and spaces, at most 4096",
                "line 7: upstream[0].health.headers.X-B: 1 is not allowed: visible ASCII characters and spaces, at most 4096",
                "line 8: upstream[0].health.expect: '2xx' is not allowed: statuses of 100 to 599, such as \"200-399\" or \"200, 404\"",
            ],
        );
        for expect in [
            "'399-200'",
            "'200,'",
            "'99'",
            "'600'",
            "'+200'",
            "''",
            "200",
        ] {
            let said = format!(
                "line 6: upstream[0].health.expect: {expect} is not allowed: {}",
                Statuses::ALLOWED
            );
            check_upstream(
                &format!("[upstream.health]\nkind = 'http'\nexpect = {expect}"),
                &[&said],
            );
        }
        check_upstream(
            "[upstream.health]\nkind = 'tcp'\nhost = 'a'\nheaders = {}\nexpect = '200'",
            &[
                "line 6: upstream[0].health.host: a probe of kind \"tcp\" has none",
                "line 7: upstream[0].health.headers: a probe of kind \"tcp\" has none",
                "line 8: upstream[0].health.expect: a probe of kind \"tcp\" has none",
            ],
        );
        check_upstream(
            "[upstream.health]\nkind = 'http'\nhost = ''\nheaders = {}",
            &[],
        );
    }

    #[test]
    fn upstreams_differ_in_name() {
        check_upstream(
            "[[upstream]]
name = 'app'
backends = ['b:1']
[[upstream]]
name = 'a b'
backends = 'c:1'",
            &[
                "line 5: upstream[1].name: \"app\" is not allowed: upstream[0].name has it already, on line 2",
                &format!(
                    "line 8: upstream[2].name: 'a b' is not allowed: {}",
                    UpstreamName::ALLOWED
                ),
                "line 9: upstream[2].backends: 'c:1' is not allowed: a list of addresses or tables",
            ],
        );
        check_upstream(
            "policy = 'Round'\npolicy_config = 5",
            &[
                &format!(
                    "line 4: upstream[0].policy: 'Round' is not allowed: {}",
                    PluginName::ALLOWED
                ),
                "line 5: upstream[0].policy_config: 5 is not allowed: a table",
            ],
        );
    }

    #[test]
    fn backends_are_strings_or_tables() {
        check_upstream(
            "[[upstream]]
name = 'b'
backends = [
'app',
5,
{},
{ address = 'a:0' },
{ address = 'a:1', weight = 0, max_sessions = 0, backup = 1, labels = { zone = 1 } },
{ address = 'b:1', weight = 1001, max_sessions = 4294967296, label = {} },
]",
            &[
                &format!(
                    "line 7: upstream[1].backends[0]: 'app' is not allowed: {BACKEND_ADDRESS}; or a table with that as its address"
                ),
                &format!(
                    "line 8: upstream[1].backends[1]: 5 is not allowed: {BACKEND_ADDRESS}; or a table with that as its address"
                ),
                &format!("line 9: upstream[1].backends[2].address: missing: {BACKEND_ADDRESS}"),
                &format!(
                    "line 10: upstream[1].backends[3].address: 'a:0' is not allowed: {BACKEND_ADDRESS}"
                ),
                "line 11: upstream[1].backends[4].weight: 0 is not allowed: a whole number, 1 to 1000",
                "line 11: upstream[1].backends[4].max_sessions: 0 is not allowed: a number of sessions, 1 to 4294967295",
                "line 11: upstream[1].backends[4].backup: 1 is not allowed: true or false",
                "line 11: upstream[1].backends[4].labels.zone: 1 is not allowed: a string",
                "line 12: upstream[1].backends[5].weight: 1001 is not allowed: a whole number, 1 to 1000",
                "line 12: upstream[1].backends[5].max_sessions: 4294967296 is not allowed: a number of sessions, 1 to 4294967295",
                "line 12: upstream[1].backends[5].label: unknown key: did you mean labels?",
            ],
        );
        check_upstream(
            "[[upstream]]\nname = 'none'\nbackends = []",
            &["line 6: upstream[1].backends: [] is not allowed: at least one backend"],
        );
    }

    #[test]
    fn a_backend_is_once_in_an_upstream() {
        check_upstream("[[upstream]]\nname = 'b'\nbackends = ['a:1', 'a:2']", &[]);
        check_upstream(
            "[[upstream]]
name = 'b'
backends = ['a:1', { address = 'A:1' },
'[::1]:1', '[0:0::1]:1']",
            &[
                "line 6: upstream[1].backends[1].address: \"A:1\" is not allowed: upstream[1].backends[0] has it already, on line 6",
                "line 7: upstream[1].backends[3]: \"[0:0::1]:1\" is not allowed: upstream[1].backends[2] has it already, on line 7",
            ],
        );
    }

    #[test]
    fn routes_lead_to_one_place() {
        check_route(
            "http = 'hello'
[[route]]
path = '/a'
upstream = 'ap'
[[route]]
path = '/b'
upstream = 5
[[route]]
path = '/c'
handler = 'Echo'
[[route]]
path = '/d'
http = ''",
            &[
                "line 1: route[0]: handler and http together are not allowed: exactly one of upstream, handler, http",
                "line 7: route[1].upstream: \"ap\" is not allowed: one of app; did you mean \"app\"?",
                &format!(
                    "line 10: route[2].upstream: 5 is not allowed: {}",
                    UpstreamName::ALLOWED
                ),
                &format!(
                    "line 13: route[3].handler: 'Echo' is not allowed: {}",
                    PluginName::ALLOWED
                ),
                &format!(
                    "line 16: route[4].http: '' is not allowed: {}",
                    PluginName::ALLOWED
                ),
            ],
        );
        check(
            &format!("{LISTENER}[[route]]\npath = '/'\nupstream = 'app'"),
            &["line 5: route[0].upstream: \"app\" is not allowed: there is no [[upstream]]"],
        );
        // An upstream that is wrong in another way is there all the same.
        check(
            &format!(
                "{LISTENER}[[route]]
path = '/'
upstream = 'app'
[[upstream]]
name = 'app'"
            ),
            &["line 6: upstream[0].backends: missing: at least one backend"],
        );
    }

    #[test]
    fn routes_differ_in_what_they_match() {
        let route = |lines: &str| {
            format!(
                "[[route]]
handler = 'echo'
{lines}
"
            )
        };
        let same = |index: usize, line: usize, first: usize, first_line: usize| {
            format!(
                "line {line}: route[{index}]: this host and path is not allowed: route[{first}] has it already, on line {first_line}"
            )
        };
        let differ = [
            "path = '/'",
            "path = '/*'",
            "path = '/a/*'",
            "path = '/'\nhost = 'a.org'",
            "path = '/'\nhost = '*.a.org'",
        ];
        check(&format!("{LISTENER}{}", differ.map(route).concat()), &[]);
        check_route(&route("path = '/'"), &[&same(1, 4, 0, 1)]);
        check_route(
            &[
                "path = '/a/*'\nhost = 'A.org'",
                "path = '/a/*'\nhost = 'a.org'",
            ]
            .map(route)
            .concat(),
            &[&same(2, 8, 1, 4)],
        );
        let differ_in_case = ["path = '/a/*'", "path = '/A/*'"];
        let texts = differ_in_case.map(route).concat();
        check(&format!("{LISTENER}{texts}"), &[]);
        // One of them may be the rest.
        let texts = texts + "case_sensitive = false\n";
        check(&format!("{LISTENER}{texts}"), &[]);
        check_route(
            &differ_in_case
                .map(|path| route(&format!("{path}\ncase_sensitive = false")))
                .concat(),
            &[
                "line 8: route[2]: this host and path, whose case does not count, is not allowed: route[1] has it already, on line 4",
            ],
        );
        check_route(
            &route("path = '/'\ncase_sensitive = false"),
            &[&same(1, 4, 0, 1)],
        );
        check_route(
            &route("path = '/'\nhost = 'a.org:80'"),
            &[&format!(
                "line 7: route[1].host: 'a.org:80' is not allowed: {}",
                HostPattern::ALLOWED
            )],
        );
        check_route(
            &route("path = 'a'\norigins = ['https://a.org', 'a.org']"),
            &[
                &format!(
                    "line 6: route[1].path: 'a' is not allowed: {}",
                    PathPattern::ALLOWED
                ),
                &format!(
                    "line 7: route[1].origins[1]: 'a.org' is not allowed: {}",
                    OriginPattern::ALLOWED
                ),
            ],
        );
    }

    #[test]
    fn a_file_cut_anywhere_is_read_without_panic() {
        for (at, _) in SAMPLE.char_indices() {
            let text = &SAMPLE[..at];
            let n_lines = text.lines().count().max(1);
            if let Err(problems) = parse(text) {
                assert!(!problems.is_empty());
                let lines = problems.iter().filter_map(|problem| problem.line);
                assert!(
                    lines
                        .into_iter()
                        .all(|line| (1..=n_lines + 1).contains(&line)),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_file_with_any_letter_changed_is_read_without_panic() {
        for (at, letter) in SAMPLE.char_indices() {
            let (head, tail) = (&SAMPLE[..at], &SAMPLE[at + letter.len_utf8()..]);
            for other in ["", "\u{e9}", "0", "[", "\n"] {
                let _ = parse(&format!("{head}{other}{tail}"));
            }
        }
    }
}
