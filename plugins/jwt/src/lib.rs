//! Filter `jwt`: a client needs a JSON Web Token (RFC 7519) to get in, and its session ends when the
//! token does. The backend gets claims as headers, and the client may send a new token in time.
//!
//! `source` finds the token in the request, `token` checks it, `keys` and `rs256` its signature.

mod config;
mod keys;
mod rs256;
mod source;
#[cfg(test)]
mod tests;
mod token;

use std::{fmt, rc::Rc};

use pointsman_sdk::{
    Close, Facts, Header, Message, Refusal, clock,
    filter::{Admission, Direction, Filter, FilterSession, Interest, Verdict, Wants},
    log, metrics,
};
use serde_json::{Value, json};

pub use crate::config::Config;
use crate::{
    config::Settings,
    token::{Claims, Fault},
};

/// How late a session may end after its token.
const TICK_INTERVAL_MS: u32 = 1000;

/// A signature costs up to milliseconds, and clients have a new token every few minutes.
const REFRESH_INTERVAL_MS: u64 = 1000;

/// A message that is longer holds more than a token, and is none for us.
const MAX_REFRESH_BYTES: usize = token::MAX_BYTES + 1024;

/// Lets clients in.
pub struct Jwt {
    settings: Rc<Settings>,
}

/// Without the keys.
impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("sources", &self.settings.sources)
            .finish_non_exhaustive()
    }
}

impl Filter for Jwt {
    type Config = Config;
    type Session = JwtSession;

    fn configure(config: Config) -> Result<Self, String> {
        let settings = Rc::new(Settings::new(config)?);
        Ok(Self { settings })
    }

    fn wants(&self) -> Wants {
        Wants {
            headers: self.settings.sources.headers(),
            accept: true,
        }
    }

    fn accept(&mut self, facts: &Facts) -> Result<Admission, Refusal> {
        let admission = self.admission(facts).map_err(|fault| {
            metrics::count(&format!("refused_{}", fault.reason()), 1);
            log::debug(format_args!("{}: refused: {fault}", facts.request_id));
            refusal(&fault)
        })?;
        metrics::count("accepted", 1);
        Ok(admission)
    }

    /// `accept` has verified the token of these very facts, maybe in another instance; so its claims
    /// need only be read again. Should they not be readable, the session has expired.
    fn open(&mut self, facts: Facts) -> JwtSession {
        let token = self.settings.sources.token(&facts);
        let claims = token.and_then(|token| Claims::unverified(&token));
        let end_ms = match &claims {
            Ok(claims) => self.settings.checks.end_ms(claims).unwrap_or(Some(0)),
            Err(_) => Some(0),
        };
        JwtSession {
            settings: Rc::clone(&self.settings),
            subject: claims.ok().as_ref().and_then(Subject::of),
            end_ms,
            next_refresh_ms: 0,
        }
    }
}

pointsman_sdk::export!(Jwt: filter);

impl Jwt {
    fn admission(&self, facts: &Facts) -> Result<Admission, Fault> {
        let Settings {
            sources, checks, ..
        } = &*self.settings;
        let claims = checks.verify(&sources.token(facts)?, clock::now_ms())?;
        let headers = self.settings.claims_to_headers.iter();
        let set_headers = headers
            .map(|(claim, header)| Ok(Header::new(header, header_value(&claims, claim)?)))
            .collect::<Result<_, Fault>>()?;
        let subprotocols = sources.subprotocols(facts);
        Ok(Admission {
            hide_subprotocols: subprotocols.map(str::to_owned).collect(),
            set_headers,
        })
    }
}

/// Text as it is, other values as JSON. The host leaves out a header that it cannot send: so what does
/// not fit, or is not there, refuses the token.
fn header_value(claims: &Claims, name: &str) -> Result<String, Fault> {
    let value = claims.get(name).map(|value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    let fits = |value: &String| {
        value.bytes().all(|byte| matches!(byte, b' '..=b'~')) && value.trim() == value
    };
    value
        .filter(fits)
        .ok_or_else(|| Fault::Claim(name.to_owned()))
}

/// RFC 6750 section 3: a request without a token is not told of an error.
fn refusal(fault: &Fault) -> Refusal {
    let challenge = match fault {
        Fault::Missing => "Bearer".to_owned(),
        other => format!("Bearer error=\"invalid_token\", error_description=\"{other}\""),
    };
    Refusal::new(401, fault.to_string()).with_header("www-authenticate", challenge)
}

/// Whose token it is. A subject is one only for its issuer (RFC 7519 section 4.1.2).
#[derive(Debug, PartialEq, Eq)]
struct Subject {
    issuer: Option<String>,
    subject: String,
}

impl Subject {
    fn of(claims: &Claims) -> Option<Self> {
        Some(Self {
            issuer: claims.text("iss").map(str::to_owned),
            subject: claims.text("sub")?.to_owned(),
        })
    }
}

/// Knows when it ends.
pub struct JwtSession {
    settings: Rc<Settings>,
    /// Milliseconds since 1970; none: never. A new token changes it.
    end_ms: Option<u64>,
    /// Whom a new token has to be for. None: no token is good enough.
    subject: Option<Subject>,
    /// Before this moment no new token is looked at, in milliseconds since 1970.
    next_refresh_ms: u64,
}

impl fmt::Debug for JwtSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSession")
            .field("end_ms", &self.end_ms)
            .finish_non_exhaustive()
    }
}

impl FilterSession for JwtSession {
    fn interest(&self) -> Interest {
        match self.settings.refresh_type {
            Some(_) => Interest::CLIENT_TEXT,
            None => Interest::empty(),
        }
    }

    fn tick_interval_ms(&self) -> u32 {
        match (self.end_ms, &self.settings.refresh_type) {
            (None, None) => 0,
            _ => TICK_INTERVAL_MS,
        }
    }

    fn message(&mut self, _from: Direction, message: Message) -> Verdict {
        let Message::Text(text) = message else {
            return Verdict::Forward;
        };
        let now_ms = clock::now_ms();
        if self.has_expired(now_ms) {
            return self.expire();
        }
        let Some(refresh) = self.read_refresh(&text) else {
            return Verdict::Forward;
        };
        let answer = match self.refresh(&refresh, now_ms) {
            Ok(exp) => {
                metrics::count("refreshed", 1);
                json!({"type": "auth.refreshed", "exp": exp})
            }
            Err(error) => {
                metrics::count("refresh_refused", 1);
                json!({"type": "auth.error", "error": error})
            }
        };
        Verdict::Answer(vec![Message::text(answer.to_string())])
    }

    fn tick(&mut self) -> Verdict {
        match self.has_expired(clock::now_ms()) {
            true => self.expire(),
            false => Verdict::Drop,
        }
    }
}

impl JwtSession {
    fn has_expired(&self, now_ms: u64) -> bool {
        self.end_ms.is_some_and(|end_ms| now_ms >= end_ms)
    }

    fn expire(&self) -> Verdict {
        metrics::count("expired", 1);
        Verdict::Close(Close::new(
            self.settings.expired_close_code,
            "token expired",
        ))
    }

    /// The message as JSON if it has a new token for us; most have not even the name of its type in
    /// them, and are not parsed.
    fn read_refresh(&self, text: &str) -> Option<Value> {
        let name = self.settings.refresh_type.as_deref()?;
        if text.len() > MAX_REFRESH_BYTES || !text.contains(name) {
            return None;
        }
        let message: Value = serde_json::from_str(text).ok()?;
        (message.get("type")? == name).then_some(message)
    }

    /// The session now ends with the new token, whose `exp` is returned. It does with the old one if
    /// there is an error, which is for the client.
    fn refresh(&mut self, message: &Value, now_ms: u64) -> Result<Option<Value>, String> {
        if now_ms < self.next_refresh_ms {
            return Err("one token a second is looked at".to_owned());
        }
        self.next_refresh_ms = now_ms.saturating_add(REFRESH_INTERVAL_MS);
        let token = message.get("token").and_then(Value::as_str);
        let token = token.ok_or_else(|| Fault::Missing.to_string())?;
        let checks = &self.settings.checks;
        let claims = checks.verify(token, now_ms).map_err(|e| e.to_string())?;
        if self.subject.is_none() || Subject::of(&claims) != self.subject {
            return Err("the token is for another subject".to_owned());
        }
        self.end_ms = checks.end_ms(&claims).map_err(|e| e.to_string())?;
        Ok(claims.get("exp").cloned())
    }
}
