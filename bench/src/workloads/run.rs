//! One kind of work done to one subject: started fresh, driven, measured, ended.
//!
//! In go a subject, a [`Kind`] and the [`Settings`]; out come [`Figures`]. Which processor is whose is
//! decided here.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::calls::{self, Tracer};
use super::case::{ECHO_64, Kind, PACED};
use super::figure::{Figure, Figures, median};
use super::metrics;
use super::reload::Reloads;
use crate::backend::Backend;
use crate::load::{self, Outcome, Plan, Shape};
use crate::subjects::Subject;
use crate::subjects::configs::Setup;
use crate::subjects::process::{Running, free_address};
use crate::usage;

/// How runs are made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The workspace's folder.
    pub root: PathBuf,
    /// The measured span.
    pub duration: Duration,
    /// Load before it.
    pub warm_up: Duration,
    /// Workers of each peer. With more than one, nothing is pinned.
    pub workers: usize,
    /// Processors of the machine. With one, nothing is pinned either.
    pub cpus: usize,
}

/// Backends of a relay, so that there is a choice to make.
const BACKENDS: usize = 3;
/// Where a pinned peer runs.
const PEER_CPU: usize = 0;
/// Where the load and the backends run meanwhile.
const LOAD_CPU: usize = 1;
/// Path of every upgrade but those of streams.
const ECHO_PATH: &str = "/websocket";
/// Sessions have come to rest by then.
const IDLE_SPAN: Duration = Duration::from_secs(1);
/// Sessions whose memory is taken off, for with the first of them a peer reads in most of its code.
const FEW_SESSIONS: usize = 100;
/// The plugin that is replaced.
const RELOADED: &str = "least_connections";
const MEGABYTE: f64 = 1_048_576.0;

/// Starts `subject`, does `kind` to it and ends it.
///
/// # Errors
/// The subject does not run, breaks a connection, or answers wrong.
pub fn run(subject: Subject, kind: Kind, settings: &Settings) -> Result<Figures> {
    let is_pinned = settings.workers == 1 && settings.cpus > LOAD_CPU;
    keep_to(if is_pinned {
        LOAD_CPU..LOAD_CPU + 1
    } else {
        0..settings.cpus
    })?;
    let backend = Backend::start(BACKENDS, is_pinned.then_some(LOAD_CPU))?;
    let watched = tempfile::tempdir().context("no folder for plugins")?;
    let setup = Setup {
        listen: free_address()?,
        admin: free_address()?,
        backends: backend.addresses().to_vec(),
        workers: settings.workers,
        cpu: is_pinned.then_some(PEER_CPU),
        plugins: matches!(kind, Kind::Reload).then(|| watched.path().to_owned()),
        has_access_log: matches!(kind, Kind::Logged { .. }),
    };
    let running = subject.start(&settings.root, &setup, ECHO_PATH)?;
    let bench = Bench {
        subject,
        settings,
        setup: &setup,
        backend: &backend,
        pid: running.pid(),
    };
    let figures = bench.measure(kind);
    end(running, figures)
}

/// That a peer died says more than the connection that broke by it.
fn end(running: Running, figures: Result<Figures>) -> Result<Figures> {
    match (running.end(), figures) {
        (Ok(()), figures) => figures,
        (Err(ended), Ok(_)) => Err(ended),
        (Err(ended), Err(broken)) => Err(anyhow!("{ended:#} ({broken:#})")),
    }
}

struct Bench<'a> {
    subject: Subject,
    settings: &'a Settings,
    setup: &'a Setup,
    backend: &'a Backend,
    pid: u32,
}

impl Bench<'_> {
    fn measure(&self, kind: Kind) -> Result<Figures> {
        match kind {
            Kind::Load { connections, shape } | Kind::Logged { connections, shape } => {
                self.load(connections, shape)
            }
            Kind::Storm { sessions } => self.storm(sessions),
            Kind::Memory { sessions } => self.memory(sessions),
            Kind::Calls => self.calls(),
            Kind::Placement { sessions } => self.placement(sessions),
            Kind::Reload => self.reload(),
        }
    }

    fn load(&self, connections: usize, shape: Shape) -> Result<Figures> {
        let plan = self.plan(connections, shape);
        let mut used = None;
        let outcome = load::run(
            &plan,
            || usage::cpu(self.pid),
            |before| used = Some((before, usage::cpu(self.pid))),
        )?;
        let (before, after) = used.context("the load did not end")?;
        let used = after?.since(before?);
        let cpu = used.user + used.system;
        Ok(load_figures(shape, &outcome, cpu, used.user))
    }

    fn storm(&self, sessions: usize) -> Result<Figures> {
        let mut used = None;
        let storm = load::storm(
            &self.plan(sessions, Shape::Storm),
            || usage::cpu(self.pid),
            || self.backend.cut(),
            |before| used = Some((before, usage::cpu(self.pid))),
        )?;
        let (before, after) = used.context("the storm did not end")?;
        let used = after?.since(before?);
        let cpu_us = (used.user + used.system).as_secs_f64() * 1e6;
        Ok(Figures::from([
            (Figure::SecondsUntilBack, storm.duration.as_secs_f64()),
            (Figure::CpuUsPerSession, cpu_us / count_of(sessions)),
            (Figure::Refused, count(storm.refused)),
        ]))
    }

    fn memory(&self, sessions: usize) -> Result<Figures> {
        let with_few = self.while_idle(FEW_SESSIONS, || usage::pss_bytes(self.pid))?;
        let with_all = self.while_idle(sessions, || usage::pss_bytes(self.pid))?;
        let grown = count(with_all) - count(with_few);
        Ok(Figures::from([(
            Figure::BytesPerSession,
            grown / count_of(sessions - FEW_SESSIONS),
        )]))
    }

    fn placement(&self, sessions: usize) -> Result<Figures> {
        if !self.subject.is_pointsman() {
            // Peers do not say which of their threads has a session.
            return Ok(Figures::new());
        }
        let page = self.while_idle(sessions, || metrics::fetch(self.setup.admin))?;
        let workers = metrics::values(&page, "pointsman_worker_sessions", "worker=");
        let worst = workers.iter().copied().fold(0.0, f64::max);
        let mean = workers.iter().sum::<f64>() / count_of(workers.len());
        Ok(Figures::from([(Figure::WorstWorker, worst / mean)]))
    }

    /// What `look` sees once so many sessions have come to rest.
    fn while_idle<T>(&self, sessions: usize, look: impl FnOnce() -> Result<T>) -> Result<T> {
        let plan = Plan {
            duration: IDLE_SPAN,
            ..self.plan(sessions, Shape::Idle)
        };
        let mut seen = None;
        load::run(&plan, || (), |()| seen = Some(look()))?;
        seen.context("the load did not end")?
    }

    fn calls(&self) -> Result<Figures> {
        let Kind::Load { connections, shape } = ECHO_64 else {
            bail!("an echo is a load");
        };
        let mut counted = None;
        let outcome = load::run(
            &self.plan(connections, shape),
            || Tracer::attach(self.pid),
            |tracer| counted = Some(tracer.and_then(Tracer::detach)),
        )?;
        let counts = counted.context("the load did not end")??;
        Ok(calls::figures(&counts, outcome.messages))
    }

    fn reload(&self) -> Result<Figures> {
        let Kind::Load { connections, shape } = PACED else {
            bail!("paced messages are a load");
        };
        let folder = self
            .setup
            .plugins
            .as_ref()
            .context("no folder is watched")?;
        let shipped = format!("target/plugins/{RELOADED}.wasm");
        let component = fs::read(self.settings.root.join(&shipped))
            .with_context(|| format!("no {shipped}: `cargo xtask plugins` makes it"))?;
        let reloads = Reloads {
            plugin: RELOADED,
            component: &component,
            folder,
            admin: self.setup.admin,
        };
        let plan = self.plan(connections, shape);
        let quiet = load::run(&plan, || (), |()| ())?;
        let is_over = AtomicBool::new(false);
        let (outcome, times) = thread::scope(|scope| {
            let reloading = scope.spawn(|| reloads.run_until(&is_over));
            let outcome = load::run(&plan, || (), |()| ());
            // Relaxed: nothing else is handed over with the flag.
            is_over.store(true, Ordering::Relaxed);
            (outcome, reloading.join())
        });
        let outcome = outcome?;
        let times =
            times.map_err(|_panic| anyhow!("the thread that replaces plugins panicked"))??;
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        Ok(Figures::from([
            (
                Figure::ReloadMs,
                median(&times).context("no plugin was replaced")?,
            ),
            (Figure::P99Us, quantile_us(&quiet, 0.99)),
            (Figure::P999Us, quantile_us(&quiet, 0.999)),
            (Figure::ReloadingP99Us, quantile_us(&outcome, 0.99)),
            (Figure::ReloadingP999Us, quantile_us(&outcome, 0.999)),
        ]))
    }

    fn plan(&self, connections: usize, shape: Shape) -> Plan {
        let path = match shape {
            Shape::Upload { .. } => "/sink".to_owned(),
            Shape::Download { bytes } => format!("/source/{bytes}"),
            Shape::Fanout { .. } => "/chat?room={room}".to_owned(),
            _ => ECHO_PATH.to_owned(),
        };
        Plan {
            target: self.setup.listen,
            path,
            connections,
            shape,
            warm_up: self.settings.warm_up,
            duration: self.settings.duration,
        }
    }
}

/// `cpu` and `user` are what the peer used in the measured span.
fn load_figures(shape: Shape, outcome: &Outcome, cpu: Duration, user: Duration) -> Figures {
    let seconds = outcome.duration.as_secs_f64();
    let messages = count(outcome.messages);
    let megabytes = count(outcome.payload_bytes) / MEGABYTE;
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let mut figures = Figures::from([
        (Figure::PerSecond, messages / seconds),
        (Figure::P50Us, quantile_us(outcome, 0.5)),
        (Figure::P99Us, quantile_us(outcome, 0.99)),
        (Figure::P999Us, quantile_us(outcome, 0.999)),
    ]);
    match shape {
        Shape::Churn { .. } => {
            figures.insert(Figure::CpuUsPerSession, us(cpu) / messages);
        }
        Shape::Upload { .. } | Shape::Download { .. } => {
            figures.insert(Figure::CpuUsPerMegabyte, us(cpu) / megabytes);
            figures.insert(Figure::MegabytesPerSecond, megabytes / seconds);
        }
        Shape::Fanout { .. } => {
            figures.insert(Figure::CpuUsPerDelivery, us(cpu) / messages);
        }
        Shape::Echo { .. } | Shape::Paced { .. } | Shape::Idle | Shape::Storm => {
            figures.insert(Figure::CpuUsPerEcho, us(cpu) / messages);
            figures.insert(Figure::UserUsPerEcho, us(user) / messages);
        }
    }
    figures
}

fn quantile_us(outcome: &Outcome, quantile: f64) -> f64 {
    count(outcome.latency.value_at_quantile(quantile)) / 1e3
}

#[allow(
    clippy::cast_precision_loss,
    reason = "counts and bytes far below 2^52"
)]
fn count(n: u64) -> f64 {
    n as f64
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn count_of(n: usize) -> f64 {
    n as f64
}

/// The calling thread, and every thread and process that it starts from now on.
fn keep_to(cpus: Range<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set).context("cannot choose a processor")
}
