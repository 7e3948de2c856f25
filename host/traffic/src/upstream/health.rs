//! Asking a backend how it is: one probe after the other, for as long as somebody wants to know.
//!
//! In go a backend and what is asked of it; what comes of it is in the backend's fitness. Runs on the
//! control plane, and sees a backend as a client would: name resolution, TLS and handshake included.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{self, HeaderValue};
use http::{Request, StatusCode, request};
use pointsman_config::{Health, Probe};
use pointsman_protocol::handshake::Upgrade;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::dial::{self, Deadlines, Destination, DialError, UpgradeAnswer};
use super::fitness::HealthChange;
use super::pool::Backend;
use super::tls::Tls;
use crate::spelling;

/// How much sooner or later than asked for a probe may come, in parts of the interval, so that those
/// of many backends do not go together.
const JITTER: f64 = 0.1;
/// How long a backend may take over a Close that ends a probe.
const CLOSE_PATIENCE: Duration = Duration::from_millis(100);
const USER_AGENT: HeaderValue = HeaderValue::from_static("pointsman-health");

/// Probes until it is dropped. `upstream`: its name, for the log.
pub async fn watch(upstream: String, backend: Arc<Backend>, tls: Option<Arc<Tls>>, health: Health) {
    loop {
        let result = probe(
            Destination {
                address: backend.address(),
                tls: tls.as_ref(),
            },
            &health,
        )
        .await;
        let backend_name = backend.address();
        match backend.probed(result, &health) {
            Some(HealthChange::Up) => {
                tracing::info!(upstream, backend = backend_name, "backend is up")
            }
            Some(HealthChange::Down(reason)) => {
                tracing::warn!(upstream, backend = backend_name, reason, "backend is down");
            }
            None => {}
        }
        let factor = 1.0 - JITTER + 2.0 * JITTER * backend.environment().fraction();
        sleep(health.interval.mul_f64(factor)).await;
    }
}

/// One probe.
///
/// # Errors
/// What is wrong with the backend, in a clause.
pub async fn probe(to: Destination<'_>, health: &Health) -> Result<(), String> {
    // One deadline holds for the whole: those of its parts come later.
    let later = health.timeout * 2;
    let probed = async {
        match &health.probe {
            Probe::Tcp => tcp(to, later).await,
            Probe::Http { path } => http(to, health, path, later).await,
            Probe::WebSocket { path } => websocket(to, health, path, later).await,
        }
    };
    let probed = timeout(health.timeout, probed).await;
    probed.unwrap_or_else(|_| Err(format!("no answer within {:?}", health.timeout)))
}

async fn tcp(to: Destination<'_>, deadline: Duration) -> Result<(), String> {
    let connected = dial::connect(to, deadline).await;
    connected.map(drop).map_err(|error| error.to_string())
}

async fn http(
    to: Destination<'_>,
    health: &Health,
    path: &str,
    deadline: Duration,
) -> Result<(), String> {
    let said = |error: DialError| error.to_string();
    let stream = dial::connect(to, deadline).await.map_err(said)?;
    let exchanged = dial::exchange(stream, head(to.address, health, path)?).await;
    let (response, ..) = exchanged.map_err(said)?;
    let status = response.status();
    let is_usual = || status.is_success() || status.is_redirection();
    expected(health, status, is_usual)
}

/// Whether a backend in order answers so. `is_usual`: what holds where nothing is written.
fn expected(
    health: &Health,
    status: StatusCode,
    is_usual: impl FnOnce() -> bool,
) -> Result<(), String> {
    let expect = health.expect.as_ref();
    match expect.map_or_else(is_usual, |expect| expect.contains(status.as_u16())) {
        true => Ok(()),
        false => Err(format!("it answered {status}")),
    }
}

async fn websocket(
    to: Destination<'_>,
    health: &Health,
    path: &str,
    deadline: Duration,
) -> Result<(), String> {
    let mut head = head(to.address, health, path)?;
    let asked = Upgrade {
        key: BASE64.encode(fastrand::u128(..).to_ne_bytes()),
        subprotocols: Vec::new(),
        extensions: Vec::new(),
    };
    let key = HeaderValue::from_str(&asked.key).map_err(|error| error.to_string())?;
    head.headers.insert(header::SEC_WEBSOCKET_KEY, key);
    let version = HeaderValue::from_static("13");
    head.headers.insert(header::SEC_WEBSOCKET_VERSION, version);
    let deadlines = Deadlines {
        connect: deadline,
        response: deadline,
    };
    let answer = dial::upgrade(to, dial::upgrade_request(head), &asked, deadlines).await;
    let (stream, early) = match answer.map_err(|error| error.to_string())? {
        UpgradeAnswer::Upgraded { stream, early, .. } => (stream, early),
        UpgradeAnswer::Refused(response) => return expected(health, response.status(), || false),
    };
    expected(health, StatusCode::SWITCHING_PROTOCOLS, || true)?;
    let early = early.to_vec();
    let mut socket = WebSocketStream::from_partially_read(stream, early, Role::Client, None).await;
    let broken = |error: tokio_tungstenite::tungstenite::Error| error.to_string();
    let ping = Bytes::from_static(b"pointsman");
    socket
        .send(Message::Ping(ping.clone()))
        .await
        .map_err(broken)?;
    loop {
        match socket.next().await.transpose().map_err(broken)? {
            Some(Message::Pong(payload)) if payload == ping => break,
            Some(Message::Close(_)) | None => return Err("it closed before its Pong".to_owned()),
            Some(_) => {}
        }
    }
    // The verdict is there; the rest is good manners.
    let patience = Instant::now() + CLOSE_PATIENCE;
    let goodbye = async {
        socket.close(None).await?;
        while socket.next().await.transpose()?.is_some() {}
        Ok::<_, tokio_tungstenite::tungstenite::Error>(())
    };
    let _ = timeout_at(patience, goodbye).await;
    Ok(())
}

fn head(address: &str, health: &Health, path: &str) -> Result<request::Parts, String> {
    let host = health.host.as_deref().unwrap_or(address);
    let mut request = Request::get(path).header(header::HOST, host);
    let names_itself = |(name, _): &(String, String)| name.eq_ignore_ascii_case("user-agent");
    if !health.headers.iter().any(names_itself) {
        request = request.header(header::USER_AGENT, USER_AGENT);
    }
    for (name, value) in &health.headers {
        request = request.header(name, value);
    }
    let (mut head, ()) = (request.body(()).map_err(|error| error.to_string())?).into_parts();
    head.extensions = spelling::of_the_rfcs();
    Ok(head)
}

#[cfg(test)]
mod tests {
    use pointsman_config::Statuses;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn health(probe: Probe) -> Health {
        Health {
            probe,
            host: None,
            headers: Vec::new(),
            expect: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(300),
            rise: 1,
            fall: 1,
        }
    }

    fn plain(address: &str) -> Destination<'_> {
        Destination { address, tls: None }
    }

    /// Answers one connection with `answer` and keeps it open.
    async fn backend(answer: &'static str) -> (String, impl Future<Output = ()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let serve = async move {
            let (mut stream, _) = listener.accept().await.expect("a probe");
            let mut request = [0; 4096];
            let n = stream.read(&mut request).await.expect("open");
            assert!(n == 0 || request.starts_with(b"GET /up HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.expect("open");
            std::future::pending::<()>().await;
        };
        (address, serve)
    }

    async fn verdict(kind: Probe, answer: &'static str) -> Result<(), String> {
        verdict_of(health(kind), answer).await
    }

    async fn verdict_of(health: Health, answer: &'static str) -> Result<(), String> {
        let (address, serve) = backend(answer).await;
        tokio::select! {
            verdict = probe(plain(&address), &health) => verdict,
            () = serve => unreachable!("it serves for ever"),
        }
    }

    #[tokio::test]
    async fn an_http_probe_wants_a_status_of_200_to_399() {
        let kind = || Probe::Http {
            path: "/up".to_owned(),
        };
        let ok = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(verdict(kind(), ok).await, Ok(()));
        let moved = "HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(verdict(kind(), moved).await, Ok(()));
        let broken = "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n";
        let said = verdict(kind(), broken).await.unwrap_err();
        assert_eq!(said, "it answered 500 Internal Server Error");
        let silence = verdict(kind(), "").await.unwrap_err();
        assert_eq!(silence, "no answer within 300ms");
    }

    #[tokio::test]
    async fn a_probe_wants_the_statuses_that_are_expected() {
        let (http, websocket) = ("/up".to_owned(), "/up".to_owned());
        let kinds = [
            Probe::Http { path: http },
            Probe::WebSocket { path: websocket },
        ];
        for kind in kinds {
            let health = Health {
                expect: Statuses::parse("200-299, 401"),
                ..health(kind)
            };
            let wants_a_password = "HTTP/1.1 401 Who\r\ncontent-length: 0\r\n\r\n";
            assert_eq!(verdict_of(health.clone(), wants_a_password).await, Ok(()));
            let moved = "HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n";
            let said = verdict_of(health, moved).await.unwrap_err();
            assert_eq!(said, "it answered 302 Found");
        }
    }

    #[tokio::test]
    async fn a_websocket_probe_wants_a_true_handshake() {
        let kind = || Probe::WebSocket {
            path: "/up".to_owned(),
        };
        let http = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let said = verdict(kind(), http).await.unwrap_err();
        assert_eq!(said, "it answered 200 OK");
        let lie = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n";
        let said = verdict(kind(), lie).await.unwrap_err();
        assert_eq!(said, "its Sec-WebSocket-Accept is wrong");
    }

    #[tokio::test]
    async fn a_tcp_probe_wants_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        assert_eq!(probe(plain(&address), &health(Probe::Tcp)).await, Ok(()));
        drop(listener);
        let said = probe(plain(&address), &health(Probe::Tcp))
            .await
            .unwrap_err();
        assert!(said.starts_with("cannot connect: "), "{said}");
    }
}
