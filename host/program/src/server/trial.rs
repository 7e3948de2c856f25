//! Loads plugins for a configuration, and tries each with everything that refers to it.
//!
//! A plugin that passes has been configured as it will be configured in service; what it is refused
//! for comes back as a problem of the key that refers to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_config::{self as config, BackendConfig, Config, Problem, Target};
use pointsman_contract::names::PluginName;
use pointsman_contract::policy::Candidate;
use pointsman_plugins::failure::Failure;
use pointsman_plugins::generation::{Generation, GenerationSource};
use pointsman_plugins::limits::{AllLimits, FILE_MAX_BYTES};
use pointsman_plugins::load::{self, LoadError};
use pointsman_plugins::registry::{Loaded, Registry};
use tokio::sync::mpsc;

use super::{EMBEDDED, StartError};
use crate::context::guests::States;

/// What a configuration's plugins came to.
pub(super) struct Outcome {
    pub(super) registry: Registry,
    pub(super) failures: mpsc::Receiver<Failure>,
    /// Files of the folder that were refused, though what is embedded under their names may serve.
    pub(super) refused_files: Vec<Problem>,
}

/// Loads the files that the configuration names, and for the names that have none what is embedded;
/// looks at the others. Blocks.
///
/// # Errors
/// [`StartError::Engine`], or [`StartError::Config`] with every name that nothing serves.
pub(super) fn load_plugins(config: &Arc<Config>, files: &[PathBuf]) -> Result<Outcome, StartError> {
    let started = Registry::new(AllLimits::new(config), EMBEDDED);
    let (mut registry, failures) =
        started.map_err(|error| StartError::Engine(error.to_string()))?;
    let trial = Trial::new(config);
    let named = trial.named();
    let mut refused = Vec::new();
    for path in files {
        let loaded = name_of(path).and_then(|name| match named.contains_key(&name) {
            true => load_file(&mut registry, &trial, &name, path),
            false => note_file(&mut registry, &name, path),
        });
        if let Err(message) = loaded {
            let key = path.display().to_string();
            refused.push((
                name_of(path).ok(),
                Problem {
                    key,
                    line: None,
                    message,
                },
            ));
        }
    }
    let problems = load_missing(&mut registry, &trial);
    if problems.is_empty() {
        let refused_files = refused.into_iter().map(|(_, problem)| problem).collect();
        return Ok(Outcome {
            registry,
            failures,
            refused_files,
        });
    }
    // Files that something needs are among the problems already, at the key that needs them.
    let catalog = registry.catalog();
    refused.retain(|(name, _)| {
        let is_needed = |name: &PluginName| named.contains_key(name) && catalog.get(name).is_none();
        !name.as_ref().is_some_and(is_needed)
    });
    let refused = refused.into_iter().map(|(_, problem)| problem);
    Err(StartError::Config(refused.chain(problems).collect()))
}

/// Loads what a configuration names and nothing serves yet, and tries again what serves. Blocks. Returns what
/// is wrong.
fn load_missing(registry: &mut Registry, trial: &Trial) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, key) in trial.named() {
        let tried = match registry.catalog().get(&name) {
            Some(generation) => trial.run(generation),
            None => load_embedded(registry, trial, &name),
        };
        if let Err(error) = tried {
            problems.push(refusal(registry, &name, key, error));
        }
    }
    problems
}

/// Says in log and status that a plugin is not taken.
pub(super) fn refuse(registry: &mut Registry, name: &PluginName, error: &LoadError) {
    let serving = registry
        .catalog()
        .get(name)
        .map_or(0, |serving| serving.number);
    tracing::error!(plugin = %name, serving_generation = serving, %error, "plugin refused: what served before goes on serving");
    registry.refuse(name, error);
}

/// What is wrong with the key that refers to a plugin, where the plugin does not serve it.
pub(super) fn refusal(
    registry: &Registry,
    name: &PluginName,
    key: String,
    error: LoadError,
) -> Problem {
    let message = match error {
        LoadError::NotEmbedded => unknown(registry, name, &key),
        error => format!("plugin \"{name}\": {error}"),
    };
    Problem {
        key,
        line: None,
        message,
    }
}

/// Why there is no plugin of this name: its file was refused, or there is none. `key` refers to it.
fn unknown(registry: &Registry, name: &PluginName, key: &str) -> String {
    let status = registry.status();
    let of_name = status.iter().find(|status| status.name == *name);
    if let Some(error) = of_name.and_then(|status| status.last_error.as_ref()) {
        return format!("plugin \"{name}\": {error}");
    }
    let embedded: Vec<_> = registry.embedded().map(PluginName::as_str).collect();
    let loaded = status.iter().map(|status| status.name.as_str());
    let known = embedded.iter().copied().chain(loaded);
    let near = config::nearest_plugin(name.as_str(), known, key.ends_with("policy"));
    let meant = near.map(|near| format!("did you mean \"{near}\"? "));
    let meant = meant.unwrap_or_default();
    let embedded = match embedded.as_slice() {
        [] => "none is embedded: this binary was built without `cargo xtask build`".to_owned(),
        names => format!("embedded are {}", names.join(", ")),
    };
    format!(
        "\"{name}\" is no plugin: {meant}there is no {name}.wasm in the folder of plugins, and {embedded}"
    )
}

fn load_embedded(
    registry: &mut Registry,
    trial: &Trial,
    name: &PluginName,
) -> Result<(), LoadError> {
    if let Loaded::New(generation) = registry.load_embedded(name)? {
        trial.run(&generation)?;
        registry.publish(generation);
    }
    Ok(())
}

fn load_file(
    registry: &mut Registry,
    trial: &Trial,
    name: &PluginName,
    path: &Path,
) -> Result<(), String> {
    let bytes = read(path);
    let loaded =
        bytes.and_then(|bytes| registry.load(name, bytes, GenerationSource::File(path.to_owned())));
    let tried = loaded.and_then(|loaded| match loaded {
        Loaded::Unchanged => Ok(()),
        Loaded::New(generation) => {
            trial.run(&generation)?;
            registry.publish(generation);
            Ok(())
        }
    });
    tried.map_err(|error| {
        registry.refuse(name, &error);
        error.to_string()
    })
}

/// A file that nothing refers to is looked at, and not compiled.
fn note_file(registry: &mut Registry, name: &PluginName, path: &Path) -> Result<(), String> {
    match read(path).and_then(|bytes| load::look(&bytes)) {
        Ok(()) => {
            registry.note_unused(name, path.to_owned());
            Ok(())
        }
        Err(error) => {
            registry.refuse(name, &error);
            Err(error.to_string())
        }
    }
}

/// The plugin that a file is.
///
/// # Errors
/// Its stem is no plugin's name.
pub(super) fn name_of(path: &Path) -> Result<PluginName, String> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    PluginName::parse(&stem)
        .ok_or_else(|| format!("\"{stem}\" is no plugin's name: {}", PluginName::ALLOWED))
}

/// The whole of a file, or so much that it is refused as too large.
///
/// # Errors
/// [`LoadError::Read`]: it cannot be read, or is no regular file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let read = || {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let mut bytes = Vec::new();
        file.take(FILE_MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| LoadError::Read(error.to_string()))
}

/// Everything in a configuration that refers to plugins.
#[derive(Debug)]
pub(super) struct Trial {
    config: Arc<Config>,
    limits: AllLimits,
    /// What the instances know that the generation is to take over from; one of each worker.
    states: Vec<States>,
}

impl Trial {
    pub(super) fn new(config: &Arc<Config>) -> Self {
        Self {
            config: Arc::clone(config),
            limits: AllLimits::new(config),
            states: Vec::new(),
        }
    }

    /// What refers to plugins.
    pub(super) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Has the generation take over this, too.
    pub(super) fn with_states(self, states: Vec<States>) -> Self {
        Self { states, ..self }
    }

    /// Tries a generation as all that refers to its name will use it. Blocks for a call or two each.
    ///
    /// # Errors
    /// The first use that it does not serve.
    pub(super) fn run(&self, generation: &Arc<Generation>) -> Result<(), LoadError> {
        let name = &generation.name;
        let limits = self.limits.of(name);
        for upstream in self
            .config
            .upstreams
            .iter()
            .filter(|upstream| upstream.policy == *name)
        {
            let mut candidates: Vec<_> = upstream.backends.iter().map(Candidate::from).collect();
            if candidates.is_empty() {
                // They are found later, and a policy is never told of none.
                let stand_in = BackendConfig::at("127.0.0.1:1".to_owned());
                candidates.push(Candidate::from(&stand_in));
            }
            let all = self.states.iter().flat_map(|states| &states.policies);
            let of_upstream = all.filter(|(name, _)| *name == upstream.name);
            let saved: Vec<_> = of_upstream.map(|(_, saved)| saved.clone()).collect();
            generation.trial_policy(&upstream.policy_config, &candidates, &saved, limits)?;
        }
        let targets = || self.config.routes.iter().map(|route| &route.target);
        if targets().any(|target| matches!(target, Target::Handler(handler) if handler == name)) {
            let saved: Vec<_> = self
                .states
                .iter()
                .flat_map(|states| states.handlers.clone())
                .collect();
            generation.trial_handler(&self.config.plugin_settings(name), &saved, limits)?;
        }
        let mut filters = self.config.routes.iter().flat_map(|route| &route.filters);
        if filters.any(|filter| filter == name) {
            let saved: Vec<_> = self
                .states
                .iter()
                .flat_map(|states| states.filters.clone())
                .collect();
            generation.trial_filter(&self.config.plugin_settings(name), &saved, limits)?;
        }
        if targets().any(|target| matches!(target, Target::Http(http) if http == name)) {
            generation.trial_http()?;
        }
        Ok(())
    }

    /// Whether anything refers to this plugin.
    pub(super) fn names(&self, name: &PluginName) -> bool {
        self.named().contains_key(name)
    }

    /// Each plugin that is referred to, with the first key that does.
    pub(super) fn named(&self) -> BTreeMap<PluginName, String> {
        let mut named = BTreeMap::new();
        for (i, upstream) in self.config.upstreams.iter().enumerate() {
            named
                .entry(upstream.policy.clone())
                .or_insert_with(|| format!("upstream[{i}].policy"));
        }
        for (i, route) in self.config.routes.iter().enumerate() {
            for (j, name) in route.filters.iter().enumerate() {
                named
                    .entry(name.clone())
                    .or_insert_with(|| format!("route[{i}].filters[{j}]"));
            }
            let (name, key) = match &route.target {
                Target::Handler(name) => (name, "handler"),
                Target::Http(name) => (name, "http"),
                Target::Upstream(_) => continue,
            };
            named
                .entry(name.clone())
                .or_insert_with(|| format!("route[{i}].{key}"));
        }
        named
    }
}
