//! Tests that need what not every machine has.

use std::env;

/// Says that the test leaves out the rest, and why. The caller returns after it.
///
/// # Panics
///
/// `CI` is set: there, nothing that a test needs may be missing.
#[track_caller]
pub fn skip(reason: &str) {
    let is_ci = env::var_os("CI").is_some_and(|value| !value.is_empty());
    assert!(!is_ci, "skipped under CI: {reason}");
    eprintln!("skipped: {reason}");
}
