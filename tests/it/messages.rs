//! The promise: what `ws` and Chromium send arrives as it does without a balancer, over a relay, past a
//! filter, and at a handler; and what is too long costs its own session and little memory.

use anyhow::{Result, ensure};
use pointsman_tests::{Balancer, NodeStory, guests};
use serde_json::json;

/// Routes of each kind to one backend, all for messages of 16 MiB: a guest is shown at most a third of
/// what it may hold, and a relay measures what is sent, which compression can make a little longer.
fn site(backend: impl std::fmt::Display) -> String {
    let mut toml = r#"
[plugins]
dir = "PLUGINS_DIR"
memory_max_bytes = 67108864
call_timeout_ms = 2000
"#
    .to_owned();
    for name in ["relay", "filtered"] {
        toml += &format!("\n[[upstream]]\nname = \"{name}\"\nbackends = [\"{backend}\"]\n");
    }
    for (way, leads_to, max_message_bytes) in [
        ("relay", "upstream = \"relay\"", 17 << 20),
        (
            "filtered",
            "upstream = \"filtered\"\nfilters = [\"all\"]",
            16 << 20,
        ),
        ("echo", "handler = \"echo\"", 16 << 20),
    ] {
        for (path, deflate) in [("", "on"), ("/strip", "strip")] {
            toml += &format!(
                "\n[[route]]\npath = \"{path}/{way}\"\n{leads_to}\ndeflate = \"{deflate}\"\n\
                 max_message_bytes = {max_message_bytes}\n"
            );
        }
    }
    toml
}

/// Lives a story of `tests/node/messages.mjs` over each of the three ways.
async fn story(name: &str) -> Result<()> {
    let mut ends = NodeStory::start("messages.mjs", &[name]).await?;
    let filter = guests::filter_that_forwards()?;
    let balancer = Balancer::start_with_plugins(&site(ends.address()), &[("all", &filter)]).await?;
    ends.tell(&json!({
        "balancer": format!("ws://{}", balancer.address()),
        "admin": format!("http://{}", balancer.admin_address()),
    }))
    .await?;
    let said = ends.finished().await?;
    for (way, line) in ["relay: ", "filtered: ", "echo: "].iter().zip(&said) {
        ensure!(line.starts_with(way), "{said:?}");
    }
    ensure!(said.len() == 3, "{said:?}");
    let metrics = balancer.metrics().await?;
    let failures = metrics.sum("pointsman_plugin_failures_total", &[]);
    assert_eq!(failures, 0.0);
    // Each message that passed the filter was shown to it.
    let [sent, passed] = ["up", "down"].map(|direction| {
        let labels = [("upstream", "filtered"), ("direction", direction)];
        metrics.sum("pointsman_messages_total", &labels)
    });
    let shown = metrics.sum("pointsman_plugin_verdicts_total", &[("plugin", "all")]);
    assert_eq!(shown, sent + passed);
    Ok(())
}

#[tokio::test]
async fn compression_is_agreed_on_as_without_a_balancer_and_spares_bytes() -> Result<()> {
    story("compression").await
}

#[tokio::test]
async fn compression_is_agreed_on_by_nobody_where_the_route_strips_it() -> Result<()> {
    story("strip").await
}

#[tokio::test]
async fn the_backends_subprotocol_is_the_clients() -> Result<()> {
    story("subprotocols").await
}

#[tokio::test]
async fn messages_that_ws_sends_in_fragments_arrive_whole() -> Result<()> {
    story("fragments").await
}

#[tokio::test]
async fn pings_and_pongs_of_both_ends_arrive_with_their_payload() -> Result<()> {
    story("pings").await
}

#[tokio::test]
async fn close_codes_and_reasons_of_both_ends_arrive() -> Result<()> {
    story("closes").await
}

#[tokio::test]
async fn an_end_that_is_lost_without_a_close_is_missed_by_the_other() -> Result<()> {
    story("ends").await
}

#[tokio::test]
async fn messages_up_to_16_mib_arrive_byte_for_byte() -> Result<()> {
    story("sizes").await
}

#[tokio::test]
async fn interleaved_messages_of_both_ends_arrive_in_order() -> Result<()> {
    story("order").await
}
