//! Processes: where the binary is, running it to its end, and a backend that SIGKILL can hit.

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{self, AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::config::repository;
use crate::wait::in_time;

/// The binary under test: `POINTSMAN_BIN`, or what the release build leaves.
///
/// # Panics
///
/// There is none; the message says how to build it.
pub fn binary() -> PathBuf {
    let path = env::var_os("POINTSMAN_BIN")
        .map_or_else(|| repository("target/release/pointsman"), PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo xtask build`",
        path.display()
    );
    path
}

/// What a process left behind.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote as its result.
    pub stdout: String,
    /// What it wrote for people.
    pub stderr: String,
}

/// Runs `pointsman` with `args` to its end.
///
/// # Errors
///
/// It cannot be started, or does not end in time.
pub async fn pointsman(args: &[&str]) -> Result<Ended> {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = in_time(format!("`pointsman {}`", args.join(" ")), command.output()).await?;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// An echoing backend in a process of its own.
#[derive(Debug)]
pub struct BackendProcess {
    child: Child,
    address: SocketAddr,
}

impl BackendProcess {
    /// Starts `program`, the `echo-backend` of this package.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not say where it listens.
    pub async fn start(program: &str) -> Result<Self> {
        let mut command = Command::new(program);
        let (child, address) = start_listening(&mut command).await?;
        Ok(Self { child, address })
    }

    /// Starts `program` where one has been before.
    ///
    /// # Errors
    ///
    /// See [`BackendProcess::start`].
    pub async fn start_at(program: &str, address: SocketAddr) -> Result<Self> {
        let mut command = Command::new(program);
        let (child, address) = start_listening(command.arg(address.to_string())).await?;
        Ok(Self { child, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send_signal(&self.child, signal)
    }

    /// SIGKILL: its sockets are closed by the kernel, with nothing said on them.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

pub(crate) fn send_signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = child.id().context("the process was waited for")?;
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id is not 0")?;
    Ok(kill_process(pid, signal)?)
}

/// Starts a server that prints a line ending in `listening on ADDRESS` when it is ready.
pub(crate) async fn start_listening(command: &mut Command) -> Result<(Child, SocketAddr)> {
    let (child, address, _lines) = start_speaking(command.stdin(Stdio::null())).await?;
    Ok((child, address))
}

/// The same for one that says more behind that line.
pub(crate) async fn start_speaking(
    command: &mut Command,
) -> Result<(Child, SocketAddr, io::Lines<BufReader<ChildStdout>>)> {
    let mut child = command
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {:?}", command.as_std().get_program()))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = in_time("the line `listening on`", lines.next_line()).await?;
    let line = line.unwrap_or_default();
    let (_, address) = line
        .rsplit_once("listening on ")
        .with_context(|| format!("expected `listening on ADDRESS`, found {line:?}"))?;
    let address = address.parse().with_context(|| format!("in {line:?}"))?;
    Ok((child, address, lines))
}
