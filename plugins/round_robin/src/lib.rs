//! Policy `round_robin`: each backend in turn, by weight, in the smooth order of nginx: weights
//! 5, 1, 1 give a a b a c a a and not a a a a a b c. The order is computed when the backends change,
//! and a request's number picks from it; so the turns are exact over all workers, and there is no
//! state to lose.

use pointsman_sdk::{
    NoConfig,
    policy::{Backend, Decision, Policy, Request},
};

/// The longest order that is kept exact, 256 KiB of it. Past it weights are scaled down to this sum
/// and rounded, but to no less than 1, which puts a backend off by a turn in the period at most.
const MAX_PERIOD: u64 = 65_536;

/// How many steps the computation may take: about 3 ms, well within the time of a call. Each turn
/// takes one for each of the different weights, so that many of them shorten the order further: 16
/// leave it whole, 100 leave 10,485 turns.
const MAX_STEPS: u64 = 1 << 20;

/// Places in the list of backends, in the order of their turns; begins anew at its end.
#[derive(Debug)]
pub struct RoundRobin {
    turns: Vec<u32>,
}

impl Policy for RoundRobin {
    type Config = NoConfig;

    fn configure(_config: NoConfig) -> Result<Self, String> {
        Ok(Self { turns: vec![0] })
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        let weights: Vec<u64> = backends
            .iter()
            .map(|b| u64::from(b.weight.max(1)))
            .collect();
        self.turns = turns(&scaled(weights));
    }

    fn choose(&mut self, request: &Request) -> Decision {
        let turn = request.sequence % self.turns.len() as u64;
        Decision::Prefer(self.turns[turn as usize])
    }
}

pointsman_sdk::export!(RoundRobin: policy);

/// The same proportions in small numbers: divided by their greatest common divisor and, if that is
/// not enough, rounded.
fn scaled(mut weights: Vec<u64>) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    weights.iter_mut().for_each(|weight| *weight /= divisor);

    let sum: u64 = weights.iter().sum();
    let max_sum = MAX_PERIOD.min(MAX_STEPS / groups(&weights).len().max(1) as u64);
    if sum > max_sum {
        let scale = |weight: u64| ((weight * max_sum + sum / 2) / sum).max(1);
        weights
            .iter_mut()
            .for_each(|weight| *weight = scale(*weight));
    }
    weights
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Backends of one weight. They take the group's turns in the order of the list.
struct Group {
    weight: i64,
    places: Vec<u32>,
    /// Whose turn it is: an index into `places`.
    next: usize,
    /// What nginx calls the current weight, of the member whose turn it is.
    credit: i64,
    /// How often all of `places` have had a turn.
    n_rounds: i64,
}

/// One period of nginx's smooth weighted round robin: at each step every backend gains its weight,
/// the one with the most credit has its turn (the first in the list among equals), and pays the sum
/// of all weights. Backends of equal weight differ only by whether they have had their turn in this
/// round, so it is enough to follow one of each weight; nginx follows each
/// (`ngx_http_upstream_get_peer`).
fn turns(weights: &[u64]) -> Vec<u32> {
    let sum: u64 = weights.iter().sum();
    let mut groups = groups(weights);
    let mut turns = Vec::with_capacity(sum as usize);
    for step in 1..=sum as i64 {
        for group in &mut groups {
            group.credit = group.weight * step - sum as i64 * group.n_rounds;
        }
        let first = groups
            .iter_mut()
            .min_by_key(|group| (-group.credit, group.places[group.next]));
        let Some(group) = first else { break };
        turns.push(group.places[group.next]);
        group.next += 1;
        if group.next == group.places.len() {
            group.next = 0;
            group.n_rounds += 1;
        }
    }
    turns
}

fn groups(weights: &[u64]) -> Vec<Group> {
    let mut places: Vec<u32> = (0..weights.len() as u32).collect();
    places.sort_unstable_by_key(|&place| (weights[place as usize], place));
    places
        .chunk_by(|&a, &b| weights[a as usize] == weights[b as usize])
        .map(|places| Group {
            weight: weights[places[0] as usize] as i64,
            places: places.to_vec(),
            next: 0,
            credit: 0,
            n_rounds: 0,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{PolicyHost, backend, weighted};
    use serde_json::json;

    use super::*;

    /// nginx's algorithm, word for word.
    fn nginx(weights: &[u64]) -> Vec<u32> {
        let sum: i64 = weights.iter().sum::<u64>() as i64;
        let mut credits = vec![0; weights.len()];
        let step = |_| {
            let mut best = 0;
            for (place, &weight) in weights.iter().enumerate() {
                credits[place] += weight as i64;
                if credits[place] > credits[best] {
                    best = place;
                }
            }
            credits[best] -= sum;
            best as u32
        };
        (0..sum).map(step).collect()
    }

    #[test]
    fn equal_backends_take_turns() {
        let backends = [backend("a"), backend("b"), backend("c")];
        let mut host = PolicyHost::<RoundRobin>::start(json!({}), &backends).unwrap();
        assert_eq!(host.pick_many(6), ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn weights_are_interleaved() {
        let backends = [weighted("a", 50), weighted("b", 10), weighted("c", 10)];
        let mut host = PolicyHost::<RoundRobin>::start(json!({}), &backends).unwrap();
        assert_eq!(host.pick_many(7), ["a", "a", "b", "a", "c", "a", "a"]);
    }

    #[test]
    fn the_order_is_that_of_nginx() {
        for weights in [
            vec![1],
            vec![1, 2],
            vec![2, 1, 2, 1, 1],
            vec![3, 3, 2, 7, 7, 7, 1],
            vec![4, 5, 6, 4, 5, 6],
            (1..=30).collect(),
        ] {
            assert_eq!(turns(&weights), nginx(&weights), "{weights:?}");
        }
    }

    #[test]
    fn a_long_period_is_shortened_and_keeps_its_shares() {
        let weights: Vec<u64> = (0..1000).map(|n| 1 + n % 997).collect();
        let short = scaled(weights.clone());
        let (sum, short_sum) = (weights.iter().sum::<u64>(), short.iter().sum::<u64>());
        assert!(short_sum < 4000, "{short_sum}");
        for (weight, short) in weights.iter().zip(&short) {
            let exact = weight * short_sum / sum;
            assert!(
                short.abs_diff(exact) <= 2,
                "{weight}: {short}, exactly {exact}"
            );
        }

        assert_eq!(scaled(vec![1000; 500_000]), vec![1; 500_000]);
        let long = scaled((0..200).map(|n| 999 + n % 2).collect());
        assert!(long.iter().sum::<u64>() <= MAX_PERIOD + 200);
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PolicyHost::<RoundRobin>::start(json!({"weights": 1}), &[backend("a")]);
        assert!(refused.unwrap_err().contains("`weights`"));
    }
}
