//! What hosts, paths, addresses and origins may look like.
//!
//! In comes a string of the operator's, out goes a checked value or nothing; each says in words
//! what it allows. Nothing here knows where the string was written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use pointsman_contract::fields::OF_CONNECTION;

use super::{HostPattern, OriginPattern, PathPattern};

pub(super) const BACKEND_ADDRESS: &str = "HOST:PORT, where HOST is an IPv4 address, an [IPv6 address] or a DNS name, and PORT 1 to 65535";
pub(super) const DNS_NAME: &str = "a DNS name such as \"app.internal\"; labels may begin with '_'";
pub(super) const SERVER_NAME: &str = "a DNS name or an IP address";
pub(super) const NETWORK: &str = "a network such as \"10.0.0.0/8\", or one address";
pub(super) const HOST_FIELD: &str =
    "a host such as \"app.example.org\", with or without a port; or empty";
pub(super) const FREE_FIELD: &str = "the name of a field, other than Host (which is `host`), and not one of the connection, the body or the handshake";
pub(super) const FIELD_VALUE: &str = "visible ASCII characters and spaces, at most 4096";
pub(super) const SOCKET_ADDRESS: &str =
    "an address and port such as \"0.0.0.0:8080\" or \"[::1]:8080\"";

impl HostPattern {
    /// What a pattern may be, for error messages.
    pub const ALLOWED: &'static str =
        "a host name such as \"app.example.org\", or \"*.\" before one; without a port";

    /// None where `text` is neither a host nor a pattern of hosts.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix("*.") {
            Some(rest) => is_dns_name(rest).then(|| Self::Suffix(format!(".{rest}"))),
            None => is_dns_name(&text).then_some(Self::Exact(text)),
        }
    }

    /// `host`: in lower case, without port and without a dot at the end.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => host == exact,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

impl PathPattern {
    /// What a pattern may be, for error messages.
    pub const ALLOWED: &'static str =
        "a path that begins with '/', without '?', '#' or spaces; '*' only in a last \"/*\"";

    /// None where `text` is no path of a request.
    pub fn parse(text: &str) -> Option<Self> {
        let is_fine = |c: char| c.is_ascii_graphic() && !"?#*".contains(c);
        let prefix = text
            .strip_suffix('*')
            .filter(|prefix| prefix.ends_with('/'));
        let path = prefix.unwrap_or(text);
        let is_path = path.starts_with('/') && path.chars().all(is_fine);
        is_path.then(|| match prefix {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(path.to_owned()),
        })
    }

    /// The pattern with its ASCII letters in lower case.
    pub(super) fn to_ascii_lowercase(&self) -> Self {
        match self {
            Self::Exact(path) => Self::Exact(path.to_ascii_lowercase()),
            Self::Prefix(prefix) => Self::Prefix(prefix.to_ascii_lowercase()),
        }
    }
}

impl OriginPattern {
    /// What a pattern may be, for error messages.
    pub const ALLOWED: &'static str = "an origin as browsers send it, such as \"https://app.example.org\", without a path; \"https://*.example.org\"; or \"null\"";

    /// None where no browser would send `text` as its `Origin` (RFC 6454 section 7.1), and it is no pattern of origins.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "null" {
            return Some(Self::Null);
        }
        let (scheme, host, port) = split_origin(text)?;
        let is_scheme_part = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(is_scheme_part);
        let is_host_part = |c: char| c.is_ascii_graphic() && !"/?#@,*\"\\".contains(c);
        let host = host.to_ascii_lowercase();
        let host = match host.strip_prefix("*.") {
            Some(rest) => is_dns_name(rest).then(|| HostPattern::Suffix(format!(".{rest}"))),
            None => (host.chars().all(is_host_part)).then_some(HostPattern::Exact(host)),
        };
        let host = host.filter(|_| is_scheme)?;
        Some(Self::Origin {
            scheme: scheme.to_ascii_lowercase(),
            host,
            port,
        })
    }

    /// `origin`: as a client sends it. Case does not count, and a port that is the scheme's own is none.
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Null => origin == "null",
            Self::Origin { scheme, host, port } => {
                split_origin(origin).is_some_and(|(its_scheme, its_host, its_port)| {
                    // A path in the place of a host could end as the host does.
                    let is_host = matches!(host, HostPattern::Exact(_)) || is_dns_name(its_host);
                    is_host
                        && scheme.eq_ignore_ascii_case(its_scheme)
                        && *port == its_port
                        && host.matches(&its_host.to_ascii_lowercase())
                })
            }
        }
    }
}

/// Scheme, host and port; no port where it is the scheme's own (RFC 6454 section 4).
fn split_origin(text: &str) -> Option<(&str, &str, Option<u16>)> {
    let (scheme, authority) = text.split_once("://")?;
    let (host, port) = match authority.rsplit_once(':') {
        // The colon of an IPv6 address is within brackets.
        Some((host, port)) if !port.ends_with(']') => {
            let is_number = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
            (host, Some(port.parse().ok().filter(|_| is_number)?))
        }
        _ => (authority, None),
    };
    let usual = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    (!host.is_empty()).then_some((scheme, host, port.filter(|_| port != usual)))
}

/// The address in the one spelling by which two of them are compared; none where it is wrong.
pub(super) fn canonical_backend(address: &str) -> Option<String> {
    if address.starts_with('[') {
        let address: SocketAddrV6 = address.parse().ok()?;
        return (address.port() != 0).then(|| address.to_string());
    }
    let (host, port) = address.rsplit_once(':')?;
    // u16 would read "+80" and "080" too, and then one backend had two spellings.
    let is_number = port.starts_with(|c: char| ('1'..='9').contains(&c))
        && port.chars().all(|c| c.is_ascii_digit());
    let _: u16 = port.parse().ok().filter(|_| is_number)?;
    let is_ipv4_shaped = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    // A dot at the end keeps a resolver from trying its search domains.
    let is_host = if is_ipv4_shaped {
        host.parse::<Ipv4Addr>().is_ok()
    } else {
        is_dns_name(host.strip_suffix('.').unwrap_or(host))
    };
    is_host.then(|| address.to_ascii_lowercase())
}

/// None where nobody could be asked for `text`. Labels of services begin with an underscore (RFC 2782).
pub(super) fn dns_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let labels: Vec<_> = name
        .split('.')
        .map(|label| label.strip_prefix('_').unwrap_or(label))
        .collect();
    is_dns_name(&labels.join(".")).then(|| text.to_ascii_lowercase())
}

/// None where no certificate could be for `text`.
pub(super) fn server_name(text: &str) -> Option<String> {
    (text.parse::<IpAddr>().is_ok() || is_dns_name(text)).then(|| text.to_ascii_lowercase())
}

/// None where `text` is no `Host` (RFC 9110 section 7.2).
pub(super) fn host_field(text: &str) -> Option<String> {
    let is_ipv6 = |text: &str| {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        bare.is_some_and(|bare| bare.parse::<Ipv6Addr>().is_ok())
    };
    let is_host = |host: &str| is_ipv6(host) || is_dns_name(host);
    let is_fine = is_host(text)
        || text.rsplit_once(':').is_some_and(|(host, port)| {
            let is_number = port.bytes().all(|c| c.is_ascii_digit());
            is_host(host) && is_number && port.parse::<u16>().is_ok()
        });
    is_fine.then(|| text.to_owned())
}

/// Whether a field of this name can be added to a request of ours without making another request of it.
pub(super) fn is_free_field(name: &str) -> bool {
    // RFC 9110 section 5.6.2.
    let is_tchar = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let lower = name.to_ascii_lowercase();
    (1..=256).contains(&name.len())
        && name.chars().all(is_tchar)
        && !OF_CONNECTION.contains(&lower.as_str())
        && !["expect", "host"].contains(&lower.as_str())
        && !lower.starts_with("sec-websocket-")
}

/// None where `text` is no value of a field.
pub(super) fn field_value(text: &str) -> Option<String> {
    let is_fine = text.len() <= 4096 && text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    is_fine.then(|| text.to_owned())
}

/// None where `text` is neither a network nor an address.
pub(super) fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .ok()
}

/// Whether only this machine can reach `address`.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// RFC 1123 section 2.1, and the underscore that container names have.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_exact_or_a_suffix() {
        let long = "a".repeat(64);
        let deep = vec!["abc"; 64].join(".");
        for (text, expected) in [
            ("App.Example.org", Some("app.example.org")),
            ("*.Example.org", Some("*.example.org")),
            ("localhost", Some("localhost")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("my_app-1", Some("my_app-1")),
            ("", None),
            ("*", None),
            ("*.", None),
            ("a.*.org", None),
            ("*.*.org", None),
            ("app.example.org:80", None),
            ("app.example.org.", None),
            ("-a.org", None),
            ("a-.org", None),
            ("a b", None),
            ("b\u{fc}cher.example", None),
            (&long, None),
            (&deep, None),
        ] {
            let host = HostPattern::parse(text).map(|host| host.to_string());
            assert_eq!(host.as_deref(), expected, "{text}");
        }
        assert_eq!(
            HostPattern::parse("*.a.org"),
            Some(HostPattern::Suffix(".a.org".to_owned()))
        );
    }

    #[test]
    fn paths_are_exact_or_a_prefix() {
        let exact = |path: &str| Some(PathPattern::Exact(path.to_owned()));
        let prefix = |path: &str| Some(PathPattern::Prefix(path.to_owned()));
        for (text, expected) in [
            ("/", exact("/")),
            ("/websocket", exact("/websocket")),
            ("/a%20b/c", exact("/a%20b/c")),
            ("/*", prefix("/")),
            ("/chat/*", prefix("/chat/")),
            ("", None),
            ("*", None),
            ("chat", None),
            ("/chat*", None),
            ("/*/chat", None),
            ("/**", None),
            ("/*/*", None),
            ("/a?b", None),
            ("/a#b", None),
            ("/a b", None),
            ("/a\tb", None),
            ("/caf\u{e9}", None),
        ] {
            assert_eq!(PathPattern::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn backends_are_a_host_and_a_port() {
        for (text, expected) in [
            ("127.0.0.1:3001", Some("127.0.0.1:3001")),
            ("[::1]:3001", Some("[::1]:3001")),
            ("[0:0:0:0:0:0:0:1]:3001", Some("[::1]:3001")),
            ("App.Internal:65535", Some("app.internal:65535")),
            ("app.internal.:1", Some("app.internal.:1")),
            ("app", None),
            ("app:", None),
            (":3001", None),
            (".:3001", None),
            ("app:0", None),
            ("app:65536", None),
            ("app:+80", None),
            ("app:080", None),
            ("app:http", None),
            ("::1:3001", None),
            ("[::1]", None),
            ("[::1]:0", None),
            ("[app]:3001", None),
            ("256.0.0.1:80", None),
            ("1.2.3:80", None),
            ("ws://app:80", None),
            ("app:80/x", None),
        ] {
            assert_eq!(canonical_backend(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn hosts_of_probes_may_have_a_port() {
        for host in [
            "app.example.org",
            "app.example.org:8080",
            "10.0.0.1",
            "[::1]",
            "[::1]:80",
        ] {
            assert_eq!(host_field(host).as_deref(), Some(host));
        }
        for text in [
            "",
            "a b",
            "app:",
            "app:99999",
            "http://app",
            "app/x",
            "::1",
            "a:+1",
        ] {
            assert_eq!(host_field(text), None, "{text}");
        }
    }

    #[test]
    fn fields_of_probes_leave_the_request_what_it_is() {
        for name in ["X-Probe", "authorization", "User-Agent", "x_y"] {
            assert!(is_free_field(name), "{name}");
        }
        for name in [
            "",
            "Host",
            "Connection",
            "transfer-encoding",
            "Content-Length",
            "Sec-WebSocket-Key",
            "x y",
            "x:",
            "caf\u{e9}",
        ] {
            assert!(!is_free_field(name), "{name}");
        }
        assert!(field_value("Bearer a, b").is_some() && field_value("").is_some());
        assert!(field_value("a\r\nHost: b").is_none() && field_value("caf\u{e9}").is_none());
    }

    #[test]
    fn networks_may_be_one_address() {
        for (text, expected) in [
            ("127.0.0.0/8", Some("127.0.0.0/8")),
            ("10.1.2.3", Some("10.1.2.3/32")),
            ("::1", Some("::1/128")),
            ("10.0.0.0/33", None),
            ("localhost", None),
        ] {
            let network = network(text).map(|network| network.to_string());
            assert_eq!(network.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn origins_have_a_scheme_and_no_path() {
        for (text, shown) in [
            ("null", "null"),
            ("https://app.example.org", "https://app.example.org"),
            ("HTTPS://App.Example.org:443", "https://app.example.org"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("http://[::1]:80", "http://[::1]"),
            ("http://[::1]", "http://[::1]"),
            ("https://example.org:80", "https://example.org:80"),
            ("https://*.Example.org", "https://*.example.org"),
            ("https://*.example.org:8443", "https://*.example.org:8443"),
            ("chrome-extension://abc", "chrome-extension://abc"),
        ] {
            let origin = OriginPattern::parse(text).map(|origin| origin.to_string());
            assert_eq!(origin.as_deref(), Some(shown), "{text}");
        }
        for text in [
            "",
            "app.example.org",
            "https://",
            "https://a/",
            "https://a b",
            "https://a:",
            "https://a:99999",
            "https://a:+1",
            "https://me@a",
            "*",
            "https://*",
            "https://*.",
            "https://a.*.org",
            "https://**.org",
            "*://example.org",
            "://a",
        ] {
            assert_eq!(OriginPattern::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_origin_matches_without_case_and_the_schemes_own_port() {
        let check = |pattern: &str, yes: &[&str], no: &[&str]| {
            let pattern = OriginPattern::parse(pattern).unwrap();
            for origin in yes {
                assert!(pattern.matches(origin), "{pattern} {origin}");
            }
            for origin in no {
                assert!(!pattern.matches(origin), "{pattern} {origin}");
            }
        };
        for pattern in ["https://example.org", "https://example.org:443"] {
            check(
                pattern,
                &[
                    "https://example.org",
                    "HTTPS://EXAMPLE.org",
                    "https://example.org:443",
                ],
                &[
                    "http://example.org",
                    "https://example.org:8443",
                    "https://a.example.org",
                    "https://example.org.",
                    "https://example.org/",
                    "https://example.org.evil.net",
                    "null",
                    "",
                ],
            );
        }
        check(
            "https://*.example.org",
            &["https://a.example.org", "https://A.b.example.org:443"],
            &[
                "https://example.org",
                "https://evilexample.org",
                "https://.example.org.evil.net",
                "http://a.example.org",
                "https://a.example.org:8443",
                "https://evil.net/.example.org",
                "https://evil.net?.example.org",
            ],
        );
        check(
            "http://localhost:5173",
            &["http://localhost:5173"],
            &["http://localhost"],
        );
        check("null", &["null"], &["https://null", ""]);
    }

    #[test]
    fn loopback_is_what_stays_on_this_machine() {
        for (text, expected) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
        ] {
            assert_eq!(is_loopback(text.parse().unwrap()), expected, "{text}");
        }
    }
}
