//! The promise: whatever becomes of backends and of the network under a thousand sessions, new clients
//! are served while one backend lives, and who has lost its far end hears of it in time.

use std::collections::BTreeSet;
use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, BackendProcess, Balancer, Client, Edit, PATIENCE, Refused, app, eventually, skip,
};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::alone;

const N_SESSIONS: usize = 1000;
const PROGRAM: &str = env!("CARGO_BIN_EXE_echo-backend");

/// When a session ended, and with what.
type Ended = (SocketAddr, Instant, Option<u16>);

/// Open sessions by backend; each that ends says so.
struct Held {
    sessions: JoinSet<Result<Ended>>,
    placed: Vec<SocketAddr>,
}

impl Held {
    async fn open(n: usize, url: &str) -> Result<Self> {
        let mut held = Self {
            sessions: JoinSet::new(),
            placed: Vec::new(),
        };
        let mut opening = JoinSet::new();
        for _ in 0..n {
            if opening.len() >= 50 {
                held.hold(opening.join_next().await.context("50 are opening")??)?;
            }
            let url = url.to_owned();
            opening.spawn(async move { Client::connect(&url).await });
        }
        while let Some(client) = opening.join_next().await {
            held.hold(client?)?;
        }
        Ok(held)
    }

    fn hold(&mut self, client: Result<Client>) -> Result<()> {
        let mut client = client?;
        let backend = client.backend()?;
        self.placed.push(backend);
        self.sessions.spawn(async move {
            // An error is a silence, for which there is no reason to give up.
            loop {
                if let Ok(code) = client.close_code().await {
                    return Ok((backend, Instant::now(), code));
                }
            }
        });
        Ok(())
    }

    fn n_at(&self, backend: SocketAddr) -> usize {
        self.placed.iter().filter(|at| **at == backend).count()
    }

    /// Waits for `n` sessions to end.
    async fn ended(&mut self, n: usize) -> Result<Vec<Ended>> {
        let mut ended = Vec::new();
        let all = async {
            while ended.len() < n {
                let one = self.sessions.join_next().await;
                ended.push(one.context("all have ended")???);
            }
            anyhow::Ok(())
        };
        let in_time = timeout(PATIENCE, all).await;
        in_time.with_context(|| format!("{} of {n} have ended", ended.len()))??;
        Ok(ended)
    }
}

/// Clients that connect the whole time, one after the other.
struct Connectors {
    stop: watch::Sender<bool>,
    running: JoinSet<Result<(u32, Duration)>>,
}

impl Connectors {
    fn start(n: usize, url: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut running = JoinSet::new();
        for _ in 0..n {
            let (url, stopped) = (url.to_owned(), stopped.clone());
            running.spawn(async move {
                let (mut n, mut longest) = (0, Duration::ZERO);
                while !*stopped.borrow() {
                    let began = Instant::now();
                    Client::connect(&url).await?.backend()?;
                    longest = longest.max(began.elapsed());
                    n += 1;
                    sleep(Duration::from_millis(5)).await;
                }
                Ok((n, longest))
            });
        }
        Self { stop, running }
    }

    /// How many handshakes there were, and how long the longest took. An error where one failed.
    async fn stop(mut self) -> Result<(u32, Duration)> {
        self.stop.send_replace(true);
        let (mut total, mut longest) = (0, Duration::ZERO);
        while let Some(one) = self.running.join_next().await {
            let (n, took) = one?.context("a handshake failed")?;
            total += n;
            longest = longest.max(took);
        }
        ensure!(total > 0, "nobody has connected");
        Ok((total, longest))
    }
}

async fn three() -> Result<Vec<BackendProcess>> {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(BackendProcess::start(PROGRAM).await?);
    }
    Ok(backends)
}

fn addresses(backends: &[BackendProcess]) -> Vec<SocketAddr> {
    backends.iter().map(BackendProcess::address).collect()
}

/// How long it takes until a new session lands on this backend.
async fn used_again(balancer: &Balancer, backend: SocketAddr) -> Result<Duration> {
    let url = balancer.url("/websocket");
    let lands = async || {
        let client = Client::connect(&url).await;
        client.is_ok_and(|client| client.backend().is_ok_and(|at| at == backend))
    };
    eventually(format!("{backend} is used again"), PATIENCE, lands).await
}

#[tokio::test]
async fn a_thousand_sessions_and_killed_backends() -> Result<()> {
    let _alone = alone().await;
    let mut backends = three().await?;
    let all = addresses(&backends);
    let balancer = Balancer::start(&app("round_robin", &all)).await?;
    let url = balancer.url("/websocket");
    let mut held = Held::open(N_SESSIONS, &url).await?;

    // One is killed.
    let connectors = Connectors::start(4, &url);
    let killed_at = Instant::now();
    backends.remove(0).kill().await?;
    let n_lost = held.n_at(all[0]);
    ensure!(n_lost > 300, "{n_lost} sessions at the first");
    let ended = held.ended(n_lost).await?;
    let told = latest(&ended, killed_at);
    ensure!(
        told < Duration::from_secs(2),
        "the last heard after {told:?}"
    );
    ensure!(
        ended
            .iter()
            .all(|(at, _, code)| (*at, *code) == (all[0], None)),
        "others have ended, or with a Close"
    );

    // It comes back.
    backends.insert(0, BackendProcess::start_at(PROGRAM, all[0]).await?);
    let again = used_again(&balancer, all[0]).await?;
    ensure!(again < Duration::from_secs(5), "used again after {again:?}");
    let (n, longest) = connectors.stop().await?;
    ensure!(
        held.sessions.try_join_next().is_none(),
        "a session of others ended"
    );

    // All are killed.
    let killed_at = Instant::now();
    for backend in backends {
        backend.kill().await?;
    }
    let ended = held.ended(N_SESSIONS - n_lost).await?;
    let all_told = latest(&ended, killed_at);
    ensure!(
        all_told < Duration::from_secs(2),
        "the last heard after {all_told:?}"
    );
    let began = Instant::now();
    let refused = Client::connect(&url).await.expect_err("nobody is left");
    let refused = refused.downcast::<Refused>()?.status;
    ensure!(matches!(refused, 502 | 503), "{refused}");
    let refused_after = began.elapsed();
    ensure!(refused_after < Duration::from_secs(3), "{refused_after:?}");

    // One comes back.
    let _one = BackendProcess::start_at(PROGRAM, all[1]).await?;
    let back = used_again(&balancer, all[1]).await?;
    ensure!(back < Duration::from_secs(5), "used again after {back:?}");
    eprintln!(
        "{n_lost} of {N_SESSIONS} sessions told within {told:?}, all within {all_told:?}; used again after {again:?}; \
         {n} handshakes meanwhile, none failed, the longest {longest:?}; all dead: {refused} after {refused_after:?}"
    );
    Ok(())
}

fn latest(ended: &[Ended], since: Instant) -> Duration {
    let times = ended.iter().map(|(_, at, _)| at.duration_since(since));
    times.max().unwrap_or_default()
}

#[tokio::test]
async fn a_thousand_sessions_and_a_backend_that_is_stopped() -> Result<()> {
    let _alone = alone().await;
    let backends = three().await?;
    let all = addresses(&backends);
    let toml = app("round_robin", &all)
        .replace_once("policy =", "response_timeout_ms = 500\npolicy =")
        .replace_once("path = \"/*\"", "path = \"/*\"\nping_interval_secs = 1")
        .replace_once(
            "[[route]]",
            "[upstream.health]\nkind = \"websocket\"\npath = \"/websocket\"\ninterval_ms = 200\ntimeout_ms = 300\nrise = 1\nfall = 1\n\n[[route]]",
        );
    let balancer = Balancer::start(&toml).await?;
    let url = balancer.url("/websocket");
    let mut held = Held::open(N_SESSIONS, &url).await?;
    let connectors = Connectors::start(4, &url);
    let stopped_at = Instant::now();
    backends[2].signal(Signal::STOP)?;
    let n_lost = held.n_at(all[2]);
    ensure!(n_lost > 300, "{n_lost} sessions at the third");
    let ended = held.ended(n_lost).await?;
    let told = latest(&ended, stopped_at);
    // An interval until it is asked, one for its answer, and the grain of each.
    ensure!(
        told < Duration::from_secs(4),
        "the last heard after {told:?}"
    );
    ensure!(
        ended
            .iter()
            .all(|(at, _, code)| (*at, *code) == (all[2], Some(1001))),
        "others have ended, or with another code"
    );
    balancer.backend_state(all[2], "down").await?;
    backends[2].signal(Signal::CONT)?;
    let again = used_again(&balancer, all[2]).await?;
    ensure!(again < Duration::from_secs(5), "used again after {again:?}");
    let (n, longest) = connectors.stop().await?;
    eprintln!(
        "{n_lost} sessions at a stopped backend told within {told:?}; used again after {again:?}; \
         {n} handshakes meanwhile, none failed, the longest {longest:?}"
    );
    Ok(())
}

/// In a network of its own, as only root may have one.
#[tokio::test]
async fn a_network_that_drops_everything_is_found_out_by_pings() -> Result<()> {
    let _alone = alone().await;
    let mut may = Command::new("unshare");
    may.args(["--net", "ip", "link", "set", "lo", "up"]);
    if !may.output().await.is_ok_and(|tried| tried.status.success()) {
        skip("no network of its own can be had here");
        return Ok(());
    }
    let inner = "faults::in_a_network_of_its_own";
    let output = Command::new("unshare")
        .args(["--net", "--"])
        .arg(env::current_exe()?)
        .args(["--exact", inner, "--ignored", "--nocapture"])
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
#[ignore = "takes its network down: the test above runs it in one of its own"]
async fn in_a_network_of_its_own() -> Result<()> {
    let _alone = alone().await;
    set_loopback("up").await?;
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()])
        .replace_once("path = \"/*\"", "path = \"/*\"\nping_interval_secs = 1");
    let balancer = Balancer::start(&toml).await?;
    let url = balancer.url("/websocket");
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(&url).await?;
        client.echo_text("hello").await?;
        clients.push(client);
    }
    let ended = || -> Result<usize> {
        let log = balancer.access_log()?;
        let ends = log.iter().filter(|line| line["event"] == "close");
        Ok(ends.count())
    };
    set_loopback("down").await?;
    let took = eventually("all sessions have ended", PATIENCE, async || {
        ended().is_ok_and(|n| n == 20)
    });
    let took = took.await;
    set_loopback("up").await?;
    let took = took?;
    eprintln!("20 sessions without a network ended after {took:?}");
    ensure!(took < Duration::from_secs(9), "after {took:?}");
    let mut landed = BTreeSet::new();
    eventually("new sessions are served", PATIENCE, async || {
        let client = Client::connect(&url).await;
        client.is_ok_and(|client| client.backend().is_ok_and(|at| landed.insert(at)))
    })
    .await?;
    Ok(())
}

async fn set_loopback(state: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    let done = ip.args(["link", "set", "lo", state]).status().await?;
    ensure!(done.success(), "`ip link set lo {state}` fails");
    Ok(())
}
