//! What the connections of one worker share: its snapshot, counters, sessions, plugins and bounds.
//!
//! Touched by one thread only: no lock is taken on the way of a byte, and no other thread is woken.
//! [`guests`] are the plugins at work, [`loads`] what is open on all workers. The loop that drives a worker is
//! above all this, in `worker.rs`.

pub(crate) mod guests;
pub(crate) mod loads;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use pointsman_admin::access_log::AccessLog;
use pointsman_config::Target;
use pointsman_contract::close;
use pointsman_contract::session::{Ender, SessionId};
use pointsman_metrics::counters::{TargetCounters, WorkerCounters};
use pointsman_metrics::labels::TargetKind;
use pointsman_traffic::overload::clients::ClientSlot;
use pointsman_traffic::overload::descriptors::Descriptors;
use pointsman_traffic::overload::handshakes::Handshakes;
use pointsman_traffic::overload::lag::Lag;
use pointsman_traffic::overload::penalties::Penalties;
use pointsman_traffic::proxy::Connections;
use pointsman_traffic::relay::pipe::Pipe;
use pointsman_traffic::session::buffers::Buffers;
use pointsman_traffic::session::{Order, Place, Registration, Sessions};

use self::guests::Guests;
use self::loads::{LoadSlot, Loads, SessionSlot};
use crate::drain::Drain;
use crate::site::{Retention, Site};

/// What the connections of one worker share.
#[derive(Debug)]
pub(crate) struct WorkerContext {
    /// From 0.
    pub index: usize,
    /// The active snapshot.
    pub(crate) site: RefCell<Arc<Site>>,
    /// Where sessions may stay by that.
    pub(crate) keeps: RefCell<Rc<Retention>>,
    pub(crate) drain: Drain,
    /// This worker's cells.
    pub counters: Arc<WorkerCounters>,
    pub(crate) access_log: AccessLog,
    /// Open sessions.
    pub sessions: Rc<Sessions>,
    /// Kept connections to backends, for plain HTTP.
    pub connections: Connections,
    /// Where sessions read to.
    pub buffers: Rc<Buffers>,
    /// What large payload of relays goes through; none where there was no descriptor for it.
    pub pipe: Option<Rc<Pipe>>,
    /// Plugins at work.
    pub guests: Guests,
    /// Of all workers.
    pub loads: Arc<Loads>,
    /// Clients that plugins have failed for, on all workers.
    pub penalties: Arc<Penalties>,
    /// Of the process.
    pub descriptors: Descriptors,
    /// Connections that have not asked for anything yet.
    pub handshakes: Rc<Handshakes>,
    pub(crate) lag: Rc<Lag>,
    pub(crate) targets: RefCell<HashMap<Target, Arc<TargetCounters>>>,
}

/// Counts a connection as open, on the worker that serves it, until it is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionCount {
    counters: Arc<WorkerCounters>,
    _slots: (LoadSlot, Option<ClientSlot>),
    turned_away: Option<Rc<Cell<u64>>>,
}

impl ConnectionCount {
    /// Counts one more. With `turned_away` it came too late, and is counted there as well.
    pub(crate) fn new(
        counters: &Arc<WorkerCounters>,
        slots: (LoadSlot, Option<ClientSlot>),
        turned_away: Option<Rc<Cell<u64>>>,
    ) -> Self {
        counters.connections_accepted.add(1);
        counters.connections_open.add(1);
        if let Some(turned_away) = &turned_away {
            turned_away.set(turned_away.get() + 1);
        }
        Self {
            counters: Arc::clone(counters),
            _slots: slots,
            turned_away,
        }
    }

    /// Whether the connection came too late: its request is refused, and then it is closed.
    pub(crate) fn is_turned_away(&self) -> bool {
        self.turned_away.is_some()
    }
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.counters.connections_open.sub(1);
        if let Some(turned_away) = &self.turned_away {
            turned_away.set(turned_away.get() - 1);
        }
    }
}

impl WorkerContext {
    /// The active snapshot.
    pub(crate) fn site(&self) -> Arc<Site> {
        Arc::clone(&self.site.borrow())
    }

    /// This worker's end of the log, where the operator wants one.
    pub(crate) fn access_log(&self) -> Option<&AccessLog> {
        self.site
            .borrow()
            .config
            .access_log
            .is_written()
            .then_some(&self.access_log)
    }

    /// The drain signal.
    pub(crate) fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// A proxy that is believed speaks for many clients.
    pub(crate) fn is_trusted(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let site = self.site.borrow();
        let mut trusted = site.config.trusted_proxies.iter();
        trusted.any(|network| network.contains(&client))
    }

    /// Room for a session, if the operator allows one more.
    pub(crate) fn session_slot(&self) -> Option<SessionSlot> {
        self.loads
            .session(self.site.borrow().config.overload.max_sessions)
    }

    /// Whether there is so much to do that a new request should be refused.
    pub(crate) fn is_too_late(&self) -> bool {
        let allowed = self.site.borrow().config.overload.shed_delay;
        allowed.is_some_and(|allowed| self.lag.is_too_late(allowed, fastrand::f64()))
    }

    /// This worker's cells for a route's target.
    pub(crate) fn target_counters(&self, target: &Target) -> Arc<TargetCounters> {
        let make = || match target {
            Target::Upstream(name) => self.counters.target(TargetKind::Upstream, name.as_str()),
            Target::Handler(name) => self.counters.target(TargetKind::Handler, name.as_str()),
            Target::Http(name) => self.counters.target(TargetKind::Http, name.as_str()),
        };
        Arc::clone(
            self.targets
                .borrow_mut()
                .entry(target.clone())
                .or_insert_with(make),
        )
    }

    /// Takes a session in. One whose place is being taken out just now is told so at once.
    pub(crate) fn register(&self, id: SessionId, place: Place) -> Registration {
        let stays = self.keeps.borrow().keeps(&place);
        let registration = self.sessions.register(id, place);
        if !stays {
            let close = Order::Close(Ender::Operator, close::SERVICE_RESTART);
            registration.control.tell(close);
        }
        registration
    }
}
