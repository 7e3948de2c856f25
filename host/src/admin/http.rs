//! Looking and steering: a small HTTP server on the control thread.
//!
//! What it shows comes from a [`View`], which also carries out orders. Each connection brings one request and
//! has `CONNECTION_DEADLINE` for all of it, so a client that stalls holds its place no longer
//! than that, and at most `MAX_CONNECTIONS` are served at a time: the rest waits in the kernel.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN,
    WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::metrics::Format;
use super::status::Status;
use super::steer::{Drainable, Order, Outcome};

/// What there is to be seen. Asked on the control thread, once per request.
pub trait View {
    /// Whether new connections should be sent here.
    fn readiness(&self) -> Readiness;

    /// Everything that runs.
    fn status(&self) -> Status;

    /// The metrics page.
    fn metrics(&self, format: Format) -> String;

    /// Carries out an order.
    fn steer(&self, order: Order) -> LocalBoxFuture<'static, Outcome>;
}

/// Whether this process takes new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet.
    Starting,
    /// Yes.
    Ready,
    /// No longer.
    Draining,
}

/// A scrape and a dozen probes and people fit; a stranger's flood does not starve the data plane.
const MAX_CONNECTIONS: usize = 64;

/// From the accepted connection to the last byte of the answer: what Prometheus waits by default.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);

/// The head of a request; none that is meant for this door comes near.
const REQUEST_HEAD_MAX_BYTES: usize = 16 * 1024;

/// After a failed accept, which means that descriptors are short: until some may be free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A configuration of 10,000 backends, and room.
const BODY_MAX_BYTES: usize = 4 << 20;

const BAD_ORDER: &str = "cannot be read: upstream=NAME&backend=ADDR or route=HOST/PATH is wanted, \
    or a proposal as JSON\n";

const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "pointsman\n\n\
    /healthz      200 while the process runs\n\
    /readyz       200 while it takes new connections, else 503\n\
    /metrics      metrics as Prometheus reads them\n\
    /api/status   what runs, as JSON\n\n\
    POST /api/reload                              read the configuration again\n\
    POST /api/drain?upstream=NAME&backend=ADDR    take a backend out; DELETE puts it back\n\
    POST /api/drain?route=HOST/PATH               take a route out; DELETE puts it back\n";

/// Serves until it is dropped, which ends every connection too. Runs on a `LocalSet`.
///
/// `token`: asked for as `Authorization: Bearer`, except by `/healthz` and `/readyz`.
pub async fn serve(listener: TcpListener, view: Rc<dyn View>, token: Option<String>) {
    let door = Rc::new(Door {
        view,
        token: token.as_deref().map(digest),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => { connections.spawn_local(answer_one(stream, Rc::clone(&door))); }
                Err(error) => {
                    tracing::debug!(%error, "admin: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "admin: a request was not answered");
                }
            }
        }
    }
}

async fn answer_one(stream: TcpStream, door: Rc<Door>) {
    let service = service_fn(move |request| {
        let door = Rc::clone(&door);
        async move { Ok::<_, Infallible>(door.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        // One deadline stands for the whole connection.
        .header_read_timeout(None)
        .max_buf_size(REQUEST_HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin: connection failed"),
        Err(_) => tracing::debug!("admin: connection cut at its deadline"),
    }
}

struct Door {
    view: Rc<dyn View>,
    token: Option<TokenDigest>,
}

type TokenDigest = [u8; 32];

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("asks_for_token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Index,
    Health,
    Ready,
    Metrics,
    Status,
    Reload,
    Drain,
    Plan,
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Index),
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Ready),
            "/metrics" => Some(Self::Metrics),
            "/api/status" => Some(Self::Status),
            "/api/reload" => Some(Self::Reload),
            "/api/drain" => Some(Self::Drain),
            "/api/plan" => Some(Self::Plan),
            _ => None,
        }
    }

    /// Probes have no token.
    fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Ready)
    }

    /// hyper sends no body in answer to HEAD.
    fn methods(self) -> &'static [Method] {
        match self {
            Self::Reload | Self::Plan => &[Method::POST],
            Self::Drain => &[Method::POST, Method::DELETE],
            _ => &[Method::GET, Method::HEAD],
        }
    }
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Door {
    async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body,
        B::Error: Into<BodyError>,
    {
        let page = Page::at(request.uri().path());
        // Before 404 and 405: who may not look learns nothing of what is here.
        if !page.is_some_and(Page::is_open) && !self.lets_in(request.headers()) {
            let mut answer = text(StatusCode::UNAUTHORIZED, "unauthorized\n");
            answer
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return answer;
        }
        let Some(page) = page else {
            return text(StatusCode::NOT_FOUND, "not found\n");
        };
        if !page.methods().contains(request.method()) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            let methods: Vec<_> = page.methods().iter().map(Method::as_str).collect();
            if let Ok(allowed) = HeaderValue::try_from(methods.join(", ")) {
                answer.headers_mut().insert(ALLOW, allowed);
            }
            return answer;
        }
        match page {
            Page::Reload | Page::Drain | Page::Plan => self.steer(page, request).await,
            _ => self.page(page, request.headers()),
        }
    }

    async fn steer<B>(&self, page: Page, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body,
        B::Error: Into<BodyError>,
    {
        // Browsers say so when a page sends a request; no page of anybody's steers this process.
        if request.headers().contains_key(ORIGIN) {
            return text(StatusCode::FORBIDDEN, "not from a browser\n");
        }
        let order = match page {
            Page::Drain => {
                let is_out = request.method() == Method::POST;
                drainable(request.uri().query().unwrap_or_default())
                    .map(|what| Order::Drain { what, is_out })
            }
            Page::Plan => match Limited::new(request.into_body(), BODY_MAX_BYTES)
                .collect()
                .await
            {
                Ok(body) => serde_json::from_slice(&body.to_bytes())
                    .ok()
                    .map(Order::Plan),
                Err(_) => None,
            },
            _ => Some(Order::Reload),
        };
        let Some(order) = order else {
            return text(StatusCode::BAD_REQUEST, BAD_ORDER);
        };
        let json = |status: StatusCode, value: serde_json::Value| {
            body(status, "application/json", format!("{value}\n"))
        };
        match self.view.steer(order).await {
            Outcome::Done(message) => json(StatusCode::OK, json!({ "done": message })),
            Outcome::Planned(plan) => json(StatusCode::OK, json!(plan)),
            Outcome::NotFound(what) => json(StatusCode::NOT_FOUND, json!({ "error": what })),
            Outcome::Refused(problems) => json(
                StatusCode::UNPROCESSABLE_ENTITY,
                json!({ "error": "refused, and nothing was changed", "problems": problems }),
            ),
        }
    }

    fn page(&self, page: Page, headers: &HeaderMap) -> Response<Full<Bytes>> {
        match page {
            Page::Index | Page::Reload | Page::Drain | Page::Plan => text(StatusCode::OK, INDEX),
            Page::Health => text(StatusCode::OK, "ok\n"),
            Page::Ready => match self.view.readiness() {
                Readiness::Ready => text(StatusCode::OK, "ready\n"),
                Readiness::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
                Readiness::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            },
            Page::Metrics => {
                let format = format_wanted(headers);
                let content = self.view.metrics(format);
                body(StatusCode::OK, format.content_type(), content)
            }
            Page::Status => match serde_json::to_string(&self.view.status()) {
                Ok(json) => body(StatusCode::OK, "application/json", json),
                Err(error) => {
                    tracing::error!(%error, "admin: the status cannot be written as JSON");
                    text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
                }
            },
        }
    }

    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.token else {
            return true;
        };
        // Digests are compared, so how long it takes tells nothing of the token or its length.
        bearer_token(headers).is_some_and(|given| digest(given) == *expected)
    }
}

/// OpenMetrics only for whoever names it and likes nothing better (RFC 9110 section 12.5.1); of two that
/// are liked alike, the first.
fn format_wanted(headers: &HeaderMap) -> Format {
    let mut best = (0.0, Format::Classic);
    let lines = headers.get_all(ACCEPT).into_iter();
    let ranges = lines.filter_map(|line| line.to_str().ok());
    for range in ranges.flat_map(|line| line.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |name: &str| {
            let mut named = parameters
                .iter()
                .filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
            named
                .next()
                .map(|(_, value)| value.trim().trim_matches('"'))
        };
        let is_version = |ours: &str| parameter("version").is_none_or(|version| version == ours);
        let format = match media.as_str() {
            "application/openmetrics-text" if is_version("1.0.0") => Format::OpenMetrics,
            "text/plain" if is_version("0.0.4") => Format::Classic,
            "text/*" | "*/*" => Format::Classic,
            _ => continue,
        };
        let quality = parameter("q").map_or(Ok(1.0), str::parse::<f32>);
        let quality = quality.unwrap_or_default();
        if quality > best.0 {
            best = (quality, format);
        }
    }
    best.1
}

/// `upstream=app&backend=127.0.0.1:3001`, or `route=example.org/websocket`; `%`-escapes are decoded.
fn drainable(query: &str) -> Option<Drainable> {
    let values = form_urlencoded::parse(query.as_bytes());
    let mut values: BTreeMap<_, _> = values.into_owned().collect();
    let mut take = |key: &str| values.remove(key);
    match (take("upstream"), take("backend"), take("route")) {
        (Some(upstream), Some(address), None) => Some(Drainable::Backend { upstream, address }),
        (None, None, Some(route)) => Some(Drainable::Route(route)),
        _ => None,
    }
}

/// RFC 6750 section 2.1; the scheme's name is without case, RFC 9110 section 11.1.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn digest(token: &str) -> TokenDigest {
    Sha256::digest(token).into()
}

fn text(status: StatusCode, content: &'static str) -> Response<Full<Bytes>> {
    body(status, TEXT, content)
}

fn body(
    status: StatusCode,
    content_type: &'static str,
    content: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(content.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::SocketAddr;

    use futures_util::FutureExt as _;
    use http_body_util::Empty;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::LocalSet;

    use super::super::status::{FetchError, fetch};
    use super::*;

    struct Fixed(Cell<Readiness>);

    thread_local! {
        static LAST_ORDER: Cell<Option<Order>> = const { Cell::new(None) };
    }

    impl View for Fixed {
        fn readiness(&self) -> Readiness {
            self.0.get()
        }

        fn status(&self) -> Status {
            Status {
                version: "1.2.3".into(),
                sessions: 7,
                ..Status::default()
            }
        }

        fn metrics(&self, _: Format) -> String {
            "# EOF\n".into()
        }

        fn steer(&self, order: Order) -> LocalBoxFuture<'static, Outcome> {
            LAST_ORDER.set(Some(order));
            Box::pin(async { Outcome::Done("done".to_owned()) })
        }
    }

    fn door(readiness: Readiness, token: Option<&str>) -> Door {
        Door {
            view: Rc::new(Fixed(Cell::new(readiness))),
            token: token.map(digest),
        }
    }

    fn ask(
        door: &Door,
        method: Method,
        path: &str,
        authorization: Option<&str>,
    ) -> Response<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        door.answer(request).now_or_never().expect("nothing waits")
    }

    fn order(text: &str) -> Option<Order> {
        let (method, path) = text.split_once(' ').unwrap();
        let steered = door(Readiness::Ready, None);
        let status = ask(&steered, method.parse().unwrap(), path, None).status();
        let order = LAST_ORDER.take();
        assert_eq!(status == 200, order.is_some(), "{text}: {status}");
        order
    }

    #[test]
    fn orders_are_read_off_the_wire() {
        assert_eq!(order("POST /api/reload"), Some(Order::Reload));
        assert_eq!(order("GET /api/reload"), None);
        let what = Drainable::Backend {
            upstream: "app".to_owned(),
            address: "[::1]:3001".to_owned(),
        };
        let query = "/api/drain?upstream=app&backend=%5B::1%5D:3001";
        for (method, is_out) in [("POST", true), ("DELETE", false)] {
            let what = what.clone();
            let expected = Some(Order::Drain { what, is_out });
            assert_eq!(order(&format!("{method} {query}")), expected);
        }
        let what = Drainable::Route("*.example.org/chat/*".to_owned());
        let expected = Some(Order::Drain { what, is_out: true });
        assert_eq!(
            order("POST /api/drain?route=*.example.org/chat/*"),
            expected
        );
        assert_eq!(order("POST /api/drain?upstream=app"), None);
        assert_eq!(order("POST /api/drain"), None);
    }

    #[test]
    fn no_page_in_a_browser_gives_orders() {
        let request = Request::post("/api/reload").header(ORIGIN, "http://evil.example");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let door = door(Readiness::Ready, None);
        let answer = door.answer(request).now_or_never().expect("nothing waits");
        assert_eq!((answer.status().as_u16(), LAST_ORDER.take()), (403, None));
    }

    #[test]
    fn each_page_is_served_with_its_type() {
        let open = door(Readiness::Ready, None);
        for (path, status, content_type) in [
            ("/", 200, TEXT),
            ("/healthz", 200, TEXT),
            ("/readyz", 200, TEXT),
            (
                "/metrics?name=x",
                200,
                "text/plain; version=0.0.4; charset=utf-8",
            ),
            ("/api/status", 200, "application/json"),
            ("/nothing", 404, TEXT),
            ("/healthz/", 404, TEXT),
        ] {
            let answer = ask(&open, Method::GET, path, None);
            assert_eq!(answer.status().as_u16(), status, "{path}");
            assert_eq!(answer.headers()[CONTENT_TYPE], content_type, "{path}");
        }
    }

    #[test]
    fn openmetrics_is_for_whoever_asks_for_it() {
        let open = "application/openmetrics-text";
        // What Prometheus sends since 2.5, since 3.0, and with the classic format preferred.
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let classic_first = "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.2";
        for (accept, expected) in [
            (&[][..], Format::Classic),
            (&["*/*"], Format::Classic),
            (&["text/html", "application/xml;q=0.9"], Format::Classic),
            (&[open], Format::OpenMetrics),
            (
                &["Application/OpenMetrics-Text; Version=\"1.0.0\""],
                Format::OpenMetrics,
            ),
            (
                &["application/openmetrics-text;version=0.0.1"],
                Format::Classic,
            ),
            (&["application/openmetrics-text;q=0"], Format::Classic),
            (
                &["application/openmetrics-text;q=0.1, text/plain"],
                Format::Classic,
            ),
            (&["text/plain;q=0.1", open], Format::OpenMetrics),
            (&["text/plain", open], Format::Classic),
            (&[prometheus_2], Format::OpenMetrics),
            (&[prometheus_3], Format::OpenMetrics),
            (&[classic_first], Format::Classic),
            (
                &["application/openmetrics-text;q=x", ";;,="],
                Format::Classic,
            ),
        ] {
            let mut headers = HeaderMap::new();
            for line in accept {
                headers.append(ACCEPT, line.parse().unwrap());
            }
            assert_eq!(format_wanted(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn readiness_is_200_only_while_new_work_is_taken() {
        for (readiness, status) in [
            (Readiness::Starting, 503),
            (Readiness::Ready, 200),
            (Readiness::Draining, 503),
        ] {
            let answer = ask(&door(readiness, None), Method::GET, "/readyz", None);
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(
                ask(&door(readiness, None), Method::GET, "/healthz", None).status(),
                200
            );
        }
    }

    #[test]
    fn other_methods_are_told_which_are_allowed() {
        let open = door(Readiness::Ready, None);
        let answer = ask(&open, Method::POST, "/metrics", None);
        assert_eq!(answer.status(), 405);
        assert_eq!(answer.headers()[ALLOW], "GET, HEAD");
        assert_eq!(ask(&open, Method::POST, "/nothing", None).status(), 404);
        assert_eq!(ask(&open, Method::HEAD, "/metrics", None).status(), 200);
    }

    #[test]
    fn a_token_guards_everything_but_the_probes() {
        let guarded = door(Readiness::Ready, Some("s3cret"));
        for (path, authorization, status) in [
            ("/healthz", None, 200),
            ("/readyz", Some("Bearer wrong"), 200),
            ("/metrics", None, 401),
            ("/", None, 401),
            ("/nothing", None, 401),
            ("/metrics", Some("Bearer s3cret"), 200),
            ("/metrics", Some("bearer  s3cret"), 200),
            ("/nothing", Some("Bearer s3cret"), 404),
            ("/metrics", Some("Bearer s3cre"), 401),
            ("/metrics", Some("Bearer s3cret2"), 401),
            ("/metrics", Some("Bearer"), 401),
            ("/metrics", Some("Bearer "), 401),
            ("/metrics", Some("Basic s3cret"), 401),
        ] {
            let answer = ask(&guarded, Method::GET, path, authorization);
            assert_eq!(answer.status().as_u16(), status, "{path} {authorization:?}");
            let challenge = answer.headers().get(WWW_AUTHENTICATE);
            assert_eq!(
                challenge.is_some_and(|value| value == "Bearer"),
                status == 401
            );
        }
    }

    /// Serves while `story` runs, then drops the server.
    async fn with_server<T>(token: Option<&str>, story: impl AsyncFnOnce(SocketAddr) -> T) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let view = Rc::new(Fixed(Cell::new(Readiness::Ready)));
        let server = serve(listener, view, token.map(str::to_owned));
        LocalSet::new()
            .run_until(async move {
                tokio::select! {
                    () = server => unreachable!("it serves until it is dropped"),
                    out = story(address) => out,
                }
            })
            .await
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn one_request_is_answered_and_the_connection_closed() {
        with_server(None, async |address| {
            let answer = exchange(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
            let head = exchange(address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(
                head.contains("\r\ncontent-length: 6\r\n") && head.ends_with("\r\n\r\n"),
                "{head}"
            );
        })
        .await;
    }

    #[tokio::test]
    async fn nonsense_and_long_heads_are_refused_and_the_next_is_served() {
        with_server(None, async |address| {
            let answer = exchange(address, "\u{1}\u{2} nonsense\r\n\r\n").await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
                "{answer}"
            );
            let long = format!(
                "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n",
                "x".repeat(REQUEST_HEAD_MAX_BYTES)
            );
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(long.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // May end in a reset, where some of the head was never read.
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"));
            assert!(
                exchange(address, "GET /healthz HTTP/1.0\r\n\r\n")
                    .await
                    .contains("200 OK")
            );
        })
        .await;
    }

    #[tokio::test]
    async fn no_more_than_the_most_connections_are_served_at_a_time() {
        with_server(None, async |address| {
            let mut idle = Vec::new();
            for _ in 0..MAX_CONNECTIONS {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET /healthz HT").await.unwrap();
                idle.push(stream);
            }
            let next = exchange(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            let mut next = std::pin::pin!(next);
            // The waiting one is not served while the others hold their places...
            assert!(
                timeout(Duration::from_millis(200), &mut next)
                    .await
                    .is_err()
            );
            // ...and is as soon as one leaves.
            idle.pop();
            assert!(
                timeout(Duration::from_secs(5), next)
                    .await
                    .unwrap()
                    .contains("200 OK")
            );
        })
        .await;
    }

    #[tokio::test]
    async fn the_status_command_reads_what_the_server_says() {
        with_server(Some("s3cret"), async |address| {
            let status = fetch(address, Some("s3cret")).await.unwrap();
            assert_eq!((status.version.as_str(), status.sessions), ("1.2.3", 7));
            let refused = fetch(address, None).await.unwrap_err();
            assert!(
                matches!(refused, FetchError::Refused { status: 401, .. }),
                "{refused}"
            );
        })
        .await;
    }

    #[tokio::test]
    async fn dropping_the_server_ends_its_connections() {
        let mut stream = with_server(None, async |address| {
            let stream = TcpStream::connect(address).await.unwrap();
            // Accepted, once a later connection has been answered.
            exchange(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
            stream
        })
        .await;
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok());
    }
}
