//! One raw TCP connection to the balancer, for what no decent client would send and for what a
//! client library would hide: HTTP/1.1 answers (RFC 9112) and WebSocket frames (RFC 6455) as bytes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::wait::in_time;

/// The most headers that an answer in a test has.
const MAX_HEADERS: usize = 512;

/// An HTTP answer; without its body where only the head was read.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names as received, in order.
    pub headers: Vec<(String, String)>,
    /// The body, without chunk framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Which backend gave it, as that says itself.
    ///
    /// # Errors
    ///
    /// It says nothing.
    pub fn backend(&self) -> Result<SocketAddr> {
        let name = self.header("x-backend").context("no x-backend")?;
        name.parse().with_context(|| format!("x-backend: {name}"))
    }

    /// The body, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A WebSocket frame as received.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV1 to RSV3 and the opcode.
    pub first_byte: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a Close frame; none if this is none, or carries none.
    pub fn close_code(&self) -> Option<u16> {
        match self.payload.get(..2) {
            Some(code) if self.first_byte == 0x88 => {
                Some(u16::from_be_bytes([*code.first()?, *code.last()?]))
            }
            _ => None,
        }
    }
}

/// A connection, and what was received on it and not yet looked at.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = in_time("a connection", TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            unread: Vec::new(),
        })
    }

    /// Connects from an address of this machine.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or the address is none of ours.
    pub async fn connect_from(source: IpAddr, address: SocketAddr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let stream = in_time("a connection", socket.connect(address)).await?;
        Ok(Self {
            stream,
            unread: Vec::new(),
        })
    }

    /// Where it comes from, as the other side sees it.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Sends `bytes` as they are.
    ///
    /// # Errors
    ///
    /// The connection is gone, or takes nothing.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        in_time("a send", self.stream.write_all(bytes.as_ref())).await
    }

    /// Ends this side's half of the connection; the other goes on.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub async fn end_half(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Ends the connection with a reset.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn reset(self) -> Result<()> {
        Ok(self.stream.set_zero_linger()?)
    }

    /// The next answer with its body.
    ///
    /// # Errors
    ///
    /// What comes is no HTTP answer, or not a whole one.
    pub async fn answer(&mut self) -> Result<Answer> {
        let mut answer = self.head().await?;
        let is_bodiless = matches!(answer.status, 100..=199 | 204 | 304);
        if is_bodiless {
            return Ok(answer);
        }
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().context("content-length")?;
            answer.body = self.take(length).await?;
        } else if answer.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk().await? {
                answer.body.extend(chunk);
            }
        } else {
            answer.body = self.rest().await?;
        }
        Ok(answer)
    }

    /// The head of the next answer: all there is after HEAD, and after a 101.
    ///
    /// # Errors
    ///
    /// What comes is no HTTP answer.
    pub async fn head(&mut self) -> Result<Answer> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut parsed = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(length) = parsed.parse(&self.unread)? {
                let answer = Answer {
                    status: parsed.code.context("a whole head has a status")?,
                    headers: parsed
                        .headers
                        .iter()
                        .map(|h| {
                            let value = String::from_utf8_lossy(h.value).into_owned();
                            (h.name.to_owned(), value)
                        })
                        .collect(),
                    body: Vec::new(),
                };
                self.unread.drain(..length);
                return Ok(answer);
            }
            ensure!(
                self.fill("an answer").await?,
                "the connection ended in place of an answer, after {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
    }

    /// The next chunk of a chunked body; none after the last.
    ///
    /// # Errors
    ///
    /// What comes is no chunk.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let length = loop {
            if let Some(end) = self.unread.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).collect();
                let line = String::from_utf8(line)?;
                break usize::from_str_radix(line.trim_end(), 16)
                    .with_context(|| format!("chunk size {line:?}"))?;
            }
            ensure!(self.fill("a chunk").await?, "the body ended too early");
        };
        let mut chunk = self.take(length + 2).await?;
        ensure!(chunk.ends_with(b"\r\n"), "a chunk without its line end");
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }

    /// The next frame, which a server must not mask (RFC 6455 section 5.1).
    ///
    /// # Errors
    ///
    /// The connection ends first, or the frame is masked.
    pub async fn frame(&mut self) -> Result<Frame> {
        let head = self.take(2).await?;
        let [first_byte, second] = head[..] else {
            bail!("two bytes were taken");
        };
        ensure!(second & 0x80 == 0, "a masked frame from a server");
        let length = match second {
            126 => usize::from(u16::from_be_bytes(
                self.take(2).await?.as_slice().try_into()?,
            )),
            127 => usize::try_from(u64::from_be_bytes(
                self.take(8).await?.as_slice().try_into()?,
            ))?,
            length => usize::from(length),
        };
        Ok(Frame {
            first_byte,
            payload: self.take(length).await?,
        })
    }

    /// Waits for the other side to end the connection, and returns what it sent before.
    ///
    /// # Errors
    ///
    /// It does not in time. A reset counts as an end.
    pub async fn rest(&mut self) -> Result<Vec<u8>> {
        while self.fill("the end of the connection").await? {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// Waits for the other side to end the connection, and says whether it did so by a reset: what came
    /// before cannot be taken for whole then.
    ///
    /// # Errors
    ///
    /// It does not in time.
    pub async fn is_reset(&mut self) -> Result<bool> {
        let mut room = [0; 16 * 1024];
        loop {
            let read = async {
                match self.stream.read(&mut room).await {
                    Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
                    other => other.map(Some),
                }
            };
            match in_time("the end of the connection", read).await? {
                None => return Ok(true),
                Some(0) => return Ok(false),
                Some(_) => {}
            }
        }
    }

    /// Exactly `n` bytes.
    ///
    /// # Errors
    ///
    /// The connection ends first.
    pub async fn take(&mut self, n: usize) -> Result<Vec<u8>> {
        while self.unread.len() < n {
            ensure!(
                self.fill("more bytes").await?,
                "the connection ended after {} of {n} bytes",
                self.unread.len()
            );
        }
        Ok(self.unread.drain(..n).collect())
    }

    /// Reads once; false at the end.
    async fn fill(&mut self, what: &str) -> Result<bool> {
        let mut room = [0; 16 * 1024];
        let read = async {
            match self.stream.read(&mut room).await {
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
                other => other,
            }
        };
        let n = in_time(what, read).await?;
        self.unread.extend_from_slice(&room[..n]);
        Ok(n > 0)
    }
}

/// `GET path` on a connection of its own.
///
/// # Errors
///
/// There is no answer.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    ask(address, "GET", path, "").await
}

/// One request on a connection of its own.
///
/// # Errors
///
/// There is no answer.
pub async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    let mut wire = Wire::connect(address).await?;
    let length = match body.len() {
        0 => String::new(),
        n => format!("Content-Length: {n}\r\n"),
    };
    wire.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{length}\r\n{body}"
    ))
    .await?;
    wire.answer().await
}

/// An upgrade request as in RFC 6455 section 1.2. Each line of `changed` (`Name: value`) takes the
/// place of the header of that name or comes in addition; `Name:` alone removes it.
pub fn upgrade_request(path: &str, changed: &[&str]) -> String {
    let usual = [
        "Host: app.example.org",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ];
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_lowercase();
    let kept = usual
        .iter()
        .filter(|line| !changed.iter().any(|new| name(new) == name(line)));
    let added = changed.iter().filter(|line| !line.ends_with(':'));
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    for line in kept.chain(added) {
        request.push_str(line);
        request.push_str("\r\n");
    }
    request + "\r\n"
}

/// A masked frame, as a client sends it (RFC 6455 section 5.2), with a payload below 64 KiB.
pub fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first_byte];
    match u16::try_from(payload.len()) {
        Ok(short @ ..126) => bytes.push(0x80 | short.to_be_bytes()[1]),
        Ok(long) => {
            bytes.push(0x80 | 126);
            bytes.extend(long.to_be_bytes());
        }
        Err(_) => panic!("a payload of {} bytes is too long here", payload.len()),
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
    bytes
}
