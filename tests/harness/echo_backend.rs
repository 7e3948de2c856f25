//! A backend as a process of its own, so that a test can end it with SIGKILL. Listens at the address
//! that it is given, or at a free port; says where on one line of stdout, then serves until it is
//! killed.

use std::env;
use std::future;
use std::io::{Write, stdout};

use anyhow::Result;
use pointsman_tests::Backend;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let address = env::args().nth(1);
    let backend = match address {
        Some(address) => Backend::start_at(address.parse()?).await?,
        None => Backend::start().await?,
    };
    writeln!(stdout(), "listening on {}", backend.address())?;
    future::pending().await
}
