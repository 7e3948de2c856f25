//! Whether there are enough file descriptors to go on accepting.
//!
//! The system gives out the lowest that is free, so the number of a new one says how many there are. A few
//! are kept back: for connections to backends, files of plugins and the admin pages.

use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Kept back at most, and at most so much of all.
const RESERVE_MAX: u64 = 64;
const RESERVE_SHARE: u64 = 8;

/// The limit of this process.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors {
    limit: u64,
}

impl Descriptors {
    /// Raises the soft limit to the hard one, as far as the system lets us.
    pub fn raise() -> Self {
        let before = getrlimit(Resource::Nofile);
        let mut raised = before;
        raised.current = raised.maximum;
        let limit = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => raised.current,
            Err(_) => before.current,
        };
        Self {
            limit: limit.unwrap_or(u64::MAX),
        }
    }

    /// How many this process may have; `u64::MAX`: any number.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether a descriptor as new as this one, and as many more as are asked for soon, leave too few.
    pub fn is_scarce(&self, newest: impl AsFd, soon: usize) -> bool {
        let number = u64::try_from(newest.as_fd().as_raw_fd()).unwrap_or_default();
        let reserve = RESERVE_MAX.min(self.limit / RESERVE_SHARE);
        number.saturating_add(soon as u64) >= self.limit - reserve
    }

    /// As [`Descriptors::is_scarce`], looked at again for one that was taken before.
    pub fn is_scarce_still(&self, taken: impl AsFd, soon: usize) -> bool {
        // None left is too few.
        fcntl_dupfd_cloexec(taken, 0).map_or(true, |lowest_free| self.is_scarce(lowest_free, soon))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_last_few_are_kept_back() -> std::io::Result<()> {
        let file = File::open("/dev/null")?;
        let number = u64::try_from(file.as_raw_fd()).unwrap_or_default();
        let with = |spare| Descriptors {
            limit: number + RESERVE_MAX * RESERVE_SHARE + spare,
        };
        let spare = usize::try_from(RESERVE_MAX * RESERVE_SHARE - RESERVE_MAX).unwrap_or_default();
        assert!(!with(1).is_scarce(&file, spare));
        assert!(with(0).is_scarce(&file, spare));
        let any = Descriptors { limit: u64::MAX };
        assert!(!any.is_scarce_still(&file, 0));
        assert!(Descriptors { limit: 1 }.is_scarce_still(&file, 0));
        Ok(())
    }
}
