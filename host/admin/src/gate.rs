//! Who may ask: nobody without the token, and no page in a browser that is not ours.
//!
//! A browser can be made to send requests to a loopback address by any page that it shows. It cannot be
//! made to lie in `Host`, `Origin` and `Sec-Fetch-Site`, and knows no token.

use http::header::{AUTHORIZATION, HeaderMap, ORIGIN};
use http::request;
use pointsman_config::{Admin, HostPattern};
use pointsman_protocol::handshake::read_host;
use sha2::{Digest, Sha256};

/// What is asked of a request.
#[derive(Default)]
pub(super) struct Gate {
    token: Option<TokenDigest>,
    hosts: Vec<HostPattern>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GateRefusal {
    /// `Host` is missing, repeated or invalid.
    BadHost,
    /// This host is somebody else's name: perhaps of a page that has its own name lead here (DNS
    /// rebinding).
    Host(String),
    /// There is no token, or another.
    Token,
}

type TokenDigest = [u8; 32];

impl Gate {
    pub(super) fn new(config: &Admin) -> Self {
        Self {
            token: config.token.as_deref().map(digest),
            hosts: config.hosts.clone(),
        }
    }

    /// Whether whoever sent this may see pages.
    pub(super) fn admit(&self, head: &request::Parts) -> Result<(), GateRefusal> {
        // A page whose name was made to lead here knows no token, so names matter where there is none.
        if self.token.is_none() || !self.hosts.is_empty() {
            let host = read_host(head).map_err(|_| GateRefusal::BadHost)?;
            if !self.knows(&host) {
                return Err(GateRefusal::Host(host));
            }
        }
        let Some(expected) = &self.token else {
            return Ok(());
        };
        // Digests are compared, so how long it takes tells nothing of the token or its length.
        match bearer_token(&head.headers).is_some_and(|given| digest(given) == *expected) {
            true => Ok(()),
            false => Err(GateRefusal::Token),
        }
    }

    /// An address cannot be made to lead elsewhere. `host`: in lower case, without its port; empty where
    /// an HTTP/1.0 request has none, which no browser sends.
    fn knows(&self, host: &str) -> bool {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        host.is_empty()
            || host == "localhost"
            || literal.parse::<std::net::IpAddr>().is_ok()
            || self.hosts.iter().any(|pattern| pattern.matches(host))
    }
}

/// Whether a page in a browser sent this: no page of anybody's steers this process (Fetch Metadata
/// Request Headers, section 2.3).
pub(super) fn is_from_a_page(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").into_iter();
    headers.contains_key(ORIGIN) || sites.any(|site| site != "same-origin" && site != "none")
}

/// RFC 6750 section 2.1; the scheme's name is without case, RFC 9110 section 11.1.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn digest(token: &str) -> TokenDigest {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use http::{Request, Version};

    use super::*;

    fn gate(token: Option<&str>, hosts: &[&str]) -> Gate {
        let hosts = hosts.iter().map(|host| HostPattern::parse(host).unwrap());
        Gate {
            token: token.map(digest),
            hosts: hosts.collect(),
        }
    }

    fn admit(gate: &Gate, headers: &[(&str, &str)]) -> Result<(), GateRefusal> {
        let mut request = Request::get("/api/status");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        gate.admit(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn without_a_token_only_addresses_and_known_names_are_hosts() {
        let refused = |host: &str| Err(GateRefusal::Host(host.to_owned()));
        let plain = gate(None, &[]);
        for (host, expected) in [
            ("127.0.0.1:9900", Ok(())),
            ("127.0.0.1", Ok(())),
            ("[::1]:9900", Ok(())),
            ("LocalHost:9900", Ok(())),
            ("localhost.:9900", Ok(())),
            ("evil.example:9900", refused("evil.example")),
            ("127.0.0.1.evil.example", refused("127.0.0.1.evil.example")),
            ("localhost.evil.example", refused("localhost.evil.example")),
            ("lb1", refused("lb1")),
            ("evil.example@127.0.0.1", Err(GateRefusal::BadHost)),
            ("", Err(GateRefusal::BadHost)),
        ] {
            assert_eq!(admit(&plain, &[("host", host)]), expected, "{host}");
        }
        let named = gate(None, &["lb1", "*.ops.example"]);
        assert_eq!(admit(&named, &[("host", "LB1:9900")]), Ok(()));
        assert_eq!(admit(&named, &[("host", "a.ops.example")]), Ok(()));
        assert_eq!(
            admit(&named, &[("host", "ops.example")]),
            refused("ops.example")
        );
        assert_eq!(admit(&named, &[("host", "127.0.0.1")]), Ok(()));
    }

    #[test]
    fn a_missing_host_is_only_for_http_1_0_and_two_are_for_nobody() {
        assert_eq!(admit(&gate(None, &[]), &[]), Err(GateRefusal::BadHost));
        let two = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(admit(&gate(None, &[]), &two), Err(GateRefusal::BadHost));
        let old = Request::get("/")
            .version(Version::HTTP_10)
            .body(())
            .unwrap();
        assert_eq!(gate(None, &[]).admit(&old.into_parts().0), Ok(()));
        let absolute = Request::get("http://evil.example/").header("host", "127.0.0.1");
        let head = absolute.body(()).unwrap().into_parts().0;
        assert_eq!(gate(None, &[]).admit(&head), Err(GateRefusal::BadHost));
    }

    #[test]
    fn a_token_is_enough_unless_hosts_are_named() {
        let token = ("authorization", "Bearer s3cret");
        let host = ("host", "lb1.example:9900");
        assert_eq!(admit(&gate(Some("s3cret"), &[]), &[host, token]), Ok(()));
        assert_eq!(
            admit(&gate(Some("s3cret"), &[]), &[host]),
            Err(GateRefusal::Token)
        );
        let named = gate(Some("s3cret"), &["lb2.example"]);
        let refused = Err(GateRefusal::Host("lb1.example".to_owned()));
        assert_eq!(admit(&named, &[host, token]), refused);
    }

    #[test]
    fn the_token_is_compared_whole() {
        let guarded = gate(Some("s3cret"), &[]);
        for (authorization, is_admitted) in [
            ("Bearer s3cret", true),
            ("bearer  s3cret", true),
            ("Bearer s3cre", false),
            ("Bearer s3cret2", false),
            ("Bearer", false),
            ("Bearer ", false),
            ("Basic s3cret", false),
        ] {
            let admitted = admit(&guarded, &[("authorization", authorization)]);
            assert_eq!(admitted.is_ok(), is_admitted, "{authorization}");
        }
    }

    #[test]
    fn pages_in_browsers_say_that_they_are() {
        let is_page = |name: &'static str, value: &'static str| {
            is_from_a_page(&HeaderMap::from_iter([(
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )]))
        };
        assert!(is_page("origin", "http://evil.example"));
        assert!(is_page("origin", "null"));
        for (site, expected) in [
            ("cross-site", true),
            ("same-site", true),
            ("what-comes-next", true),
            ("same-origin", false),
            ("none", false),
        ] {
            assert_eq!(is_page("sec-fetch-site", site), expected, "{site}");
        }
        assert!(!is_page("user-agent", "curl"));
    }
}
