//! The three ways that a WebSocket can go, side by side.

use std::net::SocketAddr;

use anyhow::Result;

use crate::balancer::Balancer;
use crate::guests;

/// A balancer with one worker, with the routes `/relay`, `/filtered` and `/echo`, and beneath `/strip` the
/// same without compression, for messages of `max_message_bytes`, at most 16 MiB; all else goes to
/// the backend. The filter `all` looks at everything and lets it pass.
///
/// # Errors
///
/// It does not become ready.
pub async fn three_ways(backend: SocketAddr, max_message_bytes: usize) -> Result<Balancer> {
    let filter = guests::filter_that_forwards()?;
    let toml = site(backend, max_message_bytes);
    Balancer::start_with_plugins(&toml, &[("all", &filter)]).await
}

/// A guest is shown at most a third of what it may hold; and a relay measures what is sent, which
/// compression can make a little longer than the message.
fn site(backend: SocketAddr, max_message_bytes: usize) -> String {
    let mut toml = r#"
workers = 1

[plugins]
dir = "PLUGINS_DIR"
memory_max_bytes = 67108864
call_timeout_ms = 2000

[[route]]
path = "/*"
upstream = "page"
"#
    .to_owned();
    for name in ["relay", "filtered", "page"] {
        toml += &format!("\n[[upstream]]\nname = \"{name}\"\nbackends = [\"{backend}\"]\n");
    }
    for (way, leads_to, max_message_bytes) in [
        (
            "relay",
            "upstream = \"relay\"",
            max_message_bytes + max_message_bytes / 32,
        ),
        (
            "filtered",
            "upstream = \"filtered\"\nfilters = [\"all\"]",
            max_message_bytes,
        ),
        ("echo", "handler = \"echo\"", max_message_bytes),
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
