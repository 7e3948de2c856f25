//! What an operator may say, and what it comes to.

use std::{collections::BTreeMap, fmt};

use pointsman_sdk::close;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    keys::Keys,
    source::{Source, Sources},
    token::Checks,
};

const MAX_LEEWAY_SECS: u64 = 60;
const MAX_CLAIMS_TO_HEADERS: usize = 32;
const MAX_REFRESH_TYPE_BYTES: usize = 64;

/// What an operator may say. Keys are not strings here, because the error of another type would
/// repeat what it found.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "default_sources")]
    sources: Vec<Source>,
    #[serde(default = "default_header")]
    header: String,
    #[serde(default = "default_parameter")]
    query: String,
    #[serde(default = "default_subprotocol_prefix")]
    subprotocol_prefix: String,
    #[serde(default = "default_parameter")]
    cookie: String,
    #[serde(default)]
    secret: Value,
    #[serde(default)]
    jwks: Value,
    #[serde(default)]
    issuer: Value,
    #[serde(default)]
    audience: Value,
    #[serde(default = "default_require_exp")]
    require_exp: bool,
    #[serde(default)]
    leeway_secs: u64,
    /// From a claim to the header in which the backend gets it.
    #[serde(default)]
    claims_to_headers: BTreeMap<String, String>,
    #[serde(default = "default_expired_close_code")]
    expired_close_code: u16,
    refresh: Option<Refresh>,
}

/// That clients may send new tokens, and how.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refresh {
    #[serde(default = "default_refresh_type")]
    r#type: String,
}

fn default_sources() -> Vec<Source> {
    vec![Source::Header]
}

fn default_header() -> String {
    "authorization".to_owned()
}

/// RFC 6750 section 2.3.
fn default_parameter() -> String {
    "access_token".to_owned()
}

fn default_subprotocol_prefix() -> String {
    "bearer.".to_owned()
}

fn default_require_exp() -> bool {
    true
}

/// Policy violation.
fn default_expired_close_code() -> u16 {
    close::POLICY_VIOLATION
}

fn default_refresh_type() -> String {
    "auth.refresh".to_owned()
}

/// Without the keys.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

/// What a configuration comes to. Sessions share it.
pub(crate) struct Settings {
    pub(crate) sources: Sources,
    pub(crate) checks: Checks,
    /// Claims and the headers for them, in lower case.
    pub(crate) claims_to_headers: Vec<(String, String)>,
    pub(crate) expired_close_code: u16,
    /// The `type` of a message with a new token; none: there are no such messages.
    pub(crate) refresh_type: Option<String>,
}

impl Settings {
    pub(crate) fn new(config: Config) -> Result<Self, String> {
        let code = config.expired_close_code;
        if !matches!(code, close::POLICY_VIOLATION | 3000..=4999) {
            return Err(format!(
                "expired_close_code: {code} is not allowed: 1008, or 3000 to 4999"
            ));
        }
        let secs = config.leeway_secs;
        if secs > MAX_LEEWAY_SECS {
            return Err(format!(
                "leeway_secs: {secs} is not allowed: 0 to {MAX_LEEWAY_SECS}"
            ));
        }
        Ok(Self {
            checks: Checks {
                keys: Keys::read(&config.jwks, &config.secret)?,
                issuers: texts("issuer", &config.issuer)?,
                audiences: texts("audience", &config.audience)?,
                requires_exp: config.require_exp,
                leeway_ms: secs * 1000,
            },
            claims_to_headers: claims_to_headers(&config.claims_to_headers)?,
            expired_close_code: code,
            refresh_type: config.refresh.as_ref().map(refresh_type).transpose()?,
            sources: sources(config)?,
        })
    }
}

fn sources(config: Config) -> Result<Sources, String> {
    let order = config.sources;
    let is_doubled = |(place, source)| order[..place].contains(source);
    if order.is_empty() || order.iter().enumerate().any(is_doubled) {
        return Err(format!(
            "sources: {order:?} is not allowed: at least one, and none twice"
        ));
    }
    check_name("header", &config.header)?;
    check_name("subprotocol_prefix", &config.subprotocol_prefix)?;
    check_name("cookie", &config.cookie)?;
    if config.query.is_empty() {
        return Err("query: \"\" is not allowed: the name of a parameter".to_owned());
    }
    Ok(Sources {
        order,
        header: config.header.to_ascii_lowercase(),
        query: config.query,
        subprotocol_prefix: config.subprotocol_prefix,
        cookie: config.cookie,
    })
}

/// Each header once, so that all of what the backend gets under its name is from the token.
fn claims_to_headers(config: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, String> {
    const KEY: &str = "claims_to_headers";
    if config.len() > MAX_CLAIMS_TO_HEADERS {
        let n = config.len();
        return Err(format!(
            "{KEY}: {n} are not allowed: at most {MAX_CLAIMS_TO_HEADERS}"
        ));
    }
    let mut fields: Vec<(String, String)> = Vec::new();
    for (claim, header) in config {
        if !is_quotable(claim) {
            return Err(format!(
                "{KEY}: the claim {claim:?} is not allowed: ASCII without quotes and backslashes"
            ));
        }
        check_name(KEY, header)?;
        let header = header.to_ascii_lowercase();
        if is_hosts(&header) {
            return Err(format!(
                "{KEY}: {header:?} is not allowed: it belongs to the connection or the handshake"
            ));
        }
        if fields.iter().any(|(_, other)| *other == header) {
            return Err(format!("{KEY}: two claims are for the header {header:?}"));
        }
        fields.push((claim.clone(), header));
    }
    Ok(fields)
}

fn refresh_type(refresh: &Refresh) -> Result<String, String> {
    let name = &refresh.r#type;
    if !is_quotable(name) || name.len() > MAX_REFRESH_TYPE_BYTES {
        return Err(format!(
            "refresh.type: {name:?} is not allowed: 1 to {MAX_REFRESH_TYPE_BYTES} characters, ASCII without quotes and backslashes"
        ));
    }
    Ok(name.clone())
}

/// A string or a list of strings; none at all if the key is not there.
fn texts(key: &str, value: &Value) -> Result<Vec<String>, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let texts = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) if list.is_empty() => None,
        Value::Array(list) => list.iter().map(text).collect(),
        one => text(one).map(|one| vec![one]),
    };
    texts.ok_or_else(|| format!("{key}: {value} is not allowed: a string, or a list of strings"))
}

/// A token of RFC 9110 section 5.6.2, as are the names of fields, cookies and subprotocols.
fn check_name(key: &str, name: &str) -> Result<(), String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!(
            "{key}: {name:?} is not allowed: a name without spaces and separators"
        ));
    }
    Ok(())
}

/// Stands between quotes in JSON and in a header as it is.
fn is_quotable(text: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    !text.is_empty() && text.bytes().all(is_plain)
}

/// What the host sends itself, and would leave out.
fn is_hosts(header: &str) -> bool {
    const CONNECTION: [&str; 9] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    CONNECTION.contains(&header) || header.starts_with("sec-websocket-")
}
