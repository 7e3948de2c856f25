//! How many connections each client has, over all workers.
//!
//! Asked once per connection, and only where the operator has set a bound: a lock is cheap enough.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pointsman_contract::client::network;

/// Connections by client.
#[derive(Debug, Default)]
pub struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One connection of a client, until it is dropped.
#[derive(Debug)]
pub struct ClientSlot {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    /// Takes one more connection of this client, unless it has `max` already.
    pub fn enter(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<ClientSlot> {
        let client = network(address);
        let mut open = self.lock();
        let n_open = open.entry(client).or_insert(0);
        if *n_open >= max {
            return None;
        }
        *n_open += 1;
        drop(open);
        Some(ClientSlot {
            clients: Arc::clone(self),
            client,
        })
    }

    /// Nothing between lock and unlock can panic half way, so a poisoned lock is as good.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        if let Entry::Occupied(mut n_open) = self.clients.lock().entry(self.client) {
            *n_open.get_mut() -= 1;
            if *n_open.get() == 0 {
                n_open.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_and_others_have_their_own() {
        let clients = Arc::<Clients>::default();
        let enter = |address: &str| clients.enter(address.parse().unwrap(), 2);
        let (first, _second) = (enter("192.0.2.1"), enter("::ffff:192.0.2.1"));
        assert!(first.is_some() && enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        drop(first);
        assert!(enter("192.0.2.1").is_some());
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_nothing_is_kept_of_who_left() {
        let clients = Arc::<Clients>::default();
        let slots =
            ["2001:db8::1", "2001:db8::2"].map(|ip| clients.enter(ip.parse().unwrap(), 2).unwrap());
        assert!(clients.enter("2001:db8::3".parse().unwrap(), 2).is_none());
        assert!(
            clients
                .enter("2001:db8:0:1::".parse().unwrap(), 2)
                .is_some()
        );
        drop(slots);
        assert!(clients.lock().is_empty());
    }
}
