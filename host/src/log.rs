//! The log for people: lines on stderr, of each kind at most so many a second.
//!
//! Clients and backends can cause lines as fast as they can fail, and a log that fills the disk, or that
//! the reader cannot keep up with, is a fault of its own. What is left out is counted in the next line
//! of its kind. What plugins say has a bound for each plugin and is not counted here.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What plugins say, and what is said of that.
pub const PLUGIN_TARGET: &str = "plugin";

/// Of one place in the code.
const LINES_PER_SECOND_MAX: u32 = 20;

/// Begins to write what is at least as important as `level`.
pub fn to_stderr(level: LevelFilter) {
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(is_terminal)
        .event_format(Bounded::new(Format::default().with_target(false)))
        .init();
}

/// Writes lines by another format, unless there were too many of their kind.
struct Bounded<F> {
    format: F,
    windows: Mutex<HashMap<&'static str, Window>>,
}

/// One second of one kind, which is a place in the code: an event is named after its file and line.
struct Window {
    begun: Instant,
    n_lines: u32,
}

impl<F> Bounded<F> {
    fn new(format: F) -> Self {
        Self {
            format,
            windows: Mutex::default(),
        }
    }

    /// Whether a line may be written now; then also how many before it were not.
    fn may_write(&self, kind: &'static str, now: Instant) -> Option<u32> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Window {
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

impl<S, N, F> FormatEvent<S, N> for Bounded<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if metadata.target() == PLUGIN_TARGET {
            return self.format.format_event(context, writer, event);
        }
        match self.may_write(metadata.name(), Instant::now()) {
            None => Ok(()),
            Some(0) => self.format.format_event(context, writer, event),
            Some(n_left_out) => {
                let mut line = String::new();
                let aside = Writer::new(&mut line);
                self.format.format_event(context, aside, event)?;
                writeln!(writer, "{} lines_left_out={n_left_out}", line.trim_end())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_lines_and_what_is_left_out_is_told_later() {
        let log = Bounded::new(());
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
}
