//! One thread of the data plane: its runtime, its sockets, its snapshot, its plugin instances, its
//! sessions.
//!
//! In come snapshots, connections that another worker gives, and the drain signal; out go counters
//! and log lines. Everything here is touched by one thread only: no lock is taken on the way of a
//! byte, and no other thread is woken.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::admin::access_log::AccessLog;
use crate::admin::metrics::{TargetCounters, TargetKind, WorkerCounters};
use crate::body::Body;
use crate::config::{Listener, PluginName, Target, UpstreamName};
use crate::drain::{Drain, Plan as DrainPlan};
use crate::plugins::failure::CallError;
use crate::plugins::generation::Generation;
use crate::plugins::host::PluginHost;
use crate::plugins::policy::GuestPolicy;
use crate::proxy::Connections;
use crate::routing::chooser::{Chooser, MakePolicy, Plan, RequestFacts};
use crate::routing::policy::PolicyError;
use crate::session::handler::{Handler, HandlerError};
use crate::session::relayed::Scratch;
use crate::session::{EndReport, Ender, Order, SWEEP_INTERVAL, Sessions};
use crate::site::Site;
use crate::upstream::pool::{Backend, Pool};
use crate::{connection, listener};

/// Where relays read to. As large as the largest read that pays: at 64 KiB a system call's fixed
/// cost is a few percent of the copy.
const SCRATCH_BYTES: usize = 64 * 1024;

/// RFC 6455 section 7.4.1.
const GOING_AWAY: u16 = 1001;

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
    pub listeners: Vec<(StdListener, Arc<Listener>)>,
    /// Snapshots, as they are published.
    pub site: watch::Receiver<Arc<Site>>,
    /// Stop taking, finish.
    pub drain: Drain,
    /// This worker's cells.
    pub counters: Arc<WorkerCounters>,
    /// This worker's end of the log.
    pub access_log: AccessLog,
    /// What plugins on this worker may ask of the host.
    pub plugin_host: PluginHost,
    /// All workers' loads.
    pub loads: Arc<Loads>,
    /// The way to every worker, this one included.
    pub givers: Vec<mpsc::Sender<Given>>,
    /// What others give.
    pub given: mpsc::Receiver<Given>,
    /// Dropped when this worker has ended.
    pub alive: mpsc::Sender<()>,
}

/// A connection on its way from one worker to another.
#[derive(Debug)]
pub struct Given {
    stream: StdStream,
    client: SocketAddr,
    limits: Arc<Listener>,
    slot: Slot,
}

/// The ways to give connections to workers.
pub fn giving(n_workers: usize) -> (Vec<mpsc::Sender<Given>>, Vec<mpsc::Receiver<Given>>) {
    (0..n_workers).map(|_| mpsc::channel(GIVEN_MAX)).unzip()
}

/// One thread of the data plane.
#[derive(Debug)]
pub struct Worker {
    site: RefCell<Arc<Site>>,
    drain: Drain,
    /// This worker's cells.
    pub counters: Arc<WorkerCounters>,
    /// This worker's end of the log.
    pub access_log: AccessLog,
    /// Open sessions.
    pub sessions: Rc<Sessions>,
    /// Kept connections to backends, for plain HTTP.
    pub connections: Connections,
    /// Where relays read to.
    pub scratch: Scratch,
    plugin_host: PluginHost,
    loads: Arc<Loads>,
    index: usize,
    givers: Vec<mpsc::Sender<Given>>,
    /// By upstream.
    choosers: RefCell<HashMap<UpstreamName, Placer>>,
    handlers: RefCell<HashMap<PluginName, (u64, Rc<dyn Handler>)>>,
    targets: RefCell<HashMap<Target, Arc<TargetCounters>>>,
}

/// Which policy placed a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyLabel {
    /// The plugin.
    pub name: PluginName,
    /// 0 where the plugin could not be had and the host's own round robin chose.
    pub generation: u64,
}

/// One upstream's policy at work.
#[derive(Debug)]
struct Placer {
    chooser: Chooser<GuestPolicy>,
    label: Arc<PolicyLabel>,
    config: serde_json::Value,
}

impl Placer {
    fn new(pool: &Pool, generation: u64) -> Self {
        let label = PolicyLabel {
            name: pool.config.policy.clone(),
            generation,
        };
        Self {
            chooser: Chooser::new(),
            label: Arc::new(label),
            config: pool.config.policy_config.clone(),
        }
    }

    fn is_for(&self, pool: &Pool, generation: u64) -> bool {
        self.label.generation == generation
            && self.label.name == pool.config.policy
            && self.config == pool.config.policy_config
    }
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
        alive: _alive,
        ..
    } = setup;
    let worker = Rc::new(Worker {
        site: RefCell::new(Arc::clone(&site.borrow_and_update())),
        drain: drain.clone(),
        counters: setup.counters,
        access_log: setup.access_log,
        sessions: Rc::default(),
        connections: Connections::default(),
        scratch: Rc::new(RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice())),
        plugin_host: setup.plugin_host,
        loads: setup.loads,
        index: setup.index,
        givers: setup.givers,
        choosers: RefCell::default(),
        handlers: RefCell::default(),
        targets: RefCell::default(),
    });
    worker.adopt(worker.site());
    let mut accepting = JoinSet::new();
    for (socket, limits) in listeners {
        match TcpListener::from_std(socket) {
            Ok(listener) => {
                _ = accepting.spawn_local(listener::accept(Rc::clone(&worker), listener, limits))
            }
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
    }
    let mut sweeps = interval(SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let plan = loop {
        tokio::select! {
            biased;
            plan = drain.started() => break plan,
            Ok(()) = site.changed() => worker.adopt(Arc::clone(&site.borrow_and_update())),
            Some(given) = given.recv() => worker.take(given),
            _ = sweeps.tick() => worker.sweep(),
        }
    };
    accepting.shutdown().await;
    let mut ending = std::pin::pin!(worker.end_all(plan));
    loop {
        tokio::select! {
            () = &mut ending => break,
            () = drain.cut() => break worker.cut_all().await,
            Some(given) = given.recv() => worker.take(given),
            _ = sweeps.tick() => worker.sweep(),
        }
    }
}

/// How many connections each worker has, those on their way to it included.
#[derive(Debug)]
pub struct Loads(Vec<Load>);

/// On a cache line of its own: each is written at the pace of connections, by its worker mostly.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load(AtomicUsize);

/// A worker gives connections on when it has more than the least loaded has, by this many and by a
/// sixteenth of that. Below, the luck of the kernel's hash is cheaper than the hand-over.
const MAX_LEAD: usize = 4;

impl Loads {
    /// All zeros.
    pub fn new(n_workers: usize) -> Self {
        Self((0..n_workers).map(|_| Load::default()).collect())
    }

    fn total(&self) -> usize {
        self.0.iter().map(|load| load.0.load(Relaxed)).sum()
    }

    /// Who should have the next connection of worker `own`.
    fn best(&self, own: usize) -> usize {
        let loads = || self.0.iter().map(|load| load.0.load(Relaxed)).enumerate();
        let lead = |least: usize| least + least / 16 + MAX_LEAD;
        match loads().min_by_key(|&(_, load)| load) {
            Some((other, least)) if self.0[own].0.load(Relaxed) >= lead(least) => other,
            Some(_) | None => own,
        }
    }

    fn slot(self: &Arc<Self>, worker: usize) -> Slot {
        self.0[worker].0.fetch_add(1, Relaxed);
        Slot {
            loads: Arc::clone(self),
            worker,
        }
    }
}

/// A connection's place among the loads; dropping it frees it.
#[derive(Debug)]
struct Slot {
    loads: Arc<Loads>,
    worker: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.loads.0[self.worker].0.fetch_sub(1, Relaxed);
    }
}

/// Counts a connection as open, on the worker that serves it, until it is dropped.
#[derive(Debug)]
pub struct ConnectionCount {
    counters: Arc<WorkerCounters>,
    _slot: Slot,
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.counters.connections_open.sub(1);
    }
}

impl Worker {
    /// The snapshot in force.
    pub fn site(&self) -> Arc<Site> {
        Arc::clone(&self.site.borrow())
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
        if self.loads.total() >= limits.max_connections {
            self.counters.connections_refused.add(1);
            tracing::debug!(%client, "connection refused: max_connections is reached");
            return Ok(());
        }
        stream.set_nodelay(true)?;
        let best = self.loads.best(self.index);
        let slot = self.loads.slot(best);
        if best == self.index {
            self.serve(stream, client, Arc::clone(limits), slot);
            return Ok(());
        }
        let given = Given {
            stream: stream.into_std()?,
            client,
            limits: Arc::clone(limits),
            slot,
        };
        match self.givers[best].try_send(given) {
            Ok(()) => {}
            Err(
                mpsc::error::TrySendError::Full(given) | mpsc::error::TrySendError::Closed(given),
            ) => self.take(given),
        }
        Ok(())
    }

    fn take(self: &Rc<Self>, given: Given) {
        let Given {
            stream,
            client,
            limits,
            slot,
        } = given;
        match TcpStream::from_std(stream) {
            Ok(stream) => self.serve(stream, client, limits, slot),
            Err(error) => tracing::warn!(%client, %error, "connection lost between two workers"),
        }
    }

    fn serve(
        self: &Rc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        limits: Arc<Listener>,
        slot: Slot,
    ) {
        self.counters.connections_accepted.add(1);
        self.counters.connections_open.add(1);
        let count = ConnectionCount {
            counters: Arc::clone(&self.counters),
            _slot: slot,
        };
        // The worker's runtime owns the task and ends it at the latest with the worker.
        tokio::task::spawn_local(connection::serve(
            Rc::clone(self),
            stream,
            client,
            limits,
            count,
        ));
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

    /// Asks an upstream's policy about a request; says who was asked.
    pub fn choose(&self, pool: &Pool, facts: &RequestFacts<'_>) -> (Plan, Arc<PolicyLabel>) {
        self.with_placer(pool, |placer, make| {
            let plan = placer.chooser.choose(pool, facts, make);
            (plan, Arc::clone(&placer.label))
        })
    }

    /// A backend has accepted: what the policy adds to the client's answer.
    pub fn placed(
        &self,
        pool: &Pool,
        backend: &Backend,
        facts: &RequestFacts<'_>,
    ) -> Vec<(String, String)> {
        self.with_placer(pool, |placer, _| placer.chooser.placed(backend, facts))
    }

    /// Tells an upstream's policy of the end of a session.
    pub fn session_ended(&self, pool: &Pool, backend: &Backend, report: &EndReport) {
        self.with_placer(pool, |placer, _| {
            placer.chooser.session_ended(backend.address(), report)
        });
    }

    /// The handler of this name.
    ///
    /// # Errors
    /// There is none, or it cannot be made.
    pub fn handler(&self, name: &PluginName) -> Result<Rc<dyn Handler>, HandlerError> {
        let site = self.site();
        let generation = site
            .plugins
            .get(name)
            .ok_or_else(|| HandlerError("it is not loaded".to_owned()))?;
        let mut handlers = self.handlers.borrow_mut();
        if let Some((number, handler)) = handlers.get(name)
            && *number == generation.number
        {
            return Ok(Rc::clone(handler));
        }
        let settings = site.config.plugin_settings(name);
        let made = generation.handler(&settings, &self.plugin_host);
        let handler: Rc<dyn Handler> =
            Rc::new(made.map_err(|error| HandlerError(error.to_string()))?);
        handlers.insert(name.clone(), (generation.number, Rc::clone(&handler)));
        Ok(handler)
    }

    /// Lets an HTTP plugin answer.
    ///
    /// # Errors
    /// There is none, or it failed before the head of its answer.
    pub async fn answer(
        &self,
        name: &PluginName,
        request: Request<Body>,
    ) -> Result<Response<Body>, CallError> {
        let site = self.site();
        let generation = site.plugins.get(name).ok_or(CallError::Dead)?;
        let response = generation.http(&self.plugin_host).handle(request).await?;
        Ok(response.map(|body| body.boxed_unsync()))
    }

    fn with_placer<T>(
        &self,
        pool: &Pool,
        act: impl FnOnce(&mut Placer, MakePolicy<'_, GuestPolicy>) -> T,
    ) -> T {
        let site = self.site();
        let generation = site.plugins.get(&pool.config.policy);
        let number = generation.map_or(0, |generation| generation.number);
        let mut choosers = self.choosers.borrow_mut();
        let placer = choosers
            .entry(pool.config.name.clone())
            .or_insert_with(|| Placer::new(pool, number));
        let mut before = None;
        if !placer.is_for(pool, number) {
            before = std::mem::replace(placer, Placer::new(pool, number))
                .chooser
                .into_policy();
        }
        let mut make = || match generation {
            Some(generation) => {
                self.make_policy(generation, &pool.config.policy_config, before.take())
            }
            None => Err(PolicyError("it is not loaded".to_owned())),
        };
        act(placer, &mut make)
    }

    /// An instance of this worker's; `before`: the one that it takes the place of.
    fn make_policy(
        &self,
        generation: &Arc<Generation>,
        config: &serde_json::Value,
        before: Option<GuestPolicy>,
    ) -> Result<GuestPolicy, PolicyError> {
        let make = || {
            generation
                .policy(config, &self.plugin_host)
                .map_err(|error| PolicyError(error.to_string()))
        };
        let mut policy = make()?;
        if let Some(mut before) = before
            && let Err(error) = policy.take_over(&mut before)
        {
            tracing::warn!(plugin = %generation.name, generation = generation.number, %error, "policy begins without the state of the one before");
            policy = make()?;
        }
        Ok(policy)
    }

    /// Works by another snapshot from now on.
    fn adopt(&self, site: Arc<Site>) {
        for route in &site.config.routes {
            self.target_counters(&route.target);
        }
        *self.site.borrow_mut() = site;
    }

    fn sweep(&self) {
        self.sessions.sweep();
        self.connections.expire();
    }

    /// Sends every session its Close, one after the other, and waits until all connections are gone.
    async fn end_all(&self, plan: DrainPlan) {
        let sessions = self.sessions.all();
        for (i, session) in sessions.iter().enumerate() {
            sleep_until(plan.turn(i, sessions.len())).await;
            session.tell(Order::Close(Ender::Operator, GOING_AWAY));
        }
        while self.counters.connections_open.value() > 0 {
            // Those whose handshake was under way when the others were told.
            for session in self.sessions.all() {
                session.tell(Order::Close(Ender::Operator, GOING_AWAY));
            }
            tokio::time::sleep(DRAIN_POLL).await;
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
