//! What the demo plays on: a temporary folder, three backends, and a balancer in front of them.
//! Everything is gone when the stage is dropped.

use std::fs::{self, DirBuilder};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_admin::status::{self, PluginStatus, Status};
use pointsman_config::{AccessLogTarget, Config};
use pointsman_log::ErrorLog;
use tokio::time::{Instant, sleep};

use super::backend::DemoBackend;
use super::client::DemoClient;
use super::{DemoError, in_time};
use crate::server::{EMBEDDED, Server};
use crate::systemd::Inherited;

/// The policy that the configuration names. Its file is what is swapped.
pub(super) const POLICY: &str = "round_robin";

/// Between two looks at the status: what a measured time may be too long by.
const POLL_PAUSE: Duration = Duration::from_millis(5);

/// Three backends, the balancer, and its watched folder.
pub(super) struct Stage {
    // Dropped in this order: the balancer first, the folder that it watches last.
    server: Server,
    /// Where clients connect.
    pub(super) address: SocketAddr,
    /// Where the status is.
    pub(super) admin: SocketAddr,
    /// In the order of the configuration.
    pub(super) backends: Vec<DemoBackend>,
    /// The active configuration.
    pub(super) toml: String,
    /// What is written in it is seen by the balancer.
    pub(super) folder: Folder,
}

/// A temporary folder, removed when this is dropped.
pub(super) struct Folder(PathBuf);

impl Stage {
    /// Starts everything.
    pub(super) async fn set(error_log: ErrorLog) -> Result<Self, DemoError> {
        // A build without plugins is better told here than as a fault of the configuration.
        embedded(POLICY)?;
        let folder = Folder::make()?;
        let mut backends = Vec::new();
        for name in ['a', 'b', 'c'] {
            let started = DemoBackend::start(name).await;
            backends.push(started.map_err(DemoError::Backend)?);
        }
        let toml = toml(&backends);
        let mut config = Config::from_toml(&toml, &folder.0).map_err(DemoError::Config)?;
        // It would drown the story.
        config.access_log = AccessLogTarget::Off;
        let server = Server::start(config, None, error_log, Inherited::default());
        let server = server.map_err(DemoError::Start)?;
        let (Some(&address), Some(admin)) = (server.addresses.first(), server.admin) else {
            return Err(DemoError::NoAddress);
        };
        Ok(Self {
            server,
            address,
            admin,
            backends,
            toml,
            folder,
        })
    }

    /// A client, connected through the balancer.
    pub(super) async fn connect(&self) -> Result<DemoClient, DemoError> {
        DemoClient::open(self.address).await
    }

    /// What the balancer says of itself.
    pub(super) async fn status(&self) -> Result<Status, DemoError> {
        let fetched = status::fetch(self.admin, None).await;
        fetched.map_err(DemoError::Status)
    }

    /// Waits until each backend has so many sessions, in the order of the configuration.
    pub(super) async fn has_sessions(&self, expected: &[u64]) -> Result<(), DemoError> {
        let counted = async {
            loop {
                let status = self.status().await?;
                let backends = status
                    .upstreams
                    .iter()
                    .flat_map(|upstream| &upstream.backends);
                if backends
                    .map(|backend| backend.active)
                    .eq(expected.iter().copied())
                {
                    return Ok(());
                }
                sleep(POLL_PAUSE).await;
            }
        };
        in_time("the expected number of sessions", counted).await
    }

    /// Puts the embedded plugin `name` in the place of the policy while it runs. How long it took
    /// from there until the new generation served.
    pub(super) async fn swap_policy(&self, name: &'static str) -> Result<Duration, DemoError> {
        let before = policy(&self.status().await?)?.generation;
        let written = self.folder.plugins().join(format!(".{POLICY}.wasm"));
        let place = self.folder.policy_file();
        let failed = |error| DemoError::Folder(place.clone(), error);
        fs::write(&written, embedded(name)?).map_err(failed)?;
        let begun = Instant::now();
        fs::rename(&written, &place).map_err(failed)?;

        let swapped = async {
            loop {
                let status = self.status().await?;
                let policy = policy(&status)?;
                if policy.generation > before {
                    return Ok(begun.elapsed());
                }
                if let Some(error) = &policy.last_error {
                    return Err(DemoError::Refused(error.clone()));
                }
                sleep(POLL_PAUSE).await;
            }
        };
        in_time("the new generation", swapped).await
    }

    /// Ends the balancer as an operator would: by a drain.
    pub(super) async fn end(mut self) -> Result<(), DemoError> {
        self.server.drain();
        let ended = async {
            self.server.ended().await;
            Ok(())
        };
        in_time("the end of the drain", ended).await
    }
}

impl Folder {
    fn make() -> Result<Self, DemoError> {
        let name = format!("pointsman-demo-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        make(&root).map_err(|error| DemoError::Folder(root.clone(), error))?;
        let folder = Self(root);
        let plugins = folder.plugins();
        make(&plugins).map_err(|error| DemoError::Folder(plugins, error))?;
        Ok(folder)
    }

    /// Holds all others.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The watched one.
    pub(super) fn plugins(&self) -> PathBuf {
        self.0.join("plugins")
    }

    /// What it loads as the policy, if it exists.
    pub(super) fn policy_file(&self) -> PathBuf {
        self.plugins().join(format!("{POLICY}.wasm"))
    }

    /// Writes all embedded plugins beside the watched folder, for a person to copy: `shipped/NAME.wasm`.
    pub(super) fn unpack(&self) -> Result<(), DemoError> {
        let shipped = self.0.join("shipped");
        let failed = |error| DemoError::Folder(shipped.clone(), error);
        fs::create_dir(&shipped).map_err(failed)?;
        for (name, component) in EMBEDDED {
            let path = shipped.join(format!("{name}.wasm"));
            fs::write(path, component).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::error!(path = %self.0.display(), %error, "the demo's folder stays");
        }
    }
}

/// The plugin that decides.
pub(super) fn policy(status: &Status) -> Result<&PluginStatus, DemoError> {
    let mut plugins = status.plugins.iter();
    let policy = plugins.find(|plugin| plugin.name == POLICY);
    policy.ok_or(DemoError::NoPlugin(POLICY))
}

fn embedded(name: &'static str) -> Result<&'static [u8], DemoError> {
    let mut plugins = EMBEDDED.iter();
    let plugin = plugins.find(|(embedded, _)| *embedded == name);
    plugin
        .map(|(_, component)| *component)
        .ok_or(DemoError::NoPlugin(name))
}

fn toml(backends: &[DemoBackend]) -> String {
    let addresses: Vec<_> = backends
        .iter()
        .map(|backend| format!("\"{}\"", backend.address))
        .collect();
    let addresses = addresses.join(", ");
    format!(
        r#"workers = 2
drain_timeout_secs = 2

[admin]
listen = "127.0.0.1:0"

[[listener]]
bind = "127.0.0.1:0"

[plugins]
dir = "plugins"

[[upstream]]
name = "demo"
policy = "{POLICY}"
backends = [{addresses}]

[[route]]
path = "/*"
upstream = "demo"
"#
    )
}
