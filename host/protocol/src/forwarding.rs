//! What a request and an answer look like on the other side: hop-by-hop fields off, forwarding
//! fields on (RFC 9110 section 7.6, RFC 7239), and nothing that could be taken for one of them.
//!
//! Pure functions over heads. Whom to believe is decided here once: a client behind a trusted proxy
//! is who that proxy says.

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::handshake;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// What the names of all fields of that family begin with.
const X_FORWARDED: &str = "x-forwarded-";
/// What the names of all fields of the handshake begin with.
const SEC_WEBSOCKET: &str = "sec-websocket-";
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Longest request id that is kept.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Takes off what concerns one connection only, and what `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let lines = headers.get_all(header::CONNECTION).into_iter();
    let named: Vec<_> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named.into_iter().filter(|name| !is_for_all(name)) {
        headers.remove(name);
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // The chunks are what counts (RFC 9112 section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        KEEP_ALIVE,
        PROXY_CONNECTION,
    ] {
        headers.remove(name);
    }
}

/// Makes the fields of an answer into those of the client's connection. A 426 keeps its `Upgrade`, which it must
/// have (RFC 9110 section 15.5.22); on other answers the field would offer what only the backend can do.
pub fn strip_answer(status: StatusCode, headers: &mut HeaderMap) {
    let mut offered = Vec::new();
    if status == StatusCode::UPGRADE_REQUIRED {
        offered.extend(headers.get_all(header::UPGRADE).iter().cloned());
    }
    strip_hop_by_hop(headers);
    if !offered.is_empty() {
        let names_it = HeaderValue::from_static("Upgrade");
        headers.insert(header::CONNECTION, names_it);
    }
    for protocol in offered {
        headers.append(header::UPGRADE, protocol);
    }
}

/// Takes out fields that a backend could take for others: those named, but for signs that are neither
/// letters nor digits, like another field of the request or one that is for a balancer to say. CGI and
/// its heirs read `X_User` as `X-User` (RFC 3875 section 4.1.18), and some `X.User`, too.
pub fn strip_lookalikes(headers: &mut HeaderMap) {
    let is_odd = |name: &&HeaderName| {
        !name
            .as_str()
            .bytes()
            .all(|c| c == b'-' || c.is_ascii_alphanumeric())
    };
    let odd: Vec<HeaderName> = headers.keys().filter(is_odd).cloned().collect();
    for name in odd {
        let read_as: String = name
            .as_str()
            .bytes()
            .map(read_sign)
            .map(char::from)
            .collect();
        if is_for_balancers(&read_as) || headers.contains_key(&read_as) {
            tracing::debug!(field = %name, "field dropped: it can be read as another");
            headers.remove(&name);
        }
    }
}

/// Takes out fields other than `name` that a backend could take for it, as [`strip_lookalikes`] does.
/// `name` is in lower case.
pub fn strip_lookalikes_of(headers: &mut HeaderMap, name: &str) {
    let is_alike = |other: &&HeaderName| {
        let other = other.as_str();
        other.len() == name.len()
            && other != name
            && other.bytes().map(read_sign).eq(name.bytes().map(read_sign))
    };
    let alike: Vec<HeaderName> = headers.keys().filter(is_alike).cloned().collect();
    for other in alike {
        tracing::debug!(field = %other, "field dropped: it can be read as another");
        headers.remove(&other);
    }
}

fn read_sign(c: u8) -> u8 {
    if c.is_ascii_alphanumeric() { c } else { b'-' }
}

/// Whether a field is about one connection, the handshake, the framing of the body, or who the client
/// is.
fn is_for_balancers(name: &str) -> bool {
    const NAMES: [HeaderName; 8] = [
        header::CONTENT_LENGTH,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TRANSFER_ENCODING,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        X_REAL_IP,
        X_REQUEST_ID,
    ];
    name.starts_with(X_FORWARDED)
        || name.starts_with(SEC_WEBSOCKET)
        || NAMES.iter().any(|known| known.as_str() == name)
}

/// Says how a request's body goes on; `length` is none where it came in chunks. Without a word of it the
/// HTTP library would leave out the body of a GET.
pub fn frame_body(headers: &mut HeaderMap, length: Option<u64>) {
    if length.is_none() {
        let chunked = HeaderValue::from_static("chunked");
        headers.insert(header::TRANSFER_ENCODING, chunked);
    }
}

/// What no client may have taken out, because a request is another without it (RFC 9110 section
/// 7.6.1: it is intended for all recipients).
fn is_for_all(name: &HeaderName) -> bool {
    *name == header::HOST || name.as_str().starts_with(SEC_WEBSOCKET)
}

/// Who the client is: the far end, or, as long as that is a trusted proxy, whom it names last in
/// `X-Forwarded-For`.
pub fn client_ip(far_end: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    let chain = handshake::list(headers, X_FORWARDED_FOR).unwrap_or_default();
    let mut client = far_end;
    for hop in chain.iter().rev() {
        if !is_trusted(client) {
            break;
        }
        let Some(ip) = parse_hop(hop) else { break };
        client = ip;
    }
    client
}

/// Writes `X-Forwarded-For/-Proto/-Host`, `Forwarded` and `X-Request-Id`. What a trusted far end
/// has written is extended, what a stranger has written is replaced: of other fields of the family
/// `X-Real-IP` by its own address, the rest by nothing.
pub fn write_forwarded(
    headers: &mut HeaderMap,
    far_end: SocketAddr,
    trusted: &[IpNet],
    request_id: &HeaderValue,
) {
    let far_end = far_end.ip().to_canonical();
    let is_trusted = trusted.iter().any(|net| net.contains(&far_end));
    let is_unbelieved = |name: &&HeaderName| !is_trusted && speaks_of_client(name);
    let unbelieved: Vec<_> = headers.keys().filter(is_unbelieved).cloned().collect();
    for name in unbelieved {
        headers.remove(&name);
        if name == X_REAL_IP {
            append(headers, X_REAL_IP, &far_end.to_string());
        }
    }
    let host = headers.get(header::HOST).cloned();
    append(headers, X_FORWARDED_FOR, &far_end.to_string());
    headers
        .entry(X_FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
    if let Some(host) = &host {
        headers
            .entry(X_FORWARDED_HOST)
            .or_insert_with(|| host.clone());
    }
    let node = match far_end {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let host = host
        .as_ref()
        .and_then(|host| host.to_str().ok())
        .map(|host| format!(";host=\"{host}\""));
    append(
        headers,
        header::FORWARDED,
        &format!("for={node}{};proto=http", host.unwrap_or_default()),
    );
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// Whether a field says who the client is or what it asked for.
fn speaks_of_client(name: &HeaderName) -> bool {
    name.as_str().starts_with(X_FORWARDED) || [X_REAL_IP, header::FORWARDED].contains(name)
}

/// The request's id: the client's, if it has a fit one, or a new one of 32 hexadecimal digits.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_fit = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let made = || {
        HeaderValue::from_str(&format!("{:032x}", fastrand::u128(..)))
            .expect("hexadecimal digits are a valid value")
    };
    handshake::only(headers, X_REQUEST_ID)
        .filter(is_fit)
        .cloned()
        .unwrap_or_else(made)
}

/// An address of `X-Forwarded-For`: with or without port, IPv6 with or without brackets.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok();
    let ip = bare.or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(ip.to_canonical())
}

/// Adds an element to a list-valued field, all on one line.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let mut elements = handshake::list(headers, name.clone()).unwrap_or_default();
    elements.push(element.to_owned());
    if let Ok(value) = HeaderValue::from_str(&elements.join(", ")) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    value.parse().expect("a value"),
                )
            })
            .collect()
    }

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().expect("a network")]
    }

    #[test]
    fn what_concerns_one_connection_is_taken_off() {
        let mut fields = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("keep-alive", "5"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut fields);
        assert_eq!(fields, headers(&[("x-kept", "1")]));
    }

    #[test]
    fn a_426_keeps_its_upgrade_and_no_other_answer_does() {
        let answer = [
            ("connection", "close, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
        ];
        let version = [("sec-websocket-version", "13")];
        let kept = [
            &[("connection", "Upgrade"), ("upgrade", "websocket")][..],
            &version,
        ];
        for (status, expected) in [(426, &kept.concat()[..]), (200, &version), (101, &version)] {
            let mut fields = headers(&answer);
            strip_answer(StatusCode::from_u16(status).expect("a status"), &mut fields);
            assert_eq!(fields, headers(expected), "{status}");
        }
        let mut without = headers(&[("connection", "close")]);
        strip_answer(StatusCode::UPGRADE_REQUIRED, &mut without);
        assert_eq!(without, HeaderMap::new());
    }

    #[test]
    fn only_trusted_proxies_are_believed_about_the_client() {
        let check = |far_end: &str, chain: &str, client: &str| {
            let ip = client_ip(
                far_end.parse().expect("an address"),
                &headers(&[("x-forwarded-for", chain)]),
                &trusted(),
            );
            assert_eq!(ip.to_string(), client, "{far_end} says {chain}");
        };
        check("192.0.2.1", "203.0.113.9", "192.0.2.1");
        check("10.0.0.1", "203.0.113.9", "203.0.113.9");
        check(
            "10.0.0.1",
            "198.51.100.1, 203.0.113.9, 10.0.0.2",
            "203.0.113.9",
        );
        check("10.0.0.1", "203.0.113.9:4711", "203.0.113.9");
        check("10.0.0.1", "[2001:db8::1]", "2001:db8::1");
        check("10.0.0.1", "unknown", "10.0.0.1");
        check("10.0.0.1", "10.0.0.7", "10.0.0.7");
    }

    #[test]
    fn a_strangers_forwarding_fields_are_replaced_and_a_proxys_extended() {
        let id = HeaderValue::from_static("id");
        let claimed = [
            ("host", "example.org"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop"),
            ("forwarded", "for=203.0.113.9"),
        ];
        let written = |far_end: &str| {
            let mut fields = headers(&claimed);
            write_forwarded(
                &mut fields,
                far_end.parse().expect("an address"),
                &trusted(),
                &id,
            );
            [
                "x-forwarded-for",
                "x-forwarded-proto",
                "x-forwarded-host",
                "forwarded",
            ]
            .map(|name| fields[name].to_str().expect("text").to_owned())
        };
        assert_eq!(
            written("192.0.2.1:5"),
            [
                "192.0.2.1",
                "http",
                "example.org",
                "for=192.0.2.1;host=\"example.org\";proto=http"
            ]
        );
        assert_eq!(
            written("10.0.0.1:5"),
            [
                "203.0.113.9, 10.0.0.1",
                "https",
                "shop",
                "for=203.0.113.9, for=10.0.0.1;host=\"example.org\";proto=http"
            ]
        );
        assert_eq!(
            written("[2001:db8::1]:5")[3],
            "for=\"[2001:db8::1]\";host=\"example.org\";proto=http"
        );
    }

    #[test]
    fn no_stranger_speaks_of_the_client_in_other_fields_either() {
        let id = HeaderValue::from_static("id");
        let kept = |far_end: &str| {
            let mut fields = headers(&[
                ("x-real-ip", "203.0.113.9"),
                ("x-forwarded-port", "443"),
                ("x_forwarded_for", "203.0.113.9"),
                ("x_real_ip", "203.0.113.9"),
                ("x-forward", "1"),
            ]);
            strip_lookalikes(&mut fields);
            write_forwarded(
                &mut fields,
                far_end.parse().expect("an address"),
                &trusted(),
                &id,
            );
            [
                "x-real-ip",
                "x-forwarded-port",
                "x_forwarded_for",
                "x_real_ip",
                "x-forward",
            ]
            .map(|name| {
                let value = fields.get(name).map(|value| value.to_str().expect("text"));
                value.unwrap_or_default().to_owned()
            })
        };
        assert_eq!(kept("192.0.2.1:5"), ["192.0.2.1", "", "", "", "1"]);
        assert_eq!(kept("10.0.0.1:5"), ["203.0.113.9", "443", "", "", "1"]);
    }

    #[test]
    fn what_can_be_read_as_a_field_of_ours_or_as_another_is_taken_out() {
        let kept = |fields: &[(&'static str, &str)]| {
            let mut fields = headers(fields);
            strip_lookalikes(&mut fields);
            let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            names.join(" ")
        };
        for name in [
            "transfer_encoding",
            "content_length",
            "keep_alive",
            "proxy.connection",
            "sec_websocket-key",
            "x_forwarded_proto",
            "x-forwarded.port",
            "x!real*ip",
            "x_request-id",
        ] {
            assert_eq!(kept(&[(name, "1")]), "", "{name}");
        }
        let both = [("x-user", "ada"), ("x_user", "root"), ("x.user", "root")];
        assert_eq!(kept(&both), "x-user");
        assert_eq!(kept(&both[1..]), "x.user x_user");
        assert_eq!(
            kept(&[("my_field", "1"), ("x-users", "1"), ("x-user_", "1")]),
            "my_field x-user_ x-users"
        );
    }

    #[test]
    fn what_can_be_read_as_a_certain_field_is_taken_out() {
        let kept = |name: &str| {
            let mut fields = headers(&[
                ("x-user", "1"),
                ("x_user", "1"),
                ("x.user", "1"),
                ("xuser", "1"),
                ("x-user-id", "1"),
            ]);
            strip_lookalikes_of(&mut fields, name);
            let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            names.join(" ")
        };
        assert_eq!(kept("x-user"), "x-user x-user-id xuser");
        assert_eq!(kept("x_user"), "x-user-id x_user xuser");
        assert_eq!(kept("user"), "x-user x-user-id x.user x_user xuser");
    }

    #[test]
    fn what_a_request_cannot_be_without_stays_though_connection_names_it() {
        let mut fields = headers(&[
            ("connection", "host, Sec-WebSocket-Key, x-secret"),
            ("host", "a"),
            ("sec-websocket-key", "b"),
            ("x-secret", "c"),
        ]);
        strip_hop_by_hop(&mut fields);
        assert_eq!(
            fields,
            headers(&[("host", "a"), ("sec-websocket-key", "b")])
        );
    }

    #[test]
    fn a_length_beside_chunks_is_no_length() {
        let mut fields = headers(&[("transfer-encoding", "chunked"), ("content-length", "3")]);
        strip_hop_by_hop(&mut fields);
        assert!(fields.is_empty());
    }

    #[test]
    fn a_body_of_unknown_length_goes_in_chunks_whatever_the_method() {
        let mut fields = headers(&[("transfer-encoding", "chunked")]);
        strip_hop_by_hop(&mut fields);
        frame_body(&mut fields, None);
        assert_eq!(fields, headers(&[("transfer-encoding", "chunked")]));
        let mut fields = headers(&[("content-length", "3")]);
        frame_body(&mut fields, Some(3));
        assert_eq!(fields, headers(&[("content-length", "3")]));
    }

    #[test]
    fn a_fit_request_id_is_kept_and_another_made() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc-1")])), "abc-1");
        for unfit in ["", "a b", &"x".repeat(129)] {
            assert_eq!(request_id(&headers(&[("x-request-id", unfit)])).len(), 32);
        }
    }
}
