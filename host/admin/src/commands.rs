//! Steering: what an operator can order over the admin address, and what comes of it.
//!
//! Values only: `http.rs` reads orders off the wire, `server/` carries them out, and
//! `pointsman check --against-running` asks for a plan.

use std::fmt;
use std::path::PathBuf;

use pointsman_config::Problem;
use serde::{Deserialize, Serialize};

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminCommand {
    /// Read the configuration again.
    Reload,
    /// Take something out of service, or put it back.
    Drain {
        /// What.
        what: Drainable,
        /// Whether it is taken out.
        is_out: bool,
    },
    /// Say what a configuration would change.
    ReloadPlan(Proposal),
}

/// What can be taken out of service by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drainable {
    /// One backend of one upstream.
    Backend {
        /// The upstream's name.
        upstream: String,
        /// The backend's address.
        address: String,
    },
    /// One route, by host and path as they are written.
    Route(String),
}

/// A configuration that is not active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The file's content.
    pub text: String,
    /// Where relative paths in it begin.
    pub dir: PathBuf,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    /// It is done; there is nothing more to say.
    Done(String),
    /// What was asked for.
    Planned(ReloadPlan),
    /// There is no such thing.
    NotFound(String),
    /// It is wrong, and nothing was changed.
    Refused(Vec<Problem>),
}

/// What a configuration would change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadPlan {
    /// Empty: nothing.
    pub changes: Vec<PlannedChange>,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedChange {
    /// `upstream app: backend 127.0.0.1:3001`
    pub what: String,
    /// How.
    pub kind: ChangeKind,
    /// What of it differs, where it is there before and after.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
    /// Open sessions that are closed by it, with 1012 and over the drain time.
    pub sessions_ended: u64,
}

/// How two configurations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It will not be there.
    Removed,
    /// It is another.
    Changed,
}

fn counted(n: u64, thing: &str) -> String {
    match n {
        1 => format!("1 {thing}"),
        n => format!("{n} {thing}s"),
    }
}

impl fmt::Display for ReloadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changes.is_empty() {
            return writeln!(f, "nothing changes");
        }
        for change in &self.changes {
            let sign = match change.kind {
                ChangeKind::Added => '+',
                ChangeKind::Removed => '-',
                ChangeKind::Changed => '~',
            };
            write!(f, "{sign} {}", change.what)?;
            if !change.details.is_empty() {
                write!(f, " ({})", change.details)?;
            }
            match change.sessions_ended {
                0 => writeln!(f)?,
                n => writeln!(f, ": ends {}", counted(n, "session"))?,
            }
        }
        let ended: u64 = self
            .changes
            .iter()
            .map(|change| change.sessions_ended)
            .sum();
        let changes = counted(self.changes.len() as u64, "change");
        writeln!(f, "{changes}, which end {}", counted(ended, "session"))
    }
}
