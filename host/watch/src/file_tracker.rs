//! What is known of the watched files, and which of them are still moving.
//!
//! In come looks and events with their times, out comes what has settled. Knows no files and no
//! clock: both are told to it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use tokio::time::Instant;

/// Names kept track of; the rest is ignored with a warning. Far more than anybody has plugins.
pub(super) const FILES_MAX: usize = 4096;

/// What a look at a name finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Missing,
    File(Stamp),
    /// Something that is not for reading, in words.
    NoFile(&'static str),
}

/// Tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    /// Of the inode: also tells of new permissions, and of writers who set `modified` back.
    pub(super) changed: (i64, i64),
}

/// What is known and what is still moving.
#[derive(Debug, Default)]
pub(super) struct FileTracker {
    /// What was last reported, or was there from the start. Never [`Seen::Missing`].
    known: BTreeMap<OsString, Seen>,
    pending: BTreeMap<OsString, PendingFile>,
    is_full: bool,
}

/// A name that waits to be left alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingFile {
    pub(super) due: Instant,
    /// How long it was asked to be left alone.
    pub(super) quiet: Duration,
    /// What was there when it was touched last.
    pub(super) seen: Seen,
    /// Somebody wrote: report it even where the stamp is the known one. What was written through a
    /// memory map may leave the stamp as it was.
    pub(super) is_certain: bool,
}

/// What came of a name that was due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    NotYet,
    Nothing,
    Written,
    Gone,
    NoFile { why: &'static str, was_file: bool },
}

impl FileTracker {
    pub(super) fn begin_with(&mut self, name: OsString, seen: Seen) {
        if let Seen::NoFile(why) = seen {
            tracing::warn!(name = %name.display(), "ignored: this is {why}");
        }
        self.known.insert(name, seen);
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &OsStr> {
        let files = self
            .known
            .iter()
            .filter(|(_, seen)| matches!(seen, Seen::File(_)));
        files.map(|(name, _)| name.as_os_str())
    }

    /// Something happened to this name: the wait starts over.
    pub(super) fn note(&mut self, name: OsString, mut pending: PendingFile) {
        if let Some(before) = self.pending.get_mut(&name) {
            pending.is_certain |= before.is_certain;
            *before = pending;
            return;
        }
        let is_new = !self.known.contains_key(&name);
        if is_new && self.known.len() + self.pending.len() >= FILES_MAX {
            if !self.is_full {
                self.is_full = true;
                tracing::warn!(name = %name.display(), "ignored: more than {FILES_MAX} files are not watched");
            }
            return;
        }
        self.pending.insert(name, pending);
    }

    /// Names that are not what is known of them, and that nobody waits for yet.
    pub(super) fn differences(
        &self,
        mut listed: BTreeMap<OsString, Seen>,
    ) -> Vec<(OsString, Seen)> {
        let gone = self.known.keys().filter(|name| !listed.contains_key(*name));
        let mut differences: Vec<_> = gone.map(|name| (name.clone(), Seen::Missing)).collect();
        listed.retain(|name, seen| self.known.get(name) != Some(seen));
        differences.extend(listed);
        differences.retain(|(name, _)| !self.pending.contains_key(name));
        differences
    }

    pub(super) fn quiet_asked(&self, name: &OsStr) -> Option<Duration> {
        self.pending.get(name).map(|pending| pending.quiet)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.due).min()
    }

    /// In the order in which they fell due.
    pub(super) fn due(&self, now: Instant) -> Vec<OsString> {
        let due = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.due <= now);
        let mut due: Vec<_> = due
            .map(|(name, pending)| (pending.due, name.clone()))
            .collect();
        due.sort();
        due.into_iter().map(|(_, name)| name).collect()
    }

    /// Nobody takes changes at the moment: what is due falls due later.
    pub(super) fn postpone(&mut self, until: Instant) {
        for pending in self.pending.values_mut() {
            pending.due = pending.due.max(until);
        }
    }

    pub(super) fn forget_pending(&mut self, name: &OsStr) {
        self.pending.remove(name);
    }

    /// A name is due, and this is what is there now.
    pub(super) fn settle(
        &mut self,
        name: OsString,
        seen: Seen,
        now: Instant,
        patience: Duration,
    ) -> Settled {
        let Some(pending) = self.pending.get_mut(&name) else {
            return Settled::Nothing;
        };
        if pending.seen != seen {
            // Somebody writes without our hearing of it.
            *pending = PendingFile {
                due: now + patience,
                quiet: patience,
                seen,
                ..*pending
            };
            return Settled::NotYet;
        }
        let is_certain = pending.is_certain;
        self.pending.remove(&name);
        let before = match seen {
            Seen::Missing => self.known.remove(&name),
            Seen::File(_) | Seen::NoFile(_) => self.known.insert(name, seen),
        };
        let was_file = matches!(before, Some(Seen::File(_)));
        match seen {
            Seen::File(_) if is_certain || before != Some(seen) => Settled::Written,
            Seen::Missing if was_file => Settled::Gone,
            Seen::NoFile(why) if before != Some(seen) => Settled::NoFile { why, was_file },
            Seen::File(_) | Seen::Missing | Seen::NoFile(_) => Settled::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_millis(250);

    fn file(size: u64) -> Seen {
        Seen::File(Stamp {
            device: 1,
            inode: 1,
            size,
            modified: (0, 0),
            changed: (0, 0),
        })
    }

    fn pending(now: Instant, seen: Seen) -> PendingFile {
        PendingFile {
            due: now + QUIET,
            quiet: QUIET,
            seen,
            is_certain: true,
        }
    }

    #[test]
    fn each_event_begins_the_wait_anew() {
        let (mut ledger, now) = (FileTracker::default(), Instant::now());
        ledger.note("x".into(), pending(now, file(1)));
        ledger.note("x".into(), pending(now + QUIET / 2, file(2)));
        assert!(ledger.due(now + QUIET).is_empty());
        assert_eq!(ledger.due(now + QUIET * 3 / 2), ["x"]);
        assert_eq!(
            ledger.settle("x".into(), file(2), now, PATIENCE),
            Settled::Written
        );
        assert_eq!(ledger.next_due(), None);
    }

    #[test]
    fn a_file_that_moves_without_events_is_waited_for() {
        let (mut ledger, now) = (FileTracker::default(), Instant::now());
        ledger.note("x".into(), pending(now, file(1)));
        assert_eq!(
            ledger.settle("x".into(), file(2), now, PATIENCE),
            Settled::NotYet
        );
        assert_eq!(ledger.next_due(), Some(now + PATIENCE));
        assert_eq!(
            ledger.settle("x".into(), file(2), now, PATIENCE),
            Settled::Written
        );
    }

    #[test]
    fn a_look_that_finds_the_known_stamp_is_no_change_and_a_write_is() {
        let (mut ledger, now) = (FileTracker::default(), Instant::now());
        ledger.begin_with("x".into(), file(1));
        ledger.note(
            "x".into(),
            PendingFile {
                is_certain: false,
                ..pending(now, file(1))
            },
        );
        assert_eq!(
            ledger.settle("x".into(), file(1), now, PATIENCE),
            Settled::Nothing
        );
        ledger.note("x".into(), pending(now, file(1)));
        ledger.note(
            "x".into(),
            PendingFile {
                is_certain: false,
                ..pending(now, file(1))
            },
        );
        assert_eq!(
            ledger.settle("x".into(), file(1), now, PATIENCE),
            Settled::Written
        );
    }

    #[test]
    fn what_is_no_file_is_told_once() {
        let (mut ledger, now) = (FileTracker::default(), Instant::now());
        ledger.begin_with("x".into(), file(1));
        for was_file in [true, false] {
            ledger.note("x".into(), pending(now, Seen::NoFile("a directory")));
            let settled = ledger.settle("x".into(), Seen::NoFile("a directory"), now, PATIENCE);
            let expected = Settled::NoFile {
                why: "a directory",
                was_file,
            };
            assert_eq!(settled, if was_file { expected } else { Settled::Nothing });
        }
    }

    #[test]
    fn it_does_not_grow_past_its_bound() {
        let (mut ledger, now) = (FileTracker::default(), Instant::now());
        ledger.begin_with("known".into(), file(1));
        for n in 0..2 * FILES_MAX {
            ledger.note(n.to_string().into(), pending(now, file(1)));
        }
        assert_eq!(ledger.known.len() + ledger.pending.len(), FILES_MAX);
        ledger.note("known".into(), pending(now, file(2)));
        assert!(ledger.pending.contains_key(OsStr::new("known")));
    }
}
