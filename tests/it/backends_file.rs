//! The promise: a watched file of backends is followed, in TOML and JSON, and a change touches only
//! the backends that it changes.

use std::fs;
use std::net::SocketAddr;

use anyhow::Result;
use pointsman_tests::{Backend, Balancer, Chatter, Client, Edit, PATIENCE, eventually};
use tempfile::TempDir;

const SITE: &str = r#"
drain_timeout_secs = 1
[[upstream]]
name = "app"
backends_file = "FILE"
[[route]]
path = "/*"
upstream = "app"
"#;

fn json(backends: &[SocketAddr]) -> String {
    let names: Vec<_> = backends.iter().map(|b| format!("\"{b}\"")).collect();
    format!("[{}]", names.join(", "))
}

async fn is_known(balancer: &Balancer, n: usize) -> Result<()> {
    eventually(format!("{n} backends"), PATIENCE, async || {
        let status = balancer.status().await.unwrap_or_default();
        let backends = status["upstreams"][0]["backends"].as_array().cloned();
        backends.is_some_and(|backends| backends.len() == n)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn what_the_file_says_is_followed_and_touches_nobody_else() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let all: Vec<_> = backends.iter().map(Backend::address).collect();
    let folder = TempDir::new()?;
    let file = folder.path().join("backends.json");
    fs::write(&file, json(&all[..2]))?;
    let site = SITE.replace_once("FILE", &file.display().to_string());
    let balancer = Balancer::start(&site).await?;
    let stays = Client::connect(&balancer.url("/websocket")).await?;
    let mut goes = Client::connect(&balancer.url("/websocket")).await?;
    assert_eq!((stays.backend()?, goes.backend()?), (all[0], all[1]));

    // One comes.
    fs::write(&file, json(&all))?;
    is_known(&balancer, 3).await?;
    goes.echo_text("nothing has happened to me").await?;
    // One goes: its sockets are told to come again, the others hear nothing.
    fs::write(&file, json(&[all[0], all[2]]))?;
    assert_eq!(goes.close_code().await?, Some(1012));
    is_known(&balancer, 2).await?;
    for _ in 0..4 {
        let client = Client::connect(&balancer.url("/websocket")).await?;
        assert_ne!(client.backend()?, all[1]);
    }
    let mut stays = stays;
    stays.echo_text("here all the time").await
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing() -> Result<()> {
    let backend = Backend::start().await?;
    let folder = TempDir::new()?;
    let file = folder.path().join("backends.toml");
    let good = format!("backends = [\"{}\"]", backend.address());
    fs::write(&file, &good)?;
    let site = SITE.replace_once("FILE", &file.display().to_string());
    let balancer = Balancer::start(&site).await?;
    let chatter = Chatter::start(5, &balancer.url("/websocket")).await?;
    let failed = async || {
        let failed = [("kind", "backends"), ("result", "failed")];
        let metrics = balancer.metrics().await?;
        anyhow::Ok(metrics.sum("pointsman_reloads_total", &failed))
    };
    let wrong = [
        ("backends = [5]", "backends[0]: 5 is not allowed"),
        ("weights = 5", "weights: unknown key"),
        ("{\"backends\": ", "not valid JSON"),
        ("[]", "[] is not allowed: at least one backend"),
        ("", "missing: at least one backend"),
    ];
    for (i, (text, logged)) in wrong.into_iter().enumerate() {
        fs::write(&file, text)?;
        let what = format!("{logged} in the log, and a failure counted");
        eventually(what, PATIENCE, async || {
            let is_counted = failed().await.is_ok_and(|n| n == i as f64 + 1.0);
            is_counted && balancer.log().iter().any(|line| line.contains(logged))
        })
        .await?;
    }
    fs::remove_file(&file)?;
    eventually("that it is gone in the log", PATIENCE, async || {
        balancer
            .log()
            .iter()
            .any(|line| line.contains("file of backends is gone"))
    })
    .await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("those found last stay").await?;
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_file_without_backends_is_obeyed_where_it_says_that_it_means_it() -> Result<()> {
    let backend = Backend::start().await?;
    let folder = TempDir::new()?;
    let file = folder.path().join("backends.json");
    fs::write(&file, json(&[backend.address()]))?;
    let site = SITE.replace_once("FILE", &file.display().to_string());
    let balancer = Balancer::start(&site).await?;
    let mut session = Client::connect(&balancer.url("/websocket")).await?;
    fs::write(&file, "{\"backends\": [], \"allow_empty\": true}")?;
    assert_eq!(session.close_code().await?, Some(1012));
    is_known(&balancer, 0).await
}

#[tokio::test]
async fn a_file_that_is_wrong_at_the_start_is_a_problem_of_its_key() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("none.toml");
    let site = SITE.replace_once("FILE", &file.display().to_string());
    let error = Balancer::start(&site).await.expect_err("there is no file");
    let said = format!("{error:#}");
    assert!(said.contains("upstream[0].backends_file"), "{said}");
    Ok(())
}
