//! What plugins are called.

use std::fmt;

/// The target of log lines: what plugins say, and what is said of that.
pub const PLUGIN_TARGET: &str = "plugin";

/// The name of a plugin: the stem of its file. `[a-z][a-z0-9_-]{0,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName(String);

impl PluginName {
    /// What a name may be, for error messages.
    pub const ALLOWED: &'static str =
        "a lower-case letter, then at most 63 letters, digits, '_' or '-'";

    /// None where `name` is not a plugin's name.
    pub fn parse(name: &str) -> Option<Self> {
        let rest_is_fine =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
        let is_fine = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(rest_is_fine);
        is_fine.then(|| Self(name.to_owned()))
    }

    /// The policy of an upstream that names none.
    pub fn round_robin() -> Self {
        Self("round_robin".to_owned())
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
