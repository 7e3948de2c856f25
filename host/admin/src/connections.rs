//! The open connections of the admin server, and which one makes room for the next.
//!
//! A probe is answered within a millisecond of its connection; a client that stalls takes all the time
//! that it is given. So a new one always gets a place: where none is free, the client that has the most
//! of them loses the one that it has had longest. Knows neither sockets nor HTTP: a connection is told
//! that it is over, and ends itself.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use pointsman_contract::client::network;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestStage {
    /// Its request has not come whole. Whatever is answered at once is answered in this stage.
    Waiting,
    /// A page that may be long is on its way to the client.
    Page,
    /// An order is read and carried out.
    Order,
}

impl RequestStage {
    /// How many there may be at a time. A dozen probes and people fit, and two scrapers.
    const fn places(self) -> usize {
        match self {
            Self::Waiting => 64,
            Self::Page => 8,
            Self::Order => 8,
        }
    }

    /// How long a connection may be at it. A head that was meant for this server comes in one packet; a
    /// page may take what Prometheus waits by default; an order may compile plugins.
    const fn time(self) -> Duration {
        match self {
            Self::Waiting => Duration::from_secs(3),
            Self::Page => Duration::from_secs(10),
            Self::Order => Duration::from_secs(60),
        }
    }
}

/// All that are open, in the order in which they came to their stage.
#[derive(Debug, Default)]
pub(super) struct AdminConnections {
    open: RefCell<BTreeMap<u64, OpenConnection>>,
    last: Cell<u64>,
}

#[derive(Debug)]
struct OpenConnection {
    client: IpAddr,
    stage: RequestStage,
    over_at: watch::Sender<Instant>,
}

/// One connection, until it is dropped.
#[derive(Debug)]
pub(super) struct AdminConnection {
    connections: Rc<AdminConnections>,
    number: Cell<u64>,
    over_at: watch::Receiver<Instant>,
}

impl AdminConnections {
    /// A new connection, whose request is waited for.
    pub(super) fn begin(self: &Rc<Self>, client: IpAddr) -> AdminConnection {
        let (over_at, receiver) = watch::channel(Instant::now() + RequestStage::Waiting.time());
        let open = OpenConnection {
            client: network(client),
            stage: RequestStage::Waiting,
            over_at,
        };
        AdminConnection {
            number: Cell::new(self.place(open)),
            connections: Rc::clone(self),
            over_at: receiver,
        }
    }

    /// Gives it a place in its stage, and a number.
    fn place(&self, open: OpenConnection) -> u64 {
        self.make_room(open.stage);
        let number = self.last.get() + 1;
        self.last.set(number);
        self.open.borrow_mut().insert(number, open);
        number
    }

    fn make_room(&self, stage: RequestStage) {
        let mut open = self.open.borrow_mut();
        let in_stage = || open.iter().filter(|(_, open)| open.stage == stage);
        let mut places: HashMap<IpAddr, usize> = HashMap::new();
        for (_, open) in in_stage() {
            *places.entry(open.client).or_default() += 1;
        }
        if places.values().sum::<usize>() < stage.places() {
            return;
        }
        let most =
            in_stage().min_by_key(|(number, open)| (Reverse(places[&open.client]), **number));
        let Some(number) = most.map(|(number, _)| *number) else {
            return;
        };
        if let Some(ended) = open.remove(&number) {
            tracing::warn!(client = %ended.client, ?stage, "admin: too many connections at a time: the longest one of the client with the most is closed");
            ended.over_at.send_replace(Instant::now());
        }
    }
}

impl AdminConnection {
    /// Its request has come, and is one of this stage. Its time starts over.
    pub(super) fn enter(&self, stage: RequestStage) {
        let open = self
            .connections
            .open
            .borrow_mut()
            .remove(&self.number.get());
        // None: it has lost its place already, and is about to end.
        if let Some(mut open) = open {
            open.stage = stage;
            open.over_at.send_replace(Instant::now() + stage.time());
            self.number.set(self.connections.place(open));
        }
    }

    /// Its time is over, or another needs its place.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn over(&self) {
        let mut over_at = self.over_at.clone();
        loop {
            let until = *over_at.borrow_and_update();
            if until <= Instant::now() {
                return;
            }
            tokio::select! {
                () = sleep_until(until) => return,
                changed = over_at.changed() => if changed.is_err() {
                    // It has lost its place, and no one changes its time any more.
                    return sleep_until(*over_at.borrow()).await;
                },
            }
        }
    }
}

impl Drop for AdminConnection {
    fn drop(&mut self) {
        self.connections
            .open
            .borrow_mut()
            .remove(&self.number.get());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const A: &str = "192.0.2.1";
    const B: &str = "192.0.2.2";

    fn begin(connections: &Rc<AdminConnections>, client: &str, n: usize) -> Vec<AdminConnection> {
        let client = client.parse().unwrap();
        (0..n).map(|_| connections.begin(client)).collect()
    }

    /// The places of those that are over.
    fn over(connections: &[AdminConnection]) -> Vec<usize> {
        let is_over = |(_, c): &(usize, &AdminConnection)| c.over().now_or_never().is_some();
        let all = connections.iter().enumerate();
        all.filter(is_over).map(|(place, _)| place).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_with_the_most_makes_room_with_its_longest() {
        let connections = Rc::<AdminConnections>::default();
        let probe = begin(&connections, B, 1);
        let flood = begin(&connections, A, 63);
        assert_eq!((over(&probe), over(&flood)), (vec![], vec![]));
        let more = begin(&connections, A, 2);
        assert_eq!((over(&probe), over(&flood)), (vec![], vec![0, 1]));
        let probes = begin(&connections, B, 1);
        assert_eq!((over(&probes), over(&flood)), (vec![], vec![0, 1, 2]));
        assert!(over(&more).is_empty());
        drop(flood);
        begin(&connections, A, 60);
        assert_eq!((over(&probe), over(&more)), (vec![], vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_is_one_client() {
        let connections = Rc::<AdminConnections>::default();
        let lone = begin(&connections, A, 1);
        let flood: Vec<_> = (0..64)
            .flat_map(|n| begin(&connections, &format!("2001:db8::{n:x}"), 1))
            .collect();
        assert_eq!((over(&lone), over(&flood)), (vec![], vec![0]));
    }

    #[tokio::test(start_paused = true)]
    async fn stages_have_places_and_time_of_their_own() {
        let connections = Rc::<AdminConnections>::default();
        let pages = begin(&connections, A, 9);
        pages[..8]
            .iter()
            .for_each(|page| page.enter(RequestStage::Page));
        let waiting = begin(&connections, A, 63);
        assert_eq!((over(&pages), over(&waiting)), (vec![], vec![]));
        pages[8].enter(RequestStage::Page);
        assert_eq!(over(&pages), [0]);
        advance(RequestStage::Waiting.time()).await;
        assert_eq!((over(&pages).len(), over(&waiting).len()), (1, 63));
        advance(RequestStage::Page.time() - RequestStage::Waiting.time()).await;
        assert_eq!(over(&pages).len(), 9);
        drop((pages, waiting));
        assert!(connections.open.borrow().is_empty());
    }
}
