//! Backends that are found while running: what a watched file says, and what a name stands for.
//!
//! Follows the snapshot: one watch for each `backends_file`, one asker for each `dns`. What cannot be
//! used changes nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pointsman_config::{self as config, Config, Dns, DraftKeys, Problem, UpstreamName};
use pointsman_metrics::labels::{ReloadKind, ReloadResult};
use pointsman_traffic::upstream::dns::{self, DnsAnswer};
use pointsman_traffic::upstream::tls::Tls;
use pointsman_watch::{Change, Watch};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::aside;
use super::control::{ControlPlane, FoundBy};
use super::problems::{self, Subject};
use crate::site::{Connectors, Discovered, Found};

/// For one answer, all its parts included.
const DNS_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers that are valid for less are asked for no more often than so.
const DNS_MIN_WAIT: Duration = Duration::from_secs(1);
/// What could not be begun is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The watches under way. Dropping it ends them.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    tasks: JoinSet<()>,
    files: HashMap<UpstreamName, (PathBuf, AbortHandle)>,
    names: HashMap<UpstreamName, (Dns, AbortHandle)>,
}

impl Discovery {
    /// Begins and ends watches, so that they are those of `config`.
    pub(super) fn follow(&mut self, control: &Rc<RefCell<ControlPlane>>, config: &Config) {
        let upstreams: HashMap<_, _> = config.upstreams.iter().map(|u| (&u.name, u)).collect();
        self.files.retain(|name, (path, task)| {
            let of_name = upstreams.get(name);
            let stays = of_name.is_some_and(|u| u.backends_file.as_ref() == Some(path));
            if !stays {
                task.abort();
                let problems = &mut control.borrow_mut().problems;
                problems.over(&Subject::BackendsFile(name.clone()));
                problems.over(&Subject::BackendsFileWatch(name.clone()));
            }
            stays
        });
        self.names.retain(|name, (dns, task)| {
            let of_name = upstreams.get(name);
            let stays = of_name.is_some_and(|u| u.dns.as_ref() == Some(dns));
            if !stays {
                task.abort();
                let problems = &mut control.borrow_mut().problems;
                problems.over(&Subject::Dns(name.clone()));
            }
            stays
        });
        for upstream in &config.upstreams {
            let Some(dns) = &upstream.dns else { continue };
            if self.names.contains_key(&upstream.name) {
                continue;
            }
            let asking = ask(Rc::clone(control), upstream.name.clone(), dns.clone());
            let task = self.tasks.spawn_local(asking);
            self.names
                .insert(upstream.name.clone(), (dns.clone(), task));
        }
        for upstream in &config.upstreams {
            let Some(path) = &upstream.backends_file else {
                continue;
            };
            if self.files.contains_key(&upstream.name) {
                continue;
            }
            let watched = watch(Rc::clone(control), upstream.name.clone(), path.clone());
            let task = self.tasks.spawn_local(watched);
            self.files
                .insert(upstream.name.clone(), (path.clone(), task));
        }
        while self.tasks.try_join_next().is_some() {}
    }
}

async fn watch(control: Rc<RefCell<ControlPlane>>, upstream: UpstreamName, path: PathBuf) {
    let subject = Subject::BackendsFileWatch(upstream.clone());
    let (watch, mut changes) = loop {
        let file = path.clone();
        let error = match aside::briefly(move || Watch::file(&file)).await {
            Ok(Ok(watched)) => break watched,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let message = format!("{} cannot be watched: {error}", path.display());
        if control
            .borrow_mut()
            .problems
            .report(subject.clone(), vec![message])
        {
            tracing::error!(%upstream, path = %path.display(), error, "file of backends cannot be watched");
        }
        sleep(RETRY_AFTER).await;
    };
    let trouble = problems::follow(Rc::clone(&control), subject, watch.trouble());
    let following = async {
        // It may have changed since it was read.
        update(&control, &upstream, &path).await;
        while let Some(change) = next(&mut changes).await {
            match change {
                Change::Written(_) => update(&control, &upstream, &path).await,
                Change::Gone(_) => {
                    tracing::warn!(%upstream, path = %path.display(), "file of backends is gone: those found last stay");
                    let message = format!("{} is gone: those found last stay", path.display());
                    let subject = Subject::BackendsFile(upstream.clone());
                    control.borrow_mut().problems.report(subject, vec![message]);
                }
            }
        }
    };
    tokio::join!(trouble, following);
}

/// Asks again and again, as often as answers are valid.
async fn ask(control: Rc<RefCell<ControlPlane>>, upstream: UpstreamName, dns: Dns) {
    let subject = Subject::Dns(upstream.clone());
    let resolver = loop {
        // It reads the system's configuration.
        let asked = dns.clone();
        let error = match aside::briefly(move || dns::resolver(&asked)).await {
            Ok(Ok(resolver)) => break resolver,
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        };
        let message = format!("no name can be resolved: {error}");
        if control
            .borrow_mut()
            .problems
            .report(subject.clone(), vec![message])
        {
            tracing::error!(%upstream, name = dns.name, error, "no name can be resolved");
        }
        sleep(RETRY_AFTER).await;
    };
    loop {
        let answer = timeout(DNS_TIMEOUT, dns::ask(&resolver, &dns)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {DNS_TIMEOUT:?}")));
        let wait = match answer {
            Ok(DnsAnswer {
                backends,
                valid_for,
            }) => {
                let n = backends.len();
                if control
                    .borrow_mut()
                    .found_backends(FoundBy::Dns, &upstream, backends)
                {
                    tracing::info!(%upstream, name = dns.name, backends = n, "backends resolved");
                }
                control.borrow_mut().problems.over(&subject);
                valid_for
            }
            Err(error) => {
                let mut control = control.borrow_mut();
                let message = format!("{} is not resolved: {error}", dns.name);
                // What lasts is told once.
                if control.problems.report(subject.clone(), vec![message]) {
                    tracing::warn!(%upstream, name = dns.name, error, "name not resolved: those found last stay");
                    let failed = (ReloadKind::Backends, ReloadResult::Failed);
                    control.metrics.reloads(failed.0, failed.1).add(1);
                }
                dns.refresh
            }
        };
        sleep(wait.max(DNS_MIN_WAIT)).await;
    }
}

/// The newest of those that wait.
async fn next(changes: &mut mpsc::Receiver<Change>) -> Option<Change> {
    let mut change = changes.recv().await?;
    while let Ok(newer) = changes.try_recv() {
        change = newer;
    }
    Some(change)
}

async fn update(control: &RefCell<ControlPlane>, upstream: &UpstreamName, path: &Path) {
    let file = path.to_owned();
    let read = aside::briefly(move || read(&file)).await;
    let problems: Vec<String> = match read {
        Ok(Ok(backends)) => {
            let mut control = control.borrow_mut();
            let n = backends.len();
            control
                .problems
                .over(&Subject::BackendsFile(upstream.clone()));
            if control.found_backends(FoundBy::File, upstream, backends) {
                tracing::info!(%upstream, path = %path.display(), backends = n, "backends file applied");
            }
            return;
        }
        Ok(Err(problems)) => problems.iter().map(ToString::to_string).collect(),
        Err(error) => vec![error.to_string()],
    };
    for problem in &problems {
        tracing::error!(%upstream, path = %path.display(), problem, "file of backends refused: those found last stay");
    }
    let refused = |problem: &String| {
        format!(
            "{} is refused, those found last stay: {problem}",
            path.display()
        )
    };
    let mut control = control.borrow_mut();
    let subject = Subject::BackendsFile(upstream.clone());
    control
        .problems
        .report(subject, problems.iter().map(refused).collect());
    let failed = (ReloadKind::Backends, ReloadResult::Failed);
    control.metrics.reloads(failed.0, failed.1).add(1);
}

/// Reads the files of backends and of certificates of a configuration. Blocks. `keys`: where its sections are.
/// `before`: what was made of certificates already.
///
/// # Errors
/// Everything that is wrong with them, at the key that names the file.
pub(super) fn read_all(
    config: &Config,
    keys: &DraftKeys,
    before: &Connectors,
) -> Result<Discovered, Vec<Problem>> {
    let (mut found, mut tls, mut problems) = (Found::new(), Connectors::new(), Vec::new());
    for (upstream, place) in config.upstreams.iter().zip(&keys.upstreams) {
        if let Some(config) = &upstream.tls {
            match Tls::new(config, before.get(&upstream.name)) {
                Ok(made) => _ = tls.insert(upstream.name.clone(), made),
                Err(message) => problems.push(Problem {
                    key: match config.ca {
                        Some(_) => format!("{place}.tls.ca"),
                        None => format!("{place}.tls"),
                    },
                    line: None,
                    message,
                }),
            }
        }
        let Some(path) = &upstream.backends_file else {
            continue;
        };
        match read(path) {
            Ok(backends) => _ = found.insert(upstream.name.clone(), backends),
            Err(of_file) => problems.extend(of_file.iter().map(|problem| Problem {
                key: format!("{place}.backends_file"),
                line: None,
                message: format!("{}: {problem}", path.display()),
            })),
        }
    }
    match problems.is_empty() {
        true => Ok(Discovered {
            found,
            tls,
            ..Discovered::default()
        }),
        false => Err(problems),
    }
}

fn read(path: &Path) -> Result<Vec<config::BackendConfig>, Vec<Problem>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        vec![Problem {
            key: String::new(),
            line: None,
            message: error.to_string(),
        }]
    })?;
    config::BackendConfig::list_from(&text)
}
