//! Turns changes of the watched folder into new generations, one at a time.
//!
//! The newest content of a file wins: changes that come while one is worked on wait, one per plugin.
//! Compiling and trying happen on a background thread; publishing here, in one step. What nothing refers to
//! is compiled when a configuration does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pointsman_contract::names::PluginName;
use pointsman_metrics::labels::{ReloadKind, ReloadResult};
use pointsman_plugins::generation::{Generation, Source};
use pointsman_plugins::load::{self, LoadError};
use pointsman_plugins::registry::{Job, Removal};
use pointsman_watch::Change;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::control::Control;
use super::problems::Subject;
use super::trial::{self, Compiled, Trial};
use crate::context::guests::States;
use crate::worker::WorkerCommand;

/// Works until the watch ends.
pub(super) async fn run(control: Rc<RefCell<Control>>, mut changes: mpsc::Receiver<Change>) {
    let mut waiting = BTreeMap::new();
    loop {
        if waiting.is_empty() {
            match changes.recv().await {
                Some(change) => note(&control, &mut waiting, change),
                None => return,
            }
        }
        while let Ok(change) = changes.try_recv() {
            note(&control, &mut waiting, change);
        }
        if let Some((name, change)) = waiting.pop_first() {
            update(&control, name, change).await;
        }
    }
}

fn note(control: &RefCell<Control>, waiting: &mut BTreeMap<PluginName, Change>, change: Change) {
    let (Change::Written(path) | Change::Gone(path)) = &change;
    match (trial::name_of(path), &change) {
        (Ok(name), _) => _ = waiting.insert(name, change),
        (Err(error), Change::Written(_)) => {
            tracing::warn!(path = %path.display(), %error, "file ignored");
            let problems = &mut control.borrow_mut().problems;
            problems.plugin_file_refused(path, error);
        }
        (Err(_), Change::Gone(_)) => {
            let subject = Subject::PluginFile(path.clone());
            control.borrow_mut().problems.over(&subject);
        }
    }
}

async fn update(control: &RefCell<Control>, name: PluginName, change: Change) {
    let offered = match change {
        Change::Written(path) => offer_or_note(control, &name, path).await,
        Change::Gone(path) => remove(control, &name, &path),
    };
    let result = match offered {
        Ok(None) => return,
        Ok(Some(job)) => build(control, job).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        refuse(control, &name, &error);
    }
}

/// Says in log, status and metrics that a file is refused.
pub(super) fn refuse(control: &RefCell<Control>, name: &PluginName, error: &LoadError) {
    let mut control = control.borrow_mut();
    trial::refuse(&mut control.registry, name, error);
    control
        .metrics
        .reloads(ReloadKind::Plugin, ReloadResult::Failed)
        .add(1);
}

/// Offers a file that something refers to. None: there is nothing to do.
async fn offer_or_note(
    control: &RefCell<Control>,
    name: &PluginName,
    path: PathBuf,
) -> Result<Option<Job>, LoadError> {
    if !control.borrow().trial().names(name) {
        // A configuration that is just being read may refer to it.
        let turn = Arc::clone(&control.borrow().reload_turn);
        let _turn = turn.lock().await;
        if !control.borrow().trial().names(name) {
            load::look(&read(path.clone()).await?)?;
            tracing::info!(plugin = %name, path = %path.display(), "plugin not loaded: nothing refers to it");
            control.borrow_mut().registry.note_unused(name, path);
            return Ok(None);
        }
    }
    let job = offer(control, name, path).await?;
    if job.is_none() {
        tracing::info!(plugin = %name, "plugin unchanged: the same content serves already");
        control
            .borrow()
            .metrics
            .reloads(ReloadKind::Plugin, ReloadResult::Unchanged)
            .add(1);
    }
    Ok(job)
}

/// Reads a file and offers it. None: the same content serves already.
async fn offer(
    control: &RefCell<Control>,
    name: &PluginName,
    path: PathBuf,
) -> Result<Option<Job>, LoadError> {
    let bytes = read(path.clone()).await?;
    let mut control = control.borrow_mut();
    control.registry.offer(name, bytes, Source::File(path))
}

async fn read(path: PathBuf) -> Result<Vec<u8>, LoadError> {
    let read = spawn_blocking(move || trial::read(&path)).await;
    read.unwrap_or_else(|error| Err(LoadError::Read(error.to_string())))
}

/// Compiles what a configuration names and nothing serves yet. What is embedded under the name of a file that
/// cannot be loaded stands in; `refused` is told of the file.
pub(super) async fn compile_missing(
    control: &RefCell<Control>,
    trial: &Trial,
    mut refused: impl FnMut(&PluginName, LoadError),
) -> Compiled {
    let mut compiled = Compiled::new();
    for name in trial.named().into_keys() {
        let unused = control.borrow().registry.unused(&name).map(Path::to_owned);
        if let Some(path) = unused {
            let generation = match offer(control, &name, path).await {
                Ok(None) => continue,
                Ok(Some(job)) => compile(job).await,
                Err(error) => Err(error),
            };
            match generation {
                Ok(generation) => {
                    compiled.insert(name, generation);
                    continue;
                }
                Err(error) => refused(&name, error),
            }
        }
        if control.borrow().registry.catalog().get(&name).is_some() {
            continue;
        }
        let offered = control.borrow_mut().registry.offer_embedded(&name);
        if let Ok(Some(job)) = offered
            && let Ok(generation) = compile(job).await
        {
            compiled.insert(name, generation);
        }
    }
    compiled
}

async fn compile(job: Job) -> Result<Arc<Generation>, LoadError> {
    let compiled = spawn_blocking(|| job.compile()).await;
    compiled.unwrap_or_else(|error| Err(LoadError::Compile(error.to_string())))
}

fn remove(
    control: &RefCell<Control>,
    name: &PluginName,
    path: &Path,
) -> Result<Option<Job>, LoadError> {
    match control.borrow_mut().registry.file_removed(name) {
        Removal::Nothing => Ok(None),
        Removal::Embedded(job) => Ok(Some(job)),
        Removal::KeepsLast(generation) => {
            tracing::warn!(plugin = %name, generation = generation.number, path = %path.display(), "file gone: its last generation goes on serving");
            Ok(None)
        }
    }
}

/// Compiles, tries and publishes.
async fn build(control: &RefCell<Control>, job: Job) -> Result<(), LoadError> {
    let states = states(control, job.name()).await;
    let trial = control.borrow().trial().with_states(states);
    let generation = compile(job).await?;
    let tried = Arc::clone(&generation);
    let trying = spawn_blocking(move || trial.run(&tried)).await;
    trying.unwrap_or_else(|error| Err(LoadError::Compile(error.to_string())))?;
    let mut control = control.borrow_mut();
    let name = generation.name.clone();
    control.registry.publish(generation);
    control.publish();
    control
        .metrics
        .reloads(ReloadKind::Plugin, ReloadResult::Ok)
        .add(1);
    if let Some(generation) = control.site().plugins.get(&name) {
        tracing::info!(plugin = %name, generation = generation.number, source = %generation.source, "plugin in force");
    }
    Ok(())
}

/// How long a worker may take to say what its instances know: one that is busy for longer has
/// nothing to say.
const STATE_DEADLINE: Duration = Duration::from_secs(1);

/// What all instances of a plugin know, so that its successor can be tried with it.
async fn states(control: &RefCell<Control>, name: &PluginName) -> Vec<States> {
    let keeps_state = |generation: &Arc<Generation>| generation.kinds().state;
    if !control
        .borrow()
        .site()
        .plugins
        .get(name)
        .is_some_and(keeps_state)
    {
        return Vec::new();
    }
    let commands = control.borrow().worker_commands.clone();
    let mut states = Vec::new();
    for worker in commands {
        let (reply, answer) = oneshot::channel();
        let question = WorkerCommand::Save(name.clone(), reply);
        let asked = async { worker.send(question).await.ok() };
        let answered = async {
            asked.await?;
            answer.await.ok()
        };
        states.extend(timeout(STATE_DEADLINE, answered).await.ok().flatten());
    }
    states
}
