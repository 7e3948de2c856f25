//! What tells requests apart: one property of the request, as the operator names it, for policies that
//! hash and for sessions that share something; and a hash that is the same wherever and whenever it is
//! computed.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, de::Error};
use twox_hash::XxHash64;

use crate::{Facts, Header, policy::Request, shorthand};

/// Where a request's key is found: what `key` in an operator's configuration says. The client's
/// address unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// `"client_ip"`: the client's address without its port.
    #[default]
    ClientIp,
    /// `"path"`: the request's path without its query, as received.
    Path,
    /// `"header"`: the first header of a name.
    Header,
    /// `"cookie"`: the first cookie of a name.
    Cookie,
    /// `"query"`: the first value of a name in the query, decoded.
    Query,
}

/// By hand, because `derive` is a feature of `serde` that plugins without configuration go without.
impl<'de> Deserialize<'de> for KeyKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "client_ip" => Ok(Self::ClientIp),
            "path" => Ok(Self::Path),
            "header" => Ok(Self::Header),
            "cookie" => Ok(Self::Cookie),
            "query" => Ok(Self::Query),
            other => Err(D::Error::custom(format_args!(
                "key: {other:?} is not allowed: one of \"client_ip\", \"path\", \"header\", \"cookie\", \"query\""
            ))),
        }
    }
}

/// What requests are told apart by, for a policy that keeps those of one key together.
///
/// ```
/// # use pointsman_sdk::policy::{Backend, Decision, Policy, Request, Wants};
/// use pointsman_sdk::policy::{Key, KeyKind};
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     #[serde(default)]
///     key: KeyKind,
///     name: Option<String>,
/// }
///
/// struct ByKey { key: Key, n_backends: u64 }
///
/// impl Policy for ByKey {
///     type Config = Config;
///
///     fn configure(config: Config) -> Result<Self, String> {
///         Ok(Self { key: Key::new(config.key, config.name)?, n_backends: 1 })
///     }
///
///     fn wants(&self) -> Wants {
///         Wants { headers: self.key.headers(), ..Wants::default() }
///     }
///
///     fn backends_changed(&mut self, backends: &[Backend]) {
///         self.n_backends = backends.len() as u64;
///     }
///
///     fn choose(&mut self, request: &Request) -> Decision {
///         Decision::Prefer((self.key.hash(request) % self.n_backends) as u32)
///     }
/// }
///
/// # use pointsman_sdk::testing::{PolicyHost, backend, request};
/// let config = serde_json::json!({ "key": "query", "name": "room" });
/// let mut host = PolicyHost::<ByKey>::start(config, &["a:1", "b:1"].map(backend))?;
/// let lobby = || Request { path: "/chat?room=lobby".into(), ..request() };
/// assert_eq!(host.choose(lobby()), host.choose(lobby()));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    kind: KeyKind,
    /// Of the header (in lower case), the cookie or the value in the query; else empty.
    name: String,
}

impl Key {
    /// `key` and `name` as the operator wrote them.
    ///
    /// # Errors
    ///
    /// A header, cookie or value in the query has no name, or not a possible one; or something else
    /// has a name. The text is for the operator.
    pub fn new(kind: KeyKind, name: Option<String>) -> Result<Self, String> {
        let name = match (kind, name) {
            (KeyKind::ClientIp | KeyKind::Path, None) => String::new(),
            (KeyKind::ClientIp | KeyKind::Path, Some(name)) => {
                return Err(format!(
                    "name: {name:?} is not allowed: only a header, a cookie or a value in the query has a name"
                ));
            }
            (KeyKind::Header, name) => named(name, is_token)?.to_lowercase(),
            (KeyKind::Cookie, name) => named(name, is_token)?,
            (KeyKind::Query, name) => named(name, |name| !name.is_empty())?,
        };
        Ok(Self { kind, name })
    }

    /// What to put into [`Wants::headers`](crate::policy::Wants::headers).
    pub fn headers(&self) -> Vec<String> {
        match self.kind {
            KeyKind::Header => vec![self.name.clone()],
            KeyKind::Cookie => vec!["cookie".to_owned()],
            KeyKind::ClientIp | KeyKind::Path | KeyKind::Query => Vec::new(),
        }
    }

    /// The request's key. None if it has none, or an empty one: those who lack it have nothing in
    /// common.
    pub fn of<'a>(&'a self, request: &'a Request) -> Option<Cow<'a, str>> {
        self.find(&request.client_ip, &request.path, &request.headers)
    }

    /// [`of`](Self::of) the request that a session began with. What [`headers`](Self::headers) says
    /// goes into the `Wants::headers` of the handler or filter.
    pub fn of_session<'a>(&'a self, facts: &'a Facts) -> Option<Cow<'a, str>> {
        self.find(&facts.client_ip, &facts.path, &facts.headers)
    }

    fn find<'a>(
        &'a self,
        client_ip: &'a str,
        path: &'a str,
        headers: &'a [Header],
    ) -> Option<Cow<'a, str>> {
        let key = match self.kind {
            KeyKind::ClientIp => Cow::Borrowed(client_ip),
            KeyKind::Path => Cow::Borrowed(without_query(path)),
            KeyKind::Header => Cow::Borrowed(shorthand::find(headers, &self.name)?),
            KeyKind::Cookie => Cow::Borrowed(shorthand::cookies(headers, &self.name).next()?),
            KeyKind::Query => shorthand::query(path, &self.name)?,
        };
        (!key.is_empty()).then_some(key)
    }

    /// The hash of the request's key; the request's random number if it has none, so that such
    /// requests go anywhere, by weight.
    pub fn hash(&self, request: &Request) -> u64 {
        match self.of(request) {
            Some(key) => stable_hash(0, key.as_bytes()),
            None => request.random,
        }
    }
}

fn named(name: Option<String>, may_be: fn(&str) -> bool) -> Result<String, String> {
    match name {
        Some(name) if may_be(&name) => Ok(name),
        Some(name) => Err(format!(
            "name: {name:?} is not allowed: a name without spaces and separators"
        )),
        None => {
            Err("name: missing: which header, cookie or value in the query is the key?".to_owned())
        }
    }
}

/// XXH64: the same on every host, for every version of a plugin, for ever. `seed` and
/// every byte change all of it. Not for secrets: whoever chooses the bytes can choose the hash.
pub fn stable_hash(seed: u64, bytes: &[u8]) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// RFC 9110 section 5.6.2: what names of fields are, and of cookies (RFC 6265 section 4.1.1).
fn is_token(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        testing::{facts, request},
    };

    fn key(kind: KeyKind, name: &str) -> Key {
        let name = (!name.is_empty()).then(|| name.to_owned());
        Key::new(kind, name).unwrap()
    }

    fn typical() -> Request {
        Request {
            path: "/rooms/a%20b?room=a%20b&empty=".to_owned(),
            headers: vec![
                Header::new("x-user", "ada"),
                Header::new("x-user", "bob"),
                Header::new("cookie", "sid=1; sid=2"),
            ],
            ..request()
        }
    }

    #[test]
    fn a_key_is_found_where_it_is_said_to_be() {
        let check = |kind, name, expected| {
            let (key, request) = (key(kind, name), typical());
            assert_eq!(key.of(&request).as_deref(), expected, "{key:?}");
            let facts = Facts {
                path: request.path,
                headers: request.headers,
                ..facts()
            };
            assert_eq!(key.of_session(&facts).as_deref(), expected, "{key:?}");
        };
        check(KeyKind::ClientIp, "", Some("192.0.2.1"));
        check(KeyKind::Path, "", Some("/rooms/a%20b"));
        check(KeyKind::Header, "X-User", Some("ada"));
        check(KeyKind::Header, "x-other", None);
        check(KeyKind::Cookie, "sid", Some("1"));
        check(KeyKind::Cookie, "SID", None);
        check(KeyKind::Query, "room", Some("a b"));
        check(KeyKind::Query, "empty", None);
        check(KeyKind::Query, "other", None);
    }

    #[test]
    fn only_headers_that_are_read_are_asked_for() {
        assert_eq!(key(KeyKind::Header, "X-User").headers(), ["x-user"]);
        assert_eq!(key(KeyKind::Cookie, "Sid").headers(), ["cookie"]);
        assert!(key(KeyKind::Query, "Sid").headers().is_empty());
    }

    #[test]
    fn a_request_without_key_is_hashed_by_chance() {
        let anonymous = Request {
            random: 7,
            ..request()
        };
        assert_eq!(key(KeyKind::Cookie, "sid").hash(&anonymous), 7);
        assert_ne!(key(KeyKind::ClientIp, "").hash(&anonymous), 7);
    }

    /// Vectors of the reference implementation and of the page of python-xxhash.
    #[test]
    fn the_hash_stays_the_same() {
        let check = |seed, text: &str, hash| assert_eq!(stable_hash(seed, text.as_bytes()), hash);
        check(0, "", 0xef46_db37_51d8_e999);
        check(0, "abc", 0x44bc_2cf5_ad77_0999);
        check(
            0,
            "Nobody inspects the spammish repetition",
            0xfbce_a83c_8a37_8bf1,
        );
        check(20_141_025, "xxhash", 0xb559_b98d_844e_0635);
    }

    #[test]
    fn a_wrong_key_is_refused() {
        let refused =
            |kind, name: Option<&str>| Key::new(kind, name.map(str::to_owned)).unwrap_err();
        assert!(refused(KeyKind::Header, None).starts_with("name: missing"));
        assert!(refused(KeyKind::Path, Some("x")).contains("\"x\" is not allowed"));
        assert!(refused(KeyKind::Cookie, Some("a=b")).contains("\"a=b\" is not allowed"));
        assert!(refused(KeyKind::Query, Some("")).contains("\"\" is not allowed"));
        assert_eq!(
            config::read::<KeyKind>("\"ip\"").unwrap_err(),
            "key: \"ip\" is not allowed: one of \"client_ip\", \"path\", \"header\", \"cookie\", \"query\""
        );
    }
}
