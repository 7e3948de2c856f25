//! HTTP handlers that are guests: `wasi:http` 0.2, an instance for each request, bodies streamed both
//! ways.
//!
//! The guest runs as part of the future of its answer, and then of the answer's body: who drops them
//! stops it, and there is no task to lose. It may wait, for its client or for a time; it gives way at each tick; it
//! reaches no other server. An answer that it does not finish breaks off, so that no client takes it for whole.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{HOST, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::call::Call;
use super::failure::CallError;
use super::generation::Generation;
use super::guest::InstanceContext;
use super::host::PluginHost;
use super::host_api::HostState;
use super::limits::{monotonic_ns, thread_cpu_ns};
use super::stats::PluginStats;

/// What answers requests of one generation on one worker.
#[derive(Debug, Clone)]
pub struct GuestHttp {
    about: InstanceContext,
}

/// The body of a guest's answer; the guest runs on while this is read. What it would still do after
/// the end of its body is not waited for.
pub struct GuestBody {
    about: InstanceContext,
    body: HyperOutgoingBody,
    /// None when it has returned.
    guest: Option<RunningGuest>,
    patience: Patience,
}

type BoxedError = Box<dyn Error + Send + Sync>;
type GuestAnswer = Result<Response<HyperOutgoingBody>, ErrorCode>;

/// A guest at work, and how long it has been since it last sent something.
struct RunningGuest {
    about: InstanceContext,
    guest: Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>,
    ran_ns: u64,
}

/// How often it is looked what a guest holds, in ticks: that takes time by how much it is.
const TICKS_PER_LOOK: u32 = 16;

impl GuestHttp {
    pub(super) fn new(generation: &Arc<Generation>, host: &PluginHost) -> Self {
        let about = InstanceContext::new(generation, host);
        Self { about }
    }

    /// Answers one request, with the head of the answer in time. The guest's time does not run while the client
    /// sends the request's body, which has to have an idle timeout of its own.
    ///
    /// # Errors
    /// The guest failed, or gave no answer: the client gets a 502 or 504.
    ///
    /// # Cancel safety
    /// Dropping the future stops the guest.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Response<GuestBody>, CallError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxedError>,
    {
        let started_ns = monotonic_ns();
        let client = Arc::<BodyDemand>::default();
        let limits = self.about.limits.http;
        let mut patience = Patience::new(limits.head_timeout, &client);
        let request = with_host(request).map(|body| ClientBody {
            body: Box::pin(body),
            client,
        });
        let (answer, answered) = oneshot::channel();
        let mut guest = RunningGuest {
            about: self.about.clone(),
            guest: Box::pin(run(self.about.clone(), request, answer)),
            ran_ns: 0,
        };
        let head = head(&mut guest, answered, &mut patience).await;
        self.about
            .stats
            .record(Call::Http, monotonic_ns().saturating_sub(started_ns));

        let (response, is_over) = head.inspect_err(|error| failed(&self.about, error))?;
        patience.is_over(limits.idle_timeout);
        guest.ran_ns = 0;
        Ok(response.map(|body| GuestBody {
            about: self.about.clone(),
            body,
            guest: (!is_over).then_some(guest),
            patience,
        }))
    }
}

/// An error code that the guest answers with is no failure.
fn failed(about: &InstanceContext, error: &CallError) {
    if !matches!(error, CallError::Refused { .. }) {
        about.failed(Call::Http, error);
    }
}

/// Runs the guest until there is the head of an answer. True: and the guest has returned.
async fn head(
    guest: &mut RunningGuest,
    mut answered: oneshot::Receiver<GuestAnswer>,
    patience: &mut Patience,
) -> Result<(Response<HyperOutgoingBody>, bool), CallError> {
    let (answer, is_over) = tokio::select! {
        biased;
        ended = guest => {
            ended?;
            (answered.try_recv().ok(), true)
        }
        answer = &mut answered => (answer.ok(), false),
        error = poll_fn(|context| patience.poll(context, "no head of an answer")) => return Err(error),
    };
    match answer {
        Some(Ok(response)) if is_over => {
            let (head, body) = response.into_parts();
            Ok((Response::from_parts(head, whole(body).await?), true))
        }
        Some(Ok(response)) => Ok((response, false)),
        Some(Err(code)) => Err(CallError::Refused {
            call: Call::Http,
            reason: format!("{code:?}"),
        }),
        None => Err(CallError::Output {
            call: Call::Http,
            what: "no answer".to_owned(),
        }),
    }
}

/// The body of a guest that has returned. It is looked at before the head is sent, so that what is not
/// finished is no answer at all; nothing of it has to be waited for.
async fn whole(mut body: HyperOutgoingBody) -> Result<HyperOutgoingBody, CallError> {
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        frames.push(Ok(frame.map_err(|_| unfinished())?));
    }
    Ok(StreamBody::new(stream::iter(frames)).boxed_unsync())
}

fn unfinished() -> CallError {
    CallError::Output {
        call: Call::Http,
        what: "before its answer was finished".to_owned(),
    }
}

/// The whole life of one instance.
async fn run<B>(
    about: InstanceContext,
    request: Request<B>,
    answer: oneshot::Sender<GuestAnswer>,
) -> Result<(), CallError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxedError>,
{
    let mut store = about.store();
    let _alive = Alive(Arc::clone(&about.stats));
    store.data_mut().answers_http(&about.limits.http);
    let mut n_ticks = 0_u32;
    store.epoch_deadline_callback(move |mut store| {
        n_ticks = n_ticks.wrapping_add(1);
        if n_ticks.is_multiple_of(TICKS_PER_LOOK) {
            store.data_mut().check_resources()?;
        }
        Ok(UpdateDeadline::Yield(1))
    });
    store.set_epoch_deadline(1);
    call(&about, &mut store, request, answer)
        .await
        .map_err(|error| {
            let was_refused_memory = store.data_mut().memory.take_refused();
            CallError::classify(Call::Http, &error, &about.limits, was_refused_memory)
        })
}

async fn call<B>(
    about: &InstanceContext,
    store: &mut Store<HostState>,
    request: Request<B>,
    answer: oneshot::Sender<GuestAnswer>,
) -> wasmtime::Result<()>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxedError>,
{
    let Some(pre) = &about.generation.code.http else {
        return Err(wasmtime::Error::msg(
            "it exports no wasi:http/incoming-handler",
        ));
    };
    let proxy = pre.instantiate_async(&mut *store).await?;
    let request = request.map(|body| {
        body.map_err(|error| {
            wasmtime_wasi_http::Error::InternalError(Some(error.into().to_string()))
        })
    });
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(Scheme::Http, request)?;
    let out = http.new_response_outparam(answer)?;
    proxy
        .wasi_http_incoming_handler()
        .call_handle(&mut *store, request, out)
        .await?;
    store.data_mut().abort_bodies();
    Ok(())
}

/// `wasi:http` cannot say that a request names no host, which HTTP/1.0 allows.
fn with_host<B>(mut request: Request<B>) -> Request<B> {
    let is_text = |host: &HeaderValue| host.to_str().is_ok();
    if request.uri().authority().is_none() && !request.headers().get(HOST).is_some_and(is_text) {
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("localhost"));
    }
    request
}

impl Future for RunningGuest {
    type Output = Result<(), CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let before = thread_cpu_ns();
        let polled = {
            let Self { about, guest, .. } = &mut *self;
            let _running = about.enter();
            guest.as_mut().poll(context)
        };
        self.ran_ns += thread_cpu_ns().saturating_sub(before);
        polled
    }
}

impl GuestBody {
    /// What the guest's failure means for the body: it breaks off.
    fn poll_guest(&mut self, context: &mut Context<'_>) -> Result<(), CallError> {
        let timeout = self.about.limits.http.head_timeout;
        let Some(guest) = &mut self.guest else {
            return Ok(());
        };
        match Pin::new(&mut *guest).poll(context) {
            Poll::Ready(ended) => {
                self.guest = None;
                ended
            }
            // One that spins is not silent for others on its worker.
            Poll::Pending if u128::from(guest.ran_ns) > timeout.as_nanos() => {
                let call = Call::Http;
                Err(CallError::Timeout { call, timeout })
            }
            Poll::Pending => Ok(()),
        }
    }

    /// Something has come.
    fn sent(&mut self) {
        self.patience.is_over(self.about.limits.http.idle_timeout);
        if let Some(guest) = &mut self.guest {
            guest.ran_ns = 0;
        }
    }

    fn break_off(&mut self, error: CallError) -> Poll<Option<Result<Frame<Bytes>, BoxedError>>> {
        self.guest = None;
        failed(&self.about, &error);
        Poll::Ready(Some(Err(error.into())))
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = BoxedError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxedError>>> {
        if let Err(error) = self.poll_guest(context) {
            return self.break_off(error);
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.data_ref().is_none_or(|data| !data.is_empty()) {
                    self.sent();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => self.break_off(unfinished()),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let error = ready!(self.patience.poll(context, "no more of its answer"));
                self.break_off(error)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for GuestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestBody")
            .field("plugin", &self.about.generation.name)
            .field("is_over", &self.guest.is_none())
            .finish_non_exhaustive()
    }
}

/// How long a guest may stay silent. It is not its doing when it waits for its client.
struct Patience {
    timeout: Duration,
    client: Arc<BodyDemand>,
    /// None while nothing is waited for.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// What the client of a request does about its body.
#[derive(Debug, Default)]
struct BodyDemand {
    /// The guest waits for more of it.
    is_awaited: AtomicBool,
    /// More has come since this was last looked at.
    has_sent: AtomicBool,
}

impl BodyDemand {
    /// Whether the guest is, or was since the last call, held up by the client.
    fn holds_up(&self) -> bool {
        self.has_sent.swap(false, Ordering::Relaxed) || self.is_awaited.load(Ordering::Relaxed)
    }
}

impl Patience {
    fn new(timeout: Duration, client: &Arc<BodyDemand>) -> Self {
        Self {
            timeout,
            client: Arc::clone(client),
            alarm: None,
        }
    }

    /// Something has come. For what comes next there is so much time.
    fn is_over(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.alarm = None;
    }

    /// Ready when it is at an end, without what was waited for.
    fn poll(&mut self, context: &mut Context<'_>, what: &'static str) -> Poll<CallError> {
        let timeout = self.timeout;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(timeout)));
        loop {
            ready!(alarm.as_mut().poll(context));
            if !self.client.holds_up() {
                return Poll::Ready(CallError::Silent { what, timeout });
            }
            alarm.as_mut().reset(Instant::now() + timeout);
        }
    }
}

/// A request's body that says when the guest waits for it.
struct ClientBody<B> {
    body: Pin<Box<B>>,
    client: Arc<BodyDemand>,
}

impl<B: Body> Body for ClientBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = self.body.as_mut().poll_frame(context);
        let is_awaited = polled.is_pending();
        self.client.is_awaited.store(is_awaited, Ordering::Relaxed);
        if !is_awaited {
            self.client.has_sent.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for ClientBody<B> {
    fn drop(&mut self) {
        self.client.is_awaited.store(false, Ordering::Relaxed);
    }
}

/// Counts an instance until it is dropped.
struct Alive(Arc<PluginStats>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.instance_gone();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;
    use crate::guests;

    #[tokio::test]
    async fn the_shipped_hello_answers() {
        let generation = guests::shipped("hello");
        assert_eq!(generation.trial_http(), Ok(()));
        let host = guests::host();
        let hello = generation.http(&host);
        for host_header in [None, Some("example.org")] {
            let mut request = Request::builder().uri("/hello");
            if let Some(host) = host_header {
                request = request.header("host", host);
            }
            let response = hello
                .handle(request.body(Empty::<Bytes>::new()).unwrap())
                .await
                .unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, r#"{"hello":"world"}"#);
        }
        let sum = crate::stats::sum([&*host.stats(&generation.name)].into_iter());
        assert_eq!((sum.n_instances, sum.calls[0].1.n_calls), (0, 2));
    }
}
