//! A well-behaved backend: echoes WebSockets on every path, answers plain HTTP, and remembers what
//! it was asked. Every answer names it in `x-backend`.
//!
//! | request | answer |
//! | --- | --- |
//! | an upgrade | 101 with the first offered subprotocol, then an echo |
//! | `POST` | 200 with the request's body, streamed, with the request's framing |
//! | `/status/N` | N without a body |
//! | anything else | 200 with `{"backend":"ADDRESS"}` |

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::{Accept, TlsAcceptor};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::tasks::{Panics, Tasks};

/// One backend; dropping it closes its listener and all its sockets, and fails the test if one of its
/// tasks has panicked.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    seen: Arc<Seen>,
    _server: Tasks,
}

/// What a backend remembers.
#[derive(Debug, Default)]
struct Seen {
    n_connections: AtomicUsize,
    n_open: AtomicUsize,
    requests: Mutex<Vec<Request<()>>>,
    close_codes: Mutex<Vec<u16>>,
    server_names: Mutex<Vec<String>>,
}

type Body = Either<Full<Bytes>, Incoming>;

impl Backend {
    /// Starts one on a free port.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start() -> Result<Self> {
        Self::start_at("127.0.0.1:0".parse()?).await
    }

    /// Starts one that is spoken to in TLS, with this certificate and this key.
    ///
    /// # Errors
    ///
    /// They do not belong together.
    pub async fn start_tls(
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let tls = TlsAcceptor::from(Arc::new(config));
        Ok(Self::serving(listener, address, Some(tls)))
    }

    /// Starts where one has been before.
    ///
    /// # Errors
    ///
    /// The address is taken.
    pub async fn start_at(address: SocketAddr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(1024)?;
        let address = listener.local_addr()?;
        Ok(Self::serving(listener, address, None))
    }

    fn serving(listener: TcpListener, address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let seen = Arc::<Seen>::default();
        let of_server = Arc::clone(&seen);
        let server = Tasks::start(|panics| serve(listener, address, of_server, tls, panics));
        Self {
            address,
            seen,
            _server: server,
        }
    }

    /// Starts `n`.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start_many(n: usize) -> Result<Vec<Self>> {
        let mut backends = Vec::with_capacity(n);
        for _ in 0..n {
            backends.push(Self::start().await?);
        }
        Ok(backends)
    }

    /// What clients in TLS have asked for by name (SNI), in order; empty where they named none.
    pub fn server_names(&self) -> Vec<String> {
        let names = &self.seen.server_names;
        names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it listens; also its name in `x-backend`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn n_connections(&self) -> usize {
        self.seen.n_connections.load(Ordering::SeqCst)
    }

    /// Sessions open now.
    pub fn n_open(&self) -> usize {
        self.seen.n_open.load(Ordering::SeqCst)
    }

    /// Requests received so far, upgrades among them.
    pub fn requests(&self) -> Vec<Request<()>> {
        let requests = &self.seen.requests;
        requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The codes of the Close frames received so far.
    pub fn close_codes(&self) -> Vec<u16> {
        let codes = &self.seen.close_codes;
        codes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    seen: Arc<Seen>,
    tls: Option<TlsAcceptor>,
    panics: Panics,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                seen.n_connections.fetch_add(1, Ordering::SeqCst);
                let seen = Arc::clone(&seen);
                let _ = stream.set_nodelay(true);
                match &tls {
                    None => connections.spawn(panics.watch(connection(stream, address, seen))),
                    Some(tls) => connections.spawn(panics.watch(secured(tls.accept(stream), address, seen))),
                };
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn secured(accepted: Accept<TcpStream>, address: SocketAddr, seen: Arc<Seen>) {
    let Ok(stream) = accepted.await else { return };
    let name = stream.get_ref().1.server_name().unwrap_or_default();
    let names = &seen.server_names;
    names
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(name.to_owned());
    connection(stream, address, seen).await;
}

/// What a client can come over.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

/// One connection: requests until one is an upgrade, then the echo.
async fn connection<S: Transport>(stream: S, address: SocketAddr, seen: Arc<Seen>) {
    let upgrade = Mutex::new(None);
    let service = service_fn(|request| {
        let answer = answer(request, address, &seen, &upgrade);
        async { Ok::<_, io::Error>(answer) }
    });
    let ended = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let upgrade = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (Ok(()), Some(upgrade)) = (ended, upgrade) else {
        return;
    };
    if let Some(socket) = upgraded::<S>(upgrade).await {
        seen.n_open.fetch_add(1, Ordering::SeqCst);
        let _ended = echo(socket, &seen).await;
        seen.n_open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(
    mut request: Request<Incoming>,
    address: SocketAddr,
    seen: &Seen,
    upgrade: &Mutex<Option<OnUpgrade>>,
) -> Response<Body> {
    let mut answer = Response::new(Either::Left(Full::default()));
    if let Some(key) = request.headers().get("sec-websocket-key") {
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let accept = derive_accept_key(key.as_bytes());
        let headers = answer.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, value(accept));
        if let Some(first) = first_subprotocol(&request) {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, value(first));
        }
        let on_upgrade = hyper::upgrade::on(&mut request);
        *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(on_upgrade);
    } else if let Some(status) = request.uri().path().strip_prefix("/status/") {
        *answer.status_mut() = status.parse().unwrap_or(StatusCode::BAD_REQUEST);
    } else if request.method() != Method::POST {
        let json = format!(r#"{{"backend":"{address}"}}"#);
        *answer.body_mut() = Either::Left(Full::from(json));
    }
    answer
        .headers_mut()
        .insert("x-backend", value(address.to_string()));

    let (parts, body) = request.into_parts();
    if parts.method == Method::POST {
        *answer.body_mut() = Either::Right(body);
    }
    let requests = &seen.requests;
    requests
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Request::from_parts(parts, ()));
    answer
}

fn first_subprotocol(request: &Request<Incoming>) -> Option<String> {
    let offered = request
        .headers()
        .get(SEC_WEBSOCKET_PROTOCOL)?
        .to_str()
        .ok()?;
    Some(offered.split(',').next()?.trim().to_owned())
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("keys, addresses and tokens are visible ASCII")
}

async fn upgraded<S: Transport>(upgrade: OnUpgrade) -> Option<WebSocketStream<S>> {
    let parts = upgrade.await.ok()?.downcast::<TokioIo<S>>().ok()?;
    let config = WebSocketConfig::default().max_frame_size(None);
    let read = parts.read_buf.to_vec();
    let stream = parts.io.into_inner();
    Some(WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await)
}

/// Text and binary go back; the library answers pings and Close frames.
async fn echo<S: Transport>(mut socket: WebSocketStream<S>, seen: &Seen) -> Result<()> {
    while let Some(message) = socket.next().await {
        match message? {
            Message::Close(Some(frame)) => {
                let codes = &seen.close_codes;
                codes
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(frame.code.into());
            }
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await?,
            _ => {}
        }
    }
    Ok(())
}
