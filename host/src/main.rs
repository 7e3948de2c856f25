//! The `pointsman` program: flags to a configuration, a running server, and an exit code.
//!
//! Exit codes: 0 done, 1 what was asked for failed, 2 the call was wrong. Text for people goes to
//! stderr, results go to stdout.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use pointsman::cli::{Check, Cli, Command, Demo, Run, Status};
use pointsman::config::{Config, Flags, Problem};
use pointsman::server::{Server, StartError};
use pointsman::{admin, demo, server};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

/// Read when neither a file nor an address is named.
const DEFAULT_FILE: &str = "pointsman.toml";

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(flags) => run(flags),
        Command::Check(flags) => check(&flags),
        Command::Status(flags) => status(&flags),
        Command::Demo(flags) => show(&flags),
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
    log_to_stderr(flags.log_level);
    let (config, file) = match flags.listen {
        Some(listen) => (from_flags(flags, listen)?, None),
        None => {
            let file = flags.config.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
            (
                read(&file)?.map_err(|problems| refused(&file, &problems))?,
                Some(file),
            )
        }
    };
    runtime()?.block_on(serve(config, file))
}

async fn serve(config: Config, file: Option<PathBuf>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let named = file.clone().unwrap_or_default();
    let mut server =
        Server::start(config, file, Box::new(io::stdout())).map_err(|error| match error {
            StartError::Plugins(problems) => refused(&named, &problems),
            error => error.into(),
        })?;
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
            server.drain();
        }
        is_draining = true;
    }
}

fn check(flags: &Check) -> Result<()> {
    log_to_stderr(LevelFilter::ERROR);
    let problems = match read(&flags.config)? {
        Ok(config) => match server::check(&config) {
            Ok(()) => Vec::new(),
            Err(StartError::Plugins(problems)) => problems,
            Err(error) => return Err(error.into()),
        },
        Err(problems) => problems,
    };
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
        0 => {
            eprintln!("{name}: no problems");
            Ok(())
        }
        1 => bail!("{name}: 1 problem"),
        n => bail!("{name}: {n} problems"),
    }
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
    log_to_stderr(LevelFilter::ERROR);
    let local = tokio::task::LocalSet::new();
    Ok(local.block_on(&runtime()?, demo::run(flags.once))?)
}

fn from_flags(flags: Run, listen: std::net::SocketAddr) -> Result<Config> {
    let Run {
        backend: backends,
        policy,
        plugins,
        admin,
        ..
    } = flags;
    let flags = Flags {
        listen,
        backends,
        policy,
        plugins,
        admin,
    };
    Config::from_flags(flags).map_err(|problems| refused(Path::new(""), &problems))
}

/// The outer error: there is no such file. The inner: what is wrong with it.
fn read(file: &Path) -> Result<Result<Config, Vec<Problem>>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Config::from_toml(
        &text,
        file.parent().unwrap_or(Path::new("")),
    ))
}

/// All problems, a line each.
fn refused(file: &Path, problems: &[Problem]) -> anyhow::Error {
    let place = match file.as_os_str().is_empty() {
        true => String::new(),
        false => format!("{}: ", file.display()),
    };
    let lines: Vec<_> = problems
        .iter()
        .map(|problem| format!("{place}{problem}"))
        .collect();
    anyhow::anyhow!("cannot start\n{}", lines.join("\n"))
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn log_to_stderr(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
