//! The checked configuration: values that the rest of the program may rely on.
//!
//! In comes the text of a TOML file, or the flags of `pointsman run`; out goes a [`Config`], or
//! every [`Problem`] that the text has. Nothing here touches the network or loads a plugin, and a
//! value that exists is in range: nobody checks it again.

mod draft;
mod entry;
mod file;
mod flags;
mod lines;
mod names;
mod nearest;
mod reader;
mod upstream;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::QueueSettings;
use serde::{Deserialize, Serialize};

pub use self::draft::{Draft, DraftKeys};
pub use self::nearest::nearest_plugin;
pub use self::upstream::{
    BackendConfig, BackendTls, Dns, Ejection, Health, Probe, QueueConfig, Statuses, Upstream,
};

/// All that an operator may decide.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Threads of the data plane; at least 1. `workers`, default one per core.
    pub workers: usize,
    /// How long sessions may live on after SIGTERM. `drain_timeout_secs`, default 30.
    pub drain_timeout: Duration,
    /// How long connections are accepted after SIGTERM, before the drain begins. `drain_delay_secs`, default 0.
    pub drain_delay: Duration,
    /// Whether an upstream of a route without a fit backend makes the process not ready.
    /// `ready_needs_backend`, default false.
    pub ready_needs_backend: bool,
    /// Where the access log is written. `access_log`, default `"stdout"`.
    pub access_log: AccessLogTarget,
    /// How and where the error log is written.
    pub error_log: ErrorLogSettings,
    /// Networks whose forwarding headers are believed. `trusted_proxies`, default none.
    pub trusted_proxies: Vec<IpNet>,
    /// How much is too much.
    pub overload: Overload,
    /// The operator's door.
    pub admin: Admin,
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// What holds for every plugin.
    pub plugins: Plugins,
    /// `[plugin.NAME]`: what one plugin is told, and how it is kept.
    pub plugin: BTreeMap<PluginName, PluginSettings>,
    /// Groups of backends; names are unique.
    pub upstreams: Vec<Upstream>,
    /// In the order written; at least one.
    pub routes: Vec<Route>,
}

/// `access_log`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLogTarget {
    /// `"stdout"`, the default.
    #[default]
    Stdout,
    /// `"off"`.
    Off,
    /// `"file:PATH"`; a relative path is relative to the configuration file.
    File(PathBuf),
}

/// `[error_log]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorLogSettings {
    /// Default text.
    pub format: LogFormat,
    /// Relative paths are relative to the configuration file. None: stderr, the default.
    pub file: Option<PathBuf>,
}

/// `error_log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `"text"`, for people. The default.
    #[default]
    Text,
    /// `"json"`: an object in each line.
    Json,
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Default 127.0.0.1:9900.
    pub listen: SocketAddr,
    /// Whether the operator named the address: then failing to bind it is an error, otherwise a warning.
    pub is_explicit: bool,
    /// The bearer token asked for, except by `/healthz` and `/readyz`. Required where `listen` is not loopback.
    pub token: Option<String>,
    /// Names by which it may be asked, beside addresses and `localhost`. Default none. Where there is a
    /// token and no name is written, any will do.
    pub hosts: Vec<HostPattern>,
}

/// What one message may take of a plugin's worker unless the operator says otherwise.
const SHOWN_MESSAGE_BYTES: u64 = 1 << 20;

/// `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Port 0: the system picks one, the same for all workers.
    pub bind: SocketAddr,
    /// Over all workers. Default 100,000.
    pub max_connections: usize,
    /// Over all workers and listeners; an IPv6 network of 64 bits is one client, and trusted proxies have
    /// no bound. None: any number, the default.
    pub max_connections_per_client: Option<usize>,
    /// Connections whose first request has not come whole, over all workers. Default 10,000.
    pub max_handshakes: usize,
    /// From the accepted connection to the end of the first request's head, and from the first byte of a later
    /// head to its end. Default 5 s.
    pub handshake_timeout: Duration,
    /// How long a connection may be idle between two requests. Default 75 s.
    pub keep_alive_timeout: Duration,
    /// Default 16,384; 8,192 to 1,048,576 (the HTTP library reads no smaller).
    pub max_request_header_bytes: usize,
}

/// `[overload]`: where new work is refused, so that what is there goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload {
    /// Over all workers. None: as many as there are connections, the default.
    pub max_sessions: Option<u64>,
    /// What sessions may hold of bytes that were read and not yet sent, over all workers. Default 256 MiB;
    /// 1 MiB to 1 TiB.
    pub max_buffered_bytes: usize,
    /// How long what is ready may wait for its worker before new requests are refused. None: never.
    /// Default 1 s.
    pub shed_delay: Option<Duration>,
}

/// `[plugins]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugins {
    /// The watched folder; relative paths are relative to the configuration file. None: embedded plugins only.
    pub dir: Option<PathBuf>,
    /// For one call. Default 10 ms; 1 ms to 10 s.
    pub call_timeout: Duration,
    /// Per instance. Default 16 MiB; 64 KiB to 4 GiB.
    pub memory_max_bytes: usize,
    /// For one file. Default 60 s; 1 ms to 10 minutes.
    pub compile_timeout: Duration,
    /// Of HTTP handlers.
    pub http: HttpLimitsConfig,
}

/// `http_*` of `[plugins]` and `[plugin.NAME]`: how far an HTTP handler may go with one request. None: as
/// `[plugins]` says, or the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HttpLimitsConfig {
    /// `http_head_timeout_ms`: from the request to the head of the answer, and of computing between two parts
    /// of its body. Default 30 times the call timeout, at least 1 s.
    pub head_timeout: Option<Duration>,
    /// `http_idle_timeout_ms`: of silence between two parts of the answer. Default 60 s.
    pub idle_timeout: Option<Duration>,
    /// `http_max_resources`: streams, pollables and the like that it may hold. Default 65,536.
    pub max_resources: Option<usize>,
}

/// `[plugin.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginSettings {
    /// Handed to the plugin as JSON. Default `{}`.
    pub config: serde_json::Value,
    /// Default shared.
    pub isolation: Isolation,
    /// That one shared instance holds; 1 to 65,536.
    pub sessions_per_instance: usize,
    /// For one call; none: as `[plugins]` says.
    pub call_timeout: Option<Duration>,
    /// Per instance; none: as `[plugins]` says.
    pub memory_max_bytes: Option<usize>,
    /// As an HTTP handler.
    pub http: HttpLimitsConfig,
    /// Of each of its sessions, for what it sends other than by verdict.
    pub queue: QueueSettings,
}

/// `on_failure`: what becomes of a session whose filter fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// It ends with 1011, or does not begin. The default.
    #[default]
    Close,
    /// It goes on without that filter.
    Bypass,
}

/// `on_backend_loss`: what a client sees of a backend that is gone without a Close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBackendLoss {
    /// What it would see without us: its connection ends without a Close, 1006 to an application. The default.
    #[default]
    Abort,
    /// A Close with 1012, unless the backend was lost within a frame.
    Close,
}

/// How many sessions one instance holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Many, on one worker.
    #[default]
    Shared,
    /// One.
    Session,
}

/// `[[route]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// None: any host.
    pub host: Option<HostPattern>,
    /// What of the request's path has to match.
    pub path: PathPattern,
    /// Whether `A` and `a` in a path are two letters; only those of ASCII can be one. `case_sensitive`,
    /// default true.
    pub is_case_sensitive: bool,
    /// Where matching requests go.
    pub target: Target,
    /// What looks at messages on the way to an upstream and back; the first is next to the client.
    pub filters: Vec<PluginName>,
    /// Default close.
    pub on_failure: OnFailure,
    /// Of sessions at a backend. Default abort.
    pub on_backend_loss: OnBackendLoss,
    /// Allowed `Origin` values; empty: any.
    pub origins: Vec<OriginPattern>,
    /// A session without a byte for so long is closed. Default 1 h.
    pub idle_timeout: Duration,
    /// How often a silent peer is pinged; none: never. `ping_interval_secs`, default 0.
    pub ping_interval: Option<Duration>,
    /// How long a message may take to come whole, where it is held: at a handler, and for what filters look
    /// at. It starts over as long as the message comes on. `message_timeout_ms`, default 30 s.
    pub message_timeout: Duration,
    /// How long a client may take nothing of what it is sent: of plain answers, and where messages are held.
    /// `send_timeout_ms`, default 60 s.
    pub send_timeout: Duration,
    /// From the end of a plain request to the head of its backend's answer; none: as the upstream says.
    /// `head_timeout_ms`, default none.
    pub head_timeout: Option<Duration>,
    /// How long a backend may be silent in the middle of a plain answer. `read_timeout_ms`, default 60 s.
    pub read_timeout: Duration,
    /// How long a client may be silent in the middle of a request's body. `body_timeout_ms`, default 60 s.
    pub body_timeout: Duration,
    /// Longest message. Default 1 MiB at a handler, and for what filters look at; at an upstream,
    /// where messages are relayed and not held, none unless it is written.
    pub max_message_bytes: Option<u64>,
    /// How many times as long as it came a message may become by inflating it; none: as long as
    /// `max_message_bytes` allows. `max_inflate_ratio`, default 0.
    pub max_inflate_ratio: Option<u32>,
    /// Whether messages may be compressed (RFC 7692); otherwise what a client offers is left out.
    /// `deflate = "on"` or `"strip"`, default on.
    pub deflate: bool,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// `upstream = "app"`; the name exists.
    Upstream(UpstreamName),
    /// `handler = "echo"`: a WebSocket ends at this plugin.
    Handler(PluginName),
    /// `http = "hello"`: this plugin answers requests.
    Http(PluginName),
}

/// A host to match, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// `app.example.org`
    Exact(String),
    /// `*.example.org`, kept as `.example.org`: one or more labels before it.
    Suffix(String),
}

/// An `Origin` to match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OriginPattern {
    /// What a browser sends of a page that has none, such as a file.
    Null,
    /// `https://app.example.org`, or `https://*.example.org`.
    Origin {
        /// In lower case.
        scheme: String,
        /// In lower case.
        host: HostPattern,
        /// None: the scheme's own.
        port: Option<u16>,
    },
}

/// A path to match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathPattern {
    /// `/websocket`
    Exact(String),
    /// `/chat/*`, kept as `/chat/`: the path begins with it. `/*` is every path.
    Prefix(String),
}

/// The name of an upstream. `[A-Za-z0-9][A-Za-z0-9_.-]{0,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamName(String);

/// `pointsman run` without a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`: where clients connect.
    pub listen: SocketAddr,
    /// `--backend`, once for each: host and port. At least one.
    pub backends: Vec<String>,
    /// `--policy`; default `round_robin`.
    pub policy: Option<String>,
    /// `--plugins`: the watched folder. Default none.
    pub plugins: Option<PathBuf>,
    /// `--admin`: a loopback address. Default 127.0.0.1:9900.
    pub admin: Option<SocketAddr>,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `upstream[0].connect_timeout_ms`; empty where the text is no TOML at all.
    pub key: String,
    /// Counted from 1; none where flags were read, and where what is missing has no place yet.
    pub line: Option<usize>,
    /// `"5s" is not allowed: a number of milliseconds, 1 to 600000`.
    pub message: String,
}

impl AccessLogTarget {
    /// Whether there is an access log.
    pub fn is_written(&self) -> bool {
        *self != Self::Off
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Stdout | Self::Off => None,
        }
    }
}

impl UpstreamName {
    /// What a name may be, for error messages.
    pub const ALLOWED: &'static str = "a letter or digit, then at most 63 of them or '_', '.', '-'";

    /// None where `name` is not an upstream's name.
    pub fn parse(name: &str) -> Option<Self> {
        let rest_is_fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let is_fine = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(rest_is_fine);
        is_fine.then(|| Self(name.to_owned()))
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Route {
    /// Longest message that a plugin is shown.
    pub fn shown_message_bytes(&self) -> u64 {
        self.max_message_bytes.unwrap_or(SHOWN_MESSAGE_BYTES)
    }
}

/// Host and path, as an operator would write them.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}{}", self.path),
            None => self.path.fmt(f),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Origin { scheme, host, port } => {
                write!(f, "{scheme}://{host}")?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl Config {
    /// The settings of one plugin, or the defaults.
    pub fn plugin_settings(&self, name: &PluginName) -> PluginSettings {
        self.plugin.get(name).cloned().unwrap_or_default()
    }
}

impl PluginSettings {
    /// A trap ends so many sessions at most. More cost less memory; `docs/plugins.md` has the figures.
    pub const SESSIONS_PER_INSTANCE: usize = 32;
}

impl Default for PluginSettings {
    fn default() -> Self {
        Self {
            config: serde_json::Value::Object(serde_json::Map::new()),
            isolation: Isolation::Shared,
            sessions_per_instance: Self::SESSIONS_PER_INSTANCE,
            call_timeout: None,
            memory_max_bytes: None,
            http: HttpLimitsConfig::default(),
            queue: QueueSettings::default(),
        }
    }
}
