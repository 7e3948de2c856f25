//! Sessions that talk the whole time: what is done to the balancer meanwhile must not show in them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::Client;

/// Between two messages of one session: a hundred sessions make five thousand messages a second,
/// which leaves a small machine time for what is being tested.
const PACE: Duration = Duration::from_millis(20);

/// Open sessions, each echoing in turn text that it has never sent before.
#[derive(Debug)]
pub struct Chatter {
    stop: watch::Sender<bool>,
    talking: JoinSet<Result<usize>>,
    landed: Vec<Option<SocketAddr>>,
}

impl Chatter {
    /// Opens `n` sessions one after the other; each talks from its start.
    ///
    /// # Errors
    ///
    /// One cannot be opened.
    pub async fn start(n: usize, url: &str) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut talking = JoinSet::new();
        let mut landed = Vec::with_capacity(n);
        for i in 0..n {
            let client = Client::connect(url).await?;
            landed.push(client.backend().ok());
            talking.spawn(talk(i, client, stopped.clone()));
        }
        Ok(Self {
            stop,
            talking,
            landed,
        })
    }

    /// Where each session landed, in the order of their opening; none on a handler.
    pub fn landed(&self) -> &[Option<SocketAddr>] {
        &self.landed
    }

    /// Ends all sessions, and returns how many messages went round.
    ///
    /// # Errors
    ///
    /// A session was closed, lost a message or got another than it sent; or one never got round.
    pub async fn stop(mut self) -> Result<usize> {
        self.stop.send_replace(true);
        let mut n_messages = 0;
        while let Some(ended) = self.talking.join_next().await {
            let n = ended??;
            ensure!(n > 0, "a session that never got a message round");
            n_messages += n;
        }
        Ok(n_messages)
    }
}

async fn talk(i: usize, mut client: Client, stopped: watch::Receiver<bool>) -> Result<usize> {
    let mut n_messages = 0;
    while n_messages == 0 || !*stopped.borrow() {
        let text = format!("session {i}, message {n_messages}");
        client
            .echo_text(&text)
            .await
            .with_context(|| text.clone())?;
        n_messages += 1;
        sleep(PACE).await;
    }
    let code = client.close(1000).await?;
    ensure!(code == Some(1000), "session {i} closed with {code:?}");
    Ok(n_messages)
}
