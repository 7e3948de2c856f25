//! Backends that are found while running: what a watched file says, and what a name stands for.
//!
//! Follows the snapshot: one watch for each `backends_file`, one asker for each `dns`. What cannot be
//! used changes nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::control::{Control, FoundBy};
use crate::admin::metrics::{ReloadKind, ReloadResult};
use crate::config::{self, Config, Dns, Problem, UpstreamName};
use crate::site::{Connectors, Found, Outside};
use crate::upstream::dns::{self, Answer};
use crate::upstream::tls::Tls;
use crate::watch::{Change, Watch};

/// For one answer, all its parts included.
const DNS_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers that are valid for less are asked for no more often than so.
const DNS_MIN_WAIT: Duration = Duration::from_secs(1);

/// The watches under way. Dropping it ends them.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    tasks: JoinSet<()>,
    files: HashMap<UpstreamName, (PathBuf, AbortHandle)>,
    names: HashMap<UpstreamName, (Dns, AbortHandle)>,
}

impl Discovery {
    /// Begins and ends watches, so that they are those of `config`.
    pub(super) fn follow(&mut self, control: &Rc<RefCell<Control>>, config: &Config) {
        self.files.retain(|name, (path, task)| {
            let of_name = config.upstreams.iter().find(|u| u.name == *name);
            let stays = of_name.is_some_and(|u| u.backends_file.as_ref() == Some(path));
            if !stays {
                task.abort();
            }
            stays
        });
        self.names.retain(|name, (dns, task)| {
            let of_name = config.upstreams.iter().find(|u| u.name == *name);
            let stays = of_name.is_some_and(|u| u.dns.as_ref() == Some(dns));
            if !stays {
                task.abort();
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

async fn watch(control: Rc<RefCell<Control>>, upstream: UpstreamName, path: PathBuf) {
    let (_watch, mut changes) = match Watch::file(&path) {
        Ok(watched) => watched,
        Err(error) => {
            tracing::error!(%upstream, path = %path.display(), %error, "file of backends cannot be watched");
            return;
        }
    };
    // It may have changed since it was read.
    update(&control, &upstream, &path).await;
    while let Some(change) = next(&mut changes).await {
        match change {
            Change::Written(_) => update(&control, &upstream, &path).await,
            Change::Gone(_) => {
                tracing::warn!(%upstream, path = %path.display(), "file of backends is gone: those found last stay");
            }
        }
    }
}

/// Asks again and again, as often as answers are valid.
async fn ask(control: Rc<RefCell<Control>>, upstream: UpstreamName, dns: Dns) {
    let resolver = match dns::resolver(&dns) {
        Ok(resolver) => resolver,
        Err(error) => {
            tracing::error!(%upstream, name = dns.name, error, "no name can be resolved");
            return;
        }
    };
    let mut said = None;
    loop {
        let answer = timeout(DNS_TIMEOUT, dns::ask(&resolver, &dns)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {DNS_TIMEOUT:?}")));
        let wait = match answer {
            Ok(Answer {
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
                said = None;
                valid_for
            }
            Err(error) => {
                // What lasts is told once.
                if said.as_ref() != Some(&error) {
                    tracing::warn!(%upstream, name = dns.name, error, "name not resolved: those found last stay");
                    let control = control.borrow();
                    let failed = (ReloadKind::Backends, ReloadResult::Failed);
                    control.metrics.reloads(failed.0, failed.1).add(1);
                    said = Some(error);
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

async fn update(control: &RefCell<Control>, upstream: &UpstreamName, path: &Path) {
    let file = path.to_owned();
    let read = spawn_blocking(move || read(&file)).await;
    let problems = match read {
        Ok(Ok(backends)) => {
            let mut control = control.borrow_mut();
            let n = backends.len();
            if control.found_backends(FoundBy::File, upstream, backends) {
                tracing::info!(%upstream, path = %path.display(), backends = n, "file of backends in force");
            }
            return;
        }
        Ok(Err(problems)) => problems.iter().map(ToString::to_string).collect(),
        Err(error) => vec![error.to_string()],
    };
    for problem in &problems {
        tracing::error!(%upstream, path = %path.display(), problem, "file of backends refused: those found last stay");
    }
    let control = control.borrow();
    let failed = (ReloadKind::Backends, ReloadResult::Failed);
    control.metrics.reloads(failed.0, failed.1).add(1);
}

/// Reads the files of backends and of certificates of a configuration. Blocks. `before`: what was made
/// of certificates already.
///
/// # Errors
/// Everything that is wrong with them, at the key that names the file.
pub(super) fn read_all(config: &Config, before: &Connectors) -> Result<Outside, Vec<Problem>> {
    let (mut found, mut tls, mut problems) = (Found::new(), Connectors::new(), Vec::new());
    for (i, upstream) in config.upstreams.iter().enumerate() {
        if let Some(config) = &upstream.tls {
            match Tls::new(config, before.get(&upstream.name)) {
                Ok(made) => _ = tls.insert(upstream.name.clone(), made),
                Err(message) => problems.push(Problem {
                    key: format!("upstream[{i}].tls"),
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
                key: format!("upstream[{i}].backends_file"),
                line: None,
                message: format!("{}: {problem}", path.display()),
            })),
        }
    }
    match problems.is_empty() {
        true => Ok(Outside {
            found,
            tls,
            ..Outside::default()
        }),
        false => Err(problems),
    }
}

fn read(path: &Path) -> Result<Vec<config::Backend>, Vec<Problem>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        vec![Problem {
            key: String::new(),
            line: None,
            message: error.to_string(),
        }]
    })?;
    config::Backend::list_from(&text)
}
