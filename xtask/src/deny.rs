//! What may come in: `deny.toml`, held against `Cargo.lock` by cargo-deny.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::step::Step;

/// Below `target/`, so that nothing of the machine is changed.
const TOOLS: &str = "target/tools";

/// Installs cargo-deny where it is missing (some five minutes), and runs it. Known vulnerabilities are asked
/// for last, since that needs a database that not every machine can reach.
pub(crate) fn check(root: &Path) -> Result<()> {
    let program = root.join(TOOLS).join("bin/cargo-deny");
    if !program.is_file() {
        Step::cargo(root)
            .args(["install", "--locked", "--root", TOOLS, "cargo-deny"])
            .run()?;
    }
    let deny = || Step::new(root, &program).args(["check"]);
    deny().args(["bans", "licenses", "sources"]).run()?;
    deny()
        .args(["advisories"])
        .run()
        .context("the database of known vulnerabilities cannot be reached, or has something to say")
}
