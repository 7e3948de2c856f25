//! Prometheus' own tool, with the parsers that its server reads pages and rules with.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::chromium::is_there;
use crate::config::repository;
use crate::wait::in_time;

const PROGRAM: &str = "promtool";

/// Where `cargo xtask setup` puts it, unless the system has one.
const UNPACKED: &str = "target/promtool/usr/bin/promtool";

/// Where it is.
#[derive(Debug)]
pub struct Promtool(PathBuf);

impl Promtool {
    /// None: there is none, and `cargo xtask setup` could not get it here.
    ///
    /// # Errors
    ///
    /// It is not there where it could be.
    pub fn find() -> Result<Option<Self>> {
        if is_there(PROGRAM) {
            return Ok(Some(Self(PROGRAM.into())));
        }
        let unpacked = repository(UNPACKED);
        if unpacked.is_file() {
            return Ok(Some(Self(unpacked)));
        }
        ensure!(
            !is_there("apt-get"),
            "{PROGRAM} is missing: run `cargo xtask setup`"
        );
        Ok(None)
    }

    /// Reads a page in the classic text format, and lints it.
    ///
    /// # Errors
    ///
    /// What it says against the page.
    pub async fn check_metrics(&self, page: &[u8]) -> Result<()> {
        let folder = TempDir::new()?;
        let file = folder.path().join("page");
        fs::write(&file, page)?;
        let stdin = Stdio::from(fs::File::open(&file)?);
        self.run(&["check", "metrics"], stdin).await
    }

    /// Reads a page of OpenMetrics.
    ///
    /// # Errors
    ///
    /// What it says against the page.
    pub async fn read_open_metrics(&self, page: &str) -> Result<()> {
        let folder = TempDir::new()?;
        let file = folder.path().join("page");
        // What is made of it wants to know when it was: on a page that is scraped, nothing says so.
        let dated = |line: &str| match line.starts_with('#') {
            true => format!("{line}\n"),
            false => format!("{line} 1700000000\n"),
        };
        fs::write(&file, page.lines().map(dated).collect::<String>())?;
        let (file, out) = (file.display().to_string(), folder.path().join("blocks"));
        let out = out.display().to_string();
        let make = ["tsdb", "create-blocks-from", "openmetrics", &file, &out];
        self.run(&make, Stdio::null()).await
    }

    /// Reads a file of rules.
    ///
    /// # Errors
    ///
    /// What it says against them.
    pub async fn check_rules(&self, rules: &str) -> Result<()> {
        let folder = TempDir::new()?;
        let file = folder.path().join("rules.yml");
        fs::write(&file, rules)?;
        let file = file.display().to_string();
        self.run(&["check", "rules", &file], Stdio::null()).await
    }

    async fn run(&self, args: &[&str], stdin: Stdio) -> Result<()> {
        let mut command = Command::new(&self.0);
        command.args(args).stdin(stdin).kill_on_drop(true);
        let what = format!("`{PROGRAM} {}`", args.join(" "));
        let output = in_time(&what, command.output()).await?;
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{what}: {}:\n{said}",
            output.status
        );
        Ok(())
    }
}
