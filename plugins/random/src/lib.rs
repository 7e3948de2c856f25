//! Policy `random`: any backend, by weight.

use pointsman_sdk::{
    NoConfig,
    policy::{Backend, Decision, Policy, Request},
};

/// For each backend the sum of its weight and all before it.
#[derive(Debug)]
pub struct Random {
    sums: Vec<u64>,
}

impl Policy for Random {
    type Config = NoConfig;

    fn configure(_config: NoConfig) -> Result<Self, String> {
        Ok(Self { sums: Vec::new() })
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        self.sums = sums(backends.iter().map(|backend| backend.weight.max(1)));
    }

    fn choose(&mut self, request: &Request) -> Decision {
        Decision::Prefer(pick(&self.sums, request.random))
    }
}

pointsman_sdk::export!(Random: policy);

fn sums(weights: impl Iterator<Item = u32>) -> Vec<u64> {
    let mut sum = 0;
    weights
        .map(|weight| {
            sum += u64::from(weight);
            sum
        })
        .collect()
}

/// The place whose share of the line from 0 to the sum of all weights `random`, a fraction of 2^64,
/// falls into.
fn pick(sums: &[u64], random: u64) -> u32 {
    let total = sums.last().copied().unwrap_or(0);
    let point = (u128::from(random) * u128::from(total)) >> u64::BITS;
    sums.partition_point(|&sum| u128::from(sum) <= point) as u32
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{PolicyHost, backend, weighted};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_line_is_cut_by_weight() {
        let sums = sums([1, 2, 1].into_iter());
        let quarter = 1 << 62;
        let check = |random, place| assert_eq!(pick(&sums, random), place, "{random}");
        check(0, 0);
        check(quarter - 1, 0);
        check(quarter, 1);
        check(3 * quarter - 1, 1);
        check(3 * quarter, 2);
        check(u64::MAX, 2);
    }

    #[test]
    fn shares_follow_weights() {
        let backends = [weighted("a", 1), weighted("b", 3)];
        let mut host = PolicyHost::<Random>::start(json!({}), &backends).unwrap();
        let picks = host.pick_many(4000);
        let n_a = picks.iter().filter(|address| *address == "a").count();
        assert!((900..1100).contains(&n_a), "{n_a} of 4000");
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PolicyHost::<Random>::start(json!({"seed": 1}), &[backend("a")]);
        assert!(refused.unwrap_err().contains("`seed`"));
    }
}
