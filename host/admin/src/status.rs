//! What runs, as a value: the JSON behind `pointsman status`, the page that a person reads, and
//! the client that fetches it.
//!
//! `server/` fills a [`Status`] from the other rooms; this room knows none of them.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pointsman_config as config;
use pointsman_metrics::counters::WorkerLoad;
use pointsman_metrics::labels::ProblemKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::access_log::rfc3339;
use super::commands::{Proposal, ReloadPlan};

/// Everything that runs, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Since the start.
    pub uptime_secs: u64,
    /// No new connections are taken.
    #[serde(rename = "draining")]
    pub is_draining: bool,
    /// In their order.
    pub workers: Vec<WorkerStatus>,
    /// As configured.
    pub upstreams: Vec<UpstreamStatus>,
    /// As configured.
    pub routes: Vec<RouteStatus>,
    /// All that are loaded, or should be.
    pub plugins: Vec<PluginStatus>,
    /// Open now, over all workers.
    pub sessions: u64,
    /// What a person has to do something about, gravest first.
    #[serde(default)]
    pub problems: Vec<ActiveProblem>,
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveProblem {
    /// What it is about.
    pub kind: ProblemKind,
    /// Which one: the name of an upstream or plugin, or the path of a file or folder.
    pub name: String,
    /// What is wrong with it.
    pub message: String,
    /// When it began, as RFC 3339 says.
    pub since: String,
}

/// One thread of the data plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Open now.
    pub sessions: u64,
    /// Open now, those that carry a session included.
    pub connections: u64,
}

impl From<WorkerLoad> for WorkerStatus {
    fn from(load: WorkerLoad) -> Self {
        Self {
            sessions: load.sessions,
            connections: load.connections,
        }
    }
}

/// A group of backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// As configured.
    pub name: String,
    /// What places its sessions.
    pub policy: PolicyStatus,
    /// As configured and found.
    pub backends: Vec<BackendStatus>,
    /// Requests that wait for room at a backend.
    pub waiting: u64,
}

/// The plugin that decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// The plugin's name.
    pub name: String,
    /// The active one; 0: none, the host's own round robin decides.
    pub generation: u64,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// As configured.
    pub address: String,
    /// As configured.
    pub weight: u32,
    /// Offered to the policy, and the last dial did not fail.
    #[serde(rename = "up")]
    pub is_up: bool,
    /// Why it is, or is not.
    pub state: BackendState,
    /// What probes or live traffic say against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Open sessions and plain requests under way.
    pub active: u64,
    /// Dials and handshakes under way.
    pub pending: u64,
    /// Failed dials and handshakes since the start.
    pub failures: u64,
    /// Used only when no other can take a session.
    #[serde(rename = "backup")]
    pub is_backup: bool,
}

/// Whether a backend gets new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It does.
    Up,
    /// Probes fail.
    Down,
    /// Live traffic has failed: out for a while.
    Ejected,
    /// The operator has taken it out.
    Draining,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// As configured; none: any.
    pub host: Option<String>,
    /// As configured.
    pub path: String,
    /// `upstream app`, `handler echo`, `http hello`.
    pub target: String,
    /// The operator has taken it out.
    #[serde(rename = "draining")]
    pub is_draining: bool,
}

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginStatus {
    /// The stem of its file.
    pub name: String,
    /// The one that serves; 0: none.
    pub generation: u64,
    /// Where that one came from.
    pub source: PluginSource,
    /// `policy`, `filter`, `handler`, `http`.
    pub kinds: Vec<String>,
    /// Of the file.
    pub bytes: u64,
    /// Of the file's content, in hexadecimal.
    pub sha256: String,
    /// There is a file that is not loaded, because nothing refers to it.
    #[serde(rename = "unused", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unused: bool,
    /// The file's content has failed in service, and is not loaded again until it changes.
    #[serde(
        rename = "quarantined",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub is_quarantined: bool,
    /// Why the newest file does not serve, where it does not.
    pub last_error: Option<String>,
}

/// Where a plugin came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginSource {
    /// The binary.
    Embedded,
    /// The watched folder.
    File,
}

/// Why there is no status. The message is for the person who typed the command.
#[derive(Debug)]
pub enum FetchError {
    /// Nothing answers there: wrong address, or nothing runs.
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something listens there that does not answer like this door.
    Http(hyper::Error),
    /// The answer is no 200; 401 asks for another token.
    Refused {
        /// The status of the answer.
        status: u16,
    },
    /// The configuration that was proposed is refused.
    Rejected(Vec<config::Problem>),
    /// The answer is longer than any status.
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The answer is no status: another program, or another version.
    Json(serde_json::Error),
    /// No whole answer came in so long.
    TimedOut(Duration),
}

/// For everything that [`fetch_plan`] does, which may compile plugins: as long as the server takes.
const PLAN_DEADLINE: Duration = Duration::from_secs(60);

/// For everything that [`fetch`] does. A control thread that is busy longer is worth an alarm.
const FETCH_DEADLINE: Duration = Duration::from_secs(5);

/// 10,000 backends take about a tenth of this.
const STATUS_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Asks a running pointsman for its status.
///
/// # Errors
/// Nothing answers within 5 s, or not with a status.
///
/// # Cancel safety
/// Dropping it closes the connection.
pub async fn fetch(address: SocketAddr, token: Option<&str>) -> Result<Status, FetchError> {
    let request = Request::get("/api/status").body(Full::default());
    exchange(address, token, request, FETCH_DEADLINE).await
}

/// Asks a running pointsman what a configuration would change.
///
/// # Errors
/// As [`fetch`], but after a minute, and [`FetchError::Rejected`].
pub async fn fetch_plan(
    address: SocketAddr,
    token: Option<&str>,
    proposal: &Proposal,
) -> Result<ReloadPlan, FetchError> {
    let body = serde_json::to_vec(proposal).map_err(FetchError::Json)?;
    let request = Request::post("/api/plan").body(Full::from(body));
    exchange(address, token, request, PLAN_DEADLINE).await
}

async fn exchange<T: DeserializeOwned>(
    address: SocketAddr,
    token: Option<&str>,
    request: http::Result<Request<Full<Bytes>>>,
    deadline: Duration,
) -> Result<T, FetchError> {
    match timeout(deadline, ask(address, token, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(FetchError::TimedOut(deadline)),
    }
}

async fn ask<T: DeserializeOwned>(
    address: SocketAddr,
    token: Option<&str>,
    request: http::Result<Request<Full<Bytes>>>,
) -> Result<T, FetchError> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|source| FetchError::Connect { address, source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Only a token with control characters fails here, and no server has such a one.
    let unauthorized = || FetchError::Refused { status: 401 };
    let mut request = request.map_err(|_| unauthorized())?;
    let headers = request.headers_mut();
    let value = |text: String| HeaderValue::try_from(text).map_err(|_| unauthorized());
    headers.insert(HOST, value(address.to_string())?);
    if let Some(token) = token {
        headers.insert(AUTHORIZATION, value(format!("Bearer {token}"))?);
    }
    let exchange = async move {
        let body = read(sender.send_request(request).await?).await?;
        serde_json::from_slice(&body).map_err(FetchError::Json)
    };
    // What fails on the connection is told by the exchange.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}

async fn read(answer: Response<Incoming>) -> Result<Bytes, FetchError> {
    let status = answer.status();
    if status != 200 && status != 422 {
        return Err(FetchError::Refused {
            status: status.as_u16(),
        });
    }
    let body = Limited::new(answer.into_body(), STATUS_MAX_BYTES)
        .collect()
        .await;
    let body = body.map_err(FetchError::Body)?.to_bytes();
    match status.as_u16() {
        422 => Err(FetchError::Rejected(
            serde_json::from_slice::<Rejected>(&body)
                .map_err(FetchError::Json)?
                .details,
        )),
        _ => Ok(body),
    }
}

/// What a configuration that is refused is answered with.
#[derive(Deserialize)]
struct Rejected {
    details: Vec<config::Problem>,
}

impl From<hyper::Error> for FetchError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { address, .. } => write!(
                f,
                "cannot connect to {address}: is pointsman running there?"
            ),
            Self::Http(_) => f.write_str("the answer is no HTTP"),
            Self::Refused { status: 401 } => {
                f.write_str("the token is missing or wrong (status 401)")
            }
            Self::Refused { status } => write!(f, "refused with status {status}"),
            Self::Rejected(problems) => {
                write!(f, "refused for {} problems", problems.len())
            }
            Self::Body(_) => f.write_str("the answer could not be read to its end"),
            Self::Json(_) => f.write_str("the answer is no status of this version of pointsman"),
            Self::TimedOut(deadline) => write!(f, "no answer within {} s", deadline.as_secs()),
        }
    }
}

impl std::error::Error for FetchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { source, .. } => Some(source),
            Self::Http(source) => Some(source),
            Self::Body(source) => Some(source.as_ref()),
            Self::Json(source) => Some(source),
            Self::Refused { .. } | Self::Rejected(_) | Self::TimedOut(_) => None,
        }
    }
}

/// The page for people: what is wrong comes first.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version, sessions, ..
        } = self;
        let state = if self.is_draining {
            "DRAINING"
        } else {
            "ready"
        };
        let uptime = Uptime(self.uptime_secs);
        writeln!(
            f,
            "pointsman {version}  {state}  up {uptime}  {sessions} sessions\n"
        )?;

        if self.problems.is_empty() {
            writeln!(f, "no problems")?;
        } else {
            writeln!(f, "PROBLEMS")?;
            self.problems
                .iter()
                .try_for_each(|problem| writeln!(f, "  {problem}"))?;
        }
        for table in [
            self.upstream_table(),
            self.route_table(),
            self.plugin_table(),
            self.worker_table(),
        ] {
            write!(f, "\n{table}")?;
        }
        Ok(())
    }
}

impl ActiveProblem {
    /// `since`: when it began.
    pub fn new(kind: ProblemKind, name: String, message: String, since: SystemTime) -> Self {
        Self {
            kind,
            name,
            message,
            since: rfc3339(since),
        }
    }
}

/// One line for people. Plugins, backends and files choose some of the words.
impl fmt::Display for ActiveProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.kind {
            ProblemKind::Upstream | ProblemKind::Backend | ProblemKind::Policy => "upstream ",
            ProblemKind::Config => "configuration ",
            ProblemKind::BackendsFile => "backends_file of upstream ",
            ProblemKind::Dns => "dns of upstream ",
            ProblemKind::PluginsDir => "plugins.dir ",
            ProblemKind::Plugin => "plugin ",
            ProblemKind::Log => "log ",
        };
        let Self {
            name,
            message,
            since,
            ..
        } = self;
        let (name, message) = (one_line(name), one_line(message));
        write!(f, "{of}{name}: {message} (since {})", one_line(since))
    }
}

impl Status {
    fn upstream_table(&self) -> TextTable {
        let mut table = TextTable::new([
            "UPSTREAM",
            "POLICY",
            "BACKEND",
            ">WEIGHT",
            "STATE",
            ">ACTIVE",
            ">PENDING",
            ">FAILURES",
        ]);
        for upstream in &self.upstreams {
            let PolicyStatus { name, generation } = &upstream.policy;
            let policy = format!("{name} ({generation})");
            for (place, backend) in upstream.backends.iter().enumerate() {
                let is_first = place == 0;
                let state = match (backend.state, backend.is_up) {
                    (BackendState::Draining, _) => "draining",
                    (BackendState::Ejected, _) => "EJECTED",
                    (BackendState::Up, true) => "up",
                    (BackendState::Up, false) | (BackendState::Down, _) => "DOWN",
                };
                let role = if backend.is_backup { ", backup" } else { "" };
                table.row([
                    if is_first { &upstream.name } else { "" },
                    if is_first { &policy } else { "" },
                    &backend.address,
                    &backend.weight.to_string(),
                    &format!("{state}{role}"),
                    &backend.active.to_string(),
                    &backend.pending.to_string(),
                    &backend.failures.to_string(),
                ]);
            }
        }
        table
    }

    fn route_table(&self) -> TextTable {
        let mut table = TextTable::new(["HOST", "PATH", "TARGET"]);
        for route in &self.routes {
            let state = if route.is_draining { ", draining" } else { "" };
            table.row([
                route.host.as_deref().unwrap_or("any"),
                &route.path,
                &format!("{}{state}", route.target),
            ]);
        }
        table
    }

    fn plugin_table(&self) -> TextTable {
        let mut table = TextTable::new([
            "PLUGIN",
            ">GENERATION",
            "SOURCE",
            "KINDS",
            ">BYTES",
            "SHA256",
            "LAST LOAD",
        ]);
        for plugin in &self.plugins {
            table.row([
                &plugin.name,
                &plugin.generation.to_string(),
                match plugin.source {
                    PluginSource::Embedded => "embedded",
                    PluginSource::File => "file",
                },
                &plugin.kinds.join(","),
                &plugin.bytes.to_string(),
                plugin.sha256.get(..12).unwrap_or(&plugin.sha256),
                match &plugin.last_error {
                    _ if plugin.is_quarantined => "QUARANTINED",
                    Some(_) => "FAILED",
                    None if plugin.is_unused => "unused",
                    None => "ok",
                },
            ]);
        }
        table
    }

    fn worker_table(&self) -> TextTable {
        let mut table = TextTable::new(["WORKER", ">SESSIONS", ">CONNECTIONS"]);
        for (index, worker) in self.workers.iter().enumerate() {
            table.row([
                &index.to_string(),
                &worker.sessions.to_string(),
                &worker.connections.to_string(),
            ]);
        }
        table
    }
}

/// Columns that stand under their heads; a head that begins with `>` stands to the right.
struct TextTable {
    rows: Vec<Vec<String>>,
    is_right: Vec<bool>,
}

impl TextTable {
    fn new<const N: usize>(heads: [&str; N]) -> Self {
        let is_right = heads.iter().map(|head| head.starts_with('>')).collect();
        let heads = heads
            .iter()
            .map(|head| head.trim_start_matches('>').to_owned())
            .collect();
        Self {
            rows: vec![heads],
            is_right,
        }
    }

    fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.into_iter().map(one_line).collect());
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.is_right.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let cell = if self.is_right[column] {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                line.push_str(&cell);
                line.push_str("  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Plugins choose some of these words: what would move the cursor or break the line is replaced.
fn one_line(text: &str) -> String {
    let shown = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    shown.collect()
}

struct Uptime(u64);

impl fmt::Display for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, hours, days) = (self.0 / 60, self.0 / 3600, self.0 / 86400);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{} s", self.0),
            (0, 0, _) => write!(f, "{minutes} min {} s", self.0 % 60),
            (0, _, _) => write!(f, "{hours} h {} min", minutes % 60),
            _ => write!(f, "{days} d {} h", hours % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_page_shows_first_what_is_wrong() {
        let expected = "\
pointsman 0.1.0  ready  up 3 h 12 min  5 sessions

PROBLEMS
  dns of upstream app: there is no name  app.test (since 2026-11-28T06:00:01.002Z)
  upstream app: backend 127.0.0.1:3002 is down (no answer) (since 1970-01-01T00:00:00.000Z)

UPSTREAM  POLICY     BACKEND         WEIGHT  STATE         ACTIVE  PENDING  FAILURES
app       least (3)  127.0.0.1:3001       1  up                 5        1         0
                     127.0.0.1:3002     100  DOWN, backup       0        0        12

HOST           PATH    TARGET
*.example.org  /chat   upstream app, draining
any            /hello  http hello

PLUGIN  GENERATION  SOURCE    KINDS         BYTES  SHA256        LAST LOAD
least            3  file      policy        40123  0123456789ab  QUARANTINED
hello            1  embedded  http,handler      9  ab            ok

WORKER  SESSIONS  CONNECTIONS
0              5            7
1              0            0
";
        assert_eq!(sample().to_string(), expected);
    }

    #[test]
    fn a_healthy_one_says_so() {
        let status = Status {
            is_draining: true,
            ..Status::default()
        };
        assert!(
            status
                .to_string()
                .starts_with("pointsman   DRAINING  up 0 s  0 sessions\n\nno problems\n")
        );
    }

    #[test]
    fn every_kind_of_problem_has_its_label_and_its_place() {
        for (place, kind) in ProblemKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            assert_eq!(serde_json::json!(kind), kind.label());
        }
    }

    #[test]
    fn the_json_has_the_keys_that_programs_read() {
        let mut status = sample();
        status.upstreams[0].backends.truncate(1);
        status.routes.truncate(1);
        status.plugins.truncate(1);
        status.workers.truncate(1);
        status.problems.truncate(1);
        let expected = serde_json::json!({
            "version": "0.1.0", "uptime_secs": 11_542, "draining": false, "sessions": 5,
            "workers": [{"sessions": 5, "connections": 7}],
            "upstreams": [{
                "name": "app", "policy": {"name": "least", "generation": 3},
                "backends": [{
                    "address": "127.0.0.1:3001", "weight": 1, "up": true, "active": 5, "pending": 1,
                    "failures": 0, "backup": false, "state": "up",
                }],
                "waiting": 0,
            }],
            "routes": [{"host": "*.example.org", "path": "/chat", "target": "upstream app", "draining": true}],
            "problems": [{
                "kind": "dns", "name": "app", "message": "there is no name\n\u{1b}app.test",
                "since": "2026-11-28T06:00:01.002Z",
            }],
            "plugins": [{
                "name": "least", "generation": 3, "source": "file", "kinds": ["policy"], "bytes": 40_123,
                "sha256": "0123456789abcdef", "quarantined": true, "last_error": "truncated\n\u{1b}at byte 12\n",
            }],
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), status);
    }

    #[test]
    fn uptimes_have_two_parts() {
        for (secs, expected) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3_660, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(Uptime(secs).to_string(), expected);
        }
    }

    #[tokio::test]
    async fn where_nothing_listens_the_address_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = fetch(address, None).await.unwrap_err();
        assert!(matches!(error, FetchError::Connect { .. }));
        assert!(error.to_string().contains(&address.to_string()));
    }

    #[tokio::test]
    async fn another_program_is_not_taken_for_pointsman() {
        for (answer, is_expected) in [
            (
                "nonsense\r\n\r\n",
                (|error| matches!(error, FetchError::Http(_))) as fn(&FetchError) -> bool,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", |error| {
                matches!(error, FetchError::Json(_))
            }),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", |error| {
                matches!(error, FetchError::Body(_))
            }),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", |error| {
                matches!(error, FetchError::Refused { status: 503 })
            }),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stranger = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                // Held until the client has left, so that no reset overtakes the answer.
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            };
            let (fetched, ()) = tokio::join!(fetch(address, None), stranger);
            let error = fetched.unwrap_err();
            assert!(is_expected(&error), "{answer:?}: {error:?}");
        }
    }

    fn sample() -> Status {
        let backend = |address: &str, is_up: bool| BackendStatus {
            state: if is_up {
                BackendState::Up
            } else {
                BackendState::Down
            },
            reason: (!is_up).then(|| "no answer".to_owned()),
            address: address.into(),
            weight: if is_up { 1 } else { 100 },
            is_up,
            active: if is_up { 5 } else { 0 },
            pending: u64::from(is_up),
            failures: if is_up { 0 } else { 12 },
            is_backup: !is_up,
        };
        let route = |host: Option<&str>, path: &str, target: &str| RouteStatus {
            host: host.map(str::to_owned),
            path: path.into(),
            target: target.into(),
            is_draining: host.is_some(),
        };
        Status {
            version: "0.1.0".into(),
            uptime_secs: 11_542,
            is_draining: false,
            workers: vec![
                WorkerStatus {
                    sessions: 5,
                    connections: 7,
                },
                WorkerStatus::default(),
            ],
            upstreams: vec![UpstreamStatus {
                name: "app".into(),
                policy: PolicyStatus {
                    name: "least".into(),
                    generation: 3,
                },
                backends: vec![
                    backend("127.0.0.1:3001", true),
                    backend("127.0.0.1:3002", false),
                ],
                waiting: 0,
            }],
            routes: vec![
                route(Some("*.example.org"), "/chat", "upstream app"),
                route(None, "/hello", "http hello"),
            ],
            plugins: vec![
                PluginStatus {
                    name: "least".into(),
                    generation: 3,
                    source: PluginSource::File,
                    kinds: vec!["policy".into()],
                    bytes: 40_123,
                    sha256: "0123456789abcdef".into(),
                    is_unused: false,
                    is_quarantined: true,
                    last_error: Some("truncated\n\u{1b}at byte 12\n".into()),
                },
                PluginStatus {
                    name: "hello".into(),
                    generation: 1,
                    source: PluginSource::Embedded,
                    kinds: vec!["http".into(), "handler".into()],
                    bytes: 9,
                    sha256: "ab".into(),
                    is_unused: false,
                    is_quarantined: false,
                    last_error: None,
                },
            ],
            sessions: 5,
            problems: vec![
                ActiveProblem::new(
                    ProblemKind::Dns,
                    "app".into(),
                    "there is no name\n\u{1b}app.test".into(),
                    UNIX_EPOCH + Duration::from_millis(1_795_845_601_002),
                ),
                ActiveProblem::new(
                    ProblemKind::Backend,
                    "app".into(),
                    "backend 127.0.0.1:3002 is down (no answer)".into(),
                    UNIX_EPOCH,
                ),
            ],
        }
    }
}
