//! HTTP handlers that are guests: `wasi:http` 0.2, an instance for each request, bodies streamed both
//! ways.
//!
//! The guest runs as part of the future of its answer, and then of the answer's body: who drops them
//! stops it, and there is no task to lose. It may wait for its client; it gives way at each tick; it
//! reaches no other server.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::failure::CallError;
use super::generation::Generation;
use super::guest::About;
use super::host::PluginHost;
use super::host_api::HostState;
use super::limits::monotonic_ns;
use super::stats::{Call, PluginStats};

/// What answers requests of one generation on one worker.
#[derive(Debug, Clone)]
pub struct GuestHttp {
    about: About,
}

/// The body of a guest's answer; the guest runs on while this is read. What it would still do after
/// the end of its body is not waited for.
pub struct GuestBody {
    about: About,
    body: HyperOutgoingBody,
    /// None when it has returned.
    guest: Option<RunningGuest>,
    patience: Patience,
}

type BoxError = Box<dyn Error + Send + Sync>;
type Answer = Result<Response<HyperOutgoingBody>, ErrorCode>;
type RunningGuest = Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>;

impl GuestHttp {
    pub(super) fn new(generation: &Arc<Generation>, host: &PluginHost) -> Self {
        let about = About::new(generation, host);
        Self { about }
    }

    /// Answers one request. For the head of the answer the guest has 30 times the call timeout, and
    /// at least a second.
    ///
    /// # Errors
    /// The guest failed, or gave no answer: the client gets a 502 or 504.
    ///
    /// # Cancel safety
    /// Dropping the future stops the guest.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Response<GuestBody>, CallError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let started_ns = monotonic_ns();
        let is_client_awaited = Arc::new(AtomicBool::new(false));
        let mut patience = Patience::new(self.about.limits.http_timeout(), &is_client_awaited);
        let request = with_host(request).map(|body| ClientBody {
            body: Box::pin(body),
            is_awaited: is_client_awaited,
        });
        let (answer, answered) = oneshot::channel();
        let mut guest: RunningGuest = Box::pin(run(self.about.clone(), request, answer));
        let head = head(&mut guest, answered, &mut patience).await;
        self.about
            .stats
            .record(Call::Http, monotonic_ns().saturating_sub(started_ns));

        let (response, is_over) = head.inspect_err(|error| failed(&self.about, error))?;
        patience.rest();
        Ok(response.map(|body| GuestBody {
            about: self.about.clone(),
            body,
            guest: (!is_over).then_some(guest),
            patience,
        }))
    }
}

/// An error code that the guest answers with, and a client that is slow, are no failures.
fn failed(about: &About, error: &CallError) {
    if !matches!(error, CallError::Refused { .. }) {
        about.failed(Call::Http, error);
    }
}

/// Runs the guest until there is the head of an answer. True: and the guest has returned.
async fn head(
    guest: &mut RunningGuest,
    mut answered: oneshot::Receiver<Answer>,
    patience: &mut Patience,
) -> Result<(Response<HyperOutgoingBody>, bool), CallError> {
    let (answer, is_over) = tokio::select! {
        biased;
        ended = guest => {
            ended?;
            (answered.try_recv().ok(), true)
        }
        answer = &mut answered => (answer.ok(), false),
        error = poll_fn(|context| patience.poll(context)) => return Err(error),
    };
    match answer {
        Some(Ok(response)) => Ok((response, is_over)),
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

/// The whole life of one instance.
async fn run<B>(
    about: About,
    request: Request<B>,
    answer: oneshot::Sender<Answer>,
) -> Result<(), CallError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut store = about.store();
    let _alive = Alive(Arc::clone(&about.stats));
    let _resumable = about.generation.code.engines.resumable();
    store.epoch_deadline_async_yield_and_update(1);
    store.set_epoch_deadline(1);
    call(&about, &mut store, request, answer)
        .await
        .map_err(|error| {
            let was_refused_memory = store.data_mut().memory.take_refused();
            CallError::classify(Call::Http, &error, &about.limits, was_refused_memory)
        })
}

async fn call<B>(
    about: &About,
    store: &mut Store<HostState>,
    request: Request<B>,
    answer: oneshot::Sender<Answer>,
) -> wasmtime::Result<()>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
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
        .call_handle(store, request, out)
        .await
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

impl GuestBody {
    /// What the guest's failure means for the body: it breaks off.
    fn poll_guest(&mut self, context: &mut Context<'_>) -> Result<(), CallError> {
        let Some(guest) = &mut self.guest else {
            return Ok(());
        };
        let Poll::Ready(ended) = guest.as_mut().poll(context) else {
            return Ok(());
        };
        self.guest = None;
        ended
    }

    fn break_off(&mut self, error: CallError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.guest = None;
        failed(&self.about, &error);
        Poll::Ready(Some(Err(error.into())))
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Err(error) = self.poll_guest(context) {
            return self.break_off(error);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.patience.rest();
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| format!("{error:?}").into())),
            );
        }
        let error = ready!(self.patience.poll(context));
        self.break_off(error)
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

/// How long a guest may stay silent. It is not its doing when it waits for its client, so that is
/// given many times as long.
struct Patience {
    timeout: Duration,
    is_client_awaited: Arc<AtomicBool>,
    /// None while nothing is waited for.
    alarm: Option<Pin<Box<Sleep>>>,
    n_left_for_client: u32,
}

impl Patience {
    /// Timeouts that a client may take for its body.
    const FOR_CLIENT: u32 = 60;

    fn new(timeout: Duration, is_client_awaited: &Arc<AtomicBool>) -> Self {
        Self {
            timeout,
            is_client_awaited: Arc::clone(is_client_awaited),
            alarm: None,
            n_left_for_client: Self::FOR_CLIENT,
        }
    }

    /// Something has come.
    fn rest(&mut self) {
        self.alarm = None;
        self.n_left_for_client = Self::FOR_CLIENT;
    }

    /// Ready when it is at an end.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<CallError> {
        let timeout = self.timeout;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(timeout)));
        loop {
            ready!(alarm.as_mut().poll(context));
            if !self.is_client_awaited.load(Ordering::Relaxed) {
                return Poll::Ready(CallError::Timeout {
                    call: Call::Http,
                    timeout,
                });
            }
            if self.n_left_for_client == 0 {
                let reason = "the client's body did not come".to_owned();
                return Poll::Ready(CallError::Refused {
                    call: Call::Http,
                    reason,
                });
            }
            self.n_left_for_client -= 1;
            alarm.as_mut().reset(Instant::now() + timeout);
        }
    }
}

/// A request's body that says when the guest waits for it.
struct ClientBody<B> {
    body: Pin<Box<B>>,
    is_awaited: Arc<AtomicBool>,
}

impl<B: Body> Body for ClientBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = self.body.as_mut().poll_frame(context);
        self.is_awaited
            .store(polled.is_pending(), Ordering::Relaxed);
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
        self.is_awaited.store(false, Ordering::Relaxed);
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
    use crate::plugins::guests;

    #[tokio::test]
    async fn the_shipped_hello_answers() {
        let Some(generation) = guests::shipped("hello") else {
            return;
        };
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
        let sum = crate::plugins::stats::sum([&*host.stats(&generation.name)].into_iter());
        assert_eq!((sum.n_instances, sum.calls[0].1.n_calls), (0, 2));
    }
}
