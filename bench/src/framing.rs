//! Bytes of frames (RFC 6455 section 5.2), for the load generator and the backend.
