//! What every relay in a comparison leads to: one thread of raw framing on epoll, far cheaper than
//! any relay.
//!
//! `/sink` acknowledges each message with the first two bytes of it, `/source/BYTES` answers each
//! message with one of that size, every other path echoes.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pointsman_protocol::header::{Header, Opcode};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::framing::{self, LONGEST, Reader, payload, write_frame};
use crate::socket::{Poll, Received, Socket};

/// Bytes read at a time.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Longest request that is waited for.
const HEAD_BYTES: usize = 16 * 1024;
/// Header fields that a relay may send.
const FIELDS: usize = 64;
/// How often a backend without work looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for the thread to do what it is told.
const STALL: Duration = Duration::from_secs(10);
/// Bytes of an acknowledgement.
pub const ACKNOWLEDGEMENT: usize = 2;
/// Streams carry the payload of this connection, since a backend does not know which client it has.
pub const STREAM: usize = 0;

/// A running backend; dropping it ends it.
#[derive(Debug)]
pub struct Backend {
    addresses: Vec<SocketAddr>,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
#[derive(Debug, Default)]
pub struct Orders {
    is_over: AtomicBool,
    /// Close all connections, as a program does that dies; and when that was begun.
    must_cut: AtomicBool,
    cut_at: Mutex<Option<Instant>>,
    is_cut: Condvar,
}

impl Backend {
    /// Listens on `n` free ports of loopback, all served by one thread, pinned to `cpu` if given.
    ///
    /// # Errors
    /// No address or no thread is free.
    pub fn start(n: usize, cpu: Option<usize>) -> Result<Self> {
        let listeners: Vec<_> = (0..n)
            .map(|_| TcpListener::bind(("127.0.0.1", 0)))
            .collect::<Result<_, _>>()?;
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<_, _>>()?;
        let orders = Arc::<Orders>::default();
        let seen = Arc::clone(&orders);
        let serve = move || {
            let pinned = cpu.map_or(Ok(()), keep_to);
            if let Err(error) = pinned.and_then(|()| run(&listeners, &seen)) {
                eprintln!("the backend has ended: {error:#}");
            }
        };
        let thread = thread::Builder::new()
            .name("backend".to_owned())
            .spawn(serve)?;
        Ok(Self {
            addresses,
            orders,
            thread: Some(thread),
        })
    }

    /// Where it listens, one address for each backend that a peer is to see.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Closes all connections at once, as backends do that are restarted, and goes on listening. Returns when
    /// that was begun.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn cut(&self) -> Result<Instant> {
        let orders = &self.orders;
        let guard = orders.cut_at.lock().unwrap_or_else(PoisonError::into_inner);
        orders.must_cut.store(true, Ordering::Release);
        let waited = orders
            .is_cut
            .wait_timeout_while(guard, STALL, |at| at.is_none());
        let (mut at, _) = waited.unwrap_or_else(PoisonError::into_inner);
        at.take()
            .context("the backend does not close its connections")
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Relaxed: nothing else is handed over with the flag.
        self.orders.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Serves on all of `listeners` until it is told that it is over.
///
/// # Errors
/// No descriptor is free. What a client does wrong ends its connection only.
pub fn run(listeners: &[TcpListener], orders: &Orders) -> Result<()> {
    let poll = Poll::new()?;
    for (token, listener) in listeners.iter().enumerate() {
        listener.set_nonblocking(true)?;
        poll.add_listener(listener, token)?;
    }
    let mut server = Server {
        poll,
        listeners,
        connections: vec![],
        free: vec![],
        freed: vec![],
        scratch: vec![0; SCRATCH_BYTES],
        out: vec![],
    };
    let mut ready = vec![];
    // Relaxed: nothing else is handed over with the flag.
    while !orders.is_over.load(Ordering::Relaxed) {
        if orders.must_cut.swap(false, Ordering::Acquire) {
            let at = Instant::now();
            server.cut();
            *orders.cut_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
            orders.is_cut.notify_all();
        }
        server.poll.wait(&mut ready, LOOK)?;
        for &token in &ready {
            server.serve(token)?;
        }
        // Not before: what is reported for the old one must not meet a new one.
        server.free.append(&mut server.freed);
    }
    Ok(())
}

struct Server<'a> {
    poll: Poll,
    listeners: &'a [TcpListener],
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    freed: Vec<usize>,
    scratch: Vec<u8>,
    out: Vec<u8>,
}

struct Connection {
    socket: Socket,
    state: State,
}

enum State {
    /// The head of the request, as far as it has come.
    Asked(Vec<u8>),
    Open {
        task: Task,
        reader: Reader,
        messages: u64,
    },
}

/// What a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Echo,
    Sink,
    Source { bytes: usize },
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Stay,
    End,
}

impl Server<'_> {
    fn cut(&mut self) {
        for (index, connection) in self.connections.iter_mut().enumerate() {
            if connection.take().is_some() {
                self.freed.push(index);
            }
        }
    }

    fn serve(&mut self, token: usize) -> Result<()> {
        let Some(index) = token.checked_sub(self.listeners.len()) else {
            return self.accept(token);
        };
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let next = if connection.socket.is_behind() {
            connection.socket.flush(&self.poll).map(|()| Next::Stay)
        } else {
            connection.read(&self.poll, &mut self.scratch, &mut self.out)
        };
        // A broken connection is the load's to report, which sees it too.
        if !matches!(next, Ok(Next::Stay)) {
            self.connections[index] = None;
            self.freed.push(index);
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        loop {
            let index = self.free.pop().unwrap_or(self.connections.len());
            let token = self.listeners.len() + index;
            let Some(socket) = Socket::accept(&self.listeners[listener], &self.poll, token)? else {
                if index < self.connections.len() {
                    self.free.push(index);
                }
                return Ok(());
            };
            let connection = Some(Connection {
                socket,
                state: State::Asked(vec![]),
            });
            if index == self.connections.len() {
                self.connections.push(connection);
            } else {
                self.connections[index] = connection;
            }
        }
    }
}

impl Connection {
    fn read(&mut self, poll: &Poll, scratch: &mut [u8], out: &mut Vec<u8>) -> Result<Next> {
        let n = match self.socket.receive(scratch)? {
            Received::Bytes(n) => n,
            Received::Nothing => return Ok(Next::Stay),
            Received::End => return Ok(Next::End),
        };
        out.clear();
        let mut bytes = &mut scratch[..n];
        let mut head = vec![];
        if let State::Asked(asked) = &mut self.state {
            head.append(asked);
            head.extend_from_slice(bytes);
            let Some((task, head_bytes)) = upgrade(&head, out)? else {
                self.state = State::Asked(head);
                return Ok(Next::Stay);
            };
            bytes = &mut head[head_bytes..];
            self.state = State::Open {
                task,
                reader: Reader::default(),
                messages: 0,
            };
        }
        let next = match &mut self.state {
            State::Asked(_) => Next::Stay,
            State::Open {
                task,
                reader,
                messages,
            } => answer(*task, reader, messages, bytes, out)?,
        };
        self.socket.send(poll, out)?;
        Ok(next)
    }
}

/// What is asked for and the length of the head, once it is whole; `out` gets the 101.
fn upgrade(head: &[u8], out: &mut Vec<u8>) -> Result<Option<(Task, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(bytes) = request.parse(head)? else {
        if head.len() > HEAD_BYTES {
            bail!("a request of over {HEAD_BYTES} bytes");
        }
        return Ok(None);
    };
    let mut fields = request.headers.iter();
    let key = fields.find(|field| field.name.eq_ignore_ascii_case("sec-websocket-key"));
    let accept = derive_accept_key(key.context("a request without a key")?.value);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    out.extend_from_slice(head.as_bytes());
    Ok(Some((task(request.path.unwrap_or_default())?, bytes)))
}

fn task(path: &str) -> Result<Task> {
    if path == "/sink" {
        return Ok(Task::Sink);
    }
    let Some(bytes) = path.strip_prefix("/source/") else {
        return Ok(Task::Echo);
    };
    match bytes.parse() {
        Ok(bytes @ ..=LONGEST) => Ok(Task::Source { bytes }),
        _ => bail!("no source of {bytes} bytes"),
    }
}

fn answer(
    task: Task,
    reader: &mut Reader,
    messages: &mut u64,
    mut bytes: &mut [u8],
    out: &mut Vec<u8>,
) -> Result<Next> {
    while let Some(piece) = reader.next(&mut bytes)? {
        if task == Task::Echo || piece.opcode != Opcode::BINARY {
            if piece.is_first() {
                let header = Header {
                    is_final: piece.is_final,
                    ..Header::whole(framing::answer(piece.opcode), None, piece.frame_bytes)
                };
                header.write(out);
            }
            out.extend_from_slice(piece.payload);
            if piece.opcode == Opcode::CLOSE && piece.is_last() {
                return Ok(Next::End);
            }
            continue;
        }
        if task == Task::Sink {
            let sent = payload(STREAM, *messages, LONGEST);
            let offset = usize::try_from(piece.offset)?;
            if sent.get(offset..offset + piece.payload.len()) != Some(piece.payload) {
                bail!("the payload was changed");
            }
        }
        if piece.is_last() {
            let bytes = match task {
                Task::Source { bytes } => bytes,
                _ => ACKNOWLEDGEMENT,
            };
            write_frame(out, Opcode::BINARY, None, payload(STREAM, *messages, bytes));
            *messages += 1;
        }
    }
    Ok(Next::Stay)
}

fn keep_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).context("cannot choose a processor")
}
