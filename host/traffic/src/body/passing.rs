//! The bodies of a plain request and of its answer on their way through: the idle timeouts of both, and who
//! broke one off.
//!
//! Trailers end a body and go no further, either way: who merges them into a head would believe what nobody has
//! checked (RFC 9110 section 6.5.1).
//!
//! An idle timeout runs only while the other side waits for more. A client that does not read its answer is a
//! matter of its socket.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{Request, Response, StatusCode, Version, request};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use pointsman_contract::session::Ender;
use pointsman_protocol::handshake;
use tokio::time::{Instant, Sleep, sleep};

use super::{Body, BoxError};
use crate::interim::InterimAnswers;

/// The state that the two bodies of one exchange share. One thread uses it; it is made of atomics because the
/// HTTP library wants bodies that can move to another.
#[derive(Debug)]
pub struct Passing {
    begun: Instant,
    /// When the last piece of the request's body came, in microseconds from `begun`.
    last_came_us: AtomicU64,
    /// The other side waits for more of the request's body.
    is_client_awaited: AtomicBool,
    /// The client waits for the other side's 100 (Continue) before it sends its body.
    expects_continue: AtomicBool,
    /// When that came, in microseconds from `begun`.
    continued_us: AtomicU64,
    /// The request's body ran into its idle timeout.
    is_body_late: AtomicBool,
    /// The request's body is at its end, or there is none.
    is_request_whole: AtomicBool,
    /// The request is a backend's to answer, and to ask for its body (100).
    is_relayed: AtomicBool,
    /// The request's body was given up while the other side waited for more of it.
    is_half_sent: AtomicBool,
    /// The answer's body has begun and is not at its end.
    is_answering: AtomicBool,
    /// Who was the first to end a body early.
    aborted_by: OnceLock<Ender>,
    /// What the backend says before its answer.
    interim: InterimAnswers,
    /// Of the task that serves the client's connection.
    client: Waker,
}

/// Called once, when an answer breaks off: by whom, and why.
pub trait OnAbort: FnOnce(Ender, &str) + Send + Unpin + 'static {}
impl<F: FnOnce(Ender, &str) + Send + Unpin + 'static> OnAbort for F {}

impl Passing {
    /// Of an exchange whose request's head came at `begun`. `client`: wakes the task that serves its connection.
    pub fn new(begun: Instant, client: Waker) -> Self {
        Self {
            begun,
            client,
            last_came_us: AtomicU64::new(0),
            is_client_awaited: AtomicBool::new(false),
            expects_continue: AtomicBool::new(false),
            continued_us: AtomicU64::new(0),
            is_body_late: AtomicBool::new(false),
            is_request_whole: AtomicBool::new(false),
            is_relayed: AtomicBool::new(false),
            interim: InterimAnswers::default(),
            is_half_sent: AtomicBool::new(false),
            is_answering: AtomicBool::new(false),
            aborted_by: OnceLock::new(),
        }
    }

    /// Who ended a body early, if one has ended so.
    pub fn aborted_by(&self) -> Option<Ender> {
        self.aborted_by.get().copied()
    }

    /// Whether the request's body ran into its idle timeout.
    pub fn is_body_late(&self) -> bool {
        self.is_body_late.load(Relaxed)
    }

    /// Whether all of the request has come and gone on to whoever answers it.
    pub fn is_request_whole(&self) -> bool {
        self.is_request_whole.load(Relaxed)
    }

    /// Whether a backend says by its own 100 (Continue) that it wants the request's body.
    pub fn is_relayed(&self) -> bool {
        self.is_relayed.load(Relaxed)
    }

    /// What the backend has said so far before its answer.
    pub fn interim(&self) -> &InterimAnswers {
        &self.interim
    }

    /// Leaves a request to backends: what one says before its answer is passed on, but to clients of HTTP/1.0, who
    /// know no interim answers (RFC 9110 section 15.2).
    pub fn relay(self: &Arc<Self>, head: request::Parts) -> request::Parts {
        self.is_relayed.store(true, Relaxed);
        if head.version < Version::HTTP_11 {
            return head;
        }
        let expects = handshake::has_token(&head.headers, EXPECT, "100-continue");
        self.expects_continue.store(expects, Relaxed);
        let mut request = Request::from_parts(head, ());
        let passing = Arc::clone(self);
        hyper::ext::on_informational(&mut request, move |answer| {
            if answer.status() == StatusCode::CONTINUE {
                passing.continues();
            }
            passing.interim.push(answer.status(), answer.headers());
            passing.client.wake_by_ref();
        });
        request.into_parts().0
    }

    /// Whether the other side waits for more of the request's body, or did so until it gave up.
    pub fn is_client_owing(&self) -> bool {
        self.is_client_awaited.load(Relaxed) || self.is_half_sent.load(Relaxed)
    }

    /// Whether the answer's body has begun and is not at its end.
    pub fn is_answering(&self) -> bool {
        self.is_answering.load(Relaxed)
    }

    /// Until when the other side could not go on because the client had not sent its body: now, if the rest
    /// is still awaited.
    pub fn client_held_up_until(&self) -> Instant {
        match self.is_client_awaited.load(Relaxed) {
            true => Instant::now(),
            false => self.begun + Duration::from_micros(self.last_came_us.load(Relaxed)),
        }
    }

    /// Notes who ends a body early; the first one counts.
    pub fn abort(&self, by: Ender) {
        self.aborted_by.get_or_init(|| by);
    }

    /// A request's body. `timeout`: the longest silence of its client.
    pub fn request(self: &Arc<Self>, body: Incoming, timeout: Duration) -> RequestBody {
        self.is_request_whole.store(body.is_end_stream(), Relaxed);
        RequestBody {
            body,
            idle: IdleTimeout::new(timeout),
            passing: Arc::clone(self),
        }
    }

    /// An answer's body. `from`: who sends it; `timeout`: the longest silence of that one, unless it has a
    /// bound of its own.
    pub fn answer(
        self: &Arc<Self>,
        answer: Response<Body>,
        from: Ender,
        timeout: Option<Duration>,
        on_abort: impl OnAbort,
    ) -> Response<Body> {
        let length = answer.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        answer.map(|body| {
            let answer = AnswerBody {
                body,
                from,
                idle: timeout.map(IdleTimeout::new),
                left: length,
                on_abort: Some(on_abort),
                passing: Arc::clone(self),
            };
            answer.boxed_unsync()
        })
    }

    /// The request's body is at its end. From now on, that the client leaves is to be found without reading.
    fn request_ends(&self) {
        self.is_request_whole.store(true, Relaxed);
        self.client.wake_by_ref();
    }

    fn came(&self) {
        self.expects_continue.store(false, Relaxed);
        self.last_came_us.store(self.us(), Relaxed);
    }

    /// The other side wants the body: now it is its client's turn.
    fn continues(&self) {
        if self.expects_continue.swap(false, Relaxed) {
            self.continued_us.store(self.us(), Relaxed);
            self.is_client_awaited.store(true, Relaxed);
        }
    }

    /// Until when a client that sends nothing of its body did so for its backend's sake.
    fn client_waited_until(&self) -> Instant {
        match self.expects_continue.load(Relaxed) {
            true => Instant::now(),
            false => self.begun + Duration::from_micros(self.continued_us.load(Relaxed)),
        }
    }

    /// Since `begun`.
    fn us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// How long one side may be silent.
struct IdleTimeout {
    timeout: Duration,
    /// None while nothing is awaited.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl IdleTimeout {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            alarm: None,
        }
    }

    /// Ready when nothing has come for too long. The time does not begin before `held_up_until`.
    fn poll(&mut self, cx: &mut Context<'_>, held_up_until: impl Fn() -> Instant) -> Poll<()> {
        let timeout = self.timeout;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(timeout)));
        while alarm.as_mut().poll(cx).is_ready() {
            let deadline = held_up_until() + timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn came(&mut self) {
        self.alarm = None;
    }
}

/// They are the last of a body.
fn is_trailers<E>(frame: &Result<Frame<Bytes>, E>) -> bool {
    frame.as_ref().is_ok_and(Frame::is_trailers)
}

/// A request's body on its way from the client.
pub struct RequestBody {
    body: Incoming,
    idle: IdleTimeout,
    passing: Arc<Passing>,
}

impl RequestBody {
    /// Changes how long its client may be silent.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.idle = IdleTimeout::new(timeout);
        self
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody")
            .field("passing", &self.passing)
            .finish_non_exhaustive()
    }
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        let is_awaited = &this.passing.is_client_awaited;
        let expects_continue = this.passing.expects_continue.load(Relaxed);
        is_awaited.store(polled.is_pending() && !expects_continue, Relaxed);
        if let Poll::Ready(frame) = polled {
            this.idle.came();
            this.passing.came();
            let frame = frame.filter(|frame| !is_trailers(frame));
            match &frame {
                Some(Err(_)) => this.passing.abort(Ender::Client),
                None => this.passing.request_ends(),
                Some(Ok(_)) if this.body.is_end_stream() => this.passing.request_ends(),
                Some(Ok(_)) => {}
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let waited_until = || this.passing.client_waited_until();
        if this.idle.poll(cx, waited_until).is_pending() {
            return Poll::Pending;
        }
        is_awaited.store(false, Relaxed);
        this.passing.is_body_late.store(true, Relaxed);
        this.passing.abort(Ender::Client);
        Poll::Ready(Some(Err("timeout of the request's body".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let was_awaited = self.passing.is_client_awaited.swap(false, Relaxed);
        self.passing.is_half_sent.store(was_awaited, Relaxed);
    }
}

struct AnswerBody<F: OnAbort> {
    body: Body,
    from: Ender,
    idle: Option<IdleTimeout>,
    /// Of its Content-Length: the library reads no further than that, not to the end of the body.
    left: Option<u64>,
    /// None once the end is known, good or bad.
    on_abort: Option<F>,
    passing: Arc<Passing>,
}

impl<F: OnAbort> AnswerBody<F> {
    fn abort(&mut self, by: Ender, reason: &str) {
        if let Some(on_abort) = self.on_abort.take() {
            self.passing.abort(by);
            on_abort(by, reason);
        }
    }

    /// A piece has come, or the end.
    fn came(&mut self, frame: Option<&Frame<Bytes>>) {
        if let Some(idle) = &mut self.idle {
            idle.came();
        }
        let n = frame.and_then(Frame::data_ref).map_or(0, Bytes::len);
        let left = self.left.as_mut();
        let is_all = left.is_some_and(|left| {
            *left = left.saturating_sub(n as u64);
            *left == 0
        });
        if frame.is_none() || is_all || self.body.is_end_stream() {
            self.on_abort = None;
            self.passing.is_answering.store(false, Relaxed);
        }
    }
}

impl<F: OnAbort> hyper::body::Body for AnswerBody<F> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.on_abort.is_some() {
            this.passing.is_answering.store(true, Relaxed);
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                // The request's body may have broken off first.
                let by = this.passing.aborted_by().unwrap_or(this.from);
                this.abort(by, &error.to_string());
                return Poll::Ready(Some(Err(error)));
            }
            Poll::Ready(frame) => {
                let frame = frame.filter(|frame| !is_trailers(frame));
                this.came(frame.as_ref().and_then(|frame| frame.as_ref().ok()));
                return Poll::Ready(frame);
            }
            Poll::Pending => {}
        }
        let Some(idle) = &mut this.idle else {
            return Poll::Pending;
        };
        if idle
            .poll(cx, || this.passing.client_held_up_until())
            .is_pending()
        {
            return Poll::Pending;
        }
        let reason = "read timeout in the middle of the body";
        this.abort(this.from, reason);
        Poll::Ready(Some(Err(reason.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<F: OnAbort> Drop for AnswerBody<F> {
    /// Nobody reads it to its end. One that was never read from was not wanted, as after HEAD.
    fn drop(&mut self) {
        if self.on_abort.is_none() || !self.passing.is_answering() {
            return;
        }
        let by = self.passing.aborted_by().unwrap_or(Ender::Client);
        let reason = match by {
            Ender::Operator => "drain timeout",
            _ => "the client is gone, or did not read within the send timeout",
        };
        self.abort(by, reason);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;
    use tokio::time::advance;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    type Piece = Result<Frame<Bytes>, BoxError>;

    /// An answer whose pieces the test sends, and what is said of its end.
    struct TestAnswer {
        passing: Arc<Passing>,
        pieces: mpsc::UnboundedSender<Piece>,
        body: Body,
        said: Arc<Mutex<Vec<String>>>,
    }

    impl TestAnswer {
        fn begun() -> Self {
            Self::of_length(None)
        }

        fn of_length(length: Option<u64>) -> Self {
            let passing = Arc::new(Passing::new(Instant::now(), Waker::noop().clone()));
            let (pieces, mut sent) = mpsc::unbounded_channel();
            let body = StreamBody::new(stream::poll_fn(move |cx| sent.poll_recv(cx)));
            let said = Arc::<Mutex<Vec<String>>>::default();
            let told = Arc::clone(&said);
            let on_abort = move |by: Ender, reason: &str| {
                told.lock().unwrap().push(format!("{by:?}: {reason}"));
            };
            let mut answer = Response::new(body.boxed_unsync());
            if let Some(length) = length {
                answer.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
            let answer = passing.answer(answer, Ender::Backend, Some(MINUTE), on_abort);
            let body = answer.into_body();
            Self {
                passing,
                pieces,
                body,
                said,
            }
        }

        fn send(&self, text: &'static str) {
            let piece = Frame::data(Bytes::from_static(text.as_bytes()));
            self.pieces.send(Ok(piece)).unwrap();
        }

        /// What comes next: a piece, an error, the end, or nothing yet.
        fn next(&mut self) -> String {
            let cx = &mut Context::from_waker(Waker::noop());
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => "nothing yet".to_owned(),
                Poll::Ready(None) => "the end".to_owned(),
                Poll::Ready(Some(Err(error))) => format!("error: {error}"),
                Poll::Ready(Some(Ok(frame))) => {
                    String::from_utf8_lossy(frame.data_ref().unwrap()).into_owned()
                }
            }
        }

        fn said(&self) -> Vec<String> {
            self.said.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_go_on_for_ever_and_may_not_stop() {
        let mut answer = TestAnswer::begun();
        for _ in 0..10 {
            assert_eq!(answer.next(), "nothing yet");
            advance(MINUTE - Duration::from_secs(1)).await;
            answer.send("piece");
            assert_eq!(answer.next(), "piece");
        }
        // Nobody asks for more, so nobody waits for the sender.
        advance(3 * MINUTE).await;
        assert_eq!(answer.next(), "nothing yet");
        advance(MINUTE).await;
        assert_eq!(
            answer.next(),
            "error: read timeout in the middle of the body"
        );
        assert_eq!(
            answer.said(),
            ["Backend: read timeout in the middle of the body"]
        );
        assert_eq!(answer.passing.aborted_by(), Some(Ender::Backend));
        assert!(answer.passing.is_answering(), "it is not whole");
        drop(answer.body);
        assert_eq!(answer.said.lock().unwrap().len(), 1, "once is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_the_rest_of_its_request_as_long_as_that_comes() {
        const SECOND: Duration = Duration::from_secs(1);
        let mut answer = TestAnswer::begun();
        assert_eq!(answer.next(), "nothing yet");
        advance(MINUTE - SECOND).await;
        answer.passing.came();
        advance(MINUTE - SECOND).await;
        assert_eq!(answer.next(), "nothing yet", "a piece has come since");
        answer.passing.is_client_awaited.store(true, Relaxed);
        advance(MINUTE).await;
        assert_eq!(answer.next(), "nothing yet", "the client is awaited");
        answer.passing.came();
        answer.passing.is_client_awaited.store(false, Relaxed);
        advance(MINUTE - SECOND).await;
        assert_eq!(answer.next(), "nothing yet");
        advance(SECOND).await;
        assert_eq!(
            answer.next(),
            "error: read timeout in the middle of the body"
        );

        let mut answer = TestAnswer::begun();
        answer.passing.abort(Ender::Client);
        answer.pieces.send(Err("connection reset".into())).unwrap();
        assert_eq!(answer.next(), "error: connection reset");
        assert_eq!(answer.said(), ["Client: connection reset"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_to_its_end_is_the_clients_doing() {
        let mut whole = TestAnswer::begun();
        whole.send("piece");
        assert_eq!(whole.next(), "piece");
        let TestAnswer { pieces, .. } = &mut whole;
        drop(std::mem::replace(pieces, mpsc::unbounded_channel().0));
        assert_eq!(whole.next(), "the end");
        assert!(!whole.passing.is_answering());
        drop(whole.body);
        assert_eq!(*whole.said.lock().unwrap(), [""; 0]);

        let mut whole_by_length = TestAnswer::of_length(Some(5));
        whole_by_length.send("piece");
        assert_eq!(whole_by_length.next(), "piece");
        drop(whole_by_length.body);
        assert_eq!(*whole_by_length.said.lock().unwrap(), [""; 0]);

        let unread = TestAnswer::begun();
        drop(unread.body);
        assert_eq!(*unread.said.lock().unwrap(), [""; 0], "as for HEAD");

        let left = || {
            let mut left = TestAnswer::of_length(Some(6));
            left.send("piece");
            assert_eq!(left.next(), "piece");
            left
        };
        let of_client = left();
        drop(of_client.body);
        let expected = ["Client: the client is gone, or did not read within the send timeout"];
        assert_eq!(*of_client.said.lock().unwrap(), expected);

        let cut = left();
        cut.passing.abort(Ender::Operator);
        drop(cut.body);
        assert_eq!(*cut.said.lock().unwrap(), ["Operator: drain timeout"]);
    }
}
