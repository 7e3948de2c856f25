//! Policy `rendezvous`: the same backend for the same key, by weighted rendezvous hashing
//! (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005): each backend draws a
//! score from its own address and the key, and the best scores come first. So the order of the list
//! does not matter, and a backend that comes or goes moves only its own keys. Each choice looks at
//! all backends.

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
}

/// The backends, in the order of the host.
#[derive(Debug)]
pub struct Rendezvous {
    key: Key,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    address: String,
    weight: f64,
}

impl Policy for Rendezvous {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        Ok(Self {
            key: Key::new(config.key, config.name)?,
            candidates: Vec::new(),
        })
    }

    fn wants(&self) -> Wants {
        Wants {
            headers: self.key.headers(),
            ..Wants::default()
        }
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        let candidate = |backend: &Backend| Candidate {
            address: backend.address.clone(),
            weight: f64::from(backend.weight.max(1)),
        };
        self.candidates = backends.iter().map(candidate).collect();
    }

    fn choose(&mut self, request: &Request) -> Decision {
        Decision::Ranked(ranked(&self.candidates, self.key.hash(request)))
    }
}

pointsman_sdk::export!(Rendezvous: policy);

/// The places of the best scores, the best one first.
fn ranked(candidates: &[Candidate], key_hash: u64) -> Vec<u32> {
    let scores = candidates.iter().map(|candidate| candidate.score(key_hash));
    let mut scores: Vec<(f64, u32)> = scores.zip(0..).collect();
    scores.sort_unstable_by(|(a, _), (b, _)| b.total_cmp(a));
    scores.truncate(MAX_RANKED);
    scores.into_iter().map(|(_, place)| place).collect()
}

impl Candidate {
    /// `-weight / ln(u)` for a number between 0 and 1 that is drawn by address and key. The largest
    /// of such scores is a candidate's with the probability of its share of the weights.
    fn score(&self, key_hash: u64) -> f64 {
        let drawn = stable_hash(key_hash, self.address.as_bytes()) >> 11;
        let u = (drawn as f64 + 0.5) / (1_u64 << 53) as f64;
        -self.weight / u.ln()
    }
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        Header,
        testing::{PolicyHost, backend, request, weighted},
    };
    use serde_json::json;

    use super::*;

    fn backends(weights: &[u32]) -> Vec<Backend> {
        let address = |n: usize| format!("10.0.0.{n}:80");
        let places = weights.iter().enumerate();
        places
            .map(|(n, &weight)| weighted(&address(n), weight))
            .collect()
    }

    /// The addresses that clients 0 to `n_clients` are given, in the order of the ranking.
    fn rankings(backends: &[Backend], n_clients: usize) -> Vec<Vec<String>> {
        let mut host = PolicyHost::<Rendezvous>::start(json!({}), backends).unwrap();
        let mut ranking = |n: usize| {
            let request = Request {
                client_ip: format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255),
                ..request()
            };
            let Decision::Ranked(places) = host.choose(request) else {
                panic!("backends are ranked");
            };
            let address = |place: u32| backends[place as usize].address.clone();
            places.into_iter().map(address).collect()
        };
        (0..n_clients).map(&mut ranking).collect()
    }

    #[test]
    fn shares_follow_weights() {
        // The share of n keys has a standard deviation of sqrt((1 - p) / (p n)) of itself: 0.4 %
        // for the smallest here.
        let weights = [1, 2, 3, 4];
        let n_keys = 500_000;
        let rankings = rankings(&backends(&weights), n_keys);
        for (n, weight) in weights.into_iter().enumerate() {
            let address = format!("10.0.0.{n}:80");
            let share = rankings
                .iter()
                .filter(|ranking| ranking[0] == address)
                .count();
            let expected = n_keys as f64 * f64::from(weight) / 10.0;
            assert!(
                (share as f64 / expected - 1.0).abs() < 0.01,
                "{weight}: {share}"
            );
        }
    }

    #[test]
    fn a_backend_that_goes_moves_only_its_own_keys() {
        let backends = backends(&[1, 1, 2, 1, 5, 1]);
        let mut before = rankings(&backends, 5000);
        for ranking in &mut before {
            ranking.retain(|address| *address != "10.0.0.2:80");
        }
        let left: Vec<Backend> = backends
            .into_iter()
            .filter(|b| b.address != "10.0.0.2:80")
            .collect();
        assert_eq!(rankings(&left, 5000), before);
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let mut backends = backends(&[1, 7, 2, 1, 5, 1, 1, 1, 1, 1]);
        let before = rankings(&backends, 5000);
        backends.reverse();
        backends.swap(2, 5);
        assert_eq!(rankings(&backends, 5000), before);
    }

    #[test]
    fn at_most_eight_are_ranked() {
        let few = rankings(&backends(&[1; 3]), 1);
        let many = rankings(&backends(&[1; 30]), 1);
        assert_eq!((few[0].len(), many[0].len()), (3, 8));
    }

    #[test]
    fn those_of_one_key_stay_together_and_those_without_do_not() {
        let config = json!({"key": "header", "name": "X-Room"});
        let mut host = PolicyHost::<Rendezvous>::start(config, &backends(&[1; 5])).unwrap();
        let mut places = |headers: &[Header]| {
            let mut decision = |n: u8| {
                let client_ip = format!("10.0.0.{n}");
                let headers = headers.to_vec();
                host.choose(Request {
                    client_ip,
                    headers,
                    ..request()
                })
            };
            let mut places: Vec<u32> = (0..100)
                .filter_map(|n| match decision(n) {
                    Decision::Ranked(places) => Some(places[0]),
                    _ => None,
                })
                .collect();
            places.sort();
            places.dedup();
            places.len()
        };
        assert_eq!(places(&[Header::new("x-room", "lobby")]), 1);
        assert_eq!(places(&[]), 5);
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let refused =
            |config| PolicyHost::<Rendezvous>::start(config, &[backend("a")]).unwrap_err();
        assert!(
            refused(json!({"key": "ip"}))
                .starts_with("key: \"ip\" is not allowed: one of \"client_ip\"")
        );
        assert!(refused(json!({"key": "cookie"})).starts_with("name: missing"));
        assert!(refused(json!({"name": "sid"})).starts_with("name: \"sid\" is not allowed"));
        assert!(
            refused(json!({"keys": "path"}))
                .contains("unknown field `keys`, expected `key` or `name`")
        );
    }
}
