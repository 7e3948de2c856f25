//! `[[upstream]]`: a group of backends, where they are found, and what is expected of them.
//!
//! The values, and how they are read. A file of backends that changes by itself is read here too.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_contract::names::PluginName;
use pointsman_contract::policy::Candidate;
use toml_edit::{DocumentMut, InlineTable, Item, Value};

use super::entry::{Entry, Spot};
use super::names::{
    self, BACKEND_ADDRESS, DNS_NAME, FREE_FIELD, HOST_FIELD, SERVER_NAME, SOCKET_ADDRESS,
};
use super::reader::{self, MAX_SILENCE_MS, MAX_TIMEOUT_MS, Section, Taken, one_of};
use super::{Problem, UpstreamName, nearest};

const PERCENT: &str = "a percentage";
const PROBE_PATH: &str = "a path that begins with '/', without '#' or space";
const PORT: &str = "a port";
const NO_BACKENDS: &str = "at least one backend, unless allow_empty = true says that none is meant";
const TLS: &str = "true, false or a table";

const MAX_WINDOW_SECS: u64 = 3600;
/// More backends than this are no list that a person or a resolver has written.
const MAX_BACKENDS: usize = 10_000;

/// `[[upstream]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Unique.
    pub name: UpstreamName,
    /// Default `round_robin`.
    pub policy: PluginName,
    /// Handed to the policy as JSON. Default `{}`.
    pub policy_config: serde_json::Value,
    /// Those written here; addresses are unique within the upstream. May be empty only where others
    /// are found by `backends_file` or `dns`.
    pub backends: Vec<BackendConfig>,
    /// More backends are in this watched file. Default none.
    pub backends_file: Option<PathBuf>,
    /// More backends are what a name resolves to. Default none.
    pub dns: Option<Dns>,
    /// How connections to backends are protected. `tls`; none: not at all.
    pub tls: Option<BackendTls>,
    /// Default 1 s.
    pub connect_timeout: Duration,
    /// From an upgrade's request to the head of its answer. Default 5 s.
    pub response_timeout: Duration,
    /// From the end of a plain request to the head of its answer, where its route does not say. Default 60 s.
    pub head_timeout: Duration,
    /// Whether a plain request whose answer did not come in time goes to another backend. Default false.
    pub retry_on_timeout: bool,
    /// Other backends tried before the client is answered. Default 2; 0 to 100.
    pub retries: u32,
    /// Retries over requests, in percent, above which nothing is tried again. Default 100.
    pub retry_budget_percent: u32,
    /// Where requests wait when every backend has its `max_sessions`.
    pub queue: QueueConfig,
    /// Over how long a backend that has come back gets its whole share. Default 0: at once.
    pub slow_start: Duration,
    /// With less than this share of the backends fit, in percent, all are used. Default 0: only
    /// when none is.
    pub panic_threshold_percent: u32,
    /// `[upstream.health]`; none: backends are not probed.
    pub health: Option<Health>,
    /// `[upstream.ejection]`; none: live traffic takes out only backends that cannot be connected to.
    pub ejection: Option<Ejection>,
}

/// One backend, as an operator or discovery names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// Host and port as written: `127.0.0.1:3001`, `[::1]:3001`, `app.internal:3001`. Names are
    /// resolved at each dial.
    pub address: String,
    /// 1 to 1000; default 1.
    pub weight: u32,
    /// Sessions that it may have; none: no bound.
    pub max_sessions: Option<u32>,
    /// Used only when no other backend can take a session.
    pub is_backup: bool,
    /// Gets nothing new, and what it has ends over the drain time. `drain`, default false.
    pub is_draining: bool,
    /// Handed to the policy.
    pub labels: BTreeMap<String, String>,
}

/// `queue_max` and `queue_timeout_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Requests that may wait at a time, over all workers. Default 0: none waits.
    pub max: u32,
    /// How long one waits. Default 5 s.
    pub timeout: Duration,
}

/// `[upstream.health]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked of a backend.
    pub probe: Probe,
    /// `Host` of the probe; none: the backend's address. `host`, default empty.
    pub host: Option<String>,
    /// More fields of the probe, or others than its own. Default none.
    pub headers: Vec<(String, String)>,
    /// Statuses that a backend in order answers with; none: what the kind of the probe expects.
    pub expect: Option<Statuses>,
    /// From the end of one probe to the beginning of the next. Default 2 s.
    pub interval: Duration,
    /// For the whole of a probe. Default 1 s.
    pub timeout: Duration,
    /// Successes in a row that bring a backend back. Default 2.
    pub rise: u32,
    /// Failures in a row that take one out. Default 3.
    pub fall: u32,
}

/// `kind`, and `path` where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It accepts a connection.
    Tcp,
    /// It answers `GET` with a status that is expected: by default 200 to 399.
    Http {
        /// Default `/`.
        path: String,
    },
    /// It upgrades, and answers a Ping; or answers with another status that is expected.
    WebSocket {
        /// Default `/`.
        path: String,
    },
}

/// `expect`: statuses of HTTP, as ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

/// `[upstream.ejection]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row, all within `window`. Default 5.
    pub failures: u32,
    /// Default 10 s.
    pub window: Duration,
    /// How long the first ejection lasts; each one after it twice as long. Default 10 s.
    pub eject: Duration,
    /// Share of the backends that may be out at a time. Default 50.
    pub max_ejected_percent: u32,
    /// Whether an answer that did not come in time is a failure. Default false.
    pub eject_on_timeout: bool,
}

/// `dns`: addresses that a name resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Asked for as A and AAAA where there is a port, else as SRV.
    pub name: String,
    /// The port of every address.
    pub port: Option<u16>,
    /// The longest time between two questions; answers that live shorter are asked for sooner.
    /// Default 5 s.
    pub refresh: Duration,
    /// Who is asked; none: the system's resolvers.
    pub server: Option<SocketAddr>,
}

/// `tls`: how a backend proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackendTls {
    /// Certificates in PEM that are trusted instead of the system's.
    pub ca: Option<PathBuf>,
    /// What the certificate has to be for, and what is sent as SNI; none: the address's host.
    pub server_name: Option<String>,
    /// Any certificate will do.
    pub insecure_skip_verify: bool,
}

/// One `[[upstream]]`.
pub(super) fn upstream(
    s: &mut Section<'_, '_>,
    base_dir: &Path,
    taken: &mut Taken<UpstreamName>,
) -> Option<Upstream> {
    let name = s.required_text("name", UpstreamName::ALLOWED, UpstreamName::parse);
    if let Some(name) = &name {
        s.unique(s.spot("name"), &format!("\"{name}\""), name.clone(), taken);
    }
    let path = |text: &str| Some(base_dir.join(text)).filter(|_| !text.is_empty());
    let is_found = s.has("backends_file") || s.has("dns");
    let backends = backends(s, is_found);
    let found = BackendSources {
        backends,
        backends_file: s.text("backends_file", "the path of a file", path),
        dns: dns(s),
        tls: tls(s, base_dir),
    };
    upstream_of(s, name, found)
}

/// Where an upstream's backends are.
#[derive(Debug, Default)]
pub(super) struct BackendSources {
    pub(super) backends: Vec<BackendConfig>,
    pub(super) backends_file: Option<PathBuf>,
    pub(super) dns: Option<Dns>,
    pub(super) tls: Option<BackendTls>,
}

/// All of an upstream but its name and where its backends are.
pub(super) fn upstream_of(
    s: &mut Section<'_, '_>,
    name: Option<UpstreamName>,
    found: BackendSources,
) -> Option<Upstream> {
    let policy = policy(s);
    let (has_health, has_ejection) = (s.has("health"), s.has("ejection"));
    if let Some(policy) = &policy {
        s.names_plugin(policy, s.spot("policy").path);
    }
    Some(Upstream {
        policy: policy.unwrap_or_else(PluginName::round_robin),
        policy_config: s.json("policy_config"),
        backends: found.backends,
        backends_file: found.backends_file,
        dns: found.dns,
        tls: found.tls,
        connect_timeout: s.millis("connect_timeout_ms", 1..=MAX_TIMEOUT_MS, 1000),
        response_timeout: s.millis("response_timeout_ms", 1..=MAX_TIMEOUT_MS, 5000),
        head_timeout: s.millis("head_timeout_ms", 1..=MAX_SILENCE_MS, 60_000),
        retry_on_timeout: s.flag("retry_on_timeout"),
        retries: s.number("retries", "a number of backends", 0..=100, 2),
        retry_budget_percent: s.number("retry_budget_percent", PERCENT, 0..=1000, 100),
        queue: QueueConfig {
            max: s.number("queue_max", "a number of requests", 0..=1_000_000, 0),
            timeout: s.millis("queue_timeout_ms", 1..=MAX_TIMEOUT_MS, 5000),
        },
        slow_start: s.secs("slow_start_secs", 0..=MAX_WINDOW_SECS, 0),
        panic_threshold_percent: s.number("panic_threshold_percent", PERCENT, 0..=100, 0),
        health: s.section("health", |s| health(s, has_health)),
        ejection: s.section("ejection", ejection).filter(|_| has_ejection),
        name: name?,
    })
}

/// None: the default.
fn policy(s: &mut Section<'_, '_>) -> Option<PluginName> {
    let entry = s.entry("policy")?;
    let written = entry.as_str().unwrap_or_default();
    let name = PluginName::parse(written);
    if name.is_none() {
        s.refuse_near(&entry, PluginName::ALLOWED, nearest::policy(written));
    }
    name
}

impl Statuses {
    /// What they may be, for error messages.
    pub const ALLOWED: &'static str = "statuses of 100 to 599, such as \"200-399\" or \"200, 404\"";

    /// None where `text` lists no statuses.
    pub fn parse(text: &str) -> Option<Self> {
        let status = |text: &str| {
            let text = text.trim();
            let is_number = text.len() == 3 && text.bytes().all(|c| c.is_ascii_digit());
            let status = text.parse().ok().filter(|_| is_number)?;
            (100..=599).contains(&status).then_some(status)
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = status(first)?..=status(last)?;
            (!range.is_empty()).then_some(range)
        };
        text.split(',').map(range).collect::<Option<_>>().map(Self)
    }

    /// Whether it is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// `is_there`: the section is written, so that what is missing in it is a problem.
fn health(s: &mut Section<'_, '_>, is_there: bool) -> Option<Health> {
    let is_path = |text: &str| text.starts_with('/') && !text.contains(['#', ' ']);
    let path = s.text("path", PROBE_PATH, |text| {
        Some(text.to_owned()).filter(|text| is_path(text))
    });
    let path = path.unwrap_or_else(|| "/".to_owned());
    let (http, websocket) = (path.clone(), path);
    let probes = [
        ("tcp", Probe::Tcp),
        ("http", Probe::Http { path: http }),
        ("websocket", Probe::WebSocket { path: websocket }),
    ];
    if is_there {
        s.require("kind", &one_of(&probes.each_ref().map(|(kind, _)| *kind)));
    }
    let probe = s.word("kind", &probes);
    // An empty one is the backend's address.
    let host = |text: &str| match text {
        "" => Some(None),
        text => names::host_field(text).map(Some),
    };
    let host = s.text("host", HOST_FIELD, host).flatten();
    let headers = s.section("headers", probe_headers);
    let expect = s.text("expect", Statuses::ALLOWED, Statuses::parse);
    if probe == Some(Probe::Tcp) {
        for key in ["host", "headers", "expect"] {
            if s.has(key) {
                s.problem(&s.spot(key), "a probe of kind \"tcp\" has none");
            }
        }
    }
    Some(Health {
        host,
        headers,
        expect,
        interval: s.millis("interval_ms", 10..=MAX_TIMEOUT_MS, 2000),
        timeout: s.millis("timeout_ms", 1..=MAX_TIMEOUT_MS, 1000),
        rise: s.number("rise", "a number of probes", 1..=1000, 2),
        fall: s.number("fall", "a number of probes", 1..=1000, 3),
        probe: probe?,
    })
}

/// Fields of a probe, but for those that its kind and the connection decide about.
fn probe_headers(s: &mut Section<'_, '_>) -> Vec<(String, String)> {
    let keys = s.names();
    let read = |key: String| {
        if !names::is_free_field(&key) {
            let what = format!("{key:?} is not allowed: {FREE_FIELD}");
            s.problem(&s.spot(&key), what);
        }
        let value = s.text(&key, names::FIELD_VALUE, names::field_value)?;
        Some((key, value))
    };
    keys.into_iter().filter_map(read).collect()
}

fn ejection(s: &mut Section<'_, '_>) -> Option<Ejection> {
    Some(Ejection {
        failures: s.number("failures", "a number of failures", 1..=1000, 5),
        window: s.secs("window_secs", 1..=MAX_WINDOW_SECS, 10),
        eject: s.secs("eject_secs", 1..=MAX_WINDOW_SECS, 10),
        max_ejected_percent: s.number("max_ejected_percent", PERCENT, 0..=100, 50),
        eject_on_timeout: s.flag("eject_on_timeout"),
    })
}

fn dns(s: &mut Section<'_, '_>) -> Option<Dns> {
    let is_there = s.has("dns");
    s.section("dns", |s| {
        let name = match is_there {
            true => s.required_text("name", DNS_NAME, names::dns_name),
            false => s.text("name", DNS_NAME, names::dns_name),
        };
        Some(Dns {
            port: s.number_if_written("port", PORT, 1..=u16::MAX),
            refresh: s.secs("refresh_secs", 1..=MAX_WINDOW_SECS, 5),
            server: s.text("server", SOCKET_ADDRESS, |text| text.parse().ok()),
            name: name?,
        })
    })
}

fn tls(s: &mut Section<'_, '_>, base_dir: &Path) -> Option<BackendTls> {
    let entry = s.entry("tls")?;
    match entry.as_bool() {
        Some(is_on) => is_on.then(BackendTls::default),
        None if entry.table().is_some() => s.section_at(&entry, |s| {
            let path = |text: &str| Some(base_dir.join(text)).filter(|_| !text.is_empty());
            Some(BackendTls {
                ca: s.text("ca", "the path of a PEM file", path),
                server_name: s.text("server_name", SERVER_NAME, names::server_name),
                insecure_skip_verify: s.flag("insecure_skip_verify"),
            })
        }),
        None => {
            s.refuse(&entry, TLS);
            None
        }
    }
}

fn backends(s: &mut Section<'_, '_>, may_be_empty: bool) -> Vec<BackendConfig> {
    if !may_be_empty {
        s.require_some("backends", "at least one backend");
    }
    let mut taken = Taken::new();
    let entries = s.list("backends", "a list of addresses or tables");
    if entries.len() > MAX_BACKENDS {
        let n = entries.len();
        s.problem(
            &s.spot("backends"),
            format!("{n} backends are not allowed: at most {MAX_BACKENDS}"),
        );
        return Vec::new();
    }
    entries
        .iter()
        .filter_map(|entry| backend(s, entry, &mut taken))
        .collect()
}

fn backend<'t>(
    s: &mut Section<'t, '_>,
    entry: &Entry<'t>,
    taken: &mut Taken<String>,
) -> Option<BackendConfig> {
    match entry.as_str() {
        Some(address) if backend_address(address).is_some() => {
            unique_backend(s, entry.spot.clone(), address, taken);
            s.section_without_keys(entry, |s| backend_at(s, Some(address.to_owned())))
        }
        None if entry.table().is_some() => s.section_at(entry, |s| {
            let address = s.required_text("address", BACKEND_ADDRESS, backend_address);
            if let Some(address) = &address {
                unique_backend(s, s.spot("address"), address, taken);
            }
            backend_at(s, address)
        }),
        _ => {
            s.refuse(
                entry,
                &format!("{BACKEND_ADDRESS}; or a table with that as its address"),
            );
            None
        }
    }
}

/// All of a backend but its address.
pub(super) fn backend_at(
    s: &mut Section<'_, '_>,
    address: Option<String>,
) -> Option<BackendConfig> {
    Some(BackendConfig {
        weight: s.number("weight", "a whole number", 1..=1000, 1),
        max_sessions: s.number_if_written("max_sessions", "a number of sessions", 1..=u32::MAX),
        is_backup: s.flag("backup"),
        is_draining: s.flag("drain"),
        labels: s.section("labels", labels),
        address: address?,
    })
}

fn labels(s: &mut Section<'_, '_>) -> BTreeMap<String, String> {
    let keys = s.names();
    let read = |key: String| {
        let value = s.text(&key, "a string", |text| Some(text.to_owned()))?;
        Some((key, value))
    };
    keys.into_iter().filter_map(read).collect()
}

fn backend_address(text: &str) -> Option<String> {
    names::canonical_backend(text).map(|_| text.to_owned())
}

/// Reports an address that its upstream has already, also in another spelling.
pub(super) fn unique_backend(
    s: &mut Section<'_, '_>,
    spot: Spot,
    address: &str,
    taken: &mut Taken<String>,
) {
    if let Some(canonical) = names::canonical_backend(address) {
        s.unique(spot, &format!("\"{address}\""), canonical, taken);
    }
}

impl BackendConfig {
    /// An address with the default of everything else.
    pub fn at(address: String) -> Self {
        Self {
            address,
            weight: 1,
            max_sessions: None,
            is_backup: false,
            is_draining: false,
            labels: BTreeMap::new(),
        }
    }

    /// The text of a file of backends: `backends = [...]` as in an `[[upstream]]`, in TOML; or the
    /// same in JSON, which begins with `{` or `[`. The list may be empty only where the file says that
    /// this is meant, by `allow_empty = true`: what writes such files may fail, and an empty list ends
    /// every session of the upstream.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn list_from(text: &str) -> Result<Vec<Self>, Vec<Problem>> {
        let read = |s: &mut Section<'_, '_>| {
            match s.flag("allow_empty") {
                true => s.require("backends", "a list of backends"),
                false => s.require_some("backends", NO_BACKENDS),
            }
            Some(backends(s, true))
        };
        match text.trim_start().starts_with(['{', '[']) {
            true => reader::read(&toml_from_json(text)?, read).map_err(|problems| {
                // The lines are those of the TOML that was made of it.
                let without_line = |problem| Problem {
                    line: None,
                    ..problem
                };
                problems.into_iter().map(without_line).collect()
            }),
            false => reader::read(text, read),
        }
    }
}

/// `{"backends": [...]}`, or the list alone, as a document of TOML.
fn toml_from_json(text: &str) -> Result<String, Vec<Problem>> {
    let problem = |line: Option<usize>, message: String| {
        vec![Problem {
            key: String::new(),
            line,
            message,
        }]
    };
    let json: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| problem(Some(error.line()), format!("not valid JSON: {error}")))?;
    let json = match json {
        serde_json::Value::Array(list) => serde_json::json!({ "backends": list }),
        object => object,
    };
    let mut document = DocumentMut::new();
    for (key, value) in json.as_object().into_iter().flatten() {
        let value = toml_value(value)
            .ok_or_else(|| problem(None, format!("{key}: null is not allowed")))?;
        document.insert(key, Item::Value(value));
    }
    Ok(document.to_string())
}

/// None where there is a `null` in it.
fn toml_value(json: &serde_json::Value) -> Option<Value> {
    Some(match json {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(is) => Value::from(*is),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::from(whole),
            None => Value::from(number.as_f64()?),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(list) => {
            Value::Array(list.iter().map(toml_value).collect::<Option<_>>()?)
        }
        serde_json::Value::Object(table) => {
            let mut inline = InlineTable::new();
            for (key, value) in table {
                inline.insert(key, toml_value(value)?);
            }
            Value::InlineTable(inline)
        }
    })
}

impl From<&BackendConfig> for Candidate {
    fn from(backend: &BackendConfig) -> Self {
        Self {
            address: backend.address.clone(),
            weight: backend.weight,
            labels: backend.labels.clone().into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let problems = BackendConfig::list_from(text).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_of_backends_is_toml_or_json() {
        let expected = vec![
            BackendConfig::at("a:1".to_owned()),
            BackendConfig {
                weight: 3,
                is_draining: true,
                labels: BTreeMap::from([("zone".to_owned(), "b".to_owned())]),
                ..BackendConfig::at("b:1".to_owned())
            },
        ];
        for text in [
            "# two\nbackends = ['a:1', { address = 'b:1', weight = 3, drain = true, labels = { zone = 'b' } }]",
            r#"["a:1", {"address": "b:1", "weight": 3, "drain": true, "labels": {"zone": "b"}}]"#,
            r#" {"backends": ["a:1", {"address": "b:1", "weight": 3, "drain": true, "labels": {"zone": "b"}}]}"#,
        ] {
            assert_eq!(
                BackendConfig::list_from(text),
                Ok(expected.clone()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_of_no_backends_says_that_this_is_meant() {
        for text in [
            "backends = []\nallow_empty = true",
            r#"{"backends": [], "allow_empty": true}"#,
        ] {
            assert_eq!(BackendConfig::list_from(text), Ok(vec![]), "{text}");
        }
        let one = vec![BackendConfig::at("a:1".to_owned())];
        let text = "allow_empty = true\nbackends = ['a:1']";
        assert_eq!(BackendConfig::list_from(text), Ok(one));
        let refused = format!("backends: [] is not allowed: {NO_BACKENDS}");
        for text in [
            "[]",
            " [ ]\n",
            r#"{"backends": []}"#,
            r#"{"backends": [], "allow_empty": false}"#,
        ] {
            assert_eq!(lines(text), [refused.as_str()], "{text}");
        }
        assert_eq!(lines("backends = []"), [format!("line 1: {refused}")]);
        assert_eq!(
            lines("allow_empty = true"),
            ["backends: missing: a list of backends"]
        );
        assert_eq!(
            lines("backends = []\nallow_empty = 1"),
            [
                format!("line 1: {refused}").as_str(),
                "line 2: allow_empty: 1 is not allowed: true or false"
            ]
        );
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        for whole in [
            r#"{"backends": ["127.0.0.1:3001", "127.0.0.1:3002"]}"#,
            "backends = [\"127.0.0.1:3001\",\n \"127.0.0.1:3002\"]",
        ] {
            assert!(BackendConfig::list_from(whole).is_ok());
            for at in 0..whole.len() {
                assert!(
                    BackendConfig::list_from(&whole[..at]).is_err(),
                    "{}",
                    &whole[..at]
                );
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_of_backends_is_said() {
        let missing = format!("backends: missing: {NO_BACKENDS}");
        assert_eq!(lines(""), [missing.as_str()]);
        assert_eq!(lines("# nothing yet"), [missing.as_str()]);
        assert_eq!(lines("{}"), [missing.as_str()]);
        assert_eq!(
            lines("backends = ['a:1', 'a:1']\nweights = 1"),
            [
                "line 1: backends[1]: \"a:1\" is not allowed: backends[0] has it already, on line 1",
                "line 2: weights: unknown key: one of allow_empty, backends",
            ]
        );
        assert_eq!(
            lines(r#"["a:1", {"address": "b:1", "weight": 0}]"#),
            ["backends[1].weight: 0 is not allowed: a whole number, 1 to 1000"]
        );
        assert_eq!(lines("[null]"), ["backends: null is not allowed"]);
        assert!(lines("[1,")[0].starts_with("line 1: not valid JSON: "));
    }
}
