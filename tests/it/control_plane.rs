//! The promise: whatever a reload has to compile, try or wait for, the control plane goes on: probes and orders are
//! answered, backends are followed, a drain begins at once, and the newest configuration wins.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Client, Edit as _, PATIENCE, Wire, app, binary, eventually, get, guests,
    in_time, own_address,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;

/// For a compiler on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(120);

/// The median of what probes may take.
const PROBE: Duration = Duration::from_millis(50);

/// A policy of more than 1 MB that nobody has compiled before, so that no cache has it.
fn large() -> Result<Vec<u8>> {
    let plugin = guests::policy_of_many_functions(1250)?;
    ensure!(plugin.len() > 1 << 20, "{} bytes", plugin.len());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(guests::marked(&plugin, now.subsec_nanos()))
}

/// One more upstream, which gets no requests, by the policy of a file.
fn other(policy: &str) -> String {
    format!(
        "\n[[upstream]]\nname = \"other\"\npolicy = \"{policy}\"\nbackends = [\"127.0.0.1:1\"]\n"
    )
}

/// The same, and each call of the policy may take so long.
fn patient(policy: &str, call_timeout_ms: u32) -> String {
    format!(
        "{}[plugin.{policy}]\ncall_timeout_ms = {call_timeout_ms}\n",
        other(policy)
    )
}

async fn reloads(balancer: &Balancer, result: &str) -> Result<f64> {
    let labels = [("kind", "config"), ("result", result)];
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum("pointsman_reloads_total", &labels))
}

/// Waits until the compiler is at work on what a reload needs.
async fn compiles(balancer: &Balancer) -> Result<()> {
    eventually("a compiler runs", PATIENCE, async || {
        balancer
            .children()
            .is_ok_and(|children| !children.is_empty())
    })
    .await?;
    Ok(())
}

/// Probes again and again until a reload has this result: none is held up.
async fn probes_are_answered_until(balancer: &Balancer, result: &str) -> Result<()> {
    let began = Instant::now();
    let mut took = Vec::new();
    let mut worst = Duration::ZERO;
    loop {
        let asked = Instant::now();
        let health = balancer.admin_get("/healthz").await?;
        took.push(asked.elapsed());
        assert_eq!(health.status, 200);
        let is_over = reloads(balancer, result).await? == 1.0;
        // The page of the metrics waits no less than a probe.
        worst = worst.max(asked.elapsed());
        if is_over {
            break;
        }
        ensure!(began.elapsed() < LONG, "the reload does not end");
    }
    let whole = began.elapsed();
    took.sort();
    let median = took[took.len() / 2];
    let n = took.len();
    eprintln!("{n} probes in {whole:?}: median {median:?}, worst {worst:?}");
    ensure!(n > 20, "only {n} probes were answered");
    ensure!(median < PROBE, "the median of {n} probes is {median:?}");
    ensure!(worst < whole / 4, "one of {whole:?} took {worst:?}");
    Ok(())
}

fn backends_of(status: &Value) -> usize {
    let backends = status["upstreams"][0]["backends"].as_array();
    backends.map_or(0, Vec::len)
}

#[tokio::test]
async fn probes_and_orders_are_answered_while_a_reload_compiles_a_large_plugin() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = app("round_robin", &addresses);
    let plugins = [("large", &*large()?)];
    let balancer = Balancer::start_with_plugins(&toml, &plugins).await?;

    balancer.reload(&format!("{toml}{}", other("large")))?;
    compiles(&balancer).await?;
    let drained = format!("/api/drain?upstream=app&backend={}", addresses[0]);
    assert_eq!(balancer.order("POST", &drained).await?.status, 200);
    let is_drained = async || {
        let status = balancer.status().await?;
        Ok::<_, anyhow::Error>(status["upstreams"][0]["backends"][0]["state"] == "draining")
    };
    assert!(is_drained().await?);
    assert_eq!(reloads(&balancer, "ok").await?, 0.0, "it is under way");
    probes_are_answered_until(&balancer, "ok").await?;
    assert_eq!(balancer.generation("large").await?, 1);
    assert!(is_drained().await?, "what was ordered meanwhile holds");
    Ok(())
}

#[tokio::test]
async fn a_plugin_that_takes_long_to_try_holds_up_no_probe() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let plugins = [("stuck", &*guests::policy_that_loops_in_configure()?)];
    let balancer = Balancer::start_with_plugins(&toml, &plugins).await?;
    balancer.reload(&format!("{toml}{}", patient("stuck", 3000)))?;
    probes_are_answered_until(&balancer, "failed").await?;
    let said = balancer.plugin("stuck").await?["last_error"].to_string();
    assert!(said.contains("configure"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_drain_begins_at_once_and_ends_a_reload_that_is_under_way() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = "drain_timeout_secs = 3\n".to_owned() + &app("round_robin", &[backend.address()]);
    let plugins = [("stuck", &*guests::policy_that_loops_in_configure()?)];
    let mut balancer = Balancer::start_with_plugins(&toml, &plugins).await?;
    // It does not answer the Close, so the process is there to be asked.
    let _deaf = Client::connect(&balancer.url("/websocket")).await?;
    let cpu = async || {
        let metrics = balancer.metrics().await?;
        Ok::<_, anyhow::Error>(metrics.sum("process_cpu_seconds_total", &[]))
    };

    let before = cpu().await?;
    balancer.write_config(&format!("{toml}{}", patient("stuck", 10_000)))?;
    let draining = async {
        eventually("the plugin is being tried", PATIENCE, async || {
            cpu().await.is_ok_and(|now| now > before + 0.5)
        })
        .await?;
        balancer.signal(Signal::TERM)?;
        let asked = Instant::now();
        eventually("/readyz answers 503", PATIENCE / 2, async || {
            let ready = balancer.admin_get("/readyz").await;
            ready.is_ok_and(|answer| answer.status == 503)
        })
        .await?;
        Ok::<_, anyhow::Error>(asked)
    };
    let (answer, asked) = tokio::join!(balancer.order("POST", "/api/reload"), draining);
    let (answer, asked) = (answer?, asked?);
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("being drained"), "{}", answer.text());
    let ended = balancer.wait_exit(PATIENCE).await?;
    assert_eq!(ended.code(), Some(0));
    assert!(asked.elapsed() < PATIENCE, "took {:?}", asked.elapsed());
    Ok(())
}

#[tokio::test]
async fn of_two_reloads_the_newest_content_is_in_force_in_the_end() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let plugins = [("large", &*large()?)];
    let balancer = Balancer::start_with_plugins(&toml, &plugins).await?;
    balancer.reload(&format!("{toml}{}", other("large")))?;
    compiles(&balancer).await?;
    balancer.write_config(&toml.replace_once("round_robin", "random"))?;
    let admin = balancer.admin_address();
    let mut second = Wire::connect(admin).await?;
    second
        .send(format!(
            "POST /api/reload HTTP/1.1\r\nHost: {admin}\r\n\r\n"
        ))
        .await?;
    assert_eq!(
        reloads(&balancer, "ok").await?,
        0.0,
        "the first is under way"
    );
    eventually("both are done", LONG, async || {
        reloads(&balancer, "ok").await.is_ok_and(|n| n == 2.0)
    })
    .await?;
    assert_eq!(second.answer().await?.status, 200);
    let status = balancer.status().await?;
    assert_eq!(status["upstreams"][0]["policy"]["name"], "random");
    assert_eq!(status["upstreams"][1], Value::Null);
    assert_eq!(
        balancer.generation("large").await?,
        1,
        "the first was taken"
    );
    Ok(())
}

#[tokio::test]
async fn backends_that_are_found_while_a_reload_compiles_stay() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let all: Vec<_> = backends.iter().map(Backend::address).collect();
    let list = |backends: &[SocketAddr]| -> String {
        let names: Vec<_> = backends.iter().map(|b| format!("\"{b}\"")).collect();
        format!("[{}]", names.join(", "))
    };
    let folder = TempDir::new()?;
    let file = folder.path().join("backends.json");
    fs::write(&file, list(&all[..2]))?;
    let toml = format!(
        "[[upstream]]\nname = \"app\"\nbackends_file = \"{}\"\n[[route]]\npath = \"/*\"\nupstream = \"app\"\n",
        file.display()
    );
    let plugins = [("large", &*large()?)];
    let balancer = Balancer::start_with_plugins(&toml, &plugins).await?;
    balancer.reload(&format!("{toml}{}", other("large")))?;
    compiles(&balancer).await?;
    fs::write(&file, list(&all))?;
    let known = async || {
        balancer
            .status()
            .await
            .map_or(0, |status| backends_of(&status))
    };
    eventually("three backends", PATIENCE, async || known().await == 3).await?;
    assert_eq!(reloads(&balancer, "ok").await?, 0.0, "it is under way");
    eventually("the reload is done", LONG, async || {
        reloads(&balancer, "ok").await.is_ok_and(|n| n == 1.0)
    })
    .await?;
    assert_eq!(known().await, 3);
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_never_comes_is_given_up() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let mut balancer = Balancer::start(&toml).await?;
    let file = balancer.config_file();
    let silent = file.with_file_name("silent");
    let made = Command::new("mkfifo").arg(&silent).status();
    ensure!(in_time("mkfifo", made).await?.success());
    fs::rename(&silent, &file)?;
    balancer.signal(Signal::HUP)?;
    probes_are_answered_until(&balancer, "failed").await?;
    balancer.logs("no answer from the disk").await?;

    fs::remove_file(&file)?;
    balancer.reload(&toml.replace_once("round_robin", "random"))?;
    eventually("the next is taken", PATIENCE, async || {
        reloads(&balancer, "ok").await.is_ok_and(|n| n == 1.0)
    })
    .await?;
    balancer.signal(Signal::TERM)?;
    let ended = balancer.wait_exit(PATIENCE).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_change_during_the_start_is_not_missed() -> Result<()> {
    let backend = Backend::start().await?;
    let folder = TempDir::new()?;
    let plugins = folder.path().join("plugins");
    fs::create_dir(&plugins)?;
    fs::write(plugins.join("large.wasm"), large()?)?;
    let admin = own_address();
    let first = format!(
        "workers = 2\n{}{}[admin]\nlisten = \"{admin}\"\n[[listener]]\nbind = \"127.0.0.1:0\"\n[plugins]\ndir = \"{}\"\n",
        app("round_robin", &[backend.address()]),
        other("large"),
        plugins.display()
    );
    let file = folder.path().join("pointsman.toml");
    fs::write(&file, &first)?;
    let process = Command::new(binary())
        .args(["run", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let id = process.id().context("it runs")?;
    let children = format!("/proc/{id}/task/{id}/children");
    eventually(
        "the file is read, and the plugin compiled",
        PATIENCE,
        async || fs::read_to_string(&children).is_ok_and(|children| !children.is_empty()),
    )
    .await?;
    let second = first.replace_once("round_robin", "random");
    fs::write(&file, second)?;
    eventually("the change is in force", LONG, async || {
        let Ok(answer) = get(admin, "/api/status").await else {
            return false;
        };
        let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        status["upstreams"][0]["policy"]["name"] == "random"
    })
    .await?;
    Ok(())
}
