//! The error log: what the program has to say to people, on stderr or in a file, of each kind at most so many
//! lines a second.
//!
//! Clients and backends can cause lines as fast as they can fail, and a log that fills the disk, or that
//! the reader cannot keep up with, is a fault of its own. What is left out is counted in the next line
//! of its kind. What plugins say has a bound for each plugin and is not counted here. Lines are written by
//! a [`writer`], so a log that fails or blocks stops nobody; the access log is written by another.

pub mod output;
pub mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use pointsman_config::{ErrorLogSettings, LogFormat};
use pointsman_contract::names::PLUGIN_TARGET;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use self::output::Output;
use self::writer::LogWriter;

/// Of one place in the code.
const LINES_PER_SECOND_MAX: u32 = 20;

/// Lines that are still to be written when the process ends: how long they may take, in each log.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The error log of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ErrorLog {
    writer: LogWriter,
    style: Arc<AtomicU8>,
    is_in_file: Arc<AtomicBool>,
}

impl ErrorLog {
    /// Begins to write what is at least as important as `level`, as the default settings say; panics
    /// are reported there, too. Once in a process.
    ///
    /// # Errors
    /// There is no descriptor left, or no room for another thread.
    pub fn start(level: LevelFilter) -> io::Result<Self> {
        let settings = ErrorLogSettings::default();
        let log = Self {
            writer: LogWriter::start("error_log", Self::open(&settings)?)?,
            style: Arc::new(AtomicU8::new(Style::of(&settings) as u8)),
            is_in_file: Arc::default(),
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(LineWriter(log.writer.clone()))
            // It would go to stderr, and a panic would follow where that fails.
            .log_internal_errors(false)
            .event_format(Bounded::new(Formats::new(Arc::clone(&log.style))))
            .init();
        panic::set_hook(Box::new(report_panic));
        Ok(log)
    }

    /// What these settings want written to.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(settings: &ErrorLogSettings) -> io::Result<Box<dyn Output>> {
        match &settings.file {
            Some(file) => output::file(file),
            None => output::stderr(),
        }
    }

    /// Goes on by these settings, in the output that was opened for them.
    pub fn redirect(&self, settings: &ErrorLogSettings, output: Box<dyn Output>) {
        let style = Style::of(settings);
        self.style.store(style as u8, Ordering::Relaxed);
        let is_in_file = settings.file.is_some();
        self.is_in_file.store(is_in_file, Ordering::Relaxed);
        self.writer.redirect(output);
    }

    /// Lines that were lost since the start.
    pub fn n_dropped(&self) -> u64 {
        self.writer.n_dropped()
    }

    /// Ends the log when everything is written, or after [`PATIENCE`].
    pub fn finish(&self) {
        self.writer.finish(PATIENCE);
    }

    /// The same for a program that ends because of an error, which is shown on stderr, too.
    pub fn finish_with(&self, error: &dyn fmt::Display) {
        if self.is_in_file.load(Ordering::Relaxed) {
            tracing::error!("{error}");
        }
        self.finish();
        let stderr = output::stderr();
        let stderr = stderr.and_then(|stderr| LogWriter::start("stderr", stderr));
        // Without a descriptor or a thread left there is nobody to tell.
        if let Ok(stderr) = stderr {
            stderr.put(format!("error: {error}\n"));
            stderr.finish(PATIENCE);
        }
    }
}

/// Puts a panic into the log. It neither waits nor panics itself, which would end the process.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("?");
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(tracing::field::display);
    // Taken where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    let backtrace = backtrace.map(tracing::field::display);
    tracing::error!(thread, location, backtrace, "panic: {message}");
}

/// Each line of the subscriber becomes one of the writer.
struct LineWriter(LogWriter);

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &LineWriter {
    /// Called with a whole line, or with nothing where the line was left out.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !line.is_empty() {
            self.0.put(String::from_utf8_lossy(line).into_owned());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Style {
    Plain,
    Coloured,
    Json,
}

impl Style {
    fn of(settings: &ErrorLogSettings) -> Self {
        match settings.format {
            LogFormat::Json => Self::Json,
            LogFormat::Text if settings.file.is_none() && io::stderr().is_terminal() => {
                Self::Coloured
            }
            LogFormat::Text => Self::Plain,
        }
    }
}

/// A format for each [`Style`], of which one is in use.
struct Formats {
    style: Arc<AtomicU8>,
    plain: Format<Full>,
    coloured: Format<Full>,
    json: Format<Json>,
}

impl Formats {
    fn new(style: Arc<AtomicU8>) -> Self {
        let text = || Format::default().with_target(false);
        Self {
            style,
            plain: text().with_ansi(false),
            coloured: text().with_ansi(true),
            json: text()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false),
        }
    }

    fn style(&self) -> Style {
        let style = self.style.load(Ordering::Relaxed);
        let all = [Style::Coloured, Style::Json];
        let found = all.into_iter().find(|&other| other as u8 == style);
        found.unwrap_or(Style::Plain)
    }

    fn format<S, N>(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        match self.style() {
            Style::Plain => self.plain.format_event(context, writer, event),
            Style::Coloured => self.coloured.format_event(context, writer, event),
            Style::Json => self.json.format_event(context, writer, event),
        }
    }
}

/// Writes lines in their format, unless there were too many of their kind.
struct Bounded {
    formats: Formats,
    windows: Mutex<HashMap<&'static str, RateWindow>>,
}

/// One second of one kind, which is a place in the code: an event is named after its file and line.
struct RateWindow {
    begun: Instant,
    n_lines: u32,
}

impl Bounded {
    fn new(formats: Formats) -> Self {
        Self {
            formats,
            windows: Mutex::default(),
        }
    }

    /// Whether a line may be written now; then also how many before it were not.
    fn may_write(&self, kind: &'static str, now: Instant) -> Option<u32> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let new = RateWindow {
            begun: now,
            n_lines: 0,
        };
        let window = windows.entry(kind).or_insert(new);
        let mut n_left_out = 0;
        if now.duration_since(window.begun) >= Duration::from_secs(1) {
            n_left_out = window.n_lines.saturating_sub(LINES_PER_SECOND_MAX);
            window.begun = now;
            window.n_lines = 0;
        }
        window.n_lines = window.n_lines.saturating_add(1);
        (window.n_lines <= LINES_PER_SECOND_MAX).then_some(n_left_out)
    }
}

impl<S, N> FormatEvent<S, N> for Bounded
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if metadata.target() == PLUGIN_TARGET {
            return self.formats.format(context, writer, event);
        }
        match self.may_write(metadata.name(), Instant::now()) {
            None => Ok(()),
            Some(0) => self.formats.format(context, writer, event),
            Some(n_left_out) => {
                let mut line = String::new();
                let aside = Writer::new(&mut line);
                self.formats.format(context, aside, event)?;
                writer.write_str(&with_left_out(line.trim_end(), n_left_out))
            }
        }
    }
}

/// The line, and how many of its kind are missing before it.
fn with_left_out(line: &str, n_left_out: u32) -> String {
    match line.strip_suffix('}').filter(|_| line.starts_with('{')) {
        Some(fields) => format!("{fields},\"lines_left_out\":{n_left_out}}}\n"),
        None => format!("{line} lines_left_out={n_left_out}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_lines_and_what_is_left_out_is_told_later() {
        let log = Bounded::new(Formats::new(Arc::default()));
        let now = Instant::now();
        let flood = "a.rs:1";
        for _ in 0..LINES_PER_SECOND_MAX {
            assert_eq!(log.may_write(flood, now), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(log.may_write(flood, now + Duration::from_millis(999)), None);
        }
        assert_eq!(log.may_write("a.rs:2", now), Some(0));
        let later = now + Duration::from_secs(1);
        assert_eq!(log.may_write(flood, later), Some(7));
        assert_eq!(
            log.may_write(flood, later + Duration::from_secs(9)),
            Some(0)
        );
    }

    #[test]
    fn what_is_left_out_is_told_in_either_format() {
        for (line, expected) in [
            ("INFO a b=1", "INFO a b=1 lines_left_out=3\n"),
            (r#"{"a":{}}"#, "{\"a\":{},\"lines_left_out\":3}\n"),
            ("WARN }", "WARN } lines_left_out=3\n"),
        ] {
            assert_eq!(with_left_out(line, 3), expected);
        }
    }
}
