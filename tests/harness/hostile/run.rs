//! One case against whatever listens at an address.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::recorder::{Heard, Recorder, holds};
use super::{Case, Step};

/// The longest that is waited for what a case should come to: longer than every deadline in it.
const LIMIT: Duration = Duration::from_secs(6);
/// With the answers in, as long without another byte is the end.
const QUIET: Duration = Duration::from_millis(40);
const POLL: Duration = Duration::from_millis(4);

/// What a case came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The answers' statuses, in order, but those of 1xx other than 101.
    pub statuses: Vec<u16>,
    /// Every byte that the client received.
    pub received: Vec<u8>,
    /// When the connection of the client was ended by the other side.
    pub ended: Option<Duration>,
    /// Whether all connections to backends are ended.
    pub has_backend_ended: bool,
    /// Whether a backend was sent something before it was time.
    pub was_early: bool,
    /// What each of the two backends was sent, by connection.
    pub heard: [Vec<Vec<u8>>; 2],
}

#[derive(Clone, Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    ended: Option<Instant>,
    last: Option<Instant>,
}

/// Runs a case against `address`, behind which are `backends`.
///
/// # Errors
///
/// Nobody listens there.
pub async fn run(case: &Case, address: SocketAddr, backends: &[Recorder; 2]) -> Result<Outcome> {
    let is_played = case.expected.is_tried_elsewhere.then(Arc::default);
    for backend in backends {
        backend.begin(&case.backend, is_played.clone());
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let began = Instant::now();
    let received = Arc::<Mutex<Received>>::default();
    let look = || {
        received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    };
    let mut reader = JoinSet::new();
    let (read, mut write) = stream.into_split();
    reader.spawn(collect(read, Arc::clone(&received)));
    for step in &case.client {
        perform(step, &mut write, &look, began).await;
    }
    let is_reset = matches!(case.client.last(), Some(Step::Reset));
    // The socket is closed, and so reset, when both its halves are gone.
    let _held = if is_reset {
        reader.shutdown().await;
        drop(write);
        None
    } else {
        Some(write)
    };
    let n_expected = case.expected.statuses.len();
    let heard = || backends.each_ref().map(Recorder::heard);
    let has_backend_ended = || heard().iter().flatten().all(|heard| heard.has_ended);
    let is_done = || {
        let now = look();
        let has_come = n_expected > 0 && statuses(&now.bytes).len() >= n_expected;
        let is_quiet = now.last.is_none_or(|last| last.elapsed() > QUIET);
        let ends = now.ended.is_some() || (has_come && case.expected.ends_within.is_none());
        (ends && is_quiet || is_reset) && (!case.expected.backend_ends || has_backend_ended())
    };
    until(began + LIMIT, is_done).await;
    let now = look();
    let heard = heard();
    let outcome = Outcome {
        statuses: statuses(&now.bytes),
        received: now.bytes,
        ended: now.ended.map(|ended| ended - began),
        has_backend_ended: has_backend_ended(),
        was_early: heard.iter().flatten().any(|heard| heard.was_early),
        heard: heard.map(|all| all.into_iter().map(|heard: Heard| heard.bytes).collect()),
    };
    Ok(outcome)
}

impl Outcome {
    /// On how many connections backends were sent something.
    pub fn n_heard(&self) -> usize {
        self.heard.iter().map(Vec::len).sum()
    }

    /// All that backends were sent, as text in lower case.
    pub fn sent(&self) -> String {
        let all = self.heard.iter().flatten();
        all.map(|bytes| text(bytes)).collect::<Vec<_>>().join("\n")
    }

    /// All that the client was sent, as text in lower case.
    pub fn told(&self) -> String {
        text(&self.received)
    }
}

/// A byte is a character.
fn text(bytes: &[u8]) -> String {
    let chars = bytes.iter().map(|byte| char::from(*byte));
    chars.collect::<String>().to_ascii_lowercase()
}

async fn collect(mut read: OwnedReadHalf, received: Arc<Mutex<Received>>) {
    let mut room = [0; 16 * 1024];
    loop {
        let n = read.read(&mut room).await.unwrap_or(0);
        let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
        if n == 0 {
            received.ended = Some(Instant::now());
            return;
        }
        received.bytes.extend_from_slice(&room[..n]);
        received.last = Some(Instant::now());
    }
}

/// What cannot be sent is not: the other side may have ended the connection, and rightly so.
async fn perform(
    step: &Step,
    write: &mut OwnedWriteHalf,
    look: &impl Fn() -> Received,
    began: Instant,
) {
    match step {
        Step::Send(bytes) => {
            let _sent = write.write_all(bytes).await;
        }
        Step::Dribble(bytes, pause) => {
            for byte in bytes {
                sleep(*pause).await;
                let is_over = look().ended.is_some() || began.elapsed() > LIMIT;
                if is_over || write.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        }
        Step::Answered => {
            until(began + LIMIT, || {
                let now = look();
                now.ended.is_some() || !statuses(&now.bytes).is_empty()
            })
            .await;
        }
        Step::Receive(wanted) => {
            until(began + LIMIT, || {
                let now = look();
                let is_tunnel = statuses(&now.bytes).first() == Some(&101);
                now.ended.is_some() || holds(&now.bytes, wanted) || !is_tunnel
            })
            .await;
        }
        Step::Fin => {
            let _sent = write.shutdown().await;
        }
        Step::Reset => {
            let _set = write.as_ref().set_zero_linger();
        }
    }
}

async fn until(deadline: Instant, holds: impl Fn() -> bool) {
    while !holds() && Instant::now() < deadline {
        sleep(POLL).await;
    }
}

/// The statuses of all whole answers. What follows a 101 is no answer.
fn statuses(mut bytes: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while let Some((status, length)) = answer(bytes) {
        if status >= 200 || status == 101 {
            statuses.push(status);
        }
        if status == 101 {
            break;
        }
        bytes = bytes.get(length..).unwrap_or_default();
    }
    statuses
}

/// The status and length of the answer that `bytes` begins with.
fn answer(bytes: &[u8]) -> Option<(u16, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else {
        return None;
    };
    let status = head.code?;
    let field = |name: &str| {
        let mut all = head.headers.iter();
        let found = all.find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let body = match field("content-length").and_then(|length| length.parse::<usize>().ok()) {
        _ if status < 200 || status == 204 || status == 304 => 0,
        Some(length) => length,
        None => bytes.len() - length,
    };
    Some((status, length + body))
}
