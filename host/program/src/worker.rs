//! One thread of the data plane, and the loop that drives it.
//!
//! In come snapshots, accepted connections, those that another worker hands off, commands and the drain
//! signal. A connection goes down from here: `listener`, then what [`admit`](Worker::admit) decides, then `connection` with the
//! worker's `context`. Nothing below knows this loop.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use pointsman_admin::access_log::AccessLog;
use pointsman_config::Listener;
use pointsman_contract::close;
use pointsman_contract::names::PluginName;
use pointsman_contract::session::Ender;
use pointsman_metrics::counters::WorkerCounters;
use pointsman_plugins::host::PluginHost;
use pointsman_traffic::overload::clients::{ClientSlot, Clients};
use pointsman_traffic::overload::descriptors::Descriptors;
use pointsman_traffic::overload::lag::Lag;
use pointsman_traffic::overload::penalties::Penalties;
use pointsman_traffic::proxy::Connections;
use pointsman_traffic::relay::pipe::Pipe;
use pointsman_traffic::session::buffers::{Buffers, HeldByAll};
use pointsman_traffic::session::{Order, Place, SWEEP_INTERVAL, SessionControl};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::context::guests::{Guests, States};
use crate::context::loads::{LoadSlot, Loads};
use crate::context::{ConnectionCount, WorkerContext};
use crate::drain::{Drain, DrainPlan};
use crate::site::{Retention, Site};
use crate::{connection, listener};

/// How often a draining worker looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Connections handed off by other workers that wait to be taken.
const HANDOFFS_MAX: usize = 1024;

/// What a worker is made of.
#[derive(Debug)]
pub(crate) struct WorkerSetup {
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
    /// To every worker, this one included.
    pub hand_off_to: Vec<mpsc::Sender<Handoff>>,
    /// From other workers.
    pub handoffs: mpsc::Receiver<Handoff>,
    /// From the control plane.
    pub commands: mpsc::Receiver<WorkerCommand>,
    /// Dropped when this worker has ended.
    pub alive: mpsc::Sender<()>,
}

/// What the control plane asks of a worker. It may have stopped waiting for the answer.
#[derive(Debug)]
pub(crate) enum WorkerCommand {
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
pub(crate) type ListenerKey = (SocketAddr, usize);

/// A listener for one worker.
#[derive(Debug)]
pub(crate) struct Listen {
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
pub(crate) type Census = Vec<(Place, u64)>;

/// Commands that wait; a reload has a few for each listener.
const COMMANDS_MAX: usize = 1024;

/// A channel to each worker.
pub(crate) fn command_channels(
    n_workers: usize,
) -> (
    Vec<mpsc::Sender<WorkerCommand>>,
    Vec<mpsc::Receiver<WorkerCommand>>,
) {
    (0..n_workers).map(|_| mpsc::channel(COMMANDS_MAX)).unzip()
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
pub(crate) struct Handoff {
    stream: StdStream,
    client: SocketAddr,
    limits: Arc<Listener>,
    count: (LoadSlot, Option<ClientSlot>),
}

/// A channel to each worker for what the others hand off.
pub(crate) fn handoff_channels(
    n_workers: usize,
) -> (Vec<mpsc::Sender<Handoff>>, Vec<mpsc::Receiver<Handoff>>) {
    (0..n_workers).map(|_| mpsc::channel(HANDOFFS_MAX)).unzip()
}

/// What drives one thread of the data plane.
#[derive(Debug)]
struct Worker {
    context: Rc<WorkerContext>,
    clients: Arc<Clients>,
    hand_off_to: Vec<mpsc::Sender<Handoff>>,
    listening: RefCell<HashMap<ListenerKey, Listening>>,
    is_draining: Cell<bool>,
    /// Open connections that came when it was draining: it does not wait for them.
    turned_away: Rc<Cell<u64>>,
}

/// Starts a worker's thread. It ends when a drain is over.
///
/// # Errors
/// The system has no room for another thread.
pub(crate) fn start(setup: WorkerSetup) -> io::Result<thread::JoinHandle<()>> {
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

async fn run(setup: WorkerSetup) {
    let WorkerSetup {
        listeners,
        mut site,
        mut drain,
        mut handoffs,
        mut commands,
        alive: _alive,
        ..
    } = setup;
    let first = Arc::clone(&site.borrow_and_update());
    let context = WorkerContext {
        index: setup.index,
        keeps: RefCell::new(Rc::new(Retention::new(&first))),
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
        penalties: setup.penalties,
        descriptors: setup.descriptors,
        handshakes: Rc::default(),
        targets: RefCell::default(),
    };
    let worker = Rc::new(Worker {
        context: Rc::new(context),
        clients: setup.clients,
        hand_off_to: setup.hand_off_to,
        listening: RefCell::default(),
        is_draining: Cell::new(false),
        turned_away: Rc::default(),
    });
    worker.adopt(worker.context.site());
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
            Some(handoff) = handoffs.recv() => worker.take(handoff),
            Some(command) = commands.recv() => worker.obey(&mut accepting, command),
            Some(_) = accepting.join_next() => {}
            () = worker.context.buffers.short() => worker.make_room(),
            _ = sweeps.tick() => worker.sweep(),
        }
    };
    worker.stop_accepting(&mut accepting).await;
    let mut ending = std::pin::pin!(worker.end_all(plan));
    loop {
        tokio::select! {
            () = &mut ending => break,
            () = drain.cut() => break worker.cut_all().await,
            Some(handoff) = handoffs.recv() => worker.take(handoff),
            () = worker.context.buffers.short() => worker.make_room(),
            _ = sweeps.tick() => worker.sweep(),
        }
    }
}

impl Worker {
    /// Serves a new connection, here or on a worker that has much less to do.
    fn admit(
        self: &Rc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        limits: &Arc<Listener>,
    ) -> io::Result<()> {
        let refuse = |why| {
            self.context.counters.connections_refused.add(1);
            tracing::debug!(%client, "connection refused: {why} is reached");
        };
        if self.context.loads.total() >= limits.max_connections {
            refuse("max_connections");
            return Ok(());
        }
        let mut client_slot = None;
        if let Some(max) = limits.max_connections_per_client
            && !self.context.is_trusted(client.ip())
        {
            client_slot = self.clients.enter(client.ip(), max);
            if client_slot.is_none() {
                refuse("max_connections_per_client");
                return Ok(());
            }
        }
        let best = match self.is_draining.get() {
            true => self.context.index,
            false => self.context.loads.best(self.context.index),
        };
        let count = (self.context.loads.slot(best), client_slot);
        if best == self.context.index {
            self.serve(stream, client, Arc::clone(limits), count);
            return Ok(());
        }
        let handoff = Handoff {
            stream: stream.into_std()?,
            client,
            limits: Arc::clone(limits),
            count,
        };
        match self.hand_off_to[best].try_send(handoff) {
            Ok(()) => {}
            Err(
                mpsc::error::TrySendError::Full(handoff)
                | mpsc::error::TrySendError::Closed(handoff),
            ) => self.take(handoff),
        }
        Ok(())
    }

    fn obey(self: &Rc<Self>, accepting: &mut JoinSet<()>, command: WorkerCommand) {
        // Who asked may have waited long enough.
        match command {
            WorkerCommand::Save(plugin, reply) => _ = reply.send(self.context.guests.save(&plugin)),
            WorkerCommand::Census(reply) => _ = reply.send(self.context.sessions.census()),
            WorkerCommand::Listen(listen) => self.listen(accepting, listen),
            WorkerCommand::Unlisten(key) => self.unlisten(key),
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
                let accept = {
                    let worker = Rc::clone(self);
                    let context = Rc::clone(&self.context);
                    let admit =
                        move |stream, client, limits: &_| worker.admit(stream, client, limits);
                    listener::accept(context, listener, Rc::clone(&limits), admit)
                };
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

    fn take(self: &Rc<Self>, handoff: Handoff) {
        let Handoff {
            stream,
            client,
            limits,
            count,
        } = handoff;
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
        slots: (LoadSlot, Option<ClientSlot>),
    ) {
        let turned_away = (self.is_draining.get()).then(|| Rc::clone(&self.turned_away));
        let count = ConnectionCount::new(&self.context.counters, slots, turned_away);
        self.context.lag.look();
        let max_handshakes = limits
            .max_handshakes
            .div_ceil(self.context.loads.n_workers());
        let ended = self.context.handshakes.shrink_to(max_handshakes - 1);
        self.context.counters.handshakes_ended.add(ended);
        let context = Rc::clone(&self.context);
        self.context
            .handshakes
            .run(|waiting| connection::serve(context, stream, client, limits, count, waiting));
    }

    /// Works by another snapshot from now on.
    fn adopt(self: &Rc<Self>, site: Arc<Site>) {
        for route in &site.config.routes {
            self.context.target_counters(&route.target);
        }
        self.context
            .buffers
            .allow(site.config.overload.max_buffered_bytes);
        let before = self.context.site.replace(Arc::clone(&site));
        if site.keeps_the_same_as(&before) {
            return;
        }
        let keeps = Rc::new(Retention::new(&site));
        *self.context.keeps.borrow_mut() = Rc::clone(&keeps);
        let mut leaving = self.context.sessions.all();
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
    async fn end_those(self: Rc<Self>, leaving: Vec<Rc<SessionControl>>) {
        let plan = DrainPlan::within(self.context.site().config.drain_timeout);
        tracing::info!(
            worker = self.context.index,
            sessions = leaving.len(),
            "draining the sessions of removed routes and backends"
        );
        let has_to_go =
            |session: &SessionControl| !self.context.keeps.borrow().keeps(&session.place);
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
        self.context.sessions.sweep();
        self.context.connections.expire();
        self.context.buffers.sweep();
        if self.context.buffers.was_short() {
            self.make_room();
        }
    }

    /// Ends the sessions that hold most, as far as all together hold too much.
    fn make_room(&self) {
        let excess = self.context.buffers.excess();
        if excess == 0 {
            return;
        }
        match self.context.sessions.shed(excess) {
            0 => self.context.buffers.looked_in_vain(),
            n => tracing::warn!(
                worker = self.context.index,
                sessions = n,
                "overload.max_buffered_bytes is reached: ending the sessions that hold most"
            ),
        }
    }

    /// Sends every session its Close, one after the other, and waits until all connections are gone.
    async fn end_all(&self, plan: DrainPlan) {
        let sessions = self.context.sessions.all();
        let mut turns = sessions.iter().enumerate().peekable();
        let close = |session: &SessionControl| {
            session.tell(Order::Close(Ender::Operator, close::GOING_AWAY))
        };
        while self.context.counters.connections_open.value() > self.turned_away.get() {
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
                    let sessions = self.context.sessions.all();
                    let open = sessions.iter().filter(|session| !session.is_ending());
                    open.for_each(|session| close(session));
                }
            }
            sleep_until(look_again).await;
        }
    }

    /// Ends what has not ended by itself.
    async fn cut_all(&self) {
        let sessions = self.context.sessions.all();
        let n = sessions.len();
        tracing::warn!(
            worker = self.context.index,
            sessions = n,
            "drain timeout: closing {n} sessions"
        );
        for session in sessions {
            session.tell(Order::Cut(Ender::Operator));
        }
        // Each session's task needs one turn to say in the log how it ended.
        while !self.context.sessions.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
