//! The promise: live traffic that fails puts a backend out for a while, each time longer, and never
//! more of them than allowed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Client, Edit, NOBODY, PATIENCE, Reply, ScriptedBackend, app, eventually,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const EJECTION: &str = "[upstream.ejection]\nfailures = 3\nwindow_secs = 10\neject_secs = 3\nmax_ejected_percent = 50\n\n[[route]]";

fn ejecting(backends: &[SocketAddr]) -> String {
    app("round_robin", backends).replace_once("[[route]]", EJECTION)
}

async fn ejections(balancer: &Balancer, backend: SocketAddr) -> Result<f64> {
    let address = backend.to_string();
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum(
        "pointsman_backend_ejections_total",
        &[("backend", &address)],
    ))
}

#[tokio::test]
async fn three_failures_in_a_row_put_a_backend_out_and_back_off_doubles() -> Result<()> {
    let good = Backend::start().await?;
    let balancer = Balancer::start(&ejecting(&[NOBODY, good.address()])).await?;
    // Every second socket tries the dead one first; none of them notices.
    let connect = async || {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("not lost").await
    };
    for round in 1..=2 {
        eventually("an ejection", PATIENCE, async || {
            connect().await.expect("a live backend takes every socket");
            ejections(&balancer, NOBODY)
                .await
                .is_ok_and(|n| n >= f64::from(round))
        })
        .await?;
        let reason = balancer.backend_state(NOBODY, "ejected").await?;
        assert!(reason.starts_with("cannot connect: "), "{reason}");
        let out_for = format!("out_for={}s", 3 * round);
        let is_said = |line: &String| line.contains("backend ejected") && line.contains(&out_for);
        eventually(out_for.clone(), PATIENCE, async || {
            balancer.log().iter().any(is_said)
        })
        .await?;
        let failures = balancer.status().await?["upstreams"][0]["backends"][0]["failures"].clone();
        for _ in 0..4 {
            connect().await?;
        }
        let after = balancer.status().await?["upstreams"][0]["backends"][0]["failures"].clone();
        assert_eq!(failures, after, "nobody dials it while it is out");
        balancer.backend_state(NOBODY, "up").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_answers_upgrades_with_500_is_put_out() -> Result<()> {
    let good = Backend::start().await?;
    let broken = ScriptedBackend::start(|_| {
        let answer = "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        Reply::SayAndHangUp(answer.to_owned())
    })
    .await?;
    let balancer = Balancer::start(&ejecting(&[broken.address(), good.address()])).await?;
    let mut refused = 0;
    for _ in 0..6 {
        let client = Client::connect(&balancer.url("/websocket")).await;
        refused += u32::from(client.is_err());
    }
    assert_eq!(
        refused, 3,
        "an answer of the backend's is the client's to see"
    );
    let reason = balancer.backend_state(broken.address(), "ejected").await?;
    assert!(reason.starts_with("it answered 500 "), "{reason}");
    Ok(())
}

#[tokio::test]
async fn no_more_than_half_are_put_out() -> Result<()> {
    let good = Backend::start().await?;
    let dead = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| a.parse().expect("an address"));
    let toml = ejecting(&[dead[0], dead[1], good.address()]);
    let balancer = Balancer::start(&toml).await?;
    for _ in 0..30 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("one lives").await?;
    }
    let n = ejections(&balancer, dead[0]).await? + ejections(&balancer, dead[1]).await?;
    assert_eq!(n, 1.0, "half of three is one");
    Ok(())
}

/// Takes no connection and refuses none: packets to it are dropped, because nobody accepts and its queue is full.
struct BlackHole {
    listener: TcpListener,
    address: SocketAddr,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    async fn open() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        let listener = socket.listen(1)?;
        let address = listener.local_addr()?;
        let mut queued = Vec::new();
        while let Ok(connected) =
            timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            queued.push(connected?);
            ensure!(queued.len() < 100, "its queue has no end");
        }
        Ok(Self {
            listener,
            address,
            _queued: queued,
        })
    }

    /// From now on it takes connections, and says nothing.
    async fn accept_all(self) {
        let mut held = Vec::new();
        while let Ok(accepted) = self.listener.accept().await {
            held.push(accepted);
        }
    }
}

async fn failures(balancer: &Balancer, backend: SocketAddr) -> Result<f64> {
    let address = backend.to_string();
    let metrics = balancer.metrics().await?;
    Ok(metrics.sum("pointsman_backend_failures_total", &[("backend", &address)]))
}

#[tokio::test]
async fn a_backend_that_drops_packets_is_out_until_it_can_be_connected_to() -> Result<()> {
    let hole = BlackHole::open().await?;
    let good = Backend::start().await?;
    let toml = app("round_robin", &[hole.address, good.address()])
        .replace_once("[[route]]", "connect_timeout_ms = 400\n\n[[route]]");
    let balancer = Balancer::start(&toml).await?;
    for _ in 0..40 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("not lost").await?;
    }
    let n = failures(&balancer, hole.address).await?;
    assert_eq!(n, 1.0, "one handshake has waited for it, and no other");
    let reason = balancer.backend_state(hole.address, "ejected").await?;
    ensure!(reason.starts_with("no connection after 400ms"), "{reason}");
    let address = hole.address;
    let mut accepting = JoinSet::new();
    accepting.spawn(hole.accept_all());
    balancer.backend_state(address, "up").await?;
    Ok(())
}

#[tokio::test]
async fn the_last_backend_is_never_out() -> Result<()> {
    let dead = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| a.parse().expect("an address"));
    let balancer = Balancer::start(&app("round_robin", &dead)).await?;
    for _ in 0..10 {
        let refused = Client::connect(&balancer.url("/websocket")).await;
        ensure!(refused.is_err(), "nobody is there");
    }
    let ejected = balancer
        .metrics()
        .await?
        .sum("pointsman_backend_ejected", &[]);
    assert_eq!(ejected, 1.0);
    // Both are tried each time: one that could not be reached is better than none.
    for backend in dead {
        assert_eq!(failures(&balancer, backend).await?, 10.0, "{backend}");
    }
    Ok(())
}

#[tokio::test]
async fn one_that_was_out_serves_when_all_others_fail() -> Result<()> {
    let mut backends = Backend::start_many(2).await?;
    let second = backends.pop().context("two")?;
    let first = backends.pop().context("two")?;
    let gone = first.address();
    drop(first);
    let balancer = Balancer::start(&app("round_robin", &[gone, second.address()])).await?;
    for _ in 0..4 {
        Client::connect(&balancer.url("/websocket")).await?;
    }
    balancer.backend_state(gone, "ejected").await?;
    let _back = Backend::start_at(gone).await?;
    drop(second);
    for _ in 0..4 {
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("it is back").await?;
    }
    Ok(())
}
