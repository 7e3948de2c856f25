//! The promise: a service manager hears when the process is ready, reloads and stops, and can hand
//! over the socket that it listens on.

use std::net::TcpListener;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Client, PATIENCE, Refused, Wire, app, binary, eventually, get, in_time,
    upgrade_request,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::process::Command;

/// What systemd does: the socket is descriptor 3, and the environment says so.
const AS_SYSTEMD: &str = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@""#;

#[tokio::test]
async fn it_takes_the_socket_and_says_how_it_is() -> Result<()> {
    let backend = Backend::start().await?;
    let folder = TempDir::new()?;
    let manager = folder.path().join("notify");
    let told = UnixDatagram::bind(&manager)?;
    let socket = TcpListener::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    let config = folder.path().join("pointsman.toml");
    let text = format!(
        "workers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n[[listener]]\nbind = \"{address}\"\n{}",
        app("round_robin", &[backend.address()])
    );
    std::fs::write(&config, text)?;

    let mut process = Command::new("sh")
        .args(["-c", AS_SYSTEMD, "sh"])
        .arg(binary())
        .args(["run", "--config"])
        .arg(&config)
        .env("NOTIFY_SOCKET", &manager)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let next = async || {
        let mut room = [0; 256];
        let n = in_time("a notice", told.recv(&mut room)).await?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&room[..n]).into_owned())
    };
    assert_eq!(next().await?, "READY=1\n");
    for _ in 0..4 {
        let mut client = Client::connect(&format!("ws://{address}/websocket")).await?;
        client
            .echo_text("through the socket that was handed over")
            .await?;
    }
    let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let pid = pid.context("it runs")?;
    kill_process(pid, Signal::HUP)?;
    let reloading = next().await?;
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(next().await?, "READY=1\n");
    kill_process(pid, Signal::TERM)?;
    assert_eq!(next().await?, "STOPPING=1\n");
    let ended = in_time("the end", process.wait()).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn who_comes_during_a_drain_is_answered_and_not_left_in_the_managers_queue() -> Result<()> {
    let backend = Backend::start().await?;
    let folder = TempDir::new()?;
    // The manager's end stays open while the process drains, and after it.
    let socket = TcpListener::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    let config = folder.path().join("pointsman.toml");
    let text = format!(
        "workers = 2\ndrain_timeout_secs = 60\n[admin]\nlisten = \"127.0.0.1:0\"\n[[listener]]\nbind = \"{address}\"\n{}",
        app("round_robin", &[backend.address()])
    );
    std::fs::write(&config, text)?;
    let handed_over = socket.try_clone()?;
    let mut process = Command::new("sh")
        .args(["-c", AS_SYSTEMD, "sh"])
        .arg(binary())
        .args(["run", "--config"])
        .arg(&config)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(handed_over)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    // They do not answer the Close, so the drain goes on. Some for each worker.
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut wire = Wire::connect(address).await?;
        wire.send(upgrade_request("/websocket", &[])).await?;
        assert_eq!(wire.head().await?.status, 101);
        deaf.push(wire);
    }
    let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.context("it runs")?, Signal::TERM)?;
    eventually("503", PATIENCE, async || {
        let answer = get(address, "/").await;
        answer.is_ok_and(|answer| answer.status == 503)
    })
    .await?;
    for _ in 0..10 {
        let mut wire = Wire::connect(address).await?;
        wire.send("GET / HTTP/1.1\r\nHost: app.example.org\r\n\r\n")
            .await?;
        let answer = wire.answer().await?;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("connection"), Some("close"));
        ensure!(answer.header("retry-after").is_some());
        assert_eq!(wire.rest().await?, b"", "and closed");
        let refused = Client::connect(&format!("ws://{address}/websocket")).await;
        let refused = refused.expect_err("it takes nothing new");
        let refused = refused.downcast_ref::<Refused>().map(|r| r.status);
        assert_eq!(refused, Some(503));
    }
    // Those that say nothing are not waited for.
    let _silent = Wire::connect(address).await?;
    drop(deaf);
    let ended = in_time("the end", process.wait()).await?;
    assert_eq!(ended.code(), Some(0));
    // Who comes now waits for the next process.
    Wire::connect(address).await?;
    Ok(())
}

#[tokio::test]
async fn a_manager_that_does_not_read_is_not_waited_for() -> Result<()> {
    let folder = TempDir::new()?;
    let manager = folder.path().join("notify");
    let _unread = UnixDatagram::bind(&manager)?;
    let config = folder.path().join("pointsman.toml");
    let log = folder.path().join("error.log");
    let write = |secs: usize| {
        let text = format!(
            "drain_timeout_secs = {secs}\nerror_log.file = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[listener]]\nbind = \"127.0.0.1:0\"\n[[route]]\npath = \"/\"\nhandler = \"echo\"\n",
            log.display()
        );
        std::fs::write(&config, text)
    };
    let has_said = async |words: &str, n: usize| {
        eventually(format!("{n} times {words:?}"), PATIENCE * 3, async || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.matches(words).count() >= n)
        })
        .await
    };
    write(1)?;
    let mut process = Command::new(binary())
        .args(["run", "--config"])
        .arg(&config)
        .env("NOTIFY_SOCKET", &manager)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    has_said("admin listening", 1).await?;
    // Two notices for each; a socket usually holds ten.
    for n in 1..=10 {
        write(n + 1)?;
        has_said("configuration applied", n).await?;
    }
    let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.context("it runs")?, Signal::TERM)?;
    let ended = in_time("the end", process.wait()).await?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn the_managers_socket_without_a_listener_takes_nobody() -> Result<()> {
    let folder = TempDir::new()?;
    let socket = TcpListener::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    let config = folder.path().join("pointsman.toml");
    let text = |listener: &str| {
        format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\n[[listener]]\nbind = \"{listener}\"\n\
             [[route]]\npath = \"/\"\nhandler = \"echo\"\n"
        )
    };
    std::fs::write(&config, text(&address.to_string()))?;
    let process = Command::new("sh")
        .args(["-c", AS_SYSTEMD, "sh"])
        .arg(binary())
        .args(["run", "--config"])
        .arg(&config)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone()?)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let url = format!("ws://{address}/");
    let mut before = Client::connect(&url).await?;
    std::fs::write(&config, text("127.0.0.1:0"))?;
    let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.context("it runs")?, Signal::HUP)?;
    eventually("it is closed without an answer", PATIENCE, async || {
        let asked = async {
            let mut wire = Wire::connect(address).await?;
            wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .await?;
            wire.rest().await
        };
        asked.await.is_ok_and(|rest| rest.is_empty())
    })
    .await?;
    before.echo_text("whoever is there stays").await
}
