//! A decent WebSocket client.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue, Response};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::wait::in_time;

/// The answer to an upgrade was not a 101.
#[derive(Debug)]
pub struct Refused {
    /// What it was.
    pub status: u16,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the upgrade was answered with {}", self.status)
    }
}

impl std::error::Error for Refused {}

/// One open WebSocket.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    answer: Response<Option<Vec<u8>>>,
}

impl Client {
    /// Opens `url`, which is of the form `ws://ADDRESS/PATH`.
    ///
    /// # Errors
    ///
    /// [`Refused`] if the answer is another than 101; the error's cause otherwise.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, &[]).await
    }

    /// Opens `url` with more headers.
    ///
    /// # Errors
    ///
    /// See [`Client::connect`].
    pub async fn connect_with(url: &str, headers: &[(&str, &str)]) -> Result<Self> {
        Self::open(None, url, headers).await
    }

    /// Opens `url` from an address of this machine.
    ///
    /// # Errors
    ///
    /// See [`Client::connect`]; or the address is none of ours.
    pub async fn connect_from(source: IpAddr, url: &str) -> Result<Self> {
        Self::open(Some(source), url, &[]).await
    }

    async fn open(source: Option<IpAddr>, url: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes())?;
            request
                .headers_mut()
                .append(name, HeaderValue::from_str(value)?);
        }
        let address: SocketAddr = request
            .uri()
            .authority()
            .context("no host")?
            .as_str()
            .parse()?;
        let config = WebSocketConfig::default().max_frame_size(None);
        let stream = match source {
            None => in_time("a connection", TcpStream::connect(address)).await?,
            Some(source) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(source, 0))?;
                in_time("a connection", socket.connect(address)).await?
            }
        };
        stream.set_nodelay(true)?;
        let handshake = async {
            match client_async_with_config(request, stream, Some(config)).await {
                Err(Error::Http(answer)) => Err(anyhow::Error::new(Refused {
                    status: answer.status().as_u16(),
                })),
                other => Ok(other?),
            }
        };
        let (socket, answer) = in_time(format!("the handshake with {url}"), handshake).await?;
        Ok(Self { socket, answer })
    }

    /// A header of the 101.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.answer.headers().get(name)?.to_str().ok()
    }

    /// Which backend this landed on, as it says itself.
    ///
    /// # Errors
    ///
    /// It says nothing.
    pub fn backend(&self) -> Result<SocketAddr> {
        let name = self.header("x-backend").context("no x-backend")?;
        name.parse().with_context(|| format!("x-backend: {name}"))
    }

    /// Sends one message.
    ///
    /// # Errors
    ///
    /// The session is over.
    pub async fn send(&mut self, message: Message) -> Result<()> {
        in_time("a send", self.socket.send(message)).await
    }

    /// The next text, binary or pong. Pings and Close frames are answered on the way.
    ///
    /// # Errors
    ///
    /// The session ended; a close code is named.
    pub async fn receive(&mut self) -> Result<Message> {
        loop {
            match in_time("a message", self.next()).await? {
                Some(Message::Ping(_)) => {}
                Some(Message::Close(frame)) => bail!("closed: {frame:?}"),
                Some(message) => return Ok(message),
                None => bail!("the connection ended"),
            }
        }
    }

    /// Sends `text`, and checks that the same comes back.
    ///
    /// # Errors
    ///
    /// Something else comes back, or nothing.
    pub async fn echo_text(&mut self, text: &str) -> Result<()> {
        self.echo(Message::text(text)).await
    }

    /// Sends `bytes`, and checks that the same come back.
    ///
    /// # Errors
    ///
    /// Something else comes back, or nothing.
    pub async fn echo_binary(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.echo(Message::Binary(bytes.into())).await
    }

    async fn echo(&mut self, sent: Message) -> Result<()> {
        self.send(sent.clone()).await?;
        let received = self.receive().await?;
        ensure!(
            received == sent,
            "the echo differs: sent {}, received {}",
            outline(&sent),
            outline(&received)
        );
        Ok(())
    }

    /// Reads until the session is over, whatever comes before. The code of the other side's Close
    /// frame; none if the connection ended without one, or the frame carried none.
    ///
    /// # Errors
    ///
    /// The session goes on.
    pub async fn close_code(&mut self) -> Result<Option<u16>> {
        let last = async {
            let mut code = None;
            // Read on after the Close frame: that is what sends our own, and ends the connection.
            while let Ok(Some(message)) = self.next().await {
                if let Message::Close(Some(frame)) = message {
                    code = Some(frame.code.into());
                }
            }
            Ok::<_, Error>(code)
        };
        in_time("a Close frame", last).await
    }

    /// Starts the closing handshake with `code`, and returns the code that comes back.
    ///
    /// # Errors
    ///
    /// The session is over already, or goes on.
    pub async fn close(mut self, code: u16) -> Result<Option<u16>> {
        let frame = CloseFrame {
            code: code.into(),
            reason: "done".into(),
        };
        self.send(Message::Close(Some(frame))).await?;
        self.close_code().await
    }

    async fn next(&mut self) -> Result<Option<Message>, Error> {
        self.socket.next().await.transpose()
    }
}

/// `len` bytes of ASCII that no other place of the message repeats in step, so that a lost or
/// doubled piece shows.
pub fn payload(len: usize) -> String {
    (0..len)
        .map(|i| char::from(b'a' + u8::try_from((i + i / 251) % 26).unwrap_or(0)))
        .collect()
}

fn outline(message: &Message) -> String {
    let kind = match message {
        Message::Text(_) => "text",
        Message::Binary(_) => "binary",
        _ => "control",
    };
    format!("{kind} of {} bytes", message.len())
}
