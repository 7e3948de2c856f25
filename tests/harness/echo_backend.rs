//! A backend as a process of its own, so that a test can end it with SIGKILL. Says where it
//! listens on one line of stdout, then serves until it is killed.

use std::future;
use std::io::{Write, stdout};

use anyhow::Result;
use pointsman_tests::Backend;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let backend = Backend::start().await?;
    writeln!(stdout(), "listening on {}", backend.address())?;
    future::pending().await
}
