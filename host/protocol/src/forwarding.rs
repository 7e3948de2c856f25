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
/// How long a connection is kept (RFC 2068 section 19.7.1.1).
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
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
/// 7.6.1: it is intended for all recipients), or because it is ours to say.
fn is_for_all(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == X_REQUEST_ID
        || name.as_str().starts_with(SEC_WEBSOCKET)
        || speaks_of_client(&name)
}

/// Who the client is: the peer, or, as long as that is a trusted proxy, whom it names last: in
/// `X-Forwarded-For`, else in `Forwarded`, else in `X-Real-IP`.
pub fn client_ip(far_end: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let far_end = far_end.to_canonical();
    match is_in(trusted, far_end) {
        true => ProxyChain::read(headers).client(far_end, trusted).0,
        false => far_end,
    }
}

/// Writes `X-Forwarded-For/-Proto/-Host`, `Forwarded`, `X-Real-IP` and `X-Request-Id`. What a stranger has
/// written is replaced, by nothing in the case of other fields of the family. Of a trusted peer there is one
/// chain (see [`client_ip`]): the family that it has written is extended, and the other is written so that it says
/// the same.
pub fn write_forwarded(
    headers: &mut HeaderMap,
    far_end: SocketAddr,
    trusted: &[IpNet],
    request_id: &HeaderValue,
) {
    let far_end = far_end.ip().to_canonical();
    let chain = match is_in(trusted, far_end) {
        true => ProxyChain::read(headers),
        false => {
            let spoken: Vec<_> = headers.keys().filter(speaks_of_client).cloned().collect();
            for name in spoken {
                headers.remove(name);
            }
            ProxyChain::default()
        }
    };
    let (client, believed) = chain.client(far_end, trusted);
    set(headers, X_REAL_IP, &client.to_string());
    if !chain.is_x_forwarded {
        let hops = chain.hops.iter().skip(believed);
        let hops: Vec<_> = hops.map(|hop| hop.node.as_str()).collect();
        set(headers, X_FORWARDED_FOR, &hops.join(", "));
    }
    append(headers, X_FORWARDED_FOR, &far_end.to_string());
    // What the proxies have not said of the client's request is that of the request to us.
    let asked = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let told = (chain.host(believed), chain.proto(believed));
    let host = told.0.or(asked).map(str::to_owned);
    let proto = told.1.unwrap_or("http").to_owned();
    let forwarded = match chain.is_forwarded {
        true => {
            let untold = (
                host.as_deref().filter(|_| told.0.is_none()),
                Some(proto.as_str()).filter(|_| told.1.is_none()),
            );
            let ours = element(Some(far_end), untold);
            chain.as_forwarded(believed).chain([ours]).collect()
        }
        false => {
            let hops = chain.hops.iter().skip(believed).map(|hop| hop.ip);
            let hops = hops.chain([Some(far_end)]).enumerate();
            let first = (host.as_deref(), Some(proto.as_str()));
            let said = |i| if i == 0 { first } else { (None, None) };
            hops.map(|(i, ip)| element(ip, said(i))).collect::<Vec<_>>()
        }
    };
    if !headers.contains_key(X_FORWARDED_PROTO) {
        set(headers, X_FORWARDED_PROTO, &proto);
    }
    if let Some(host) = &host
        && !headers.contains_key(X_FORWARDED_HOST)
    {
        set(headers, X_FORWARDED_HOST, host);
    }
    set(headers, header::FORWARDED, &forwarded.join(", "));
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// What the proxies before us say of a request: the client first.
#[derive(Debug, Default)]
struct ProxyChain {
    hops: Vec<ProxyHop>,
    /// As `X-Forwarded-Proto` and `-Host` say.
    proto: Option<String>,
    host: Option<String>,
    /// Whether `X-Forwarded-For` says it, so that it is to be extended.
    is_x_forwarded: bool,
    /// Whether `Forwarded` says it.
    is_forwarded: bool,
}

/// One of them, as whoever it has connected to describes it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct ProxyHop {
    /// None: it is not told.
    ip: Option<IpAddr>,
    /// As it is written in `X-Forwarded-For`.
    node: String,
    /// As it is written in `Forwarded`, if it is from there.
    element: String,
    proto: Option<String>,
    host: Option<String>,
}

impl ProxyChain {
    /// What a trusted peer has written. Where the two families differ, `X-Forwarded-*` is believed: a
    /// proxy that writes only these passes on what its client says in `Forwarded`, and few write only that.
    fn read(headers: &HeaderMap) -> Self {
        let first = |name| {
            let told = handshake::list(headers, name)?.into_iter().next()?;
            Some(told).filter(|told| is_quotable(told))
        };
        let mut chain = Self {
            proto: first(X_FORWARDED_PROTO),
            host: first(X_FORWARDED_HOST),
            ..Self::default()
        };
        let x_forwarded = handshake::list(headers, X_FORWARDED_FOR).unwrap_or_default();
        let x_forwarded: Vec<_> = x_forwarded.into_iter().map(ProxyHop::named).collect();
        let forwarded = forwarded(headers).unwrap_or_default();
        if !x_forwarded.is_empty() {
            chain.is_x_forwarded = true;
            chain.is_forwarded = chain.agrees_with(&x_forwarded, &forwarded);
            chain.hops = match chain.is_forwarded {
                true => forwarded,
                false => x_forwarded,
            };
        } else if !forwarded.is_empty() {
            chain.is_forwarded = chain.agrees_with(&forwarded, &forwarded);
            chain.hops = forwarded;
        } else if let Some(real) = handshake::only(headers, X_REAL_IP)
            && let Ok(real) = real.to_str()
        {
            chain.hops.push(ProxyHop::named(real.trim().to_owned()));
        }
        chain
    }

    /// Whether `Forwarded` says nothing else than the other fields do.
    fn agrees_with(&self, hops: &[ProxyHop], forwarded: &[ProxyHop]) -> bool {
        let ips = |hops: &[ProxyHop]| hops.iter().map(|hop| hop.ip).collect::<Vec<_>>();
        let agrees = |told: &Option<String>, by: fn(&ProxyHop) -> Option<&String>| {
            let said = forwarded.iter().find_map(by);
            said.is_none() || told.is_none() || said == told.as_ref()
        };
        ips(hops) == ips(forwarded)
            && agrees(&self.proto, |hop| hop.proto.as_ref())
            && agrees(&self.host, |hop| hop.host.as_ref())
    }

    /// The elements of `Forwarded` as they came. The client's has what only the other fields say.
    fn as_forwarded(&self, believed: usize) -> impl Iterator<Item = String> {
        let says = |by: fn(&ProxyHop) -> bool| self.hops.iter().any(by);
        let host = (self.host.as_deref()).filter(|_| !says(|hop| hop.host.is_some()));
        let proto = (self.proto.as_deref()).filter(|_| !says(|hop| hop.proto.is_some()));
        let hops = self.hops.iter().enumerate();
        hops.map(move |(i, hop)| match i == believed {
            true => format!("{}{}", hop.element, parameters(host, proto)),
            false => hop.element.clone(),
        })
    }

    /// Who the client is, as far as it is named, and where what is believed begins: what is before, strangers
    /// have said.
    fn client(&self, far_end: IpAddr, trusted: &[IpNet]) -> (IpAddr, usize) {
        let (mut client, mut believed) = (far_end, self.hops.len());
        for (i, hop) in self.hops.iter().enumerate().rev() {
            if !is_in(trusted, client) {
                break;
            }
            believed = i;
            let Some(ip) = hop.ip else { break };
            client = ip;
        }
        (client, believed)
    }

    fn proto(&self, believed: usize) -> Option<&str> {
        let told = self
            .hops
            .iter()
            .skip(believed)
            .find_map(|hop| hop.proto.as_deref());
        self.proto.as_deref().or(told)
    }

    fn host(&self, believed: usize) -> Option<&str> {
        let told = self
            .hops
            .iter()
            .skip(believed)
            .find_map(|hop| hop.host.as_deref());
        self.host.as_deref().or(told)
    }
}

impl ProxyHop {
    /// As an element of `X-Forwarded-For` says.
    fn named(node: String) -> Self {
        Self {
            ip: parse_hop(&node),
            node,
            ..Self::default()
        }
    }
}

/// The elements of `Forwarded` (RFC 7239 section 4); none where it cannot be read.
fn forwarded(headers: &HeaderMap) -> Option<Vec<ProxyHop>> {
    let mut hops = Vec::new();
    for line in headers.get_all(header::FORWARDED) {
        for element in split_unquoted(line.to_str().ok()?, ',') {
            if element.is_empty() {
                continue;
            }
            let mut hop = ProxyHop {
                node: "unknown".to_owned(),
                element: element.to_owned(),
                ..ProxyHop::default()
            };
            for pair in split_unquoted(element, ';') {
                let Some((name, value)) = pair.split_once('=') else {
                    match pair.is_empty() {
                        true => continue,
                        false => return None,
                    }
                };
                let bare = value
                    .strip_prefix('"')
                    .and_then(|value| value.strip_suffix('"'));
                let value = bare.unwrap_or(value);
                if !is_quotable(value) {
                    return None;
                }
                match name.trim().to_ascii_lowercase().as_str() {
                    "for" => {
                        hop.ip = parse_hop(value);
                        hop.node = match hop.ip {
                            Some(ip) => ip.to_string(),
                            None => "unknown".to_owned(),
                        };
                    }
                    "proto" => hop.proto = Some(value.to_ascii_lowercase()),
                    "host" => hop.host = Some(value.to_owned()),
                    _ => {}
                }
            }
            hops.push(hop);
        }
    }
    Some(hops)
}

/// The parts of `text` between separators that are within no quotes, without the space around them.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let parts = text.split(move |c| {
        is_quoted ^= c == '"';
        c == separator && !is_quoted
    });
    parts.map(str::trim)
}

/// One element of `Forwarded`, with what was asked for there: host and scheme.
fn element(ip: Option<IpAddr>, (host, proto): (Option<&str>, Option<&str>)) -> String {
    let parameters = parameters(host, proto);
    match ip {
        Some(IpAddr::V4(ip)) => format!("for={ip}{parameters}"),
        Some(IpAddr::V6(ip)) => format!("for=\"[{ip}]\"{parameters}"),
        None => format!("for=unknown{parameters}"),
    }
}

fn parameters(host: Option<&str>, proto: Option<&str>) -> String {
    let is_token = |c: u8| c.is_ascii_alphanumeric() || b"+-.".contains(&c);
    let host = host.map(|host| format!(";host=\"{host}\""));
    let proto = proto.map(|proto| match proto.bytes().all(is_token) {
        true => format!(";proto={proto}"),
        false => format!(";proto=\"{proto}\""),
    });
    host.unwrap_or_default() + &proto.unwrap_or_default()
}

/// Whether it can be within quotes as it is.
fn is_quotable(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|c| c.is_ascii_graphic() && !b"\"\\".contains(&c))
}

fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}

/// Whether a field says who the client is or what it asked for.
fn speaks_of_client(name: &&HeaderName) -> bool {
    name.as_str().starts_with(X_FORWARDED) || [&X_REAL_IP, &header::FORWARDED].contains(name)
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
    set(headers, name, &elements.join(", "));
}

/// Puts a field in the place of those of its name; an empty one is none.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    headers.remove(&name);
    if let Some(value) = HeaderValue::from_str(value)
        .ok()
        .filter(|_| !value.is_empty())
    {
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

    /// What a backend is told: X-Forwarded-For, -Proto and -Host, Forwarded and X-Real-IP.
    fn written(far_end: &str, claimed: &[(&'static str, &str)]) -> [String; 5] {
        let id = HeaderValue::from_static("id");
        let mut fields = headers(&[&[("host", "example.org")], claimed].concat());
        let far_end: SocketAddr = far_end.parse().expect("an address");
        let client = client_ip(far_end.ip(), &fields, &trusted());
        write_forwarded(&mut fields, far_end, &trusted(), &id);
        assert_eq!(fields[X_REAL_IP], client.to_string(), "{claimed:?}");
        [
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "forwarded",
            "x-real-ip",
        ]
        .map(|name| fields[name].to_str().expect("text").to_owned())
    }

    #[test]
    fn a_strangers_forwarding_fields_are_replaced() {
        let claimed = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop"),
            ("forwarded", "for=203.0.113.9;proto=https"),
            ("x-real-ip", "203.0.113.9"),
        ];
        for claimed in [&claimed[..], &[]] {
            assert_eq!(
                written("192.0.2.1:5", claimed),
                [
                    "192.0.2.1",
                    "http",
                    "example.org",
                    "for=192.0.2.1;host=\"example.org\";proto=http",
                    "192.0.2.1",
                ]
            );
        }
        assert_eq!(
            written("[2001:db8::1]:5", &claimed)[3],
            "for=\"[2001:db8::1]\";host=\"example.org\";proto=http"
        );
    }

    #[test]
    fn both_families_say_what_the_one_says_that_a_proxy_has_written() {
        let proxy = "10.0.0.1:5";
        // A terminator that knows only the one, or only the other.
        let x_forwarded = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop"),
        ];
        let all = [
            "203.0.113.9, 10.0.0.1",
            "https",
            "shop",
            "for=203.0.113.9;host=\"shop\";proto=https, for=10.0.0.1",
            "203.0.113.9",
        ];
        assert_eq!(written(proxy, &x_forwarded), all);
        let one = [("forwarded", "for=203.0.113.9;host=\"shop\";proto=https")];
        assert_eq!(written(proxy, &one), all);
        // Both, and they agree: what it has written stays as it is.
        let by = "for=203.0.113.9;proto=https;by=_a;host=shop";
        let both = [&x_forwarded[..], &[("forwarded", by)]].concat();
        assert_eq!(written(proxy, &both)[3], format!("{by}, for=10.0.0.1"));
        // What only one of them says, the other is told.
        let less = [&x_forwarded[..], &[("forwarded", "for=203.0.113.9")]].concat();
        assert_eq!(written(proxy, &less), all);
        let less = [
            &x_forwarded[..],
            &[("forwarded", "for=203.0.113.9;proto=https")],
        ]
        .concat();
        assert_eq!(
            written(proxy, &less)[3],
            "for=203.0.113.9;proto=https;host=\"shop\", for=10.0.0.1"
        );
        // A proxy passes on what its client says in the field that it does not know.
        for lie in [
            "for=198.51.100.1;proto=https;host=shop",
            "for=203.0.113.9;proto=http;host=shop",
            "for=203.0.113.9;proto=https;host=bank",
            "for=\"203.0.113.9",
            "nonsense",
        ] {
            let lies = [
                &x_forwarded[..],
                &[("forwarded", lie), ("x-real-ip", "1.1.1.1")],
            ];
            assert_eq!(written(proxy, &lies.concat()), all, "{lie}");
        }
    }

    #[test]
    fn what_a_proxy_does_not_say_is_said_of_the_request_to_us() {
        let proxy = "10.0.0.1:5";
        let usual = "for=203.0.113.9;host=\"example.org\";proto=http, for=10.0.0.1";
        for claimed in [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-real-ip", "203.0.113.9"),
        ] {
            assert_eq!(
                written(proxy, &[claimed]),
                [
                    "203.0.113.9, 10.0.0.1",
                    "http",
                    "example.org",
                    usual,
                    "203.0.113.9"
                ]
            );
        }
        assert_eq!(
            written(proxy, &[("forwarded", "for=\"[2001:db8::1]:4711\"")]),
            [
                "2001:db8::1, 10.0.0.1",
                "http",
                "example.org",
                "for=\"[2001:db8::1]:4711\", for=10.0.0.1;host=\"example.org\";proto=http",
                "2001:db8::1"
            ]
        );
        assert_eq!(
            written(proxy, &[("x-forwarded-proto", "wss")])[3],
            "for=10.0.0.1;host=\"example.org\";proto=wss"
        );
        assert_eq!(
            written(proxy, &[]),
            [
                "10.0.0.1",
                "http",
                "example.org",
                "for=10.0.0.1;host=\"example.org\";proto=http",
                "10.0.0.1"
            ]
        );
        // Whom it does not name, it does not name.
        assert_eq!(
            written(proxy, &[("forwarded", "for=_hidden;proto=https")]),
            [
                "unknown, 10.0.0.1",
                "https",
                "example.org",
                "for=_hidden;proto=https, for=10.0.0.1;host=\"example.org\"",
                "10.0.0.1"
            ]
        );
    }

    #[test]
    fn what_strangers_have_put_before_the_client_is_not_taken_over() {
        let proxy = "10.0.0.1:5";
        let chain =
            "for=198.51.100.1;proto=https;host=bank, for=203.0.113.9;proto=http, for=10.0.0.2";
        let [x_forwarded_for, proto, host, _, real] = written(proxy, &[("forwarded", chain)]);
        assert_eq!(x_forwarded_for, "203.0.113.9, 10.0.0.2, 10.0.0.1");
        assert_eq!(
            (&*proto, &*host, &*real),
            ("http", "example.org", "203.0.113.9")
        );
        let chain = "198.51.100.1, 203.0.113.9, 10.0.0.2";
        let [x_forwarded_for, _, _, forwarded, real] = written(
            proxy,
            &[("x-forwarded-for", chain), ("x-forwarded-proto", "https")],
        );
        assert_eq!(x_forwarded_for, format!("{chain}, 10.0.0.1"));
        assert_eq!(
            forwarded,
            "for=203.0.113.9;host=\"example.org\";proto=https, for=10.0.0.2, for=10.0.0.1"
        );
        assert_eq!(real, "203.0.113.9");
    }

    #[test]
    fn nobody_takes_out_what_is_said_of_the_client() {
        let mut fields = headers(&[
            (
                "connection",
                "x-forwarded-for, forwarded, x-real-ip, x-request-id",
            ),
            ("x-forwarded-for", "1"),
            ("forwarded", "2"),
            ("x-real-ip", "3"),
            ("x-request-id", "4"),
        ]);
        strip_hop_by_hop(&mut fields);
        assert_eq!(fields.len(), 4);
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
