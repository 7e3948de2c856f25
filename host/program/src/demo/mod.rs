//! `pointsman demo`: shows the balancer at work, and a policy swapped under live sockets.
//!
//! Backends, balancer and clients run in this process, on ports of this machine. Everything that
//! is shown is checked as well: what is not as it should be ends the demo with an error, so that
//! `--once` is a test of an installation. It uses the other rooms as any program would, by
//! [`Server::start`](crate::server::Server::start) and the status page.

mod backend;
mod client;
mod error;
mod stage;

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write as _};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

pub use self::client::Tally;
pub use self::error::DemoError;

use pointsman_log::ErrorLog;

use self::client::{Crowd, PACE};
use self::stage::{POLICY, Stage};

/// Sockets that are open during the swap. Each takes four descriptors of this process, and many
/// systems give it 1024.
const N_LIVE: usize = 100;

/// Messages that each of them gets round after the swap before it counts as alive.
const N_ECHOES_AFTER: u64 = 10;

/// For every step; a step that takes longer will not end at all.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks for what a person has done to the plugin folder.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Shows it all. Then it ends, where `once` is set, or stays until SIGINT or SIGTERM, for a person
/// to try things. Runs on a `LocalSet`.
///
/// # Errors
/// See [`DemoError`]. Whatever was started is ended, and the temporary folder removed.
///
/// # Cancel safety
/// Dropping it ends everything.
pub async fn run(once: bool, error_log: ErrorLog) -> Result<(), DemoError> {
    let mut signals = StopSignals::listen()?;
    let stage = Stage::set(error_log).await?;
    let crowd = tokio::select! {
        shown = show(&stage) => shown?,
        () = signals.any() => return Err(DemoError::Interrupted),
    };
    if !once {
        suggest(&stage)?;
        tokio::select! {
            never = tell_changes(&stage) => match never? {},
            () = signals.any() => say("")?,
        }
        say(format_args!("until now: {}", crowd.tally()))?;
    }

    undisturbed(crowd.end().await?)?;
    stage.end().await?;
    say("The sockets are closed, and the balancer has drained and stopped.")
}

/// The story, up to the swap. The sockets that lived through it talk on.
async fn show(stage: &Stage) -> Result<Crowd, DemoError> {
    introduce(stage)?;

    say("1. The policy round_robin takes the backends in turn.\n")?;
    place(stage, "abcabcabc").await?;

    let crowd = fill(stage).await?;
    say("   Round robin pays no heed to that:\n")?;
    place(stage, "abc").await?;

    say("3. Another policy, least_connections, is renamed into its place:")?;
    say(format_args!("   {}", stage.folder.policy_file().display()))?;
    let took = stage.swap_policy("least_connections").await?;
    say(format_args!(
        "   It serves {} ms after the rename. New connections go where the fewest are:\n",
        took.as_millis()
    ))?;
    place(stage, "ccccccccc").await?;

    in_time("echoes after the swap", async {
        crowd.go_on(N_ECHOES_AFTER).await;
        Ok(())
    })
    .await?;
    let tally = undisturbed(crowd.tally())?;
    say(format_args!(
        "{} sockets live through the swap: {tally}",
        tally.sockets
    ))?;
    Ok(crowd)
}

fn introduce(stage: &Stage) -> Result<(), DemoError> {
    say("Three backends, a balancer and its clients, all in this process.\n")?;
    for backend in &stage.backends {
        say(format_args!(
            "   backend {}  {}",
            backend.name, backend.address
        ))?;
    }
    say(format_args!("   balancer   {}", stage.address))?;
    say(format_args!(
        "   plugins    {}",
        stage.folder.plugins().display()
    ))?;
    say("\nThe balancer's configuration:\n")?;
    for line in stage.toml.lines() {
        let indented = format!("   {line}");
        say(indented.trim_end())?;
    }
    say("")
}

/// Opens connections one after the other; each has to go to the backend that is expected.
async fn place(stage: &Stage, expected: &str) -> Result<(), DemoError> {
    let mut clients = Vec::new();
    for (number, expected) in (1..).zip(expected.chars()) {
        let client = stage.connect().await?;
        let found = client.backend;
        say(format_args!("   connection {number} -> {found}"))?;
        if found != expected {
            return Err(DemoError::Misplaced { expected, found });
        }
        clients.push(client);
    }
    for client in clients {
        client.close().await?;
    }
    say("")
}

/// Opens sockets on a and b only: those that round robin places on c are closed again. So the load
/// is unequal, as it is when a backend has been restarted.
async fn fill(stage: &Stage) -> Result<Crowd, DemoError> {
    let mut crowd = Crowd::new();
    for _ in 0..N_LIVE * 3 / 2 {
        let client = stage.connect().await?;
        match client.backend {
            'c' => client.close().await?,
            _ => crowd.add(client),
        }
    }
    let half = N_LIVE as u64 / 2;
    stage.has_sessions(&[half, half, 0]).await?;
    say(format_args!(
        "2. {N_LIVE} sockets each send a numbered message every {} ms, and check its echo.",
        PACE.as_millis()
    ))?;
    say("   Those that came to c have left, as if it had been restarted.\n")?;
    say(format_args!("   open: {half} on a, {half} on b, 0 on c\n"))?;
    Ok(crowd)
}

fn suggest(stage: &Stage) -> Result<(), DemoError> {
    stage.folder.unpack()?;
    let folder = stage.folder.path().display();
    let admin = stage.admin;
    let program = std::env::current_exe().unwrap_or_else(|_| "pointsman".into());
    let program = program.display();
    say(format_args!(
        "
The sockets talk on, until Ctrl-C. Meanwhile, in another terminal:

   cd {folder}
   cp shipped/random.wasm plugins/{POLICY}.wasm     # another policy
   echo nonsense > plugins/{POLICY}.wasm            # no policy at all
   rm plugins/{POLICY}.wasm                         # back to the embedded one
   {program} status --admin {admin}
   curl http://{admin}/metrics

What becomes of the policy is told here, with nine new connections each time:
"
    ))
}

/// Watches the policy, and shows where each new generation of it places connections.
async fn tell_changes(stage: &Stage) -> Result<Infallible, DemoError> {
    let mut last = stage::policy(&stage.status().await?)?.clone();
    loop {
        sleep(LOOK_PAUSE).await;
        let now = stage::policy(&stage.status().await?)?.clone();
        let generation = now.generation;
        if generation != last.generation {
            let placed = match sample(stage).await {
                Ok(names) => names,
                Err(error) => error.to_string(),
            };
            say(format_args!(
                "generation {generation} of {POLICY} decides: {placed}"
            ))?;
        }
        if let Some(error) = now
            .last_error
            .as_ref()
            .filter(|_| now.last_error != last.last_error)
        {
            say(format_args!(
                "generation {generation} of {POLICY} goes on: {error}"
            ))?;
        }
        last = now;
    }
}

/// Where nine new connections go.
async fn sample(stage: &Stage) -> Result<String, DemoError> {
    let mut clients = Vec::new();
    for _ in 0..9 {
        clients.push(stage.connect().await?);
    }
    let names: Vec<_> = clients
        .iter()
        .map(|client| client.backend.to_string())
        .collect();
    for client in clients {
        client.close().await?;
    }
    Ok(names.join(" "))
}

fn undisturbed(tally: Tally) -> Result<Tally, DemoError> {
    match tally.is_undisturbed() {
        true => Ok(tally),
        false => Err(DemoError::Disturbed(tally)),
    }
}

/// One line for the person.
fn say(line: impl fmt::Display) -> Result<(), DemoError> {
    writeln!(io::stdout().lock(), "{line}").map_err(DemoError::Print)
}

/// `what` completes "was not done in time".
async fn in_time<T>(
    what: &'static str,
    step: impl Future<Output = Result<T, DemoError>>,
) -> Result<T, DemoError> {
    let done = timeout(STEP_DEADLINE, step).await;
    done.unwrap_or(Err(DemoError::TooSlow(what)))
}

/// What ends the demo: Ctrl-C, and what a supervisor sends.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn listen() -> Result<Self, DemoError> {
        let listen = |kind| signal(kind).map_err(DemoError::Signal);
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Cancel safe.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
