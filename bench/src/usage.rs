//! What processes used, from `/proc`: CPU time of a whole process tree, its proportional memory, and what
//! others had of the machine meanwhile.

use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::{Context, Result};

/// Of the times in `/proc`, in a second: `USER_HZ`, which is 100 for every architecture of ours.
const CLOCK_TICKS: u64 = 100;

/// CPU time since a process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Outside the kernel.
    pub user: Duration,
    /// Inside the kernel.
    pub system: Duration,
}

impl Cpu {
    /// What was used from `before` on.
    pub fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }
}

/// CPU time of `root` and all its descendants, to a tick of 10 ms each (`utime` and `stime` of
/// proc(5)). The sum of both is exact, since the kernel scales it to what the scheduler measured; the
/// part of each is sampled.
///
/// # Errors
/// A process went away meanwhile.
pub fn cpu(root: u32) -> Result<Cpu> {
    let mut total = Cpu::default();
    for pid in process_tree(root) {
        let stat = read(pid, "stat")?;
        let (user, system) = ticks(&stat).with_context(|| format!("/proc/{pid}/stat: {stat:?}"))?;
        total.user += user;
        total.system += system;
    }
    Ok(total)
}

/// What others than this process and its children had of the processors: from [`Disturbance::begin`] on.
#[derive(Debug)]
pub struct Disturbance {
    began: Instant,
    machine: Duration,
    ours: Duration,
}

impl Disturbance {
    /// Of all that runs on the machine, what is busy from now on.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn begin() -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            machine: busy(&read_file("/proc/stat")?).context("/proc/stat has no line for all")?,
            ours: ours()?,
        })
    }

    /// Processors that others kept busy since then: 0.1 is a tenth of one. Time that the host of a virtual
    /// machine took away counts; interrupts do not, for they are mostly ours. Children count once they have
    /// ended and were waited for.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn end(self) -> Result<f64> {
        let now = Self::begin()?;
        let machine = now.machine.saturating_sub(self.machine);
        let ours = now.ours.saturating_sub(self.ours);
        Ok(others(machine, ours, now.began - self.began))
    }
}

fn others(machine: Duration, ours: Duration, wall: Duration) -> f64 {
    machine.saturating_sub(ours).as_secs_f64() / wall.as_secs_f64()
}

/// Of all processors: `user`, `nice`, `system` and `steal` of proc(5).
fn busy(stat: &str) -> Option<Duration> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let times: Vec<u64> = all
        .split_whitespace()
        .map(|ticks| ticks.parse().ok())
        .collect::<Option<_>>()?;
    let [
        user,
        nice,
        system,
        _idle,
        _iowait,
        _irq,
        _softirq,
        steal,
        ..,
    ] = times[..]
    else {
        return None;
    };
    Some(of_ticks(user + nice + system + steal))
}

/// Of this process and of the children that it has waited for.
fn ours() -> Result<Duration> {
    let stat = read("self", "stat")?;
    let times = times(&stat).with_context(|| format!("/proc/self/stat: {stat:?}"))?;
    Ok(times.iter().sum())
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_micros(ticks * 1_000_000 / CLOCK_TICKS)
}

/// Proportional set size (`Pss` of `smaps_rollup`) of `root` and all its descendants, in bytes.
///
/// # Errors
/// A process went away meanwhile.
pub fn pss_bytes(root: u32) -> Result<u64> {
    let mut total = 0;
    for pid in process_tree(root) {
        let rollup = read(pid, "smaps_rollup")?;
        total += pss(&rollup).with_context(|| format!("/proc/{pid}/smaps_rollup: {rollup:?}"))?;
    }
    Ok(total)
}

/// `root`, its children, theirs and so on.
pub fn process_tree(root: u32) -> Vec<u32> {
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next) {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let children =
            threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let children: Vec<u32> = children
            .flat_map(|line| {
                line.split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        tree.extend(children);
        next += 1;
    }
    tree
}

fn read(pid: impl fmt::Display, file: &str) -> Result<String> {
    read_file(&format!("/proc/{pid}/{file}"))
}

fn read_file(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// User and system time of a process, without its children.
fn ticks(stat: &str) -> Option<(Duration, Duration)> {
    let [user, system, ..] = times(stat)?;
    Some((user, system))
}

/// User and system time of a process, and of the children that it has waited for: fields 14 to 17 of proc(5),
/// counted from behind the name, which may contain anything.
fn times(stat: &str) -> Option<[Duration; 4]> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace().skip(11).take(4);
    let times: Option<Vec<_>> = fields
        .map(|ticks| ticks.parse().ok().map(of_ticks))
        .collect();
    times?.try_into().ok()
}

fn pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_of_any_kind() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 150 250 7 8 20 0 1 0 100";
        let expected = (Duration::from_millis(1500), Duration::from_millis(2500));
        assert_eq!(ticks(stat), Some(expected));
    }

    #[test]
    fn what_others_had_is_neither_idle_nor_interrupts() {
        let stat = "cpu  100 20 30 9000 400 5 6 50 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(busy(stat), Some(Duration::from_millis(2000)));
        assert_eq!(busy("cpu0 1 2 3\n"), None);
    }

    #[test]
    fn what_is_ours_disturbs_nobody() {
        let ms = Duration::from_millis;
        assert!((others(ms(2000), ms(1500), ms(1000)) - 0.5).abs() < 1e-9);
        assert!(
            others(ms(1000), ms(1010), ms(1000)).abs() < 1e-9,
            "ticks are rounded"
        );
        let busy_until = ours().unwrap() + ms(20);
        while ours().unwrap() < busy_until {}
        assert!(Disturbance::begin().unwrap().end().unwrap() >= 0.0);
    }

    #[test]
    fn proportional_memory_is_not_that_of_its_kinds() {
        let rollup = "7f00-7fff ---p 00000000 00:00 0 [rollup]\nRss:  900 kB\nPss:  120 kB\nPss_Anon:  80 kB\n";
        assert_eq!(pss(rollup), Some(120 * 1024));
    }

    #[test]
    fn this_process_has_used_something() {
        let own = std::process::id();
        assert!(process_tree(own).contains(&own));
        assert!(pss_bytes(own).unwrap() > 100_000);
        cpu(own).unwrap();
    }
}
