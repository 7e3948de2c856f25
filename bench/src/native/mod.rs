//! Echo servers without a proxy or a plugin, to compare handlers with. Each is a process of its own:
//! this program, started again.

use std::net::SocketAddr;

use anyhow::Result;

/// Which library echoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// tokio-tungstenite on a current-thread runtime.
    TokioTungstenite,
    /// fastwebsockets on a current-thread runtime.
    Fastwebsockets,
    /// Raw framing on epoll, as [`crate::backend`].
    Epoll,
}

/// Echoes on `listen` until the process is ended.
///
/// # Errors
/// The address is taken.
pub fn serve(library: Library, listen: SocketAddr) -> Result<()> {
    let _ = (library, listen);
    anyhow::bail!("not written")
}
