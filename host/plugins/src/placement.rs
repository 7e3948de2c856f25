//! Which instance takes which session.
//!
//! Sessions of one client go to one instance while it has room, so that those of a client that brings
//! instances down come down together; others fill the oldest instance that has room, and an instance
//! that has become empty goes. Nothing here is more than a look into a map, however many instances there are. Knows no wasm
//! and no session.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Instances `T`, and how full they are.
#[derive(Debug)]
pub(super) struct Placement<T> {
    sessions_per_instance: usize,
    /// Whether the oldest instance stays when it is empty.
    keeps_oldest: bool,
    next: u64,
    /// By number, and so by age.
    instances: BTreeMap<u64, Placed<T>>,
    with_room: BTreeSet<u64>,
    /// Where the latest session of each client is, and how many it has.
    clients: HashMap<IpAddr, (u64, usize)>,
}

#[derive(Debug)]
struct Placed<T> {
    instance: T,
    n_sessions: usize,
}

impl<T: Clone> Placement<T> {
    pub(super) fn new(sessions_per_instance: usize, keeps_oldest: bool) -> Self {
        Self {
            sessions_per_instance,
            keeps_oldest,
            next: 0,
            instances: BTreeMap::new(),
            with_room: BTreeSet::new(),
            clients: HashMap::new(),
        }
    }

    /// An instance that is there, whether it is full or not.
    pub(super) fn oldest(&self) -> Option<T> {
        let (_, oldest) = self.instances.first_key_value()?;
        Some(oldest.instance.clone())
    }

    /// The one that is to take a session of this client; none: there is no room.
    pub(super) fn find(&self, client: IpAddr) -> Option<T> {
        let own = self.clients.get(&client).map(|(number, _)| number);
        let own = own.filter(|number| self.with_room.contains(number));
        let number = own.or_else(|| self.with_room.first())?;
        Some(self.instances.get(number)?.instance.clone())
    }

    /// The number of the next instance.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// An instance has been made.
    pub(super) fn add(&mut self, number: u64, instance: T) {
        let placed = Placed {
            instance,
            n_sessions: 0,
        };
        self.instances.insert(number, placed);
        self.with_room.insert(number);
    }

    /// An instance is dead. Its sessions still leave, one by one.
    pub(super) fn remove(&mut self, number: u64) {
        self.instances.remove(&number);
        self.with_room.remove(&number);
    }

    /// A session of this client begins there.
    pub(super) fn enter(&mut self, number: u64, client: IpAddr) {
        if let Some(placed) = self.instances.get_mut(&number) {
            placed.n_sessions += 1;
            if placed.n_sessions >= self.sessions_per_instance {
                self.with_room.remove(&number);
            }
        }
        let (latest, n_sessions) = self.clients.entry(client).or_insert((number, 0));
        *latest = number;
        *n_sessions += 1;
    }

    /// A session that has entered is over.
    pub(super) fn leave(&mut self, number: u64, client: IpAddr) {
        if let Entry::Occupied(mut known) = self.clients.entry(client) {
            let (_, n_sessions) = known.get_mut();
            *n_sessions -= 1;
            if *n_sessions == 0 {
                known.remove();
            }
        }
        let Some(placed) = self.instances.get_mut(&number) else {
            return;
        };
        placed.n_sessions -= 1;
        let is_oldest = self.instances.first_key_value().map(|(first, _)| *first) == Some(number);
        let is_empty = self.instances[&number].n_sessions == 0;
        if is_empty && !(is_oldest && self.keeps_oldest) {
            self.remove(number);
        } else {
            self.with_room.insert(number);
        }
    }

    #[cfg(test)]
    pub(super) fn n_instances(&self) -> usize {
        self.instances.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instances that are their own numbers.
    struct TestSeat(Placement<u64>);

    impl TestSeat {
        fn new(sessions_per_instance: usize, keeps_oldest: bool) -> Self {
            Self(Placement::new(sessions_per_instance, keeps_oldest))
        }

        fn open(&mut self, client: u8) -> u64 {
            let number = self.0.find(ip(client)).unwrap_or_else(|| {
                let number = self.0.next_number();
                self.0.add(number, number);
                number
            });
            self.0.enter(number, ip(client));
            number
        }

        fn close(&mut self, number: u64, client: u8) {
            self.0.leave(number, ip(client));
        }
    }

    fn ip(client: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, client])
    }

    #[test]
    fn the_oldest_with_room_is_filled_first() {
        let mut site = TestSeat::new(2, true);
        let opened: Vec<_> = (0..5).map(|client| site.open(client)).collect();
        assert_eq!(opened, [1, 1, 2, 2, 3]);
        site.close(1, 0);
        assert_eq!(site.open(9), 1);
        assert_eq!(site.open(10), 3);
        assert_eq!(site.open(11), 4);
    }

    #[test]
    fn a_clients_sessions_stay_together_while_there_is_room() {
        let mut site = TestSeat::new(3, true);
        for client in 0..3 {
            site.open(client);
        }
        assert_eq!((site.open(7), site.open(8)), (2, 2));
        site.close(1, 0);
        assert_eq!(site.open(7), 2, "not the first, which has room");
        assert_eq!(site.open(7), 1, "its own is full");
        assert_eq!(site.open(7), 3);
        assert_eq!(site.open(7), 3, "where its latest is");
    }

    #[test]
    fn an_empty_instance_goes_unless_it_is_the_one_that_stays() {
        let mut site = TestSeat::new(1, true);
        assert_eq!((site.open(0), site.open(1), site.open(2)), (1, 2, 3));
        site.close(2, 1);
        site.close(1, 0);
        assert_eq!(site.0.n_instances(), 2);
        assert_eq!(site.0.oldest(), Some(1));
        site.close(3, 2);
        assert_eq!((site.0.n_instances(), site.open(0)), (1, 1));

        let mut site = TestSeat::new(2, false);
        assert_eq!((site.open(0), site.open(0)), (1, 1));
        site.close(1, 0);
        assert_eq!(site.0.n_instances(), 1);
        site.close(1, 0);
        assert_eq!((site.0.n_instances(), site.0.oldest()), (0, None));
    }

    #[test]
    fn a_dead_instance_takes_nothing_more_and_its_sessions_may_leave_late() {
        let mut site = TestSeat::new(2, true);
        assert_eq!((site.open(0), site.open(0)), (1, 1));
        site.0.remove(1);
        assert_eq!(site.open(0), 2);
        site.close(1, 0);
        site.close(1, 0);
        assert_eq!(site.open(0), 2, "it is still known");
        site.close(2, 0);
        site.close(2, 0);
        assert!(site.0.clients.is_empty());
    }
}
