//! The clients of the demo: one that sees where it landed, and a crowd of them that talk without
//! pause and notice whatever is done to them. They know the balancer by its address only.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::backend::NAME_HEADER;
use super::{DemoError, in_time};

/// Between an echo and the next message of one socket: a hundred sockets make some thousands of
/// messages a second, which a small machine carries with ease.
pub(super) const PACE: Duration = Duration::from_millis(10);

/// A message that has not come back by then counts as lost.
const ECHO_DEADLINE: Duration = Duration::from_secs(5);

/// One open WebSocket.
pub(super) struct DemoClient {
    /// The backend that it landed on, as that says itself.
    pub(super) backend: char,
    socket: WebSocketStream<TcpStream>,
}

/// Clients that talk: each sends a numbered message, waits for its echo, and so on. Dropping it
/// cuts them off.
pub(super) struct Crowd {
    talks: Vec<Rc<Talk>>,
    stop: watch::Sender<bool>,
    talking: JoinSet<()>,
}

/// What a crowd has seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Sockets opened.
    pub sockets: usize,
    /// Of these, closed by anybody but their own client.
    pub closed: usize,
    /// Messages that did not come back, or not as they were sent.
    pub lost: u64,
    /// Messages that did.
    pub echoed: u64,
}

/// What one client of a crowd has seen.
#[derive(Default)]
struct Talk {
    sent: Cell<u64>,
    echoed: Cell<u64>,
    fault: Cell<Option<Fault>>,
}

/// What ended a talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The socket is closed.
    Closed,
    /// No echo in time, or not of what was sent.
    NoEcho,
}

impl DemoClient {
    pub(super) async fn open(balancer: SocketAddr) -> Result<Self, DemoError> {
        let opened = async {
            let stream = TcpStream::connect(balancer).await.map_err(WsError::Io)?;
            let _ = stream.set_nodelay(true);
            let url = format!("ws://{balancer}/");
            let config = Some(small_buffers());
            Ok(client_async_with_config(url, stream, config).await?)
        };
        let (socket, answer) = in_time("the handshake", opened).await?;
        let name = answer.headers().get(NAME_HEADER);
        let name = name.and_then(|name| name.to_str().ok()?.chars().next());
        let backend = name.ok_or(DemoError::NoName)?;
        Ok(Self { backend, socket })
    }

    /// Closes as RFC 6455 section 7 has it: our Close, theirs, the end of the connection.
    pub(super) async fn close(mut self) -> Result<(), DemoError> {
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let closed = async {
            self.socket.close(Some(frame)).await?;
            while let Some(message) = self.socket.next().await {
                message?;
            }
            Ok(())
        };
        in_time("the end of a connection", closed).await
    }

    async fn echo(&mut self, text: &str) -> Result<(), Fault> {
        let answered = async {
            let sent = self.socket.send(Message::text(text)).await;
            sent.map_err(|_| Fault::Closed)?;
            match self.socket.next().await {
                Some(Ok(Message::Text(echo))) if echo.as_str() == text => Ok(()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Fault::Closed),
                Some(Ok(_)) => Err(Fault::NoEcho),
            }
        };
        let in_time = timeout(ECHO_DEADLINE, answered).await;
        in_time.unwrap_or(Err(Fault::NoEcho))
    }
}

impl Crowd {
    pub(super) fn new() -> Self {
        Self {
            talks: Vec::new(),
            stop: watch::Sender::new(false),
            talking: JoinSet::new(),
        }
    }

    /// One more; it talks from now on. Runs on a `LocalSet`.
    pub(super) fn add(&mut self, client: DemoClient) {
        let talk = Rc::<Talk>::default();
        let number = self.talks.len() + 1;
        let task = Rc::clone(&talk).run(number, client, self.stop.subscribe());
        self.talking.spawn_local(task);
        self.talks.push(talk);
    }

    /// What it has seen so far. A message under way counts nowhere.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for talk in &self.talks {
            let fault = talk.fault.get();
            tally.sockets += 1;
            tally.closed += usize::from(fault == Some(Fault::Closed));
            tally.lost += fault.map_or(0, |_| talk.sent.get() - talk.echoed.get());
            tally.echoed += talk.echoed.get();
        }
        tally
    }

    /// Waits until each socket has had so many echoes more, or something is wrong with one.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn go_on(&self, n_echoes: u64) {
        let goals = self
            .talks
            .iter()
            .map(|talk| (talk, talk.echoed.get() + n_echoes));
        let goals: Vec<_> = goals.collect();
        let is_there = |(talk, goal): &(&Rc<Talk>, u64)| talk.echoed.get() >= *goal;
        while self.tally().is_undisturbed() && !goals.iter().all(is_there) {
            tokio::time::sleep(PACE).await;
        }
    }

    /// Lets each finish its message and close, and says what they have seen in all.
    pub(super) async fn end(mut self) -> Result<Tally, DemoError> {
        self.stop.send_replace(true);
        let ended = async {
            while self.talking.join_next().await.is_some() {}
            Ok(())
        };
        in_time("the end of the sockets", ended).await?;
        Ok(self.tally())
    }
}

impl Talk {
    async fn run(self: Rc<Self>, number: usize, client: DemoClient, stop: watch::Receiver<bool>) {
        let told = self.tell(number, client, stop).await;
        self.fault.set(told.err());
    }

    async fn tell(
        &self,
        number: usize,
        mut client: DemoClient,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Fault> {
        while !*stop.borrow() {
            self.sent.set(self.sent.get() + 1);
            let text = format!("socket {number}, message {}", self.sent.get());
            client.echo(&text).await?;
            self.echoed.set(self.echoed.get() + 1);
            // The pause, unless it is time to stop.
            let _ = timeout(PACE, stop.changed()).await;
        }
        client.close().await.map_err(|_| Fault::Closed)
    }
}

impl Tally {
    /// Nothing was closed, and nothing lost.
    pub fn is_undisturbed(&self) -> bool {
        self.closed == 0 && self.lost == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            closed,
            lost,
            echoed,
            ..
        } = self;
        write!(f, "{closed} closed, {lost} messages lost ({echoed} echoed)")
    }
}

/// The messages are short, and there are many sockets.
pub(super) fn small_buffers() -> WebSocketConfig {
    const BUFFER_BYTES: usize = 4 * 1024;
    const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}
