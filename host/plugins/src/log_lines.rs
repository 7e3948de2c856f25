//! What plugins say: lines in the host's log under the plugin's name, at most so many a second.
//!
//! In come lines of the `log` import and the bytes that a guest prints; out go events of the target
//! `plugin`. Knows no wasm.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pointsman_contract::names::{PLUGIN_TARGET, PluginName};
use tracing::Level;

use super::limits::monotonic_ns;

/// Per plugin, over all workers.
const LINES_PER_SECOND_MAX: u64 = 100;
const LINE_MAX_BYTES: usize = 4 << 10;

/// The log of one plugin.
#[derive(Debug)]
pub(super) struct PluginLog {
    plugin: PluginName,
    window: Mutex<LineWindow>,
    n_dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct LineWindow {
    second: u64,
    n_lines: u64,
}

impl PluginLog {
    pub(super) fn new(plugin: PluginName) -> Self {
        Self {
            plugin,
            window: Mutex::default(),
            n_dropped: AtomicU64::new(0),
        }
    }

    /// Writes a line, or counts it as dropped.
    pub(super) fn write(&self, level: Level, line: &str) {
        let second = monotonic_ns() / 1_000_000_000;
        if !self.has_room(second) {
            self.n_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let plugin = self.plugin.as_str();
        let line = &line[..line.floor_char_boundary(LINE_MAX_BYTES)];
        match level {
            Level::ERROR => tracing::error!(target: PLUGIN_TARGET, plugin, "{line}"),
            Level::WARN => tracing::warn!(target: PLUGIN_TARGET, plugin, "{line}"),
            Level::INFO => tracing::info!(target: PLUGIN_TARGET, plugin, "{line}"),
            Level::DEBUG => tracing::debug!(target: PLUGIN_TARGET, plugin, "{line}"),
            Level::TRACE => tracing::trace!(target: PLUGIN_TARGET, plugin, "{line}"),
        }
    }

    pub(super) fn n_dropped(&self) -> u64 {
        self.n_dropped.load(Ordering::Relaxed)
    }

    fn has_room(&self, second: u64) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.second != second {
            let n_over = window.n_lines.saturating_sub(LINES_PER_SECOND_MAX);
            if n_over > 0 {
                let plugin = self.plugin.as_str();
                tracing::warn!(target: PLUGIN_TARGET, plugin, n_over, "lines over {LINES_PER_SECOND_MAX} a second were dropped");
            }
            *window = LineWindow { second, n_lines: 0 };
        }
        window.n_lines += 1;
        window.n_lines <= LINES_PER_SECOND_MAX
    }
}

/// What one instance prints, until the line is whole.
#[derive(Debug)]
pub(super) struct Printer {
    lines: Arc<PluginLog>,
    level: Level,
    begun: Vec<u8>,
}

impl Printer {
    pub(super) fn new(lines: Arc<PluginLog>, level: Level) -> Self {
        let begun = Vec::new();
        Self {
            lines,
            level,
            begun,
        }
    }

    pub(super) fn print(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, is_whole) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = LINE_MAX_BYTES.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&text[..text.len().min(room)]);
            if is_whole {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if !self.begun.is_empty() {
            self.lines
                .write(self.level, String::from_utf8_lossy(&self.begun).trim_end());
            self.begun.clear();
        }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_has_a_hundred_lines_a_second() {
        let lines = PluginLog::new(PluginName::parse("loud").unwrap());
        assert_eq!((0..150).filter(|_| lines.has_room(7)).count(), 100);
        assert!(lines.has_room(8));
    }

    #[test]
    fn lines_are_put_together_and_cut() {
        let mut printer = Printer::new(
            Arc::new(PluginLog::new(PluginName::parse("loud").unwrap())),
            Level::INFO,
        );
        printer.print(b"one\ntw");
        assert_eq!(printer.begun, b"tw");
        printer.print(&[b'x'; 9000]);
        assert_eq!(printer.begun.len(), LINE_MAX_BYTES);
        printer.print(b"\n");
        assert!(printer.begun.is_empty());
    }
}
