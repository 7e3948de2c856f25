//! The promise: what people did with Fastify and nginx works here, with the same servers and the
//! same client, and with plugins in the servers' place.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Balancer, Client, NodeServers, example, node, payload};

/// Around every change of the frame header's form (RFC 6455 section 5.2), and one that takes many
/// reads.
const SIZES: [usize; 6] = [1, 125, 126, 65_535, 65_536, 5 * 1024 * 1024];

const HELLO: &str = r#"{"hello":"world"}"#;

async fn tutorial() -> Result<(NodeServers, Balancer)> {
    let servers = NodeServers::start("fastify", 3).await?;
    let mut replaced = free_ports();
    let written = ["127.0.0.1:3001", "127.0.0.1:3002", "127.0.0.1:3003"];
    for (from, to) in written.into_iter().zip(servers.addresses()) {
        replaced.push((from, to.to_string()));
    }
    let balancer = Balancer::start(&example("fastify", &replaced)?).await?;
    Ok((servers, balancer))
}

fn free_ports() -> Vec<(&'static str, String)> {
    ["127.0.0.1:8080", "127.0.0.1:9900"]
        .map(|from| (from, "127.0.0.1:0".to_owned()))
        .to_vec()
}

#[tokio::test]
async fn the_tutorials_client_lands_on_three_servers_in_turn() -> Result<()> {
    let (servers, balancer) = tutorial().await?;
    let ended = node("fastify", "client.js", &[&balancer.url("/websocket")]).await?;
    ensure!(ended.code == Some(0), "{ended:?}");

    let landed: Vec<SocketAddr> = ended
        .stdout
        .lines()
        .map(|line| {
            let word = line.split(' ').nth(1).context("a second word")?;
            word.parse().with_context(|| format!("in {line:?}"))
        })
        .collect::<Result<_>>()?;
    assert_eq!(landed, servers.addresses().repeat(3));
    Ok(())
}

#[tokio::test]
async fn messages_of_every_size_come_back_byte_for_byte_from_fastify() -> Result<()> {
    let (_servers, balancer) = tutorial().await?;
    every_size_comes_back(&balancer).await
}

#[tokio::test]
async fn plain_requests_rotate_over_fastify_servers() -> Result<()> {
    let (servers, balancer) = tutorial().await?;
    let mut landed = Vec::new();
    for _ in 0..9 {
        let answer = balancer.get("/").await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, HELLO));
        landed.push(answer.backend()?);
    }
    assert_eq!(landed, servers.addresses().repeat(3));
    Ok(())
}

#[tokio::test]
async fn the_tutorials_client_is_served_by_plugins_alone() -> Result<()> {
    let balancer = Balancer::start(&example("plugins-only", &free_ports())?).await?;
    let ended = node("fastify", "client.js", &[&balancer.url("/websocket")]).await?;
    ensure!(ended.code == Some(0), "{ended:?}");
    assert_eq!(ended.stdout.matches("echo ok").count(), 9);

    let answer = balancer.get("/").await?;
    assert_eq!((answer.status, answer.text().as_str()), (200, HELLO));
    let kind = answer.header("content-type").context("content-type")?;
    assert!(kind.starts_with("application/json"), "{kind}");
    Ok(())
}

#[tokio::test]
async fn messages_of_every_size_come_back_byte_for_byte_from_the_echo_plugin() -> Result<()> {
    let balancer = Balancer::start(&example("plugins-only", &free_ports())?).await?;
    every_size_comes_back(&balancer).await
}

async fn every_size_comes_back(balancer: &Balancer) -> Result<()> {
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    for size in SIZES {
        let text = payload(size);
        client
            .echo_text(&text)
            .await
            .with_context(|| format!("text of {size}"))?;
        // Bytes that are no UTF-8, so that binary taken for text would show.
        let binary: Vec<u8> = text.bytes().map(|b| b | 0x80).collect();
        client
            .echo_binary(binary)
            .await
            .with_context(|| format!("binary of {size}"))?;
    }
    assert_eq!(client.close(1000).await?, Some(1000));
    Ok(())
}
