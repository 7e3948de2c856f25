//! Names of header fields that nobody but the host sets.

/// Fields that speak of one connection, or frame the body of one message (RFC 9110 section 7.6.1, RFC 9112
/// section 6). In lower case.
pub const OF_CONNECTION: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
