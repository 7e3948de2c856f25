//! Reading the configuration again and applying it, and saying what that would change.
//!
//! Files are read and plugins are compiled and tried on threads of the background, which may take minutes.
//! Meanwhile pages are answered, orders carried out, backends found, plugins replaced, and a drain may begin.
//! So everything is decided at the end, in one step on the control thread, by what holds at that moment:
//!
//! ```text
//!   read the file ---> read what it names ---> compile and try plugins <---+
//!    (turn held)       (backends, CAs, logs)        |                      | others serve now
//!                                                   v                      |
//!                                           all as it was tried? ----------+
//!                                                   | yes, and no await from here on
//!                                                   v
//!                          newer backends stay, listeners open, publish
//! ```
//!
//! One reload at a time: one that is wanted meanwhile follows, and reads the file then. A drain ends all of them.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pointsman_admin::commands::{CommandOutcome, Proposal};
use pointsman_config::{Config, Draft, Problem};
use pointsman_contract::names::PluginName;
use pointsman_metrics::labels::{ReloadKind, ReloadResult};
use pointsman_plugins::load::LoadError;
use pointsman_watch::{Change, Watch};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use super::candidates::Candidates;
use super::control::ControlPlane;
use super::logs::{self, Outputs};
use super::problems::{self, Subject};
use super::trial::Trial;
use super::{aside, discovery, plan as plans, plugin_updates};
use crate::site::{Connectors, Discovered, Found};
use crate::systemd;
use crate::worker::{Census, WorkerCommand};

/// How often plugins may change while a configuration is tried with them.
const TRIES_MAX: usize = 8;

/// How long all files together that a configuration names are waited for.
const FILES_TIMEOUT: Duration = Duration::from_secs(30);

/// A configuration that is to be applied.
pub(super) struct Proposed {
    pub(super) config: Arc<Config>,
    /// What it leads to, as it was read with it.
    pub(super) outside: Discovered,
    /// What files of backends said that were followed when it was read.
    pub(super) read_beside: Found,
    pub(super) outputs: Outputs,
    pub(super) candidates: Candidates,
}

/// Why the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody wants it, by signal or over the admin address.
    Asked,
    /// It seems to have been written. What was read last, in whatever way, is no news then.
    FileChanged,
}

/// Reads the configuration again when it is wanted and when its file changes. What is wanted several times
/// meanwhile is done once.
pub(super) async fn run(control: Rc<RefCell<ControlPlane>>, wanted: Rc<Notify>) {
    let file = control.borrow().file.clone();
    let (watch, mut changes) = watch_config(&control, file.clone()).await.unzip();
    let following = async {
        if let (Some(file), Some(watch)) = (file, &watch) {
            let subject = Subject::ConfigWatch(file);
            problems::follow(Rc::clone(&control), subject, watch.trouble()).await;
        }
    };
    let reloading = async {
        if watch.is_some() {
            // It may have changed between its first reading and the beginning of the watch.
            reload(&control, Cause::FileChanged).await;
        }
        loop {
            tokio::select! {
                () = wanted.notified() => {
                    reload(&control, Cause::Asked).await;
                }
                Some(change) = next_change(&mut changes) => match change {
                    Change::Written(_) => {
                        reload(&control, Cause::FileChanged).await;
                    }
                    Change::Gone(path) => control.borrow_mut().config_gone(path),
                },
            }
        }
    };
    let ((), ()) = tokio::join!(following, reloading);
}

/// None: there is no file, or it cannot be watched.
async fn watch_config(
    control: &RefCell<ControlPlane>,
    file: Option<PathBuf>,
) -> Option<(Watch, mpsc::Receiver<Change>)> {
    let file = file?;
    let path = file.clone();
    let watched = aside::briefly(move || Watch::file(&path)).await;
    match watched.unwrap_or_else(|error| Err(error.into())) {
        Ok(watched) => Some(watched),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "configuration file cannot be watched: SIGHUP reads it again");
            let message = format!("it cannot be watched, SIGHUP reads it again: {error}");
            let subject = Subject::ConfigWatch(file);
            control.borrow_mut().problems.report(subject, vec![message]);
            None
        }
    }
}

/// Never ready where nothing is watched.
async fn next_change(changes: &mut Option<mpsc::Receiver<Change>>) -> Option<Change> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads the configuration again and applies it, or says everything that is wrong with it.
pub(super) async fn reload(control: &RefCell<ControlPlane>, cause: Cause) -> CommandOutcome {
    let Some(file) = control.borrow().file.clone() else {
        let reason = "nothing to reload: the configuration came from flags";
        tracing::warn!("{reason}");
        return CommandOutcome::NotFound(reason.to_owned());
    };
    let (turn, mut leaving) = {
        let control = control.borrow();
        (
            Arc::clone(&control.reload_turn),
            control.leaving.subscribe(),
        )
    };
    let reloading = async {
        // One after the other, so that what was read last is applied last.
        let _turn = turn.lock().await;
        reload_now(control, &file, cause).await
    };
    tokio::select! {
        biased;
        _ = leaving.wait_for(|is_leaving| *is_leaving) => {
            tracing::info!("no reload: the process is being drained");
            CommandOutcome::Refused(vec![keyless("the process is being drained")])
        }
        outcome = reloading => outcome,
    }
}

async fn reload_now(control: &RefCell<ControlPlane>, file: &Path, cause: Cause) -> CommandOutcome {
    let nothing_new = || CommandOutcome::Done("nothing has changed".to_owned());
    if cause == Cause::Asked {
        systemd::reloading();
    }
    let text = read_text(file).await;
    if cause == Cause::FileChanged {
        let mut control = control.borrow_mut();
        match &text {
            Ok(text) if control.last_read.as_ref() == Some(text) => return nothing_new(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                control.config_gone(file.to_owned());
                return nothing_new();
            }
            _ => systemd::reloading(),
        }
    }
    control.borrow_mut().last_read = text.as_ref().ok().cloned();
    let result = match text {
        Ok(text) => change_to(control, file, text).await,
        Err(error) => Err(vec![keyless(error)]),
    };
    let (result, outcome) = match result {
        Ok(ReloadResult::Unchanged) => (ReloadResult::Unchanged, nothing_new()),
        Ok(result) => (
            result,
            CommandOutcome::Done("configuration applied".to_owned()),
        ),
        Err(problems) => {
            for problem in &problems {
                tracing::error!(file = %file.display(), "{problem}");
            }
            tracing::error!(file = %file.display(), problems = problems.len(), "configuration refused: the running one stays");
            (ReloadResult::Failed, CommandOutcome::Refused(problems))
        }
    };
    if result == ReloadResult::Ok {
        tracing::info!(file = %file.display(), "configuration applied");
    }
    let mut control = control.borrow_mut();
    control.config_read(file, &outcome);
    control.metrics.reloads(ReloadKind::Config, result).add(1);
    systemd::ready();
    outcome
}

/// Applies what the file says.
async fn change_to(
    control: &RefCell<ControlPlane>,
    file: &Path,
    text: String,
) -> Result<ReloadResult, Vec<Problem>> {
    let dir = file.parent().unwrap_or(Path::new(""));
    let changed = try_and_apply(control, dir, text.clone()).await;
    match changed {
        Ok(result) => Ok(result),
        Err(problems) => Err(located(problems, text).await),
    }
}

async fn try_and_apply(
    control: &RefCell<ControlPlane>,
    dir: &Path,
    text: String,
) -> Result<ReloadResult, Vec<Problem>> {
    let before = control.borrow().outside.clone();
    let understood = understand(dir, text, before.tls).await?;
    let (config, outside) = match understood {
        Understood {
            draft:
                Draft {
                    config: Some(config),
                    problems,
                    ..
                },
            outside: Ok(outside),
        } if problems.is_empty() => (config, outside),
        understood => return Err(all_problems(control, &understood).await),
    };
    let config = Arc::new(config);
    let outputs = match open_logs(control, &config).await {
        Ok(outputs) => outputs,
        Err(of_logs) => {
            let trial = Arc::new(Trial::new(&config));
            let of_rest = problems_beside_logs(control, &trial).await;
            return Err([of_logs, of_rest].concat());
        }
    };
    let trial = Arc::new(Trial::new(&config));
    let mut candidates = Candidates::default();
    let refuse = |name: &PluginName, error: &LoadError| {
        plugin_updates::refuse(control, name, error);
    };
    for _ in 0..TRIES_MAX {
        candidates.update(control, &trial, refuse).await;
        let mut control = control.borrow_mut();
        if candidates.are_current(&control.registry) {
            return control.apply(Proposed {
                config,
                outside,
                read_beside: before.found,
                outputs,
                candidates,
            });
        }
    }
    let message = "plugins change faster than they can be tried: reload again";
    Err(vec![keyless(message)])
}

/// Says what a configuration would change.
pub(super) async fn plan(control: &RefCell<ControlPlane>, proposal: Proposal) -> CommandOutcome {
    let Proposal { text, dir } = proposal;
    let before = control.borrow().outside.tls.clone();
    let understood = match understand(&dir, text.clone(), before).await {
        Ok(understood) => understood,
        Err(problems) => return CommandOutcome::Refused(problems),
    };
    let problems = all_problems(control, &understood).await;
    let (Some(config), Ok(outside)) = (understood.draft.config, understood.outside) else {
        return CommandOutcome::Refused(located(problems, text).await);
    };
    if !problems.is_empty() {
        return CommandOutcome::Refused(located(problems, text).await);
    }
    let config = Arc::new(config);
    let census = census(control).await;
    let site = control.borrow().site();
    let compared = aside::briefly(move || {
        let keeps = plans::keeps(&site, &config, &outside);
        let running = plans::RunningSessions {
            census: &census,
            keeps,
        };
        plans::plan(&site, &config, &running)
    });
    match compared.await {
        Ok(plan) => CommandOutcome::Planned(plan),
        Err(error) => CommandOutcome::Refused(vec![keyless(error)]),
    }
}

/// The open sessions of all workers that are not too busy to say.
async fn census(control: &RefCell<ControlPlane>) -> Census {
    let commands = control.borrow().worker_commands.clone();
    let mut census = Census::new();
    for worker in commands {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            worker.send(WorkerCommand::Census(reply)).await.ok()?;
            answer.await.ok()
        };
        let answered = timeout(plugin_updates::STATE_DEADLINE, asked).await;
        census.extend(answered.ok().flatten().unwrap_or_default());
    }
    census
}

async fn read_text(file: &Path) -> io::Result<String> {
    let path = file.to_owned();
    let read = aside::briefly(move || std::fs::read_to_string(path)).await;
    read.unwrap_or_else(|error| Err(error.into()))
}

/// What a text says, and what the files that it names do.
struct Understood {
    draft: Draft,
    outside: Result<Discovered, Vec<Problem>>,
}

/// `dir`: where relative paths begin.
async fn understand(
    dir: &Path,
    text: String,
    before: Connectors,
) -> Result<Understood, Vec<Problem>> {
    let dir = dir.to_owned();
    let read = move || {
        let draft = Draft::from_toml(&text, &dir);
        let config = draft.config.as_ref();
        let outside = config.map_or(Err(Vec::new()), |config| {
            discovery::read_all(config, &draft.keys, &before)
        });
        Understood { draft, outside }
    };
    let read = aside::within(FILES_TIMEOUT, read).await;
    read.map_err(|error| vec![keyless(error)])
}

/// Everything that is wrong with a configuration, as far as it says what is meant.
async fn all_problems(control: &RefCell<ControlPlane>, understood: &Understood) -> Vec<Problem> {
    let mut problems = understood.draft.problems.clone();
    problems.extend(
        understood
            .outside
            .as_ref()
            .err()
            .into_iter()
            .flatten()
            .cloned(),
    );
    if let Some(trial) = Trial::of_draft(&understood.draft) {
        problems.extend(check_logs(control, trial.config()).await);
        problems.extend(problems_beside_logs(control, &Arc::new(trial)).await);
    }
    problems
}

/// What plugins refuse, what cannot change, and what cannot be listened at.
async fn problems_beside_logs(control: &RefCell<ControlPlane>, trial: &Arc<Trial>) -> Vec<Problem> {
    let mut candidates = Candidates::default();
    candidates.update(control, trial, |_, _| {}).await;
    let control = control.borrow();
    let fixed = control.changes_of_fixed_keys(trial.config()).into_iter();
    let mut problems: Vec<_> = fixed.filter(|fixed| !trial.is_faulty(&fixed.key)).collect();
    problems.extend(candidates.fit().err().unwrap_or_default());
    if !trial.is_faulty("listener") {
        problems.extend(control.listeners_not_bound(trial.config()));
    }
    problems
}

/// What would be wrong with [`open_logs`].
async fn check_logs(control: &RefCell<ControlPlane>, new: &Arc<Config>) -> Vec<Problem> {
    let (new, old) = (Arc::clone(new), Arc::clone(&control.borrow().config));
    let checked = aside::briefly(move || logs::check(&new, Some(&old))).await;
    checked.unwrap_or_else(|error| vec![keyless(error)])
}

/// What a new configuration has the logs written to, where that changes.
async fn open_logs(control: &RefCell<ControlPlane>, new: &Config) -> Result<Outputs, Vec<Problem>> {
    let (new, old) = (new.clone(), Arc::clone(&control.borrow().config));
    let opened = aside::briefly(move || logs::open(&new, Some(&old))).await;
    opened.unwrap_or_else(|error| Err(vec![keyless(error)]))
}

/// With their lines, which are looked for in the whole text, and in the order of those.
async fn located(problems: Vec<Problem>, text: String) -> Vec<Problem> {
    let unlocated = problems.clone();
    let located = aside::briefly(move || Problem::locate_all(problems, &text)).await;
    let mut located = located.unwrap_or(unlocated);
    located.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    located
}

fn keyless(message: impl ToString) -> Problem {
    Problem {
        key: String::new(),
        line: None,
        message: message.to_string(),
    }
}
