//! The peers: how each is configured, started and ended.
