//! A log's writer: a bounded queue of lines, and a thread that writes them, so that nobody else waits
//! for a file, a disk or a reader.
//!
//! In come whole lines by [`LogWriter::put`], which never waits. What the queue has no room for, and what
//! the output does not take, is dropped in whole lines and counted. What a line says is not known here.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{mem, thread};

use super::output::Output;

/// Lines that wait to be written: a quarter of a second of a stalled disk at 30,000 lines per second.
const QUEUE_MAX_LINES: usize = 8192;

/// What these lines may hold: twice what that many usual ones do, which are of 500 bytes.
const QUEUE_MAX_BYTES: usize = 8 << 20;

/// What goes out in one write while there is more to come.
const BATCH_BYTES: usize = 64 * 1024;

/// After lines were written, how long the writer lets others gather. A writer that waits for the
/// next line has to be woken by the thread that has it: two system calls on the way of a handshake,
/// and a fight over the queue's lock.
const GATHERING: Duration = Duration::from_millis(20);

/// One log. Cheap to clone; all clones write to the same output.
#[derive(Debug, Clone)]
pub struct LogWriter {
    lines: SyncSender<String>,
    shared: Arc<WriterShared>,
}

/// What the writing thread shares with everybody else.
#[derive(Debug)]
struct WriterShared {
    /// Names the log in messages about it.
    name: &'static str,
    /// Of the lines in the queue.
    queued_bytes: AtomicUsize,
    /// Lines, since the start.
    n_dropped: AtomicU64,
    /// Where to write from the next empty line of the queue on.
    next: Mutex<Option<Box<dyn Output>>>,
    /// Whether there is something in `next`.
    is_redirected: AtomicBool,
    /// Whether to go on there at once: the queue has no room for an empty line, or the output for any.
    is_overdue: AtomicBool,
    /// Whether the thread should end when the queue is empty.
    is_finishing: AtomicBool,
    has_ended: Mutex<bool>,
    ending: Condvar,
}

impl LogWriter {
    /// Starts the thread. It ends when every clone is gone, or with [`LogWriter::finish`].
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(name: &'static str, output: Box<dyn Output>) -> io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE_MAX_LINES);
        let shared = Arc::new(WriterShared::new(name));
        let ended = Ended(Arc::clone(&shared));
        thread::Builder::new()
            .name(name.replace('_', "-"))
            .spawn(move || Sink::new(&ended.0, output).write_all(queue))?;
        Ok(Self { lines, shared })
    }

    /// Has a line written, which ends in a line feed; or counts it as dropped. Never waits.
    pub fn put(&self, line: String) {
        debug_assert!(line.ends_with('\n'), "a line ends in a line feed");
        let n_bytes = line.len();
        let queued = &self.shared.queued_bytes;
        let has_room = queued.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes <= QUEUE_MAX_BYTES;
        if !has_room || self.lines.try_send(line).is_err() {
            queued.fetch_sub(n_bytes, Ordering::Relaxed);
            self.shared.dropped(1);
        }
    }

    /// Has everything that is put from now on written elsewhere. What was put before goes there, too, if the
    /// queue is full or the old output takes nothing.
    pub fn redirect(&self, output: Box<dyn Output>) {
        *self.shared.next() = Some(output);
        self.shared.is_redirected.store(true, Ordering::Release);
        if !self.wake() {
            self.shared.is_overdue.store(true, Ordering::Release);
        }
    }

    /// Lines that were lost since the start.
    pub fn n_dropped(&self) -> u64 {
        self.shared.n_dropped.load(Ordering::Relaxed)
    }

    /// Waits until every line that was put is written, and ends the log. False where that took longer
    /// than `patience`: nobody reads what is written.
    pub fn finish(&self, patience: Duration) -> bool {
        self.shared.is_finishing.store(true, Ordering::Release);
        self.wake();
        let has_ended = locked(&self.shared.has_ended);
        let waited = self
            .shared
            .ending
            .wait_timeout_while(has_ended, patience, |has_ended| !*has_ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Has the thread look around when it has come so far. False: the queue is full.
    fn wake(&self) -> bool {
        self.lines.try_send(String::new()).is_ok()
    }
}

impl WriterShared {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            queued_bytes: AtomicUsize::new(0),
            n_dropped: AtomicU64::new(0),
            next: Mutex::new(None),
            is_redirected: AtomicBool::new(false),
            is_overdue: AtomicBool::new(false),
            is_finishing: AtomicBool::new(false),
            has_ended: Mutex::new(false),
            ending: Condvar::new(),
        }
    }

    fn next(&self) -> MutexGuard<'_, Option<Box<dyn Output>>> {
        locked(&self.next)
    }

    fn is_redirected(&self) -> bool {
        self.is_redirected.load(Ordering::Acquire)
    }

    fn dropped(&self, n_lines: u64) {
        self.n_dropped.fetch_add(n_lines, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each value is whole after every assignment, whoever panicked since.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dropped by the thread when it ends, however that is.
struct Ended(Arc<WriterShared>);

impl Drop for Ended {
    fn drop(&mut self) {
        *locked(&self.0.has_ended) = true;
        self.0.ending.notify_all();
    }
}

/// The thread's side.
struct Sink<'a> {
    shared: &'a WriterShared,
    output: Box<dyn Output>,
    /// Whole lines, but for the first, whose beginning may have been written.
    buffer: Vec<u8>,
    /// Whether that is so; with the output's length behind that beginning, if it has one.
    torn: Option<Option<u64>>,
    /// Lines lost since the output fails; none: it does not.
    failing: Option<u64>,
}

impl<'a> Sink<'a> {
    fn new(shared: &'a WriterShared, output: Box<dyn Output>) -> Self {
        Self {
            shared,
            output,
            buffer: Vec::new(),
            torn: None,
            failing: None,
        }
    }

    /// Writes until it is to finish or all senders are gone: a line at once where none came just
    /// before, others together.
    fn write_all(&mut self, queue: Receiver<String>) {
        loop {
            // Asked before the queue is emptied: what was put before that is in it. Whoever says so later
            // wakes this thread.
            let is_finishing = self.shared.is_finishing.load(Ordering::Acquire);
            if !is_finishing {
                let Ok(line) = queue.recv() else { return };
                self.take(&line);
            }
            while let Ok(line) = queue.try_recv() {
                self.take(&line);
            }
            let has_lines = !self.buffer.is_empty();
            self.write();
            if is_finishing {
                return;
            }
            if has_lines {
                gather();
            }
        }
    }

    fn take(&mut self, line: &str) {
        let n_bytes = line.len();
        self.shared
            .queued_bytes
            .fetch_sub(n_bytes, Ordering::Relaxed);
        if line.is_empty() || self.shared.is_overdue.load(Ordering::Acquire) {
            self.follow();
        }
        if self.buffer.len() + n_bytes > BATCH_BYTES {
            self.write();
        }
        self.buffer.extend_from_slice(line.as_bytes());
    }

    /// Goes on with the next output, if there is one.
    fn follow(&mut self) {
        self.write();
        self.shared.is_overdue.store(false, Ordering::Release);
        self.shared.is_redirected.store(false, Ordering::Release);
        let Some(output) = self.shared.next().take() else {
            return;
        };
        self.drop_torn();
        self.output = output;
    }

    /// The rest of a line belongs behind its beginning, or nowhere.
    fn drop_torn(&mut self) {
        if self.torn.take().is_some() {
            self.buffer.drain(..self.first_line());
            self.shared.dropped(1);
        }
    }

    fn first_line(&self) -> usize {
        let end = self.buffer.iter().position(|byte| *byte == b'\n');
        end.map_or(self.buffer.len(), |end| end + 1)
    }

    /// Writes what has gathered, or drops it.
    fn write(&mut self) {
        if self
            .torn
            .is_some_and(|n_bytes| n_bytes != self.output.n_bytes())
        {
            self.drop_torn();
        }
        if self.buffer.is_empty() {
            return;
        }
        let mut n_written = 0;
        let result = loop {
            let rest = &self.buffer[n_written..];
            if rest.is_empty() {
                break Ok(());
            }
            match self.output.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n_written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.shared.is_redirected() {
                        self.shared.is_overdue.store(true, Ordering::Release);
                        break Err(error);
                    }
                    self.output.wait_for_room();
                }
                Err(error) => break Err(error),
            }
        };
        let n_lost = self.settle(n_written);
        self.shared.dropped(n_lost);
        match result {
            Ok(()) => self.succeeded(),
            Err(error) => self.failed(&error, n_lost),
        }
    }

    /// Takes from the buffer what was written, and of what was not all but the rest of a line that
    /// was begun: it goes first when the output takes more, so that it has whole lines only. Says how
    /// many lines are lost.
    fn settle(&mut self, n_written: usize) -> u64 {
        if n_written > 0 {
            let is_torn = self.buffer[n_written - 1] != b'\n';
            self.torn = is_torn.then(|| self.output.n_bytes());
        }
        self.buffer.drain(..n_written);
        let kept = self.torn.map_or(0, |_| self.first_line());
        let lost = self.buffer[kept..].iter().filter(|byte| **byte == b'\n');
        let n_lost = lost.count() as u64;
        self.buffer.truncate(kept);
        n_lost
    }

    /// Warns once for each row of failures, and goes on: a full disk may have room again.
    fn failed(&mut self, error: &io::Error, n_lost: u64) {
        let log = self.shared.name;
        if self.failing.is_none() {
            tracing::warn!(log, %error, "cannot write the log: lines are dropped");
        }
        *self.failing.get_or_insert(0) += n_lost;
    }

    fn succeeded(&mut self) {
        if let Some(lines) = mem::take(&mut self.failing) {
            let log = self.shared.name;
            tracing::warn!(log, lines, "the log is written again: lines are missing");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread serves the log alone, and sleeps so that workers need not wake it"
)]
fn gather() {
    thread::sleep(GATHERING);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc::{Sender, channel};

    use super::super::output;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn line(i: usize) -> String {
        format!("line {i}\n")
    }

    #[test]
    fn everything_is_written_by_the_time_that_the_log_has_finished() {
        let memory = Memory::default();
        let log = LogWriter::start("test", Box::new(memory.clone())).unwrap();
        (0..1000).for_each(|i| log.put(line(i)));
        assert!(log.finish(PATIENCE));
        let expected: String = (0..1000).map(line).collect();
        assert_eq!(memory.text(), expected);
        log.put(line(0));
        assert_eq!((memory.text(), log.n_dropped()), (expected, 1));
    }

    #[test]
    fn a_line_is_written_at_once_where_no_other_follows() {
        let (written, lines) = channel();
        let log = LogWriter::start("test", Box::new(Forward(written))).unwrap();
        log.put(line(1));
        assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), b"line 1\n");
    }

    #[test]
    fn what_the_queue_has_no_room_for_is_counted_and_never_waited_for() {
        let (gate, opens) = channel();
        let log = LogWriter::start("test", Box::new(Gated(opens))).unwrap();
        let sent = 3 * QUEUE_MAX_LINES;
        (0..sent).for_each(|i| log.put(line(i)));
        let dropped = log.n_dropped() as usize;
        assert!(dropped >= QUEUE_MAX_LINES && dropped < sent, "{dropped}");
        assert!(!log.finish(Duration::from_millis(1)));
        drop(gate);
    }

    #[test]
    fn long_lines_are_bounded_by_their_bytes() {
        let (gate, opens) = channel();
        let log = LogWriter::start("test", Box::new(Gated(opens))).unwrap();
        let long = "x".repeat(QUEUE_MAX_BYTES / 16 - 1) + "\n";
        (0..64).for_each(|_| log.put(long.clone()));
        // 16 fit, and two more are in the writer's hands at most.
        assert!(log.n_dropped() >= 64 - 18, "{}", log.n_dropped());
        drop(gate);
    }

    #[test]
    fn what_cannot_be_written_is_counted_line_by_line() {
        let log = LogWriter::start("test", Box::new(Broken)).unwrap();
        (0..1000).for_each(|i| log.put(line(i)));
        assert!(log.finish(PATIENCE));
        assert_eq!(log.n_dropped(), 1000);
    }

    #[test]
    fn a_full_device_and_a_pipe_without_a_reader_take_nothing() {
        let full = output::file("/dev/full".as_ref()).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        for output in [full, output::stream(writer).unwrap()] {
            let log = LogWriter::start("test", output).unwrap();
            (0..10).for_each(|i| log.put(line(i)));
            assert!(log.finish(PATIENCE));
            assert_eq!(log.n_dropped(), 10);
        }
    }

    #[test]
    fn a_line_that_was_begun_is_completed_and_none_is_written_in_part() {
        // By each prefix of two batches of lines, and then as much as comes.
        let (first, second): (String, String) =
            ((0..4).map(line).collect(), (4..6).map(line).collect());
        for n_taken in 0..=first.len() {
            let memory = Memory::default();
            match n_taken {
                n if n == first.len() => {}
                0 => memory.takes([0]),
                n => memory.takes([n, 0]),
            }
            let shared = WriterShared::new("test");
            let mut sink = Sink::new(&shared, Box::new(memory.clone()));
            for lines in [&first, &second] {
                sink.buffer.extend_from_slice(lines.as_bytes());
                sink.write();
            }
            let written = memory.text();
            let n_whole = first[..n_taken].matches('\n').count();
            let is_torn = n_taken > 0 && !first[..n_taken].ends_with('\n');
            let expected: Vec<_> = (0..n_whole + usize::from(is_torn)).chain(4..6).collect();
            assert_eq!(written, expected.into_iter().map(line).collect::<String>());
            let n_written = written.lines().count() as u64;
            assert_eq!(shared.n_dropped.load(Ordering::Relaxed), 6 - n_written);
        }
    }

    #[test]
    fn a_line_is_completed_in_its_own_output_or_not_at_all() {
        let (old, new) = (Memory::default(), Memory::default());
        old.takes([3, 0, 0]);
        let shared = WriterShared::new("test");
        let mut sink = Sink::new(&shared, Box::new(old.clone()));
        sink.buffer.extend_from_slice(b"line 1\nline 2\n");
        sink.write();
        *shared.next() = Some(Box::new(new.clone()));
        sink.take("");
        sink.take(&line(3));
        sink.write();
        assert_eq!(
            (old.text().as_str(), new.text().as_str()),
            ("lin", "line 3\n")
        );
        assert_eq!(shared.n_dropped.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_line_is_not_completed_behind_something_else() {
        let memory = Memory::default();
        memory.takes([3, 0]);
        let shared = WriterShared::new("test");
        let mut sink = Sink::new(&shared, Box::new(memory.clone()));
        sink.take(&line(1));
        sink.write();
        assert_eq!(memory.text(), "lin");
        // As logrotate does with copytruncate.
        locked(&memory.0).0.clear();
        sink.take(&line(2));
        sink.write();
        assert_eq!(memory.text(), "line 2\n");
        assert_eq!(shared.n_dropped.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_redirected_log_goes_on_elsewhere_without_losing_a_line() {
        let (old, new) = (Memory::default(), Memory::default());
        let log = LogWriter::start("test", Box::new(old.clone())).unwrap();
        (0..500).for_each(|i| log.put(line(i)));
        log.redirect(Box::new(new.clone()));
        log.put(line(500));
        assert!(log.finish(PATIENCE));
        assert_eq!(old.text(), (0..500).map(line).collect::<String>());
        assert_eq!(new.text(), line(500));
    }

    #[test]
    fn a_reader_that_stalls_does_not_keep_the_log_from_going_elsewhere() {
        let (reader, writer) = io::pipe().unwrap();
        let log = LogWriter::start("test", output::stream(writer).unwrap()).unwrap();
        // Far more than a pipe holds.
        (0..100).for_each(|_| log.put("x".repeat(9999) + "\n"));
        let new = Memory::default();
        log.redirect(Box::new(new.clone()));
        log.put(line(1));
        assert!(log.finish(PATIENCE));
        assert!(new.text().ends_with("line 1\n"));
        drop(reader);
    }

    /// Keeps what is written; takes as many bytes at a time as it is told, 0: fails, and anything
    /// when it was told nothing more.
    #[derive(Debug, Clone, Default)]
    struct Memory(Arc<Mutex<(Vec<u8>, VecDeque<usize>)>>);

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(locked(&self.0).0.clone()).unwrap()
        }

        fn takes<const N: usize>(&self, sizes: [usize; N]) {
            locked(&self.0).1 = sizes.into();
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (kept, sizes) = &mut *locked(&self.0);
            let n = sizes.pop_front().unwrap_or(bytes.len()).min(bytes.len());
            kept.extend_from_slice(&bytes[..n]);
            match n {
                0 => Err(io::ErrorKind::StorageFull.into()),
                n => Ok(n),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output for Memory {
        fn n_bytes(&self) -> Option<u64> {
            Some(locked(&self.0).0.len() as u64)
        }
    }

    #[derive(Debug)]
    struct Forward(Sender<Vec<u8>>);

    impl Write for Forward {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output for Forward {}

    #[derive(Debug)]
    struct Gated(Receiver<()>);

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Ends when the test drops the other end.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output for Gated {}

    #[derive(Debug)]
    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output for Broken {}
}
