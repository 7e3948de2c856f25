//! The promise: a page of Vite's development server comes back when the server was killed and started again, as it
//! does with no balancer between.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Balancer, Chromium, PATIENCE, example, script, skip};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

/// A page that would come back has done so long before.
const STAYS_DEAD: Duration = Duration::from_secs(5);

/// The example's server, at a socket that stays open when it is killed.
struct Vite {
    socket: TcpListener,
    server: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Vite {
    async fn start(socket: TcpListener) -> Result<Self> {
        let stdin = OwnedFd::from(socket.try_clone()?);
        let mut command = script("vite", "server.js", &["--stdin"]);
        command.stdin(Stdio::from(stdin)).stdout(Stdio::piped());
        let mut server = command.spawn().context("start node")?;
        let stdout = server.stdout.take().context("stdout is piped")?;
        let mut vite = Self {
            socket,
            server,
            lines: BufReader::new(stdout).lines(),
        };
        let line = vite.line(PATIENCE).await?;
        ensure!(line.starts_with("listening on "), "{line}");
        Ok(vite)
    }

    fn address(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    async fn restart(mut self) -> Result<Self> {
        self.server.kill().await?;
        Self::start(self.socket).await
    }

    /// Waits for a page that has run and has its WebSocket.
    async fn page(&mut self, within: Duration) -> Result<()> {
        let line = self.line(within).await?;
        ensure!(line.starts_with("page of "), "{line}");
        Ok(())
    }

    async fn line(&mut self, within: Duration) -> Result<String> {
        let line = timeout(within, self.lines.next_line()).await;
        let line = line.with_context(|| format!("nothing said within {within:?}"))?;
        line?.context("the server has ended")
    }
}

/// Whether the page that is served by `address` comes back when its server was killed and started again. None: there
/// is no browser.
async fn comes_back(vite: Vite, address: SocketAddr, within: Duration) -> Result<Option<bool>> {
    let mut vite = vite;
    let Some(browser) = Chromium::visit(&format!("http://{address}/"))? else {
        skip("there is no Chromium, and without root and apt-get none can be had");
        return Ok(None);
    };
    vite.page(PATIENCE).await.context("the first page")?;
    let mut vite = vite.restart().await?;
    let came_back = vite.page(within).await.is_ok();
    browser.end().await?;
    Ok(Some(came_back))
}

async fn vite() -> Result<Vite> {
    let socket = TcpListener::bind("127.0.0.1:0")?;
    socket.set_nonblocking(true)?;
    Vite::start(socket).await
}

async fn behind(vite: &Vite, route: &str) -> Result<Balancer> {
    let toml = example(
        "vite",
        &[
            ("127.0.0.1:8080", "127.0.0.1:0".to_owned()),
            ("127.0.0.1:5173", vite.address()?.to_string()),
        ],
    )?;
    Balancer::start(&format!("{toml}{route}\n")).await
}

#[tokio::test]
async fn a_page_comes_back_when_its_server_does_as_without_a_balancer() -> Result<()> {
    let server = vite().await?;
    let address = server.address()?;
    let came_back = comes_back(server, address, PATIENCE).await?;
    ensure!(came_back != Some(false), "not even with the server itself");
    for route in ["", "filters = [\"tap\"]"] {
        let server = vite().await?;
        let balancer = behind(&server, route).await?;
        let came_back = comes_back(server, balancer.address(), PATIENCE).await?;
        ensure!(came_back != Some(false), "the page stays dead: {route}");
    }
    Ok(())
}

#[tokio::test]
async fn a_page_that_is_sent_a_clean_close_stays_dead() -> Result<()> {
    let server = vite().await?;
    let balancer = behind(&server, "on_backend_loss = \"close\"").await?;
    let came_back = comes_back(server, balancer.address(), STAYS_DEAD).await?;
    ensure!(came_back != Some(true), "on_backend_loss is not obeyed");
    Ok(())
}
