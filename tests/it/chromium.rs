//! The promise: a page that is served through Pointsman speaks over WebSockets as it would with the
//! server itself, in a browser that people use.

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Chromium, NodeStory, skip, three_ways};
use serde_json::{Value, json};

#[tokio::test]
async fn a_page_in_chromium_speaks_over_every_way() -> Result<()> {
    let mut server = NodeStory::start("page.mjs", &[]).await?;
    let balancer = three_ways(server.address(), 16 << 20).await?;
    let Some(browser) = Chromium::visit(&format!("http://{}/", balancer.address()))? else {
        skip("there is no Chromium, and without root and apt-get none can be had");
        return Ok(());
    };
    let posted = server.line().await?.context("the server has ended")?;
    browser.end().await?;
    let result: Value = serde_json::from_str(&posted)?;
    let by = result["browser"].as_str().with_context(|| posted.clone())?;
    ensure!(by.contains("Chrome/"), "{by}");

    // A browser takes it ill when it has offered subprotocols and none is chosen.
    let none_chosen = "close 1006 in place of open";
    let by_backend = json!({
        "extensions": ["permessage-deflate", ""],
        "subprotocols": ["v2", none_chosen, ""],
        "sizes": 28,
        "order": 200,
        "closes": [
            "1000 done true", "3000 grüße true", "4999  true", "1005  true",
            "1001 away true", "4000 grüße true",
        ],
    });
    // A handler chooses no subprotocol unless it says so, and answers a Close with the code alone.
    let by_handler = json!({
        "extensions": ["permessage-deflate", ""],
        "subprotocols": [none_chosen, none_chosen, ""],
        "sizes": 28,
        "order": 200,
        "closes": ["1000  true", "3000  true", "4999  true", "1005  true"],
    });
    let ways = json!({ "relay": by_backend, "filtered": by_backend, "echo": by_handler });
    assert_eq!(result["ways"], ways, "{result:#}");

    let metrics = balancer.metrics().await?;
    assert_eq!(metrics.sum("pointsman_plugin_failures_total", &[]), 0.0);
    let shown = metrics.sum("pointsman_plugin_verdicts_total", &[("plugin", "all")]);
    // Each message and its echo; the page's wish that the backend closes has none.
    let n_messages = 2 + 28 + 200;
    assert_eq!(shown, 2.0 * f64::from(n_messages) + 2.0);
    Ok(())
}
