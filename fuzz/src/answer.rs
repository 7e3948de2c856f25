//! A backend's answer is believed only if it is the one answer to what was asked.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use pointsman_protocol::handshake::Upgrade;
use pointsman_traffic::upstream::dial;

/// Of RFC 6455 section 1.3.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub(crate) fn run(data: &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut fields);
    if !matches!(answer.parse(data), Ok(httparse::Status::Complete(_))) {
        return;
    }
    let mut headers = HeaderMap::new();
    for field in answer.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
            headers.append(name, value);
        }
    }
    if dial::check_answer(&asked(), &headers).is_ok() {
        check_accepted(answer.headers);
    }
}

/// What is asked for: enough for every part of an answer to have two.
pub(crate) fn asked() -> Upgrade {
    Upgrade {
        key: KEY.to_owned(),
        subprotocols: vec!["chat".to_owned(), "v2".to_owned()],
        extensions: vec!["permessage-deflate".to_owned()],
    }
}

/// What [`asked`] is answered with, if it is.
pub(crate) fn check_accepted(fields: &[httparse::Header<'_>]) {
    let values = |name: &str| -> Vec<String> {
        let fields = fields
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case(name));
        let text = |field: &httparse::Header<'_>| String::from_utf8_lossy(field.value).into_owned();
        fields.map(text).collect()
    };
    let elements = |name: &str| -> Vec<String> {
        let lines = values(name);
        let all = lines.iter().flat_map(|line| line.split(',')).map(str::trim);
        all.filter(|element| !element.is_empty())
            .map(str::to_ascii_lowercase)
            .collect()
    };
    let accepts = values("sec-websocket-accept");
    assert!(
        accepts.len() == 1 && accepts[0].as_bytes() == ACCEPT,
        "{accepts:?}"
    );
    assert!(elements("upgrade").iter().any(|token| token == "websocket"));
    assert!(
        elements("connection")
            .iter()
            .any(|token| token == "upgrade")
    );
    let chosen = elements("sec-websocket-protocol");
    assert!(chosen.len() <= 1, "{chosen:?}");
    assert!(
        chosen
            .iter()
            .all(|name| ["chat", "v2"].contains(&name.as_str())),
        "{chosen:?}"
    );
    for extension in elements("sec-websocket-extensions") {
        let name = extension.split(';').next().unwrap_or_default().trim();
        assert_eq!(name, "permessage-deflate");
    }
}
