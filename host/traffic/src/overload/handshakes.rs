//! Connections that have not asked for anything yet: bounded in number, the longest waiting first to go.
//!
//! A client that means well needs milliseconds for its request, one that holds connections open takes
//! all the time that it is given. So it is the latter's that make room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::task::AbortHandle;

/// The waiting connections of one worker, by the order in which they came.
#[derive(Debug, Default)]
pub struct Handshakes {
    waiting: RefCell<BTreeMap<u64, AbortHandle>>,
    next: Cell<u64>,
}

/// A connection that waits, until its request is there: then this is dropped.
#[derive(Debug)]
pub struct Waiting {
    handshakes: Rc<Handshakes>,
    number: u64,
}

impl Handshakes {
    /// How many wait.
    pub fn n_waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Runs a connection on this thread, waiting.
    pub fn run<F>(self: &Rc<Self>, connection: impl FnOnce(Waiting) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let number = self.next.replace(self.next.get() + 1);
        // The worker's runtime owns the task and ends it at the latest with the worker.
        let task = tokio::task::spawn_local(connection(Waiting {
            handshakes: Rc::clone(self),
            number,
        }));
        self.waiting
            .borrow_mut()
            .insert(number, task.abort_handle());
    }

    /// Ends those that have waited longest until `max` are left; says how many.
    pub fn shrink_to(&self, max: usize) -> u64 {
        let mut n_ended = 0;
        while self.n_waiting() > max
            && let Some((_, longest)) = self.waiting.borrow_mut().pop_first()
        {
            longest.abort();
            n_ended += 1;
        }
        n_ended
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.handshakes.waiting.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::{LocalSet, yield_now};

    use super::*;

    #[tokio::test]
    async fn the_longest_waiting_are_ended_and_who_has_asked_is_not() {
        let handshakes = Rc::<Handshakes>::default();
        let ended = Rc::<RefCell<Vec<u32>>>::default();
        let run = async {
            for n in 0..5 {
                let told = OnDrop(n, Rc::clone(&ended));
                handshakes.run(|waiting| async move {
                    let _told = told;
                    let mut waiting = Some(waiting);
                    if n == 1 {
                        waiting = None;
                    }
                    pending::<()>().await;
                    drop(waiting);
                });
            }
            yield_now().await;
            assert_eq!(handshakes.n_waiting(), 4);
            assert_eq!(handshakes.shrink_to(2), 2);
            yield_now().await;
            assert_eq!((handshakes.n_waiting(), &*ended.borrow()), (2, &vec![0, 2]));
        };
        LocalSet::new().run_until(run).await;
    }

    struct OnDrop(u32, Rc<RefCell<Vec<u32>>>);

    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.1.borrow_mut().push(self.0);
        }
    }
}
