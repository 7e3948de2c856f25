//! Loads plugins for a configuration, and tries each with everything that refers to it.
//!
//! A plugin that passes has been configured as it will be configured in service; what it is refused
//! for comes back as a problem of the key that refers to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_config::{
    self as config, BackendConfig, Config, Draft, DraftKeys, Problem, Target, Upstream,
};
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
    /// What is wrong at keys that name plugins: nothing serves them.
    pub(super) problems: Vec<Problem>,
    /// Files of the folder that were refused, though what is embedded under their names may serve.
    pub(super) refused_files: Vec<Problem>,
    /// Messages that routes allow and plugins have no room for.
    pub(super) too_long: Vec<Problem>,
}

/// Loads the files that the configuration names, and for the names that have none what is embedded;
/// looks at the others. Blocks.
///
/// # Errors
/// [`StartError::Engine`]
pub(super) fn load_plugins(trial: &Trial, files: &[PathBuf]) -> Result<Outcome, StartError> {
    let started = Registry::new(trial.limits.clone(), EMBEDDED);
    let (mut registry, failures) =
        started.map_err(|error| StartError::Engine(error.to_string()))?;
    let named = trial.named();
    let mut refused = Vec::new();
    for path in files {
        let loaded = name_of(path).and_then(|name| match named.contains_key(&name) {
            true => load_file(&mut registry, trial, &name, path),
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
    let problems = load_missing(&mut registry, trial);
    let catalog = registry.catalog();
    if !problems.is_empty() {
        // Files that something needs are among the problems already, at the key that needs them.
        refused.retain(|(name, _)| {
            let is_needed =
                |name: &PluginName| named.contains_key(name) && catalog.get(name).is_none();
            !name.as_ref().is_some_and(is_needed)
        });
    }
    let too_long = trial.too_long(|name| catalog.get(name).cloned());
    Ok(Outcome {
        registry,
        failures,
        problems,
        refused_files: refused.into_iter().map(|(_, problem)| problem).collect(),
        too_long,
    })
}

/// Loads what a configuration names and nothing serves yet, and tries again what serves. Blocks. Returns what
/// is wrong.
fn load_missing(registry: &mut Registry, trial: &Trial) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, key) in trial.named() {
        let wrong = match registry.catalog().get(&name) {
            Some(generation) => trial.run_all(generation),
            None => match load_embedded(registry, trial, &name) {
                Ok(wrong) => wrong,
                Err(LoadError::NotEmbedded) if !trial.knows_folder() => Vec::new(),
                Err(error) => vec![(key, error)],
            },
        };
        let refused = wrong
            .into_iter()
            .map(|(key, error)| refusal(registry, &name, key, error));
        problems.extend(refused.collect::<Vec<_>>());
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

/// What is wrong with its uses; it serves where nothing is.
fn load_embedded(
    registry: &mut Registry,
    trial: &Trial,
    name: &PluginName,
) -> Result<Vec<(String, LoadError)>, LoadError> {
    let Loaded::New(generation) = registry.load_embedded(name)? else {
        return Ok(Vec::new());
    };
    let wrong = trial.run_all(&generation);
    if wrong.is_empty() {
        registry.publish(generation);
    }
    Ok(wrong)
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
    /// Where its sections are.
    keys: DraftKeys,
    /// Each plugin that is referred to, with the first key that does.
    named: BTreeMap<PluginName, String>,
    /// Keys at which something is wrong: with what may have been meant otherwise, nothing is tried.
    faults: Vec<String>,
    /// What the instances know that the generation is to take over from; one of each worker.
    states: Vec<States>,
}

/// One way in which a plugin is used.
#[derive(Debug, Clone, Copy)]
enum PluginUse<'a> {
    Policy(&'a Upstream),
    Handler,
    Filter,
    Http,
}

impl Trial {
    pub(super) fn new(config: &Arc<Config>) -> Self {
        let keys = DraftKeys::of(config);
        Self {
            config: Arc::clone(config),
            limits: AllLimits::new(config),
            named: named(config, &keys),
            keys,
            faults: Vec::new(),
            states: Vec::new(),
        }
    }

    /// For a configuration that may have problems. None: there is no configuration.
    pub(super) fn of_draft(draft: &Draft) -> Option<Self> {
        let config = Arc::new(draft.config.clone()?);
        let keys = draft.keys.clone();
        let mut named = BTreeMap::new();
        let written = draft.plugins.iter().cloned();
        for (name, key) in written.chain(self::named(&config, &keys)) {
            named.entry(name).or_insert(key);
        }
        Some(Self {
            limits: AllLimits::new(&config),
            named,
            keys,
            faults: draft.problems.iter().map(|p| p.key.clone()).collect(),
            config,
            states: Vec::new(),
        })
    }

    /// What refers to plugins.
    pub(super) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Where its sections are.
    pub(super) fn keys(&self) -> &DraftKeys {
        &self.keys
    }

    /// Has the generation take over this, too.
    pub(super) fn with_states(self, states: Vec<States>) -> Self {
        Self { states, ..self }
    }

    /// Whether something is wrong at this key, or within its section.
    pub(super) fn is_faulty(&self, key: &str) -> bool {
        let is_within = |fault: &String| {
            let rest = fault.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.faults.iter().any(is_within)
    }

    /// Whether a name for which there is no plugin is wrong: not where the folder of plugins is.
    fn knows_folder(&self) -> bool {
        let is_whole = |fault: &String| fault == "plugins" || fault == "plugins.dir";
        !self.faults.iter().any(is_whole)
    }

    /// Tries a generation as all that refers to its name will use it. Blocks for a call or two each.
    ///
    /// # Errors
    /// The first use that it does not serve.
    pub(super) fn run(&self, generation: &Arc<Generation>) -> Result<(), LoadError> {
        let uses = self.uses(&generation.name);
        (uses.into_iter()).try_for_each(|(_, used)| self.try_use(generation, used))
    }

    /// The same, with all uses that it does not serve, and their keys.
    pub(super) fn run_all(&self, generation: &Arc<Generation>) -> Vec<(String, LoadError)> {
        let uses = self.uses(&generation.name).into_iter();
        uses.filter_map(|(key, used)| Some((key, self.try_use(generation, used).err()?)))
            .collect()
    }

    fn try_use(&self, generation: &Arc<Generation>, used: PluginUse<'_>) -> Result<(), LoadError> {
        let name = &generation.name;
        let limits = self.limits.of(name);
        let settings = || self.config.plugin_settings(name);
        let states = self.states.iter();
        match used {
            PluginUse::Policy(upstream) => {
                let mut candidates: Vec<_> =
                    upstream.backends.iter().map(Candidate::from).collect();
                if candidates.is_empty() {
                    // They are found later, and a policy is never told of none.
                    let stand_in = BackendConfig::at("127.0.0.1:1".to_owned());
                    candidates.push(Candidate::from(&stand_in));
                }
                let all = states.flat_map(|states| &states.policies);
                let of_upstream = all.filter(|(name, _)| *name == upstream.name);
                let saved: Vec<_> = of_upstream.map(|(_, saved)| saved.clone()).collect();
                generation.trial_policy(&upstream.policy_config, &candidates, &saved, limits)
            }
            PluginUse::Handler => {
                let saved: Vec<_> = states.flat_map(|states| states.handlers.clone()).collect();
                generation.trial_handler(&settings(), &saved, limits)
            }
            PluginUse::Filter => {
                let saved: Vec<_> = states.flat_map(|states| states.filters.clone()).collect();
                generation.trial_filter(&settings(), &saved, limits)
            }
            PluginUse::Http => generation.trial_http(),
        }
    }

    /// How a plugin is used, where nothing is wrong, and the key of each: of what is alike, the first.
    fn uses(&self, name: &PluginName) -> Vec<(String, PluginUse<'_>)> {
        let settings = format!("plugin.{name}");
        let is_unsettled = self.is_faulty(&settings) || self.is_faulty("plugins");
        if is_unsettled || self.faults.iter().any(|fault| fault == "plugin") {
            return Vec::new();
        }
        let mut uses = Vec::new();
        for (upstream, key) in self.config.upstreams.iter().zip(&self.keys.upstreams) {
            if upstream.policy == *name && !self.is_faulty(key) {
                uses.push((format!("{key}.policy"), PluginUse::Policy(upstream)));
            }
        }
        let (mut handler, mut filter, mut http) = (None, None, None);
        for (route, key) in self.config.routes.iter().zip(&self.keys.routes) {
            if self.is_faulty(key) {
                continue;
            }
            if let Some(i) = route.filters.iter().position(|filter| filter == name) {
                filter.get_or_insert_with(|| format!("{key}.filters[{i}]"));
            }
            match &route.target {
                Target::Handler(plugin) if plugin == name => {
                    handler.get_or_insert_with(|| format!("{key}.handler"));
                }
                Target::Http(plugin) if plugin == name => {
                    http.get_or_insert_with(|| format!("{key}.http"));
                }
                _ => {}
            }
        }
        let found = [
            (handler, PluginUse::Handler),
            (filter, PluginUse::Filter),
            (http, PluginUse::Http),
        ];
        uses.extend(
            found
                .into_iter()
                .filter_map(|(key, used)| Some((key?, used))),
        );
        uses
    }

    /// Routes that allow messages for which a plugin on their way has no room. `loaded`: what serves a name. Blocks
    /// as [`Trial::run`] does.
    pub(super) fn too_long(
        &self,
        loaded: impl Fn(&PluginName) -> Option<Arc<Generation>>,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (route, key) in self.config.routes.iter().zip(&self.keys.routes) {
            let Some(max) = route.max_message_bytes.filter(|_| !self.is_faulty(key)) else {
                continue;
            };
            let handler = match &route.target {
                Target::Handler(name) => Some((name, true)),
                _ => None,
            };
            let filters = route.filters.iter().map(|name| (name, false));
            for (name, is_handler) in handler.into_iter().chain(filters) {
                let limits = self.limits.of(name);
                let room = limits.message_max_bytes() as u64;
                let settings = self.config.plugin_settings(name);
                let sees = |plugin: Arc<Generation>| plugin.sees_messages(&settings, limits);
                if max > room && (is_handler || loaded(name).is_some_and(sees)) {
                    let memory = limits.memory_max_bytes;
                    problems.push(Problem {
                        key: format!("{key}.max_message_bytes"),
                        line: None,
                        message: format!(
                            "{max} is not allowed: plugin \"{name}\" is given no message of more than {room} bytes, a third of its memory_max_bytes ({memory})"
                        ),
                    });
                }
            }
        }
        problems
    }

    /// Whether anything refers to this plugin.
    pub(super) fn names(&self, name: &PluginName) -> bool {
        self.named.contains_key(name)
    }

    /// Each plugin that is referred to, with the first key that does.
    pub(super) fn named(&self) -> BTreeMap<PluginName, String> {
        self.named.clone()
    }
}

fn named(config: &Config, keys: &DraftKeys) -> BTreeMap<PluginName, String> {
    let mut named = BTreeMap::new();
    for (upstream, place) in config.upstreams.iter().zip(&keys.upstreams) {
        named
            .entry(upstream.policy.clone())
            .or_insert_with(|| format!("{place}.policy"));
    }
    for (route, place) in config.routes.iter().zip(&keys.routes) {
        for (j, name) in route.filters.iter().enumerate() {
            named
                .entry(name.clone())
                .or_insert_with(|| format!("{place}.filters[{j}]"));
        }
        let (name, key) = match &route.target {
            Target::Handler(name) => (name, "handler"),
            Target::Http(name) => (name, "http"),
            Target::Upstream(_) => continue,
        };
        named
            .entry(name.clone())
            .or_insert_with(|| format!("{place}.{key}"));
    }
    named
}
