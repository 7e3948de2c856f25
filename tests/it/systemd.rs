//! The promise: a service manager hears when the process is ready, reloads and stops, and can hand
//! over the socket that it listens on.

use std::net::TcpListener;
use std::process::Stdio;

use anyhow::{Context, Result};
use pointsman_tests::{Backend, Client, app, binary, in_time};
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
