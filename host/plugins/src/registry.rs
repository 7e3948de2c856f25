//! Which generation of each plugin serves: loading, swapping, going back, and the list of it all.
//!
//! Owned by the control plane. In come the bytes of files, failures and the wish to publish; out go
//! immutable [`Catalog`]s. It knows neither the folder nor the configurations that refer to a plugin:
//! who owns those runs the trials between [`Job::compile`] and [`Registry::publish`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_contract::names::{PLUGIN_TARGET, PluginName};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::failure::Failure;
use super::generation::{Generation, GenerationSource};
use super::host::{PluginHost, Shares, StatsReader};
use super::isolated_compile;
use super::limits::AllLimits;
use super::load::{Compiler, LoadError, sha256};

/// So many failures within [`FAILURE_WINDOW`] take a young generation back.
const FAILURES_MAX: usize = 3;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);

/// A generation whose first failure comes later than this has proved itself.
const PROBATION: Duration = Duration::from_secs(60);

/// Failures that wait to be heard; more are counted in the metrics alone.
const FAILURE_QUEUE: usize = 256;

/// Plugins that are part of this binary: name and bytes.
pub type Embedded = &'static [(&'static str, &'static [u8])];

/// All plugins: what serves, what served before, what went wrong.
#[derive(Debug)]
pub struct Registry {
    compiler: Arc<Compiler>,
    embedded: BTreeMap<PluginName, &'static [u8]>,
    entries: BTreeMap<PluginName, RegistryEntry>,
    catalog: Arc<Catalog>,
    plugins: Arc<Shares>,
    failures: mpsc::Sender<Failure>,
}

/// The generations that serve, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    generations: BTreeMap<PluginName, Arc<Generation>>,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct RegistryEntry {
    current: Option<Serving>,
    previous: Option<Arc<Generation>>,
    last_number: u64,
    last_error: Option<LastError>,
    /// The content that failed in service.
    quarantined: Option<[u8; 32]>,
    /// That is what the file has now.
    is_file_quarantined: bool,
    /// The file in the folder that nothing has referred to since it was written: it is not compiled.
    unused: Option<PathBuf>,
}

/// What went wrong last with one name.
#[derive(Debug, Clone)]
struct LastError {
    kind: ErrorKind,
    message: String,
    /// When it began.
    since: SystemTime,
    /// When it was seen last.
    seen: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorKind {
    /// The newest file, or the newest generation, does not serve.
    Refused,
    /// There is no file any more of what serves.
    FileGone,
    /// A call into what serves has failed.
    Call,
}

#[derive(Debug)]
struct Serving {
    generation: Arc<Generation>,
    since: Instant,
    failures: VecDeque<Instant>,
}

/// What became of an offer of bytes.
#[derive(Debug)]
pub enum Loaded {
    /// The same content serves already: nothing to do.
    Unchanged,
    /// A candidate. It serves nobody until it is published.
    New(Arc<Generation>),
}

/// Bytes that wait to be compiled.
#[derive(Debug)]
pub struct Job {
    compiler: Arc<Compiler>,
    name: PluginName,
    number: u64,
    source: GenerationSource,
    bytes: JobBytes,
    compile_timeout: Duration,
}

/// The bytes of a file, and the hash that names them.
#[derive(Debug)]
pub struct Content {
    bytes: Vec<u8>,
    sha256: [u8; 32],
}

#[derive(Debug)]
enum JobBytes {
    Embedded(&'static [u8]),
    Read(Vec<u8>),
}

/// What is to be done when a plugin's file is gone.
#[derive(Debug)]
pub enum Removal {
    /// It was not served from a file.
    Nothing,
    /// The embedded plugin of this name returns: compile, try and publish it.
    Embedded(Job),
    /// There is no other: the last good generation goes on serving.
    KeepsLast(Arc<Generation>),
}

/// One plugin, for people.
#[derive(Debug, Clone)]
pub struct PluginState {
    /// Which.
    pub name: PluginName,
    /// What serves; none if nothing has been published.
    pub current: Option<Arc<Generation>>,
    /// Why the last attempt to load, or the last generation, failed. Cleared by a file that is published or
    /// gone.
    pub last_error: Option<String>,
    /// What is wrong with it now.
    pub problem: Option<PluginProblem>,
    /// The present content of the file is not loaded again.
    pub is_quarantined: bool,
    /// Nothing refers to the file, so it is not loaded.
    pub is_unused: bool,
}

/// What is wrong with a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginProblem {
    /// What.
    pub message: String,
    /// When it began.
    pub since: SystemTime,
    /// It is only that its file is gone, which matters where something refers to it.
    pub is_file_gone: bool,
}

impl Registry {
    /// Prepares the compiler. Nothing is compiled yet. Failures of guests come out of the receiver and
    /// belong into [`Registry::report_failure`].
    ///
    /// # Errors
    /// [`LoadError::Engine`]: this machine cannot run plugins.
    pub fn new(
        limits: AllLimits,
        embedded: Embedded,
    ) -> Result<(Self, mpsc::Receiver<Failure>), LoadError> {
        let (failures, reported) = mpsc::channel(FAILURE_QUEUE);
        let parse =
            |&(name, bytes): &(&str, &'static [u8])| Some((PluginName::parse(name)?, bytes));
        let registry = Self {
            compiler: Arc::new(Compiler::new()?),
            embedded: embedded.iter().filter_map(parse).collect(),
            entries: BTreeMap::new(),
            catalog: Arc::default(),
            plugins: Arc::new(Shares::new(limits)),
            failures,
        };
        Ok((registry, reported))
    }

    /// A worker's leave to make instances.
    pub fn host(&self, worker: usize) -> PluginHost {
        PluginHost::new(worker, Arc::clone(&self.plugins), self.failures.clone())
    }

    /// Reads what the metrics page shows.
    pub fn stats(&self) -> StatsReader {
        StatsReader::new(Arc::clone(&self.plugins))
    }

    /// What serves at this moment.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog)
    }

    /// The configuration has changed. Instances that live keep what they have.
    pub fn set_limits(&self, limits: AllLimits) {
        self.plugins.set_limits(limits);
    }

    /// The names of the plugins that are part of this binary.
    pub fn embedded(&self) -> impl Iterator<Item = &PluginName> {
        self.embedded.keys()
    }

    /// Offers the bytes of a file. None: the same content serves already.
    ///
    /// # Errors
    /// [`LoadError::Quarantined`]; it is kept for the status.
    pub fn offer(
        &mut self,
        name: &PluginName,
        content: Content,
        source: GenerationSource,
    ) -> Result<Option<Job>, LoadError> {
        let Content {
            bytes,
            sha256: hash,
        } = content;
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.serves(&hash) {
            entry.unused = None;
            entry.forget_refusal();
            return Ok(None);
        }
        if entry.quarantined == Some(hash) {
            entry.note(ErrorKind::Refused, &LoadError::Quarantined);
            entry.is_file_quarantined = true;
            return Err(LoadError::Quarantined);
        }
        Ok(Some(self.job(name, source, JobBytes::Read(bytes))))
    }

    /// Offers the embedded plugin of a name. None: it serves already.
    ///
    /// # Errors
    /// [`LoadError::NotEmbedded`], or as [`Registry::offer`].
    pub fn offer_embedded(&mut self, name: &PluginName) -> Result<Option<Job>, LoadError> {
        let bytes = *self.embedded.get(name).ok_or(LoadError::NotEmbedded)?;
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.serves(&sha256(bytes)) {
            return Ok(None);
        }
        Ok(Some(self.job(
            name,
            GenerationSource::Embedded,
            JobBytes::Embedded(bytes),
        )))
    }

    /// [`Registry::offer`] and [`Job::compile`] in one, for callers that may block.
    ///
    /// # Errors
    /// As those two; kept for the status.
    pub fn load(
        &mut self,
        name: &PluginName,
        bytes: Vec<u8>,
        source: GenerationSource,
    ) -> Result<Loaded, LoadError> {
        let job = self.offer(name, Content::new(bytes), source)?;
        self.run(name, job)
    }

    /// As [`Registry::load`], for the embedded plugin of a name.
    ///
    /// # Errors
    /// As [`Registry::offer_embedded`] and [`Job::compile`].
    pub fn load_embedded(&mut self, name: &PluginName) -> Result<Loaded, LoadError> {
        let job = self.offer_embedded(name)?;
        self.run(name, job)
    }

    fn run(&mut self, name: &PluginName, job: Option<Job>) -> Result<Loaded, LoadError> {
        let Some(job) = job else {
            return Ok(Loaded::Unchanged);
        };
        let compiled = job.compile().inspect_err(|error| self.refuse(name, error));
        compiled.map(Loaded::New)
    }

    /// There is a file that nothing refers to. It is loaded when something does: see
    /// [`Registry::unused`].
    pub fn note_unused(&mut self, name: &PluginName, path: PathBuf) {
        let entry = self.entries.entry(name.clone()).or_default();
        entry.unused = Some(path);
        entry.last_error = None;
    }

    /// The file to load before this plugin is used, if nothing has referred to it so far.
    pub fn unused(&self, name: &PluginName) -> Option<&Path> {
        self.entries.get(name)?.unused.as_deref()
    }

    /// A candidate did not compile or failed its trial: what serves goes on serving, and the status
    /// says why. The log line is the caller's, who knows what referred to it.
    pub fn refuse(&mut self, name: &PluginName, error: &LoadError) {
        let entry = self.entries.entry(name.clone()).or_default();
        entry.note(ErrorKind::Refused, error);
        entry.is_file_quarantined = *error == LoadError::Quarantined;
        entry.unused = None;
    }

    /// Puts a candidate into service.
    pub fn publish(&mut self, candidate: Arc<Generation>) {
        self.publish_at(candidate, Instant::now())
    }

    fn publish_at(&mut self, candidate: Arc<Generation>, now: Instant) {
        let entry = self.entries.entry(candidate.name.clone()).or_default();
        // Two candidates may have been made beside each other.
        let candidate = if candidate.number > entry.last_number {
            candidate
        } else {
            Arc::new(candidate.renumbered(entry.last_number + 1))
        };
        entry.last_number = candidate.number;
        // One that is embedded stands in for a file that was refused, which it does not mend.
        if candidate.source != GenerationSource::Embedded {
            entry.last_error = None;
            entry.is_file_quarantined = false;
        }
        entry.unused = None;
        if let Some(before) = entry.current.take() {
            entry.previous = Some(before.generation);
        }
        self.serve(candidate, now)
    }

    fn serve(&mut self, generation: Arc<Generation>, since: Instant) {
        let mut catalog = Catalog::clone(&self.catalog);
        catalog
            .generations
            .insert(generation.name.clone(), Arc::clone(&generation));
        let entry = self.entries.entry(generation.name.clone()).or_default();
        entry.current = Some(Serving {
            generation,
            since,
            failures: VecDeque::new(),
        });
        self.catalog = Arc::new(catalog);
    }

    /// The file of a plugin is gone.
    pub fn file_removed(&mut self, name: &PluginName) -> Removal {
        let Some(entry) = self.entries.get_mut(name) else {
            return Removal::Nothing;
        };
        entry.quarantined = None;
        entry.is_file_quarantined = false;
        entry.unused = None;
        entry.forget_refusal();
        let Some(serving) = &entry.current else {
            self.entries.remove(name);
            return Removal::Nothing;
        };
        if serving.generation.source == GenerationSource::Embedded {
            return Removal::Nothing;
        }
        let generation = Arc::clone(&serving.generation);
        match self.offer_embedded(name) {
            Ok(Some(job)) => Removal::Embedded(job),
            // The file held what is embedded.
            Ok(None) => Removal::Nothing,
            Err(_) => {
                if let Some(entry) = self.entries.get_mut(name) {
                    entry.note(ErrorKind::FileGone, &"its file is gone");
                }
                Removal::KeepsLast(generation)
            }
        }
    }

    /// A guest has failed. Three times within a minute, and the first time within a minute of its
    /// publication, take a generation back: the code of the one before it serves, as the generation returned.
    pub fn report_failure(&mut self, failure: &Failure) -> Option<Arc<Generation>> {
        self.report_failure_at(failure, Instant::now())
    }

    fn report_failure_at(&mut self, failure: &Failure, now: Instant) -> Option<Arc<Generation>> {
        let entry = self.entries.get_mut(&failure.plugin)?;
        let serving = entry
            .current
            .as_mut()
            .filter(|serving| serving.generation.number == failure.generation)?;
        let is_beyond_hope = serving.is_beyond_hope(now);
        let failed = Arc::clone(&serving.generation);
        entry.note_at(ErrorKind::Call, &failure.error, now);
        if !is_beyond_hope {
            return None;
        }
        let previous = entry.previous.take()?;
        entry.note_at(ErrorKind::Refused, &failure.error, now);
        entry.quarantined = Some(failed.code.sha256);
        entry.is_file_quarantined = failed.source != GenerationSource::Embedded;
        entry.last_number += 1;
        let to = Arc::new(previous.renumbered(entry.last_number));
        self.serve(Arc::clone(&to), now);
        tracing::error!(
            target: PLUGIN_TARGET,
            plugin = failure.plugin.as_str(),
            generation = failed.number,
            now = to.number,
            error = %failure.error,
            "failed {FAILURES_MAX} times within a minute: the generation before it serves again, as a new one"
        );
        Some(to)
    }

    /// All plugins that have been loaded, or should have been, by name.
    pub fn status(&self) -> Vec<PluginState> {
        let status = |(name, entry): (&PluginName, &RegistryEntry)| PluginState {
            name: name.clone(),
            current: entry
                .current
                .as_ref()
                .map(|serving| Arc::clone(&serving.generation)),
            last_error: entry.last_error.as_ref().map(|last| last.message.clone()),
            problem: entry.problem(Instant::now()),
            is_quarantined: entry.is_file_quarantined,
            is_unused: entry.unused.is_some(),
        };
        let is_known = |(_, entry): &(&PluginName, &RegistryEntry)| {
            entry.current.is_some() || entry.last_error.is_some() || entry.unused.is_some()
        };
        self.entries.iter().filter(is_known).map(status).collect()
    }

    fn job(&self, name: &PluginName, source: GenerationSource, bytes: JobBytes) -> Job {
        let last_number = self.entries.get(name).map_or(0, |entry| entry.last_number);
        Job {
            compiler: Arc::clone(&self.compiler),
            name: name.clone(),
            number: last_number + 1,
            source,
            bytes,
            compile_timeout: self.plugins.compile_timeout(),
        }
    }
}

impl RegistryEntry {
    fn note(&mut self, kind: ErrorKind, error: &dyn fmt::Display) {
        self.note_at(kind, error, Instant::now());
    }

    /// The same again has begun when it began first.
    fn note_at(&mut self, kind: ErrorKind, error: &dyn fmt::Display, now: Instant) {
        let message = error.to_string();
        let is_same = |last: &&LastError| {
            last.kind == kind && last.message == message && last.is_current(now)
        };
        // A call that fails says nothing about the file that was refused.
        if kind == ErrorKind::Call
            && let Some(last) = &self.last_error
            && last.kind != ErrorKind::Call
        {
            return;
        }
        let since = self
            .last_error
            .as_ref()
            .filter(is_same)
            .map(|last| last.since);
        self.last_error = Some(LastError {
            kind,
            since: since.unwrap_or_else(SystemTime::now),
            message,
            seen: now,
        });
    }

    /// The file that was refused is another now.
    fn forget_refusal(&mut self) {
        if self
            .last_error
            .as_ref()
            .is_some_and(|last| last.kind != ErrorKind::Call)
        {
            self.last_error = None;
        }
    }

    fn problem(&self, now: Instant) -> Option<PluginProblem> {
        let last = self
            .last_error
            .as_ref()
            .filter(|last| last.is_current(now))?;
        Some(PluginProblem {
            message: last.message.clone(),
            since: last.since,
            is_file_gone: last.kind == ErrorKind::FileGone,
        })
    }

    fn serves(&self, hash: &[u8; 32]) -> bool {
        self.current
            .as_ref()
            .is_some_and(|serving| serving.generation.code.sha256 == *hash)
    }
}

impl LastError {
    /// Calls that failed are a problem as long as they were failures of the last minute.
    fn is_current(&self, now: Instant) -> bool {
        self.kind != ErrorKind::Call || now.saturating_duration_since(self.seen) < FAILURE_WINDOW
    }
}

impl Serving {
    /// Notes a failure.
    fn is_beyond_hope(&mut self, now: Instant) -> bool {
        while self
            .failures
            .front()
            .is_some_and(|&first| now - first > FAILURE_WINDOW)
        {
            self.failures.pop_front();
        }
        if self.failures.len() < FAILURES_MAX {
            self.failures.push_back(now);
        }
        let first = self.failures.front().copied().unwrap_or(now);
        self.failures.len() >= FAILURES_MAX && first - self.since < PROBATION
    }
}

impl Content {
    /// Hashes the bytes, which takes a tenth of a second for the largest file: not for the control thread.
    pub fn new(bytes: Vec<u8>) -> Self {
        let sha256 = sha256(&bytes);
        Self { bytes, sha256 }
    }
}

impl Job {
    /// Whose bytes these are.
    pub fn name(&self) -> &PluginName {
        &self.name
    }

    /// Compiles and checks. Blocks for 15 ms to seconds; a file, for as long as the operator allows.
    ///
    /// # Errors
    /// Hand it to [`Registry::refuse`].
    pub fn compile(self) -> Result<Arc<Generation>, LoadError> {
        let bytes = match &self.bytes {
            JobBytes::Embedded(bytes) => bytes,
            JobBytes::Read(bytes) => {
                isolated_compile::try_compile(bytes, self.compile_timeout)?;
                bytes.as_slice()
            }
        };
        let code = self.compiler.compile(bytes)?;
        Ok(Arc::new(Generation {
            name: self.name,
            number: self.number,
            source: self.source,
            code: Arc::new(code),
        }))
    }
}

impl Catalog {
    /// What serves under a name.
    pub fn get(&self, name: &PluginName) -> Option<&Arc<Generation>> {
        self.generations.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.generations.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Call;
    use crate::failure::CallError;
    use crate::guests;

    fn name() -> PluginName {
        PluginName::parse("guest").unwrap()
    }

    fn registry() -> Registry {
        let embedded: &'static [u8] = guests::policy("").leak();
        let embedded: Embedded = vec![("guest", embedded)].leak();
        Registry::new(guests::limits().into(), embedded).unwrap().0
    }

    fn file() -> GenerationSource {
        GenerationSource::File("plugins/guest.wasm".into())
    }

    /// Differs from the embedded one.
    fn version(n: u32) -> Vec<u8> {
        guests::policy(&format!("(drop (i32.const {n}))"))
    }

    #[track_caller]
    fn load_and_publish(registry: &mut Registry, bytes: Vec<u8>) -> u64 {
        let Loaded::New(generation) = registry.load(&name(), bytes, file()).unwrap() else {
            panic!("unchanged")
        };
        registry.publish(generation);
        serving(registry)
    }

    fn serving(registry: &Registry) -> u64 {
        registry.catalog().get(&name()).unwrap().number
    }

    fn failure(generation: u64) -> Failure {
        let error = CallError::Trap {
            call: Call::Choose,
            cause: "unreachable".to_owned(),
        };
        Failure {
            plugin: name(),
            generation,
            worker: 0,
            error,
        }
    }

    #[test]
    fn a_candidate_serves_nobody_until_it_is_published() {
        let mut registry = registry();
        let Loaded::New(first) = registry.load_embedded(&name()).unwrap() else {
            panic!("unchanged")
        };
        assert!(registry.catalog().get(&name()).is_none());
        registry.publish(first);
        assert_eq!(serving(&registry), 1);
        assert!(matches!(
            registry.load_embedded(&name()),
            Ok(Loaded::Unchanged)
        ));
        assert!(matches!(
            registry.load(&name(), guests::policy(""), file()),
            Ok(Loaded::Unchanged)
        ));
        assert_eq!(load_and_publish(&mut registry, version(2)), 2);
    }

    #[test]
    fn what_cannot_be_loaded_leaves_the_old_one_and_says_why() {
        let mut registry = registry();
        load_and_publish(&mut registry, version(1));
        assert_eq!(
            registry
                .load(&name(), b"half".to_vec(), file())
                .unwrap_err(),
            LoadError::NotWasm
        );
        assert_eq!(serving(&registry), 1);
        assert_eq!(
            registry.status()[0].last_error.as_deref(),
            Some("the file is not WebAssembly")
        );
        load_and_publish(&mut registry, version(2));
        assert_eq!(registry.status()[0].last_error, None);
    }

    #[test]
    fn the_embedded_plugin_returns_under_a_new_number() {
        let mut registry = registry();
        let Loaded::New(first) = registry.load_embedded(&name()).unwrap() else {
            panic!("unchanged")
        };
        registry.publish(first);
        assert!(matches!(registry.file_removed(&name()), Removal::Nothing));
        load_and_publish(&mut registry, version(1));
        let Removal::Embedded(job) = registry.file_removed(&name()) else {
            panic!("nothing")
        };
        registry.publish(job.compile().unwrap());
        assert_eq!(serving(&registry), 3);
        assert_eq!(
            registry.catalog().get(&name()).unwrap().source,
            GenerationSource::Embedded
        );
    }

    #[test]
    fn the_last_good_generation_stays_where_nothing_is_embedded() {
        let mut registry = registry();
        let name = PluginName::parse("other").unwrap();
        let Loaded::New(other) = registry.load(&name, version(1), file()).unwrap() else {
            panic!("unchanged")
        };
        registry.publish(other);
        let Removal::KeepsLast(kept) = registry.file_removed(&name) else {
            panic!("gone")
        };
        assert_eq!(kept.number, 1);
        let problem = registry.status().pop().and_then(|status| status.problem);
        assert!(problem.is_some_and(|problem| problem.is_file_gone));
        assert_eq!(
            registry.load_embedded(&name).unwrap_err(),
            LoadError::NotEmbedded
        );
    }

    #[test]
    fn three_failures_of_a_young_generation_bring_the_previous_one_back() {
        let mut registry = registry();
        load_and_publish(&mut registry, version(1));
        load_and_publish(&mut registry, version(2));
        let now = Instant::now();
        assert!(registry.report_failure_at(&failure(2), now).is_none());
        assert!(registry.report_failure_at(&failure(1), now).is_none());
        assert!(registry.report_failure_at(&failure(2), now).is_none());
        let reverted = registry.report_failure_at(&failure(2), now).unwrap();
        assert_eq!((reverted.number, serving(&registry)), (3, 3));
        assert_eq!(reverted.code.sha256, sha256(&version(1)));

        assert_eq!(
            registry.load(&name(), version(2), file()).unwrap_err(),
            LoadError::Quarantined
        );
        assert!(registry.status()[0].is_quarantined);
        assert_eq!(load_and_publish(&mut registry, version(3)), 4);
    }

    #[test]
    fn a_problem_lasts_until_it_is_over() {
        let mut registry = registry();
        let message = |registry: &Registry| {
            let status = registry.status().pop()?;
            status.problem.map(|problem| problem.message)
        };
        assert_eq!(message(&registry), None);
        registry
            .load(&name(), b"half".to_vec(), file())
            .unwrap_err();
        let not_wasm = Some(LoadError::NotWasm.to_string());
        assert_eq!(message(&registry), not_wasm);
        let _ = registry.file_removed(&name());
        assert!(registry.status().is_empty(), "nothing is left of it");

        // Refused, and then what serves is there again.
        load_and_publish(&mut registry, version(1));
        registry
            .load(&name(), b"half".to_vec(), file())
            .unwrap_err();
        let since = registry.status()[0].problem.clone().map(|p| p.since);
        registry
            .load(&name(), b"half".to_vec(), file())
            .unwrap_err();
        assert_eq!(registry.status()[0].problem.clone().map(|p| p.since), since);
        // A call that fails does not hide it.
        registry.report_failure_at(&failure(1), Instant::now());
        assert_eq!(message(&registry), not_wasm);
        let again = registry.load(&name(), version(1), file());
        assert!(matches!(again, Ok(Loaded::Unchanged)));
        assert_eq!(message(&registry), None);

        // A call that failed is one for a minute.
        let minute_ago = Instant::now().checked_sub(FAILURE_WINDOW).unwrap();
        registry.report_failure_at(&failure(1), minute_ago);
        assert_eq!(message(&registry), None);
        assert!(registry.status()[0].last_error.is_some());
        registry.report_failure_at(&failure(1), Instant::now());
        assert!(message(&registry).is_some());
    }

    #[test]
    fn a_generation_that_has_proved_itself_stays() {
        let mut registry = registry();
        load_and_publish(&mut registry, version(1));
        load_and_publish(&mut registry, version(2));
        let later = Instant::now() + PROBATION;
        for _ in 0..5 {
            assert!(registry.report_failure_at(&failure(2), later).is_none());
        }
    }

    #[test]
    fn failures_far_apart_do_not_add_up() {
        let mut registry = registry();
        load_and_publish(&mut registry, version(1));
        load_and_publish(&mut registry, version(2));
        let start = Instant::now();
        for minutes in 0..5 {
            let at = start + FAILURE_WINDOW * minutes * 2;
            assert!(registry.report_failure_at(&failure(2), at).is_none());
        }
    }

    #[test]
    fn the_first_generation_has_none_to_go_back_to() {
        let mut registry = registry();
        load_and_publish(&mut registry, version(1));
        for _ in 0..5 {
            assert!(
                registry
                    .report_failure_at(&failure(1), Instant::now())
                    .is_none()
            );
        }
        assert_eq!(serving(&registry), 1);
    }

    #[test]
    fn a_failing_guest_is_heard_and_counted() {
        let (mut registry, mut failures) = Registry::new(guests::limits().into(), &[]).unwrap();
        let Loaded::New(generation) = registry
            .load(&name(), guests::handler("unreachable"), file())
            .unwrap()
        else {
            panic!("unchanged")
        };
        let host = registry.host(3);
        let handler = generation
            .handler(&pointsman_config::PluginSettings::default(), &host)
            .unwrap();
        guests::fail_once(&handler);
        let failure = failures.try_recv().unwrap();
        assert_eq!(
            (failure.worker, failure.generation, failure.error.kind()),
            (3, 1, "trap")
        );
        let figures = registry.stats().read();
        let message = figures[0]
            .calls
            .iter()
            .find(|(call, _)| *call == Call::Message)
            .unwrap();
        assert_eq!((message.1.n_calls, message.1.failures), (1, [0, 0, 1, 0]));
        assert_eq!((figures[0].n_instances, figures[0].n_sessions), (0, 0));
    }
}
