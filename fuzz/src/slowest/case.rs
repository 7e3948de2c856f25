//! The ways into each shipped plugin: what it reads of what clients and backends write, with a configuration
//! that makes it read that.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use http::HeaderValue;
use pointsman_contract::handler::Facts;
use pointsman_contract::message::{Message, MessageKind};
use pointsman_contract::session::SessionId;

/// One way into one plugin.
#[derive(Debug)]
pub struct Case {
    /// Its name.
    pub plugin: &'static str,
    /// As JSON.
    pub(super) config: &'static str,
    place: Place,
    /// The longest input that the balancer lets through, or that the plugin reads.
    pub(super) n_bytes: usize,
}

/// Where the input is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Text,
    Binary,
    /// Path and query, behind this.
    Target(&'static str),
    /// The value of this header.
    Header(&'static str),
    Subprotocols,
}

/// What a plugin is given.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) facts: Facts,
    pub(super) message: Option<Message>,
}

/// Plugins that read addresses and figures only, or nothing.
#[cfg(test)]
pub(super) const WITHOUT_INPUT: [&str; 8] = [
    "first",
    "hello",
    "ip_hash",
    "least_connections",
    "least_latency",
    "power_of_two",
    "random",
    "round_robin",
];

/// The default of `max_message_bytes` on a route with a handler or a filter.
const MESSAGE: usize = 1 << 20;
/// The longest path and query.
const TARGET: usize = 8 << 10;
/// The default of `max_request_header_bytes`.
const HEAD: usize = 16 << 10;
/// The longest token that `jwt` verifies.
const TOKEN: usize = 8 << 10;

/// All of them.
pub const CASES: &[Case] = &[
    case("broadcast", "{}", Place::Text, MESSAGE),
    case(
        "broadcast",
        r#"{"topic_from":"query:a"}"#,
        Place::Target("/?"),
        TARGET,
    ),
    case(
        "broadcast",
        r#"{"publish":"secret","publisher_secret":"sixteen-letters-"}"#,
        Place::Header("x-publisher"),
        HEAD,
    ),
    case("chat", "{}", Place::Text, 28_672),
    case("chat", "{}", Place::Target("/?"), TARGET),
    case("chat", r#"{"max_text_bytes":65536}"#, Place::Text, 397_312),
    case("consistent_hash", BY_COOKIE, Place::Header("cookie"), HEAD),
    case("consistent_hash", BY_QUERY, Place::Target("/?"), TARGET),
    case("echo", "{}", Place::Text, MESSAGE),
    case("json_schema", README_SCHEMA, Place::Text, 65_536),
    case("json_schema", DEEP_SCHEMA, Place::Text, 65_536),
    case("jwt", TOKENS, Place::Header("authorization"), TOKEN),
    case("jwt", TOKENS, Place::Target("/?"), TARGET),
    case("jwt", TOKENS, Place::Header("cookie"), TOKEN),
    case("jwt", TOKENS, Place::Subprotocols, TOKEN),
    case("jwt", TOKENS, Place::Text, TOKEN),
    case("maglev", BY_COOKIE, Place::Header("cookie"), HEAD),
    case("maglev", BY_HEADER, Place::Header("a"), HEAD),
    case("rate_limit", BY_PER_QUERY, Place::Target("/?"), TARGET),
    case("rate_limit", BY_PER_QUERY, Place::Text, MESSAGE),
    case(
        "redact",
        r#"{"pointers":["/user/email","/orders/*/card"],"directions":"both"}"#,
        Place::Text,
        MESSAGE,
    ),
    case(
        "redact",
        r#"{"pointers":["/*/a","/*/0","/a/*/b","/*/*/c"],"replacement":0}"#,
        Place::Text,
        MESSAGE,
    ),
    case(
        "redact",
        r#"{"pointers":["/*"],"replacement":0}"#,
        Place::Text,
        MESSAGE,
    ),
    case(
        "redact",
        r#"{"pointers":["/*/*"],"remove":true}"#,
        Place::Text,
        MESSAGE,
    ),
    case("rendezvous", BY_QUERY, Place::Target("/?"), TARGET),
    case(
        "rendezvous",
        r#"{"key":"path"}"#,
        Place::Target("/"),
        TARGET,
    ),
    case(
        "sticky",
        r#"{"secret":"sixteen letters.","cookie":"a"}"#,
        Place::Header("cookie"),
        HEAD,
    ),
    case("tap", SAMPLES, Place::Text, MESSAGE),
    case("tap", SAMPLES, Place::Binary, MESSAGE),
];

const BY_COOKIE: &str = r#"{"key":"cookie","name":"a"}"#;
const BY_HEADER: &str = r#"{"key":"header","name":"a"}"#;
const BY_QUERY: &str = r#"{"key":"query","name":"a"}"#;
const BY_PER_QUERY: &str = r#"{"messages_per_sec":1,"per":"query","name":"a"}"#;
const SAMPLES: &str = r#"{"sample_every":1,"sample_bytes":3072}"#;

/// From the plugin's README.
const README_SCHEMA: &str = r#"{"directions":"both","schema":{
    "type": "object",
    "required": ["type", "room"],
    "properties": {
        "type": {"enum": ["join", "leave", "say"]},
        "room": {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"},
        "text": {"type": "string", "maxLength": 2000}
    },
    "additionalProperties": false
}}"#;

/// The keywords that make work: unions, recursion, patterns, unique items.
const DEEP_SCHEMA: &str = r##"{"directions":"both","schema":{
    "anyOf": [
        {"type": "string", "pattern": "(a|b)*a(a|b){12}c"},
        {"type": "array", "uniqueItems": true, "items": {"$ref": "#"}, "minItems": 1},
        {"type": "object", "propertyNames": {"pattern": "^[a-z]*$"}, "additionalProperties": {"$ref": "#"}},
        {"oneOf": [{"type": "number"}, {"type": "boolean"}, {"enum": [null, [0], {"a": 0}]}]}
    ]
}}"##;

/// The keys are those of RFC 7515, appendices A.2 and A.3, and of RFC 8037, appendix A.2.
const TOKENS: &str = r#"{
    "sources": ["header", "query", "subprotocol", "cookie"],
    "secret": "thirty-two letters, or even more",
    "query": "a", "cookie": "a", "refresh": {},
    "jwks": {"keys": [
        {"kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"},
        {"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    ]}
}"#;

/// By the secret of [`TOKENS`], until 2096: a session of `jwt` that began without one takes no new token.
const VALID_TOKEN: &str = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEiLCJleHAiOjQwMDAwMDAwMDB9.0URhRNhp-IhDeH84ZDHTa_x79cXg89iJvTaFplZVy3c";

const fn case(plugin: &'static str, config: &'static str, place: Place, n_bytes: usize) -> Case {
    Case {
        plugin,
        config,
        place,
        n_bytes,
    }
}

impl Case {
    /// The folder of its seeds.
    pub(super) fn seeds(&self) -> &'static str {
        match self.place {
            Place::Text | Place::Binary => "slowest/messages",
            Place::Target(_) | Place::Header(_) | Place::Subprotocols => "slowest/fields",
        }
    }

    pub(super) fn input(&self, bytes: Vec<u8>) -> Input {
        let mut facts = Facts {
            session: SessionId(1),
            route: "/*".to_owned(),
            client_ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            is_suspect: false,
            host: "app.example.org".to_owned(),
            path: "/".to_owned(),
            request_id: "0123456789abcdef".to_owned(),
            max_message_bytes: MESSAGE as u64,
            offered_subprotocols: Vec::new(),
            subprotocol: None,
            headers: Vec::new(),
        };
        let mut message = None;
        match self.place {
            Place::Text => {
                facts.headers = vec![("authorization".to_owned(), VALID_TOKEN.to_owned())];
                let payload = utf8(&bytes).into();
                let kind = MessageKind::Text;
                message = Some(Message { kind, payload });
            }
            Place::Binary => {
                let payload = bytes.into();
                let kind = MessageKind::Binary;
                message = Some(Message { kind, payload });
            }
            Place::Target(before) => facts.path = format!("{before}{}", utf8(&bytes)),
            Place::Header(name) => {
                // The balancer refuses others.
                if HeaderValue::from_bytes(&bytes).is_ok() {
                    facts.headers = vec![(name.to_owned(), utf8(&bytes))];
                }
            }
            Place::Subprotocols => {
                let names = bytes.split(|byte| *byte == b',');
                facts.offered_subprotocols = names.map(utf8).collect();
            }
        }
        Input { facts, message }
    }
}

/// The balancer lets no text through that is not UTF-8.
fn utf8(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.truncate(text.floor_char_boundary(bytes.len()));
    text
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.plugin, self.place, self.n_bytes)
    }
}
