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

use pointsman_config::Config;
use pointsman_contract::names::PluginName;
use pointsman_metrics::labels::{ReloadKind, ReloadResult};
use pointsman_plugins::generation::{Generation, GenerationSource};
use pointsman_plugins::load::{self, LoadError};
use pointsman_plugins::registry::{Content, Job, Removal};
use pointsman_watch::Change;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::aside;
use super::control::ControlPlane;
use super::problems::Subject;
use super::trial::{self, Trial};
use crate::context::guests::States;
use crate::worker::WorkerCommand;

/// Works until the watch ends.
pub(super) async fn run(control: Rc<RefCell<ControlPlane>>, mut changes: mpsc::Receiver<Change>) {
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

fn note(
    control: &RefCell<ControlPlane>,
    waiting: &mut BTreeMap<PluginName, Change>,
    change: Change,
) {
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

async fn update(control: &RefCell<ControlPlane>, name: PluginName, change: Change) {
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
pub(super) fn refuse(control: &RefCell<ControlPlane>, name: &PluginName, error: &LoadError) {
    let mut control = control.borrow_mut();
    trial::refuse(&mut control.registry, name, error);
    control
        .metrics
        .reloads(ReloadKind::Plugin, ReloadResult::Failed)
        .add(1);
}

/// Offers a file that something refers to. None: there is nothing to do.
async fn offer_or_note(
    control: &RefCell<ControlPlane>,
    name: &PluginName,
    path: PathBuf,
) -> Result<Option<Job>, LoadError> {
    if !control.borrow().trial().names(name) {
        // A configuration that is just being read may refer to it.
        let turn = Arc::clone(&control.borrow().reload_turn);
        let _turn = turn.lock().await;
        if !control.borrow().trial().names(name) {
            read(path.clone(), |bytes| load::look(&bytes)).await?;
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
pub(super) async fn offer(
    control: &RefCell<ControlPlane>,
    name: &PluginName,
    path: PathBuf,
) -> Result<Option<Job>, LoadError> {
    let content = read(path.clone(), |bytes| Ok(Content::new(bytes))).await?;
    let mut control = control.borrow_mut();
    control
        .registry
        .offer(name, content, GenerationSource::File(path))
}

/// Reads a file, and does with its bytes what takes time as well.
async fn read<T: Send + 'static>(
    path: PathBuf,
    then: fn(Vec<u8>) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let read = aside::briefly(move || then(trial::read(&path)?)).await;
    read.unwrap_or_else(|error| Err(LoadError::Read(error.to_string())))
}

/// Compiles on a thread of the background.
pub(super) async fn compile(job: Job) -> Result<Arc<Generation>, LoadError> {
    let compiled = aside::computed(|| job.compile()).await;
    compiled.unwrap_or_else(|error| Err(LoadError::Compile(error.to_string())))
}

/// Tries on a thread of the background.
pub(super) async fn try_aside(
    trial: &Arc<Trial>,
    generation: &Arc<Generation>,
) -> Result<(), LoadError> {
    let (trial, generation) = (Arc::clone(trial), Arc::clone(generation));
    let tried = aside::computed(move || trial.run(&generation)).await;
    tried.unwrap_or_else(|error| Err(LoadError::Compile(error.to_string())))
}

/// The same, with all uses that it does not serve, and their keys; `key`: where there is none to blame.
pub(super) async fn try_all_aside(
    trial: &Arc<Trial>,
    generation: &Arc<Generation>,
    key: &str,
) -> Vec<(String, LoadError)> {
    let (trial, generation) = (Arc::clone(trial), Arc::clone(generation));
    let tried = aside::computed(move || trial.run_all(&generation)).await;
    tried.unwrap_or_else(|error| vec![(key.to_owned(), LoadError::Compile(error.to_string()))])
}

fn remove(
    control: &RefCell<ControlPlane>,
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
async fn build(control: &RefCell<ControlPlane>, job: Job) -> Result<(), LoadError> {
    let generation = compile(job).await?;
    let tried_for = try_for_current(control, &generation).await?;
    let reload_turn = Arc::clone(&control.borrow().reload_turn);
    let _turn;
    if !Arc::ptr_eq(&tried_for, &control.borrow().config) {
        // A reload has changed what refers to it. With the turn held, none does so again.
        _turn = reload_turn.lock().await;
        try_for_current(control, &generation).await?;
    }
    let mut control = control.borrow_mut();
    let name = generation.name.clone();
    control.registry.publish(generation);
    control.publish();
    control
        .metrics
        .reloads(ReloadKind::Plugin, ReloadResult::Ok)
        .add(1);
    if let Some(generation) = control.site().plugins.get(&name) {
        tracing::info!(plugin = %name, generation = generation.number, source = %generation.source, "plugin activated");
    }
    Ok(())
}

/// Tries a generation for the configuration that is active, and says which that was.
async fn try_for_current(
    control: &RefCell<ControlPlane>,
    generation: &Arc<Generation>,
) -> Result<Arc<Config>, LoadError> {
    let states = states(control, &generation.name).await;
    let trial = Arc::new(control.borrow().trial().with_states(states));
    try_aside(&trial, generation).await?;
    Ok(Arc::clone(trial.config()))
}

/// How long a worker may take to say what its instances know: one that is busy for longer has
/// nothing to say.
pub(super) const STATE_DEADLINE: Duration = Duration::from_secs(1);

/// What all instances of a plugin know, so that its successor can be tried with it.
async fn states(control: &RefCell<ControlPlane>, name: &PluginName) -> Vec<States> {
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
