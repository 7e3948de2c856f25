//! Policy `power_of_two`: two backends drawn by weight, and the one of the two that costs less. Two
//! draws even out the load almost as well as a look at all backends (Mitzenmacher, "The power of two
//! choices in randomized load balancing", 2001), and do not send everybody to the same one when
//! many workers decide by the same figures.
//!
//! The cost is latency x (what the backend is busy with + 1) / weight. Latency is Finagle's peak
//! EWMA (`com.twitter.finagle.loadbalancer.PeakEwma`): a higher one counts at once, a lower one bit
//! by bit.

use std::collections::BTreeMap;

use pointsman_sdk::policy::{Backend, Decision, Policy, Request, Wants};
use serde::Deserialize;

/// What an operator may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// In this time all but 37 % (1/e) of a latency that is gone is forgotten. 1 to 3,600,000.
    #[serde(default = "default_decay_ms")]
    decay_ms: i64,
}

fn default_decay_ms() -> i64 {
    10_000
}

/// The backends in the order of the host, and what is remembered of their latency.
#[derive(Debug)]
pub struct PowerOfTwo {
    decay_ms: f64,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    address: String,
    weight: u64,
    /// The sum of the weights up to and with this one.
    sum: u64,
    latency: PeakEwma,
}

impl Policy for PowerOfTwo {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        match config.decay_ms {
            1..=3_600_000 => Ok(Self {
                decay_ms: config.decay_ms as f64,
                candidates: Vec::new(),
            }),
            other => Err(format!("decay_ms: {other} is not allowed: 1 to 3600000")),
        }
    }

    fn wants(&self) -> Wants {
        Wants {
            figures: true,
            ..Wants::default()
        }
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        let before = self.candidates.drain(..);
        let known: BTreeMap<String, PeakEwma> = before
            .map(|candidate| (candidate.address, candidate.latency))
            .collect();
        let mut sum = 0;
        let candidate = |backend: &Backend| {
            let weight = u64::from(backend.weight.max(1));
            sum += weight;
            Candidate {
                address: backend.address.clone(),
                weight,
                sum,
                latency: known.get(&backend.address).copied().unwrap_or_default(),
            }
        };
        self.candidates = backends.iter().map(candidate).collect();
    }

    fn choose(&mut self, request: &Request) -> Decision {
        let (a, b) = draw(&self.candidates, request.random);
        let is_a = self.cost(a, request) <= self.cost(b, request);
        Decision::Prefer(if is_a { a } else { b } as u32)
    }
}

pointsman_sdk::export!(PowerOfTwo: policy);

impl PowerOfTwo {
    fn cost(&mut self, place: usize, request: &Request) -> f64 {
        let Some(figures) = request.figures.get(place) else {
            return f64::INFINITY;
        };
        let candidate = &mut self.candidates[place];
        let latency = match figures.latency_us {
            0 => least_known(request),
            known => candidate
                .latency
                .with(f64::from(known), request.now_ms, self.decay_ms),
        };
        latency * (figures.load() + 1) as f64 / candidate.weight as f64
    }
}

/// A backend that was never dialled counts as the quickest of the others: it is tried soon, and its
/// dials under way keep it from getting everything meanwhile.
fn least_known(request: &Request) -> f64 {
    let latencies = request.figures.iter().map(|figures| figures.latency_us);
    let known = latencies.filter(|&latency_us| latency_us > 0);
    known.min().map_or(1.0, f64::from)
}

/// What is remembered of a latency, in microseconds; 0 at first.
#[derive(Clone, Copy, Debug, Default)]
struct PeakEwma {
    latency: f64,
    at_ms: u64,
}

impl PeakEwma {
    /// The sample is the host's own average, which stands still between dials. So it does no harm
    /// that a backend is looked at only when it is drawn.
    fn with(&mut self, sample: f64, now_ms: u64, decay_ms: f64) -> f64 {
        let elapsed_ms = now_ms.saturating_sub(self.at_ms) as f64;
        let excess = (self.latency - sample) * (-elapsed_ms / decay_ms).exp();
        *self = Self {
            latency: sample + excess.max(0.0),
            at_ms: now_ms,
        };
        self.latency
    }
}

/// Two different places, the second by weight among those that the first left; the same place twice
/// if there is only one.
fn draw(candidates: &[Candidate], random: u64) -> (usize, usize) {
    let place_of = |point| candidates.partition_point(|candidate| candidate.sum <= point);
    let total = candidates.last().map_or(0, |candidate| candidate.sum);
    let a = place_of(part_of(total, split_mix(random, 1)));
    let Some(first) = candidates.get(a).filter(|first| first.weight < total) else {
        return (a, a);
    };
    let point = part_of(total - first.weight, split_mix(random, 2));
    let is_before = point < first.sum - first.weight;
    let b = place_of(if is_before {
        point
    } else {
        point + first.weight
    });
    (a, b)
}

/// The `random`th part of `total`, where 2^64 is all of it.
fn part_of(total: u64, random: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> u64::BITS) as u64
}

/// The `n`th number that SplitMix64 makes of a seed (Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", 2014).
fn split_mix(seed: u64, n: u64) -> u64 {
    let z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        policy::Figures,
        testing::{PolicyHost, advance, backend, request, weighted},
    };
    use serde_json::json;

    use super::*;

    fn start(backends: &[Backend]) -> PolicyHost<PowerOfTwo> {
        PolicyHost::start(json!({}), backends).unwrap()
    }

    fn figures(active: u32, latency_us: u32) -> Figures {
        Figures {
            active,
            pending: 0,
            recent_failures: 0,
            latency_us,
        }
    }

    /// How many sessions each backend has when `n` have come and none has gone.
    fn filled(backends: &[Backend], n: usize) -> Vec<u32> {
        let mut host = start(backends);
        let mut active = vec![0; backends.len()];
        for _ in 0..n {
            let Decision::Prefer(place) = host.choose(request()) else {
                panic!("one backend is preferred");
            };
            active[place as usize] += 1;
            host.set_active(&active);
        }
        active
    }

    /// Named by a number, so that `draw` alone can be looked at.
    fn candidates(weights: &[u64]) -> Vec<Candidate> {
        let mut sum = 0;
        let candidate = |&weight| {
            sum += weight;
            Candidate {
                address: String::new(),
                weight,
                sum,
                latency: PeakEwma::default(),
            }
        };
        weights.iter().map(candidate).collect()
    }

    #[test]
    fn two_draws_differ_and_follow_the_weights() {
        let weights = [1, 2, 3, 4];
        let candidates = candidates(&weights);
        let n_draws = 1_000_000;
        let (mut firsts, mut seconds) = ([0.0; 4], [0.0; 4]);
        for n in 0..n_draws {
            let (a, b) = draw(&candidates, split_mix(n, 3));
            assert_ne!(a, b);
            firsts[a] += 1.0 / n_draws as f64;
            seconds[b] += 1.0 / n_draws as f64;
        }
        for (place, weight) in weights.into_iter().enumerate() {
            // By the rule of total probability: the second is `weight` of what each first leaves.
            let others = weights.iter().filter(|&&other| other != weight);
            let second: f64 = others
                .map(|&other| other as f64 / 10.0 * weight as f64 / (10 - other) as f64)
                .sum();
            let first = weight as f64 / 10.0;
            assert!((firsts[place] / first - 1.0).abs() < 0.01, "{firsts:?}");
            assert!((seconds[place] / second - 1.0).abs() < 0.01, "{seconds:?}");
        }
    }

    #[test]
    fn a_single_backend_is_drawn_alone() {
        assert_eq!(draw(&candidates(&[5]), u64::MAX), (0, 0));
        assert_eq!(start(&[backend("a")]).pick_many(3), ["a", "a", "a"]);
    }

    #[test]
    fn the_fullest_backend_has_less_than_at_random() {
        let backends: Vec<Backend> = (0..10).map(|n| backend(&format!("b:{n}"))).collect();
        let two = filled(&backends, 10_000).into_iter().max().unwrap();
        let mut one = [0; 10];
        for n in 0..10_000 {
            one[draw(&candidates(&[1; 10]), split_mix(n, 3)).0] += 1;
        }
        // 1000 is even. A single draw leaves the fullest some 1.5 standard deviations of 30 above
        // it, two leave it ln ln 10 / ln 2, which is 1.2.
        assert!(two <= 1005, "{two}");
        assert!(one.into_iter().max().unwrap() >= 1025, "{one:?}");
    }

    #[test]
    fn loads_follow_weights() {
        let weights = [1, 2, 3, 4, 10];
        let backends = weights.map(|weight| weighted(&format!("b:{weight}"), weight));
        for (n_active, weight) in filled(&backends, 20_000).into_iter().zip(weights) {
            let expected = weight as f64 * 1000.0;
            assert!(
                (f64::from(n_active) / expected - 1.0).abs() < 0.01,
                "{weight}: {n_active}"
            );
        }
    }

    #[test]
    fn the_quicker_of_equally_busy_backends_is_chosen() {
        let mut host = start(&["a", "b"].map(backend));
        host.set_figures(&[figures(3, 900), figures(3, 800)]);
        assert_eq!(host.pick_many(3), ["b", "b", "b"]);
        host.set_figures(&[figures(3, 900), figures(4, 800)]);
        assert_eq!(host.pick(request()), Some("a"));
    }

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_slowly() {
        let mut peak = PeakEwma::default();
        assert_eq!(peak.with(100.0, 1_000_000, 10_000.0), 100.0);
        assert_eq!(peak.with(900.0, 1_000_001, 10_000.0), 900.0);
        let decayed = peak.with(100.0, 1_010_001, 10_000.0);
        assert!(
            (decayed - (100.0 + 800.0 / 1_f64.exp())).abs() < 0.01,
            "{decayed}"
        );
        // The clock was set back.
        assert_eq!(peak.with(100.0, 5, 10_000.0), decayed);

        let backends = ["a", "b"].map(backend);
        let mut host =
            PolicyHost::<PowerOfTwo>::start(json!({"decay_ms": 1000}), &backends).unwrap();
        host.set_figures(&[figures(0, 5000), figures(0, 200)]);
        assert_eq!(host.pick(request()), Some("b"));
        host.set_figures(&[figures(0, 100), figures(0, 200)]);
        assert_eq!(host.pick(request()), Some("b"));
        // A backend that comes takes nothing away from what is known of the others.
        host.backends_changed(&["b", "a", "c"].map(backend));
        host.backends_changed(&["b", "a"].map(backend));
        host.set_figures(&[figures(0, 200), figures(0, 100)]);
        assert_eq!(host.pick(request()), Some("b"));
        advance(std::time::Duration::from_secs(5));
        assert_eq!(host.pick(request()), Some("a"));
    }

    #[test]
    fn a_fresh_backend_neither_floods_nor_starves() {
        let mut host = start(&["a", "b"].map(backend));
        host.set_figures(&[figures(1, 800), figures(0, 0)]);
        assert_eq!(host.pick(request()), Some("b"));
        host.set_figures(&[figures(1, 800), figures(2, 0)]);
        assert_eq!(host.pick(request()), Some("a"));
        host.set_figures(&[figures(1, 0), figures(0, 0)]);
        assert_eq!(host.pick(request()), Some("b"));
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let refused =
            |config| PolicyHost::<PowerOfTwo>::start(config, &[backend("a")]).unwrap_err();
        assert_eq!(
            refused(json!({"decay_ms": 0})),
            "decay_ms: 0 is not allowed: 1 to 3600000"
        );
        assert!(refused(json!({"decay_ms": "1 s"})).starts_with("decay_ms: invalid type"));
        assert!(
            refused(json!({"decay": 1})).contains("unknown field `decay`, expected `decay_ms`")
        );
    }
}
