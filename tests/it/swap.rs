//! The promise: a plugin file that appears, changes or goes takes effect under live sockets that do not
//! notice (how soon: `timing/swap.rs`); one that cannot be loaded changes nothing, and is loud.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Backend, Balancer, Chatter, Client, PATIENCE, app, eventually, guests};
use serde_json::Value;

/// The name that all these files are dropped in under.
const NAME: &str = "round_robin";

async fn three_backends() -> Result<(Vec<Backend>, Vec<SocketAddr>, Balancer)> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let balancer = Balancer::start(&app(NAME, &addresses)).await?;
    Ok((backends, addresses, balancer))
}

async fn open(balancer: &Balancer, n: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(n);
    for _ in 0..n {
        clients.push(Client::connect(&balancer.url("/websocket")).await?);
    }
    Ok(clients)
}

/// Where the next `n` sessions land; they are closed again.
async fn placed(balancer: &Balancer, n: usize) -> Result<Vec<SocketAddr>> {
    let clients = open(balancer, n).await?;
    let landed = clients.iter().map(Client::backend).collect();
    for client in clients {
        client.close(1000).await?;
    }
    landed
}

async fn drop_good(balancer: &Balancer, bytes: &[u8]) -> Result<()> {
    let before = balancer.generation(NAME).await?;
    balancer.drop_plugin(NAME, bytes)?;
    eventually("a new generation in the status", PATIENCE, async || {
        balancer.generation(NAME).await.is_ok_and(|g| g > before)
    })
    .await?;
    let plugin = balancer.plugin(NAME).await?;
    assert_eq!(plugin["source"], "file");
    assert_eq!(plugin["last_error"], Value::Null);
    Ok(())
}

/// The number of open sessions and requests that the status shows at each backend.
async fn active(balancer: &Balancer) -> Result<Vec<u64>> {
    let status = balancer.status().await?;
    let backends = status["upstreams"][0]["backends"].as_array();
    let backends = backends.context("no backends")?;
    backends
        .iter()
        .map(|b| b["active"].as_u64().context("no figure"))
        .collect()
}

#[tokio::test]
async fn another_policy_takes_over_under_a_hundred_echoing_sockets() -> Result<()> {
    let (_backends, addresses, balancer) = three_backends().await?;
    let chatter = Chatter::start(100, &balancer.url("/websocket")).await?;
    let in_turn: Vec<_> = addresses
        .iter()
        .copied()
        .map(Some)
        .cycle()
        .take(100)
        .collect();
    assert_eq!(chatter.landed(), in_turn);

    // Ten more on the first backend alone: round robin would not mind, least connections must.
    let mut crowd = Vec::new();
    for client in open(&balancer, 30).await? {
        if client.backend()? == addresses[0] {
            crowd.push(client);
        } else {
            client.close(1000).await?;
        }
    }
    assert_eq!(crowd.len(), 10);
    eventually("the status shows 44, 33 and 33", PATIENCE, async || {
        active(&balancer).await.is_ok_and(|n| n == [44, 33, 33])
    })
    .await?;

    drop_good(&balancer, &guests::shipped("least_connections")).await?;
    let next = open(&balancer, 18).await?;
    let landed: Vec<_> = next.iter().map(Client::backend).collect::<Result<_>>()?;
    let n_at = |i: usize| landed.iter().filter(|a| **a == addresses[i]).count();
    assert_eq!([n_at(0), n_at(1), n_at(2)], [0, 9, 9]);

    let n_messages = chatter.stop().await?;
    ensure!(n_messages > 100, "only {n_messages} messages");
    Ok(())
}

#[tokio::test]
async fn a_file_that_cannot_be_loaded_leaves_the_old_one_serving_and_is_named() -> Result<()> {
    let (_backends, addresses, balancer) = three_backends().await?;
    let last = addresses[2];
    // Two guests that choose alike, and differ in what they are never asked to do here.
    let good = [guests::policy("traps")?, guests::policy("loops")?];
    drop_good(&balancer, &good[0]).await?;
    let chatter = Chatter::start(10, &balancer.url("/websocket")).await?;

    let whole = guests::shipped("least_connections");
    let bad = [
        ("a truncated file", whole[..whole.len() / 2].to_vec()),
        ("an empty file", Vec::new()),
        ("a text file", b"this is no plugin\n".to_vec()),
        ("a wrong contract", guests::stranger("wrong_contract")?),
        (
            "a wrong contract version",
            guests::stranger("wrong_version")?,
        ),
        ("a handler under a policy's name", guests::handler("traps")?),
        (
            "an endless configure",
            guests::policy_that_loops_in_configure()?,
        ),
    ];
    for (i, (what, bytes)) in bad.iter().enumerate() {
        refused(&balancer, bytes).await.context(*what)?;
        assert_eq!(placed(&balancer, 3).await?, [last; 3], "after {what}");
        drop_good(&balancer, &good[(i + 1) % 2])
            .await
            .with_context(|| format!("after {what}"))?;
        assert_eq!(
            placed(&balancer, 3).await?,
            [last; 3],
            "after {what} and a good one"
        );
    }
    chatter.stop().await?;
    Ok(())
}

/// Drops in a file that must be refused, and looks for it in metric, status and log.
async fn refused(balancer: &Balancer, bytes: &[u8]) -> Result<()> {
    let labels = [("kind", "plugin"), ("result", "failed")];
    let n_failed = balancer
        .metrics()
        .await?
        .sum("pointsman_reloads_total", &labels);
    let generation = balancer.generation(NAME).await?;
    let n_lines = balancer.log().len();

    balancer.drop_plugin(NAME, bytes)?;
    eventually("the refusal is counted", PATIENCE, async || {
        let metrics = balancer.metrics().await;
        metrics.is_ok_and(|m| m.sum("pointsman_reloads_total", &labels) == n_failed + 1.0)
    })
    .await?;
    eventually("the status tells why", PATIENCE, async || {
        let plugin = balancer.plugin(NAME).await;
        plugin.is_ok_and(|p| p["last_error"].as_str().is_some_and(|why| !why.is_empty()))
    })
    .await?;
    eventually("the log names it", PATIENCE, async || {
        let log = balancer.log();
        log[n_lines..].iter().any(|line| line.contains(NAME))
    })
    .await?;
    assert_eq!(balancer.generation(NAME).await?, generation);
    Ok(())
}

#[tokio::test]
async fn deleting_the_file_brings_the_embedded_plugin_back() -> Result<()> {
    let (_backends, addresses, balancer) = three_backends().await?;
    assert_eq!(balancer.plugin(NAME).await?["source"], "embedded");
    drop_good(&balancer, &guests::policy("traps")?).await?;
    assert_eq!(placed(&balancer, 3).await?, [addresses[2]; 3]);

    balancer.delete_plugin(NAME)?;
    eventually("the embedded one serves", PATIENCE, async || {
        let plugin = balancer.plugin(NAME).await;
        plugin.is_ok_and(|p| p["source"] == "embedded")
    })
    .await?;
    let mut landed = placed(&balancer, 3).await?;
    landed.sort_unstable();
    let mut all = addresses.clone();
    all.sort_unstable();
    assert_eq!(landed, all);
    Ok(())
}

#[tokio::test]
async fn identical_content_is_no_new_generation() -> Result<()> {
    let (_backends, _addresses, balancer) = three_backends().await?;
    let guest = guests::policy("traps")?;
    drop_good(&balancer, &guest).await?;
    let generation = balancer.generation(NAME).await?;

    balancer.drop_plugin(NAME, &guest)?;
    eventually("the second file is seen", PATIENCE, async || {
        let labels = [("kind", "plugin"), ("result", "unchanged")];
        let metrics = balancer.metrics().await;
        metrics.is_ok_and(|m| m.sum("pointsman_reloads_total", &labels) >= 1.0)
    })
    .await?;
    assert_eq!(balancer.generation(NAME).await?, generation);
    Ok(())
}

#[tokio::test]
async fn a_core_module_that_carries_its_contract_is_a_plugin() -> Result<()> {
    let (_backends, addresses, balancer) = three_backends().await?;
    drop_good(&balancer, &guests::core_policy("traps")?).await?;
    assert_eq!(placed(&balancer, 3).await?, [addresses[2]; 3]);
    Ok(())
}

#[tokio::test]
async fn a_file_written_in_place_is_loaded_once_it_is_whole() -> Result<()> {
    let (_backends, addresses, balancer) = three_backends().await?;
    let guest = guests::policy("traps")?;
    let before = balancer.generation(NAME).await?;
    // As `cp` does: created, then filled piece by piece.
    let file = balancer.plugins_dir().join(format!("{NAME}.wasm"));
    std::fs::write(file, &guest)?;
    eventually("a new generation", PATIENCE, async || {
        balancer.generation(NAME).await.is_ok_and(|g| g > before)
    })
    .await?;
    assert_eq!(placed(&balancer, 3).await?, [addresses[2]; 3]);
    let labels = [("kind", "plugin"), ("result", "failed")];
    let metrics = balancer.metrics().await?;
    assert_eq!(metrics.sum("pointsman_reloads_total", &labels), 0.0);
    Ok(())
}

/// What the handler of the other end is, by its answer.
async fn asked(client: &mut Client) -> Result<String> {
    client.send("which one are you!".into()).await?;
    Ok(client.receive().await?.into_text()?.to_string())
}

#[tokio::test]
async fn a_handlers_open_sessions_keep_the_generation_they_began_with() -> Result<()> {
    let toml = "workers = 1\n[[route]]\npath = \"/websocket\"\nhandler = \"named\"\n";
    let one = guests::handler("handler_says_one")?;
    let balancer = Balancer::start_with_plugins(toml, &[("named", &one)]).await?;
    let url = balancer.url("/websocket");
    let chatter = Chatter::start(10, &url).await?;
    let mut old = Client::connect(&url).await?;
    assert_eq!(asked(&mut old).await?, "one");

    let before = balancer.generation("named").await?;
    balancer.drop_plugin("named", &guests::handler("handler_says_two")?)?;
    eventually("a new generation", PATIENCE, async || {
        let generation = balancer.generation("named").await;
        generation.is_ok_and(|generation| generation > before)
    })
    .await?;
    let mut new = Client::connect(&url).await?;
    assert_eq!(asked(&mut new).await?, "two");
    assert_eq!(asked(&mut old).await?, "one", "an open session has moved");
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_plugin_that_refuses_the_state_of_the_one_before_stops_the_swap() -> Result<()> {
    let (_backends, addresses, balancer) = three_backends().await?;
    drop_good(&balancer, &guests::stateful_policy("keeps_state")?).await?;
    assert_eq!(
        placed(&balancer, 3).await?,
        [addresses[2]; 3],
        "instances that know something"
    );
    let generation = balancer.generation(NAME).await?;

    balancer.drop_plugin(NAME, &guests::stateful_policy("refuses_state")?)?;
    eventually("the refusal in the status", PATIENCE, async || {
        let plugin = balancer.plugin(NAME).await;
        plugin.is_ok_and(|plugin| {
            plugin["last_error"]
                .to_string()
                .contains("not my kind of state")
        })
    })
    .await?;
    assert_eq!(balancer.generation(NAME).await?, generation);

    // Other content, the same state: one that takes it over.
    let mut same = guests::stateful_policy("keeps_state")?;
    same.extend_from_slice(b"\x00\x05\x04more");
    drop_good(&balancer, &same).await?;
    assert_eq!(placed(&balancer, 3).await?, [addresses[2]; 3]);
    assert!(
        !balancer
            .log()
            .iter()
            .any(|line| line.contains("begins without the state"))
    );
    Ok(())
}
