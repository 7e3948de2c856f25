//! The `pointsman` program: flags to a configuration, a running server, and an exit code.
//!
//! Exit codes: 0 done, 1 what was asked for failed, 2 the call was wrong. Text for people goes to
//! stderr, results go to stdout.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use pointsman::admin::steer::Proposal;
use pointsman::cli::{Check, Cli, Command, Demo, Run, Status};
use pointsman::config::{Config, Flags, Problem};
use pointsman::plugins::apart;
use pointsman::server::{Server, StartError};
use pointsman::systemd::{self, Inherited};
use pointsman::{admin, demo, log, server};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

/// Read when neither a file nor an address is named.
const DEFAULT_FILE: &str = "pointsman.toml";

fn main() -> ExitCode {
    // By this name it is the program that runs, even if another was installed since.
    apart::use_program("/proc/self/exe".into());
    let done = match Cli::parse().command {
        Command::Run(flags) => run(flags),
        Command::Check(flags) => check(&flags),
        Command::Status(flags) => status(&flags),
        Command::Demo(flags) => show(&flags),
        Command::CompilePlugin => apart::compile_stdin().map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Run) -> Result<()> {
    log::to_stderr(flags.log_level);
    let source = match flags.listen {
        Some(_) => Source::default(),
        None => Source::read(
            flags
                .config
                .clone()
                .unwrap_or_else(|| PathBuf::from(DEFAULT_FILE)),
        )?,
    };
    let config = match flags.listen {
        Some(listen) => from_flags(flags, listen),
        None => source.config(),
    };
    let config = config.map_err(|problems| source.refused(problems))?;
    runtime()?.block_on(serve(config, source))
}

async fn serve(config: Config, source: Source) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let inherited = Inherited::from_env();
    let started = Server::start(
        config,
        source.file.clone(),
        Box::new(io::stdout()),
        inherited,
    );
    let mut server = started.map_err(|error| match error {
        StartError::Plugins(problems) | StartError::Config(problems) => source.refused(problems),
        error => error.into(),
    })?;
    systemd::ready();
    let mut is_draining = false;
    loop {
        let signal = tokio::select! {
            () = server.ended() => return Ok(()),
            _ = hang_up.recv() => {
                server.reload();
                continue;
            }
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if is_draining {
            tracing::warn!(signal, "second signal: ending at once");
            server.stop_now();
        } else {
            tracing::info!(signal, "draining");
            systemd::stopping();
            server.drain();
        }
        is_draining = true;
    }
}

fn check(flags: &Check) -> Result<()> {
    log::to_stderr(LevelFilter::ERROR);
    let source = Source::read(flags.config.clone())?;
    let problems = match source.config() {
        Ok(config) => match server::check(&config) {
            Ok(()) => Vec::new(),
            Err(StartError::Plugins(problems) | StartError::Config(problems)) => problems,
            Err(error) => return Err(error.into()),
        },
        Err(problems) => problems,
    };
    let problems = source.located(problems);
    let name = flags.config.display();
    if flags.json {
        let problems: Vec<_> = problems.iter().map(Problem::to_json).collect();
        writeln!(
            io::stdout(),
            "{}",
            serde_json::json!({ "file": name.to_string(), "problems": problems })
        )?;
    } else {
        for problem in &problems {
            writeln!(io::stdout(), "{name}: {problem}")?;
        }
    }
    match problems.len() {
        0 if flags.against_running => compare(flags, source),
        0 => {
            eprintln!("{name}: no problems");
            Ok(())
        }
        1 => bail!("{name}: 1 problem"),
        n => bail!("{name}: {n} problems"),
    }
}

/// Prints what a configuration would change where one runs.
fn compare(flags: &Check, source: Source) -> Result<()> {
    let dir = flags.config.parent().unwrap_or(Path::new(""));
    let proposal = Proposal {
        text: source.text,
        dir: std::path::absolute(dir.join("."))?,
    };
    let token = flags.token.as_deref();
    let asked = admin::status::fetch_plan(flags.admin, token, &proposal);
    let plan = runtime()?.block_on(asked)?;
    match flags.json {
        true => writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&plan)?)?,
        false => write!(io::stdout(), "{plan}")?,
    }
    Ok(())
}

fn status(flags: &Status) -> Result<()> {
    let fetched = runtime()?.block_on(admin::status::fetch(flags.admin, flags.token.as_deref()));
    let status = fetched?;
    match flags.json {
        true => writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&status)?)?,
        false => write!(io::stdout(), "{status}")?,
    }
    Ok(())
}

fn show(flags: &Demo) -> Result<()> {
    log::to_stderr(LevelFilter::ERROR);
    let local = tokio::task::LocalSet::new();
    Ok(local.block_on(&runtime()?, demo::run(flags.once))?)
}

fn from_flags(flags: Run, listen: SocketAddr) -> Result<Config, Vec<Problem>> {
    let Run {
        backend: backends,
        policy,
        plugins,
        admin,
        ..
    } = flags;
    Config::from_flags(Flags {
        listen,
        backends,
        policy,
        plugins,
        admin,
    })
}

/// Where a configuration comes from; nothing is known of flags.
#[derive(Default)]
struct Source {
    file: Option<PathBuf>,
    text: String,
}

impl Source {
    fn read(file: PathBuf) -> Result<Self> {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            file: Some(file),
            text,
        })
    }

    fn config(&self) -> Result<Config, Vec<Problem>> {
        let dir = self
            .file
            .as_deref()
            .and_then(Path::parent)
            .unwrap_or(Path::new(""));
        Config::from_toml(&self.text, dir)
    }

    /// In the order of their lines, as far as they have one.
    fn located(&self, problems: Vec<Problem>) -> Vec<Problem> {
        let located = problems
            .into_iter()
            .map(|problem| problem.located_in(&self.text));
        let mut located: Vec<_> = located.collect();
        located.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        located
    }

    /// All problems, a line each.
    fn refused(&self, problems: Vec<Problem>) -> anyhow::Error {
        let place = self
            .file
            .as_ref()
            .map(|file| format!("{}: ", file.display()))
            .unwrap_or_default();
        let problems = self.located(problems);
        let lines: Vec<_> = problems
            .iter()
            .map(|problem| format!("{place}{problem}"))
            .collect();
        anyhow::anyhow!("cannot start\n{}", lines.join("\n"))
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
