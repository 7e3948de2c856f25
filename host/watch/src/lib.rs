//! File-system noise in, settled "this file changed" out.
//!
//! In come a directory and an extension, or one file; out come [`Change`]s, each after its file has
//! been left alone for a moment, so that nobody loads what is half written. inotify says where to
//! look; a look at everything every two seconds finds what inotify missed (an overflow, a
//! network file system, a directory that was made again). All looking is done on a thread of its
//! own, because a look at a dead network share may never end. What the files hold, this room never
//! asks.
//!
//! ```text
//!   inotify --(name, finished or changing)--+
//!                                           v           quiet for long enough,
//!   rescan ---(stamp is not the known one)-> pending --- same stamp as before ---> Written | Gone
//!                                           ^     |
//!                                           +-----+  another event, another stamp
//! ```

mod file_tracker;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use std::{fs, io, thread};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::file_tracker::{FILES_MAX, FileTracker, PendingFile, Seen, Settled, Stamp};

/// Keeps a watch going; dropping it ends the watch, and with it the channel of changes.
#[derive(Debug)]
pub struct Watch {
    existing: Vec<PathBuf>,
    trouble: watch::Receiver<Option<String>>,
    waker: SyncSender<FsEvent>,
    is_stopped: Arc<AtomicBool>,
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is new or has been written to, and nobody has touched it for a moment. The content may be
    /// what it was before.
    Written(PathBuf),
    /// It was there, and is no more, or is no regular file any more.
    Gone(PathBuf),
}

/// How long things take. The defaults of [`SettleTimes::default`] hold outside tests.
#[derive(Debug, Clone, Copy)]
struct SettleTimes {
    /// Quiet asked for after the writer has closed or renamed the file, or deleted it: long enough
    /// for `mv old; mv new` to look like one change, too short for a person to notice.
    finished: Duration,
    /// Quiet asked for while a writer may be at work: most pause less between two writes.
    changing: Duration,
    /// Between two looks at everything.
    rescan: Duration,
}

impl Default for SettleTimes {
    fn default() -> Self {
        Self {
            finished: Duration::from_millis(50),
            changing: Duration::from_millis(250),
            rescan: Duration::from_secs(2),
        }
    }
}

/// Events from inotify that wait to be looked at. What does not fit leads to a rescan.
const NOISE_MAX: usize = 1024;

/// Changes that wait to be taken. While it is full they wait here, one per file.
const CHANGES_MAX: usize = 64;

impl Watch {
    /// Watches the files right in `path` whose names end in `.extension` and do not begin with a
    /// dot. Read the files that [`Watch::existing`] names after this returns, and no change is
    /// missed.
    ///
    /// # Errors
    /// `path` is not a directory that can be read now (later it may come and go), or there is no
    /// room for another thread.
    pub fn directory(path: &Path, extension: &str) -> io::Result<(Self, mpsc::Receiver<Change>)> {
        start(
            path,
            Wanted::Extension(extension.into()),
            SettleTimes::default(),
            Inotify::On,
        )
    }

    /// Watches one file, which need not exist yet; its directory must.
    ///
    /// # Errors
    /// As [`Watch::directory`], or `path` names no file.
    pub fn file(path: &Path) -> io::Result<(Self, mpsc::Receiver<Change>)> {
        let Some(name) = path.file_name() else {
            let message = format!("{} names no file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let directory = path.parent().unwrap_or(Path::new(""));
        start(
            directory,
            Wanted::Name(name.to_owned()),
            SettleTimes::default(),
            Inotify::On,
        )
    }

    /// The files that were there when the watch began, in order. No [`Change`] tells of them until
    /// they change.
    pub fn existing(&self) -> &[PathBuf] {
        &self.existing
    }

    /// Why changes cannot be seen now; none: they can.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        // A full channel wakes the thread just as well. The thread is not joined: it may be inside
        // a look at a share that is dead, and it holds nothing that others wait for.
        let _ = self.waker.try_send(FsEvent::Wake);
    }
}

/// Which names are looked at.
#[derive(Debug, Clone)]
enum Wanted {
    Extension(OsString),
    Name(OsString),
}

impl Wanted {
    fn matches(&self, name: &OsStr) -> bool {
        match self {
            Self::Name(wanted) => name == wanted,
            // `x.wasm~`, `x.wasm.tmp` and `.x.wasm.swp` have other extensions; `.x.wasm` has not.
            Self::Extension(extension) => {
                !name.as_encoded_bytes().starts_with(b".")
                    && Path::new(name).extension() == Some(extension)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inotify {
    On,
    /// As on a file system that has none.
    Off,
}

/// What wakes the thread.
#[derive(Debug, PartialEq, Eq)]
enum FsEvent {
    /// Look at the flags.
    Wake,
    /// Something happened to this name.
    Entry(OsString, Touch),
    /// Something happened to the directory itself.
    Directory,
}

/// What an event says of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Touch {
    /// Closed after writing, renamed, deleted: the writer is done.
    Finished,
    /// Written to, or made: there may be more to come.
    Changing,
    /// Times or permissions: worth a look.
    Attributes,
}

/// Everything that one thread owns.
struct Watcher {
    /// As given, so that changes bear the paths that the caller knows.
    directory: PathBuf,
    wanted: Wanted,
    pace: SettleTimes,
    use_inotify: Inotify,
    /// None while inotify cannot be had; asked for again at each rescan.
    inotify: Option<RecommendedWatcher>,
    /// Device and inode of the directory that `inotify` looks at.
    armed_for: Option<(u64, u64)>,
    ledger: FileTracker,
    noise: Receiver<FsEvent>,
    waker: SyncSender<FsEvent>,
    has_missed: Arc<AtomicBool>,
    is_stopped: Arc<AtomicBool>,
    changes: mpsc::Sender<Change>,
    trouble: watch::Sender<Option<String>>,
    last_rescan: Instant,
    next_rescan: Instant,
    /// So that a trouble that lasts is told once.
    told: Option<io::ErrorKind>,
}

fn start(
    directory: &Path,
    wanted: Wanted,
    pace: SettleTimes,
    use_inotify: Inotify,
) -> io::Result<(Watch, mpsc::Receiver<Change>)> {
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let (waker, noise) = sync_channel(NOISE_MAX);
    let (changes, receiver) = mpsc::channel(CHANGES_MAX);
    let (trouble, told_trouble) = watch::channel(None);
    let is_stopped = Arc::new(AtomicBool::new(false));
    let now = Instant::now();
    let mut watcher = Watcher {
        directory: directory.to_owned(),
        wanted,
        pace,
        use_inotify,
        inotify: None,
        armed_for: None,
        ledger: FileTracker::default(),
        noise,
        waker: waker.clone(),
        has_missed: Arc::new(AtomicBool::new(false)),
        is_stopped: Arc::clone(&is_stopped),
        changes,
        trouble,
        last_rescan: now,
        next_rescan: now + pace.rescan,
        told: None,
    };
    // First inotify, then the list: what changes between them is seen twice and not missed.
    watcher.arm(identity(directory)?);
    for (name, seen) in watcher.list()? {
        watcher.ledger.begin_with(name, seen);
    }
    let existing = watcher
        .ledger
        .files()
        .map(|name| directory.join(name))
        .collect();
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || watcher.run())?;
    Ok((
        Watch {
            existing,
            trouble: told_trouble,
            waker,
            is_stopped,
        },
        receiver,
    ))
}

impl Watcher {
    fn run(mut self) {
        while self.wait() {
            let now = Instant::now();
            if self.has_missed.swap(false, Ordering::Relaxed) {
                self.rescan_soon();
            }
            if now >= self.next_rescan {
                self.rescan(now);
            }
            if !self.report(now) {
                return;
            }
        }
    }

    /// Waits until there is something to do; false when the watch is over.
    fn wait(&mut self) -> bool {
        let wake_at = self
            .ledger
            .next_due()
            .map_or(self.next_rescan, |due| due.min(self.next_rescan));
        let first = self
            .noise
            .recv_timeout(wake_at.saturating_duration_since(Instant::now()));
        if !matches!(first, Err(RecvTimeoutError::Timeout)) {
            // No more than a channel full at a time, so that a flood does not hold up what is due.
            let rest: Vec<FsEvent> = self.noise.try_iter().take(NOISE_MAX).collect();
            for noise in first.into_iter().chain(rest) {
                self.hear(noise);
            }
        }
        !self.is_stopped.load(Ordering::Relaxed)
    }

    fn hear(&mut self, noise: FsEvent) {
        let (name, touch) = match noise {
            FsEvent::Wake => return,
            FsEvent::Directory => return self.rescan_soon(),
            FsEvent::Entry(name, touch) => (name, touch),
        };
        let quiet = match touch {
            Touch::Finished => self.pace.finished,
            Touch::Changing => self.pace.changing,
            Touch::Attributes => self.ledger.quiet_asked(&name).unwrap_or(self.pace.changing),
        };
        // What cannot be looked at now is looked at by the next rescan.
        if let Ok(seen) = look(&self.directory.join(&name)) {
            let is_certain = touch != Touch::Attributes;
            self.ledger.note(
                name,
                PendingFile {
                    due: Instant::now() + quiet,
                    quiet,
                    seen,
                    is_certain,
                },
            );
        }
    }

    /// Sends what is due and has settled; false when nobody listens any more.
    fn report(&mut self, now: Instant) -> bool {
        for name in self.ledger.due(now) {
            let permit = match self.changes.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Closed(())) => return false,
                Err(mpsc::error::TrySendError::Full(())) => {
                    self.ledger.postpone(now + self.pace.finished);
                    return true;
                }
            };
            let path = self.directory.join(&name);
            let Ok(seen) = look(&path) else {
                self.ledger.forget_pending(&name);
                continue;
            };
            match self.ledger.settle(name, seen, now, self.pace.changing) {
                Settled::Written => permit.send(Change::Written(path)),
                Settled::Gone => permit.send(Change::Gone(path)),
                Settled::NoFile { why, was_file } => {
                    tracing::warn!(path = %path.display(), "ignored: this is {why}");
                    if was_file {
                        permit.send(Change::Gone(path));
                    }
                }
                Settled::NotYet | Settled::Nothing => {}
            }
        }
        true
    }

    /// Brings the next rescan forward, though not so far that a flood of events is one of rescans.
    fn rescan_soon(&mut self) {
        self.next_rescan = self.next_rescan.min(self.last_rescan + self.pace.finished);
    }

    /// Looks at everything.
    fn rescan(&mut self, now: Instant) {
        self.last_rescan = now;
        self.next_rescan = now + self.pace.rescan;
        let listed = identity(&self.directory).and_then(|identity| {
            self.arm(identity);
            self.list()
        });
        let listed = match listed {
            Ok(listed) => {
                self.told = None;
                self.trouble
                    .send_if_modified(|trouble| trouble.take().is_some());
                listed
            }
            Err(error) => {
                self.tell(&error);
                // Only a directory that is not there says that its files are not there.
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) {
                    return;
                }
                self.inotify = None;
                self.armed_for = None;
                self.next_rescan = now + self.pace.changing.min(self.pace.rescan);
                BTreeMap::new()
            }
        };
        let quiet = self.pace.changing;
        for (name, seen) in self.ledger.differences(listed) {
            self.ledger.note(
                name,
                PendingFile {
                    due: now + quiet,
                    quiet,
                    seen,
                    is_certain: false,
                },
            );
        }
    }

    /// Puts inotify onto the directory, unless it is there already.
    fn arm(&mut self, identity: (u64, u64)) {
        let is_armed = self.inotify.is_some() && self.armed_for == Some(identity);
        if is_armed || self.use_inotify == Inotify::Off {
            return;
        }
        self.inotify = None;
        match self.inotify() {
            Ok(inotify) => self.inotify = Some(inotify),
            // Out of watches or instances, or no inotify here.
            Err(error) => {
                let is_news = self.armed_for != Some(identity);
                if is_news {
                    let secs = self.pace.rescan.as_secs_f32();
                    let directory = self.directory.display();
                    tracing::warn!(%error, "no inotify for {directory}: looking every {secs} s instead");
                }
            }
        }
        self.armed_for = Some(identity);
    }

    fn inotify(&self) -> notify::Result<RecommendedWatcher> {
        // Absolute, so that the paths of events can be compared with it.
        let directory = std::path::absolute(&self.directory)?;
        let (waker, has_missed) = (self.waker.clone(), Arc::clone(&self.has_missed));
        let (wanted, root) = (self.wanted.clone(), directory.clone());
        let mut inotify =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let is_lost = match event {
                    Ok(event) => {
                        translate(&event, &root, &wanted).any(|noise| !hand_over(&waker, noise))
                    }
                    Err(_) => true,
                };
                if is_lost {
                    has_missed.store(true, Ordering::Relaxed);
                    let _ = waker.try_send(FsEvent::Wake);
                }
            })?;
        inotify.watch(&directory, RecursiveMode::NonRecursive)?;
        Ok(inotify)
    }

    fn list(&self) -> io::Result<BTreeMap<OsString, Seen>> {
        let names: Vec<OsString> = match &self.wanted {
            Wanted::Name(name) => vec![name.clone()],
            Wanted::Extension(_) => {
                let entries = fs::read_dir(&self.directory)?
                    .map(|entry| entry.map(|entry| entry.file_name()));
                let wanted = entries
                    .filter(|name| name.as_ref().map_or(true, |name| self.wanted.matches(name)));
                wanted.take(FILES_MAX).collect::<io::Result<_>>()?
            }
        };
        let mut listed = BTreeMap::new();
        for name in names {
            let seen = look(&self.directory.join(&name))?;
            if seen != Seen::Missing {
                listed.insert(name, seen);
            }
        }
        Ok(listed)
    }

    fn tell(&mut self, error: &io::Error) {
        if self.told != Some(error.kind()) {
            self.told = Some(error.kind());
            tracing::warn!(%error, directory = %self.directory.display(), "the watched directory cannot be read");
            let directory = self.directory.display();
            let message = format!("the folder {directory} cannot be read: {error}");
            self.trouble.send_replace(Some(message));
        }
    }
}

/// False where it did not fit.
fn hand_over(waker: &SyncSender<FsEvent>, noise: FsEvent) -> bool {
    !matches!(waker.try_send(noise), Err(TrySendError::Full(_)))
}

/// What of an event is worth waking up for.
fn translate(event: &notify::Event, root: &Path, wanted: &Wanted) -> impl Iterator<Item = FsEvent> {
    let touch = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::To))
        | EventKind::Remove(_) => Some(Touch::Finished),
        // A directory says nothing more after this. Links neither, but are rare and lose 200 ms.
        EventKind::Create(CreateKind::Folder) => Some(Touch::Finished),
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => Some(Touch::Changing),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(Touch::Attributes),
        // `Both` repeats a `From` and a `To`; being opened or read changes nothing.
        _ => None,
    };
    let has_overflowed = event.need_rescan().then_some(FsEvent::Directory);
    let entries = event.paths.iter().filter_map(move |path| {
        let touch = touch?;
        if path == root {
            return Some(FsEvent::Directory);
        }
        let name = path.file_name().filter(|name| wanted.matches(name))?;
        Some(FsEvent::Entry(name.to_owned(), touch))
    });
    has_overflowed.into_iter().chain(entries)
}

/// # Errors
/// It cannot be known what is there: no permission to look, or a file system in trouble.
fn look(path: &Path) -> io::Result<Seen> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => match fs::symlink_metadata(path) {
            // One that leads nowhere, in a circle, or to where we may not look.
            Ok(link) if link.is_symlink() => {
                return Ok(Seen::NoFile("a symbolic link that cannot be followed"));
            }
            Ok(_) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // Where it was made between the two looks, the next one finds it.
            _ => return Ok(Seen::Missing),
        },
    };
    if metadata.is_dir() {
        return Ok(Seen::NoFile("a directory"));
    }
    if !metadata.is_file() {
        // To open a pipe is to wait for its writer.
        return Ok(Seen::NoFile("no regular file"));
    }
    Ok(Seen::File(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }))
}

fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(directory)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions, Permissions};
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// A watched directory, and what is told of it.
    struct Story {
        root: TempDir,
        watch: Watch,
        changes: mpsc::Receiver<Change>,
    }

    impl Story {
        fn begin() -> Self {
            Self::begin_with(SettleTimes::default(), Inotify::On, |_| {})
        }

        fn begin_with(pace: SettleTimes, inotify: Inotify, prepare: impl FnOnce(&Path)) -> Self {
            let root = TempDir::new().unwrap();
            let directory = root.path().join("plugins");
            fs::create_dir(&directory).unwrap();
            prepare(&directory);
            let (watch, changes) =
                start(&directory, Wanted::Extension("wasm".into()), pace, inotify).unwrap();
            Self {
                root,
                watch,
                changes,
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join("plugins").join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.path(name), content).unwrap();
        }

        async fn next(&mut self) -> Change {
            timeout(Duration::from_secs(20), self.changes.recv())
                .await
                .unwrap()
                .unwrap()
        }

        async fn expect_written(&mut self, name: &str) {
            assert_eq!(self.next().await, Change::Written(self.path(name)));
        }

        async fn expect_gone(&mut self, name: &str) {
            assert_eq!(self.next().await, Change::Gone(self.path(name)));
        }

        /// What happened before leads to nothing: the next change told is of a file made now.
        async fn expect_nothing_more(&mut self) {
            self.write("sentinel.wasm", "x");
            self.expect_written("sentinel.wasm").await;
        }
    }

    fn patient() -> SettleTimes {
        SettleTimes {
            finished: Duration::from_secs(1),
            ..SettleTimes::default()
        }
    }

    #[tokio::test]
    async fn a_new_file_and_a_changed_one_are_told_once_each() {
        let mut story = Story::begin();
        story.write("x.wasm", "1");
        story.expect_written("x.wasm").await;
        story.write("x.wasm", "2");
        story.expect_written("x.wasm").await;
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn a_file_renamed_into_place_is_told_and_its_temporary_names_are_not() {
        let mut story = Story::begin();
        for name in [
            ".x.wasm",
            "x.wasm~",
            "x.wasm.tmp",
            ".x.wasm.swp",
            "x",
            "wasm",
            ".wasm",
            "x.WASM",
        ] {
            story.write(name, "1");
        }
        fs::rename(story.path("x.wasm.tmp"), story.path("x.wasm")).unwrap();
        story.expect_written("x.wasm").await;
        story.expect_nothing_more().await;
        fs::rename(story.path("x.wasm"), story.path("y.wasm")).unwrap();
        story.expect_gone("x.wasm").await;
        story.expect_written("y.wasm").await;
    }

    #[tokio::test]
    async fn a_file_is_not_told_before_its_writer_is_done() {
        let pace = SettleTimes {
            changing: Duration::from_secs(60),
            ..SettleTimes::default()
        };
        let mut story = Story::begin_with(pace, Inotify::On, |_| {});
        let mut file = File::create(story.path("x.wasm")).unwrap();
        for _ in 0..20 {
            file.write_all(b"part").unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        assert!(story.changes.try_recv().is_err());
        drop(file);
        story.expect_written("x.wasm").await;
        assert_eq!(fs::metadata(story.path("x.wasm")).unwrap().len(), 80);
    }

    #[tokio::test]
    async fn a_file_that_is_never_closed_is_told_when_its_writer_pauses() {
        let mut story = Story::begin();
        let mut file = File::create(story.path("x.wasm")).unwrap();
        file.write_all(b"all").unwrap();
        let begun = Instant::now();
        story.expect_written("x.wasm").await;
        // Almost: the event is older than `begun`.
        assert!(begun.elapsed() > SettleTimes::default().changing / 2);
    }

    #[tokio::test]
    async fn a_burst_is_told_once_and_the_newest_content_is_there() {
        let mut story = Story::begin_with(patient(), Inotify::On, |_| {});
        for n in 0..=100 {
            story.write("x.wasm", &n.to_string());
        }
        story.expect_written("x.wasm").await;
        assert_eq!(fs::read_to_string(story.path("x.wasm")).unwrap(), "100");
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn a_deleted_file_is_told_but_not_one_that_is_back_at_once() {
        let mut story = Story::begin_with(patient(), Inotify::On, |dir| {
            fs::write(dir.join("x.wasm"), "1").unwrap()
        });
        fs::remove_file(story.path("x.wasm")).unwrap();
        story.write("x.wasm", "2");
        story.expect_written("x.wasm").await;
        fs::remove_file(story.path("x.wasm")).unwrap();
        story.expect_gone("x.wasm").await;
        // One that nobody was told of leaves silently.
        story.write("y.wasm", "1");
        fs::remove_file(story.path("y.wasm")).unwrap();
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn new_times_and_permissions_are_told_and_reading_is_not() {
        let mut story = Story::begin_with(SettleTimes::default(), Inotify::On, |dir| {
            fs::write(dir.join("x.wasm"), "1").unwrap()
        });
        let file = OpenOptions::new()
            .write(true)
            .open(story.path("x.wasm"))
            .unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        drop(file);
        story.expect_written("x.wasm").await;
        fs::set_permissions(story.path("x.wasm"), Permissions::from_mode(0o600)).unwrap();
        story.expect_written("x.wasm").await;
        fs::read(story.path("x.wasm")).unwrap();
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn what_is_no_file_is_ignored_until_it_is_one() {
        let mut story = Story::begin();
        fs::create_dir(story.path("directory.wasm")).unwrap();
        symlink(story.root.path().join("later"), story.path("link.wasm")).unwrap();
        symlink("circle.wasm", story.path("circle.wasm")).unwrap();
        story.expect_nothing_more().await;
        fs::write(story.root.path().join("later"), "1").unwrap();
        story.expect_written("link.wasm").await;
        fs::write(story.root.path().join("later"), "2").unwrap();
        story.expect_written("link.wasm").await;
        fs::remove_file(story.root.path().join("later")).unwrap();
        story.expect_gone("link.wasm").await;
    }

    #[tokio::test]
    async fn a_file_that_becomes_a_directory_is_gone() {
        let mut story = Story::begin_with(SettleTimes::default(), Inotify::On, |dir| {
            fs::write(dir.join("x.wasm"), "1").unwrap()
        });
        fs::remove_file(story.path("x.wasm")).unwrap();
        fs::create_dir(story.path("x.wasm")).unwrap();
        story.expect_gone("x.wasm").await;
        fs::remove_dir(story.path("x.wasm")).unwrap();
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn a_directory_that_is_removed_and_made_again_is_watched_again() {
        let mut story = Story::begin_with(SettleTimes::default(), Inotify::On, |dir| {
            fs::write(dir.join("x.wasm"), "1").unwrap()
        });
        let directory = story.root.path().join("plugins");
        let mut trouble = story.watch.trouble();
        assert_eq!(*trouble.borrow_and_update(), None);
        for _ in 0..2 {
            fs::remove_dir_all(&directory).unwrap();
            story.expect_gone("x.wasm").await;
            let told = trouble.wait_for(Option::is_some);
            let told = timeout(Duration::from_secs(20), told).await.unwrap();
            let message = told.unwrap().clone().unwrap_or_default();
            assert!(message.contains("plugins cannot be read: "), "{message}");
            fs::create_dir(&directory).unwrap();
            story.write("x.wasm", "1");
            story.expect_written("x.wasm").await;
            assert_eq!(*trouble.borrow_and_update(), None, "it is over");
        }
        // Moved away and back.
        fs::rename(&directory, story.root.path().join("away")).unwrap();
        story.expect_gone("x.wasm").await;
        fs::rename(story.root.path().join("away"), &directory).unwrap();
        story.expect_written("x.wasm").await;
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn a_directory_that_is_swapped_for_another_is_compared_with_it() {
        let mut story = Story::begin_with(SettleTimes::default(), Inotify::On, |dir| {
            fs::write(dir.join("old.wasm"), "1").unwrap();
        });
        let (directory, next) = (
            story.root.path().join("plugins"),
            story.root.path().join("next"),
        );
        fs::create_dir(&next).unwrap();
        fs::write(next.join("new.wasm"), "1").unwrap();
        fs::rename(&directory, story.root.path().join("away")).unwrap();
        fs::rename(&next, &directory).unwrap();
        let mut told = [story.next().await, story.next().await];
        told.sort_by_key(|change| matches!(change, Change::Gone(_)));
        assert_eq!(
            told,
            [
                Change::Written(story.path("new.wasm")),
                Change::Gone(story.path("old.wasm"))
            ]
        );
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn what_inotify_misses_is_found_by_looking() {
        let pace = SettleTimes {
            rescan: Duration::from_millis(20),
            ..SettleTimes::default()
        };
        let mut story = Story::begin_with(pace, Inotify::Off, |dir| {
            fs::write(dir.join("x.wasm"), "1").unwrap()
        });
        story.write("y.wasm", "1");
        story.expect_written("y.wasm").await;
        story.write("x.wasm", "22");
        story.expect_written("x.wasm").await;
        fs::remove_file(story.path("x.wasm")).unwrap();
        story.expect_gone("x.wasm").await;
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn what_is_not_taken_waits_and_is_told_once() {
        let mut story = Story::begin();
        let n_files = 3 * CHANGES_MAX;
        for n in 0..n_files {
            story.write(&format!("{n}.wasm"), "1");
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while story.changes.len() < CHANGES_MAX {
            assert!(Instant::now() < deadline);
            sleep(Duration::from_millis(5)).await;
        }
        let mut told = Vec::new();
        while told.len() < n_files {
            let change = story.next().await;
            assert!(!told.contains(&change), "{change:?}");
            told.push(change);
        }
        story.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn dropping_the_watch_ends_the_changes() {
        let Story {
            root: _root,
            watch,
            mut changes,
        } = Story::begin();
        drop(watch);
        let last = timeout(Duration::from_secs(20), changes.recv())
            .await
            .unwrap();
        assert_eq!(last, None);
    }

    #[tokio::test]
    async fn one_file_is_watched_without_its_neighbours() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("pointsman.toml");
        let (watch, mut changes) = Watch::file(&path).unwrap();
        assert!(watch.existing().is_empty());
        fs::write(root.path().join("pointsman.toml~"), "1").unwrap();
        fs::write(root.path().join("other.toml"), "1").unwrap();
        fs::write(&path, "1").unwrap();
        let mut next = async || {
            timeout(Duration::from_secs(20), changes.recv())
                .await
                .unwrap()
        };
        assert_eq!(next().await, Some(Change::Written(path.clone())));
        fs::remove_file(&path).unwrap();
        assert_eq!(next().await, Some(Change::Gone(path)));
    }

    #[test]
    fn what_exists_is_listed_and_what_cannot_be_watched_is_refused() {
        let story = Story::begin_with(SettleTimes::default(), Inotify::On, |dir| {
            for name in ["b.wasm", "a.wasm", ".c.wasm", "d.txt"] {
                fs::write(dir.join(name), "1").unwrap();
            }
            fs::create_dir(dir.join("e.wasm")).unwrap();
        });
        assert_eq!(
            story.watch.existing(),
            [story.path("a.wasm"), story.path("b.wasm")]
        );
        let missing = Watch::directory(&story.path("missing"), "wasm").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let file = Watch::directory(&story.path("a.wasm"), "wasm").unwrap_err();
        assert_eq!(file.kind(), io::ErrorKind::NotADirectory);
        assert_eq!(
            Watch::file(Path::new("/")).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn events_are_heard_for_what_they_say() {
        let root = Path::new("/plugins");
        let wanted = Wanted::Extension("wasm".into());
        let check = |kind: EventKind, path: &str, expected: Option<FsEvent>| {
            let event = notify::Event::new(kind).add_path(PathBuf::from(path));
            assert_eq!(
                translate(&event, root, &wanted).next(),
                expected,
                "{kind:?} {path}"
            );
        };
        let entry = |touch| Some(FsEvent::Entry("x.wasm".into(), touch));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        check(closed, "/plugins/x.wasm", entry(Touch::Finished));
        check(closed, "/plugins/x.txt", None);
        check(
            EventKind::Create(CreateKind::File),
            "/plugins/x.wasm",
            entry(Touch::Changing),
        );
        check(
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            "/plugins/x.wasm",
            None,
        );
        check(
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)),
            "/plugins/x.wasm",
            None,
        );
        check(
            EventKind::Remove(notify::event::RemoveKind::Folder),
            "/plugins",
            Some(FsEvent::Directory),
        );

        let overflow = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert_eq!(
            translate(&overflow, root, &wanted).next(),
            Some(FsEvent::Directory)
        );
    }
}
