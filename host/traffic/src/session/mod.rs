//! One live WebSocket, from the 101 to the close: what is known of it, its end, and the registry of
//! all sessions of a worker.
//!
//! A session is one task that owns its streams. The registry holds a [`SessionControl`] of each, by which
//! the worker's sweep and drain tell it what to do; it never touches a session's streams.
//! [`relayed`] runs the sessions at a backend, [`filtered`] those of them that plugins look at, and
//! [`handled`] those that end at a plugin.

pub mod buffers;
pub mod chain;
#[cfg(test)]
mod closing_handshake_tests;
pub mod filtered;
mod frame_writer;
pub mod handled;
mod liveness;
mod pace;
pub mod relayed;
mod send_queue;
mod send_timeout;
mod stats;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pointsman_config::Route;
use pointsman_contract::close;
use pointsman_contract::session::{Ender, SessionId};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use self::liveness::{FarEnd, OwedPong, PingStanding};
use self::send_queue::SendQueue;
use crate::upstream::pool::Backend;

/// How long both sides may take to end a session after a Close or after one of them has gone.
pub const LINGER: Duration = Duration::from_secs(5);

/// How often [`Sessions::sweep`] is called: the grain of all timeouts of open sessions.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// What any session may hold, however much all of them do.
pub const FAIR_BYTES: usize = 64 * 1024;

/// Where a session runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The one that led there.
    pub route: Arc<Route>,
    /// None: at a handler.
    pub backend: Option<Arc<Backend>>,
}

/// What a session is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ask for a sign of life whoever is silent.
    Ping {
        /// Whether the client is.
        client: bool,
        /// Whether the backend is.
        backend: bool,
    },
    /// Look whether what is under way comes on, what is held is needed still, and who owes a Pong can answer.
    Look,
    /// Send this code to both sides, in this one's name.
    Close(Ender, u16),
    /// End, and let go of what is held: all sessions together hold too much, and this one most.
    Shed,
    /// End at once.
    Cut(Ender),
}

/// The sessions of one worker.
#[derive(Debug, Default)]
pub struct Sessions {
    open: RefCell<BTreeMap<SessionId, Rc<SessionControl>>>,
    /// Sweeps since the start: the clock of all sessions, so that moving bytes asks for no time.
    now: Rc<Cell<u32>>,
}

/// What the registry and a session share.
#[derive(Debug)]
pub struct SessionControl {
    /// Where it runs.
    pub place: Place,
    now: Rc<Cell<u32>>,
    /// When the client was last heard of, in sweeps, as `now`.
    client_heard_at: Cell<u32>,
    /// Likewise the backend; a handler is always heard.
    backend_heard_at: Cell<u32>,
    /// What the two owe, the client first; none: they are not pinged. In a box, for few are.
    pongs: Option<Box<[OwedPong; 2]>>,
    /// Since when the session is ending.
    ending_at: Cell<Option<u32>>,
    /// Memory for what it has read and not yet sent, and for what its messages may refer to.
    held: Cell<usize>,
    /// It was told to let go of that.
    is_shed: Cell<bool>,
    /// It has something that [`Order::Look`] is about.
    wants_looks: Cell<bool>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps a session in the registry; dropping it takes the session out.
#[derive(Debug)]
pub struct Registration {
    sessions: Rc<Sessions>,
    /// Names the session.
    pub id: SessionId,
    /// What the registry knows of it.
    pub control: Rc<SessionControl>,
}

impl Sessions {
    /// Takes a session in.
    pub fn register(self: &Rc<Self>, id: SessionId, place: Place) -> Registration {
        let is_pinged = place.route.ping_interval.is_some();
        let control = Rc::new(SessionControl {
            place,
            now: Rc::clone(&self.now),
            client_heard_at: Cell::new(self.now.get()),
            backend_heard_at: Cell::new(self.now.get()),
            pongs: is_pinged.then(Box::default),
            ending_at: Cell::new(None),
            held: Cell::new(0),
            is_shed: Cell::new(false),
            wants_looks: Cell::new(false),
            order: Cell::new(None),
            waker: RefCell::new(None),
        });
        self.open.borrow_mut().insert(id, Rc::clone(&control));
        Registration {
            sessions: Rc::clone(self),
            id,
            control,
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those open now, the oldest first.
    pub fn all(&self) -> Vec<Rc<SessionControl>> {
        self.open.borrow().values().cloned().collect()
    }

    /// How many run at each place.
    pub fn census(&self) -> Vec<(Place, u64)> {
        let mut census: HashMap<_, (Place, u64)> = HashMap::new();
        for control in self.open.borrow().values() {
            let place = &control.place;
            let backend = place.backend.as_ref().map(Arc::as_ptr);
            let (_, n) = census
                .entry((Arc::as_ptr(&place.route), backend))
                .or_insert_with(|| (place.clone(), 0));
            *n += 1;
        }
        census.into_values().collect()
    }

    /// One tick: tells every session whose time has come.
    pub fn sweep(&self) {
        self.now.set(self.now.get().wrapping_add(1));
        for control in self.open.borrow().values() {
            if let Some(order) = control.due() {
                control.tell(order);
            }
        }
    }

    /// Ends those that hold most, until as much as `excess` bytes is on its way out; how many. Who holds
    /// no more than [`FAIR_BYTES`] is left alone.
    pub fn shed(&self, excess: usize) -> usize {
        let open = self.open.borrow();
        let (told, rest): (Vec<_>, Vec<_>) = (open.values())
            .filter(|control| control.held.get() > FAIR_BYTES)
            .partition(|control| control.is_shed.get());
        let mut leaving: usize = told.iter().map(|control| control.held.get()).sum();
        let mut largest: Vec<_> = rest
            .iter()
            .map(|control| (control.held.get(), control))
            .collect();
        largest.sort_unstable_by_key(|&(held, _)| std::cmp::Reverse(held));
        let mut n_told = 0;
        for (held, control) in largest {
            if leaving >= excess {
                break;
            }
            leaving += held;
            n_told += 1;
            control.is_shed.set(true);
            control.tell(Order::Shed);
        }
        n_told
    }
}

impl SessionControl {
    /// Gives an order. A later one takes the place of one that was not taken yet, unless that was
    /// to end at once, or this one is only to look.
    pub fn tell(&self, order: Order) {
        match (self.order.get(), order) {
            (Some(Order::Cut(_)), _) | (Some(_), Order::Look) => {}
            _ => self.order.set(Some(order)),
        }
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The order that waits, if there is one; otherwise the task is woken by the next.
    pub fn poll_order(&self, cx: &Context<'_>) -> Poll<Order> {
        if let Some(order) = self.order.take() {
            return Poll::Ready(order);
        }
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Bytes have come from the client.
    pub fn client_heard(&self) {
        self.client_heard_at.set(self.now.get());
    }

    /// Bytes have come from the backend.
    pub fn backend_heard(&self) {
        self.backend_heard_at.set(self.now.get());
    }

    /// A side has closed or gone: the rest should not take long.
    pub fn ending(&self) {
        if self.ending_at.get().is_none() {
            self.ending_at.set(Some(self.now.get()));
        }
    }

    /// Whether the session has something under way, or holds something, that should not last.
    fn want_looks(&self, is_wanted: bool) {
        self.wants_looks.set(is_wanted);
    }

    /// Whether a side has closed or gone.
    pub fn is_ending(&self) -> bool {
        self.ending_at.get().is_some()
    }

    /// What its time has come for. The grain is a sweep, rounded up.
    fn due(&self) -> Option<Order> {
        let since =
            |then: u32| SWEEP_INTERVAL * self.now.get().wrapping_sub(then).saturating_sub(1);
        if let Some(then) = self.ending_at.get() {
            return (since(then) >= LINGER).then_some(Order::Cut(Ender::Host));
        }
        let (client, backend) = (self.client_heard_at.get(), self.backend_heard_at.get());
        if since(client.max(backend)) >= self.place.route.idle_timeout {
            return Some(Order::Close(Ender::Host, close::GOING_AWAY));
        }
        let mut look = self.wants_looks.get().then_some(Order::Look);
        let (Some(interval), Some(pongs)) = (self.place.route.ping_interval, &self.pongs) else {
            return look;
        };
        let mut is_silent = [false; 2];
        // A handler does not owe anything.
        let n_far_ends = if self.place.backend.is_some() { 2 } else { 1 };
        for (i, heard_at) in [client, backend].into_iter().enumerate().take(n_far_ends) {
            match pongs[i].owed() {
                Some((then, _)) if heard_at >= then => pongs[i].settle(),
                Some((then, patience)) => {
                    if since(then) >= interval.max(SWEEP_INTERVAL * patience) {
                        return Some(Order::Close(Ender::Host, close::GOING_AWAY));
                    }
                    look = Some(Order::Look);
                }
                None if since(heard_at) >= interval => {
                    pongs[i].ask(self.now.get());
                    is_silent[i] = true;
                }
                None => {}
            }
        }
        match is_silent {
            [false, false] => look,
            [client, backend] => Some(Order::Ping { client, backend }),
        }
    }

    /// Whether this one owes a Pong, so that a look should say how that stands.
    fn owes_pong(&self, far_end: FarEnd) -> bool {
        let pongs = self.pongs.as_deref();
        pongs.is_some_and(|pongs| pongs[far_end as usize].owed().is_some())
    }

    /// How it stands.
    fn look_at_pong(&self, far_end: FarEnd, at: PingStanding, queue: Option<SendQueue>) {
        if let Some(pongs) = &self.pongs {
            pongs[far_end as usize].look(self.now.get(), at, queue);
        }
    }
}

/// None: never.
fn ticks(interval_ms: u32) -> Option<Pin<Box<Interval>>> {
    let period = Duration::from_millis(interval_ms.into());
    (!period.is_zero()).then(|| {
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Box::pin(ticks)
    })
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.sessions.open.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pointsman_config::Config;

    use super::*;

    /// There is a handler at the other side.
    const PING_CLIENT: Option<Order> = Some(Order::Ping {
        client: true,
        backend: false,
    });

    fn sweeps(sessions: &Sessions, duration: Duration) {
        for _ in 0..duration.as_millis() / SWEEP_INTERVAL.as_millis() {
            sessions.sweep();
        }
    }

    pub(super) fn registered(ping: Option<u64>) -> (Rc<Sessions>, Registration) {
        let sessions = Rc::new(Sessions::default());
        let ping = ping.unwrap_or_default();
        let text = format!(
            "[[listener]]\nbind = '127.0.0.1:0'\n[[route]]\npath = '/'\nhandler = 'echo'\nidle_timeout_secs = 60\nping_interval_secs = {ping}\n"
        );
        let config = Config::from_toml(&text, Path::new("")).expect("a good configuration");
        let place = Place {
            route: Arc::new(config.routes[0].clone()),
            backend: None,
        };
        let registration = sessions.register(SessionId::next(), place);
        (sessions, registration)
    }

    #[test]
    fn a_silent_session_is_closed_and_one_that_either_side_is_heard_of_is_not() {
        let (sessions, session) = registered(None);
        sweeps(&sessions, Duration::from_secs(59));
        session.control.client_heard();
        sweeps(&sessions, Duration::from_secs(59));
        session.control.backend_heard();
        sweeps(&sessions, Duration::from_secs(60));
        assert_eq!(session.control.order.take(), None);
        sweeps(&sessions, Duration::from_secs(1));
        let close = Order::Close(Ender::Host, 1001);
        assert_eq!(session.control.order.take(), Some(close));
    }

    #[test]
    fn a_client_that_leaves_a_ping_unanswered_is_closed() {
        let (sessions, session) = registered(Some(5));
        let interval = Duration::from_secs(6);
        for _ in 0..3 {
            sweeps(&sessions, interval);
            assert_eq!(session.control.order.take(), PING_CLIENT);
            session.control.client_heard();
        }
        sweeps(&sessions, interval);
        assert_eq!(session.control.order.take(), PING_CLIENT);
        sweeps(&sessions, interval);
        let close = Order::Close(Ender::Host, 1001);
        assert_eq!(session.control.order.take(), Some(close));
    }

    #[test]
    fn an_ending_that_takes_too_long_is_cut() {
        let (sessions, session) = registered(None);
        session.control.ending();
        sweeps(&sessions, LINGER);
        assert_eq!(session.control.order.take(), None);
        sessions.sweep();
        assert_eq!(session.control.order.take(), Some(Order::Cut(Ender::Host)));
    }

    #[test]
    fn a_look_waits_behind_every_other_order() {
        let (sessions, session) = registered(Some(5));
        let control = &session.control;
        sessions.sweep();
        assert_eq!(control.order.take(), None);
        control.want_looks(true);
        sessions.sweep();
        assert_eq!(control.order.get(), Some(Order::Look));
        control.tell(Order::Shed);
        sessions.sweep();
        assert_eq!(control.order.take(), Some(Order::Shed));
        sweeps(&sessions, Duration::from_secs(6));
        assert_eq!(control.order.take(), PING_CLIENT);
        control.client_heard();
        sessions.sweep();
        assert_eq!(control.order.take(), Some(Order::Look));
    }

    #[test]
    fn those_who_hold_most_go_until_there_is_room() {
        let (sessions, first) = registered(None);
        let place = || first.control.place.clone();
        let others = (0..3).map(|_| sessions.register(SessionId::next(), place()));
        let open: Vec<_> = others.collect();
        let all: Vec<_> = std::iter::once(&first).chain(&open).collect();
        let kib = |n: usize| n * 1024;
        for (session, held) in all.iter().zip([100, 900, 64, 300]) {
            session.control.held.set(kib(held));
        }
        let told = || -> Vec<_> {
            let orders = all.iter().map(|session| session.control.order.take());
            orders.map(|order| order == Some(Order::Shed)).collect()
        };
        assert_eq!(sessions.shed(kib(1)), 1);
        assert_eq!(told(), [false, true, false, false]);
        // What is on its way out counts, until it is.
        assert_eq!(sessions.shed(kib(900)), 0);
        assert_eq!(sessions.shed(kib(901)), 1);
        assert_eq!(told(), [false, false, false, true]);
        all[1].control.held.set(0);
        assert_eq!(sessions.shed(kib(2000)), 1);
        assert_eq!(told(), [true, false, false, false]);
        assert_eq!(sessions.shed(kib(2000)), 0, "who holds a fair share stays");
    }

    #[test]
    fn a_session_that_is_dropped_leaves_the_registry() {
        let (sessions, session) = registered(None);
        assert_eq!(sessions.len(), 1);
        drop(session);
        assert!(sessions.is_empty());
    }
}
