//! Regular expressions whose cost is known before they run.

use regex_lite::{Regex, RegexBuilder};

/// Bytes of a compiled pattern. A UUID of hexadecimal digits needs 2048.
const MIN_PATTERN_LIMIT: usize = 512;
const MAX_PATTERN_LIMIT: usize = 16 << 10;

/// A regular expression, and what it may cost.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub(crate) regex: Regex,
    pub(crate) steps_per_byte: usize,
}

impl Pattern {
    /// ECMA-262 without what may take more than linear time (look-around, back-references) and
    /// without the tables of Unicode. The time for a byte grows with the compiled size, up to 0.37 ns
    /// for each of its bytes: of several limits, the least that the pattern keeps says how large it is.
    pub(crate) fn new(pattern: &str) -> Result<Self, regex_lite::Error> {
        let mut limit = MIN_PATTERN_LIMIT;
        loop {
            match RegexBuilder::new(pattern).size_limit(limit).build() {
                Ok(regex) => {
                    return Ok(Self {
                        regex,
                        steps_per_byte: limit / 256,
                    });
                }
                Err(_) if limit < MAX_PATTERN_LIMIT => limit *= 2,
                Err(error) => return Err(error),
            }
        }
    }
}
