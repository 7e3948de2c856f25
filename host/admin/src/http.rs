//! Looking and steering: a small HTTP server on the control thread.
//!
//! What it shows comes from a [`View`], which also carries out orders. Each connection brings one
//! request. `/healthz` and `/readyz` are answered as soon as their head is there, whoever asks; `gate`
//! decides who may see more, and `connections` which one is closed where there are too many.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pointsman_config as config;
use pointsman_metrics::labels::Format;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::commands::{AdminCommand, CommandOutcome, Drainable};
use super::connections::{AdminConnection, AdminConnections, RequestStage};
use super::gate::{Gate, GateRefusal, is_from_a_page};
use super::status::Status;

/// What there is to be seen. Asked on the control thread, once per request.
pub trait View {
    /// Whether new connections should be sent here.
    fn readiness(&self) -> Readiness;

    /// Everything that runs.
    fn status(&self) -> Status;

    /// The metrics page.
    fn metrics(&self, format: Format) -> String;

    /// Carries out an order.
    fn steer(&self, order: AdminCommand) -> LocalBoxFuture<'static, CommandOutcome>;
}

/// Whether this process takes new work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// No longer.
    Draining,
    /// These upstreams, which routes lead to, have no fit backend, and the operator wants to hear of it.
    NoBackend(Vec<String>),
}

/// Carried out or waited for at a time; more are refused.
const MAX_ORDERS: usize = 8;

/// The head of a request; none that is meant for this server comes near.
const REQUEST_HEAD_MAX_BYTES: usize = 16 * 1024;

/// After a failed accept, which means that descriptors are short: until some may be free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A configuration of 10,000 backends, and room.
const BODY_MAX_BYTES: usize = 4 << 20;

/// From the head of an order to the end of its body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

const BAD_ORDER: &str = "cannot be read: upstream=NAME&backend=ADDR or route=HOST/PATH is wanted, \
    or a proposal as JSON\n";

const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "pointsman\n\n\
    /healthz      200 while the process runs\n\
    /readyz       200 while it takes new connections, else 503\n\
    /metrics      metrics as Prometheus reads them\n\
    /api/status   what runs and what is wrong, as JSON\n\n\
    POST /api/reload                              read the configuration again\n\
    POST /api/drain?upstream=NAME&backend=ADDR    take a backend out; DELETE puts it back\n\
    POST /api/drain?route=HOST/PATH               take a route out; DELETE puts it back\n";

/// Serves until it is dropped, which ends every connection and order too. Runs on a `LocalSet`.
pub async fn serve(listener: TcpListener, view: Rc<dyn View>, config: config::Admin) {
    let door = Rc::new(AdminService::new(view, Gate::new(&config)));
    let connections = Rc::<AdminConnections>::default();
    let mut tasks = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let connection = Rc::new(connections.begin(client.ip()));
                tasks.spawn_local(answer_one(stream, Rc::clone(&door), connection));
            }
            Err(error) => {
                tracing::debug!(%error, "admin: accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "admin: a request was not answered");
            }
        }
        // What has come with a connection is read before the next one could take its place.
        yield_now().await;
    }
}

async fn answer_one(stream: TcpStream, door: Rc<AdminService>, connection: Rc<AdminConnection>) {
    let of_request = Rc::clone(&connection);
    let service = service_fn(move |request| {
        let (door, connection) = (Rc::clone(&door), Rc::clone(&of_request));
        async move { Ok::<_, Infallible>(door.answer(request, &connection).await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        // One that ends its half behind its request waits for the answer all the same.
        .half_close(true)
        // The connection has one deadline for each of its stages.
        .header_read_timeout(None)
        .max_buf_size(REQUEST_HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::debug!(%error, "admin: connection failed");
        },
        () = connection.over() => tracing::debug!("admin: connection closed: its time is over"),
    }
}

struct AdminService {
    view: Rc<dyn View>,
    gate: Gate,
    /// One for each order that may be carried out.
    permits: Arc<Semaphore>,
    /// Orders end even where nobody waits for the answer: one that is cut in its middle is neither
    /// done nor undone.
    orders: RefCell<JoinSet<()>>,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AdminPage {
    Index,
    Health,
    Ready,
    Metrics,
    Status,
    Reload,
    Drain,
    ReloadPlan,
}

impl AdminPage {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Index),
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Ready),
            "/metrics" => Some(Self::Metrics),
            "/api/status" => Some(Self::Status),
            "/api/reload" => Some(Self::Reload),
            "/api/drain" => Some(Self::Drain),
            "/api/plan" => Some(Self::ReloadPlan),
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
            Self::Reload | Self::ReloadPlan => &[Method::POST],
            Self::Drain => &[Method::POST, Method::DELETE],
            _ => &[Method::GET, Method::HEAD],
        }
    }
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl AdminService {
    fn new(view: Rc<dyn View>, gate: Gate) -> Self {
        Self {
            view,
            gate,
            permits: Arc::new(Semaphore::new(MAX_ORDERS)),
            orders: RefCell::default(),
        }
    }

    async fn answer<B>(
        &self,
        request: Request<B>,
        connection: &AdminConnection,
    ) -> Response<Full<Bytes>>
    where
        B: Body,
        B::Error: Into<BodyError>,
    {
        let (head, body) = request.into_parts();
        let page = AdminPage::at(head.uri.path());
        // Before 404 and 405: who may not look learns nothing of what is here.
        if !page.is_some_and(AdminPage::is_open)
            && let Err(refusal) = self.gate.admit(&head)
        {
            return refused(refusal);
        }
        let Some(page) = page else {
            return text(StatusCode::NOT_FOUND, "not found\n");
        };
        if !page.methods().contains(&head.method) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            let methods: Vec<_> = page.methods().iter().map(Method::as_str).collect();
            if let Ok(allowed) = HeaderValue::try_from(methods.join(", ")) {
                answer.headers_mut().insert(ALLOW, allowed);
            }
            return answer;
        }
        match page {
            AdminPage::Reload | AdminPage::Drain | AdminPage::ReloadPlan => {
                self.steer(page, head, body, connection).await
            }
            AdminPage::Metrics | AdminPage::Status => {
                connection.enter(RequestStage::Page);
                self.long_page(page, &head.headers)
            }
            AdminPage::Health => text(StatusCode::OK, "ok\n"),
            AdminPage::Ready => ready(&self.view.readiness()),
            AdminPage::Index => text(StatusCode::OK, INDEX),
        }
    }

    async fn steer<B>(
        &self,
        page: AdminPage,
        head: request::Parts,
        body: B,
        connection: &AdminConnection,
    ) -> Response<Full<Bytes>>
    where
        B: Body,
        B::Error: Into<BodyError>,
    {
        if is_from_a_page(&head.headers) {
            return text(StatusCode::FORBIDDEN, "not from a browser\n");
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let too_many = "too many orders at a time\n";
            let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, too_many);
            let soon = HeaderValue::from_static("1");
            answer.headers_mut().insert(RETRY_AFTER, soon);
            return answer;
        };
        connection.enter(RequestStage::Order);
        let read = timeout(BODY_DEADLINE, order(page, &head, body)).await;
        let Some(order) = read.ok().flatten() else {
            return text(StatusCode::BAD_REQUEST, BAD_ORDER);
        };
        let outcome = self.carry_out(order, permit);
        match outcome.await {
            Ok(outcome) => told(outcome),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
        }
    }

    /// To the end, even where nobody waits for the outcome.
    fn carry_out(
        &self,
        order: AdminCommand,
        permit: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<CommandOutcome> {
        let (tell, outcome) = oneshot::channel();
        let carried_out = self.view.steer(order);
        let mut orders = self.orders.borrow_mut();
        while orders.try_join_next().is_some() {}
        orders.spawn_local(async move {
            let _ = tell.send(carried_out.await);
            drop(permit);
        });
        outcome
    }

    fn long_page(&self, page: AdminPage, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if page == AdminPage::Metrics {
            let format = format_wanted(headers);
            let content = self.view.metrics(format);
            return body(StatusCode::OK, format.content_type(), content);
        }
        match serde_json::to_string(&self.view.status()) {
            Ok(json) => body(StatusCode::OK, "application/json", json),
            Err(error) => {
                tracing::error!(%error, "admin: the status cannot be written as JSON");
                text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
            }
        }
    }
}

/// None: it cannot be read.
async fn order<B>(page: AdminPage, head: &request::Parts, body: B) -> Option<AdminCommand>
where
    B: Body,
    B::Error: Into<BodyError>,
{
    match page {
        AdminPage::Drain => {
            let is_out = head.method == Method::POST;
            let what = drainable(head.uri.query().unwrap_or_default())?;
            Some(AdminCommand::Drain { what, is_out })
        }
        AdminPage::ReloadPlan => {
            let body = Limited::new(body, BODY_MAX_BYTES).collect().await.ok()?;
            let proposal = serde_json::from_slice(&body.to_bytes()).ok()?;
            Some(AdminCommand::ReloadPlan(proposal))
        }
        _ => Some(AdminCommand::Reload),
    }
}

fn told(outcome: CommandOutcome) -> Response<Full<Bytes>> {
    let json = |status: StatusCode, value: serde_json::Value| {
        body(status, "application/json", format!("{value}\n"))
    };
    match outcome {
        CommandOutcome::Done(message) => json(StatusCode::OK, json!({ "done": message })),
        CommandOutcome::Planned(plan) => json(StatusCode::OK, json!(plan)),
        CommandOutcome::NotFound(what) => json(StatusCode::NOT_FOUND, json!({ "error": what })),
        CommandOutcome::Refused(problems) => {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let error = "refused, and nothing was changed";
            json(
                StatusCode::UNPROCESSABLE_ENTITY,
                json!({ "error": error, "problems": lines, "details": problems }),
            )
        }
    }
}

fn ready(readiness: &Readiness) -> Response<Full<Bytes>> {
    let not = |why: String| body(StatusCode::SERVICE_UNAVAILABLE, TEXT, why);
    match readiness {
        Readiness::Ready => text(StatusCode::OK, "ready\n"),
        Readiness::Draining => not("draining\n".to_owned()),
        Readiness::NoBackend(upstreams) => not(match upstreams.as_slice() {
            [upstream] => format!("upstream {upstream} has no fit backend\n"),
            upstreams => format!("upstreams {} have no fit backend\n", upstreams.join(", ")),
        }),
    }
}

fn refused(refusal: GateRefusal) -> Response<Full<Bytes>> {
    match refusal {
        GateRefusal::BadHost => text(
            StatusCode::BAD_REQUEST,
            "Host is missing, repeated or invalid\n",
        ),
        GateRefusal::Host(host) => body(
            StatusCode::FORBIDDEN,
            TEXT,
            format!(
                "not by the name {host}: an address, localhost, or one of admin.hosts is allowed\n"
            ),
        ),
        GateRefusal::Token => {
            let mut answer = text(StatusCode::UNAUTHORIZED, "unauthorized\n");
            let bearer = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
            answer
        }
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
    use std::net::{Ipv4Addr, SocketAddr};
    use std::pin::pin;

    use futures_util::poll;
    use http::header::{AUTHORIZATION, HOST, ORIGIN};
    use http_body_util::Empty;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::LocalSet;

    use super::super::status::{FetchError, fetch};
    use super::*;

    /// What tests look at, and what orders wait for.
    struct Fixed {
        readiness: RefCell<Readiness>,
        last_order: Cell<Option<AdminCommand>>,
        /// Orders wait for it where there is one.
        gate: Option<Rc<Notify>>,
        n_done: Rc<Cell<usize>>,
        page: String,
    }

    impl Default for Fixed {
        fn default() -> Self {
            Self {
                readiness: RefCell::new(Readiness::Ready),
                last_order: Cell::default(),
                gate: None,
                n_done: Rc::default(),
                page: "# EOF\n".to_owned(),
            }
        }
    }

    impl View for Fixed {
        fn readiness(&self) -> Readiness {
            self.readiness.borrow().clone()
        }

        fn status(&self) -> Status {
            Status {
                version: "1.2.3".into(),
                sessions: 7,
                ..Status::default()
            }
        }

        fn metrics(&self, _: Format) -> String {
            self.page.clone()
        }

        fn steer(&self, order: AdminCommand) -> LocalBoxFuture<'static, CommandOutcome> {
            self.last_order.set(Some(order));
            let (gate, n_done) = (self.gate.clone(), Rc::clone(&self.n_done));
            Box::pin(async move {
                if let Some(gate) = gate {
                    gate.notified().await;
                }
                n_done.set(n_done.get() + 1);
                CommandOutcome::Done("done".to_owned())
            })
        }
    }

    fn config(token: Option<&str>) -> config::Admin {
        config::Admin {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            is_explicit: true,
            token: token.map(str::to_owned),
            hosts: Vec::new(),
        }
    }

    async fn answer(
        view: &Rc<Fixed>,
        token: Option<&str>,
        request: request::Builder,
    ) -> Response<Full<Bytes>> {
        let door = AdminService::new(Rc::clone(view) as Rc<dyn View>, Gate::new(&config(token)));
        let connections = Rc::<AdminConnections>::default();
        let connection = connections.begin(Ipv4Addr::LOCALHOST.into());
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let answered = async { door.answer(request, &connection).await };
        LocalSet::new().run_until(answered).await
    }

    async fn ask(
        view: &Rc<Fixed>,
        method: &str,
        path: &str,
        headers: &[(http::HeaderName, &str)],
    ) -> Response<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(HOST, "127.0.0.1:9900");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        answer(view, None, request).await
    }

    async fn order(text: &str) -> Option<AdminCommand> {
        let view = Rc::<Fixed>::default();
        let (method, path) = text.split_once(' ').unwrap();
        let status = ask(&view, method, path, &[]).await.status();
        let order = view.last_order.take();
        assert_eq!(status == 200, order.is_some(), "{text}: {status}");
        order
    }

    #[tokio::test]
    async fn orders_are_read_off_the_wire() {
        assert_eq!(order("POST /api/reload").await, Some(AdminCommand::Reload));
        assert_eq!(order("GET /api/reload").await, None);
        let what = Drainable::Backend {
            upstream: "app".to_owned(),
            address: "[::1]:3001".to_owned(),
        };
        let query = "/api/drain?upstream=app&backend=%5B::1%5D:3001";
        for (method, is_out) in [("POST", true), ("DELETE", false)] {
            let what = what.clone();
            let expected = Some(AdminCommand::Drain { what, is_out });
            assert_eq!(order(&format!("{method} {query}")).await, expected);
        }
        let what = Drainable::Route("*.example.org/chat/*".to_owned());
        let expected = Some(AdminCommand::Drain { what, is_out: true });
        assert_eq!(
            order("POST /api/drain?route=*.example.org/chat/*").await,
            expected
        );
        assert_eq!(order("POST /api/drain?upstream=app").await, None);
        assert_eq!(order("POST /api/drain").await, None);
    }

    #[tokio::test]
    async fn no_page_in_a_browser_gives_orders() {
        let view = Rc::<Fixed>::default();
        let site = http::HeaderName::from_static("sec-fetch-site");
        for header in [
            (ORIGIN, "http://evil.example"),
            (site.clone(), "cross-site"),
            (site, "same-site"),
            (HOST, "evil.example"),
        ] {
            let answer = ask(&view, "POST", "/api/reload", std::slice::from_ref(&header)).await;
            assert!(answer.status().is_client_error(), "{header:?}");
            assert_eq!(view.last_order.take(), None, "{header:?}");
        }
    }

    #[tokio::test]
    async fn names_of_strangers_see_nothing_but_the_probes() {
        let view = Rc::<Fixed>::default();
        for (path, status) in [
            ("/healthz", 200),
            ("/readyz", 200),
            ("/", 403),
            ("/metrics", 403),
            ("/api/status", 403),
            ("/nothing", 403),
        ] {
            let request = Request::get(path).header(HOST, "evil.example:9900");
            let answer = answer(&view, None, request).await;
            assert_eq!(answer.status().as_u16(), status, "{path}");
        }
    }

    #[tokio::test]
    async fn each_page_is_served_with_its_type() {
        let view = Rc::<Fixed>::default();
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
            let answer = ask(&view, "GET", path, &[]).await;
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

    #[tokio::test]
    async fn readiness_is_200_only_while_new_work_is_taken() {
        let none = |names: &[&str]| {
            Readiness::NoBackend(names.iter().map(|name| (*name).to_owned()).collect())
        };
        let view = Rc::<Fixed>::default();
        for (readiness, status, said) in [
            (Readiness::Ready, 200, "ready\n"),
            (Readiness::Draining, 503, "draining\n"),
            (none(&["app"]), 503, "upstream app has no fit backend\n"),
            (
                none(&["app", "chat"]),
                503,
                "upstreams app, chat have no fit backend\n",
            ),
        ] {
            view.readiness.replace(readiness);
            let answer = ask(&view, "GET", "/readyz", &[]).await;
            assert_eq!(answer.status().as_u16(), status);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, said);
            assert_eq!(ask(&view, "GET", "/healthz", &[]).await.status(), 200);
        }
    }

    #[tokio::test]
    async fn other_methods_are_told_which_are_allowed() {
        let view = Rc::<Fixed>::default();
        let answer = ask(&view, "POST", "/metrics", &[]).await;
        assert_eq!(answer.status(), 405);
        assert_eq!(answer.headers()[ALLOW], "GET, HEAD");
        assert_eq!(ask(&view, "POST", "/nothing", &[]).await.status(), 404);
        assert_eq!(ask(&view, "HEAD", "/metrics", &[]).await.status(), 200);
    }

    #[tokio::test]
    async fn a_token_guards_everything_but_the_probes() {
        let view = Rc::<Fixed>::default();
        for (path, authorization, status) in [
            ("/healthz", None, 200),
            ("/readyz", Some("Bearer wrong"), 200),
            ("/metrics", None, 401),
            ("/", None, 401),
            ("/nothing", None, 401),
            ("/metrics", Some("Bearer s3cret"), 200),
            ("/nothing", Some("Bearer s3cret"), 404),
            ("/metrics", Some("Bearer wrong"), 401),
        ] {
            let mut request = Request::get(path).header(HOST, "lb1.example");
            if let Some(value) = authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let answer = answer(&view, Some("s3cret"), request).await;
            assert_eq!(answer.status().as_u16(), status, "{path} {authorization:?}");
            let challenge = answer.headers().get(WWW_AUTHENTICATE);
            assert_eq!(
                challenge.is_some_and(|value| value == "Bearer"),
                status == 401
            );
        }
    }

    /// Serves while `story` runs, then drops the server.
    async fn with_server<T>(
        view: Fixed,
        token: Option<&str>,
        story: impl AsyncFnOnce(SocketAddr) -> T,
    ) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve(listener, Rc::new(view), config(token));
        LocalSet::new()
            .run_until(async move {
                tokio::select! {
                    () = server => unreachable!("it serves until it is dropped"),
                    out = story(address) => out,
                }
            })
            .await
    }

    async fn connect(address: SocketAddr, sent: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        stream
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = connect(address, request).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Until the server has closed it, which it must have within the deadline of the test.
    async fn closed(stream: &mut TcpStream) {
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open");
    }

    const PROBE: &str = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";

    #[tokio::test]
    async fn one_request_is_answered_and_the_connection_closed() {
        with_server(Fixed::default(), None, async |address| {
            let answer = exchange(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
            let head = "HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let head = exchange(address, head).await;
            assert!(
                head.contains("\r\ncontent-length: 6\r\n") && head.ends_with("\r\n\r\n"),
                "{head}"
            );
        })
        .await;
    }

    #[tokio::test]
    async fn nonsense_and_long_heads_are_refused_and_the_next_is_served() {
        with_server(Fixed::default(), None, async |address| {
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
    async fn probes_are_answered_whatever_else_is_open() {
        with_server(Fixed::default(), None, async |address| {
            let mut idle = Vec::new();
            for n in 0..300 {
                idle.push(connect(address, "GET /readyz HT").await);
                if n % 10 == 0 {
                    let answer = timeout(Duration::from_secs(2), exchange(address, PROBE)).await;
                    assert!(answer.unwrap().contains("200 OK"), "beside {n}");
                }
            }
            // The first have made room, and the last are cut when their time is over.
            closed(&mut idle[0]).await;
            closed(&mut idle[299]).await;
        })
        .await;
    }

    #[tokio::test]
    async fn readers_that_stop_make_room_for_the_next_page_and_not_for_a_probe() {
        // More than the sockets of both sides take.
        let view = Fixed {
            page: "x".repeat(32 << 20),
            ..Fixed::default()
        };
        let page = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        with_server(view, None, async |address| {
            let mut stuck = Vec::new();
            for _ in 0..8 {
                let mut stream = connect(address, page).await;
                stream.read_u8().await.unwrap();
                stuck.push(stream);
            }
            assert!(exchange(address, PROBE).await.contains("200 OK"));
            let whole = timeout(Duration::from_secs(20), exchange(address, page)).await;
            assert!(whole.unwrap().len() > 32 << 20);
            let mut rest = Vec::new();
            let cut = stuck[0].read_to_end(&mut rest).await;
            assert!(cut.is_err() || rest.len() < 32 << 20, "it was cut");
        })
        .await;
    }

    #[tokio::test]
    async fn an_order_is_carried_out_even_where_nobody_waits_and_too_many_are_refused() {
        let gate = Rc::<Notify>::default();
        let n_done = Rc::<Cell<usize>>::default();
        let view = Fixed {
            gate: Some(Rc::clone(&gate)),
            n_done: Rc::clone(&n_done),
            ..Fixed::default()
        };
        let reload = "POST /api/reload HTTP/1.1\r\nHost: localhost\r\n\r\n";
        with_server(view, None, async |address| {
            for _ in 0..MAX_ORDERS {
                // It has begun once a later request is answered.
                let stream = connect(address, reload).await;
                exchange(address, PROBE).await;
                drop(stream);
            }
            let refused = exchange(address, reload).await;
            assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
            for n in 1..=MAX_ORDERS {
                gate.notify_one();
                while n_done.get() < n {
                    yield_now().await;
                }
            }
            let mut last = pin!(exchange(address, reload));
            assert!(poll!(&mut last).is_pending());
            gate.notify_one();
            assert!(last.await.starts_with("HTTP/1.1 200"));
        })
        .await;
    }

    #[tokio::test]
    async fn the_status_command_reads_what_the_server_says() {
        with_server(Fixed::default(), Some("s3cret"), async |address| {
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
        let mut stream = with_server(Fixed::default(), None, async |address| {
            let stream = TcpStream::connect(address).await.unwrap();
            // Accepted, once a later connection has been answered.
            exchange(address, PROBE).await;
            stream
        })
        .await;
        closed(&mut stream).await;
    }
}
