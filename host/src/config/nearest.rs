//! Which known word a mistyped one was probably meant to be.
//!
//! Pure text: in comes the word and those that are known, out goes one of them or none.

/// The known key that `key` was probably meant to be: one that holds it (`connect_timeout` for
/// `connect_timeout_ms`), or that differs in at most a third of its letters.
pub(super) fn nearest<'k>(key: &str, known: &'k [String]) -> Option<&'k str> {
    let key = key.to_lowercase().replace('-', "_");
    let distance = |candidate: &String| {
        let length = candidate.len().max(key.len());
        if key.len() >= 4 && candidate.contains(&key) {
            return Some(1);
        }
        if key.len() > 2 * candidate.len() {
            return None;
        }
        Some(edits(&key, candidate)).filter(|edits| *edits <= length / 3)
    };
    let near = known
        .iter()
        .filter_map(|candidate| Some((distance(candidate)?, candidate)));
    near.min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate.as_str())
}

/// Letters to insert, delete, replace or swap with the next to turn one word into the other
/// (Damerau-Levenshtein, optimal string alignment).
fn edits(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    // least[i][j]: from the first i letters of `from` to the first j of `to`.
    let mut least = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            if i == 0 || j == 0 {
                least[i][j] = i + j;
                continue;
            }
            let replaced = least[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            least[i][j] = replaced.min(least[i - 1][j] + 1).min(least[i][j - 1] + 1);
            let is_swap = i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1];
            if is_swap {
                least[i][j] = least[i][j].min(least[i - 2][j - 2] + 1);
            }
        }
    }
    least[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_offered() {
        let known = ["connect_timeout_ms", "retries", "tls", "name"].map(str::to_owned);
        for (key, expected) in [
            ("connect_timeout", Some("connect_timeout_ms")),
            ("Connect-Timeout-Secs", Some("connect_timeout_ms")),
            ("retry", None),
            ("retrys", Some("retries")),
            ("nam", Some("name")),
            ("tsl", Some("tls")),
            ("xyz", None),
            ("tl", Some("tls")),
            ("backends", None),
            ("", None),
        ] {
            assert_eq!(nearest(key, &known), expected, "{key}");
        }
    }
}
