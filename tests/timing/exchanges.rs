//! The promise: a backend soon hears that nobody reads its stream any more.

use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_tests::{Balancer, PATIENCE, Reply, ScriptedBackend, Wire, app, eventually};

use crate::alone;

#[tokio::test]
async fn a_client_that_leaves_a_silent_stream_is_reported_to_its_backend_within_a_second()
-> Result<()> {
    let _alone = alone().await;
    let event = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n";
    let backend = ScriptedBackend::start(move |_| Reply::Say(event.to_owned())).await?;
    let balancer = Balancer::start(&app("round_robin", &[backend.address()])).await?;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let mut client = Wire::connect(balancer.address()).await?;
        client.send(request).await?;
        assert_eq!(client.head().await?.status, 200);
        client.chunk().await?;
        drop(client);
        let took = eventually("the backend is let go", PATIENCE, async || {
            backend.n_open() == 0
        })
        .await?;
        eprintln!("a client that leaves a silent stream: reported after {took:?}");
        ensure!(took < Duration::from_secs(1), "{took:?}");
    }
    Ok(())
}
