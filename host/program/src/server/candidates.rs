//! The plugins that a configuration names: compiled and tried before any of them serves.
//!
//! All of it happens on threads of the background, and meanwhile everything else goes on. So what was found
//! out may be outdated when it is done: [`Candidates::are_current`] says so, and only what has changed is tried
//! again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_config::Problem;
use pointsman_contract::names::PluginName;
use pointsman_plugins::generation::{Generation, GenerationSource};
use pointsman_plugins::load::LoadError;
use pointsman_plugins::registry::Registry;

use super::control::ControlPlane;
use super::plugin_updates::{compile, offer, try_all_aside, try_aside};
use super::trial::{Trial, refusal};

/// What was found out of each plugin that a configuration names.
#[derive(Debug, Default)]
pub(super) struct Candidates(BTreeMap<PluginName, Tried>);

#[derive(Debug)]
struct Tried {
    /// What served when it was found out.
    serving: Option<Arc<Generation>>,
    found: Result<Fit, Vec<Problem>>,
}

/// What serves what refers to the plugin.
#[derive(Debug)]
enum Fit {
    /// What serves already.
    Serving,
    /// This, once it is published.
    New(Arc<Generation>),
}

impl Candidates {
    /// Compiles and tries what has not been, or has changed since. What is embedded under the name of a file that
    /// is refused stands in; `refused` is told of the file.
    pub(super) async fn update(
        &mut self,
        control: &RefCell<ControlPlane>,
        trial: &Arc<Trial>,
        mut refused: impl FnMut(&PluginName, &LoadError),
    ) {
        for (name, key) in trial.named() {
            let before = self.0.get(&name);
            if before.is_some_and(|tried| tried.is_current(&name, &control.borrow().registry)) {
                continue;
            }
            let tried = Tried::find_out(control, trial, &name, key, &mut refused).await;
            self.0.insert(name, tried);
        }
    }

    /// Whether what was found out still holds.
    pub(super) fn are_current(&self, registry: &Registry) -> bool {
        let mut all = self.0.iter();
        all.all(|(name, tried)| tried.is_current(name, registry))
    }

    /// What has to be published for the configuration.
    ///
    /// # Errors
    /// What no plugin serves.
    pub(super) fn fit(self) -> Result<Vec<Arc<Generation>>, Vec<Problem>> {
        let (mut new, mut problems) = (Vec::new(), Vec::new());
        for tried in self.0.into_values() {
            match tried.found {
                Ok(Fit::New(generation)) => new.push(generation),
                Ok(Fit::Serving) => {}
                Err(wrong) => problems.extend(wrong),
            }
        }
        match problems.is_empty() {
            true => Ok(new),
            false => Err(problems),
        }
    }
}

impl Tried {
    async fn find_out(
        control: &RefCell<ControlPlane>,
        trial: &Arc<Trial>,
        name: &PluginName,
        key: String,
        refused: &mut impl FnMut(&PluginName, &LoadError),
    ) -> Self {
        let serving = serving(&control.borrow().registry, name);
        let file = control.borrow().registry.unused(name).map(Path::to_owned);
        let mut file_error = None;
        if let Some(file) = file {
            match from_file(control, trial, name, file).await {
                Ok(Some(new)) => {
                    let found = Ok(Fit::New(new));
                    return Self { serving, found };
                }
                Ok(None) => {}
                Err(error) => {
                    refused(name, &error);
                    file_error = Some(error);
                }
            }
        }
        let found = match &serving {
            Some(serving) => match try_all_aside(trial, serving, &key).await {
                wrong if wrong.is_empty() => Ok(Fit::Serving),
                wrong => Err(wrong),
            },
            None => embedded(control, trial, name, &key).await,
        };
        let found = found.map_err(|wrong| {
            let wrong = file_error.map_or(wrong, |error| vec![(key, error)]);
            let registry = &control.borrow().registry;
            let problem = |(key, error)| refusal(registry, name, key, error);
            wrong.into_iter().map(problem).collect()
        });
        Self { serving, found }
    }

    fn is_current(&self, name: &PluginName, registry: &Registry) -> bool {
        let is_same = match (&self.serving, registry.catalog().get(name)) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        let has_its_file = match &self.found {
            Ok(Fit::New(new)) => match &new.source {
                GenerationSource::File(path) => registry.unused(name) == Some(path),
                GenerationSource::Embedded => true,
            },
            _ => true,
        };
        is_same && has_its_file
    }
}

fn serving(registry: &Registry, name: &PluginName) -> Option<Arc<Generation>> {
    registry.catalog().get(name).cloned()
}

/// None: the same content serves already.
async fn from_file(
    control: &RefCell<ControlPlane>,
    trial: &Arc<Trial>,
    name: &PluginName,
    file: PathBuf,
) -> Result<Option<Arc<Generation>>, LoadError> {
    let Some(job) = offer(control, name, file).await? else {
        return Ok(None);
    };
    let new = compile(job).await?;
    try_aside(trial, &new).await?;
    Ok(Some(new))
}

/// With what is wrong, and the keys.
async fn embedded(
    control: &RefCell<ControlPlane>,
    trial: &Arc<Trial>,
    name: &PluginName,
    key: &str,
) -> Result<Fit, Vec<(String, LoadError)>> {
    let at_key = |error| vec![(key.to_owned(), error)];
    let offered = control.borrow_mut().registry.offer_embedded(name);
    let Some(job) = offered.map_err(at_key)? else {
        // It serves since a moment ago.
        return Ok(Fit::Serving);
    };
    let new = compile(job).await.map_err(at_key)?;
    match try_all_aside(trial, &new, key).await {
        wrong if wrong.is_empty() => Ok(Fit::New(new)),
        wrong => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use pointsman_config::Config;
    use pointsman_plugins::limits::AllLimits;
    use pointsman_plugins::registry::Loaded;

    use super::super::EMBEDDED;
    use super::*;

    /// Nothing serves yet; the first of the embedded plugins is what the tests speak of.
    fn registry() -> (Registry, PluginName, &'static [u8]) {
        let (name, bytes) = EMBEDDED.first().expect("run `cargo xtask build`");
        let text =
            "[[listener]]\nbind = \"127.0.0.1:0\"\n[[route]]\npath = \"/\"\nhandler = \"echo\"\n";
        let config = Config::from_toml(text, Path::new("")).unwrap();
        let (registry, _) = Registry::new(AllLimits::new(&config), EMBEDDED).unwrap();
        (registry, PluginName::parse(name).unwrap(), bytes)
    }

    fn embedded(registry: &mut Registry, name: &PluginName) -> Arc<Generation> {
        match registry.load_embedded(name).unwrap() {
            Loaded::New(generation) => generation,
            Loaded::Unchanged => panic!("it serves already"),
        }
    }

    fn candidates(
        name: &PluginName,
        serving: Option<&Arc<Generation>>,
        found: Result<Fit, Vec<Problem>>,
    ) -> Candidates {
        let serving = serving.cloned();
        Candidates([(name.clone(), Tried { serving, found })].into())
    }

    #[test]
    fn what_was_tried_holds_until_something_else_serves() {
        let (mut registry, name, _) = registry();
        let new = embedded(&mut registry, &name);
        let before = candidates(&name, None, Ok(Fit::New(Arc::clone(&new))));
        assert!(before.are_current(&registry));
        registry.publish(Arc::clone(&new));
        assert!(!before.are_current(&registry));
        assert!(candidates(&name, Some(&new), Ok(Fit::Serving)).are_current(&registry));
    }

    #[test]
    fn a_file_that_has_gone_since_is_not_published() {
        let (mut registry, name, bytes) = registry();
        let file = PathBuf::from("a.wasm");
        registry.note_unused(&name, file.clone());
        let loaded = registry.load(&name, bytes.to_vec(), GenerationSource::File(file));
        let Loaded::New(new) = loaded.unwrap() else {
            panic!("nothing serves yet")
        };
        let candidates = candidates(&name, None, Ok(Fit::New(new)));
        assert!(candidates.are_current(&registry));
        registry.file_removed(&name);
        assert!(!candidates.are_current(&registry));
    }

    #[test]
    fn one_that_does_not_fit_keeps_the_others_from_being_published() {
        let (mut registry, name, _) = registry();
        let new = embedded(&mut registry, &name);
        let mut all = candidates(&name, None, Ok(Fit::New(new)));
        let problem = Problem {
            key: "upstream[0].policy".to_owned(),
            line: None,
            message: "it is not".to_owned(),
        };
        let other = PluginName::parse("zzz").unwrap();
        all.0
            .extend(candidates(&other, None, Err(vec![problem.clone()])).0);
        assert_eq!(all.fit().unwrap_err(), [problem]);
    }
}
