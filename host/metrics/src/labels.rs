//! What is told apart by labels, and how each is written.

use serde::{Deserialize, Serialize};

/// What a route leads to. It decides which series exist: an upstream has all, a handler has no
/// plain requests, an HTTP handler has nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A group of backends.
    Upstream,
    /// A plugin that is the far end of WebSockets.
    Handler,
    /// A plugin that answers requests.
    Http,
}

/// How an upgrade request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpgradeResult {
    /// 101: a session began.
    Accepted,
    /// The handshake breaks RFC 6455 or HTTP: 400, 405, 426 or 431.
    BadRequest,
    /// No route matches: 404.
    NotFound,
    /// The route does not allow this `Origin`: 403.
    ForbiddenOrigin,
    /// No backend can take a session: 503.
    NoBackend,
    /// A backend answered with something other than 101, and the client got that answer.
    BackendRefused,
    /// No backend that was tried could be reached or spoke the protocol: 502.
    BackendFailed,
    /// A backend, or the client's handshake, took too long: 504 or 408.
    Timeout,
    /// The policy refused or redirected.
    PolicyRefused,
    /// A filter refused.
    FilterRefused,
    /// The handler refused.
    HandlerRefused,
    /// A handler or filter failed before the 101: 500.
    PluginFailed,
    /// There is too much to do, or too little to do it with: 503.
    Overloaded,
    /// A plugin has failed on what this client sent, and it comes back too soon: 429.
    Penalized,
    /// The client left before the answer.
    ClientGone,
}

/// What ends a session that holds memory for too long, or too much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A message has begun and does not come.
    MessageTimeout,
    /// The client takes nothing of what it is sent.
    SendTimeout,
    /// All sessions together hold too much, and this one most.
    BufferedBytes,
}

/// What was reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadKind {
    /// One plugin.
    Plugin,
    /// The configuration.
    Config,
    /// The backends that were found for an upstream.
    Backends,
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadResult {
    /// The new one is active.
    Ok,
    /// Refused; the old one serves.
    Failed,
    /// The content is what serves already.
    Unchanged,
}

/// How the metrics page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Prometheus' text format 0.0.4, which every scraper reads.
    #[default]
    Classic,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl UpgradeResult {
    /// In the order of declaration.
    pub const ALL: [Self; 15] = [
        Self::Accepted,
        Self::BadRequest,
        Self::NotFound,
        Self::ForbiddenOrigin,
        Self::NoBackend,
        Self::BackendRefused,
        Self::BackendFailed,
        Self::Timeout,
        Self::PolicyRefused,
        Self::FilterRefused,
        Self::HandlerRefused,
        Self::PluginFailed,
        Self::Overloaded,
        Self::Penalized,
        Self::ClientGone,
    ];

    /// As in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::BadRequest => "bad_request",
            Self::NotFound => "not_found",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::NoBackend => "no_backend",
            Self::BackendRefused => "backend_refused",
            Self::BackendFailed => "backend_failed",
            Self::Timeout => "timeout",
            Self::PolicyRefused => "policy_refused",
            Self::FilterRefused => "filter_refused",
            Self::HandlerRefused => "handler_refused",
            Self::PluginFailed => "plugin_failed",
            Self::Overloaded => "overloaded",
            Self::Penalized => "penalized",
            Self::ClientGone => "client_gone",
        }
    }
}

impl Limit {
    /// In the order of declaration.
    pub const ALL: [Self; 3] = [Self::MessageTimeout, Self::SendTimeout, Self::BufferedBytes];

    /// As in metrics: the key that sets it.
    pub fn label(self) -> &'static str {
        match self {
            Self::MessageTimeout => "message_timeout",
            Self::SendTimeout => "send_timeout",
            Self::BufferedBytes => "max_buffered_bytes",
        }
    }
}

impl ReloadKind {
    /// In the order of declaration.
    pub const ALL: [Self; 3] = [Self::Plugin, Self::Config, Self::Backends];

    /// As in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Config => "config",
            Self::Backends => "backends",
        }
    }
}

impl ReloadResult {
    /// In the order of declaration.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Unchanged];

    /// As in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Unchanged => "unchanged",
        }
    }
}

impl Format {
    /// As in `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The labels of `pointsman_http_requests_total`, in the order of the cells.
pub(crate) const STATUS_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The labels of `pointsman_requests_refused_total`, in the order of the cells; the last is for all others.
pub(crate) const REFUSED_STATUSES: [&str; 7] = ["400", "404", "408", "414", "431", "503", "other"];

/// What a problem of the status is about, gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// An upstream without any backend that is up.
    Upstream,
    /// A policy that is not loaded.
    Policy,
    /// The configuration file is not the active configuration.
    Config,
    /// A `backends_file` does not hold the active backends.
    BackendsFile,
    /// A name of `dns` is not resolved.
    Dns,
    /// The folder of plugins cannot be read.
    PluginsDir,
    /// A plugin that is not what its file says, or that fails.
    Plugin,
    /// A log file could not be opened again.
    Log,
    /// A backend that is down or ejected.
    Backend,
}

impl ProblemKind {
    /// In the order of declaration.
    pub const ALL: [Self; 9] = [
        Self::Upstream,
        Self::Policy,
        Self::Config,
        Self::BackendsFile,
        Self::Dns,
        Self::PluginsDir,
        Self::Plugin,
        Self::Log,
        Self::Backend,
    ];

    /// As in metrics and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Policy => "policy",
            Self::Config => "config",
            Self::BackendsFile => "backends_file",
            Self::Dns => "dns",
            Self::PluginsDir => "plugins_dir",
            Self::Plugin => "plugin",
            Self::Log => "log",
            Self::Backend => "backend",
        }
    }
}

/// Who can break off a plain answer, in the order of the cells.
pub(crate) const ABORTED_BY: [&str; 4] = ["client", "backend", "plugin", "operator"];
