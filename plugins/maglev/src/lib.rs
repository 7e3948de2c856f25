//! Policy `maglev`: the same backend for the same key, by a table that is made when the backends
//! change (Eisenbud et al., "Maglev: a fast and reliable software network load balancer", 2016,
//! section 3.4). A choice is one look at the table, however many backends there are, and loads are as
//! even as the table is large; for that, a backend that comes or goes moves some more keys than its
//! own. The order of the list does not matter.

use pointsman_sdk::policy::{Backend, Decision, Key, KeyKind, Policy, Request, Wants, stable_hash};
use serde::Deserialize;

/// How many backends a decision names at most, for dials that fail.
const MAX_RANKED: usize = 8;

/// What an operator may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    key: KeyKind,
    name: Option<String>,
    /// A prime number, so that each backend's steps reach every cell. 251 to 1,000,003. For 100
    /// backends 65,537 cells take 2.3 ms, 262,147 take 11 ms and the most 50 ms; a call has 10 ms
    /// unless the operator gives more.
    #[serde(default = "default_table_size")]
    table_size: i64,
}

fn default_table_size() -> i64 {
    65_537
}

/// The table, and how large it is to be.
#[derive(Debug)]
pub struct Maglev {
    key: Key,
    table_size: u32,
    /// Places in the list of backends.
    table: Vec<u32>,
    n_backends: usize,
}

impl Policy for Maglev {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        let size = config.table_size;
        if !(251..=1_000_003).contains(&size) || !is_prime(size) {
            return Err(format!(
                "table_size: {size} is not allowed: a prime number, 251 to 1000003, such as 65537"
            ));
        }
        Ok(Self {
            key: Key::new(config.key, config.name)?,
            table_size: size as u32,
            table: Vec::new(),
            n_backends: 0,
        })
    }

    fn wants(&self) -> Wants {
        Wants {
            headers: self.key.headers(),
            ..Wants::default()
        }
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        self.table = table(backends, self.table_size);
        self.n_backends = backends.len();
    }

    fn choose(&mut self, request: &Request) -> Decision {
        let cell = self.key.hash(request) % u64::from(self.table_size);
        let (before, from) = self.table.split_at(cell as usize);
        let n_ranked = self.n_backends.min(MAX_RANKED);
        let mut ranked = Vec::with_capacity(n_ranked);
        for &place in from.iter().chain(before) {
            if !ranked.contains(&place) {
                ranked.push(place);
            }
            if ranked.len() == n_ranked {
                break;
            }
        }
        Decision::Ranked(ranked)
    }
}

pointsman_sdk::export!(Maglev: policy);

fn is_prime(n: i64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| n % d != 0)
}

/// A backend while the table is made. It prefers cells in steps of its own, from one of its own.
struct Filler {
    place: u32,
    /// How many cells it is to have, and has.
    n_due: u64,
    n_taken: u64,
    /// The cell that it asks for next.
    next: u32,
    step: u32,
}

/// Backends in turn take the next cell of their preference that is free. In each of `n_rounds` a
/// backend takes as many as keep it at its share, one on average; the paper lets it take one each,
/// and leaves weights to the reader.
fn table(backends: &[Backend], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let mut table = vec![FREE; size as usize];
    let mut fillers = fillers(backends, size);
    let n_rounds = u64::from(size).div_ceil(fillers.len() as u64);
    for round in 1..=n_rounds {
        for filler in &mut fillers {
            let n_due = filler.n_due * round / n_rounds;
            while filler.n_taken < n_due {
                let cell = &mut table[filler.step(size)];
                if *cell == FREE {
                    *cell = filler.place;
                    filler.n_taken += 1;
                }
            }
        }
    }
    table
}

impl Filler {
    /// The cell that it asks for, and on to the next.
    fn step(&mut self, size: u32) -> usize {
        let cell = self.next;
        self.next = match cell + self.step {
            next if next < size => next,
            next => next - size,
        };
        cell as usize
    }
}

/// Ordered by address, so that the host's order does not show.
fn fillers(backends: &[Backend], size: u32) -> Vec<Filler> {
    let mut sorted: Vec<(u32, &Backend)> = (0..).zip(backends).collect();
    sorted.sort_by(|(_, a), (_, b)| a.address.cmp(&b.address));
    let weights = sorted.iter().map(|(_, backend)| backend.weight);
    let shares = shares(&weights.collect::<Vec<_>>(), u64::from(size));
    let filler = |((place, backend), n_due): ((u32, &Backend), u64)| {
        let hash = |seed| stable_hash(seed, backend.address.as_bytes());
        Filler {
            place,
            n_due,
            n_taken: 0,
            next: (hash(0) % u64::from(size)) as u32,
            step: (hash(1) % u64::from(size - 1)) as u32 + 1,
        }
    };
    sorted.into_iter().zip(shares).map(filler).collect()
}

/// Whole numbers whose sum is `size` and which are less than 1 from the weights' shares of it; but
/// one at least, at the expense of the largest.
fn shares(weights: &[u32], size: u64) -> Vec<u64> {
    let weights = weights.iter().map(|&weight| u64::from(weight.max(1)));
    let total: u64 = weights.clone().sum();
    let mut sum = 0;
    let mut shares: Vec<u64> = weights
        .map(|weight| {
            let before = size * sum / total;
            sum += weight;
            size * sum / total - before
        })
        .collect();
    for place in 0..shares.len() {
        let largest = (0..shares.len()).max_by_key(|&other| shares[other]);
        if let Some(largest) = largest.filter(|&largest| shares[place] == 0 && shares[largest] > 1)
        {
            shares[place] = 1;
            shares[largest] -= 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{PolicyHost, backend, request, weighted};
    use serde_json::json;

    use super::*;

    fn backends(weights: &[u32]) -> Vec<Backend> {
        let places = weights.iter().enumerate();
        places
            .map(|(n, &weight)| weighted(&format!("10.0.0.{n}:80"), weight))
            .collect()
    }

    /// The addresses of the table's cells.
    fn cells(backends: &[Backend], size: u32) -> Vec<&str> {
        let table = table(backends, size);
        let address = |&place: &u32| backends[place as usize].address.as_str();
        table.iter().map(address).collect()
    }

    #[test]
    fn shares_are_less_than_a_cell_from_the_weights() {
        for (weights, size) in [
            (vec![1; 10], 65_537),
            (vec![1; 100], 5003),
            (vec![1, 2, 3, 4, 1000], 65_537),
            ((1..=100).collect(), 65_537),
            (vec![7], 251),
        ] {
            let total: u32 = weights.iter().sum();
            let backends = backends(&weights);
            let cells = cells(&backends, size);
            for backend in &backends {
                let n_cells = cells
                    .iter()
                    .filter(|cell| **cell == backend.address)
                    .count();
                let share = f64::from(size) * f64::from(backend.weight) / f64::from(total);
                assert!((n_cells as f64 - share).abs() < 1.0, "{n_cells}, {share}");
            }
        }
    }

    #[test]
    fn the_smallest_has_a_cell() {
        assert_eq!(shares(&[1, 1000, 1], 251), [1, 249, 1]);
        assert_eq!(shares(&[1; 3], 2).iter().sum::<u64>(), 2);
    }

    /// The paper bounds the loads and measures the moves (section 5.3). Here, less than 1 % of all keys
    /// move besides the backend's own where each has 500 cells, and less than 4 % where each has 100.
    #[test]
    fn a_backend_that_goes_moves_few_other_keys() {
        for (weights, size, bound) in [
            (vec![1; 10], 65_537, 0.01),
            (vec![1; 100], 65_537, 0.01),
            (vec![1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 65_537, 0.01),
            (vec![1; 10], 5003, 0.01),
            (vec![1; 10], 1009, 0.04),
            (vec![1; 100], 10_007, 0.04),
        ] {
            let backends = backends(&weights);
            let before = cells(&backends, size);
            for gone in [0, 4, 9] {
                let mut left = backends.clone();
                let gone = left.remove(gone).address;
                let after = cells(&left, size);
                let pairs = before.iter().zip(&after);
                let n_moved = pairs.filter(|(then, now)| **then != gone && then != now);
                let moved = n_moved.count() as f64 / f64::from(size);
                assert!(moved < bound, "without {gone} of {weights:?}: {moved}");
            }
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let mut backends = backends(&[1, 7, 2, 1, 5]);
        let before: Vec<String> = cells(&backends, 5003)
            .iter()
            .map(|cell| cell.to_string())
            .collect();
        backends.reverse();
        backends.swap(1, 3);
        assert_eq!(cells(&backends, 5003), before);
    }

    #[test]
    fn a_key_keeps_its_backend_and_has_others_behind() {
        let mut host =
            PolicyHost::<Maglev>::start(json!({"key": "path"}), &backends(&[1; 10])).unwrap();
        let mut ranked = |path: &str| {
            let path = path.to_owned();
            match host.choose(Request { path, ..request() }) {
                Decision::Ranked(places) => places,
                _ => panic!("backends are ranked"),
            }
        };
        let mut places = ranked("/a?b");
        assert_eq!(places, ranked("/a?c"));
        assert_ne!(places, ranked("/b"));
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 8);
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let refused = |config| PolicyHost::<Maglev>::start(config, &[backend("a")]).unwrap_err();
        for size in [-7, 0, 241, 65_536, 1_000_033] {
            assert_eq!(
                refused(json!({"table_size": size})),
                format!(
                    "table_size: {size} is not allowed: a prime number, 251 to 1000003, such as 65537"
                )
            );
        }
        assert!(refused(json!({"key": "ip"})).starts_with("key: \"ip\" is not allowed: one of"));
        assert!(refused(json!({"key": "query"})).starts_with("name: missing"));
        assert!(refused(json!({"size": 7})).contains("unknown field `size`"));
        for size in [251, 1_000_003] {
            PolicyHost::<Maglev>::start(json!({"table_size": size}), &[backend("a")]).unwrap();
        }
    }
}
