//! The machine that figures were taken on, as `/proc` tells.
//!
//! Nothing here names the machine itself: what counts is what another one would have to be like.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// What the figures depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's model, in its maker's words.
    pub processor: String,
    /// Processors that are there.
    pub cpus: usize,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This one; what is not known is said to be so.
    pub fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: field(&cpuinfo, "model name")
                .unwrap_or("an unknown processor")
                .to_owned(),
            cpus: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count()
                .max(1),
            memory_bytes: field(&meminfo, "MemTotal").map_or(0, kilobytes),
            kernel: kernel.trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processor,
            cpus,
            kernel,
            ..
        } = self;
        let gib = self.memory_bytes >> 30;
        write!(
            f,
            "{processor}, {cpus} processors, {gib} GiB of memory, Linux {kernel}"
        )
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// `24576 kB` in bytes.
fn kilobytes(text: &str) -> u64 {
    let number = text
        .split(' ')
        .next()
        .and_then(|number| number.parse::<u64>().ok());
    number.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_read() {
        let meminfo = "MemTotal:       24576 kB\nMemFree: 1 kB\n";
        assert_eq!(field(meminfo, "MemTotal").map(kilobytes), Some(24576 << 10));
        assert_eq!(
            field("model name\t: AMD EPYC\n", "model name"),
            Some("AMD EPYC")
        );
        assert_eq!(field("", "model name"), None);
    }
}
