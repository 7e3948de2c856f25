//! Plugins replaced under load: a changed copy every 500 ms, and how long until it is in use.
//!
//! In go the plugin's bytes and the watched folder; out come the times from rename to generation. A copy
//! is changed by a custom section, which changes what the file is but not what it does.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::metrics;
use crate::subjects::process::pause;

/// From one copy to the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often the metrics are asked for a new generation.
const POLL: Duration = Duration::from_millis(5);
/// Longest wait for one.
const TIMEOUT: Duration = Duration::from_secs(10);
const SECTION: &[u8] = b"copy";

/// A plugin to replace, and where.
#[derive(Debug)]
pub struct Reloads<'a> {
    /// The plugin's name, which is that of its file.
    pub plugin: &'a str,
    /// The plugin, as it ships.
    pub component: &'a [u8],
    /// The watched folder.
    pub folder: &'a Path,
    /// Where the generation can be seen.
    pub admin: SocketAddr,
}

impl Reloads<'_> {
    /// Replaces the plugin until `stop` is set. Each entry is the time from a rename to the generation
    /// that came of it.
    ///
    /// # Errors
    /// The folder cannot be written, or a copy is not taken on in time.
    pub fn run_until(&self, stop: &AtomicBool) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        let mut due = Instant::now();
        let mut copy = 0;
        // Relaxed: nothing else is handed over with the flag.
        while !stop.load(Ordering::Relaxed) {
            if Instant::now() < due {
                pause(POLL);
                continue;
            }
            due += INTERVAL;
            copy += 1;
            times.push(self.replace(copy)?);
        }
        Ok(times)
    }

    fn replace(&self, copy: u64) -> Result<Duration> {
        let before = self.generation()?;
        // A name that is not watched, so that the copy appears whole.
        let hidden = self.folder.join(".new");
        fs::write(
            &hidden,
            with_custom_section(self.component, SECTION, &copy.to_le_bytes()),
        )?;
        let renamed = Instant::now();
        fs::rename(&hidden, self.folder.join(format!("{}.wasm", self.plugin)))?;
        while self.generation()? <= before {
            if renamed.elapsed() > TIMEOUT {
                bail!(
                    "copy {copy} of {} is not in use after {TIMEOUT:?}",
                    self.plugin
                );
            }
            pause(POLL);
        }
        Ok(renamed.elapsed())
    }

    fn generation(&self) -> Result<f64> {
        let page = metrics::fetch(self.admin)?;
        let label = format!("plugin=\"{}\"", self.plugin);
        let found = metrics::values(&page, "pointsman_plugin_generation", &label);
        found
            .first()
            .copied()
            .with_context(|| format!("no generation of {} in the metrics", self.plugin))
    }
}

/// `component` with a custom section behind it: id 0, length, length of the name, name, content (WebAssembly
/// core specification, section 5.5.3; the same in components).
pub fn with_custom_section(component: &[u8], name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut section = leb128(name.len());
    section.extend_from_slice(name);
    section.extend_from_slice(content);
    let mut changed = component.to_vec();
    changed.push(0);
    changed.extend(leb128(section.len()));
    changed.extend(section);
    changed
}

/// Seven bits a byte, the lowest first, the eighth where more follow.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_section_is_well_formed() {
        let changed = with_custom_section(b"\0asm", b"copy", &[1, 2, 3]);
        assert_eq!(changed, b"\0asm\x00\x08\x04copy\x01\x02\x03");
    }

    #[test]
    fn long_sections_have_a_length_of_several_bytes() {
        assert_eq!(leb128(0), [0]);
        assert_eq!(leb128(127), [0x7f]);
        assert_eq!(leb128(128), [0x80, 1]);
        assert_eq!(leb128(624_485), [0xe5, 0x8e, 0x26]);
        let changed = with_custom_section(b"", b"n", &[7; 200]);
        assert_eq!(&changed[..4], [0, 0xca, 1, 1]);
        assert_eq!(changed.len(), 3 + 0xca - 0x80 + 0x80);
    }
}
