//! The promise: what is wrong is in the status, its exit code, its JSON and the metrics, from its beginning
//! until it is over.

use std::fs;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Client, Edit, NOBODY, PATIENCE, app, eventually, pointsman,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// What the status lists of one kind: name and message.
async fn problems(balancer: &Balancer, kind: &str) -> Result<Vec<(String, String)>> {
    let status = balancer.status().await?;
    let all = status["problems"].as_array().context("no problems")?;
    let text = |problem: &Value, key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    let of_kind = all.iter().filter(|problem| problem["kind"] == kind);
    Ok(of_kind
        .map(|p| (text(p, "name"), text(p, "message")))
        .collect())
}

/// Waits until there is one problem, of this kind, and checks that everything says so. Returns its name.
async fn is_told(balancer: &Balancer, kind: &str, says: &str) -> Result<String> {
    let mut found = Vec::new();
    eventually(format!("{kind}: {says}"), PATIENCE, async || {
        found = problems(balancer, kind).await.unwrap_or_default();
        found.iter().any(|(_, message)| message.contains(says))
    })
    .await
    .with_context(|| format!("found {found:?}"))?;
    let n = balancer
        .metrics()
        .await?
        .sum("pointsman_problems", &[("kind", kind)]);
    assert_eq!(n, found.len() as f64, "{found:?}");

    let admin = balancer.admin_address().to_string();
    let json = pointsman(&["status", "--admin", &admin, "--json"]).await?;
    assert_eq!(json.code, Some(1), "{json:?}");
    let status: Value = serde_json::from_str(&json.stdout)?;
    let since = status["problems"][0]["since"]
        .as_str()
        .context("no since")?
        .to_owned();
    ensure!(since.ends_with('Z') && since.contains('T'), "{since}");
    let text = pointsman(&["status", "--admin", &admin]).await?;
    assert_eq!(text.code, Some(1), "{text:?}");
    let (head, _) = text.stdout.split_once("UPSTREAM").context("no tables")?;
    ensure!(
        head.contains("PROBLEMS") && head.contains(says) && head.contains(&since),
        "{}",
        text.stdout
    );
    ensure!(text.stderr.contains("problem"), "{text:?}");
    found.pop().map(|(name, _)| name).context("it was there")
}

/// Waits until nothing is wrong.
async fn is_over(balancer: &Balancer) -> Result<()> {
    let mut status = Value::Null;
    eventually("no problems", PATIENCE, async || {
        status = balancer.status().await.unwrap_or_default();
        status["problems"].as_array().is_some_and(Vec::is_empty)
    })
    .await
    .with_context(|| format!("{:#}", status["problems"]))?;
    assert_eq!(
        balancer.metrics().await?.sum("pointsman_problems", &[]),
        0.0
    );
    let admin = balancer.admin_address().to_string();
    let ended = pointsman(&["status", "--admin", &admin]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ensure!(ended.stdout.contains("no problems"), "{ended:?}");
    Ok(())
}

/// `0` or `1`, and when the configuration was last in force.
async fn last_reload(balancer: &Balancer) -> Result<(f64, f64)> {
    let metrics = balancer.metrics().await?;
    let timestamp = "pointsman_config_last_reload_success_timestamp_seconds";
    Ok((
        metrics.sum("pointsman_config_last_reload_successful", &[]),
        metrics.sum(timestamp, &[]),
    ))
}

#[tokio::test]
async fn a_refused_configuration_and_one_that_is_gone() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&toml).await?;
    is_over(&balancer).await?;
    let (is_successful, started) = last_reload(&balancer).await?;
    ensure!(is_successful == 1.0 && started > 1e9, "{started}");

    balancer.reload(&format!("wokers = 1\n{toml}\ncolour = 2\n"))?;
    let name = is_told(&balancer, "config", "wokers: unknown key").await?;
    ensure!(name.ends_with("pointsman.toml"), "{name}");
    let found = problems(&balancer, "config").await?;
    assert_eq!(found.len(), 2, "each mistake: {found:?}");
    assert_eq!(last_reload(&balancer).await?, (0.0, started));
    // Writing another refused one keeps its beginning.
    let since = balancer.status().await?["problems"][0]["since"].clone();
    balancer.reload(&format!("workers = 1\n{toml}"))?;
    is_told(&balancer, "config", "workers: cannot change").await?;
    assert_eq!(balancer.status().await?["problems"][0]["since"], since);

    balancer.reload(&toml)?;
    is_over(&balancer).await?;
    let (is_successful, succeeded) = last_reload(&balancer).await?;
    ensure!(is_successful == 1.0 && succeeded > started, "{succeeded}");

    let text = fs::read_to_string(balancer.config_file())?;
    fs::remove_file(balancer.config_file())?;
    is_told(&balancer, "config", "it is gone, the running one stays").await?;
    fs::write(balancer.config_file(), text)?;
    is_over(&balancer).await
}

#[tokio::test]
async fn a_file_of_backends_that_is_empty_or_broken_or_gone_ends_no_session() -> Result<()> {
    let backend = Backend::start().await?;
    let folder = TempDir::new()?;
    let inner = folder.path().join("inner");
    fs::create_dir(&inner)?;
    let file = inner.join("backends.json");
    let good = format!("{{\"backends\": [\"{}\"]}}", backend.address());
    fs::write(&file, &good)?;
    let site = format!(
        "drain_timeout_secs = 1\n[[upstream]]\nname = \"app\"\nbackends_file = \"{}\"\n\
         [[route]]\npath = \"/*\"\nupstream = \"app\"\n",
        file.display()
    );
    let balancer = Balancer::start(&site).await?;
    let mut session = Client::connect(&balancer.url("/websocket")).await?;
    for (text, says) in [
        ("[]", "[] is not allowed: at least one backend"),
        ("", "missing: at least one backend"),
        (&good[..good.len() - 2], "not valid JSON"),
        ("backends = []", "[] is not allowed: at least one backend"),
    ] {
        fs::write(&file, text)?;
        assert_eq!(is_told(&balancer, "backends_file", says).await?, "app");
        session.echo_text("as before").await?;
        fs::write(&file, &good)?;
        is_over(&balancer).await?;
    }
    fs::remove_file(&file)?;
    is_told(&balancer, "backends_file", "is gone: those found last stay").await?;
    fs::write(&file, &good)?;
    is_over(&balancer).await?;
    fs::rename(&inner, folder.path().join("away"))?;
    is_told(&balancer, "backends_file", "cannot be read").await?;
    fs::rename(folder.path().join("away"), &inner)?;
    is_over(&balancer).await?;
    session.echo_text("as before").await?;

    // The file says that it means it.
    fs::write(&file, "{\"backends\": [], \"allow_empty\": true}")?;
    assert_eq!(session.close_code().await?, Some(1012));
    assert_eq!(
        is_told(&balancer, "upstream", "no backend is up").await?,
        "app"
    );
    Ok(())
}

#[tokio::test]
async fn a_name_that_nobody_resolves() -> Result<()> {
    let backend = Backend::start().await?;
    let with_dns = |dns: &str| {
        let key = format!("backends = [\"{}\"]", backend.address());
        let toml = app("round_robin", &[backend.address()]);
        toml.replace_once(&key, &format!("{key}\n{dns}"))
    };
    // Nobody listens there.
    let dead = format!(
        "dns = {{ name = \"app.test\", port = 1, refresh_secs = 1, server = \"{NOBODY}\" }}"
    );
    let balancer = Balancer::start(&with_dns(&dead)).await?;
    assert_eq!(
        is_told(&balancer, "dns", "app.test is not resolved").await?,
        "app"
    );
    balancer.reload(&with_dns(""))?;
    is_over(&balancer).await
}

#[tokio::test]
async fn a_folder_of_plugins_that_is_gone() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&toml).await?;
    let (folder, away) = (
        balancer.plugins_dir(),
        balancer.plugins_dir().with_extension("away"),
    );
    fs::rename(&folder, &away)?;
    let name = is_told(&balancer, "plugins_dir", "cannot be read").await?;
    assert_eq!(name, folder.display().to_string());
    fs::rename(&away, &folder)?;
    is_over(&balancer).await
}

#[tokio::test]
async fn plugins_that_are_refused() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let start = [("broken", &b"no plugin"[..]), ("No Name", b"no plugin")];
    let balancer = Balancer::start_with_plugins(&toml, &start).await?;
    for _ in 0..2 {
        let found = problems(&balancer, "plugin").await?;
        assert_eq!(found.len(), 2, "{found:?}");
        is_told(&balancer, "plugin", "no plugin's name").await?;
        balancer.delete_plugin("No Name")?;
        eventually("one is over", PATIENCE, async || {
            problems(&balancer, "plugin")
                .await
                .is_ok_and(|found| found.len() == 1)
        })
        .await?;
        assert_eq!(
            is_told(&balancer, "plugin", "not loaded: ").await?,
            "broken"
        );
        balancer.delete_plugin("broken")?;
        is_over(&balancer).await?;
        // The same while it runs.
        for (name, bytes) in start {
            balancer.drop_plugin(name, bytes)?;
        }
        eventually("both are told", PATIENCE, async || {
            problems(&balancer, "plugin")
                .await
                .is_ok_and(|found| found.len() == 2)
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn log_files_that_cannot_be_opened_again() -> Result<()> {
    let backend = Backend::start().await?;
    let folder = TempDir::new()?;
    let logs = folder.path().join("logs");
    fs::create_dir(&logs)?;
    let toml = app("round_robin", &[backend.address()]);
    let target = logs.join("access.log").display().to_string();
    let toml = format!("access_log = \"file:{target}\"\n{toml}");
    let balancer = Balancer::start(&toml).await?;
    fs::rename(&logs, folder.path().join("away"))?;
    balancer.signal(Signal::USR1)?;
    is_told(&balancer, "log", "not reopened, the old file stays").await?;
    fs::rename(folder.path().join("away"), &logs)?;
    balancer.signal(Signal::USR1)?;
    is_over(&balancer).await
}

#[tokio::test]
async fn backends_that_are_down() -> Result<()> {
    let mut backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let health =
        "[upstream.health]\nkind = \"tcp\"\ninterval_ms = 20\nfall = 1\nrise = 1\n\n[[route]]";
    let toml = app("round_robin", &addresses).replace_once("[[route]]", health);
    let balancer = Balancer::start(&toml).await?;
    drop(backends.pop());
    let says = format!("backend {} is down", addresses[1]);
    assert_eq!(is_told(&balancer, "backend", &says).await?, "app");
    assert_eq!(problems(&balancer, "upstream").await?, []);
    drop(backends.pop());
    is_told(&balancer, "upstream", "no backend is up").await?;
    let status = balancer.status().await?;
    assert_eq!(status["problems"][0]["kind"], "upstream", "gravest first");
    for address in addresses {
        backends.push(Backend::start_at(address).await?);
    }
    is_over(&balancer).await
}
