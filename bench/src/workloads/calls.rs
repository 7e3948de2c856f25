//! System calls of a running peer, counted by `strace`.
//!
//! [`Tracer::attach`] holds the peer until every process of it is traced, [`Tracer::detach`] hands over
//! the count. What is called between the two, and only that, is counted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use super::figure::{Figure, Figures};
use crate::usage::process_tree;

/// `strace` at work.
#[derive(Debug)]
pub struct Tracer {
    strace: Child,
    summary: NamedTempFile,
}

impl Tracer {
    /// Attaches to `root` and all its descendants and their threads.
    ///
    /// # Errors
    /// `strace` is not installed or may not trace.
    pub fn attach(root: u32) -> Result<Self> {
        let summary = NamedTempFile::new()?;
        let pids = process_tree(root);
        let mut strace = Command::new("strace")
            .args(["-f", "-c", "-o"])
            .arg(summary.path())
            .args(
                pids.iter()
                    .flat_map(|pid| ["-p".to_owned(), pid.to_string()]),
            )
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start strace: is it installed?")?;
        let stderr = strace.stderr.take().context("strace without stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        for _ in &pids {
            // "strace: Process 123 attached", also "... attached with 4 threads".
            match lines.next() {
                Some(Ok(line)) if line.contains("attached") => {}
                other => bail!("strace does not attach: {other:?}"),
            }
        }
        Ok(Self { strace, summary })
    }

    /// Lets the peer go. Names of calls with their counts.
    ///
    /// # Errors
    /// `strace` cannot be ended or leaves no count.
    pub fn detach(mut self) -> Result<Vec<(String, u64)>> {
        kill_process(Pid::from_child(&self.strace), Signal::INT)
            .context("strace ended by itself")?;
        self.strace.wait()?;
        let counts = parse(&fs::read_to_string(self.summary.path())?);
        if counts.is_empty() {
            bail!("strace counted nothing");
        }
        Ok(counts)
    }
}

/// What the calls come to for one of `echoes`.
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn figures(counts: &[(String, u64)], echoes: u64) -> Figures {
    let per_echo = |is_counted: fn(&str) -> bool| {
        let counted = counts.iter().filter(|(name, _)| is_counted(name));
        counted.map(|(_, n)| *n).sum::<u64>() as f64 / echoes.max(1) as f64
    };
    Figures::from([
        (Figure::CallsPerEcho, per_echo(|_| true)),
        (
            Figure::ReadsPerEcho,
            per_echo(|name| name.contains("read") || name.starts_with("recv")),
        ),
        (
            Figure::WritesPerEcho,
            per_echo(|name| name.contains("write") || name.starts_with("send")),
        ),
        (
            Figure::WaitsPerEcho,
            per_echo(|name| name.contains("_wait") || name.contains("_pwait")),
        ),
    ])
}

/// The last two of the columns `% time, seconds, usecs/call, calls, errors, syscall`, where `errors`
/// may be empty.
fn parse(summary: &str) -> Vec<(String, u64)> {
    let rows = summary.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = *words.last()?;
        words.first()?.parse::<f64>().ok()?;
        Some((name.to_owned(), words.get(3)?.parse().ok()?))
    });
    rows.filter(|(name, _)| name != "total").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.600000           3    200000     90000 recvfrom
 30.00    0.300000           3    100000           sendto
  9.00    0.090000           9     10000           epoll_wait
  1.00    0.010000           5      2000           timerfd_settime
------ ----------- ----------- --------- --------- ----------------
100.00    1.000000           3    312000     90000 total
";

    #[test]
    fn calls_are_sorted_into_reads_writes_and_waits() {
        let figures = figures(&parse(SUMMARY), 50_000);
        assert_eq!(figures[&Figure::ReadsPerEcho], 4.0);
        assert_eq!(figures[&Figure::WritesPerEcho], 2.0);
        assert_eq!(figures[&Figure::WaitsPerEcho], 0.2);
        assert_eq!(figures[&Figure::CallsPerEcho], 6.24);
    }
}
