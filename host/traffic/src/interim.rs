//! Interim answers (1xx) on their way from a backend to a client (RFC 9110 section 15.2): in goes what a backend says
//! before its answer, out come bytes for the client's socket.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use http::header::{self, HeaderMap};
use http::{HeaderName, StatusCode};
use pointsman_protocol::forwarding;

/// How much of them waits for a client that does not read; what comes beyond that is dropped.
const MAX_WAITING_BYTES: usize = 64 * 1024;

/// The interim answers of one exchange that wait to be sent, in their order. One thread uses it.
#[derive(Debug, Default)]
pub struct InterimAnswers {
    is_waiting: AtomicBool,
    heads: Mutex<Vec<u8>>,
}

impl InterimAnswers {
    /// Adds one.
    pub(crate) fn push(&self, status: StatusCode, fields: &HeaderMap) {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let before = heads.len();
        write_head(&mut heads, status, fields);
        if heads.len() > MAX_WAITING_BYTES {
            heads.truncate(before);
            tracing::debug!(%status, "interim answer dropped: the client does not read");
        }
        self.is_waiting.store(!heads.is_empty(), Relaxed);
    }

    /// Whether there are any.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting.load(Relaxed)
    }

    /// Takes out all of them.
    pub fn take(&self) -> Vec<u8> {
        self.is_waiting.store(false, Relaxed);
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *heads)
    }
}

/// Writes one without the fields that are about the connection to the backend, or a body that there is not.
fn write_head(out: &mut Vec<u8>, status: StatusCode, fields: &HeaderMap) {
    let mut fields = fields.clone();
    forwarding::strip_hop_by_hop(&mut fields);
    fields.remove(header::CONTENT_LENGTH);
    let reason = status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    for (name, value) in &fields {
        write_name(out, name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Each word with a capital, as the HTTP library writes names: it does not say how they came.
fn write_name(out: &mut Vec<u8>, name: &HeaderName) {
    let mut before = b'-';
    for byte in name.as_str().bytes() {
        out.push(match before {
            b'-' => byte.to_ascii_uppercase(),
            _ => byte,
        });
        before = byte;
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn fields(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        };
        all.iter().map(field).collect()
    }

    #[test]
    fn they_are_written_in_order_without_what_is_about_the_connection() {
        let interim = InterimAnswers::default();
        assert!(!interim.is_waiting());
        interim.push(
            StatusCode::EARLY_HINTS,
            &fields(&[
                ("link", "</a.js>; rel=preload"),
                ("link", "</b.css>"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("content-length", "5"),
                ("transfer-encoding", "chunked"),
            ]),
        );
        interim.push(StatusCode::from_u16(199).unwrap(), &HeaderMap::new());
        assert!(interim.is_waiting());
        let expected = "HTTP/1.1 103 Early Hints\r\nLink: </a.js>; rel=preload\r\nLink: </b.css>\r\n\r\n\
                        HTTP/1.1 199 \r\n\r\n";
        assert_eq!(String::from_utf8(interim.take()).unwrap(), expected);
        assert!(!interim.is_waiting() && interim.take().is_empty());
    }

    #[test]
    fn what_waits_has_a_bound_and_is_whole_heads() {
        let interim = InterimAnswers::default();
        for _ in 0..100_000 {
            interim.push(StatusCode::PROCESSING, &HeaderMap::new());
        }
        let waiting = interim.take();
        assert!(waiting.len() <= MAX_WAITING_BYTES);
        assert!(waiting.ends_with(b"HTTP/1.1 102 Processing\r\n\r\n"));
    }
}
