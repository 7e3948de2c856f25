//! Looks for the message, header, query or path that takes a shipped plugin longest. None that the limits
//! let through may take longer than a call has.
//!
//! libFuzzer sees nothing of what runs in the sandbox, so the time of a call leads the search: the slowest
//! inputs are kept and mutated. A seed is a pattern that is repeated up to the longest input (`grow`), so that
//! a mutation of a few bytes changes the whole of it.

mod case;
mod plugin;

use std::fmt;
use std::time::Duration;

pub use self::case::{CASES, Case};
pub use self::plugin::Plugin;
use crate::{mutate, seeds};

/// The default of `call_timeout_ms`.
pub const CALL_TIMEOUT: Duration = Duration::from_millis(10);

/// How many inputs are kept to be mutated.
const N_KEPT: usize = 8;

/// An input is measured so often, and the fastest counts: what else the machine does only makes it slower.
const N_TRIES: usize = 5;

/// The same for the slowest input of all, which may be that by chance.
const N_TRIES_AT_END: usize = 30;

/// An input and what it costs.
#[derive(Debug)]
pub struct Found {
    /// What is repeated to make it, as in a seed.
    pub pattern: Vec<u8>,
    /// CPU time of its slowest call.
    pub cost: Duration,
}

/// Climbs from the seeds for as long as `goes_on` says so. Returns the slowest input.
///
/// # Panics
/// A call fails.
pub fn search(
    plugin: &Plugin,
    case: &Case,
    random: &mut fastrand::Rng,
    mut goes_on: impl FnMut() -> bool,
) -> Found {
    let seeds = seeds(case.seeds());
    let mut kept = Vec::new();
    for seed in &seeds {
        keep_if_slow(&mut kept, plugin, case, seed.clone());
    }
    while goes_on() {
        let slow = &kept[random.usize(..kept.len())].pattern;
        let other = &seeds[random.usize(..seeds.len())];
        let mutant = mutate(slow, other, random);
        keep_if_slow(&mut kept, plugin, case, mutant);
    }
    let Found { pattern, .. } = kept.swap_remove(0);
    let cost = cost(plugin, case, &pattern, N_TRIES_AT_END, Duration::ZERO);
    Found { pattern, cost }
}

/// `kept` has the slowest first.
fn keep_if_slow(kept: &mut Vec<Found>, plugin: &Plugin, case: &Case, pattern: Vec<u8>) {
    let bound = kept
        .get(N_KEPT - 1)
        .map_or(Duration::ZERO, |last| last.cost);
    let cost = cost(plugin, case, &pattern, N_TRIES, bound);
    if cost < bound {
        return;
    }
    let place = kept.partition_point(|other| other.cost >= cost);
    kept.insert(place, Found { pattern, cost });
    kept.truncate(N_KEPT);
}

/// Of the fastest of so many tries, or of the first below `bound`.
fn cost(plugin: &Plugin, case: &Case, pattern: &[u8], n_tries: usize, bound: Duration) -> Duration {
    let input = case.input(grow(pattern, case.n_bytes));
    let mut fastest = Duration::MAX;
    for _ in 0..n_tries {
        let cost = plugin.slowest_call(case.config, &input);
        let cost =
            cost.unwrap_or_else(|error| panic!("{case}: {error}: {}", pattern.escape_ascii()));
        fastest = fastest.min(cost);
        if fastest < bound {
            break;
        }
    }
    fastest
}

/// The input of at most `n_bytes` that a pattern stands for. Its lines are: the beginning, what is repeated, the
/// middle, what is repeated as often, and the end. A `#` in a repeated line is the number of the repetition.
fn grow(pattern: &[u8], n_bytes: usize) -> Vec<u8> {
    let mut lines = pattern.split(|byte| *byte == b'\n');
    let [beginning, before, middle, behind, end] =
        [(); 5].map(|()| lines.next().unwrap_or_default());
    let mut grown = beginning.to_vec();
    let mut closing = Vec::new();
    let n_fixed = middle.len() + end.len();
    // From a number on after which all have as many digits.
    for n in 100_000.. {
        let (n_grown, n_closing) = (grown.len(), closing.len());
        repeat(&mut grown, before, n);
        repeat(&mut closing, behind, n);
        let n_added = grown.len() - n_grown + closing.len() - n_closing;
        if n_added == 0 || grown.len() + closing.len() + n_fixed > n_bytes {
            grown.truncate(n_grown);
            closing.truncate(n_closing);
            break;
        }
    }
    grown.extend([middle, &closing, end].concat());
    grown.truncate(n_bytes);
    grown
}

fn repeat(text: &mut Vec<u8>, line: &[u8], n: u32) {
    for byte in line {
        match byte {
            b'#' => text.extend(n.to_string().bytes()),
            _ => text.push(*byte),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pattern, cost } = self;
        write!(
            f,
            "{:.2} ms: {}",
            cost.as_secs_f64() * 1e3,
            pattern.escape_ascii()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn a_pattern_grows_to_a_length() {
        let check = |pattern: &str, n_bytes, expected: &str| {
            let grown = String::from_utf8(grow(pattern.as_bytes(), n_bytes)).unwrap();
            assert_eq!(grown, expected, "{pattern:?}");
        };
        check("{\n\"k\":1,\n\"k\":1}", 20, "{\"k\":1,\"k\":1,\"k\":1}");
        check("\n[\n0\n]", 8, "[[[0]]]");
        check("<\n#,\n>", 16, "<100000,100001,>");
        check("all\nof it\nis too long", 5, "allis");
        check("nothing to repeat\n", 9, "nothing t");
    }

    #[test]
    fn every_shipped_plugin_has_a_case() {
        let files = fs::read_dir(plugin::SHIPPED).expect("`cargo xtask plugins` makes it");
        let names = files.filter_map(|file| {
            let file = file.unwrap().file_name().into_string().unwrap();
            Some(file.strip_suffix(".wasm")?.to_owned())
        });
        let covered = CASES
            .iter()
            .map(|case| case.plugin)
            .chain(case::WITHOUT_INPUT)
            .map(str::to_owned);
        assert_eq!(names.collect::<BTreeSet<_>>(), covered.collect());
    }

    #[test]
    fn no_seed_takes_a_shipped_plugin_longer_than_a_call_has() {
        let mut random = fastrand::Rng::with_seed(1);
        for case in CASES {
            let plugin = Plugin::load(case.plugin);
            let found = search(&plugin, case, &mut random, || false);
            // Twice: beside other tests a core may do half as much.
            assert!(found.cost <= 2 * CALL_TIMEOUT, "{case}: {found}");
        }
    }
}
