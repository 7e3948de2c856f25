//! Where a log's lines go: a file, standard output or error, or nowhere.
//!
//! Knows how each of them is opened and written without waiting longer than needed; not what is written.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, OFlags};
use rustix::net::SendFlags;

/// How long an output that takes nothing is waited for at a time: then it may have been replaced.
const ROOM_PATIENCE: Duration = Duration::from_millis(250);

/// What a log is written to.
pub trait Output: Write + Send + fmt::Debug {
    /// After a write that would block: waits a moment for room.
    fn wait_for_room(&self) {}

    /// Of a file with a length; it changes when somebody else writes there or truncates it.
    fn n_bytes(&self) -> Option<u64> {
        None
    }
}

/// Whatever is written is gone.
pub fn nowhere() -> Box<dyn Output> {
    Box::new(io::sink())
}

/// Standard output.
///
/// # Errors
/// There is no descriptor left.
pub fn stdout() -> io::Result<Box<dyn Output>> {
    stream(io::stdout())
}

/// Standard error.
///
/// # Errors
/// There is no descriptor left.
pub fn stderr() -> io::Result<Box<dyn Output>> {
    stream(io::stderr())
}

/// A file to append to, made where there is none.
///
/// # Errors
/// It cannot be opened or made; it is a FIFO that nobody reads.
pub fn file(path: &Path) -> io::Result<Box<dyn Output>> {
    let file = appending().create(true).open(path)?;
    Ok(Box::new(file))
}

/// Whether [`file()`] can be expected to succeed. Makes no file.
///
/// # Errors
/// Why not.
pub fn check_file(path: &Path) -> io::Result<()> {
    match appending().open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = parent.unwrap_or(Path::new("."));
            Ok(rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)?)
        }
        opened => opened.map(drop),
    }
}

/// A FIFO without a reader is an error, and a full one says so, in place of blocking.
fn appending() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    options
        .append(true)
        .custom_flags(flags.bits().cast_signed());
    options
}

/// Another handle of an open stream. It does not block where that can be had without touching flags that
/// are shared with whoever has the stream as well.
pub(super) fn stream(stream: impl AsFd) -> io::Result<Box<dyn Output>> {
    let file = File::from(stream.as_fd().try_clone_to_owned()?);
    let kind = file.metadata()?.file_type();
    if kind.is_socket() {
        return Ok(Box::new(Socket(file)));
    }
    // Opened again, a pipe has flags of its own (proc(5)). Where /proc is missing or does not allow it, the pipe may block.
    let again = || appending().open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let again = kind.is_fifo().then(again).and_then(Result::ok);
    Ok(Box::new(again.unwrap_or(file)))
}

impl Output for io::Sink {}

impl Output for File {
    fn wait_for_room(&self) {
        wait_for_room(self);
    }

    fn n_bytes(&self) -> Option<u64> {
        let metadata = self.metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    }
}

/// A socket, as a service manager gives for a standard stream.
#[derive(Debug)]
struct Socket(File);

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(&self.0, bytes, flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Socket {
    fn wait_for_room(&self) {
        wait_for_room(&self.0);
    }
}

fn wait_for_room(file: &File) {
    let patience = Timespec::try_from(ROOM_PATIENCE).ok();
    // The next write says what is wrong.
    let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], patience.as_ref());
}
