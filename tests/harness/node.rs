//! The real servers and the real clients of the examples, under node.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

use crate::config::repository;
use crate::process::{Ended, start_listening};
use crate::wait::in_time;

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
        let mut servers = Vec::with_capacity(n);
        for _ in 0..n {
            servers.push(start_listening(&mut script(example, "server.js", &["0"])).await?);
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
/// The file is missing, or does not hold a text exactly once.
pub fn example(name: &str, replaced: &[(&str, String)]) -> Result<String> {
    let path = repository("examples").join(name).join("pointsman.toml");
    let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for (from, to) in replaced {
        let found = text.matches(from).count();
        anyhow::ensure!(
            found == 1,
            "{} holds {from:?} {found} times, expected once",
            path.display()
        );
        text = text.replace(from, to);
    }
    Ok(text)
}

/// A script of an example, ready to be started.
///
/// # Panics
///
/// The example's packages are not installed; the message says how to.
pub fn script(example: &str, name: &str, args: &[&str]) -> Command {
    let folder = repository("examples").join(example);
    assert!(
        folder.join("node_modules").is_dir(),
        "examples/{example}/node_modules is missing: run `cargo xtask test`, or `npm ci` there"
    );
    let mut command = Command::new("node");
    command
        .arg(folder.join(name))
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}
