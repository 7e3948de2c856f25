//! A shipped plugin in the balancer's own sandbox, and the CPU time of its calls.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_config as config;
use pointsman_config::{HttpLimitsConfig, PluginSettings};
use pointsman_contract::filter::{Direction, Filter};
use pointsman_contract::handler::{Facts, Handler};
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::outbox;
use pointsman_contract::policy::{Candidate, ChoiceRequest, Figures, Policy};
use pointsman_plugins::generation::{Generation, GenerationSource};
use pointsman_plugins::host::PluginHost;
use pointsman_plugins::limits::Limits;
use pointsman_plugins::registry::{Loaded, Registry};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::case::Input;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Stops a call that never returns. What is too slow is found by the time that it took.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The default of `memory_max_bytes`.
const MEMORY_MAX_BYTES: usize = 16 << 20;
const N_BACKENDS: usize = 16;

/// A plugin that can be called.
#[derive(Debug)]
pub struct Plugin {
    generation: Arc<Generation>,
    limits: Limits,
}

/// The files of the plugins that ship.
pub(super) const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/plugins");

/// The CPU time of the slowest call so far.
#[derive(Default)]
struct Slowest(Duration);

impl Plugin {
    /// Compiles the plugin of this name.
    ///
    /// # Panics
    /// `cargo xtask plugins` has not made it, or this machine cannot run plugins.
    pub fn load(name: &str) -> Self {
        let limits = Limits::new(&config::Plugins {
            dir: None,
            call_timeout: CALL_TIMEOUT,
            memory_max_bytes: MEMORY_MAX_BYTES,
            compile_timeout: Duration::from_secs(60),
            http: HttpLimitsConfig::default(),
        });
        let load = || {
            let file = Path::new(SHIPPED).join(format!("{name}.wasm"));
            let (mut registry, _failures) = Registry::new(limits.into(), &[])?;
            let name = PluginName::parse(name).ok_or("not a plugin's name")?;
            match registry.load(&name, fs::read(&file)?, GenerationSource::File(file))? {
                Loaded::New(generation) => Ok(generation),
                Loaded::Unchanged => Err("loaded before".into()),
            }
        };
        let loaded: Result<_> = load();
        let generation = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { generation, limits }
    }

    /// Gives the input to a new instance, as the balancer would. Returns the CPU time of the slowest call.
    pub(super) fn slowest_call(&self, config: &str, input: &Input) -> Result<Duration> {
        let config = serde_json::from_str(config)?;
        let kinds = self.generation.kinds();
        let mut slowest = Slowest::default();
        if kinds.policy {
            self.policy(&config, input, &mut slowest)?;
            return Ok(slowest.0);
        }
        let settings = PluginSettings {
            config,
            ..PluginSettings::default()
        };
        match kinds.filter {
            true => self.filter(&settings, input, &mut slowest)?,
            false => self.handler(&settings, input, &mut slowest)?,
        }
        Ok(slowest.0)
    }

    fn policy(&self, config: &Value, input: &Input, slowest: &mut Slowest) -> Result<()> {
        let mut policy = self.generation.policy(config, &self.host())?;
        let candidate = |n| Candidate {
            address: format!("10.0.0.{n}:80"),
            weight: 1 + n as u32 % 3,
            labels: Vec::new(),
        };
        let candidates: Vec<_> = (0..N_BACKENDS).map(candidate).collect();
        policy.backends_changed(&candidates)?;
        let request = ChoiceRequest {
            sequence: 1,
            random: 1,
            now_ms: 1_790_000_000_000,
            client_ip: input.facts.client_ip,
            host: &input.facts.host,
            path: &input.facts.path,
            headers: &headers(&input.facts)?,
            figures: &[Figures::default(); N_BACKENDS],
        };
        slowest.time(|| policy.choose(&request))?;
        slowest.time(|| policy.placed(&request, 0))?;
        Ok(())
    }

    fn filter(
        &self,
        settings: &PluginSettings,
        input: &Input,
        slowest: &mut Slowest,
    ) -> Result<()> {
        let filter = self.generation.filter(settings, &self.host())?;
        // Whether it refuses the client does not matter: what follows is a client that it accepts.
        let _ = slowest.time(|| filter.accept(&input.facts))?;
        let (outbox, _inbox) = outbox(filter.queue());
        let mut session = slowest.time(|| filter.open(&input.facts, outbox))?;
        let message = input
            .message
            .as_ref()
            .and_then(|message| message.as_received());
        let Some(message) = message else {
            return Ok(());
        };
        for from in [Direction::FromClient, Direction::FromBackend] {
            slowest.time(|| session.message(from, message))?;
        }
        Ok(())
    }

    fn handler(
        &self,
        settings: &PluginSettings,
        input: &Input,
        slowest: &mut Slowest,
    ) -> Result<()> {
        let handler = self.generation.handler(settings, &self.host())?;
        let _ = slowest.time(|| handler.accept(&input.facts))?;
        let (outbox, _inbox) = outbox(handler.queue());
        let mut session = slowest.time(|| handler.open(&input.facts, outbox))?;
        slowest.time(|| session.opened())?;
        let message = input
            .message
            .as_ref()
            .and_then(|message| message.as_received());
        if let Some(message) = message {
            slowest.time(|| session.message(message))?;
        }
        Ok(())
    }

    /// With a store and topics of its own.
    fn host(&self) -> PluginHost {
        PluginHost::for_trial(self.limits)
    }
}

impl Slowest {
    fn time<R>(&mut self, call: impl FnOnce() -> R) -> R {
        let before = thread_cpu_time();
        let result = call();
        self.0 = self.0.max(thread_cpu_time().saturating_sub(before));
        result
    }
}

/// Of this thread: what other threads and processes do meanwhile is not in it.
fn thread_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn headers(facts: &Facts) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &facts.headers {
        headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    Ok(headers)
}
