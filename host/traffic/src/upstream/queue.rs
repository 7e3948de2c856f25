//! Where requests wait when every backend of an upstream has its `max_sessions`.
//!
//! First come, first served, as far as workers on different threads can be; bounded in number here
//! and in time by who waits.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The waiting requests of one upstream, over all workers and snapshots.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicU32,
    freed: Notify,
}

/// A place in the queue, until it is dropped.
#[derive(Debug)]
pub struct Ticket(Arc<Queue>);

impl Queue {
    /// How many wait.
    pub fn len(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a place; none where `max` are taken.
    pub fn enter(self: &Arc<Self>, max: u32) -> Option<Ticket> {
        let entered = self.waiting.fetch_update(Relaxed, Relaxed, |waiting| {
            (waiting < max).then_some(waiting + 1)
        });
        entered.ok().map(|_| Ticket(Arc::clone(self)))
    }

    /// A backend has room again: whoever waits longest may look.
    pub fn wake_one(&self) {
        if !self.is_empty() {
            self.freed.notify_one();
        }
    }

    /// Much may have changed: all may look.
    pub fn wake_all(&self) {
        if !self.is_empty() {
            self.freed.notify_waiters();
        }
    }
}

impl Ticket {
    /// Ready when there may be room. It counts from its first poll or `enable` on, so begin before
    /// looking, and no room that comes meanwhile is missed; dropped unused, it wakes the next.
    pub fn turn(&self) -> Notified<'_> {
        self.0.freed.notified()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn places_are_bounded_and_turns_are_in_order() {
        let queue = Arc::new(Queue::default());
        let (first, second) = (queue.enter(2).unwrap(), queue.enter(2).unwrap());
        assert!(queue.enter(2).is_none());
        {
            let (mut one, mut two) = (pin!(first.turn()), pin!(second.turn()));
            assert!(!one.as_mut().enable() && !two.as_mut().enable());
            queue.wake_one();
            assert!(!two.as_mut().enable(), "it is not its turn");
            assert!(one.as_mut().enable());
            queue.wake_one();
            assert!(two.as_mut().enable());
        }
        drop((first, second));
        assert!(queue.is_empty());
    }
}
