//! Where connections come in: binds, and accepts while there are descriptors to serve what is accepted.
//!
//! Every worker has a socket of its own on each address (`SO_REUSEPORT`), so the kernel spreads
//! connections without a lock of ours.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::Listener;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::context::WorkerContext;

/// Connections that the kernel keeps for us between two accepts; it caps this by `somaxconn`.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors: until some may be free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One socket per worker, all on one address.
///
/// # Errors
/// The address is taken, or not ours.
pub(crate) fn bind(address: SocketAddr, n_workers: usize) -> io::Result<Vec<StdListener>> {
    // With `SO_REUSEPORT` alone a second process would get half of the first one's connections
    // where its operator expects to hear that the address is taken.
    drop(StdListener::bind(address)?);
    let first = bind_one(address)?;
    let address = first.local_addr()?;
    let rest = (1..n_workers).map(|_| bind_one(address));
    std::iter::once(Ok(first)).chain(rest).collect()
}

/// One socket per worker, all of them the one that was handed over: its connections wait in one queue.
///
/// # Errors
/// There is no descriptor left, or it is no socket that can be listened on.
pub(crate) fn adopt(socket: StdListener, n_workers: usize) -> io::Result<Vec<StdListener>> {
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    let clones: io::Result<Vec<_>> = (1..n_workers).map(|_| socket.try_clone()).collect();
    let mut sockets = clones?;
    sockets.push(socket);
    Ok(sockets)
}

fn bind_one(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Small writes are sent at once; what is accepted inherits it.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until it is dropped, and has each connection admitted. `limits` may change meanwhile.
pub(crate) async fn accept(
    context: Rc<WorkerContext>,
    listener: TcpListener,
    limits: Rc<RefCell<Arc<Listener>>>,
    admit: impl Fn(TcpStream, SocketAddr, &Arc<Listener>) -> io::Result<()>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                wait_for_descriptors(&context, &stream).await;
                let limits = Arc::clone(&limits.borrow());
                if let Err(error) = admit(stream, client, &limits) {
                    tracing::debug!(%client, %error, "connection lost at once");
                }
            }
            // The client has gone again; the next one is waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept: pausing");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Goes on when connections to backends can be had for all that have been accepted. Meanwhile others
/// wait in the kernel, and what is open goes on.
async fn wait_for_descriptors(context: &WorkerContext, accepted: &TcpStream) {
    let needed = || context.handshakes.n_waiting() + 1;
    if !context.descriptors.is_scarce(accepted, needed()) {
        return;
    }
    tracing::warn!(
        limit = context.descriptors.limit(),
        "few descriptors are left: accepting pauses"
    );
    while context.descriptors.is_scarce_still(accepted, needed()) {
        sleep(ACCEPT_PAUSE).await;
    }
}
