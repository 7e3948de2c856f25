//! A soak: two thousand sessions that come, talk and go, while plugins and configuration are replaced,
//! backends are killed, and nonsense comes in. Ends with 0 if nothing was lost that should not have been,
//! and nothing grew.
//!
//! `soak [--minutes N] [--sessions N]`; by default 30 minutes and 2,000 sessions.

mod gauge;
mod talk;
mod trouble;

use std::env;
use std::io::{Write as _, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pointsman_tests::{BackendProcess, Balancer, eventually, guests};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use crate::gauge::Gauge;
use crate::talk::{Path, Talk};
use crate::trouble::Trouble;

const N_BACKENDS: usize = 4;
const REPORT: Duration = Duration::from_secs(30);
/// For all sessions to end, and for what they held to be given back.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked for.
struct Asked {
    duration: Duration,
    n_sessions: usize,
}

/// What all parts know.
struct Soak {
    balancer: Balancer,
    /// Where backends are, dead or alive.
    backends: Vec<SocketAddr>,
    program: String,
    talk: Talk,
    trouble: Trouble,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let asked = asked()?;
    let program = beside("echo-backend")?.display().to_string();
    let mut processes = Vec::new();
    for _ in 0..N_BACKENDS {
        processes.push(BackendProcess::start(&program).await?);
    }
    let backends: Vec<_> = processes.iter().map(BackendProcess::address).collect();
    let policy = guests::shipped("round_robin");
    let plugins = [("placer", &*policy)];
    let toml = trouble::configuration(&backends, 1);
    let balancer = Balancer::start_with_plugins(&toml, &plugins).await?;
    let soak = Arc::new(Soak {
        balancer,
        backends,
        program,
        talk: Talk::default(),
        trouble: Trouble::default(),
    });
    run(&soak, processes, &asked).await
}

async fn run(soak: &Arc<Soak>, processes: Vec<BackendProcess>, asked: &Asked) -> Result<()> {
    let mut gauge = Gauge::new(&soak.balancer).await?;
    let (stop, stopped) = watch::channel(false);
    let mut parts = JoinSet::new();
    for i in 0..asked.n_sessions {
        let path = Path::of(i);
        // They come over ten seconds.
        let delay = Duration::from_secs(10) * u32::try_from(i)? / u32::try_from(asked.n_sessions)?;
        parts.spawn(talk::keep_open(
            Arc::clone(soak),
            path,
            delay,
            stopped.clone(),
        ));
    }
    parts.spawn(trouble::kill(Arc::clone(soak), processes, stopped.clone()));
    parts.spawn(trouble::swap_plugins(Arc::clone(soak), stopped.clone()));
    parts.spawn(trouble::reload(Arc::clone(soak), stopped.clone()));
    parts.spawn(trouble::send_nonsense(Arc::clone(soak), stopped));

    let began = Instant::now();
    let mut report = interval(REPORT.min(asked.duration / 6));
    while began.elapsed() < asked.duration {
        tokio::select! {
            _ = report.tick() => {}
            // A part ends before its time when something is wrong.
            Some(ended) = parts.join_next() => {
                ended??;
                bail!("a part has ended before its time");
            }
        }
        let sample = gauge.take(&soak.balancer).await?;
        writeln!(
            stdout(),
            "{:>5} s  {sample}  {}  {}",
            began.elapsed().as_secs(),
            soak.talk,
            soak.trouble
        )?;
    }
    stop.send_replace(true);
    while let Some(ended) = parts.join_next().await {
        ended??;
    }
    let sessions = async || {
        let metrics = soak.balancer.metrics().await;
        metrics.is_ok_and(|m| m.sum("pointsman_sessions", &[]) == 0.0)
    };
    eventually("all sessions have ended", PATIENCE, sessions).await?;
    gauge.is_flat()?;
    gauge.is_back(&soak.balancer, PATIENCE).await?;
    let log = soak.balancer.log();
    let panics = log.iter().filter(|line| line.contains("panicked"));
    ensure!(panics.count() == 0, "something has panicked");
    soak.talk.check()?;
    soak.trouble.check()?;
    writeln!(stdout(), "done: {}  {}", soak.talk, soak.trouble)?;
    Ok(())
}

fn asked() -> Result<Asked> {
    let mut asked = Asked {
        duration: Duration::from_secs(30 * 60),
        n_sessions: 2000,
    };
    let args: Vec<String> = env::args().skip(1).collect();
    for pair in args.chunks(2) {
        match pair {
            [key, n] if key == "--minutes" => {
                asked.duration =
                    Duration::from_secs_f64(n.parse::<f64>().context("--minutes")? * 60.0);
            }
            [key, n] if key == "--sessions" => {
                asked.n_sessions = n.parse().context("--sessions")?
            }
            _ => bail!("usage: soak [--minutes N] [--sessions N]"),
        }
    }
    ensure!(
        asked.duration >= Duration::from_secs(60),
        "a minute is the least"
    );
    Ok(asked)
}

/// Another program of this package.
fn beside(name: &str) -> Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name(name))
}
