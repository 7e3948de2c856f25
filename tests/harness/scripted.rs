//! A backend that says exactly what a test tells it to, byte for byte, and keeps what it was sent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::tasks::{Panics, Tasks};

/// A free port.
const ANY: &str = "127.0.0.1:0";

/// What to do when the head of a request is in.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Write this, and read on.
    Say(String),
    /// The same after a while: a backend that is slow.
    SayLate(Duration, String),
    /// Write this, and read on; for what is not text.
    SayBytes(Vec<u8>),
    /// Write these with so much time between, and read on.
    SayInPieces(Vec<String>, Duration),
    /// Read so many bytes, then write this, and read on.
    SayWhenRead(usize, String),
    /// Write `first`, read so many bytes, write `last`, and end the connection: in order, or by a reset.
    EndWhenRead {
        /// Written at once.
        first: String,
        /// How many bytes are read then.
        n: usize,
        /// Written before the end.
        last: Vec<u8>,
        /// Whether the end is a reset.
        by_reset: bool,
    },
    /// The same, read slowly.
    SayWhenReadSlowly {
        /// Bytes.
        n: usize,
        /// Bytes between two pauses.
        at_a_time: usize,
        /// How long each is.
        pause: Duration,
        /// Written at the end.
        then: String,
    },
    /// Write this, and close the connection.
    SayAndHangUp(String),
    /// Close the connection with nothing said.
    HangUp,
    /// Say nothing, and read on.
    Nothing,
}

/// Dropping it closes its listener and all its sockets, and fails the test if the script has panicked.
#[derive(Debug)]
pub struct ScriptedBackend {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    n_open: Arc<AtomicUsize>,
    _server: Tasks,
}

/// Which request of a backend this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nth {
    /// Of the backend's connections, from 0.
    pub connection: usize,
    /// Of the connection's requests, from 0.
    pub request: usize,
}

type Script = dyn Fn(&str, Nth) -> Reply + Send + Sync;

impl ScriptedBackend {
    /// Starts one on a free port. `script` gets the head of the first request of each connection,
    /// as it came.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start(script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Result<Self> {
        Self::start_with(
            TcpListener::bind(ANY).await?,
            move |head, _| script(head),
            false,
        )
    }

    /// The same, where little waits to be read.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start_narrow(
        script: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(64 * 1024)?;
        socket.bind(ANY.parse()?)?;
        Self::start_with(socket.listen(128)?, move |head, _| script(head), false)
    }

    /// The same, for all requests of each connection. They have no body, or one that is read.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start_keeping(
        script: impl Fn(&str, Nth) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start_with(TcpListener::bind(ANY).await?, script, true)
    }

    fn start_with(
        listener: TcpListener,
        script: impl Fn(&str, Nth) -> Reply + Send + Sync + 'static,
        keeps: bool,
    ) -> Result<Self> {
        let address = listener.local_addr()?;
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let n_open = Arc::<AtomicUsize>::default();
        let script: (Arc<Script>, bool) = (Arc::new(script), keeps);
        let (of_server, open) = (Arc::clone(&heads), Arc::clone(&n_open));
        let server = Tasks::start(|panics| serve(listener, script, of_server, open, panics));
        Ok(Self {
            address,
            heads,
            n_open,
            _server: server,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that the other side has not closed.
    pub fn n_open(&self) -> usize {
        self.n_open.load(Ordering::SeqCst)
    }

    /// The heads received so far, as they came.
    pub fn heads(&self) -> Vec<String> {
        self.heads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A correct 101 to the upgrade whose head is given, with more header lines.
pub fn accept_upgrade(head: &str, more: &[&str]) -> String {
    let key = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .map_or("", |(_, key)| key.trim());
    let accept = derive_accept_key(key.as_bytes());
    let mut answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n"
    );
    for line in more {
        answer.push_str(line);
        answer.push_str("\r\n");
    }
    answer + "\r\n"
}

async fn serve(
    listener: TcpListener,
    (script, keeps): (Arc<Script>, bool),
    heads: Arc<Mutex<Vec<String>>>,
    n_open: Arc<AtomicUsize>,
    panics: Panics,
) {
    let mut connections = JoinSet::new();
    let mut n_accepted = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let place = n_accepted;
                n_accepted += 1;
                n_open.fetch_add(1, Ordering::SeqCst);
                let (script, heads, n_open) = (Arc::clone(&script), Arc::clone(&heads), Arc::clone(&n_open));
                connections.spawn(panics.watch(async move {
                    connection(stream, place, (script, keeps), heads).await;
                    n_open.fetch_sub(1, Ordering::SeqCst);
                }));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(
    mut stream: TcpStream,
    connection: usize,
    (script, keeps): (Arc<Script>, bool),
    heads: Arc<Mutex<Vec<String>>>,
) {
    for request in 0.. {
        let Ok(head) = read_head(&mut stream).await else {
            return;
        };
        heads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(head.clone());
        let nth = Nth {
            connection,
            request,
        };
        if !reply(&mut stream, script(&head, nth)).await {
            return;
        }
        if !keeps {
            let mut room = [0; 4096];
            while stream.read(&mut room).await.is_ok_and(|n| n > 0) {}
            return;
        }
    }
}

/// Whether there may be another request.
async fn reply(stream: &mut TcpStream, reply: Reply) -> bool {
    if let Reply::SayLate(after, _) = &reply {
        sleep(*after).await;
    }
    if let Reply::SayInPieces(pieces, pause) = &reply {
        for piece in pieces {
            if stream.write_all(piece.as_bytes()).await.is_err() {
                return false;
            }
            sleep(*pause).await;
        }
    }
    if let Reply::SayWhenRead(n, _) = &reply {
        let mut room = vec![0; *n];
        if stream.read_exact(&mut room).await.is_err() {
            return false;
        }
    }
    if let Reply::SayWhenReadSlowly {
        n,
        at_a_time,
        pause,
        ..
    } = &reply
    {
        let mut room = vec![0; *at_a_time];
        for _ in 0..n / at_a_time {
            if stream.read_exact(&mut room).await.is_err() {
                return false;
            }
            sleep(*pause).await;
        }
    }
    if let Reply::EndWhenRead { first, n, .. } = &reply {
        let mut room = vec![0; *n];
        if stream.write_all(first.as_bytes()).await.is_err()
            || stream.read_exact(&mut room).await.is_err()
        {
            return false;
        }
    }
    if let Reply::EndWhenRead { by_reset: true, .. } = &reply {
        // What ends a connection then is a reset, as when a machine has gone or a process has left input unread.
        stream.set_zero_linger().expect("it is a socket");
    }
    let (bytes, reads_on) = match reply {
        Reply::SayWhenReadSlowly { then, .. } => (then.into_bytes(), true),
        Reply::Say(text) | Reply::SayLate(_, text) | Reply::SayWhenRead(_, text) => {
            (text.into_bytes(), true)
        }
        Reply::SayBytes(bytes) => (bytes, true),
        Reply::SayAndHangUp(text) => (text.into_bytes(), false),
        Reply::EndWhenRead { last, .. } => (last, false),
        Reply::HangUp => (Vec::new(), false),
        Reply::SayInPieces(..) | Reply::Nothing => (Vec::new(), true),
    };
    stream.write_all(&bytes).await.is_ok() && reads_on
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
