//! The control plane: one thread that watches, compiles, publishes, reports, and ends the rest.
//!
//! It talks to the workers by snapshots and by the drain signal, and waits for them only at the
//! very end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use pointsman_admin as admin;
use pointsman_admin::commands::{CommandOutcome, Drainable};
use pointsman_admin::status::{PluginSource, PluginStatus};
use pointsman_config::{self as config, Config, Listener, Problem, UpstreamName};
use pointsman_log as log;
use pointsman_metrics::counters::Metrics;
use pointsman_metrics::labels::{ReloadKind, ReloadResult};
use pointsman_metrics::scrape::ConfigReload;
use pointsman_plugins::failure::Failure;
use pointsman_plugins::generation::GenerationSource;
use pointsman_plugins::limits::AllLimits;
use pointsman_plugins::registry::{self, Registry};
use pointsman_watch::{Change, Watch};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::discovery::Discovery;
use super::health_checks::HealthChecks;
use super::logs::{self, Logs};
use super::problems::{self, Problems, Subject};
use super::reload::{self, Proposed};
use super::trial::Trial;
use super::view::Pages;
use super::{ServerCommand, aside, plugin_updates};
use crate::drain::Drainer;
use crate::listener;
use crate::site::{self, Discovered, Drained, Site};
use crate::worker::{Listen, ListenerKey, WorkerCommand};

/// What the control plane begins with.
pub(super) struct ControlSetup {
    pub(super) control: ControlPlane,
    pub(super) admin: Option<StdListener>,
    pub(super) watched: Option<(Watch, mpsc::Receiver<Change>)>,
    pub(super) failures: mpsc::Receiver<Failure>,
    pub(super) commands: mpsc::UnboundedReceiver<ServerCommand>,
    /// Closed when every worker has ended.
    pub(super) workers_alive: mpsc::Receiver<()>,
    pub(super) workers: Vec<JoinHandle<()>>,
}

/// What the control plane owns while it runs.
pub(super) struct ControlPlane {
    pub(super) config: Arc<Config>,
    /// Where the configuration came from; none: from flags.
    pub(super) file: Option<PathBuf>,
    pub(super) registry: Registry,
    pub(super) site: watch::Sender<Arc<Site>>,
    pub(super) metrics: Metrics,
    pub(super) logs: Logs,
    pub(super) problems: Problems,
    pub(super) last_reload: ConfigReload,
    pub(super) drainer: Drainer,
    /// Whether this process is on its way out: it should be sent nothing new.
    pub(super) leaving: watch::Sender<bool>,
    /// When a drain begins that was announced; none: none was, or it has begun.
    pub(super) drain_at: Option<Instant>,
    /// One for each worker.
    pub(super) worker_commands: Vec<mpsc::Sender<WorkerCommand>>,
    pub(super) started: Instant,
    /// Backends found beside those that are written, and certificates.
    pub(super) outside: Discovered,
    /// What the operator has taken out since the start.
    pub(super) drained: Drained,
    pub(super) checks: HealthChecks,
    /// The text of `file`, as it was read last.
    pub(super) last_read: Option<String>,
    /// Held while it is read and applied.
    pub(super) reload_turn: Arc<Mutex<()>>,
}

/// How much less than others the threads that compile are worth: +10 of nice's 20.
const BACKGROUND_NICENESS: i32 = 10;

/// Between two tries at an admin address that somebody else has.
const ADMIN_RETRY: Duration = Duration::from_secs(5);

/// Starts the thread. `ended` is told when all is over.
pub(super) fn start(setup: ControlSetup, ended: oneshot::Sender<()>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let lower_priority = || {
                // Where it is not allowed, compiling is merely not lower.
                let _ = rustix::process::setpriority_process(None, BACKGROUND_NICENESS);
            };
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder
                .enable_all()
                .max_blocking_threads(aside::THREADS_MAX)
                .on_thread_start(lower_priority);
            match runtime.build_local(Default::default()) {
                Ok(runtime) => {
                    runtime.block_on(run(setup));
                    // Nobody needs what is still being compiled or opened.
                    runtime.shutdown_background();
                }
                Err(error) => tracing::error!(%error, "the control plane cannot start"),
            }
            // Nobody may be waiting.
            let _ = ended.send(());
        })
}

async fn run(setup: ControlSetup) {
    let ControlSetup {
        control,
        admin,
        watched,
        mut failures,
        mut commands,
        mut workers_alive,
        workers,
    } = setup;
    let admin_config = control.config.admin.clone();
    let plugins_dir = control.config.plugins.dir.clone();
    let control = Rc::new(RefCell::new(control));
    // Dropped with this function, and with it all tasks.
    let mut tasks = JoinSet::new();
    tasks.spawn_local(serve_admin(Rc::clone(&control), admin, admin_config));
    let _watch = watched.map(|(watch, changes)| {
        tasks.spawn_local(plugin_updates::run(Rc::clone(&control), changes));
        let subject = Subject::PluginsDir(plugins_dir.unwrap_or_default());
        let trouble = watch.trouble();
        tasks.spawn_local(problems::follow(Rc::clone(&control), subject, trouble));
        watch
    });
    let mut discovery = Discovery::default();
    {
        let mut control = control.borrow_mut();
        let site = control.site();
        control.checks.follow(&site);
    }
    let reload_wanted = Rc::new(Notify::new());
    tasks.spawn_local(reload::run(Rc::clone(&control), Rc::clone(&reload_wanted)));
    let reopen_wanted = Rc::new(Notify::new());
    tasks.spawn_local(reopen_when_wanted(
        Rc::clone(&control),
        Rc::clone(&reopen_wanted),
    ));
    let mut published = control.borrow().site.subscribe();
    published.mark_changed();
    loop {
        let drain_at = control.borrow().drain_at;
        tokio::select! {
            command = commands.recv() => match command {
                Some(ServerCommand::Reload) => reload_wanted.notify_one(),
                Some(ServerCommand::ReopenLogs) => reopen_wanted.notify_one(),
                Some(ServerCommand::Drain) => control.borrow_mut().leave(),
                Some(ServerCommand::Stop) | None => control.borrow_mut().stop(),
            },
            () = until(drain_at) => control.borrow_mut().start_drain(),
            Some(failure) = failures.recv() => control.borrow_mut().guest_failed(&failure),
            Ok(()) = published.changed() => {
                let site = Arc::clone(&published.borrow_and_update());
                discovery.follow(&control, &site.config);
            }
            none = workers_alive.recv() => {
                debug_assert!(none.is_none(), "workers send nothing");
                break;
            }
        }
    }
    for worker in workers {
        if worker.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
    if !control.borrow().logs.access.finish(log::PATIENCE) {
        tracing::warn!("access log not fully written: its reader does not keep up");
    }
}

/// Never, where there is no such time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Opens the files of the logs again when it is wanted. One that cannot be opened stays as it is.
async fn reopen_when_wanted(control: Rc<RefCell<ControlPlane>>, wanted: Rc<Notify>) {
    loop {
        wanted.notified().await;
        let config = Arc::clone(&control.borrow().config);
        let files = Arc::clone(&config);
        let reopened = aside::briefly(move || logs::reopen(&files)).await;
        let (outputs, problems) = match reopened {
            Ok(reopened) => reopened,
            Err(error) => {
                tracing::error!(%error, "log files are not reopened");
                continue;
            }
        };
        let mut messages = Vec::new();
        for problem in problems {
            tracing::warn!("log file is not reopened, the old one stays: {problem}");
            messages.push(format!("not reopened, the old file stays: {problem}"));
        }
        let mut control = control.borrow_mut();
        match messages.is_empty() {
            true => control.problems.over(&Subject::Logs),
            false => _ = control.problems.report(Subject::Logs, messages),
        }
        // A reload may have had the logs go elsewhere meanwhile.
        let outputs = outputs.only_for(&config, &control.config);
        if !outputs.is_empty() {
            control.logs.redirect(&control.config, outputs);
            tracing::info!("log files reopened");
        }
    }
}

/// Serves the admin pages: at once, or as soon as whoever has their address leaves it.
async fn serve_admin(
    control: Rc<RefCell<ControlPlane>>,
    mut bound: Option<StdListener>,
    config: config::Admin,
) {
    let listener = loop {
        match bound.map(TcpListener::from_std) {
            Some(Ok(listener)) => break listener,
            Some(Err(error)) => tracing::error!(%error, "no admin pages"),
            None => {}
        }
        sleep(ADMIN_RETRY).await;
        bound = super::listen_admin(config.listen).ok();
        if bound.is_some() {
            tracing::info!(addr = %config.listen, "admin listening");
        }
    };
    admin::http::serve(listener, Rc::new(Pages(control)), config).await;
}

/// What has found backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundBy {
    /// `backends_file`.
    File,
    /// `dns`.
    Dns,
}

impl ControlPlane {
    /// The active snapshot.
    pub(super) fn site(&self) -> Arc<Site> {
        Arc::clone(&self.site.borrow())
    }

    /// Whether this process is on its way out: it should be sent nothing new.
    pub(super) fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }

    /// Says that this process is on its way out, and has the drain begin after its delay.
    fn leave(&mut self) {
        if self.is_leaving() {
            return;
        }
        self.leaving.send_replace(true);
        match self.config.drain_delay {
            Duration::ZERO => self.start_drain(),
            delay => {
                tracing::info!(delay_secs = delay.as_secs(), "not ready: still accepting");
                self.drain_at = Some(Instant::now() + delay);
            }
        }
    }

    fn start_drain(&mut self) {
        self.drain_at = None;
        self.drainer.start(self.config.drain_timeout);
    }

    /// Has everything end at once.
    fn stop(&self) {
        self.leaving.send_replace(true);
        self.drainer.start(Duration::ZERO);
    }

    /// What came of reading the configuration again.
    pub(super) fn config_read(&mut self, file: &Path, outcome: &CommandOutcome) {
        let subject = Subject::Config(file.to_owned());
        self.last_reload.is_successful = !matches!(outcome, CommandOutcome::Refused(_));
        if let CommandOutcome::Refused(problems) = outcome {
            let refused = |problem| format!("refused, the running one stays: {problem}");
            let messages = problems.iter().map(refused).collect();
            self.problems.report(subject, messages);
        } else {
            self.problems.over(&subject);
            self.last_reload.succeeded_at = SystemTime::now();
        }
    }

    pub(super) fn config_gone(&mut self, file: PathBuf) {
        tracing::warn!(file = %file.display(), "configuration file is gone: the running one stays");
        // When it is back it is read, whatever it says.
        self.last_read = None;
        let message = "it is gone, the running one stays".to_owned();
        self.problems.report(Subject::Config(file), vec![message]);
    }

    /// Makes a snapshot of what holds now, and gives it to the workers.
    pub(super) fn publish(&mut self) {
        let before = self.site();
        let site = Arc::new(Site::new(
            Arc::clone(&self.config),
            self.registry.catalog(),
            &self.outside,
            Arc::new(self.drained.clone()),
            Some(&before),
        ));
        self.site.send_replace(Arc::clone(&site));
        self.checks.follow(&site);
    }

    /// Takes over what was found for an upstream; false: nothing new.
    pub(super) fn found_backends(
        &mut self,
        by: FoundBy,
        upstream: &UpstreamName,
        backends: Vec<config::BackendConfig>,
    ) -> bool {
        let found = match by {
            FoundBy::File => &mut self.outside.found,
            FoundBy::Dns => &mut self.outside.resolved,
        };
        if found.get(upstream) == Some(&backends) {
            return false;
        }
        found.insert(upstream.clone(), backends);
        self.publish();
        self.metrics
            .reloads(ReloadKind::Backends, ReloadResult::Ok)
            .add(1);
        true
    }

    /// Takes a backend or a route out of service, or puts it back.
    pub(super) fn drain(&mut self, what: Drainable, is_out: bool) -> CommandOutcome {
        let site = self.site();
        let shown = match &what {
            Drainable::Backend { upstream, address } => {
                let pool = site
                    .pools
                    .iter()
                    .find(|(name, _)| name.as_str() == upstream);
                let Some((name, pool)) = pool else {
                    return CommandOutcome::NotFound(format!(
                        "there is no upstream \"{upstream}\""
                    ));
                };
                if !pool.backends.iter().any(|b| b.address() == address) {
                    let missing = format!("upstream {upstream} has no backend \"{address}\"");
                    return CommandOutcome::NotFound(missing);
                }
                let place = (name.clone(), address.clone());
                match is_out {
                    true => self.drained.backends.insert(place),
                    false => self.drained.backends.remove(&place),
                };
                format!("backend {address} of upstream {upstream}")
            }
            Drainable::Route(route) => {
                if !self.config.routes.iter().any(|r| r.to_string() == *route) {
                    return CommandOutcome::NotFound(format!("there is no route \"{route}\""));
                }
                match is_out {
                    true => self.drained.routes.insert(route.clone()),
                    false => self.drained.routes.remove(route),
                };
                format!("route {route}")
            }
        };
        self.publish();
        let done = match is_out {
            true => format!("{shown} is being drained"),
            false => format!("{shown} is in service"),
        };
        tracing::info!("{done}");
        CommandOutcome::Done(done)
    }

    /// What a new generation has to pass.
    pub(super) fn trial(&self) -> Trial {
        Trial::new(&self.config)
    }

    pub(super) fn plugin_statuses(&self) -> Vec<PluginStatus> {
        self.registry.status().iter().map(plugin_status).collect()
    }

    fn guest_failed(&mut self, failure: &Failure) {
        if self.registry.report_failure(failure).is_some() {
            self.publish();
        }
    }

    /// Applies a configuration, in one step.
    pub(super) fn apply(&mut self, proposed: Proposed) -> Result<ReloadResult, Vec<Problem>> {
        let Proposed {
            config,
            outside,
            read_beside,
            outputs,
            candidates,
        } = proposed;
        let outside =
            outside.brought_up_to_date(&config, &self.config, &self.outside, &read_beside);
        if config == self.config && outside == self.outside {
            return Ok(ReloadResult::Unchanged);
        }
        let mut problems = self.changes_of_fixed_keys(&config);
        let plugins = candidates.fit().unwrap_or_else(|refused| {
            problems.extend(refused);
            Vec::new()
        });
        if !problems.is_empty() {
            problems.extend(self.listeners_not_bound(&config));
            return Err(problems);
        }
        self.apply_listeners(&config)?;
        for generation in plugins {
            self.registry.publish(generation);
        }
        self.registry.set_limits(AllLimits::new(&config));
        if !outputs.is_empty() {
            self.problems.over(&Subject::Logs);
        }
        self.logs.redirect(&config, outputs);
        self.config = config;
        self.outside = outside;
        self.prune_drained();
        self.publish();
        Ok(ReloadResult::Ok)
    }

    /// What [`ControlPlane::apply_listeners`] would not be able to open.
    pub(super) fn listeners_not_bound(&self, new: &Config) -> Vec<Problem> {
        let before = listener_keys(&self.config);
        let added = listener_keys(new).into_keys();
        let added = added.filter(|key| !before.contains_key(key));
        let problem = |key: ListenerKey| {
            let error = listener::bind(key.0, 1).err()?;
            Some(not_bound(new, key, &error))
        };
        added.filter_map(problem).collect()
    }

    /// Opens the listeners that are new, before anything else changes; then has those that stay go on
    /// with their new limits, and closes the others.
    fn apply_listeners(&self, new: &Config) -> Result<(), Vec<Problem>> {
        let (before, after) = (listener_keys(&self.config), listener_keys(new));
        let mut opened = Vec::new();
        let mut problems = Vec::new();
        for (key, limits) in &after {
            if before.contains_key(key) {
                continue;
            }
            match listener::bind(key.0, new.workers) {
                Ok(sockets) => opened.push((*key, Arc::clone(limits), sockets)),
                Err(error) => problems.push(not_bound(new, *key, &error)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let tell = |worker: &mpsc::Sender<WorkerCommand>, command: WorkerCommand| {
            if worker.try_send(command).is_err() {
                tracing::error!("worker command queue full: its listeners stay as they are");
            }
        };
        for (key, limits, sockets) in opened {
            tracing::info!(addr = %key.0, "listening");
            for (worker, socket) in self.worker_commands.iter().zip(sockets) {
                let (socket, limits) = (Some(socket), Arc::clone(&limits));
                tell(
                    worker,
                    WorkerCommand::Listen(Listen {
                        key,
                        socket,
                        limits,
                        is_inherited: false,
                    }),
                );
            }
        }
        for (key, limits) in &after {
            if before.get(key).is_some_and(|old| old != limits) {
                for worker in &self.worker_commands {
                    let (key, limits) = (*key, Arc::clone(limits));
                    tell(
                        worker,
                        WorkerCommand::Listen(Listen {
                            key,
                            socket: None,
                            limits,
                            is_inherited: false,
                        }),
                    );
                }
            }
        }
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            tracing::info!(addr = %key.0, "listener closed");
            for worker in &self.worker_commands {
                tell(worker, WorkerCommand::Unlisten(*key));
            }
        }
        Ok(())
    }

    /// What was drained and is configured no more may come back as something else.
    fn prune_drained(&mut self) {
        let Self {
            config,
            outside,
            drained,
            ..
        } = self;
        let nothing = Drained::default();
        let names: BTreeSet<_> = drained.backends.iter().map(|(name, _)| name).collect();
        let upstreams = config.upstreams.iter().filter(|u| names.contains(&u.name));
        let places = upstreams.flat_map(|upstream| {
            let backends = site::backends(upstream, outside, &nothing).into_iter();
            backends.map(|backend| (upstream.name.clone(), backend.address))
        });
        let places: HashSet<_> = places.collect();
        drained.backends.retain(|place| places.contains(place));
        let routes: HashSet<_> = config.routes.iter().map(ToString::to_string).collect();
        drained.routes.retain(|route| routes.contains(route));
    }

    /// What a running process cannot change.
    pub(super) fn changes_of_fixed_keys(&self, new: &Config) -> Vec<Problem> {
        let old = &self.config;
        let fixed = [
            ("workers", old.workers == new.workers),
            ("admin", old.admin == new.admin),
            ("plugins.dir", old.plugins.dir == new.plugins.dir),
        ];
        let changed = fixed.into_iter().filter(|(_, is_same)| !is_same);
        let message = "cannot change while the process runs: restart it";
        changed
            .map(|(key, _)| Problem {
                key: key.to_owned(),
                line: None,
                message: message.to_owned(),
            })
            .collect()
    }
}

/// A listener that cannot be had.
pub(super) fn not_bound(config: &Config, (bind, n): ListenerKey, error: &io::Error) -> Problem {
    let same = config.listeners.iter().enumerate();
    let nth = same.filter(|(_, listener)| listener.bind == bind).nth(n);
    let place = nth.map_or(0, |(place, _)| place);
    Problem {
        key: format!("listener[{place}].bind"),
        line: None,
        message: format!("cannot listen on {bind}: {error}"),
    }
}

/// The listeners of a configuration, by what names them.
pub(super) fn listener_keys(config: &Config) -> BTreeMap<ListenerKey, Arc<Listener>> {
    let mut keys = BTreeMap::new();
    for listener in &config.listeners {
        let is_same = |(bind, _): &&ListenerKey| *bind == listener.bind;
        let n = keys.keys().filter(is_same).count();
        keys.insert((listener.bind, n), Arc::new(listener.clone()));
    }
    keys
}

fn plugin_status(status: &registry::PluginState) -> PluginStatus {
    let current = status.current.as_ref();
    let kinds = current
        .map(|generation| generation.kinds().names())
        .unwrap_or_default();
    PluginStatus {
        name: status.name.to_string(),
        generation: current.map_or(0, |generation| generation.number),
        source: match current.map(|generation| &generation.source) {
            Some(GenerationSource::Embedded) => PluginSource::Embedded,
            Some(GenerationSource::File(_)) | None => PluginSource::File,
        },
        kinds: kinds.into_iter().map(str::to_owned).collect(),
        bytes: current.map_or(0, |generation| generation.n_bytes() as u64),
        sha256: current
            .map(|generation| generation.sha256())
            .unwrap_or_default(),
        is_unused: status.is_unused,
        is_quarantined: status.is_quarantined,
        last_error: status.last_error.clone(),
    }
}
