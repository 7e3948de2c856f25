//! What is wrong now, and since when: for status, its exit code, and metrics. The only room that knows.
//!
//! What is found out once (a configuration that is refused, a name that does not resolve) is reported
//! by whoever finds it, and taken back by the same when it is over. What others keep (backends that are
//! down, plugins that are refused) is asked of them when somebody looks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use pointsman_admin::status::ActiveProblem;
use pointsman_config::UpstreamName;
use pointsman_metrics::labels::ProblemKind;
use pointsman_plugins::registry::Registry;
use pointsman_traffic::upstream::fitness::Unfit;
use pointsman_traffic::upstream::pool::{Backend, Pool};
use tokio::sync::watch;

use super::control::ControlPlane;
use super::trial::{Trial, name_of};
use crate::site::Site;

/// Messages kept of one subject: more are counted.
const MESSAGES_MAX: usize = 100;

/// What was reported and is not over.
#[derive(Debug, Default)]
pub(super) struct Problems {
    open: BTreeMap<Subject, Open>,
}

/// What a report is about. A later report takes the place of an earlier one about the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// The content of the configuration file.
    Config(PathBuf),
    /// Looking for changes of it.
    ConfigWatch(PathBuf),
    /// The files that the logs are written to.
    Logs,
    /// The content of an upstream's `backends_file`.
    BackendsFile(UpstreamName),
    /// Looking for changes of it.
    BackendsFileWatch(UpstreamName),
    /// An upstream's `dns`.
    Dns(UpstreamName),
    /// The folder of plugins.
    PluginsDir(PathBuf),
    /// A file in it whose name no plugin can have.
    PluginFile(PathBuf),
}

#[derive(Debug)]
struct Open {
    messages: Vec<String>,
    since: SystemTime,
}

impl Problems {
    /// Something is wrong. What was wrong before with the same subject is forgotten, but for its
    /// beginning. False: it is known.
    pub(super) fn report(&mut self, subject: Subject, messages: Vec<String>) -> bool {
        let known = self.open.get(&subject);
        let is_news = known.is_none_or(|open| open.messages != messages);
        let since = known.map_or_else(SystemTime::now, |open| open.since);
        self.open.insert(subject, Open { messages, since });
        is_news
    }

    /// A file in the folder of plugins is refused. Those that have a plugin's name are the registry's to
    /// tell of.
    pub(super) fn plugin_file_refused(&mut self, file: &Path, message: String) {
        if name_of(file).is_err() {
            self.report(Subject::PluginFile(file.to_owned()), vec![message]);
        }
    }

    /// Nothing is wrong any more.
    pub(super) fn over(&mut self, subject: &Subject) {
        self.open.remove(subject);
    }

    fn all(&self) -> impl Iterator<Item = ActiveProblem> {
        self.open.iter().flat_map(|(subject, open)| {
            let (kind, name) = subject.shown();
            let problem =
                move |message: String| ActiveProblem::new(kind, name.clone(), message, open.since);
            let n_more = open.messages.len().saturating_sub(MESSAGES_MAX);
            let more = (n_more > 0).then(|| format!("and {n_more} more"));
            let shown = open.messages.iter().take(MESSAGES_MAX).cloned();
            shown.chain(more).map(problem)
        })
    }
}

impl Subject {
    fn shown(&self) -> (ProblemKind, String) {
        match self {
            Self::Config(path) | Self::ConfigWatch(path) => {
                (ProblemKind::Config, path.display().to_string())
            }
            Self::Logs => (ProblemKind::Log, "files".to_owned()),
            Self::BackendsFile(upstream) | Self::BackendsFileWatch(upstream) => {
                (ProblemKind::BackendsFile, upstream.to_string())
            }
            Self::Dns(upstream) => (ProblemKind::Dns, upstream.to_string()),
            Self::PluginsDir(path) => (ProblemKind::PluginsDir, path.display().to_string()),
            Self::PluginFile(path) => (ProblemKind::Plugin, path.display().to_string()),
        }
    }
}

/// Reports what a watch says of itself, for as long as it lives.
pub(super) async fn follow(
    control: Rc<RefCell<ControlPlane>>,
    subject: Subject,
    mut trouble: watch::Receiver<Option<String>>,
) {
    loop {
        let message = trouble.borrow_and_update().clone();
        match message {
            Some(message) => {
                let problems = &mut control.borrow_mut().problems;
                problems.report(subject.clone(), vec![message]);
            }
            None => control.borrow_mut().problems.over(&subject),
        }
        if trouble.changed().await.is_err() {
            return;
        }
    }
}

/// All that is wrong, gravest first.
pub(super) fn all(control: &ControlPlane) -> Vec<ActiveProblem> {
    let site = control.site();
    let mut problems: Vec<_> = control.problems.all().collect();
    problems.extend(of_upstreams(&site));
    problems.extend(of_plugins(&control.registry, &control.trial()));
    problems.sort_by_key(|problem| problem.kind);
    problems
}

fn of_upstreams(site: &Site) -> Vec<ActiveProblem> {
    let mut problems = Vec::new();
    for upstream in &site.config.upstreams {
        let Some(pool) = site.pools.get(&upstream.name) else {
            continue;
        };
        let mut report = |kind: ProblemKind, message: String, since: SystemTime| {
            problems.push(ActiveProblem::new(
                kind,
                upstream.name.to_string(),
                message,
                since,
            ));
        };
        if let Some(since) = without_backend_since(pool) {
            report(ProblemKind::Upstream, "no backend is up".to_owned(), since);
        }
        if site.plugins.get(&upstream.policy).is_none() {
            let policy = &upstream.policy;
            let message = format!("policy {policy} is not loaded, round robin decides");
            report(ProblemKind::Policy, message, pool.since);
        }
        for backend in taking_new(pool) {
            if let Some(since) = backend.down_since() {
                report(ProblemKind::Backend, why_down(backend), since);
            }
        }
    }
    problems
}

/// Those that the operator has not taken out.
fn taking_new(pool: &Pool) -> impl Iterator<Item = &Backend> {
    let backends = pool.backends.iter().map(AsRef::as_ref);
    backends.filter(|backend: &&Backend| !backend.config.is_draining)
}

/// Since when no backend of an upstream has been up; none: one is.
fn without_backend_since(pool: &Pool) -> Option<SystemTime> {
    let mut last = None;
    for backend in taking_new(pool) {
        last = last.max(Some(backend.down_since()?));
    }
    Some(last.unwrap_or(pool.since))
}

fn why_down(backend: &Backend) -> String {
    let address = backend.address();
    match backend.fitness().why_unfit(tokio::time::Instant::now()) {
        Some(Unfit::Down(reason)) => format!("backend {address} is down ({reason})"),
        Some(Unfit::Ejected(reason, left)) => {
            let secs = left.as_secs() + 1;
            format!("backend {address} is ejected ({reason}; back in {secs} s)")
        }
        Some(Unfit::Unreachable(reason, left)) => {
            let secs = left.as_secs() + 1;
            format!("backend {address} is unreachable ({reason}; tried again in {secs} s)")
        }
        None => {
            let n = backend.failures_in_a_row();
            format!("backend {address} is down ({n} failures in a row)")
        }
    }
}

fn of_plugins(registry: &Registry, trial: &Trial) -> Vec<ActiveProblem> {
    let mut problems = Vec::new();
    for status in registry.status() {
        let Some(problem) = status.problem else {
            continue;
        };
        // A plugin that nothing uses may go.
        if problem.is_file_gone && !trial.names(&status.name) {
            continue;
        }
        let serving = match &status.current {
            Some(generation) => format!("generation {} serves", generation.number),
            None => "not loaded".to_owned(),
        };
        let message = format!("{serving}: {}", problem.message);
        let name = status.name.to_string();
        problems.push(ActiveProblem::new(
            ProblemKind::Plugin,
            name,
            message,
            problem.since,
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_beginning_until_it_is_over() {
        let mut problems = Problems::default();
        let subject = Subject::Config("a.toml".into());
        let messages = |problems: &Problems| -> Vec<String> {
            problems.all().map(|problem| problem.message).collect()
        };
        assert!(problems.report(subject.clone(), vec!["one".to_owned()]));
        assert!(!problems.report(subject.clone(), vec!["one".to_owned()]));
        let since = problems.open[&subject].since;
        problems.report(subject.clone(), vec!["two".to_owned(), "three".to_owned()]);
        assert_eq!(messages(&problems), ["two", "three"]);
        assert_eq!(problems.open[&subject].since, since);
        problems.over(&Subject::ConfigWatch("a.toml".into()));
        assert_eq!(messages(&problems).len(), 2);
        problems.over(&subject);
        assert!(messages(&problems).is_empty());
    }

    #[test]
    fn a_thousand_messages_are_a_hundred_and_a_number() {
        let mut problems = Problems::default();
        let many = (0..1000).map(|n| n.to_string()).collect();
        problems.report(Subject::Config("a.toml".into()), many);
        let all: Vec<_> = problems.all().collect();
        assert_eq!(all.len(), MESSAGES_MAX + 1);
        assert_eq!(all[MESSAGES_MAX].message, "and 900 more");
    }
}
