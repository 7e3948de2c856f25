//! The promise: with `sticky`, a Socket.IO client's polling requests and its WebSocket reach one server,
//! and when that is taken out, the client comes back on another.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Balancer, Edit, NodeServers, example, in_time, node, script};
use tokio::io::{AsyncBufReadExt, BufReader};

async fn behind(servers: &NodeServers) -> Result<Balancer> {
    Balancer::start(&site(servers)?).await
}

fn site(servers: &NodeServers) -> Result<String> {
    let addresses = servers.addresses();
    let ports = ["3001", "3002", "3003"];
    let mut replaced = vec![("127.0.0.1:8080", "127.0.0.1:0".to_owned())];
    let names: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    for (name, address) in names.iter().zip(&addresses) {
        replaced.push((name, address.to_string()));
    }
    let toml = example("socketio", &replaced)?;
    Ok(format!("drain_timeout_secs = 2\n{toml}"))
}

#[tokio::test]
async fn polling_and_upgrade_of_a_client_reach_one_server() -> Result<()> {
    let servers = NodeServers::start("socketio", 3).await?;
    let balancer = behind(&servers).await?;
    let url = format!("http://{}", balancer.address());
    let ended = node("socketio", "client.js", &[&url, "12"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for line in ended.stdout.lines() {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words[2..], ["websocket", "echo", "ok"], "{line}");
        *shares.entry(words[1]).or_default() += 1;
    }
    assert_eq!(shares.values().sum::<usize>(), 12);
    assert_eq!(shares.len(), 3, "every server has some: {shares:?}");
    Ok(())
}

#[tokio::test]
async fn without_stickiness_the_same_clients_fail() -> Result<()> {
    let servers = NodeServers::start("socketio", 3).await?;
    let balancer = behind(&servers).await?;
    let toml = std::fs::read_to_string(balancer.config_file())?;
    let (before, after) = toml.split_once("policy = \"sticky\"\n").context("sticky")?;
    let (_, after) = after.split_once('\n').context("its policy_config")?;
    let other = Balancer::start(&format!("{before}policy = \"round_robin\"\n{after}")).await?;
    let url = format!("http://{}", other.address());
    let ended = node("socketio", "client.js", &[&url, "3"]).await?;
    assert_ne!(ended.code, Some(0), "{ended:?}");
    Ok(())
}

/// For so long, with one server and with three.
async fn poll_for(seconds: u32, ping_ms: u32) -> Result<()> {
    for n in [1, 3] {
        let servers = NodeServers::start_with("socketio", n, &[&ping_ms.to_string()]).await?;
        let addresses: Vec<_> = servers.addresses();
        let all = ["3001", "3002", "3003"].map(|port| format!("\"127.0.0.1:{port}\""));
        let listed: Vec<_> = addresses.iter().map(|at| format!("\"{at}\"")).collect();
        let toml = example("socketio", &[("127.0.0.1:8080", "127.0.0.1:0".to_owned())])?
            .replace_once(&all.join(", "), &listed.join(", "))
            .replace_once("policy =", "response_timeout_ms = 500\npolicy =");
        let balancer = Balancer::start(&toml).await?;
        let url = format!("http://{}", balancer.address());
        let seconds = seconds.to_string();
        let args = [&url, "6", "--polling", &seconds];
        let mut client = script("socketio", "client.js", &args);
        let ended = client.output().await?;
        let said = String::from_utf8_lossy(&ended.stdout);
        ensure!(ended.status.success(), "{n} servers: {ended:?}");
        let ok = said.lines().filter(|line| line.contains(" polling for "));
        assert_eq!(ok.count(), 6, "{n} servers: {said}");
        for line in balancer.access_log()? {
            assert_eq!(line["status"], 200, "{line}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn clients_that_only_poll_stay_connected_at_one_server() -> Result<()> {
    // Longer than an upgrade may take.
    poll_for(4, 1500).await
}

#[tokio::test]
#[ignore = "takes two minutes: cargo test --package pointsman-tests --test it -- --ignored a_minute_of_polling"]
async fn a_minute_of_polling() -> Result<()> {
    poll_for(60, 25_000).await
}

#[tokio::test]
async fn clients_of_a_server_that_is_taken_out_come_back_on_another() -> Result<()> {
    let servers = NodeServers::start("socketio", 3).await?;
    let balancer = behind(&servers).await?;
    let url = format!("http://{}", balancer.address());
    let mut command = script("socketio", "client.js", &[&url, "6", "--wait"]);
    let mut client = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(client.stdout.take().context("piped")?).lines();
    let mut next = async || {
        let line = in_time("a line", lines.next_line()).await?;
        line.context("the clients ended early")
    };
    while next().await? != "waiting" {}
    let gone = servers.addresses()[0];
    let order = format!("/api/drain?upstream=socketio&backend={gone}");
    assert_eq!(balancer.order("POST", &order).await?.status, 200);
    let moved = next().await?;
    let (_, way) = moved.split_once(' ').context("a number and a way")?;
    let (from, to) = way.split_once(" -> ").context("a way")?;
    assert_eq!(from, gone.to_string(), "{moved}");
    assert_ne!(to, gone.to_string(), "{moved}");
    let ended = in_time("the clients' end", client.wait()).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}
