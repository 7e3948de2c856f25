//! What may come in: `deny.toml`, held against `Cargo.lock` by cargo-deny.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::step::Step;

/// Below `target/`, so that nothing of the machine is changed.
const TOOLS: &str = "target/tools";

/// What needs no network, and then known vulnerabilities, whose database not every machine can reach.
pub(crate) fn check(root: &Path) -> Result<()> {
    check_offline(root)?;
    deny(root)
        .args(["advisories"])
        .run()
        .context("the database of known vulnerabilities cannot be reached, or has something to say")
}

/// Versions, licenses and sources. Installs cargo-deny where it is missing (some five minutes).
pub(crate) fn check_offline(root: &Path) -> Result<()> {
    let program = root.join(TOOLS).join("bin/cargo-deny");
    if !program.is_file() {
        Step::cargo(root)
            .args(["install", "--locked", "--root", TOOLS, "cargo-deny"])
            .run()?;
    }
    deny(root).args(["bans", "licenses", "sources"]).run()
}

fn deny(root: &Path) -> Step {
    Step::new(root, root.join(TOOLS).join("bin/cargo-deny")).args(["check"])
}
