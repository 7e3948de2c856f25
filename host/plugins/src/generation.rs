//! One loaded version of a plugin: its code under a name and a number.
//!
//! Immutable and shared by all workers; each makes its own instances of it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use pointsman_contract::names::PluginName;

use super::load::{CallCode, Code, PluginKinds};

/// One version of one plugin.
#[derive(Debug)]
pub struct Generation {
    /// The plugin's.
    pub name: PluginName,
    /// Counts from 1 in each name and never goes back.
    pub number: u64,
    /// Where its bytes came from.
    pub source: GenerationSource,
    /// Shared with a generation that brings the same code back.
    pub(super) code: Arc<Code>,
}

/// What an instance knew, for the one that takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The layout of `bytes`, as the plugin numbers them.
    pub version: u32,
    /// The plugin's own affair.
    pub bytes: Vec<u8>,
}

/// Where the bytes of a generation came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationSource {
    /// This binary.
    Embedded,
    /// A file.
    File(PathBuf),
}

impl Generation {
    /// What it exports.
    pub fn kinds(&self) -> PluginKinds {
        self.code.kinds
    }

    /// The size of the file.
    pub fn n_bytes(&self) -> usize {
        self.code.n_bytes
    }

    /// The hash of the file, in hexadecimal digits.
    pub fn sha256(&self) -> String {
        self.code
            .sha256
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// What is called synchronously, or the error of calling an HTTP handler so.
    pub(super) fn calls(&self) -> Option<&CallCode> {
        self.code.calls.as_ref()
    }

    /// The same code under another number.
    pub(super) fn renumbered(&self, number: u64) -> Self {
        Self {
            name: self.name.clone(),
            number,
            source: self.source.clone(),
            code: Arc::clone(&self.code),
        }
    }
}

impl fmt::Display for GenerationSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}
