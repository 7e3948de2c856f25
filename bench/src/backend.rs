//! What every relay in a comparison leads to: one thread of raw framing on epoll, far cheaper than
//! any relay.
//!
//! `/sink` acknowledges each message with a short one, `/source/BYTES` answers each message with one
//! of that size, every other path echoes.

use std::net::SocketAddr;

use anyhow::Result;

/// A running backend; dropping it ends it.
#[derive(Debug)]
pub struct Backend {
    addresses: Vec<SocketAddr>,
}

impl Backend {
    /// Listens on `n` free ports of loopback, all served by one thread, pinned to `cpu` if given.
    ///
    /// # Errors
    /// No address or no thread is free.
    pub fn start(n: usize, cpu: Option<usize>) -> Result<Self> {
        let _ = (n, cpu);
        anyhow::bail!("not written")
    }

    /// Where it listens, one address for each backend that a peer is to see.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}
