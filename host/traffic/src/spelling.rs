//! How the field names of our own heads are spelled. The HTTP library writes a name as its sender did, or else each
//! word with a capital; the RFCs spell some otherwise, and there are peers that compare by case, against HTTP's rules.

use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::sync::{LazyLock, OnceLock};
use std::task::{Context, Waker};

use http::{Extensions, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::body;

/// A request with each of the names.
const SPELLED: &[u8] = b"GET / HTTP/1.1\r\n\
    ETag:\r\n\
    Sec-WebSocket-Accept:\r\n\
    Sec-WebSocket-Extensions:\r\n\
    Sec-WebSocket-Key:\r\n\
    Sec-WebSocket-Protocol:\r\n\
    Sec-WebSocket-Version:\r\n\
    WWW-Authenticate:\r\n\r\n";

static SPELLING: LazyLock<Extensions> = LazyLock::new(parse);

/// For a head that nobody else has spelled: RFC 6455 section 11.3 and RFC 9110 section 18.4.
pub fn of_the_rfcs() -> Extensions {
    SPELLING.clone()
}

/// The library hands out spellings only of what it has read.
fn parse() -> Extensions {
    let found = OnceLock::new();
    let service = service_fn(|request: Request<Incoming>| {
        found.get_or_init(|| request.extensions().clone());
        ready(Ok::<_, Infallible>(Response::new(body::empty())))
    });
    let io = TokioIo::new(tokio::io::join(SPELLED, tokio::io::sink()));
    let mut builder = http1::Builder::new();
    builder.preserve_header_case(true).header_read_timeout(None);
    let connection = pin!(builder.serve_connection(io, service));
    // All there is to read is there, so that one poll is enough.
    let _ = connection.poll(&mut Context::from_waker(Waker::noop()));
    found.get().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_has_read_them() {
        assert!(!of_the_rfcs().is_empty());
    }
}
