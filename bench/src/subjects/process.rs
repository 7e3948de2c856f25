//! One peer at work: a child process in a folder of its own, from its start to its end.
//!
//! In goes an [`Invocation`]; a [`Running`] has answered one upgrade. It is ended by its own id, and
//! its log is shown only if it failed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;

use super::Invocation;

/// Longest wait for the first 101. Envoy takes about one second.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait after SIGTERM, before SIGKILL.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a wait looks again.
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes of a log that are shown when a peer failed.
const SHOWN_LOG_BYTES: usize = 2000;
/// Descriptors that a relay needs for other things than sessions.
const SPARE_DESCRIPTORS: usize = 200;

/// A peer at work; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: TempDir,
}

impl Running {
    /// Starts it in a new folder, and waits until an upgrade on `path` is answered with 101.
    ///
    /// # Errors
    /// It cannot be started, ended by itself, or is not ready in time; with the end of its log.
    pub fn start(invocation: &Invocation, listen: SocketAddr, path: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("no folder for its files")?;
        if let Some((name, text)) = &invocation.config {
            fs::write(folder.path().join(name), text)?;
        }
        let log = File::create(folder.path().join(LOG))?;
        let output = File::create(folder.path().join(OUTPUT))?;
        let (program, args) = invocation.words.split_first().context("an empty command")?;
        let child = Command::new(program)
            .args(args)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut running = Self { child, folder };
        running.wait_until_ready(listen, path)?;
        Ok(running)
    }

    /// The first process; with `taskset` in front it is still the peer itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and waits for it.
    ///
    /// # Errors
    /// It had ended before.
    pub fn end(mut self) -> Result<()> {
        self.fail_if_ended()?;
        self.terminate();
        Ok(())
    }

    fn wait_until_ready(&mut self, listen: SocketAddr, path: &str) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            self.fail_if_ended()?;
            if upgrades(listen, path).unwrap_or(false) {
                return Ok(());
            }
            pause(PAUSE);
        }
        bail!("no upgrade on {listen} in {READY_TIMEOUT:?}{}", self.log());
    }

    fn fail_if_ended(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended by itself ({status}){}", self.log());
        }
        Ok(())
    }

    fn log(&self) -> String {
        let log = fs::read(self.folder.path().join(LOG)).unwrap_or_default();
        let end = &log[log.len().saturating_sub(SHOWN_LOG_BYTES)..];
        if end.is_empty() {
            return String::new();
        }
        format!(
            ". The end of its log:\n{}",
            String::from_utf8_lossy(end).trim_end()
        )
    }

    fn terminate(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _gone = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + END_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _gone = self.child.kill();
                let _status = self.child.wait();
                return;
            }
            pause(PAUSE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.terminate();
    }
}

const LOG: &str = "stderr.log";
const OUTPUT: &str = "stdout.log";

/// Whether the peer answers one upgrade. The connection is closed again.
fn upgrades(listen: SocketAddr, path: &str) -> Result<bool> {
    let mut stream = TcpStream::connect(listen)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    // The key is the one of RFC 6455 section 1.3.
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {listen}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 101")
}

/// An address of loopback that is free now. Another process could take it before the peer does; the
/// peer then ends by itself and says so.
///
/// # Errors
/// No port is free.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
    Ok(listener.local_addr()?)
}

/// Lets this process, and all that it starts, open as many files as the machine allows.
///
/// # Errors
/// The limit cannot be set.
pub fn raise_descriptor_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

/// How many sessions a relay can hold: each takes a descriptor on either side.
pub fn max_relayed() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let descriptors = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    descriptors.saturating_sub(SPARE_DESCRIPTORS) / 2
}

/// Waits, on a thread that has nothing else to do.
#[allow(
    clippy::disallowed_methods,
    reason = "no task runs on this thread, and there is no event to wait for: processes are polled"
)]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
