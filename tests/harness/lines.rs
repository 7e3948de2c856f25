//! The lines that a process writes, kept as they come.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// A growing list of lines, shared by the task that reads them and the test that looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// Collects until `source` ends.
    pub(crate) async fn collect(self, source: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(source).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            self.locked().push(plain(&line));
        }
    }

    /// All lines so far.
    pub(crate) fn all(&self) -> Vec<String> {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<String>> {
        // A list of lines is whole after every push, whoever panicked since.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `line` without the escape sequences that colour it (ECMA-48, `ESC [ ... m`).
fn plain(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    kept
}
