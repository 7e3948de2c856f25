//! The `pointsman` program: flags to a configuration, a running server, and an exit code.
//!
//! Exit codes: 0 done, 1 what was asked for failed or there are problems, 2 the call was wrong. Text for people goes to
//! stderr, results go to stdout.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use pointsman::cli::{Check, Cli, Command, Demo, Run, StatusArgs};
use pointsman::demo::{self, DemoError};
use pointsman::server::{self, ReadFile, Server, StartError};
use pointsman::systemd::{self, Inherited};
use pointsman_admin::commands::{Proposal, ReloadPlan};
use pointsman_admin::status::{self, FetchError};
use pointsman_config::{Config, Draft, Flags, Problem};
use pointsman_log::ErrorLog;
use pointsman_plugins::isolated_compile;
use rustix::process::Signal as SignalNumber;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::level_filters::LevelFilter;

/// Read when neither a file nor an address is named.
const DEFAULT_FILE: &str = "pointsman.toml";

fn main() -> ExitCode {
    // By this name it is the program that runs, even if another was installed since.
    isolated_compile::use_program("/proc/self/exe".into());
    let command = Cli::parse().command;
    let level = match &command {
        Command::Run(flags) => flags.log_level,
        _ => LevelFilter::ERROR,
    };
    let log = match ErrorLog::start(level) {
        Ok(log) => log,
        Err(error) => {
            say(format_args!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let _log = FinishedOnPanic(&log);
    let done = match command {
        Command::Run(flags) => run(flags, &log),
        Command::Check(flags) => check(&flags),
        Command::Status(flags) => status(&flags),
        Command::Demo(flags) => show(&flags, &log),
        Command::CompilePlugin => isolated_compile::compile_stdin().map_err(Into::into),
    };
    match done {
        Ok(()) => {
            log.finish();
            ExitCode::SUCCESS
        }
        Err(error) => {
            log.finish_with(&format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// What a panic of this thread has to say is written before the process ends.
struct FinishedOnPanic<'a>(&'a ErrorLog);

impl Drop for FinishedOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.finish();
        }
    }
}

fn run(flags: Run, log: &ErrorLog) -> Result<()> {
    runtime()?.block_on(async {
        // Before anything that takes time: until then some of them end the process.
        let signals = Signals::listen()?;
        let (config, source) = configured(flags)?;
        serve(config, source, signals, log.clone()).await
    })
}

fn configured(flags: Run) -> Result<(Config, ConfigSource)> {
    let source = match flags.listen {
        Some(_) => ConfigSource::default(),
        None => ConfigSource::read(
            flags
                .config
                .clone()
                .unwrap_or_else(|| PathBuf::from(DEFAULT_FILE)),
        )?,
    };
    let mut draft = match flags.listen {
        Some(listen) => from_flags(flags, listen),
        None => source.draft(),
    };
    match draft.config.take_if(|_| draft.problems.is_empty()) {
        Some(config) => Ok((config, source)),
        // What else is wrong is told in one go.
        None => Err(source.refused(server::check(draft)?)),
    }
}

/// What an operator can tell the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    reopen: Signal,
    upgrade: Signal,
    /// A file that has reached the limit of its size (setrlimit(2)) is a failed write and not the end.
    _file_size: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let number = |signal: SignalNumber| SignalKind::from_raw(signal.as_raw());
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            upgrade: signal(SignalKind::user_defined2())?,
            _file_size: signal(number(SignalNumber::XFSZ))?,
        })
    }

    /// The next one.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn next(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.terminate.recv() => SignalAction::End("SIGTERM"),
            _ = self.interrupt.recv() => SignalAction::End("SIGINT"),
            _ = self.quit.recv() => SignalAction::End("SIGQUIT"),
            _ = self.hang_up.recv() => SignalAction::Reload,
            _ = self.reopen.recv() => SignalAction::ReopenLogs,
            _ = self.upgrade.recv() => SignalAction::Upgrade,
        }
    }
}

/// What a signal asks for.
enum SignalAction {
    /// To end, by the signal of this name.
    End(&'static str),
    Reload,
    ReopenLogs,
    /// To have another binary take over.
    Upgrade,
}

async fn serve(
    config: Config,
    source: ConfigSource,
    mut signals: Signals,
    log: ErrorLog,
) -> Result<()> {
    let inherited = Inherited::from_env();
    let started = Server::start(config, source.as_read(), log, inherited);
    let mut server = started.map_err(|error| match error {
        StartError::Config(problems) => source.refused(problems),
        error => error.into(),
    })?;
    systemd::ready();
    let mut is_draining = false;
    loop {
        let told = tokio::select! {
            () = server.ended() => return Ok(()),
            told = signals.next() => told,
        };
        match told {
            SignalAction::Reload => server.reload(),
            SignalAction::ReopenLogs => server.reopen_logs(),
            SignalAction::Upgrade => {
                tracing::warn!("SIGUSR2: replacing the binary is not supported by this version");
            }
            SignalAction::End(signal) if is_draining => {
                tracing::warn!(signal, "second signal: ending at once");
                server.stop_now();
            }
            SignalAction::End(signal) => {
                tracing::info!(signal, "draining");
                systemd::stopping();
                server.drain();
                is_draining = true;
            }
        }
    }
}

fn check(flags: &Check) -> Result<()> {
    let source = ConfigSource::read(flags.config.clone())?;
    let problems = server::check(source.draft())?;
    let (problems, plan) = match problems.is_empty() && flags.against_running {
        true => match compare(flags, &source)? {
            Ok(plan) => (Vec::new(), Some(plan)),
            Err(problems) => (problems, None),
        },
        false => (problems, None),
    };
    let problems = source.located(problems);
    let name = flags.config.display();
    if flags.json {
        let mut found = serde_json::json!({ "file": name.to_string(), "problems": problems });
        if let Some(plan) = &plan {
            found["changes"] = serde_json::json!(plan.changes);
        }
        print(format_args!("{found}\n"))?;
    } else {
        for problem in &problems {
            print(format_args!("{name}: {problem}\n"))?;
        }
        if let Some(plan) = &plan {
            print(plan)?;
        }
    }
    match problems.len() {
        0 if plan.is_some() => Ok(()),
        0 => {
            say(format_args!("{name}: no problems"));
            Ok(())
        }
        1 => bail!("{name}: 1 problem"),
        n => bail!("{name}: {n} problems"),
    }
}

/// What a configuration would change where one runs, or why it would be refused there.
fn compare(flags: &Check, source: &ConfigSource) -> Result<Result<ReloadPlan, Vec<Problem>>> {
    let dir = flags.config.parent().unwrap_or(Path::new(""));
    let proposal = Proposal {
        text: source.text.clone(),
        dir: std::path::absolute(dir.join("."))?,
    };
    let token = flags.token.as_deref();
    let asked = status::fetch_plan(flags.admin, token, &proposal);
    match runtime()?.block_on(asked) {
        Ok(plan) => Ok(Ok(plan)),
        Err(FetchError::Rejected(problems)) => Ok(Err(problems)),
        Err(error) => Err(error.into()),
    }
}

fn status(flags: &StatusArgs) -> Result<()> {
    let fetched = runtime()?.block_on(status::fetch(flags.admin, flags.token.as_deref()));
    let status = fetched?;
    match flags.json {
        true => print(serde_json::to_string_pretty(&status)? + "\n")?,
        false => print(&status)?,
    }
    match status.problems.len() {
        0 => Ok(()),
        1 => bail!("1 problem"),
        n => bail!("{n} problems"),
    }
}

fn show(flags: &Demo, log: &ErrorLog) -> Result<()> {
    let local = tokio::task::LocalSet::new();
    let shown = local.block_on(&runtime()?, demo::run(flags.once, log.clone()));
    match shown {
        Err(DemoError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        shown => Ok(shown?),
    }
}

/// Writes a result to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(result: impl fmt::Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{result}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// A line for the person who made the call, if somebody reads it.
fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn from_flags(flags: Run, listen: SocketAddr) -> Draft {
    let Run {
        backend: backends,
        policy,
        plugins,
        admin,
        ..
    } = flags;
    Draft::from_flags(Flags {
        listen,
        backends,
        policy,
        plugins,
        admin,
    })
}

/// Where a configuration comes from; nothing is known of flags.
#[derive(Default)]
struct ConfigSource {
    file: Option<PathBuf>,
    text: String,
}

impl ConfigSource {
    fn read(file: PathBuf) -> Result<Self> {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            file: Some(file),
            text,
        })
    }

    fn as_read(&self) -> Option<ReadFile> {
        let path = self.file.clone()?;
        let text = self.text.clone();
        Some(ReadFile { path, text })
    }

    fn draft(&self) -> Draft {
        let dir = self
            .file
            .as_deref()
            .and_then(Path::parent)
            .unwrap_or(Path::new(""));
        Draft::from_toml(&self.text, dir)
    }

    /// In the order of their lines, as far as they have one.
    fn located(&self, problems: Vec<Problem>) -> Vec<Problem> {
        let mut located = match self.file {
            Some(_) => Problem::locate_all(problems, &self.text),
            None => problems.into_iter().map(Problem::of_flags).collect(),
        };
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
