//! A backend of the demo: a WebSocket echo on a port of this machine, which names itself in the
//! header `X-Backend` of its 101. It knows nothing of the balancer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::client::small_buffers;

/// The header that names the backend.
pub(super) const NAME_HEADER: &str = "x-backend";

/// Ten times what the demo opens: others on this machine may try it too.
const MAX_CONNECTIONS: usize = 1000;

/// From the accepted connection to the 101.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// After a failed accept, which means that descriptors are short: until some may be free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running backend. Dropping it closes its port and all its connections.
pub(super) struct DemoBackend {
    /// What it calls itself.
    pub(super) name: char,
    /// Where it listens; the system picks the port.
    pub(super) address: SocketAddr,
    _serving: JoinSet<()>,
}

impl DemoBackend {
    /// Listens from now on. Runs on a `LocalSet`.
    pub(super) async fn start(name: char) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn_local(serve(listener, name));
        Ok(Self {
            name,
            address,
            _serving: serving,
        })
    }
}

async fn serve(listener: TcpListener, name: char) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => { connections.spawn_local(echo(stream, name)); }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            // How one ended shows at its client.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection: text and binary go back, and the library answers pings and Close frames.
async fn echo(stream: TcpStream, name: char) -> Result<(), WsError> {
    // Nagle's algorithm would hold small echoes back (RFC 896).
    let _ = stream.set_nodelay(true);
    #[expect(clippy::result_large_err, reason = "the library asks for this type")]
    let naming = |_: &Request, answer: Response| Ok(named(answer, name));
    let accepted = accept_hdr_async_with_config(stream, naming, Some(small_buffers()));
    let Ok(accepted) = timeout(HANDSHAKE_DEADLINE, accepted).await else {
        return Ok(());
    };
    let mut socket = accepted?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if matches!(message, Message::Text(_) | Message::Binary(_)) {
            socket.send(message).await?;
        }
    }
    Ok(())
}

fn named(mut answer: Response, name: char) -> Response {
    if let Ok(name) = HeaderValue::try_from(name.to_string()) {
        answer.headers_mut().insert(NAME_HEADER, name);
    }
    answer
}
