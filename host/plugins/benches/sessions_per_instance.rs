//! What does it cost that an instance of a plugin holds few sessions? Prints, for each bound, what an idle
//! session takes of memory, what opening one takes, and what a message takes if every session gets one in
//! turn.
//!
//! `cargo bench --bench sessions_per_instance`, after `cargo xtask build` has made the shipped plugins. Each
//! row is measured in a process of its own, because memory that was given back once costs less.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, who see its panics"
)]

use std::error::Error;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
use std::{env, fs};

use pointsman_config::{self as config, PluginSettings};
use pointsman_contract::handler::{Facts, Handler, HandlerSession};
use pointsman_contract::message::Received;
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::{Inbox, QueueSettings, outbox};
use pointsman_contract::session::SessionId;
use pointsman_plugins::generation::GenerationSource;
use pointsman_plugins::limits::Limits;
use pointsman_plugins::registry::{Loaded, Registry};

/// What each plugin is shown, as an ordinary message.
const PLUGINS: [(&str, &str); 2] = [
    ("echo", "hello"),
    ("chat", r#"{"type":"say","text":"hello"}"#),
];
const BOUNDS: [usize; 9] = [1, 4, 8, 16, 32, 64, 128, 256, 1024];
const N_SESSIONS: u32 = 8192;
const ROUNDS: u32 = 8;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<_> = env::args().collect();
    if let [_, plugin, bound] = &args[..]
        && let Ok(bound) = bound.parse()
    {
        return measure(plugin, bound);
    }
    println!("{N_SESSIONS} sessions, each of another client");
    println!("plugin  sessions/instance  bytes/session  mappings/instance  open ns  message ns");
    for (plugin, _) in PLUGINS {
        for bound in BOUNDS {
            let program = env::current_exe()?;
            let ended = Command::new(program)
                .args([plugin, &bound.to_string()])
                .status()?;
            if !ended.success() {
                return Err("a measurement failed".into());
            }
        }
    }
    Ok(())
}

fn measure(plugin: &str, sessions_per_instance: usize) -> Result<()> {
    let settings = config::Plugins {
        dir: None,
        call_timeout: Duration::from_secs(1),
        memory_max_bytes: 16 << 20,
        compile_timeout: Duration::from_secs(60),
        http: config::HttpLimitsConfig::default(),
    };
    let (mut registry, _failures) = Registry::new(Limits::new(&settings).into(), &[])?;
    let host = registry.host(0);
    let name = PluginName::parse(plugin).unwrap();
    let Loaded::New(generation) =
        registry.load(&name, shipped(plugin)?, GenerationSource::Embedded)?
    else {
        return Err("nothing serves yet".into());
    };
    let settings = PluginSettings {
        sessions_per_instance,
        ..PluginSettings::default()
    };
    let handler = generation.handler(&settings, &host)?;

    let before = (resident_bytes()?, n_mappings()?);
    let began = Instant::now();
    let mut sessions = Vec::with_capacity(N_SESSIONS as usize);
    for n in 0..N_SESSIONS {
        let (outbox, inbox) = outbox(QueueSettings::default());
        let mut session = handler.open(&facts(n), outbox)?;
        black_box(session.opened()?);
        sessions.push((session, inbox));
    }
    let open_ns = began.elapsed().as_nanos() / u128::from(N_SESSIONS);
    take_all(&mut sessions);
    let after = (resident_bytes()?, n_mappings()?);

    let (_, text) = PLUGINS
        .into_iter()
        .find(|(name, _)| *name == plugin)
        .unwrap();
    let mut best_ns = u128::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for (session, _) in &mut sessions {
            black_box(session.message(Received::Text(text)).unwrap());
        }
        best_ns = best_ns.min(began.elapsed().as_nanos() / u128::from(N_SESSIONS));
        take_all(&mut sessions);
    }
    let n_instances = (N_SESSIONS as usize).div_ceil(sessions_per_instance);
    let bytes = (after.0 - before.0) / u64::from(N_SESSIONS);
    let mappings = (after.1 - before.1) as f64 / n_instances as f64;
    println!(
        "{plugin:<6}  {sessions_per_instance:>17}  {bytes:>13}  {mappings:>17.1}  {open_ns:>7}  {best_ns:>10}"
    );
    Ok(())
}

/// What the sessions' tasks would do.
fn take_all(sessions: &mut [(Box<dyn HandlerSession>, Inbox)]) {
    let cx = Context::from_waker(Waker::noop());
    for (_, inbox) in sessions {
        while inbox.poll_next(&cx).is_ready() {}
    }
}

fn facts(n: u32) -> Facts {
    Facts {
        session: SessionId(u64::from(n) + 1),
        route: "/".to_owned(),
        client_ip: IpAddr::V4(Ipv4Addr::from(n.to_be_bytes())),
        is_suspect: false,
        host: "app.example.org".to_owned(),
        // For `chat`: four are in a room.
        path: format!("/?room=r{}", n / 4),
        request_id: "0123456789abcdef".to_owned(),
        max_message_bytes: 1 << 20,
        offered_subprotocols: vec![],
        subprotocol: None,
        headers: vec![],
    }
}

fn shipped(plugin: &str) -> Result<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins");
    let path = folder.join(plugin).with_extension("wasm");
    fs::read(&path).map_err(|error| {
        format!("{}: {error}; `cargo xtask build` makes it", path.display()).into()
    })
}

/// See proc(5).
fn resident_bytes() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).ok_or("no second field")?.parse()?;
    Ok(pages * 4096)
}

fn n_mappings() -> Result<usize> {
    Ok(fs::read_to_string("/proc/self/maps")?.lines().count())
}
