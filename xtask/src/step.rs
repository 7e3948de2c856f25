//! One child process: shown, run, and an error when it fails.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// A command line that is about to run.
pub(crate) struct Step {
    command: Command,
    /// What stands before the program in the line shown: the folder and the variables set.
    prefix: String,
}

impl Step {
    /// Runs in `folder`.
    pub(crate) fn new(folder: &Path, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(folder);
        Self {
            command,
            prefix: String::new(),
        }
    }

    /// The cargo of the toolchain that runs us.
    pub(crate) fn cargo(folder: &Path) -> Self {
        Self::new(folder, "cargo")
    }

    /// Shows the folder, for steps that run elsewhere than in the workspace's root.
    pub(crate) fn show_folder(mut self, folder: &str) -> Self {
        self.prefix = format!("cd {folder} && {}", self.prefix);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self.prefix += &format!("{name}={} ", quoted(value));
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Shows the command line, runs it and waits.
    ///
    /// # Errors
    ///
    /// The program cannot be started, or it failed.
    pub(crate) fn run(mut self) -> Result<()> {
        let line = self.line();
        eprintln!("==> {line}");
        let status = self
            .command
            .status()
            .with_context(|| format!("cannot run `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed ({status})");
        }
        Ok(())
    }

    /// What the command prints, without showing the line. None: it is missing, or it failed.
    pub(crate) fn output(mut self) -> Option<String> {
        let output = self.command.stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
        format!("{}{}", self.prefix, words.join(" "))
    }
}

/// Quotes a word that a shell would cut or expand.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+@,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{word}'")
    }
}
