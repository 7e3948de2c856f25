//! How HTTP/1.1 is spoken to clients, whatever serves their requests.

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use pointsman_config::Listener;

/// Most header fields of a request (RFC 6585 section 5 answers more with a 431).
const MAX_HEADERS: usize = 100;
/// How much of a body that the client does not read waits to be sent.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// The settings of one connection.
pub fn server(limits: &Listener) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake_timeout)
        .max_header_size(limits.max_request_header_bytes)
        .max_headers(MAX_HEADERS)
        .max_buf_size(limits.max_request_header_bytes.max(MAX_BUFFER_BYTES))
        // That a client has left is found elsewhere: it may have ended only its half (RFC 9112 section 9.6).
        .half_close(true)
        .preserve_header_case(true)
        .title_case_headers(true);
    builder
}
