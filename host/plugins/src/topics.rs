//! The open sessions of one plugin on all workers, and the groups that they are in.
//!
//! In come ids and messages; out they go into the sessions' outboxes. What a full outbox loses is
//! counted. Knows no wasm.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pointsman_contract::message::{CloseReason, Message};
use pointsman_contract::outbox::{Outbox, Sent};
use pointsman_contract::session::SessionId;

const TOPICS_PER_SESSION_MAX: usize = 64;
const TOPIC_MAX_BYTES: usize = 1 << 10;

/// See the contract's `topics` and `sessions`.
#[derive(Debug, Default)]
pub(super) struct Topics {
    members: Mutex<Members>,
    n_dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Members {
    sessions: HashMap<SessionId, Member>,
    topics: HashMap<String, HashSet<SessionId>>,
}

#[derive(Debug)]
struct Member {
    outbox: Outbox,
    topics: HashSet<String>,
}

impl Topics {
    pub(super) fn join(&self, session: SessionId, outbox: Outbox) {
        let topics = HashSet::new();
        self.lock()
            .sessions
            .insert(session, Member { outbox, topics });
    }

    /// The session is over, and in no topic any more.
    pub(super) fn leave(&self, session: SessionId) {
        let mut members = self.lock();
        let Some(member) = members.sessions.remove(&session) else {
            return;
        };
        for topic in member.topics {
            members.remove_from(&topic, session);
        }
    }

    pub(super) fn subscribe(&self, session: SessionId, topic: String) -> bool {
        let mut members = self.lock();
        let Some(member) = members.sessions.get_mut(&session) else {
            return false;
        };
        if member.topics.contains(&topic) {
            return true;
        }
        if member.topics.len() >= TOPICS_PER_SESSION_MAX || topic.len() > TOPIC_MAX_BYTES {
            return false;
        }
        member.topics.insert(topic.clone());
        members.topics.entry(topic).or_default().insert(session);
        true
    }

    pub(super) fn unsubscribe(&self, session: SessionId, topic: &str) {
        let mut members = self.lock();
        let Some(member) = members.sessions.get_mut(&session) else {
            return;
        };
        if member.topics.remove(topic) {
            members.remove_from(topic, session);
        }
    }

    /// To how many the message went.
    pub(super) fn publish(&self, topic: &str, message: &Message) -> u32 {
        // Sending wakes tasks on other threads, so it is done when the lock is free again.
        let send = |outbox: &Outbox| u32::from(self.send_to(outbox, message.clone()));
        self.outboxes(topic).iter().map(send).sum()
    }

    /// False if there is no such session, or its outbox is full.
    pub(super) fn send(&self, session: SessionId, message: Message) -> bool {
        self.outbox(session)
            .is_some_and(|outbox| self.send_to(&outbox, message))
    }

    /// False if there is no such session.
    pub(super) fn close(&self, session: SessionId, reason: CloseReason) -> bool {
        self.outbox(session)
            .is_some_and(|outbox| outbox.close(reason))
    }

    pub(super) fn n_sessions(&self) -> u64 {
        self.lock().sessions.len() as u64
    }

    pub(super) fn n_dropped(&self) -> u64 {
        self.n_dropped.load(Ordering::Relaxed)
    }

    fn send_to(&self, outbox: &Outbox, message: Message) -> bool {
        let sent = outbox.send(message);
        if sent != Sent::Queued {
            self.n_dropped.fetch_add(1, Ordering::Relaxed);
        }
        matches!(sent, Sent::Queued | Sent::QueuedForOlder)
    }

    fn outbox(&self, session: SessionId) -> Option<Outbox> {
        Some(self.lock().sessions.get(&session)?.outbox.clone())
    }

    fn outboxes(&self, topic: &str) -> Vec<Outbox> {
        let members = self.lock();
        let ids = members.topics.get(topic).into_iter().flatten();
        ids.filter_map(|id| Some(members.sessions.get(id)?.outbox.clone()))
            .collect()
    }

    /// Nothing between lock and unlock can panic half way, so a poisoned lock is as good.
    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    fn remove_from(&mut self, topic: &str, session: SessionId) {
        if let Some(ids) = self.topics.get_mut(topic) {
            ids.remove(&session);
            if ids.is_empty() {
                self.topics.remove(topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pointsman_contract::message::MessageKind;
    use pointsman_contract::outbox::{Inbox, QueueSettings, SlowConsumer, outbox};

    use super::*;

    fn hello() -> Message {
        Message {
            kind: MessageKind::Text,
            payload: Bytes::from_static(b"hello"),
        }
    }

    fn of_one() -> (Outbox, Inbox) {
        outbox(QueueSettings {
            max_messages: 1,
            slow_consumer: SlowConsumer::DropNewest,
            ..QueueSettings::default()
        })
    }

    #[test]
    fn a_message_goes_to_those_who_asked_and_have_room() {
        let topics = Topics::default();
        let (first, _first_inbox) = of_one();
        let (second, _second_inbox) = of_one();
        topics.join(SessionId(1), first);
        topics.join(SessionId(2), second);
        assert!(topics.subscribe(SessionId(1), "t".to_owned()));
        assert!(topics.subscribe(SessionId(1), "t".to_owned()));
        assert!(!topics.subscribe(SessionId(3), "t".to_owned()));

        assert_eq!(topics.publish("t", &hello()), 1);
        assert_eq!(topics.publish("t", &hello()), 0);
        assert_eq!((topics.n_dropped(), topics.n_sessions()), (1, 2));
        assert!(topics.send(SessionId(2), hello()));

        topics.leave(SessionId(1));
        assert_eq!(topics.publish("t", &hello()), 0);
        assert!(topics.lock().topics.is_empty());
    }

    #[test]
    fn a_session_has_at_most_64_topics() {
        let topics = Topics::default();
        let (outbox, _inbox) = of_one();
        topics.join(SessionId(1), outbox);
        for n in 0..64 {
            assert!(topics.subscribe(SessionId(1), n.to_string()));
        }
        assert!(!topics.subscribe(SessionId(1), "64".to_owned()));
        topics.unsubscribe(SessionId(1), "0");
        assert!(topics.subscribe(SessionId(1), "64".to_owned()));
    }
}
