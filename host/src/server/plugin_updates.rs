//! Turns changes of the watched folder into new generations, one at a time.
//!
//! The newest content of a file wins: changes that come while one is worked on wait, one per plugin.
//! Compiling and trying happen on a background thread; publishing here, in one step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::control::Control;
use super::trial;
use crate::admin::metrics::{ReloadKind, ReloadResult};
use crate::config::PluginName;
use crate::plugins::generation::{Generation, Source};
use crate::plugins::load::LoadError;
use crate::plugins::registry::{Job, Removal};
use crate::watch::Change;
use crate::worker::Ask;
use crate::worker::guests::States;

/// Works until the watch ends.
pub(super) async fn run(control: Rc<RefCell<Control>>, mut changes: mpsc::Receiver<Change>) {
    let mut waiting = BTreeMap::new();
    loop {
        if waiting.is_empty() {
            match changes.recv().await {
                Some(change) => note(&mut waiting, change),
                None => return,
            }
        }
        while let Ok(change) = changes.try_recv() {
            note(&mut waiting, change);
        }
        if let Some((name, change)) = waiting.pop_first() {
            update(&control, name, change).await;
        }
    }
}

fn note(waiting: &mut BTreeMap<PluginName, Change>, change: Change) {
    let (Change::Written(path) | Change::Gone(path)) = &change;
    match trial::name_of(path) {
        Ok(name) => _ = waiting.insert(name, change),
        Err(error) => tracing::warn!(path = %path.display(), %error, "file ignored"),
    }
}

async fn update(control: &RefCell<Control>, name: PluginName, change: Change) {
    let offered = match change {
        Change::Written(path) => offer(control, &name, path).await,
        Change::Gone(path) => remove(control, &name, &path),
    };
    let result = match offered {
        Ok(None) => return,
        Ok(Some(job)) => build(control, job).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        let mut control = control.borrow_mut();
        let serving = control
            .site()
            .plugins
            .get(&name)
            .map_or(0, |generation| generation.number);
        tracing::error!(plugin = %name, serving_generation = serving, %error, "plugin refused: what served before goes on serving");
        control.registry.refuse(&name, &error);
        control
            .metrics
            .reloads(ReloadKind::Plugin, ReloadResult::Failed)
            .add(1);
    }
}

/// Reads a file and offers it. None: there is nothing to do.
async fn offer(
    control: &RefCell<Control>,
    name: &PluginName,
    path: PathBuf,
) -> Result<Option<Job>, LoadError> {
    let to_read = path.clone();
    let read = spawn_blocking(move || trial::read(&to_read))
        .await
        .map_err(|error| LoadError::Read(error.to_string()))?;
    let bytes = read.map_err(|error| LoadError::Read(error.to_string()))?;
    let mut control = control.borrow_mut();
    let job = control.registry.offer(name, bytes, Source::File(path))?;
    if job.is_none() {
        tracing::info!(plugin = %name, "plugin unchanged: the same content serves already");
        control
            .metrics
            .reloads(ReloadKind::Plugin, ReloadResult::Unchanged)
            .add(1);
    }
    Ok(job)
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
    let building = spawn_blocking(move || {
        let generation = job.compile()?;
        trial.run(&generation)?;
        Ok(generation)
    });
    let generation = building
        .await
        .map_err(|error| LoadError::Compile(error.to_string()))??;
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
    let asks = control.borrow().asks.clone();
    let mut states = Vec::new();
    for ask in asks {
        let (reply, answer) = oneshot::channel();
        let question = Ask::Save(name.clone(), reply);
        let asked = async { ask.send(question).await.ok() };
        let answered = async {
            asked.await?;
            answer.await.ok()
        };
        states.extend(timeout(STATE_DEADLINE, answered).await.ok().flatten());
    }
    states
}
