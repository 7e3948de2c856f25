//! The peers: what each is called, how it is configured and started.
//!
//! Here is the list; [`configs`] has what each is told, [`process`] its life, [`versions`] whether it
//! is installed and which version it is.

pub mod configs;
pub mod process;
pub mod versions;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use configs::{Job, Setup};

/// Something that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Subject {
    /// Pointsman, relaying in turn by its `round_robin` plugin.
    Pointsman,
    /// Pointsman, relaying by its `least_connections` plugin.
    PointsmanLeast,
    /// nginx with its default buffers.
    Nginx,
    /// nginx with buffers of 64 KiB.
    #[value(name = "nginx-64k")]
    Nginx64k,
    /// HAProxy.
    Haproxy,
    /// Envoy.
    Envoy,
    /// Pointsman, answering by its `echo` plugin.
    PointsmanEcho,
    /// Pointsman, relaying with a filter that looks at what clients send.
    PointsmanFilter,
    /// Pointsman, relaying with a filter that looks at everything.
    PointsmanFilterBoth,
    /// Pointsman, answering by its `chat` plugin.
    PointsmanChat,
    /// Fastify with `@fastify/websocket`.
    Fastify,
    /// The `ws` library on Node.js.
    Ws,
    /// tokio-tungstenite, native.
    TokioTungstenite,
    /// tokio-tungstenite, native, with a channel for each room.
    TokioTungsteniteChat,
    /// fastwebsockets, native.
    Fastwebsockets,
    /// Raw framing on epoll, native: the floor.
    Epoll,
}

/// A command line, and the file that it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The program and its arguments; runs in the folder that has `config`.
    pub words: Vec<String>,
    /// Name and text of the configuration file.
    pub config: Option<(&'static str, String)>,
}

impl Subject {
    /// As it is called on the command line and in files of figures.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// As it is called in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pointsman => "Pointsman",
            Self::PointsmanLeast => "Pointsman, least connections",
            Self::Nginx => "nginx",
            Self::Nginx64k => "nginx, 64 KiB buffers",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::PointsmanEcho => "Pointsman, echo plugin",
            Self::PointsmanFilter => "Pointsman, filter one way",
            Self::PointsmanFilterBoth => "Pointsman, filter both ways",
            Self::PointsmanChat => "Pointsman, chat plugin",
            Self::Fastify => "Fastify (Node.js)",
            Self::Ws => "ws (Node.js)",
            Self::TokioTungstenite => "tokio-tungstenite (native)",
            Self::TokioTungsteniteChat => "tokio-tungstenite, chat (native)",
            Self::Fastwebsockets => "fastwebsockets (native)",
            Self::Epoll => "raw epoll (native, the floor)",
        }
    }

    /// As it is called where room is scarce.
    pub fn short_title(self) -> &'static str {
        match self {
            Self::Nginx64k => "nginx, 64 KiB",
            other => other.title(),
        }
    }

    /// Whether it is Pointsman, and not one of its peers.
    pub fn is_pointsman(self) -> bool {
        matches!(
            self,
            Self::Pointsman
                | Self::PointsmanLeast
                | Self::PointsmanFilter
                | Self::PointsmanFilterBoth
                | Self::PointsmanEcho
                | Self::PointsmanChat
        )
    }

    /// The program that must be there to start it: a path, or a name that is looked up in `PATH`.
    pub fn program(self, root: &Path) -> PathBuf {
        match self {
            Self::Pointsman
            | Self::PointsmanLeast
            | Self::PointsmanFilter
            | Self::PointsmanFilterBoth
            | Self::PointsmanEcho
            | Self::PointsmanChat => root.join("target/release/pointsman"),
            Self::Nginx | Self::Nginx64k => in_path_or_sbin("nginx"),
            Self::Haproxy => in_path_or_sbin("haproxy"),
            Self::Envoy => root.join("target/bench/venv/bin/envoy"),
            Self::Fastify | Self::Ws => PathBuf::from("node"),
            Self::TokioTungstenite
            | Self::TokioTungsteniteChat
            | Self::Fastwebsockets
            | Self::Epoll => {
                std::env::current_exe().unwrap_or_else(|_| PathBuf::from("pointsman-bench"))
            }
        }
    }

    /// The command line that makes it do `setup`. `root` is the workspace's folder.
    pub fn invocation(self, root: &Path, setup: &Setup) -> Invocation {
        let listen = setup.listen;
        let (args, config) = match self {
            Self::Pointsman => pointsman(setup, Job::Relay("round_robin")),
            Self::PointsmanLeast => pointsman(setup, Job::Relay("least_connections")),
            Self::PointsmanFilter => pointsman(setup, Job::Filter("from_client")),
            Self::PointsmanFilterBoth => pointsman(setup, Job::Filter("both")),
            Self::PointsmanEcho => pointsman(setup, Job::Handle("echo")),
            Self::PointsmanChat => pointsman(setup, Job::Handle("chat")),
            Self::Nginx => nginx(configs::nginx(setup, "")),
            Self::Nginx64k => nginx(configs::nginx(setup, configs::NGINX_64K)),
            Self::Haproxy => (
                words("-db -f haproxy.cfg"),
                Some((
                    "haproxy.cfg",
                    configs::haproxy(setup, process::max_relayed()),
                )),
            ),
            Self::Envoy => (
                words(&format!(
                    "-c envoy.json --concurrency {} --disable-hot-restart --log-level warn",
                    setup.workers
                )),
                Some(("envoy.json", configs::envoy(setup))),
            ),
            Self::Fastify => node(root, "fastify.js", listen),
            Self::Ws => node(root, "ws.js", listen),
            Self::TokioTungstenite
            | Self::TokioTungsteniteChat
            | Self::Fastwebsockets
            | Self::Epoll => (words(&format!("serve {} {listen}", self.name())), None),
        };
        let program = self.program(root).display().to_string();
        let pinned = setup
            .cpu
            .map_or_else(Vec::new, |cpu| words(&format!("taskset -c {cpu}")));
        Invocation {
            words: pinned.into_iter().chain([program]).chain(args).collect(),
            config,
        }
    }

    /// Starts it, and waits until an upgrade on `path` is answered with 101.
    ///
    /// # Errors
    /// It cannot be started, ended by itself, or is not ready in time; with the end of its log.
    pub fn start(self, root: &Path, setup: &Setup, path: &str) -> Result<process::Running> {
        let invocation = self.invocation(root, setup);
        process::Running::start(&invocation, setup.listen, path)
            .with_context(|| format!("{} does not run", self.name()))
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.name()
    }
}

impl TryFrom<String> for Subject {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        <Self as ValueEnum>::from_str(&name, false)
    }
}

type Call = (Vec<String>, Option<(&'static str, String)>);

fn pointsman(setup: &Setup, job: Job) -> Call {
    let config = configs::pointsman(setup, job);
    let args = words("run --config pointsman.toml --log-level warn");
    (args, Some(("pointsman.toml", config)))
}

fn nginx(config: String) -> Call {
    let args = words("-e stderr -p . -c nginx.conf");
    (args, Some(("nginx.conf", config)))
}

fn node(root: &Path, script: &str, listen: SocketAddr) -> Call {
    let script = root.join("bench/node").join(script);
    (
        vec![script.display().to_string(), listen.port().to_string()],
        None,
    )
}

/// Debian puts servers where the `PATH` of other users than root does not lead.
fn in_path_or_sbin(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_in_path = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    if !is_in_path && sbin.is_file() {
        return sbin;
    }
    PathBuf::from(name)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(subject: Subject, cpu: Option<usize>) -> String {
        let setup = Setup {
            listen: ([127, 0, 0, 1], 8001).into(),
            admin: ([127, 0, 0, 1], 8002).into(),
            backends: vec![([127, 0, 0, 1], 9001).into()],
            workers: 2,
            cpu,
            plugins: None,
            has_access_log: false,
        };
        subject
            .invocation(Path::new("/root"), &setup)
            .words
            .join(" ")
    }

    #[test]
    fn a_pinned_subject_is_started_by_taskset() {
        let free = line(Subject::Envoy, None);
        assert!(
            free.starts_with("/root/target/bench/venv/bin/envoy -c envoy.json --concurrency 2")
        );
        assert_eq!(
            line(Subject::Envoy, Some(0)),
            format!("taskset -c 0 {free}")
        );
    }

    #[test]
    fn echo_servers_are_told_where_to_listen() {
        assert_eq!(line(Subject::Ws, None), "node /root/bench/node/ws.js 8001");
        assert!(line(Subject::Epoll, None).ends_with("serve epoll 127.0.0.1:8001"));
    }
}
