//! What the system says of this process: memory, descriptors, time on the CPU.
//!
//! Read from `/proc/self` on request; what a system does not offer is left out.

use std::{fs, io};

use rustix::time::{ClockId, clock_gettime};

/// Figures of one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Process {
    /// `VmRSS`.
    pub(super) resident_bytes: Option<u64>,
    /// Sockets included.
    pub(super) open_fds: Option<u64>,
    /// User and system, over all threads.
    pub(super) cpu_secs: f64,
}

impl Process {
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status");
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            resident_bytes: status.ok().as_deref().and_then(resident_bytes),
            open_fds: open_fds().ok(),
            cpu_secs: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        }
    }
}

/// `VmRSS:     1234 kB`, proc(5).
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Since Linux 6.2 the directory's size is the number of its entries. Before, every entry has to be
/// listed, the descriptor of the listing among them: a fifth of a second at 200,000 sockets.
fn open_fds() -> io::Result<u64> {
    let size = fs::metadata("/proc/self/fd")?.len();
    if size > 0 {
        return Ok(size);
    }
    let listed = fs::read_dir("/proc/self/fd")?.count() as u64;
    Ok(listed.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(
            resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t1\n"),
            Some(1_263_616)
        );
        assert_eq!(resident_bytes("Name:\tx\n"), None);
        assert_eq!(resident_bytes("VmRSS:\tmany kB\n"), None);
    }

    #[test]
    fn this_process_has_memory_and_descriptors_and_has_run() {
        let process = Process::read();
        assert!(process.resident_bytes.unwrap() > 64 * 1024);
        assert!(process.open_fds.unwrap() >= 3);
        assert!(process.cpu_secs > 0.0);
    }
}
