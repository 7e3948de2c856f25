//! What waits to be sent to one session other than as a verdict: a bounded queue between a plugin's
//! calls, on any worker, and the session's task.
//!
//! Senders never wait. What becomes of a message that finds the queue full is the operator's choice.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::close;
use crate::message::{CloseReason, Message};
use crate::names::PluginName;

/// `[plugin.NAME] queue_*`: what may wait to be sent to one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSettings {
    /// `queue_max_messages`. Default 1,024; 1 to 65,536.
    pub max_messages: usize,
    /// `queue_max_bytes`, payload; a single message has room whatever its length. Default 1 MiB; 1 to
    /// 1 GiB.
    pub max_bytes: usize,
    /// What becomes of a message without room.
    pub slow_consumer: SlowConsumer,
}

/// `slow_consumer`: what is done with a session that takes less than it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlowConsumer {
    /// It misses what comes.
    DropNewest,
    /// It misses what waits longest.
    DropOldest,
    /// It ends with 1013. The default: what is lost is not lost silently.
    #[default]
    Close,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            max_messages: 1024,
            max_bytes: 1 << 20,
            slow_consumer: SlowConsumer::Close,
        }
    }
}

/// What a plugin sends other than by verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outbound {
    /// To the client.
    Send(Message),
    /// The session ends.
    Close(CloseReason),
    /// The instance of this plugin that holds the session is dead.
    Failed(PluginName),
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It waits to be sent.
    Queued,
    /// It waits, and older ones that waited are lost.
    QueuedForOlder,
    /// It is lost: the queue is full.
    Lost,
    /// It is lost: the session is over, or ends because of it.
    Ended,
}

/// The senders' end.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Mutex<OutboxQueue>>);

/// The session's end.
#[derive(Debug)]
pub struct Inbox(Arc<Mutex<OutboxQueue>>);

#[derive(Debug)]
struct OutboxQueue {
    settings: QueueSettings,
    waiting: VecDeque<Outbound>,
    /// Payload of what waits.
    n_bytes: usize,
    /// Nothing is taken any more; the last that waits ends the session, unless it has ended.
    is_ended: bool,
    waker: Option<Waker>,
}

/// Makes both ends.
pub fn outbox(settings: QueueSettings) -> (Outbox, Inbox) {
    let queue = Arc::new(Mutex::new(OutboxQueue {
        settings,
        waiting: VecDeque::new(),
        n_bytes: 0,
        is_ended: false,
        waker: None,
    }));
    (Outbox(Arc::clone(&queue)), Inbox(queue))
}

impl Outbox {
    /// Sends a message to the session's client.
    pub fn send(&self, message: Message) -> Sent {
        let mut queue = lock(&self.0);
        let sent = queue.send(message);
        wake(queue);
        sent
    }

    /// Ends the session behind what waits. False: it is over already.
    pub fn close(&self, reason: CloseReason) -> bool {
        let mut queue = lock(&self.0);
        let is_open = !queue.is_ended;
        if is_open {
            queue.end(Outbound::Close(reason));
        }
        wake(queue);
        is_open
    }

    /// The session's instance is dead.
    pub fn fail(&self, plugin: &PluginName) {
        let mut queue = lock(&self.0);
        if !queue.is_ended {
            queue.end(Outbound::Failed(plugin.clone()));
        }
        wake(queue);
    }
}

impl Inbox {
    /// The next, if there is one; otherwise the task is woken by it.
    pub fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Outbound> {
        let mut queue = lock(&self.0);
        match queue.waiting.pop_front() {
            Some(outbound) => {
                queue.n_bytes -= outbound.n_bytes();
                if queue.waiting.is_empty() {
                    queue.waiting = VecDeque::new();
                }
                Poll::Ready(outbound)
            }
            None => queue.pend(cx),
        }
    }

    /// What ends the session, whatever waits before it: for a client that takes nothing.
    pub fn poll_end(&mut self, cx: &Context<'_>) -> Poll<Outbound> {
        let mut queue = lock(&self.0);
        match queue.is_ended.then(|| queue.waiting.pop_back()).flatten() {
            Some(end) => {
                queue.forget();
                Poll::Ready(end)
            }
            None => queue.pend(cx),
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.is_ended = true;
        queue.waker = None;
        queue.forget();
    }
}

impl OutboxQueue {
    fn send(&mut self, message: Message) -> Sent {
        if self.is_ended {
            return Sent::Ended;
        }
        let mut sent = Sent::Queued;
        while !self.has_room(&message) {
            match self.settings.slow_consumer {
                SlowConsumer::DropNewest => return Sent::Lost,
                SlowConsumer::DropOldest => {
                    let oldest = self.waiting.pop_front();
                    self.n_bytes -= oldest.map_or(0, |oldest| oldest.n_bytes());
                    sent = Sent::QueuedForOlder;
                }
                SlowConsumer::Close => {
                    self.forget();
                    self.end(Outbound::Close(CloseReason {
                        code: close::TRY_AGAIN_LATER,
                        reason: "too slow".to_owned(),
                    }));
                    return Sent::Ended;
                }
            }
        }
        self.n_bytes += message.payload.len();
        self.waiting.push_back(Outbound::Send(message));
        sent
    }

    /// One message has room whatever its length: it was bounded before.
    fn has_room(&self, message: &Message) -> bool {
        self.waiting.is_empty()
            || self.waiting.len() < self.settings.max_messages
                && self.n_bytes + message.payload.len() <= self.settings.max_bytes
    }

    fn end(&mut self, end: Outbound) {
        self.waiting.push_back(end);
        self.is_ended = true;
    }

    fn forget(&mut self) {
        self.waiting = VecDeque::new();
        self.n_bytes = 0;
    }

    fn pend<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        let is_known = |waker: &Waker| waker.will_wake(cx.waker());
        if !self.waker.as_ref().is_some_and(is_known) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Outbound {
    fn n_bytes(&self) -> usize {
        match self {
            Self::Send(message) => message.payload.len(),
            Self::Close(_) | Self::Failed(_) => 0,
        }
    }
}

/// Nothing between lock and unlock can panic half way, so a poisoned lock is as good.
fn lock(queue: &Mutex<OutboxQueue>) -> MutexGuard<'_, OutboxQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of the lock first: waking takes others.
fn wake(mut queue: MutexGuard<'_, OutboxQueue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::MessageKind;

    fn message(text: &'static str) -> Message {
        Message {
            kind: MessageKind::Text,
            payload: Bytes::from_static(text.as_bytes()),
        }
    }

    fn small(slow_consumer: SlowConsumer) -> (Outbox, Inbox) {
        outbox(QueueSettings {
            max_messages: 2,
            max_bytes: 10,
            slow_consumer,
        })
    }

    fn all(inbox: &mut Inbox) -> Vec<Outbound> {
        let cx = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        while let Poll::Ready(outbound) = inbox.poll_next(&cx) {
            all.push(outbound);
        }
        all
    }

    fn sends(texts: &[&'static str]) -> Vec<Outbound> {
        let send = |text: &&'static str| Outbound::Send(message(text));
        texts.iter().map(send).collect()
    }

    #[test]
    fn a_full_queue_does_what_the_operator_wants() {
        let (outbox, mut inbox) = small(SlowConsumer::DropNewest);
        let sent = ["a", "b", "c"].map(|text| outbox.send(message(text)));
        assert_eq!(sent, [Sent::Queued, Sent::Queued, Sent::Lost]);
        assert_eq!(all(&mut inbox), sends(&["a", "b"]));

        let (outbox, mut inbox) = small(SlowConsumer::DropOldest);
        let sent = ["a", "b", "c"].map(|text| outbox.send(message(text)));
        assert_eq!(sent, [Sent::Queued, Sent::Queued, Sent::QueuedForOlder]);
        assert_eq!(all(&mut inbox), sends(&["b", "c"]));

        let (outbox, mut inbox) = small(SlowConsumer::Close);
        let sent = ["a", "b", "c", "d"].map(|text| outbox.send(message(text)));
        assert_eq!(sent, [Sent::Queued, Sent::Queued, Sent::Ended, Sent::Ended]);
        let [Outbound::Close(reason)] = &all(&mut inbox)[..] else {
            panic!("it should be closed");
        };
        assert_eq!(reason.code, 1013);
    }

    #[test]
    fn bytes_are_bounded_but_for_a_single_message() {
        let (outbox, mut inbox) = small(SlowConsumer::DropNewest);
        assert_eq!(outbox.send(message("longer than ten")), Sent::Queued);
        assert_eq!(outbox.send(message("a")), Sent::Lost);
        assert_eq!(all(&mut inbox).len(), 1);
        assert_eq!(outbox.send(message("12345")), Sent::Queued);
        assert_eq!(outbox.send(message("123456")), Sent::Lost);
        assert_eq!(outbox.send(message("12345")), Sent::Queued);
    }

    #[test]
    fn an_end_waits_for_its_turn_unless_it_is_asked_for() {
        let cx = Context::from_waker(Waker::noop());
        for overtakes in [false, true] {
            let (outbox, mut inbox) = small(SlowConsumer::DropNewest);
            outbox.send(message("a"));
            assert_eq!(inbox.poll_end(&cx), Poll::Pending);
            let plugin = PluginName::parse("chat").unwrap();
            let failed = Outbound::Failed(plugin.clone());
            outbox.fail(&plugin);
            outbox.fail(&plugin);
            assert_eq!(outbox.send(message("late")), Sent::Ended);
            if overtakes {
                assert_eq!(inbox.poll_end(&cx), Poll::Ready(failed));
            } else {
                let expected = [sends(&["a"]), vec![failed]].concat();
                assert_eq!(all(&mut inbox), expected);
            }
            assert_eq!(inbox.poll_next(&cx), Poll::Pending);
        }
    }

    #[test]
    fn a_session_that_is_gone_takes_nothing() {
        let (outbox, inbox) = small(SlowConsumer::DropNewest);
        drop(inbox);
        assert_eq!(outbox.send(message("a")), Sent::Ended);
        let reason = CloseReason {
            code: 1000,
            reason: String::new(),
        };
        assert!(!outbox.close(reason));
    }
}
