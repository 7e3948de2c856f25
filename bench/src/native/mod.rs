//! Echo and chat servers without a proxy or a plugin, to compare handlers with. Each is a process of its own:
//! this program, started again.

#![allow(
    clippy::disallowed_methods,
    reason = "one thread, and the process ends with its tasks"
)]

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use fastwebsockets::{FragmentCollector, OpCode, upgrade};
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio_tungstenite::tungstenite::{Message, handshake};

use crate::backend;

/// Which library echoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// tokio-tungstenite on a current-thread runtime.
    TokioTungstenite,
    /// The same, with rooms.
    TokioTungsteniteChat,
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
    let listener =
        TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    if library == Library::Epoll {
        return backend::run(&[listener], &backend::Orders::default());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(accept(library, listener))
}

async fn accept(library: Library, listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let rooms = Rooms::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let rooms = rooms.clone();
        // How a client ends its connection is the client's to report.
        tokio::spawn(async move {
            let _ended = match library {
                Library::Fastwebsockets => fastwebsockets_on(stream).await,
                Library::TokioTungsteniteChat => chat_on(stream, rooms).await,
                Library::TokioTungstenite | Library::Epoll => tokio_tungstenite_on(stream).await,
            };
        });
    }
}

async fn tokio_tungstenite_on(stream: TcpStream) -> Result<()> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}

/// Who listens in each room, by the path of the upgrade.
type Rooms = Arc<Mutex<HashMap<String, broadcast::Sender<Message>>>>;

/// Messages that a slow reader may be behind.
const BEHIND: usize = 1024;

/// Tells everybody in the room, in as many bytes as the `chat` plugin does.
async fn chat_on(stream: TcpStream, rooms: Rooms) -> Result<()> {
    let mut room = String::new();
    #[expect(clippy::result_large_err, reason = "the library's type")]
    let note_path = |request: &handshake::server::Request, response| {
        room = request.uri().to_string();
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(stream, note_path).await?;
    let sender = {
        let mut rooms = rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = rooms.entry(room);
        channel
            .or_insert_with(|| broadcast::channel(BEHIND).0)
            .clone()
    };
    let mut said = sender.subscribe();
    let (mut to_client, mut from_client) = socket.split();
    let mut number = 0_u64;
    loop {
        tokio::select! {
            message = from_client.next() => match message.transpose()? {
                Some(Message::Text(text)) => {
                    number += 1;
                    let told = format!(
                        r#"{{"type":"said","room":"0","from":"guest-1000","text":"{text}","seq":{number},"at":1790000000000}}"#
                    );
                    let _listeners = sender.send(Message::text(told));
                }
                Some(_) => {}
                None => return Ok(()),
            },
            message = said.recv() => {
                to_client.feed(message?).await?;
                // What waits goes out in one write.
                while let Ok(message) = said.try_recv() {
                    to_client.feed(message).await?;
                }
                to_client.flush().await?;
            }
        }
    }
}

async fn fastwebsockets_on(stream: TcpStream) -> Result<()> {
    http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(upgraded))
        .with_upgrades()
        .await?;
    Ok(())
}

async fn upgraded(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>> {
    let (response, upgrade) = upgrade::upgrade(&mut request)?;
    tokio::spawn(async move {
        let mut socket = FragmentCollector::new(upgrade.await?);
        loop {
            let frame = socket.read_frame().await?;
            match frame.opcode {
                OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
                OpCode::Close => return anyhow::Ok(()),
                _ => {}
            }
        }
    });
    Ok(response)
}
