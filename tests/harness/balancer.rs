//! The balancer in a process of its own, as an operator runs it: a configuration file, a watched
//! folder, signals, the admin page, and two streams of lines.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config;
use crate::lines::Lines;
use crate::metrics::Metrics;
use crate::process::{binary, send_signal};
use crate::wait::{PATIENCE, eventually};
use crate::wire::{Answer, ask, get};

/// From the start of the process to ready: a cold start compiles every plugin, on a machine that
/// may be compiling other things.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running balancer; dropping it kills the process.
#[derive(Debug)]
pub struct Balancer {
    child: Child,
    folder: TempDir,
    address: SocketAddr,
    admin: SocketAddr,
    log: Lines,
    access_log: Lines,
    readers: JoinSet<()>,
}

impl Balancer {
    /// Starts one and waits until it is ready. Where `toml` does not say so itself, it gets two
    /// workers, a listener and an admin page on free ports, and a watched folder.
    ///
    /// # Errors
    ///
    /// It does not become ready; its log is in the error.
    pub async fn start(toml: &str) -> Result<Self> {
        Self::start_with_plugins(toml, &[]).await
    }

    /// The same with `.wasm` files in the watched folder from the start.
    ///
    /// # Errors
    ///
    /// See [`Balancer::start`].
    pub async fn start_with_plugins(toml: &str, plugins: &[(&str, &[u8])]) -> Result<Self> {
        Self::run(Command::new(binary()), toml, plugins).await
    }

    /// The same as a process that may have only so many descriptors.
    ///
    /// # Errors
    ///
    /// See [`Balancer::start`].
    pub async fn start_with_descriptors(toml: &str, n: u32) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {n}; exec \"$@\""), "sh"]);
        shell.arg(binary());
        Self::run(shell, toml, &[]).await
    }

    async fn run(mut command: Command, toml: &str, plugins: &[(&str, &[u8])]) -> Result<Self> {
        let folder = TempDir::new()?;
        let watched = folder.path().join("plugins");
        fs::create_dir(&watched)?;
        fs::create_dir(folder.path().join("incoming"))?;
        for (name, bytes) in plugins {
            fs::write(watched.join(format!("{name}.wasm")), bytes)?;
        }
        let file = folder.path().join("pointsman.toml");
        fs::write(&file, config::complete(toml, &watched))?;

        let mut child = command
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (log, access_log) = (Lines::default(), Lines::default());
        let mut readers = JoinSet::new();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        readers.spawn(log.clone().collect(stderr));
        readers.spawn(access_log.clone().collect(stdout));

        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut balancer = Self {
            child,
            folder,
            address: nowhere,
            admin: nowhere,
            log,
            access_log,
            readers,
        };
        balancer.ready().await?;
        Ok(balancer)
    }

    async fn ready(&mut self) -> Result<()> {
        let mut has_ended = false;
        eventually("listening", START_DEADLINE, async || {
            has_ended = !matches!(self.child.try_wait(), Ok(None));
            has_ended || addresses(&self.log.all()).is_some()
        })
        .await
        .with_context(|| self.log.all().join("\n"))?;
        if has_ended {
            // Its last words may still be on their way.
            let all = async { while self.readers.join_next().await.is_some() {} };
            let _ = timeout(PATIENCE, all).await;
        }
        let Some((address, admin)) = addresses(&self.log.all()).filter(|_| !has_ended) else {
            bail!("ended at its start:\n{}", self.log.all().join("\n"));
        };
        (self.address, self.admin) = (address, admin);
        eventually("/readyz answers 200", START_DEADLINE, async || {
            let ready = self.admin_get("/readyz").await;
            ready.is_ok_and(|answer| answer.status == 200)
        })
        .await
        .with_context(|| self.log.all().join("\n"))?;
        Ok(())
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operator looks.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// `path` as a WebSocket client writes it.
    pub fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.address)
    }

    /// `GET path` on the listener.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        get(self.address, path).await
    }

    /// `GET path` on the admin page.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub async fn admin_get(&self, path: &str) -> Result<Answer> {
        get(self.admin, path).await
    }

    /// An order on the admin address.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub async fn order(&self, method: &str, path: &str) -> Result<Answer> {
        ask(self.admin, method, path, "").await
    }

    /// Waits until a backend of the upstream `app` is in this state: `up`, `down`, `ejected` or
    /// `draining`. Returns what is said against it.
    ///
    /// # Errors
    ///
    /// It is not, within the usual patience.
    pub async fn backend_state(&self, address: SocketAddr, state: &str) -> Result<String> {
        let what = format!("{address} is {state}");
        let mut reason = String::new();
        eventually(what, PATIENCE, async || {
            let Ok(status) = self.status().await else {
                return false;
            };
            let backends = status["upstreams"][0]["backends"].as_array();
            let named = |b: &&Value| b["address"] == address.to_string();
            let Some(backend) = backends.into_iter().flatten().find(named) else {
                return false;
            };
            reason = backend["reason"].as_str().unwrap_or_default().to_owned();
            backend["state"] == state
        })
        .await?;
        Ok(reason)
    }

    /// What `/metrics` says now.
    ///
    /// # Errors
    ///
    /// It says nothing, or nothing that can be read.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = self.admin_get("/metrics").await?;
        ensure!(answer.status == 200, "/metrics answers {}", answer.status);
        Metrics::parse(&answer.text())
    }

    /// What `/api/status` says now.
    ///
    /// # Errors
    ///
    /// It says nothing, or no JSON.
    pub async fn status(&self) -> Result<Value> {
        let answer = self.admin_get("/api/status").await?;
        ensure!(
            answer.status == 200,
            "/api/status answers {}",
            answer.status
        );
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// What the status says of one plugin.
    ///
    /// # Errors
    ///
    /// It does not speak of it.
    pub async fn plugin(&self, name: &str) -> Result<Value> {
        let status = self.status().await?;
        let plugins = status["plugins"].as_array().context("no plugins")?;
        let found = plugins.iter().find(|p| p["name"] == name).cloned();
        found.with_context(|| format!("no plugin {name} in {status:#}"))
    }

    /// The generation in force of one plugin.
    ///
    /// # Errors
    ///
    /// The status does not say.
    pub async fn generation(&self, plugin: &str) -> Result<u64> {
        let plugin = self.plugin(plugin).await?;
        plugin["generation"].as_u64().context("no generation")
    }

    /// The operational log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }

    /// The access log so far.
    ///
    /// # Errors
    ///
    /// A line is no JSON.
    pub fn access_log(&self) -> Result<Vec<Value>> {
        let lines = self.access_log.all();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
            .collect()
    }

    /// Waits until the operational log has a line with `words`.
    ///
    /// # Errors
    ///
    /// It has none within the usual patience.
    pub async fn logs(&self, words: &str) -> Result<()> {
        let has_line = async || self.log().iter().any(|line| line.contains(words));
        eventually(format!("a line with {words:?}"), PATIENCE, has_line).await?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send_signal(&self.child, signal)
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    ///
    /// It does not within `deadline`.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let ended = timeout(deadline, self.child.wait()).await;
        Ok(ended.with_context(|| format!("still runs after {deadline:?}"))??)
    }

    /// Writes another configuration, completed as at the start, and has it read.
    ///
    /// # Errors
    ///
    /// The disk refuses, or the process has ended.
    pub fn reload(&self, toml: &str) -> Result<()> {
        self.write_config(toml)?;
        self.signal(Signal::HUP)
    }

    /// Writes another configuration, completed as at the start, and tells nobody. It takes its place by a
    /// rename: who watches the file must not see half of it.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        let text = config::complete(toml, &self.plugins_dir());
        let incoming = self.folder.path().join("incoming/pointsman.toml");
        fs::write(&incoming, text)?;
        Ok(fs::rename(&incoming, self.config_file())?)
    }

    /// The most memory in RAM that the process has had since it started or since
    /// [`Balancer::forget_memory_peak`]: what is taken and given back at once shows, too.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn memory_peak_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(self.proc("status")?)?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"))
            .context("no VmHWM")?;
        Ok(peak.trim().parse::<u64>()? * 1024)
    }

    /// The peak is what there is now.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn forget_memory_peak(&self) -> Result<()> {
        Ok(fs::write(self.proc("clear_refs")?, "5")?)
    }

    /// The processes that it has started and that run.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn children(&self) -> Result<Vec<u32>> {
        let mut children = Vec::new();
        for thread in fs::read_dir(self.proc("task")?)? {
            let of_thread = fs::read_to_string(thread?.path().join("children"))?;
            let ids = of_thread.split_whitespace();
            children.extend(ids.filter_map(|id| id.parse::<u32>().ok()));
        }
        Ok(children)
    }

    /// What the kernel says of the process (proc(5)).
    fn proc(&self, file: &str) -> Result<PathBuf> {
        let pid = self.child.id().context("the process was waited for")?;
        Ok(PathBuf::from(format!("/proc/{pid}/{file}")))
    }

    /// The configuration file that the process was started with.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("pointsman.toml")
    }

    /// The watched folder.
    pub fn plugins_dir(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    /// Puts `NAME.wasm` into the watched folder by a rename, as a deploy does: whoever looks sees
    /// the old file or the whole new one.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn drop_plugin(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = format!("{name}.wasm");
        let incoming = self.folder.path().join("incoming").join(&file);
        fs::write(&incoming, bytes)?;
        Ok(fs::rename(&incoming, self.plugins_dir().join(&file))?)
    }

    /// Deletes `NAME.wasm` from the watched folder.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn delete_plugin(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(
            self.plugins_dir().join(format!("{name}.wasm")),
        )?)
    }
}

impl Drop for Balancer {
    /// Shows the log, which the test runner prints if the test fails.
    fn drop(&mut self) {
        for line in self.log.all() {
            eprintln!("balancer: {line}");
        }
    }
}

/// The listener's and the admin page's address, from the lines that announce them.
fn addresses(log: &[String]) -> Option<(SocketAddr, SocketAddr)> {
    let address = |line: &String| {
        let (_, rest) = line.split_once("addr=")?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let (admin, listeners): (Vec<_>, Vec<_>) = log
        .iter()
        .filter(|line| line.contains("listening"))
        .partition(|line| line.contains("admin listening"));
    Some((
        listeners.into_iter().find_map(address)?,
        admin.into_iter().find_map(address)?,
    ))
}
