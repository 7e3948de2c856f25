//! How HTTP/1.1 is spoken to clients, whatever serves their requests, and how long a client may take for a head.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use pointsman_config::Listener;
use tokio::time::{self, Instant};

/// Most header fields of a request (RFC 6585 section 5 answers more with a 431).
const MAX_HEADERS: usize = 100;
/// How much of a body that the client does not read waits to be sent.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// The settings of one connection, which says by `clock` what comes of it.
pub fn server(limits: &Listener, clock: &Arc<HeadClock>) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(HeadTimer(Arc::clone(clock)))
        .header_read_timeout(limits.handshake_timeout)
        .max_header_size(limits.max_request_header_bytes)
        .max_headers(MAX_HEADERS)
        .max_buf_size(limits.max_request_header_bytes.max(MAX_BUFFER_BYTES))
        // That a client has left is found elsewhere: it may have ended only its half (RFC 9112 section 9.6).
        .half_close(true)
        .preserve_header_case(true)
        .title_case_headers(true);
    builder
}

/// Tells the time between two requests from that of a head. The HTTP library has one timeout for both, which begins
/// when it begins to read; one thread uses this, and it is made of atomics because the library wants timers that
/// can move to another.
#[derive(Debug)]
pub struct HeadClock {
    /// From the first byte of a head to its end; for the first head, from the accepted connection.
    head_timeout: Duration,
    /// Between two requests.
    keep_alive_timeout: Duration,
    /// How often something has come.
    n_read: AtomicU64,
    /// The first head has been waited for.
    is_kept: AtomicBool,
}

impl HeadClock {
    /// Of a new connection.
    pub fn new(limits: &Listener) -> Arc<Self> {
        Arc::new(Self {
            head_timeout: limits.handshake_timeout,
            keep_alive_timeout: limits.keep_alive_timeout,
            n_read: AtomicU64::new(0),
            is_kept: AtomicBool::new(false),
        })
    }

    /// Something has come from the client.
    pub fn read(&self) {
        self.n_read.store(self.n_read.load(Relaxed) + 1, Relaxed);
    }
}

/// The library's timer: it asks for nothing but the time of each head.
struct HeadTimer(Arc<HeadClock>);

/// Ready when a head has not come in time.
struct HeadSleep {
    clock: Arc<HeadClock>,
    alarm: Pin<Box<time::Sleep>>,
    /// Where nothing of the head has come: how often something had come before.
    idle_since: Option<u64>,
}

impl Timer for HeadTimer {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        let clock = Arc::clone(&self.0);
        let is_kept = clock.is_kept.swap(true, Relaxed);
        let (timeout, idle_since) = match is_kept {
            true => (clock.keep_alive_timeout, Some(clock.n_read.load(Relaxed))),
            false => (clock.head_timeout, None),
        };
        Box::pin(HeadSleep {
            alarm: Box::pin(time::sleep(timeout)),
            idle_since,
            clock,
        })
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(self.now()))
    }
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let n_read = this.clock.n_read.load(Relaxed);
        if this.idle_since.is_some_and(|before| before != n_read) {
            this.idle_since = None;
            let deadline = Instant::now() + this.clock.head_timeout;
            this.alarm.as_mut().reset(deadline);
        }
        this.alarm.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::time::advance;

    use super::*;

    const HEAD: Duration = Duration::from_secs(5);
    const KEPT: Duration = Duration::from_secs(75);
    const MOMENT: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_may_be_idle_for_longer_than_a_head_may_take() {
        let clock = Arc::new(HeadClock {
            head_timeout: HEAD,
            keep_alive_timeout: KEPT,
            n_read: AtomicU64::new(0),
            is_kept: AtomicBool::new(false),
        });
        let timer = HeadTimer(Arc::clone(&clock));
        let is_over = |sleep: &mut Pin<Box<dyn Sleep>>| {
            let cx = &mut Context::from_waker(Waker::noop());
            sleep.as_mut().poll(cx).is_ready()
        };
        let mut first = timer.sleep(HEAD);
        assert!(!is_over(&mut first));
        advance(HEAD - MOMENT).await;
        clock.read();
        assert!(!is_over(&mut first));
        advance(MOMENT).await;
        assert!(is_over(&mut first), "the first head has one time for all");

        let mut second = timer.sleep(HEAD);
        assert!(!is_over(&mut second));
        advance(KEPT - MOMENT).await;
        assert!(!is_over(&mut second));
        // Now it begins; more of it gives no more time.
        for _ in 0..2 {
            clock.read();
            assert!(!is_over(&mut second));
            advance(HEAD / 2).await;
        }
        assert!(is_over(&mut second));

        let mut third = timer.sleep(HEAD);
        assert!(!is_over(&mut third));
        advance(KEPT).await;
        assert!(is_over(&mut third));
    }
}
