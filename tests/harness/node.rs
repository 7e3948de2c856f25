//! The real servers and the real clients of the examples, and the scripts of `tests/node`, under node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::config::repository;
use crate::edit::Edit;
use crate::process::{Ended, start_listening, start_speaking};
use crate::wait::in_time;

/// The example with the packages that the scripts of `tests/node` use.
const PACKAGES: &str = "fastify";

/// Longer than any story of `tests/node` takes on a busy machine: some move hundreds of megabytes.
const STORY_DEADLINE: Duration = Duration::from_secs(60);

/// Servers of an example's `server.js`, each a process on a free port.
#[derive(Debug)]
pub struct NodeServers {
    servers: Vec<(Child, SocketAddr)>,
}

impl NodeServers {
    /// Starts `n` of those in `examples/EXAMPLE`.
    ///
    /// # Errors
    ///
    /// Node is missing, or a server does not come up.
    pub async fn start(example: &str, n: usize) -> Result<Self> {
        Self::start_with(example, n, &[]).await
    }

    /// The same, with arguments behind the port.
    ///
    /// # Errors
    ///
    /// Node is missing, or a server does not come up.
    pub async fn start_with(example: &str, n: usize, args: &[&str]) -> Result<Self> {
        let args = [&["0"], args].concat();
        let mut servers = Vec::with_capacity(n);
        for _ in 0..n {
            servers.push(start_listening(&mut script(example, "server.js", &args)).await?);
        }
        Ok(Self { servers })
    }

    /// Ends one of them at once, by its place in the order of their start.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn kill(&mut self, place: usize) -> Result<()> {
        Ok(self.servers[place].0.kill().await?)
    }

    /// Where they listen, in the order of their start.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|(_, address)| *address).collect()
    }
}

/// A script of `tests/node`: a server that says more than where it listens.
#[derive(Debug)]
pub struct NodeStory {
    script: Child,
    address: SocketAddr,
    lines: Lines<BufReader<ChildStdout>>,
}

impl NodeStory {
    /// Starts `tests/node/NAME`.
    ///
    /// # Errors
    ///
    /// Node is missing, or the script does not come up.
    pub async fn start(name: &str, args: &[&str]) -> Result<Self> {
        let file = repository("tests/node").join(name);
        let mut command = command(PACKAGES, file, args);
        let (script, address, lines) = start_speaking(command.stdin(Stdio::piped())).await?;
        Ok(Self {
            script,
            address,
            lines,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says one line of JSON to it.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub async fn tell(&mut self, what: &Value) -> Result<()> {
        let stdin = self.script.stdin.as_mut().context("stdin is piped")?;
        Ok(stdin.write_all(format!("{what}\n").as_bytes()).await?)
    }

    /// The next line that it says; none when it has ended.
    ///
    /// # Errors
    ///
    /// It says nothing in the time that a story takes.
    pub async fn line(&mut self) -> Result<Option<String>> {
        let line = timeout(STORY_DEADLINE, self.lines.next_line()).await;
        Ok(line.with_context(|| format!("nothing said within {STORY_DEADLINE:?}"))??)
    }

    /// All that it says until it ends, which has to be well.
    ///
    /// # Errors
    ///
    /// It says that something is wrong.
    pub async fn finished(mut self) -> Result<Vec<String>> {
        let mut said = Vec::new();
        while let Some(line) = self.line().await? {
            said.push(line);
        }
        let ended = in_time("its end", self.script.wait()).await?;
        ensure!(ended.success(), "{ended}:\n{}", said.join("\n"));
        Ok(said)
    }
}

/// Runs a script of `examples/EXAMPLE` to its end.
///
/// # Errors
///
/// Node is missing, or the script does not end in time.
pub async fn node(example: &str, name: &str, args: &[&str]) -> Result<Ended> {
    let output = in_time(name, script(example, name, args).output()).await?;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The `pointsman.toml` of an example, with each text of `replaced` found exactly once and put in
/// the other's place: the only difference between what people run and what is tested is ports.
///
/// # Errors
///
/// The file is missing.
///
/// # Panics
///
/// It does not hold a text exactly once.
pub fn example(name: &str, replaced: &[(&str, String)]) -> Result<String> {
    let path = repository("examples").join(name).join("pointsman.toml");
    let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for (from, to) in replaced {
        text = text.replace_once(from, to);
    }
    Ok(text)
}

/// A script of an example, ready to be started.
///
/// # Panics
///
/// The example's packages are not installed; the message says how to.
pub fn script(example: &str, name: &str, args: &[&str]) -> Command {
    let file = repository("examples").join(example).join(name);
    command(example, file, args)
}

fn command(packages_of: &str, file: PathBuf, args: &[&str]) -> Command {
    let packages = repository("examples")
        .join(packages_of)
        .join("node_modules");
    assert!(
        packages.is_dir(),
        "examples/{packages_of}/node_modules is missing: run `cargo xtask test`, or `npm ci` there"
    );
    let mut command = Command::new("node");
    command
        .arg(file)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}
