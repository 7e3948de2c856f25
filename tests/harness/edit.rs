//! Text that a test changes before it uses it: a change that no longer fits fails the test, where
//! `str::replace` would leave the text as it was and the test would prove nothing.

/// Changes that must take place.
pub trait Edit {
    /// This text with `to` in place of `from`.
    ///
    /// # Panics
    ///
    /// `from` is not there exactly once.
    #[track_caller]
    #[must_use]
    fn replace_once(&self, from: &str, to: &str) -> String;

    /// This text with `to` in place of each `from`.
    ///
    /// # Panics
    ///
    /// `from` is not there.
    #[track_caller]
    #[must_use]
    fn replace_all(&self, from: &str, to: &str) -> String;
}

impl Edit for str {
    #[track_caller]
    fn replace_once(&self, from: &str, to: &str) -> String {
        let n = self.matches(from).count();
        assert!(
            n == 1,
            "{from:?} is there {n} times, expected once:\n{self}"
        );
        self.replace(from, to)
    }

    #[track_caller]
    fn replace_all(&self, from: &str, to: &str) -> String {
        assert!(self.contains(from), "{from:?} is not there:\n{self}");
        self.replace(from, to)
    }
}
