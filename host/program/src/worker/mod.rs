//! One thread of the data plane: its runtime, its sockets, its snapshot, its plugin instances, its
//! sessions.
//!
//! In come snapshots, connections that another worker gives, and the drain signal; out go counters
//! and log lines. Everything here is touched by one thread only: no lock is taken on the way of a
//! byte, and no other thread is woken. [`guests`] are its plugins at work, [`loads`] how it shares
//! connections with the other workers.

pub mod guests;
pub mod loads;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use pointsman_admin::access_log::AccessLog;
use pointsman_config::{Listener, Target};
use pointsman_contract::close;
use pointsman_contract::names::PluginName;
use pointsman_contract::session::{Ender, SessionId};
use pointsman_metrics::counters::{TargetCounters, WorkerCounters};
use pointsman_metrics::labels::TargetKind;
use pointsman_plugins::host::PluginHost;
use pointsman_traffic::overload::clients::{ClientSlot, Clients};
use pointsman_traffic::overload::descriptors::Descriptors;
use pointsman_traffic::overload::handshakes::Handshakes;
use pointsman_traffic::overload::lag::Lag;
use pointsman_traffic::overload::penalties::Penalties;
use pointsman_traffic::proxy::Connections;
use pointsman_traffic::relay::pipe::Pipe;
use pointsman_traffic::session::buffers::{Buffers, HeldByAll};
use pointsman_traffic::session::{Control, Order, Place, Registration, SWEEP_INTERVAL, Sessions};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::guests::{Guests, States};
use self::loads::{Loads, SessionSlot, Slot};
use crate::drain::{Drain, Plan as DrainPlan};
use crate::site::{Keeps, Site};
use crate::{connection, listener};

/// How often a draining worker looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Connections given by other workers that wait to be taken.
const GIVEN_MAX: usize = 1024;

/// What a worker is made of.
#[derive(Debug)]
pub struct Setup {
    /// From 0.
    pub index: usize,
    /// One socket for each listener.
    pub listeners: Vec<Listen>,
    /// Snapshots, as they are published.
    pub site: watch::Receiver<Arc<Site>>,
    /// Stop taking, finish.
    pub drain: Drain,
    /// This worker's cells.
    pub counters: Arc<WorkerCounters>,
    /// What the sessions of all workers hold.
    pub held: Arc<HeldByAll>,
    /// This worker's end of the log.
    pub access_log: AccessLog,
    /// What plugins on this worker may ask of the host.
    pub plugin_host: PluginHost,
    /// All workers' loads.
    pub loads: Arc<Loads>,
    /// All workers' connections by client.
    pub clients: Arc<Clients>,
    /// Clients that plugins have failed for, on all workers.
    pub penalties: Arc<Penalties>,
    /// Of the process.
    pub descriptors: Descriptors,
    /// The way to every worker, this one included.
    pub givers: Vec<mpsc::Sender<Given>>,
    /// What others give.
    pub given: mpsc::Receiver<Given>,
    /// What the control plane asks.
    pub asked: mpsc::Receiver<Ask>,
    /// Dropped when this worker has ended.
    pub alive: mpsc::Sender<()>,
}

/// What the control plane asks of a worker. Nobody may be waiting for an answer any more.
#[derive(Debug)]
pub enum Ask {
    /// What do the instances of this plugin know?
    Save(PluginName, oneshot::Sender<States>),
    /// Where do the open sessions run, and how many at each place?
    Census(oneshot::Sender<Census>),
    /// Accept here, too; or go on accepting there with other limits.
    Listen(Listen),
    /// Accept there no longer.
    Unlisten(ListenerKey),
}

/// Names a listener: its address as written, and how many before it have the same.
pub type ListenerKey = (SocketAddr, usize);

/// A listener for one worker.
#[derive(Debug)]
pub struct Listen {
    /// Which.
    pub key: ListenerKey,
    /// What is accepted from; none: from the socket that is there already.
    pub socket: Option<StdListener>,
    /// What holds for connections accepted from now on.
    pub limits: Arc<Listener>,
    /// Whether the socket is a service manager's: it takes connections for as long as that has it open.
    pub is_inherited: bool,
}

/// Open sessions by route, upstream's backend, and number.
pub type Census = Vec<(Place, u64)>;

/// Questions that wait; a reload asks a few for each listener.
const ASKS_MAX: usize = 1024;

/// The ways to ask workers.
pub fn asking(n_workers: usize) -> (Vec<mpsc::Sender<Ask>>, Vec<mpsc::Receiver<Ask>>) {
    (0..n_workers).map(|_| mpsc::channel(ASKS_MAX)).unzip()
}

/// One socket that is accepted from.
#[derive(Debug)]
struct Listening {
    limits: Rc<RefCell<Arc<Listener>>>,
    task: AbortHandle,
    is_inherited: bool,
}

/// A connection on its way from one worker to another.
#[derive(Debug)]
pub struct Given {
    stream: StdStream,
    client: SocketAddr,
    limits: Arc<Listener>,
    count: (Slot, Option<ClientSlot>),
}

/// The ways to give connections to workers.
pub fn giving(n_workers: usize) -> (Vec<mpsc::Sender<Given>>, Vec<mpsc::Receiver<Given>>) {
    (0..n_workers).map(|_| mpsc::channel(GIVEN_MAX)).unzip()
}

/// One thread of the data plane.
#[derive(Debug)]
pub struct Worker {
    site: RefCell<Arc<Site>>,
    /// Where sessions may stay by that.
    keeps: RefCell<Rc<Keeps>>,
    drain: Drain,
    /// This worker's cells.
    pub counters: Arc<WorkerCounters>,
    access_log: AccessLog,
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
    loads: Arc<Loads>,
    clients: Arc<Clients>,
    /// Clients that plugins have failed for, on all workers.
    pub penalties: Arc<Penalties>,
    /// Of the process.
    pub descriptors: Descriptors,
    /// Connections that have not asked for anything yet.
    pub handshakes: Rc<Handshakes>,
    lag: Rc<Lag>,
    index: usize,
    givers: Vec<mpsc::Sender<Given>>,
    targets: RefCell<HashMap<Target, Arc<TargetCounters>>>,
    listening: RefCell<HashMap<ListenerKey, Listening>>,
    is_draining: Cell<bool>,
    /// Open connections that came when it was draining: it does not wait for them.
    turned_away: Rc<Cell<u64>>,
}

/// Starts a worker's thread. It ends when a drain is over.
///
/// # Errors
/// The system has no room for another thread.
pub fn start(setup: Setup) -> io::Result<thread::JoinHandle<()>> {
    let name = format!("worker-{}", setup.index);
    thread::Builder::new().name(name).spawn(move || {
        match Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
        {
            Ok(runtime) => runtime.block_on(run(setup)),
            Err(error) => tracing::error!(%error, "a worker cannot start"),
        }
    })
}

async fn run(setup: Setup) {
    let Setup {
        listeners,
        mut site,
        mut drain,
        mut given,
        mut asked,
        alive: _alive,
        ..
    } = setup;
    let first = Arc::clone(&site.borrow_and_update());
    let worker = Rc::new(Worker {
        keeps: RefCell::new(Rc::new(Keeps::new(&first))),
        site: RefCell::new(first),
        drain: drain.clone(),
        buffers: Rc::new(Buffers::new(Arc::clone(&setup.counters), setup.held)),
        lag: Rc::new(Lag::new(Arc::clone(&setup.counters))),
        counters: setup.counters,
        access_log: setup.access_log,
        sessions: Rc::default(),
        connections: Connections::default(),
        pipe: Pipe::new().ok().map(Rc::new),
        guests: Guests::new(setup.plugin_host),
        loads: setup.loads,
        clients: setup.clients,
        penalties: setup.penalties,
        descriptors: setup.descriptors,
        handshakes: Rc::default(),
        index: setup.index,
        givers: setup.givers,
        targets: RefCell::default(),
        listening: RefCell::default(),
        is_draining: Cell::new(false),
        turned_away: Rc::default(),
    });
    worker.adopt(worker.site());
    let mut accepting = JoinSet::new();
    for listen in listeners {
        worker.listen(&mut accepting, listen);
    }
    let mut sweeps = interval(SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let plan = loop {
        tokio::select! {
            biased;
            plan = drain.started() => break plan,
            Ok(()) = site.changed() => worker.adopt(Arc::clone(&site.borrow_and_update())),
            Some(given) = given.recv() => worker.take(given),
            Some(ask) = asked.recv() => worker.reply(&mut accepting, ask),
            Some(_) = accepting.join_next() => {}
            () = worker.buffers.short() => worker.make_room(),
            _ = sweeps.tick() => worker.sweep(),
        }
    };
    worker.stop_accepting(&mut accepting).await;
    let mut ending = std::pin::pin!(worker.end_all(plan));
    loop {
        tokio::select! {
            () = &mut ending => break,
            () = drain.cut() => break worker.cut_all().await,
            Some(given) = given.recv() => worker.take(given),
            () = worker.buffers.short() => worker.make_room(),
            _ = sweeps.tick() => worker.sweep(),
        }
    }
}

/// Counts a connection as open, on the worker that serves it, until it is dropped.
#[derive(Debug)]
pub struct ConnectionCount {
    counters: Arc<WorkerCounters>,
    _slots: (Slot, Option<ClientSlot>),
    turned_away: Option<Rc<Cell<u64>>>,
}

impl ConnectionCount {
    /// Whether the connection came too late: its request is refused, and then it is closed.
    pub fn is_turned_away(&self) -> bool {
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

impl Worker {
    /// The snapshot in force.
    pub fn site(&self) -> Arc<Site> {
        Arc::clone(&self.site.borrow())
    }

    /// This worker's end of the log, where the operator wants one.
    pub fn access_log(&self) -> Option<&AccessLog> {
        self.site
            .borrow()
            .config
            .access_log
            .is_written()
            .then_some(&self.access_log)
    }

    /// The drain signal.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// Serves a new connection, here or on a worker that has much less to do.
    pub fn welcome(
        self: &Rc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        limits: &Arc<Listener>,
    ) -> io::Result<()> {
        let refuse = |why| {
            self.counters.connections_refused.add(1);
            tracing::debug!(%client, "connection refused: {why} is reached");
        };
        if self.loads.total() >= limits.max_connections {
            refuse("max_connections");
            return Ok(());
        }
        let mut client_slot = None;
        if let Some(max) = limits.max_connections_per_client
            && !self.is_trusted(client.ip())
        {
            client_slot = self.clients.enter(client.ip(), max);
            if client_slot.is_none() {
                refuse("max_connections_per_client");
                return Ok(());
            }
        }
        let best = match self.is_draining.get() {
            true => self.index,
            false => self.loads.best(self.index),
        };
        let count = (self.loads.slot(best), client_slot);
        if best == self.index {
            self.serve(stream, client, Arc::clone(limits), count);
            return Ok(());
        }
        let given = Given {
            stream: stream.into_std()?,
            client,
            limits: Arc::clone(limits),
            count,
        };
        match self.givers[best].try_send(given) {
            Ok(()) => {}
            Err(
                mpsc::error::TrySendError::Full(given) | mpsc::error::TrySendError::Closed(given),
            ) => self.take(given),
        }
        Ok(())
    }

    /// A proxy that is believed speaks for many clients.
    pub fn is_trusted(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let site = self.site.borrow();
        let mut trusted = site.config.trusted_proxies.iter();
        trusted.any(|network| network.contains(&client))
    }

    /// Room for a session, if the operator allows one more.
    pub fn session_slot(&self) -> Option<SessionSlot> {
        self.loads
            .session(self.site.borrow().config.overload.max_sessions)
    }

    /// Whether there is so much to do that a new request should be refused.
    pub fn is_too_late(&self) -> bool {
        let allowed = self.site.borrow().config.overload.shed_delay;
        allowed.is_some_and(|allowed| self.lag.is_too_late(allowed, fastrand::f64()))
    }

    fn reply(self: &Rc<Self>, accepting: &mut JoinSet<()>, ask: Ask) {
        // Who asked may have waited long enough.
        match ask {
            Ask::Save(plugin, reply) => _ = reply.send(self.guests.save(&plugin)),
            Ask::Census(reply) => _ = reply.send(self.sessions.census()),
            Ask::Listen(listen) => self.listen(accepting, listen),
            Ask::Unlisten(key) => self.unlisten(key),
        }
    }

    fn listen(self: &Rc<Self>, accepting: &mut JoinSet<()>, listen: Listen) {
        let Listen {
            key,
            socket,
            limits,
            is_inherited,
        } = listen;
        let mut all = self.listening.borrow_mut();
        let Some(socket) = socket else {
            if let Some(listening) = all.get(&key) {
                *listening.limits.borrow_mut() = limits;
            }
            return;
        };
        match TcpListener::from_std(socket) {
            Ok(listener) => {
                let limits = Rc::new(RefCell::new(limits));
                let accept = listener::accept(Rc::clone(self), listener, Rc::clone(&limits));
                let task = accepting.spawn_local(accept);
                let listening = Listening {
                    limits,
                    task,
                    is_inherited,
                };
                all.insert(key, listening);
            }
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
    }

    fn unlisten(&self, key: ListenerKey) {
        let mut all = self.listening.borrow_mut();
        match all.get(&key) {
            // It goes on taking connections for as long as the service manager has it open.
            Some(listening) if listening.is_inherited => {
                let mut limits = Listener::clone(&listening.limits.borrow());
                limits.max_connections = 0;
                *listening.limits.borrow_mut() = Arc::new(limits);
            }
            Some(listening) => {
                listening.task.abort();
                all.remove(&key);
            }
            None => {}
        }
    }

    /// Closes the sockets that are ours alone. One of a service manager goes on taking connections whatever
    /// happens here, so those are answered and do not wait for nobody.
    async fn stop_accepting(&self, accepting: &mut JoinSet<()>) {
        self.is_draining.set(true);
        let mut n_left = 0;
        for listening in self.listening.borrow().values() {
            match listening.is_inherited {
                true => n_left += 1,
                false => listening.task.abort(),
            }
        }
        while accepting.len() > n_left && accepting.join_next().await.is_some() {}
    }

    fn take(self: &Rc<Self>, given: Given) {
        let Given {
            stream,
            client,
            limits,
            count,
        } = given;
        match TcpStream::from_std(stream) {
            Ok(stream) => self.serve(stream, client, limits, count),
            Err(error) => tracing::warn!(%client, %error, "connection lost between two workers"),
        }
    }

    fn serve(
        self: &Rc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        limits: Arc<Listener>,
        slots: (Slot, Option<ClientSlot>),
    ) {
        self.counters.connections_accepted.add(1);
        self.counters.connections_open.add(1);
        let count = ConnectionCount {
            counters: Arc::clone(&self.counters),
            _slots: slots,
            turned_away: self.is_draining.get().then(|| {
                self.turned_away.set(self.turned_away.get() + 1);
                Rc::clone(&self.turned_away)
            }),
        };
        self.lag.look();
        let max_handshakes = limits.max_handshakes.div_ceil(self.loads.n_workers());
        let ended = self.handshakes.shrink_to(max_handshakes - 1);
        self.counters.handshakes_ended.add(ended);
        let worker = Rc::clone(self);
        self.handshakes
            .run(|waiting| connection::serve(worker, stream, client, limits, count, waiting));
    }

    /// This worker's cells for a route's target.
    pub fn target_counters(&self, target: &Target) -> Arc<TargetCounters> {
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
    pub fn register(&self, id: SessionId, place: Place) -> Registration {
        let stays = self.keeps.borrow().keeps(&place);
        let registration = self.sessions.register(id, place);
        if !stays {
            let close = Order::Close(Ender::Operator, close::SERVICE_RESTART);
            registration.control.tell(close);
        }
        registration
    }

    /// Works by another snapshot from now on.
    fn adopt(self: &Rc<Self>, site: Arc<Site>) {
        for route in &site.config.routes {
            self.target_counters(&route.target);
        }
        self.buffers.allow(site.config.overload.max_buffered_bytes);
        let before = self.site.replace(Arc::clone(&site));
        if site.keeps_the_same_as(&before) {
            return;
        }
        let keeps = Rc::new(Keeps::new(&site));
        *self.keeps.borrow_mut() = Rc::clone(&keeps);
        let mut leaving = self.sessions.all();
        leaving.retain(|session| !keeps.keeps(&session.place) && !session.is_ending());
        if !leaving.is_empty() {
            // The worker's runtime owns the task and ends it at the latest with the worker.
            tokio::task::spawn_local(Rc::clone(self).end_those(leaving));
        }
        for pool in site.pools.values() {
            pool.queue().wake_all();
        }
    }

    /// Sends sessions whose place was taken out their Close, spread over the drain time, and cuts
    /// what has not ended then. Those whose place comes back meanwhile stay.
    async fn end_those(self: Rc<Self>, leaving: Vec<Rc<Control>>) {
        let plan = DrainPlan::within(self.site().config.drain_timeout);
        tracing::info!(
            worker = self.index,
            sessions = leaving.len(),
            "ending sessions: their place is taken out"
        );
        let has_to_go = |session: &Control| !self.keeps.borrow().keeps(&session.place);
        for (i, session) in leaving.iter().enumerate() {
            sleep_until(plan.turn(i, leaving.len())).await;
            if !session.is_ending() && has_to_go(session) {
                session.tell(Order::Close(Ender::Operator, close::SERVICE_RESTART));
            }
        }
        sleep_until(plan.cut_at).await;
        for session in leaving.iter().filter(|session| has_to_go(session)) {
            session.tell(Order::Cut(Ender::Operator));
        }
    }

    fn sweep(&self) {
        self.sessions.sweep();
        self.connections.expire();
        self.buffers.sweep();
        if self.buffers.was_short() {
            self.make_room();
        }
    }

    /// Ends the sessions that hold most, as far as all together hold too much.
    fn make_room(&self) {
        let excess = self.buffers.excess();
        if excess == 0 {
            return;
        }
        match self.sessions.shed(excess) {
            0 => self.buffers.looked_in_vain(),
            n => tracing::warn!(
                worker = self.index,
                sessions = n,
                "overload.max_buffered_bytes is reached: ending the sessions that hold most"
            ),
        }
    }

    /// Sends every session its Close, one after the other, and waits until all connections are gone.
    async fn end_all(&self, plan: DrainPlan) {
        let sessions = self.sessions.all();
        let mut turns = sessions.iter().enumerate().peekable();
        let close =
            |session: &Control| session.tell(Order::Close(Ender::Operator, close::GOING_AWAY));
        while self.counters.connections_open.value() > self.turned_away.get() {
            let now = Instant::now();
            let turn = |i| plan.turn(i, sessions.len());
            while let Some((_, session)) = turns.next_if(|&(i, _)| turn(i) <= now) {
                close(session);
            }
            let mut look_again = now + DRAIN_POLL;
            match turns.peek() {
                Some(&(next, _)) => look_again = look_again.min(turn(next)),
                // Those whose handshake was under way when the others were told.
                None => {
                    let sessions = self.sessions.all();
                    let open = sessions.iter().filter(|session| !session.is_ending());
                    open.for_each(|session| close(session));
                }
            }
            sleep_until(look_again).await;
        }
    }

    /// Ends what has not ended by itself.
    async fn cut_all(&self) {
        let sessions = self.sessions.all();
        tracing::warn!(
            worker = self.index,
            sessions = sessions.len(),
            "the drain time is over: cutting what is left"
        );
        for session in sessions {
            session.tell(Order::Cut(Ender::Operator));
        }
        // Each session's task needs one turn to say in the log how it ended.
        while !self.sessions.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
