//! The promise: a backend that takes no connection costs a client no more than the connect timeout.

use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_tests::{Backend, Balancer, Client, Edit, app};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use crate::alone;

#[tokio::test]
async fn a_backend_that_takes_no_connection_costs_no_more_than_the_connect_timeout() -> Result<()> {
    let _alone = alone().await;
    let alive = Backend::start().await?;
    let (full, _held) = full_listener().await?;
    let toml = app("round_robin", &[full.local_addr()?, alive.address()])
        .replace_once("policy =", "connect_timeout_ms = 200\npolicy =");
    let balancer = Balancer::start(&toml).await?;
    for _ in 0..2 {
        let began = Instant::now();
        let client = Client::connect(&balancer.url("/websocket")).await?;
        assert_eq!(client.backend()?, alive.address());
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(1), "took {took:?}");
    }
    Ok(())
}

/// A listener that accepts nothing and whose queue is full, so that the kernel drops every SYN,
/// and the connections that fill the queue.
async fn full_listener() -> Result<(TcpListener, Vec<TcpStream>)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let listener = socket.listen(1)?;
    let address = listener.local_addr()?;
    let mut held = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        held.push(connected?);
        ensure!(held.len() < 100, "a queue that is never full");
    }
    Ok((listener, held))
}
