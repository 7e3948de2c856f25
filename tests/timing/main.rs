//! Promises with a bound on time. They run one after the other, in a process that `cargo test` starts
//! when the others have ended, so that what is measured is the balancer and not its neighbours. All
//! other tests have generous deadlines only.

mod backends;
mod drain;
mod exchanges;
mod faults;
mod filters;
mod overload;
mod plugin_attacks;
mod swap;

use std::fs;

use anyhow::{Context, Result, ensure};
use pointsman_tests::repository;
use tokio::sync::{Mutex, MutexGuard};

/// Held by the test that runs.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits for its turn: the first thing that each test here does.
async fn alone() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

#[test]
fn every_test_runs_alone() -> Result<()> {
    let mut n_tests = 0;
    for entry in fs::read_dir(repository("tests/timing"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        for test in text.split("#[tokio::test]\n").skip(1) {
            let (head, body) = test.split_once("{\n").context("a test has a body")?;
            ensure!(
                body.trim_start().starts_with("let _alone = alone().await;"),
                "{}: does not wait for its turn: {head}",
                path.display()
            );
            n_tests += 1;
        }
    }
    ensure!(n_tests > 10, "only {n_tests} tests");
    Ok(())
}
