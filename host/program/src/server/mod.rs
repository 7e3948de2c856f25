//! The whole program as one value: builds every room in start order, owns every thread, and ends
//! them.
//!
//! The only room that knows all others. [`Server::start`] binds, loads, and starts the workers and
//! the control plane; `control` is what the control plane does from then on.

mod aside;
mod candidates;
mod control;
mod discovery;
mod health_checks;
mod logs;
mod plan;
mod plugin_updates;
mod problems;
mod reload;
mod trial;
mod view;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{fmt, io};

use pointsman_admin::access_log::AccessLog;
use pointsman_config::{Config, Draft, Problem};
use pointsman_log::ErrorLog;
use pointsman_metrics::counters::Metrics;
use pointsman_metrics::scrape::ConfigReload;
use pointsman_traffic::overload::descriptors::Descriptors;
use pointsman_traffic::session::buffers::HeldByAll;
use pointsman_watch::{Change, Watch};
use socket2::SockRef;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::control::ControlPlane;
use self::health_checks::HealthChecks;
use self::logs::Logs;
use self::problems::Problems;
use self::trial::{Outcome, Trial, load_plugins};
use crate::context::loads::Loads;
use crate::site::{Connectors, Discovered, Drained, Site};
use crate::systemd::Inherited;
use crate::worker::{self, Listen, WorkerSetup};
use crate::{drain, listener};

/// The plugins that this binary carries: name and component.
pub const EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// A running balancer. Dropping it ends it at once.
#[derive(Debug)]
pub struct Server {
    /// Where it listens, in the order of the configuration, with the ports that the system picked.
    pub addresses: Vec<SocketAddr>,
    /// Where the admin pages are.
    pub admin: Option<SocketAddr>,
    commands: mpsc::UnboundedSender<ServerCommand>,
    ended: oneshot::Receiver<()>,
    control: Option<JoinHandle<()>>,
}

/// The file that a configuration was read from.
#[derive(Debug)]
pub struct ReadFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it said.
    pub text: String,
}

/// What the control plane can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerCommand {
    /// Read the configuration again.
    Reload,
    /// Open the files of the logs again.
    ReopenLogs,
    /// Stop taking after the drain delay, and be gone after the drain time at the latest.
    Drain,
    /// Be gone at once.
    Stop,
}

/// Why a server did not start. Nothing is left running.
#[derive(Debug)]
pub enum StartError {
    /// The configuration names what cannot be had: addresses, a folder, files, or plugins, which may also
    /// refuse what they are told.
    Config(Vec<Problem>),
    /// The plugin engine cannot run on this machine.
    Engine(String),
    /// No room for another thread.
    Thread(io::Error),
}

/// Connections to the admin address that the kernel keeps for us between two accepts.
const ADMIN_BACKLOG: i32 = 1024;

impl Server {
    /// Starts serving. `file`: where the configuration came from, to be read again when it changes and on a reload.
    /// `error_log`: goes on as the configuration says. `inherited`: sockets that are open already.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        config: Config,
        file: Option<ReadFile>,
        error_log: ErrorLog,
        mut inherited: Inherited,
    ) -> Result<Self, StartError> {
        let descriptors = Descriptors::raise();
        let mut problems = Vec::new();
        let outputs = logs::open(&config, None).map_err(|wrong| problems.extend(wrong));
        let start_logs = |outputs| Logs::start(error_log, &config, outputs);
        let logs = outputs.ok().map(start_logs).transpose();
        let logs = logs.map_err(StartError::Thread)?;

        // 1. Bind: the cheapest thing that can fail.
        let mut sockets = Vec::new();
        for (key, limits) in control::listener_keys(&config) {
            let handed_over = inherited.take(limits.bind);
            let is_inherited = handed_over.is_some();
            let bound = match handed_over {
                Some(socket) => listener::adopt(socket, config.workers),
                None => listener::bind(limits.bind, config.workers),
            };
            match bound {
                Ok(bound) => sockets.push((key, bound, limits, is_inherited)),
                Err(error) => problems.push(control::not_bound(&config, key, &error)),
            }
        }
        drop(inherited);
        let admin = bind_admin(&config).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });

        // 2. Find and load what the configuration names. All that is wrong is told at once.
        let config = Arc::new(config);
        let Prepared {
            watched,
            outside,
            loaded:
                Outcome {
                    registry,
                    failures,
                    refused_files,
                    too_long,
                    ..
                },
            problems: found,
        } = prepare(&Trial::new(&config))?;
        problems.extend(found);
        let Some(logs) = logs.filter(|_| problems.is_empty()) else {
            problems.extend(refused_files);
            return Err(StartError::Config(problems));
        };
        let mut problems = Problems::default();
        for problem in refused_files {
            tracing::error!("{problem}: plugin refused");
            problems.plugin_file_refused(Path::new(&problem.key), problem.message);
        }
        for problem in too_long {
            tracing::warn!("{problem}: longer ones close with 1009");
        }

        // 3. Publish the first snapshot and start the data plane.
        let metrics = Metrics::new();
        let (drainer, drain) = drain::channel();
        let (site, published) = watch::channel(Arc::new(Site::new(
            Arc::clone(&config),
            registry.catalog(),
            &outside,
            Arc::default(),
            None,
        )));
        let loads = Arc::new(Loads::new(config.workers));
        let clients = Arc::default();
        let counters = (0..config.workers).map(|index| metrics.worker(index));
        let held = Arc::new(HeldByAll::new(counters.collect()));
        let penalties = Arc::default();
        let (hand_off_to, handoffs) = worker::handoff_channels(config.workers);
        let (worker_commands, received) = worker::command_channels(config.workers);
        let mut addresses = Vec::new();
        for (_, sockets, ..) in &sockets {
            addresses.extend(sockets.first().and_then(|socket| socket.local_addr().ok()));
        }
        let (alive, workers_alive) = mpsc::channel(1);
        let mut workers = Vec::new();
        for (index, (handoffs, received)) in handoffs.into_iter().zip(received).enumerate() {
            let counters = metrics.worker(index);
            let mut listeners = Vec::new();
            for (key, sockets, limits, is_inherited) in &mut sockets {
                listeners.push(Listen {
                    key: *key,
                    socket: sockets.pop(),
                    limits: Arc::clone(limits),
                    is_inherited: *is_inherited,
                });
            }
            let setup = WorkerSetup {
                index,
                listeners,
                site: published.clone(),
                drain: drain.clone(),
                access_log: AccessLog::new(logs.access.clone()),
                counters,
                held: Arc::clone(&held),
                plugin_host: registry.host(index),
                loads: Arc::clone(&loads),
                clients: Arc::clone(&clients),
                penalties: Arc::clone(&penalties),
                descriptors,
                hand_off_to: hand_off_to.clone(),
                handoffs,
                commands: received,
                alive: alive.clone(),
            };
            workers.push(worker::start(setup).map_err(StartError::Thread)?);
        }
        drop((alive, hand_off_to));

        // 4. The control plane, on a thread of its own, from here on.
        let (commands, told) = mpsc::unbounded_channel();
        let (ending, ended) = oneshot::channel();
        let admin_address = admin
            .as_ref()
            .and_then(|listener| listener.local_addr().ok());
        let (file, last_read) = file.map(|file| (file.path, file.text)).unzip();
        let control = ControlPlane {
            config,
            file,
            registry,
            site,
            metrics,
            logs,
            problems,
            last_reload: ConfigReload::default(),
            drainer,
            leaving: watch::Sender::default(),
            drain_at: None,
            worker_commands,
            started: Instant::now(),
            outside,
            drained: Drained::default(),
            checks: HealthChecks::default(),
            last_read,
            reload_turn: Arc::default(),
        };
        let setup = control::ControlSetup {
            control,
            admin,
            watched,
            failures,
            commands: told,
            workers_alive,
            workers,
        };
        let control = control::start(setup, ending).map_err(StartError::Thread)?;
        for addr in &addresses {
            tracing::info!(%addr, "listening");
        }
        if let Some(addr) = admin_address {
            tracing::info!(%addr, "admin listening");
        }
        Ok(Self {
            addresses,
            admin: admin_address,
            commands,
            ended,
            control: Some(control),
        })
    }

    /// Reads the configuration again. What came of it is in log, metrics and status.
    pub fn reload(&self) {
        let _ = self.commands.send(ServerCommand::Reload);
    }

    /// Opens the files of both logs again. What came of it is in the error log.
    pub fn reopen_logs(&self) {
        let _ = self.commands.send(ServerCommand::ReopenLogs);
    }

    /// Stops taking connections, after the drain delay of the configuration, and ends sessions over its
    /// drain time.
    pub fn drain(&self) {
        let _ = self.commands.send(ServerCommand::Drain);
    }

    /// Ends what is left at once.
    pub fn stop_now(&self) {
        let _ = self.commands.send(ServerCommand::Stop);
    }

    /// Waits until a drain is over.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&mut self) {
        // An error says that the control plane is gone, which is as good.
        let _ = (&mut self.ended).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_now();
        if let Some(Err(_)) = self.control.take().map(JoinHandle::join) {
            tracing::error!("the control plane panicked");
        }
    }
}

type Watched = (Watch, mpsc::Receiver<Change>);

/// What a configuration names, beside addresses.
struct Prepared {
    /// None: no folder of plugins is configured.
    watched: Option<Watched>,
    outside: Discovered,
    loaded: Outcome,
    /// All that cannot be had.
    problems: Vec<Problem>,
}

/// Opens, reads and loads what a configuration names. Blocks.
///
/// # Errors
/// [`StartError::Engine`]
fn prepare(trial: &Trial) -> Result<Prepared, StartError> {
    let config = trial.config();
    let mut problems = Vec::new();
    // Watch before loading, so that no change falls between.
    let watched = config.plugins.dir.as_deref().map(watch).transpose();
    let watched = watched.unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    let existing = watched
        .as_ref()
        .map_or(&[][..], |(watch, _)| watch.existing());
    let outside = discovery::read_all(config, trial.keys(), &Connectors::new());
    let outside = outside.unwrap_or_else(|wrong| {
        problems.extend(wrong);
        Discovered::default()
    });
    let mut loaded = load_plugins(trial, existing)?;
    problems.append(&mut loaded.problems);
    Ok(Prepared {
        watched,
        outside,
        loaded,
        problems,
    })
}

fn watch(dir: &Path) -> Result<Watched, Problem> {
    Watch::directory(dir, "wasm").map_err(|error| Problem {
        key: "plugins.dir".to_owned(),
        line: None,
        message: format!("the folder {} cannot be watched: {error}", dir.display()),
    })
}

/// Loads and tries every plugin that a configuration names, looks at every other file of its folder, and
/// reads the files that it names, without serving. Where the configuration has problems, does so as far as it says what
/// is meant. Returns everything that is wrong.
///
/// Files are refused here even where an embedded plugin could stand in, and so are routes that allow messages for
/// which their plugins have no room.
///
/// # Errors
/// [`StartError::Engine`]
pub fn check(draft: Draft) -> Result<Vec<Problem>, StartError> {
    let trial = Trial::of_draft(&draft);
    let mut problems = draft.problems;
    if let Some(trial) = trial {
        problems.extend(logs::check(trial.config(), None));
        let prepared = prepare(&trial)?;
        problems.extend(prepared.problems);
        problems.extend(prepared.loaded.refused_files);
        problems.extend(prepared.loaded.too_long);
    }
    Ok(problems)
}

/// None where the default address is taken by somebody else: this process has no admin pages until it is
/// free.
fn bind_admin(config: &Config) -> Result<Option<TcpListener>, Problem> {
    match listen_admin(config.admin.listen) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if config.admin.is_explicit => Err(Problem {
            key: "admin.listen".to_owned(),
            line: None,
            message: format!("cannot listen on {}: {error}", config.admin.listen),
        }),
        Err(error) => {
            tracing::warn!(addr = %config.admin.listen, %error, "no admin pages until this address is free: set admin.listen");
            Ok(None)
        }
    }
}

fn listen_admin(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // A flood of connections should not keep a probe from the queue of those that wait to be accepted.
    SockRef::from(&listener).listen(ADMIN_BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(problems) => {
                let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Engine(error) => write!(f, "the plugin engine cannot start: {error}"),
            Self::Thread(_) => f.write_str("cannot start a thread"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Thread(error) => Some(error),
            Self::Config(_) | Self::Engine(_) => None,
        }
    }
}
