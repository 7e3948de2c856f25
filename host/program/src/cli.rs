//! The command line: flags in, a [`Command`] out.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use pointsman_plugins::isolated_compile;

/// A WebSocket balancer whose routing policies and message handlers are WebAssembly plugins.
#[derive(Debug, Parser)]
#[command(
    name = "pointsman",
    version,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What a call asks for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve: from a file, or from flags
    Run(Run),
    /// Read a configuration, load every plugin it names, and print all problems
    Check(Check),
    /// Show what is wrong (exit code 1 then), and what runs: upstreams, backends, sessions, plugins
    Status(StatusArgs),
    /// Three backends, the balancer and a client on this machine: rotation, then a live policy swap
    Demo(Demo),
    /// Compile a plugin from stdin into the cache, within bounds: what `run` and `check` call for large ones
    #[command(name = isolated_compile::SUBCOMMAND, hide = true)]
    CompilePlugin,
}

/// `pointsman run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The configuration [default: pointsman.toml, unless --listen is given]
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["listen", "backend", "policy", "plugins", "admin"])]
    pub config: Option<PathBuf>,
    /// Address to listen on, without a file
    #[arg(long, value_name = "ADDR", requires = "backend")]
    pub listen: Option<SocketAddr>,
    /// Address of a backend, HOST:PORT; may be given many times
    #[arg(long, value_name = "ADDR", requires = "listen", num_args = 1..)]
    pub backend: Vec<String>,
    /// Routing policy [default: round_robin]
    #[arg(long, value_name = "NAME", requires = "listen")]
    pub policy: Option<String>,
    /// Folder to watch for plugins
    #[arg(long, value_name = "DIR", requires = "listen")]
    pub plugins: Option<PathBuf>,
    /// Address of metrics and status, on loopback [default: 127.0.0.1:9900]
    #[arg(long, value_name = "ADDR", requires = "listen")]
    pub admin: Option<SocketAddr>,
    /// How much to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::level_filters::LevelFilter,
}

/// `pointsman check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = "pointsman.toml")]
    pub config: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Print whether the running process would take it, what it would change, and how many sessions that ends
    #[arg(long)]
    pub against_running: bool,
    /// Where the running process has its admin address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9900")]
    pub admin: SocketAddr,
    /// Bearer token, where the admin address asks for one
    #[arg(
        long,
        value_name = "TOKEN",
        env = "POINTSMAN_ADMIN_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
}

/// `pointsman status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where the running process has its admin address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9900")]
    pub admin: SocketAddr,
    /// Bearer token, where the admin address asks for one
    #[arg(
        long,
        value_name = "TOKEN",
        env = "POINTSMAN_ADMIN_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pointsman demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// End by itself, with exit code 0 if everything went as it should
    #[arg(long)]
    pub once: bool,
}
