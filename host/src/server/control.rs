//! The control plane: one thread that watches, compiles, publishes, reports, and ends the rest.
//!
//! It talks to the workers by snapshots and by the drain signal, and waits for them only at the
//! very end.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

use super::trial::{Trial, load_missing};
use super::view::Pages;
use super::{Command, LOG_PATIENCE, plugin_updates};
use crate::admin;
use crate::admin::access_log::AccessLogWriter;
use crate::admin::metrics::{Metrics, ReloadKind, ReloadResult};
use crate::admin::status::{PluginSource, PluginStatus};
use crate::config::{Config, Problem};
use crate::drain::Drainer;
use crate::plugins::failure::Failure;
use crate::plugins::generation::Source;
use crate::plugins::limits::Limits;
use crate::plugins::registry::{self, Registry};
use crate::site::Site;
use crate::watch::{Change, Watch};
use crate::worker::Ask;

/// What the control plane begins with.
pub(super) struct Setup {
    pub(super) control: Control,
    pub(super) admin: Option<StdListener>,
    pub(super) watched: Option<(Watch, mpsc::Receiver<Change>)>,
    pub(super) failures: mpsc::Receiver<Failure>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    /// Closed when every worker has ended.
    pub(super) workers_alive: mpsc::Receiver<()>,
    pub(super) workers: Vec<JoinHandle<()>>,
    pub(super) log: AccessLogWriter,
}

/// What the control plane owns while it runs.
pub(super) struct Control {
    pub(super) config: Arc<Config>,
    /// Where the configuration came from; none: from flags.
    pub(super) file: Option<PathBuf>,
    pub(super) registry: Registry,
    pub(super) site: watch::Sender<Arc<Site>>,
    pub(super) metrics: Metrics,
    pub(super) drainer: Drainer,
    /// One for each worker.
    pub(super) asks: Vec<mpsc::Sender<Ask>>,
    pub(super) started: Instant,
}

/// How much less than others the threads that compile are worth: +10 of nice's 20.
const BACKGROUND_NICENESS: i32 = 10;

/// Starts the thread. `ended` is told when all is over.
pub(super) fn start(setup: Setup, ended: oneshot::Sender<()>) -> io::Result<JoinHandle<()>> {
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
                .max_blocking_threads(2)
                .on_thread_start(lower_priority);
            match runtime.build_local(Default::default()) {
                Ok(runtime) => runtime.block_on(run(setup)),
                Err(error) => tracing::error!(%error, "the control plane cannot start"),
            }
            // Nobody may be waiting.
            let _ = ended.send(());
        })
}

async fn run(setup: Setup) {
    let Setup {
        control,
        admin,
        watched,
        mut failures,
        mut commands,
        mut workers_alive,
        workers,
        log,
    } = setup;
    let token = control.config.admin.token.clone();
    let control = Rc::new(RefCell::new(control));
    // Dropped with this function, and with it all tasks.
    let mut tasks = JoinSet::new();
    match admin.map(TcpListener::from_std) {
        Some(Ok(listener)) => {
            _ = tasks.spawn_local(admin::http::serve(
                listener,
                Rc::new(Pages(Rc::clone(&control))),
                token,
            ))
        }
        Some(Err(error)) => tracing::error!(%error, "no admin pages"),
        None => {}
    }
    let _watch = watched.map(|(watch, changes)| {
        tasks.spawn_local(plugin_updates::run(Rc::clone(&control), changes));
        watch
    });
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Reload) => reload(&control).await,
                Some(Command::Drain(timeout)) => control.borrow().drainer.start(timeout),
                None => control.borrow().drainer.start(std::time::Duration::ZERO),
            },
            Some(failure) = failures.recv() => control.borrow_mut().guest_failed(&failure),
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
    if !log.finish(LOG_PATIENCE) {
        tracing::warn!("the access log is not written to its end: nobody reads it");
    }
}

/// Reads the configuration again and puts it in force, or says everything that is wrong with it.
async fn reload(control: &RefCell<Control>) {
    let Some(file) = control.borrow().file.clone() else {
        tracing::warn!("nothing to reload: the configuration came from flags");
        return;
    };
    let result = match read(&file).await {
        Ok(config) => control.borrow_mut().apply(config),
        Err(problems) => Err(problems),
    };
    let control = control.borrow();
    let result = match result {
        Ok(result) => result,
        Err(problems) => {
            for problem in &problems {
                tracing::error!(file = %file.display(), "{problem}");
            }
            tracing::error!(file = %file.display(), problems = problems.len(), "configuration refused: the one in force stays");
            ReloadResult::Failed
        }
    };
    if result == ReloadResult::Ok {
        tracing::info!(file = %file.display(), "configuration in force");
    }
    control.metrics.reloads(ReloadKind::Config, result).add(1);
}

async fn read(file: &Path) -> Result<Config, Vec<Problem>> {
    let unreadable = |error: String| {
        vec![Problem {
            key: String::new(),
            line: None,
            message: error,
        }]
    };
    let path = file.to_owned();
    let text = spawn_blocking(move || std::fs::read_to_string(path)).await;
    let text = text
        .map_err(|error| unreadable(error.to_string()))?
        .map_err(|error| unreadable(error.to_string()))?;
    Config::from_toml(&text, file.parent().unwrap_or(Path::new("")))
}

impl Control {
    /// The snapshot in force.
    pub(super) fn site(&self) -> Arc<Site> {
        Arc::clone(&self.site.borrow())
    }

    /// Makes a snapshot of what holds now, and gives it to the workers.
    pub(super) fn publish(&mut self) {
        let before = self.site();
        let site = Site::new(
            Arc::clone(&self.config),
            self.registry.catalog(),
            Some(&before),
        );
        self.site.send_replace(Arc::new(site));
    }

    /// What a new generation has to pass.
    pub(super) fn trial(&self) -> Trial {
        Trial::new(&self.config, self.registry.limits())
    }

    pub(super) fn plugin_statuses(&self) -> Vec<PluginStatus> {
        self.registry.status().iter().map(plugin_status).collect()
    }

    fn guest_failed(&mut self, failure: &Failure) {
        if self.registry.report_failure(failure).is_some() {
            self.publish();
        }
    }

    fn apply(&mut self, config: Config) -> Result<ReloadResult, Vec<Problem>> {
        if config == *self.config {
            return Ok(ReloadResult::Unchanged);
        }
        let fixed = self.changes_of_fixed_keys(&config);
        if !fixed.is_empty() {
            return Err(fixed);
        }
        let config = Arc::new(config);
        let trial = Trial::new(&config, Limits::new(&config.plugins));
        let problems = load_missing(&mut self.registry, &trial);
        if !problems.is_empty() {
            return Err(problems);
        }
        self.registry.set_limits(&config.plugins);
        self.config = config;
        self.publish();
        Ok(ReloadResult::Ok)
    }

    /// What a running process cannot change.
    fn changes_of_fixed_keys(&self, new: &Config) -> Vec<Problem> {
        let old = &self.config;
        let fixed = [
            ("workers", old.workers == new.workers),
            ("listener", old.listeners == new.listeners),
            ("admin", old.admin == new.admin),
            ("plugins.dir", old.plugins.dir == new.plugins.dir),
        ];
        let changed = fixed.into_iter().filter(|(_, is_same)| !is_same);
        let message = "cannot change while the process runs: start it anew";
        changed
            .map(|(key, _)| Problem {
                key: key.to_owned(),
                line: None,
                message: message.to_owned(),
            })
            .collect()
    }
}

fn plugin_status(status: &registry::PluginStatus) -> PluginStatus {
    let current = status.current.as_ref();
    let kinds = current
        .map(|generation| generation.kinds().names())
        .unwrap_or_default();
    PluginStatus {
        name: status.name.to_string(),
        generation: current.map_or(0, |generation| generation.number),
        source: match current.map(|generation| &generation.source) {
            Some(Source::Embedded) => PluginSource::Embedded,
            Some(Source::File(_)) | None => PluginSource::File,
        },
        kinds: kinds.into_iter().map(str::to_owned).collect(),
        bytes: current.map_or(0, |generation| generation.n_bytes() as u64),
        sha256: current
            .map(|generation| generation.sha256())
            .unwrap_or_default(),
        last_error: status.last_error.clone(),
    }
}
