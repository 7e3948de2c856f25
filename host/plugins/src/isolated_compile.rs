//! Compiles a plugin in a process of its own first, which may be stopped, and may crash.
//!
//! A compiler cannot be stopped from within; a file can be made to keep it busy for minutes, to take
//! gigabytes, to overflow its stack or to run into a panic of a parser. So every file is compiled by a
//! child first, of lower priority and with bounds on time, memory and stack. If that ends well, this process
//! does the same again, which is cheap: the child has left the code in the cache of compiled
//! plugins, and if there is no cache, it is known what it costs.

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, set_parent_process_death_signal,
    setpriority_process, setrlimit,
};

use super::limits::FILE_MAX_BYTES;
use super::load::{Compiler, LoadError};

/// Address space of the child: code, heap and stacks of all its threads.
const MEMORY_MAX_BYTES: u64 = 4 << 30;

/// Of the child's thread that compiles: half of what the threads have that do it again in this process.
const STACK_BYTES: usize = 1 << 20;

/// The child's priority, as of nice(1): that of the threads which compile in this process.
const NICENESS: i32 = 10;

/// Of what the child says of a file that is refused; a pipe holds it, so that nobody has to read meanwhile.
const REASON_MAX_BYTES: usize = 4 << 10;

/// How the child ends when a parser or the compiler has panicked: as any program that does.
const PANICKED: i32 = 101;

/// The subcommand that calls [`compile_stdin`].
pub const SUBCOMMAND: &str = "compile-plugin";

/// This program, if it has that subcommand.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// From now on plugins are compiled apart, by this program.
pub fn use_program(program: PathBuf) {
    // A second call says the same.
    let _ = PROGRAM.set(program);
}

/// What the child does: takes its bounds, and compiles what comes from stdin. Says on stdout why it is
/// refused. After a panic it does not return.
///
/// # Errors
/// Any of [`LoadError`] that compiling may end with, and [`LoadError::Read`].
pub fn compile_stdin() -> Result<(), LoadError> {
    let read = |error: &dyn ToString| LoadError::Read(error.to_string());
    let bound = |resource, bytes| {
        let limit = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        setrlimit(resource, limit).map_err(|error| read(&error))
    };
    bound(Resource::As, MEMORY_MAX_BYTES)?;
    bound(Resource::Core, 0)?;
    // Being more important than wished is no reason to give up, nor is being left alone: who waits for this
    // may end before, and its bound on time with it.
    let _ = setpriority_process(None, NICENESS);
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut bytes = Vec::new();
    let limit = FILE_MAX_BYTES as u64 + 1;
    let stdin = io::stdin().lock();
    stdin
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| read(&error))?;
    let compile = move || Compiler::new()?.compile(&bytes).map(drop);
    let compiling = thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(compile)
        .map_err(|error| read(&error))?;
    let compiled = compiling.join().unwrap_or(Err(LoadError::Broken));
    match &compiled {
        Ok(()) => {}
        Err(LoadError::Broken) => process::exit(PANICKED),
        Err(error) => {
            let mut reason = error.to_string();
            reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
            // Who does not read it has ended.
            let _ = io::stdout().write_all(reason.as_bytes());
        }
    }
    compiled
}

/// Whether it can be compiled within these bounds, without a crash. Blocks.
///
/// # Errors
/// [`LoadError::CompileBounds`], [`LoadError::Broken`], or [`LoadError::Apart`] with what else is wrong.
pub(super) fn try_compile(bytes: &[u8], timeout: Duration) -> Result<(), LoadError> {
    let Some(program) = PROGRAM.get() else {
        return Ok(());
    };
    let mut child = match start(program) {
        Ok(child) => child,
        Err(error) => {
            tracing::warn!(%error, "cannot compile plugins in a process of their own");
            return Ok(());
        }
    };
    if let Some(mut stdin) = child.stdin.take() {
        // An error says that the child has ended, and how it did says more.
        let _ = stdin.write_all(bytes);
    }
    match wait(&mut child, timeout) {
        Ok(Some(status)) if status.code() == Some(PANICKED) => Err(LoadError::Broken),
        Ok(Some(status)) if status.signal().is_some() => Err(LoadError::CompileBounds(format!(
            "crashes the compiler: it wants more than {} GiB of memory, nests too deeply, or its packages depend on each other",
            MEMORY_MAX_BYTES >> 30
        ))),
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => {
            Err(LoadError::Apart(reason(&mut child).unwrap_or_else(|| {
                format!("the process that compiles it ends with {status}")
            })))
        }
        Ok(None) => Err(LoadError::CompileBounds(format!(
            "takes longer than {} ms",
            timeout.as_millis()
        ))),
        Err(error) => {
            tracing::warn!(%error, "plugin not compiled in a process of its own");
            Ok(())
        }
    }
}

/// What an ended child has said.
fn reason(child: &mut Child) -> Option<String> {
    let stdout = child.stdout.take()?.take(REASON_MAX_BYTES as u64);
    let said = io::read_to_string(stdout).ok()?;
    Some(said).filter(|said| !said.is_empty())
}

fn start(program: &PathBuf) -> io::Result<Child> {
    Command::new(program)
        .arg0("pointsman")
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// None: it has not ended in time, and was ended.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let ended = ends_within(child, timeout);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(ended?.then_some(status))
}

fn ends_within(child: &Child, timeout: Duration) -> io::Result<bool> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(n) => return Ok(n > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout: Duration) -> Option<Option<i32>> {
        let mut shell = Command::new("sh");
        let mut child = shell.args(["-c", script]).spawn().unwrap();
        let ended = wait(&mut child, timeout).unwrap();
        assert!(child.try_wait().unwrap().is_some(), "it runs still");
        ended.map(|status| status.code())
    }

    #[test]
    fn a_child_is_waited_for_and_ended_when_it_takes_too_long() {
        let long = Duration::from_secs(10);
        assert_eq!(run("exit 3", long), Some(Some(3)));
        assert_eq!(run("kill -9 $$", long), Some(None));
        assert_eq!(run("exec sleep 100", Duration::from_millis(50)), None);
    }
}
