//! The host's own round robin: what chooses when a policy cannot.
//!
//! Equal turns, without weights: it stands in for a moment, and must not be able to fail.

use pointsman_contract::policy::Decision;

/// Choice number `sequence` among `n_candidates`, which is not 0.
pub(crate) fn round_robin(sequence: u64, n_candidates: usize) -> Decision {
    Decision::Prefer((sequence % n_candidates.max(1) as u64) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candidate_has_its_turn() {
        let turns: Vec<_> = (7..11).map(|sequence| round_robin(sequence, 3)).collect();
        assert_eq!(turns, [1, 2, 0, 1].map(Decision::Prefer));
    }
}
