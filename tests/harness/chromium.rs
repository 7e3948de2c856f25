//! A real browser, without a window.

use std::fs;
use std::process::{Command as Asked, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::wait::{PATIENCE, eventually, in_time};

/// Debian's name of it.
const PROGRAM: &str = "chromium";

/// Dropping it kills the browser.
#[derive(Debug)]
pub struct Chromium {
    browser: Child,
    /// Also its home: nothing of it is left behind.
    profile: TempDir,
}

impl Chromium {
    /// Opens `url`. None: there is no Chromium, and `cargo xtask setup` could not install it here.
    ///
    /// # Errors
    ///
    /// It is not installed where it could be, or does not start.
    pub fn visit(url: &str) -> Result<Option<Self>> {
        if !is_there(PROGRAM) {
            let is_root = getuid().is_root() || is_there("sudo");
            let can_be_installed = is_there("apt-get") && is_root;
            ensure!(
                !can_be_installed,
                "{PROGRAM} is missing: run `cargo xtask setup`"
            );
            return Ok(None);
        }
        let profile = TempDir::new()?;
        let browser = Command::new(PROGRAM)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu"])
            // Containers have little shared memory.
            .args(["--disable-dev-shm-usage", "--no-first-run"])
            // It talks to nobody but us.
            .args(["--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--no-proxy-server"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(url)
            .env("HOME", profile.path())
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {PROGRAM}"))?;
        Ok(Some(Self { browser, profile }))
    }

    /// Ends it, and with it its other processes.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub async fn end(mut self) -> Result<()> {
        let pid = self.browser.id().context("it was waited for")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id is not 0")?;
        kill_process(pid, Signal::TERM)?;
        in_time("the browser's end", self.browser.wait()).await?;
        // Its other processes follow, and write to the profile until they have.
        let profile = self.profile.path();
        eventually("the profile can be removed", PATIENCE, async || {
            let removed = fs::remove_dir_all(profile);
            removed.is_ok() && !profile.exists()
        })
        .await?;
        Ok(())
    }
}

pub(crate) fn is_there(program: &str) -> bool {
    let mut asked = Asked::new(program);
    asked.arg("--version").stdin(Stdio::null());
    asked.output().is_ok_and(|output| output.status.success())
}
