//! One token: from its text to claims that may be relied on, or to what is wrong with it.

use std::{borrow::Cow, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::keys::{Algorithm, Keys};

/// Tokens have a few hundred bytes, with many roles a few thousand. It bounds what a stranger can
/// have us decode.
pub(crate) const MAX_BYTES: usize = 8 << 10;

/// What is wrong with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There is none.
    Missing,
    /// It is not one token in the form of RFC 7515 section 7.1.
    Malformed(&'static str),
    /// No key is for its algorithm and `kid`.
    Key,
    Signature,
    Expired,
    /// `nbf` is to come.
    Early,
    Issuer,
    Audience,
    /// This claim is missing, or does not fit into a header.
    Claim(String),
}

impl Fault {
    /// What it is counted under.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed(_) => "malformed",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Claim(_) => "claim",
        }
    }
}

/// For the client: without quotes, and without anything of the token.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "a token is needed",
            Self::Malformed(what) => what,
            Self::Key => "no key is for this algorithm and kid",
            Self::Signature => "the signature is wrong",
            Self::Expired => "the token has expired",
            Self::Early => "the token is not valid yet",
            Self::Issuer => "the token is from another issuer",
            Self::Audience => "the token is for another audience",
            Self::Claim(name) => return write!(f, "the claim {name} is missing or unusable"),
        })
    }
}

/// What a token's claims are held against.
pub(crate) struct Checks {
    pub(crate) keys: Keys,
    /// Empty: any issuer, or none.
    pub(crate) issuers: Vec<String>,
    /// Who we are. Empty: only tokens that are for nobody in particular.
    pub(crate) audiences: Vec<String>,
    pub(crate) requires_exp: bool,
    pub(crate) leeway_ms: u64,
}

/// RFC 7515 section 4.1. What else is there (`jku`, `jwk`, `x5u` and the like) is not looked at.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<Value>,
}

impl Checks {
    /// The claims of a token that is good now.
    pub(crate) fn verify(&self, token: &str, now_ms: u64) -> Result<Claims, Fault> {
        let parts = Parts::of(token)?;
        let header = decoded(parts.header)?;
        let header: Header<'_> =
            serde_json::from_slice(&header).map_err(|_| Fault::Malformed("no token"))?;
        if header.crit.is_some() {
            return Err(Fault::Malformed("an extension that is not understood"));
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(Fault::Key)?;
        let key = self.keys.pick(algorithm, header.kid.as_deref());
        let key = key.ok_or(Fault::Key)?;
        if !key.verify(parts.signed.as_bytes(), &decoded(parts.signature)?) {
            return Err(Fault::Signature);
        }
        let claims = parts.claims()?;
        self.check(&claims, now_ms)?;
        Ok(claims)
    }

    /// From when on a token is of no use; none: never.
    pub(crate) fn end_ms(&self, claims: &Claims) -> Result<Option<u64>, Fault> {
        let expires = claims.time_ms("exp")?;
        Ok(expires.map(|expires| expires.saturating_add(self.leeway_ms)))
    }

    fn check(&self, claims: &Claims, now_ms: u64) -> Result<(), Fault> {
        match self.end_ms(claims)? {
            None if self.requires_exp => return Err(Fault::Claim("exp".to_owned())),
            Some(end_ms) if now_ms >= end_ms => return Err(Fault::Expired),
            None | Some(_) => {}
        }
        let starts = claims.time_ms("nbf")?;
        if starts.is_some_and(|starts| starts > now_ms.saturating_add(self.leeway_ms)) {
            return Err(Fault::Early);
        }
        let is_ours = |issuer: &str| self.issuers.iter().any(|ours| ours == issuer);
        if !self.issuers.is_empty() && !claims.text("iss").is_some_and(is_ours) {
            return Err(Fault::Issuer);
        }
        self.check_audience(claims.get("aud"))
    }

    /// RFC 7519 section 4.1.3: a token that is for somebody has to be for us.
    fn check_audience(&self, audience: Option<&Value>) -> Result<(), Fault> {
        let is_ours = |value: &Value| self.audiences.iter().any(|ours| value == ours.as_str());
        let is_for_us = match audience {
            None => self.audiences.is_empty(),
            Some(Value::Array(all)) => all.iter().any(is_ours),
            Some(one) => is_ours(one),
        };
        is_for_us.then_some(()).ok_or(Fault::Audience)
    }
}

/// What a token says.
#[derive(Debug)]
pub(crate) struct Claims(Map<String, Value>);

impl Claims {
    /// Without a look at the signature.
    pub(crate) fn unverified(token: &str) -> Result<Self, Fault> {
        Parts::of(token)?.claims()
    }

    /// `null` is as good as nothing.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// Seconds since 1970, which may have a fraction (RFC 7519 section 2). What is before 1970 is
    /// 1970.
    fn time_ms(&self, name: &str) -> Result<Option<u64>, Fault> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let secs = value
            .as_f64()
            .ok_or_else(|| Fault::Claim(name.to_owned()))?;
        Ok(Some((secs * 1000.0) as u64))
    }
}

/// The three parts of a token, still encoded.
struct Parts<'a> {
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
    /// The first two.
    signed: &'a str,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, Fault> {
        if token.len() > MAX_BYTES {
            return Err(Fault::Malformed("the token is too long"));
        }
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, payload) = signed.split_once('.')?;
            Some(Self {
                header,
                payload,
                signature,
                signed,
            })
        });
        parts.ok_or(Fault::Malformed("no token"))
    }

    fn claims(&self) -> Result<Claims, Fault> {
        let claims = serde_json::from_slice(&decoded(self.payload)?);
        claims
            .map(Claims)
            .map_err(|_| Fault::Malformed("the claims are no JSON object"))
    }
}

fn decoded(part: &str) -> Result<Vec<u8>, Fault> {
    let bytes = URL_SAFE_NO_PAD.decode(part);
    bytes.map_err(|_| Fault::Malformed("no token"))
}
