//! What an exchange comes to: the answer of a backend or plugin, a session, or a refusal of ours.
//!
//! In go heads and reasons; out comes what the client is sent, and what log and metrics are told of it.

use std::ops::RangeInclusive;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use pointsman_contract::policy::Refusal;
use pointsman_metrics::labels::UpgradeResult;
use pointsman_protocol::forwarding;
use pointsman_protocol::handshake::{self, HandshakeError};
use pointsman_traffic::body::passing::Passing;
use pointsman_traffic::body::{self, Body};
use pointsman_traffic::spelling;

use super::Next;

/// For a client that came when there was too much to do (RFC 9110 section 10.2.3).
const RETRY_AFTER_SECS: RangeInclusive<u32> = 1..=5;

/// What an exchange came to.
pub(super) struct Answered {
    pub(super) response: Response<Body>,
    pub(super) next: Option<Next>,
    /// What came of an upgrade.
    pub(super) result: Option<UpgradeResult>,
    pub(super) backend: Option<String>,
    pub(super) reason: Option<String>,
}

/// A request that ends here.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Empty: an explanation.
    pub(super) body: String,
    /// For the log, and for the client where it is the client's fault.
    reason: String,
    result: UpgradeResult,
}

impl Answered {
    /// What a backend or an HTTP handler answers to a plain request.
    pub(super) fn plain(response: Response<Body>, backend: Option<&str>) -> Self {
        Self {
            response,
            next: None,
            result: None,
            backend: backend.map(str::to_owned),
            reason: None,
        }
    }

    pub(super) fn upgraded(headers: HeaderMap, extensions: http::Extensions, next: Next) -> Self {
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        *response.extensions_mut() = extensions;
        Self {
            response,
            next: Some(next),
            result: Some(UpgradeResult::Accepted),
            backend: None,
            reason: None,
        }
    }
}

impl Refused {
    pub(super) fn new(
        status: StatusCode,
        result: UpgradeResult,
        reason: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Self {
            status,
            headers: HeaderMap::new(),
            body: String::new(),
            reason: reason.into(),
            result,
        })
    }

    /// What a plugin wants said; fields that speak of the connection or its framing are dropped.
    pub(super) fn by_plugin(refusal: Refusal, result: UpgradeResult) -> Box<Self> {
        let status = StatusCode::from_u16(refusal.status)
            .ok()
            .filter(|status| status.is_client_error() || status.is_server_error());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut headers = HeaderMap::new();
        append_all(status, &mut headers, refusal.headers);
        if status == StatusCode::UPGRADE_REQUIRED && !headers.contains_key(header::UPGRADE) {
            headers.extend(handshake::refusal_headers(status));
        }
        Box::new(Self {
            status,
            headers,
            body: refusal.body,
            reason: "refused by the plugin".to_owned(),
            result,
        })
    }

    pub(super) fn into_answer(self) -> Answered {
        let status = self.status;
        let mut response = match self.body.as_str() {
            "" => body::text(status, &self.explanation()),
            said => body::text(status, said),
        };
        if !self.headers.is_empty() {
            *response.extensions_mut() = spelling::of_the_rfcs();
        }
        response.headers_mut().extend(self.headers);
        Answered {
            response,
            next: None,
            result: Some(self.result),
            backend: None,
            reason: Some(self.reason),
        }
    }

    /// For the client: what it did wrong, but not what is wrong behind us.
    fn explanation(&self) -> String {
        match self.status.is_client_error() {
            true => format!("{}: {}", self.status, self.reason),
            false => self.status.to_string(),
        }
    }
}

impl From<HandshakeError> for Box<Refused> {
    fn from(error: HandshakeError) -> Self {
        let mut refused = Refused::new(error.status, UpgradeResult::BadRequest, error.reason);
        refused.headers = handshake::refusal_headers(error.status);
        refused
    }
}

/// For a request whose body came to no good end.
pub(super) fn bad_body(passing: &Passing) -> HandshakeError {
    let (status, reason) = match passing.is_body_late() {
        true => (
            StatusCode::REQUEST_TIMEOUT,
            "the rest of the request's body does not come",
        ),
        false => (StatusCode::BAD_REQUEST, "the request's body cannot be read"),
    };
    HandshakeError { status, reason }
}

/// Adds what a plugin wants added to an answer; fields that are invalid, or that speak of the connection or its
/// framing, are dropped.
pub(super) fn append_all(
    status: StatusCode,
    headers: &mut HeaderMap,
    fields: Vec<(String, String)>,
) {
    let mut added = HeaderMap::new();
    for (name, value) in fields {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value)) {
            added.append(name, value);
        }
    }
    forwarding::strip_answer(status, &mut added);
    added.remove(header::CONTENT_LENGTH);
    for (name, value) in &added {
        headers.append(name, value.clone());
    }
}

/// Clients that come again should not do so all at once.
pub(super) fn overloaded(reason: impl Into<String>) -> Box<Refused> {
    let mut refused = Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        UpgradeResult::Overloaded,
        reason,
    );
    let later = HeaderValue::from(fastrand::u32(RETRY_AFTER_SECS));
    refused.headers.insert(header::RETRY_AFTER, later);
    refused
}

pub(super) fn drained() -> Box<Refused> {
    out_of_service("the route is drained", HeaderValue::from_static("10"))
}

/// The next process may be there soon.
pub(super) fn going_away() -> Box<Refused> {
    let soon = HeaderValue::from(fastrand::u32(RETRY_AFTER_SECS));
    out_of_service("the process is being drained", soon)
}

fn out_of_service(reason: &str, retry_after: HeaderValue) -> Box<Refused> {
    let mut refused = Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        UpgradeResult::NoBackend,
        reason,
    );
    let headers = &mut refused.headers;
    headers.insert(header::RETRY_AFTER, retry_after);
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_426_of_a_plugin_says_what_to_upgrade_to() {
        let check = |status: u16, said: &[(&str, &str)], expected: Option<&str>| {
            let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let refused = Refused::by_plugin(
                Refusal {
                    status,
                    headers: said.iter().map(text).collect(),
                    body: String::new(),
                },
                UpgradeResult::FilterRefused,
            );
            let response = refused.into_answer().response;
            let field = |name| Some(response.headers().get(name)?.to_str().unwrap().to_owned());
            assert_eq!(field(header::UPGRADE).as_deref(), expected, "{status}");
            let names_it = expected.map(|_| "Upgrade");
            assert_eq!(field(header::CONNECTION).as_deref(), names_it, "{status}");
        };
        check(426, &[], Some("websocket"));
        check(426, &[("upgrade", "chat/2")], Some("chat/2"));
        check(
            403,
            &[("upgrade", "websocket"), ("connection", "upgrade")],
            None,
        );
    }
}
