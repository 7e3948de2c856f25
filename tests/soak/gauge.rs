//! Whether anything grows: memory and descriptors of the balancer over time.

use std::fmt;
use std::io::{Write as _, stdout};
use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_tests::{Balancer, eventually};

/// What a process of this kind may need more than before: allocators give back late.
const MEMORY_SLACK: f64 = 16.0 * 1024.0 * 1024.0;
const MEMORY_GROWTH: f64 = 1.10;
/// Connections under way come and go.
const DESCRIPTOR_GROWTH: f64 = 1.10;
/// What stays open after all sessions: kept connections, and what plugins opened since.
const DESCRIPTOR_SLACK: f64 = 16.0;

/// What was seen so far.
pub(crate) struct Gauge {
    before: Sample,
    samples: Vec<Sample>,
}

/// One look.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    rss_bytes: f64,
    descriptors: f64,
    sessions: f64,
    held_bytes: f64,
}

impl Gauge {
    /// Before anybody comes.
    pub(crate) async fn new(balancer: &Balancer) -> Result<Self> {
        Ok(Self {
            before: look(balancer).await?,
            samples: Vec::new(),
        })
    }

    pub(crate) async fn take(&mut self, balancer: &Balancer) -> Result<Sample> {
        let sample = look(balancer).await?;
        self.samples.push(sample);
        Ok(sample)
    }

    /// Compares the last third with the one before it; the first is for warming up.
    pub(crate) fn is_flat(&self) -> Result<()> {
        let third = self.samples.len() / 3;
        let (_, rest) = self.samples.split_at(third);
        let (middle, last) = rest.split_at(rest.len() / 2);
        let memory = |samples: &[Sample]| mean(samples, |sample| sample.rss_bytes);
        let (before, after) = (memory(middle), memory(last));
        ensure!(
            after <= before * MEMORY_GROWTH + MEMORY_SLACK,
            "memory grows: {before:.0} bytes, then {after:.0}"
        );
        let descriptors = |samples: &[Sample]| mean(samples, |sample| sample.descriptors);
        let (before, after) = (descriptors(middle), descriptors(last));
        ensure!(
            after <= before * DESCRIPTOR_GROWTH,
            "descriptors grow: {before:.0}, then {after:.0}"
        );
        Ok(())
    }

    /// When all sessions have ended, what they held is given back.
    pub(crate) async fn is_back(&self, balancer: &Balancer, patience: Duration) -> Result<()> {
        let mut last = self.before;
        let back = eventually("all is given back", patience, async || {
            if let Ok(sample) = look(balancer).await {
                last = sample;
            }
            last.held_bytes == 0.0 && last.descriptors <= self.before.descriptors + DESCRIPTOR_SLACK
        });
        let is_back = back.await;
        writeln!(stdout(), "before: {}\nafter:  {last}", self.before)?;
        is_back.map(drop)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>5.1} MiB {:>5} fds {:>5} sessions {:>6} B held",
            self.rss_bytes / 1_048_576.0,
            self.descriptors,
            self.sessions,
            self.held_bytes
        )
    }
}

async fn look(balancer: &Balancer) -> Result<Sample> {
    let metrics = balancer.metrics().await?;
    let sum = |name| metrics.sum(name, &[]);
    Ok(Sample {
        rss_bytes: sum("process_resident_memory_bytes"),
        descriptors: sum("process_open_fds"),
        sessions: sum("pointsman_sessions"),
        held_bytes: sum("pointsman_buffered_bytes"),
    })
}

fn mean(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    samples.iter().map(of).sum::<f64>() / samples.len().max(1) as f64
}
