//! The promise: a filter that fails and fails costs other sessions on its worker no time.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Backend, Balancer, Client, guests};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::alone;

#[tokio::test]
async fn hostile_filters_do_not_hold_up_others_on_their_worker() -> Result<()> {
    let _alone = alone().await;
    for how in ["loops", "hogs_memory", "traps", "filter_answers_hugely"] {
        // A busy machine has delays of its own, but not each time.
        let mut moved = Duration::MAX;
        for _ in 0..3 {
            moved = moved.min(p99_moves_by(how).await?);
            if moved < Duration::from_millis(10) {
                break;
            }
        }
        ensure!(moved < Duration::from_millis(10), "{how}: by {moved:?}");
    }
    Ok(())
}

/// How much later the last percent of others' echoes comes beside a filter that fails and fails.
async fn p99_moves_by(how: &str) -> Result<Duration> {
    let backend = Backend::start().await?;
    let toml = format!(
        "workers = 1\n[[upstream]]\nname = \"app\"\nbackends = [\"{}\"]\n\
         [[route]]\npath = \"/*\"\nupstream = \"app\"\nfilters = [\"filter\"]\n\
         [[route]]\npath = \"/free\"\nupstream = \"app\"\n",
        backend.address()
    );
    let guest = guests::filter(how)?;
    let balancer = Balancer::start_with_plugins(&toml, &[("filter", &guest)]).await?;
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(Client::connect(&balancer.url("/free")).await?);
    }
    let before = p99_of_echoes(&mut others).await?;
    let (stop, stopped) = watch::channel(false);
    let url = balancer.url("/websocket");
    let mut attack = JoinSet::new();
    attack.spawn(async move {
        let mut n = 0_u32;
        while !*stopped.borrow() {
            // Each time another client: the same one would have to wait.
            let address = IpAddr::from([127, 0, 2, u8::try_from(n % 250)?]);
            let mut client = Client::connect_from(address, &url).await?;
            for _ in 1..1000 {
                client.send(Message::text("hello")).await?;
                client.receive().await?;
            }
            client.send(Message::text("now!")).await?;
            ensure!(client.close_code().await? == Some(1011), "another code");
            n += 1;
        }
        anyhow::Ok(n)
    });
    let beside = p99_of_echoes(&mut others).await?;
    stop.send_replace(true);
    let n = attack.join_next().await.context("there is one")???;
    eprintln!("{how}: p99 of others {before:?}, {beside:?} beside {n} of them");
    ensure!(n > 0, "nothing was attacked");
    Ok(beside.saturating_sub(before))
}

/// Over two seconds.
async fn p99_of_echoes(clients: &mut [Client]) -> Result<Duration> {
    let mut times = Vec::new();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        for client in &mut *clients {
            let began = Instant::now();
            client.echo_text("hello").await?;
            times.push(began.elapsed());
        }
    }
    times.sort();
    Ok(times[times.len() * 99 / 100])
}
