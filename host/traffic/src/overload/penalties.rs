//! Clients for whom a plugin has failed lately: their next sessions at that plugin begin later.
//!
//! A call that runs out of time or traps costs others, so whoever has caused one waits: a second, and twice as
//! long after each further failure. When the wait is over, handshakes of that client are let through one after the
//! other, so that those that waited do not come all at once. A new generation of the plugin is other
//! code, and forgives. Shared by all workers; while nobody is penalized, asking is one load.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_contract::client::network;
use pointsman_contract::names::PluginName;
use tokio::time::Instant;

/// How long the next handshake waits after a first failure. It doubles with each further one.
const FIRST: Duration = Duration::from_secs(1);
/// It doubles no further. An address may be that of many: sixteen seconds make failures rare enough.
const DOUBLINGS_MAX: u32 = 4;
/// Between two handshakes of a penalized client: this part of its penalty.
const SPACING_DIVISOR: u32 = 10;
/// A failure is forgotten after such a time without another one.
const MEMORY: Duration = Duration::from_secs(300);
/// Beyond this, a handshake is not worth holding open: the client is told when to come again.
pub const WAIT_MAX: Duration = Duration::from_secs(2);

/// Clients that are remembered. Of more, those whose last failure is longest ago are forgotten.
const CLIENTS_MAX: usize = 4096;
/// Plugins at which one client is penalized.
const PLUGINS_MAX: usize = 16;
/// How often those whose time is over are looked for.
const PURGE_INTERVAL: Duration = Duration::from_secs(10);

/// Who is penalized, and at which plugin.
#[derive(Debug, Default)]
pub struct Penalties {
    /// Clients in the table: so that those who ask need no lock when there are none.
    n_clients: AtomicUsize,
    table: Mutex<PenaltyTable>,
}

#[derive(Debug, Default)]
struct PenaltyTable {
    clients: HashMap<IpAddr, Vec<PenaltyEntry>>,
    purged_at: Option<Instant>,
}

/// What one client has to wait for at one plugin.
#[derive(Debug)]
struct PenaltyEntry {
    plugin: PluginName,
    generation: u64,
    n_failures: u32,
    failed_at: Instant,
    /// When the next handshake may go through.
    next_at: Instant,
}

/// When a handshake may go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PenaltyTurn {
    /// The client is not penalized there.
    Free,
    /// Now, but it is penalized.
    Now,
    /// Then, unless it has failed once more by then: ask [`Penalties::is_still`].
    At(Instant, PenaltyTicket),
    /// After such a time, which is too long to wait for.
    TooLate(Duration),
}

/// What a place in the order of handshakes rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PenaltyTicket {
    n_failures: u32,
}

impl Penalties {
    /// Nobody is penalized. Relaxed: a failure that is seen a moment later is as good.
    pub fn is_empty(&self) -> bool {
        self.n_clients.load(Ordering::Relaxed) == 0
    }

    /// A call of this plugin has failed on what this client sent. Returns how long its next handshake has to
    /// wait.
    pub fn add(
        &self,
        plugin: &PluginName,
        generation: u64,
        client: IpAddr,
        now: Instant,
    ) -> Duration {
        let mut table = self.lock();
        table.purge(now);
        let client = network(client);
        if !table.clients.contains_key(&client) && table.clients.len() >= CLIENTS_MAX {
            table.forget_oldest();
        }
        let penalties = table.clients.entry(client).or_default();
        let known = penalties.iter().position(|known| known.plugin == *plugin);
        let mut n_failures = 1;
        if let Some(known) = known {
            let known = penalties.swap_remove(known);
            if known.generation == generation && !known.is_over(now) {
                n_failures = known.n_failures.saturating_add(1);
            }
        }
        if penalties.len() >= PLUGINS_MAX {
            penalties.remove(0);
        }
        let penalty = duration(n_failures);
        penalties.push(PenaltyEntry {
            plugin: plugin.clone(),
            generation,
            n_failures,
            failed_at: now,
            next_at: now + penalty,
        });
        self.count(&table);
        penalty
    }

    /// When a handshake of this client may go through, which has its place in the order from then on. `until`: how
    /// long it can wait.
    pub fn turn(
        &self,
        plugin: &PluginName,
        generation: u64,
        client: IpAddr,
        now: Instant,
        until: Instant,
    ) -> PenaltyTurn {
        let mut table = self.lock();
        table.purge(now);
        let turn = match table.find(plugin, generation, client, now) {
            None => PenaltyTurn::Free,
            Some(penalty) => penalty.turn(now, until),
        };
        self.count(&table);
        turn
    }

    /// Whether a place in the order is still good.
    pub fn is_still(
        &self,
        ticket: PenaltyTicket,
        plugin: &PluginName,
        generation: u64,
        client: IpAddr,
        now: Instant,
    ) -> bool {
        let mut table = self.lock();
        let penalty = table.find(plugin, generation, client, now);
        penalty.is_none_or(|penalty| penalty.n_failures == ticket.n_failures)
    }

    fn count(&self, table: &PenaltyTable) {
        self.n_clients.store(table.clients.len(), Ordering::Relaxed);
    }

    /// Nothing between lock and unlock can panic half way, so a poisoned lock is as good.
    fn lock(&self) -> MutexGuard<'_, PenaltyTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PenaltyTable {
    fn find(
        &mut self,
        plugin: &PluginName,
        generation: u64,
        client: IpAddr,
        now: Instant,
    ) -> Option<&mut PenaltyEntry> {
        let penalties = self.clients.get_mut(&network(client))?;
        penalties.iter_mut().find(|penalty| {
            penalty.plugin == *plugin && penalty.generation == generation && !penalty.is_over(now)
        })
    }

    fn purge(&mut self, now: Instant) {
        let is_due = |at: Instant| now.duration_since(at) >= PURGE_INTERVAL;
        if self.purged_at.is_some_and(|at| !is_due(at)) {
            return;
        }
        self.purged_at = Some(now);
        self.clients.retain(|_, penalties| {
            penalties.retain(|penalty| !penalty.is_over(now));
            !penalties.is_empty()
        });
    }

    /// Looks at all of them, which is little beside what the failure before it has cost.
    fn forget_oldest(&mut self) {
        let last_failure =
            |penalties: &Vec<PenaltyEntry>| penalties.iter().map(|p| p.failed_at).max();
        let oldest = self.clients.iter().min_by_key(|(_, p)| last_failure(p));
        if let Some(oldest) = oldest.map(|(client, _)| *client) {
            self.clients.remove(&oldest);
        }
    }
}

impl PenaltyEntry {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.failed_at) >= MEMORY
    }

    fn turn(&mut self, now: Instant, until: Instant) -> PenaltyTurn {
        let at = self.next_at.max(now);
        if at > until {
            return PenaltyTurn::TooLate(at - now);
        }
        self.next_at = at + duration(self.n_failures) / SPACING_DIVISOR;
        if at == now {
            return PenaltyTurn::Now;
        }
        let n_failures = self.n_failures;
        PenaltyTurn::At(at, PenaltyTicket { n_failures })
    }
}

fn duration(n_failures: u32) -> Duration {
    FIRST * 2_u32.pow(n_failures.saturating_sub(1).min(DOUBLINGS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const CLIENT: &str = "192.0.2.1";

    struct PenaltySite {
        penalties: Penalties,
        begun: Instant,
    }

    impl PenaltySite {
        fn new() -> Self {
            Self {
                penalties: Penalties::default(),
                begun: Instant::now(),
            }
        }

        fn fail(&self, at: Duration) -> Duration {
            let now = self.begun + at;
            self.penalties.add(&plugin("chat"), 1, ip(CLIENT), now)
        }

        fn ask(&self, client: &str, generation: u64, at: Duration) -> PenaltyTurn {
            let now = self.begun + at;
            let plugin = plugin("chat");
            self.penalties
                .turn(&plugin, generation, ip(client), now, now + WAIT_MAX)
        }

        /// After what time a handshake may go through.
        fn wait(&self, at: Duration) -> Option<Duration> {
            match self.ask(CLIENT, 1, at) {
                PenaltyTurn::Free | PenaltyTurn::Now => Some(Duration::ZERO),
                PenaltyTurn::At(then, _) => Some(then - (self.begun + at)),
                PenaltyTurn::TooLate(_) => None,
            }
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn plugin(name: &str) -> PluginName {
        PluginName::parse(name).unwrap()
    }

    #[test]
    fn a_client_waits_longer_each_time_and_others_do_not() {
        let site = PenaltySite::new();
        assert!(site.penalties.is_empty());
        assert_eq!(site.fail(Duration::ZERO), 1000 * MS);
        assert!(!site.penalties.is_empty());
        assert_eq!(site.wait(100 * MS), Some(900 * MS));
        assert_eq!(site.ask("192.0.2.2", 1, 100 * MS), PenaltyTurn::Free);
        assert_eq!(site.fail(2000 * MS), 2000 * MS);
        assert_eq!(site.wait(2000 * MS), Some(2000 * MS));
        assert_eq!(site.fail(5000 * MS), 4000 * MS);
        let late = site.ask(CLIENT, 1, 5500 * MS);
        assert_eq!(late, PenaltyTurn::TooLate(3500 * MS));
        for _ in 0..100 {
            site.fail(6000 * MS);
        }
        assert_eq!(site.fail(6000 * MS), 16_000 * MS, "no longer than that");
    }

    #[test]
    fn those_that_wait_are_let_through_one_after_the_other() {
        let site = PenaltySite::new();
        site.fail(Duration::ZERO);
        for n in 0..10 {
            assert_eq!(site.wait(100 * MS), Some(900 * MS + n * 100 * MS), "{n}");
        }
        assert_eq!(site.wait(MS), Some(1999 * MS));
        assert_eq!(site.wait(MS), None, "too many wait");
        // It goes on so while the failure is remembered.
        assert_eq!(site.ask(CLIENT, 1, 10_000 * MS), PenaltyTurn::Now);
        assert_eq!(site.wait(10_000 * MS), Some(100 * MS));
    }

    #[test]
    fn a_failure_meanwhile_makes_those_that_wait_ask_again() {
        let site = PenaltySite::new();
        site.fail(Duration::ZERO);
        let PenaltyTurn::At(then, ticket) = site.ask(CLIENT, 1, MS) else {
            panic!("it should wait")
        };
        let is_still = |at| {
            let (plugin, penalties) = (plugin("chat"), &site.penalties);
            penalties.is_still(ticket, &plugin, 1, ip(CLIENT), at)
        };
        assert!(is_still(then));
        site.fail(500 * MS);
        assert!(!is_still(then));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let site = PenaltySite::new();
        site.fail(Duration::ZERO);
        let later = MEMORY + MS;
        assert_eq!(site.ask(CLIENT, 1, later), PenaltyTurn::Free);
        assert!(site.penalties.is_empty());
        assert_eq!(site.fail(later), 1000 * MS);
    }

    #[test]
    fn a_new_generation_is_other_code() {
        let site = PenaltySite::new();
        site.fail(Duration::ZERO);
        assert_eq!(site.ask(CLIENT, 2, MS), PenaltyTurn::Free);
        let (now, client) = (site.begun + MS, ip(CLIENT));
        let penalties = &site.penalties;
        assert_eq!(penalties.add(&plugin("chat"), 2, client, now), 1000 * MS);
        assert_eq!(penalties.add(&plugin("tap"), 1, client, now), 1000 * MS);
        assert_eq!(penalties.lock().clients[&client].len(), 2);
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_the_table_is_bounded() {
        let site = PenaltySite::new();
        let add = |client: IpAddr, at: Duration| {
            let now = site.begun + at;
            site.penalties.add(&plugin("chat"), 1, client, now)
        };
        add(ip("2001:db8::1"), Duration::ZERO);
        assert_eq!(add(ip("2001:db8::2"), Duration::ZERO), 2000 * MS);
        let many = 2 * CLIENTS_MAX as u32;
        for n in 0..many {
            add(IpAddr::from(n.to_be_bytes()), MS);
        }
        assert_eq!(site.penalties.lock().clients.len(), CLIENTS_MAX);
        assert_eq!(
            site.ask("2001:db8::3", 1, MS),
            PenaltyTurn::Free,
            "the oldest"
        );
        for n in 0..100 {
            let plugin = plugin(&format!("p{n}"));
            site.penalties.add(&plugin, 1, ip(CLIENT), site.begun + MS);
        }
        let kept = site.penalties.lock().clients[&ip(CLIENT)].len();
        assert_eq!(kept, PLUGINS_MAX);
    }
}
