//! Policy `consistent_hash`: the same backend for the same key, on a ring as ketama's. Each backend
//! has points on it by its weight, and a key goes to the first point behind its own. With bounded
//! loads (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2016) it goes
//! on past backends that have more than their share already, so that one key of many clients does not
//! bring a backend down. The order of the list does not matter.

use pointsman_sdk::policy::{Backend, Decision, Key, KeyKind, Policy, Request, Wants, stable_hash};
use serde::Deserialize;

/// How many backends a decision names at most, for dials that fail.
const MAX_RANKED: usize = 8;

/// Points on the ring, 512 KiB of them. Past it each backend has half of its points, or a quarter,
/// and so on, but one at least: as halving is rare, a backend that comes or goes moves no other keys.
const MAX_POINTS: u64 = 65_536;

/// What an operator may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    key: KeyKind,
    name: Option<String>,
    /// For each unit of weight. 1 to 10,000.
    #[serde(default = "default_points")]
    points: i64,
    /// How much of its share of the load a backend may have. 1 to 100; 0: any.
    #[serde(default = "default_load_factor")]
    load_factor: f64,
}

/// As ketama has.
fn default_points() -> i64 {
    160
}

fn default_load_factor() -> f64 {
    1.25
}

/// The ring, and what is needed to bound loads.
#[derive(Debug)]
pub struct ConsistentHash {
    key: Key,
    points_per_weight: u64,
    load_factor: f64,
    ring: Ring,
    /// Of the weights' sum, in the order of the host.
    shares: Vec<f64>,
}

impl Policy for ConsistentHash {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        let (points, load_factor) = (config.points, config.load_factor);
        if !(1..=10_000).contains(&points) {
            return Err(format!("points: {points} is not allowed: 1 to 10000"));
        }
        if load_factor != 0.0 && !(1.0..=100.0).contains(&load_factor) {
            return Err(format!(
                "load_factor: {load_factor} is not allowed: 1 to 100, or 0 for no bound"
            ));
        }
        Ok(Self {
            key: Key::new(config.key, config.name)?,
            points_per_weight: points.unsigned_abs(),
            load_factor,
            ring: Ring::default(),
            shares: Vec::new(),
        })
    }

    fn wants(&self) -> Wants {
        Wants {
            headers: self.key.headers(),
            figures: self.load_factor > 0.0,
            ..Wants::default()
        }
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        self.ring = Ring::new(backends, self.points_per_weight);
        let weights = backends.iter().map(|b| f64::from(b.weight.max(1)));
        let total: f64 = weights.clone().sum();
        self.shares = weights.map(|weight| weight / total).collect();
    }

    fn choose(&mut self, request: &Request) -> Decision {
        let (mut ranked, mut full) = (Vec::new(), Vec::new());
        let capacity = self.capacity(request);
        for place in self.ring.from(self.key.hash(request)) {
            match request.figures.get(place as usize) {
                Some(figures) if figures.load() as f64 >= capacity(place) => full.push(place),
                _ => ranked.push(place),
            }
            if ranked.len() == MAX_RANKED {
                break;
            }
        }
        ranked.append(&mut full);
        ranked.truncate(MAX_RANKED);
        Decision::Ranked(ranked)
    }
}

pointsman_sdk::export!(ConsistentHash: policy);

impl ConsistentHash {
    /// How much load a backend may have: its share of `load_factor` times all load, this request
    /// with it. As the factor is at least 1 and this is rounded up, there is always one with less.
    fn capacity(&self, request: &Request) -> impl Fn(u32) -> f64 {
        let load: u64 = request.figures.iter().map(|figures| figures.load()).sum();
        let allowed = self.load_factor * (load + 1) as f64;
        move |place| (allowed * self.shares[place as usize]).ceil()
    }
}

/// Points in order: where each is in the upper half of its number, and whose it is in the lower, as
/// an index into `places`. Indices and not places, because two points may fall together, which the
/// order of the host must not decide.
#[derive(Debug, Default)]
struct Ring {
    points: Vec<u64>,
    /// In the list of backends; ordered by address.
    places: Vec<u32>,
}

impl Ring {
    fn new(backends: &[Backend], points_per_weight: u64) -> Self {
        let mut places: Vec<u32> = (0..).take(backends.len()).collect();
        let backend = |&place: &u32| &backends[place as usize];
        places.sort_by_key(|place| &backend(place).address);
        let wanted = |place| u64::from(backend(place).weight.max(1)) * points_per_weight;
        let total: u64 = places.iter().map(wanted).sum();
        let halvings = (0..).find(|n| total >> n <= MAX_POINTS).unwrap_or(0);

        let mut points = Vec::with_capacity((total >> halvings) as usize + backends.len());
        for (index, place) in (0_u64..).zip(&places) {
            let address = backend(place).address.as_bytes();
            let n_points = (wanted(place) >> halvings).max(1);
            let point = |n| stable_hash(n, address) & UPPER_HALF | index;
            points.extend((0..n_points).map(point));
        }
        points.sort_unstable();
        Self { points, places }
    }

    /// The places of all backends, in the order of their first points behind this one.
    fn from(&self, key_hash: u64) -> impl Iterator<Item = u32> {
        let start = self
            .points
            .partition_point(|&point| point < key_hash & UPPER_HALF);
        let (before, behind) = self.points.split_at(start);
        let mut is_seen = vec![false; self.places.len()];
        behind
            .iter()
            .chain(before)
            .map(|point| (point & !UPPER_HALF) as usize)
            .filter(move |&index| !std::mem::replace(&mut is_seen[index], true))
            .map(|index| self.places[index])
            .take(self.places.len())
    }
}

const UPPER_HALF: u64 = !0 << 32;

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{PolicyHost, backend, request, weighted};
    use serde_json::{Value, json};

    use super::*;

    fn backends(weights: &[u32]) -> Vec<Backend> {
        let places = weights.iter().enumerate();
        places
            .map(|(n, &weight)| weighted(&format!("10.0.0.{n}:80"), weight))
            .collect()
    }

    fn start(config: Value, backends: &[Backend]) -> PolicyHost<ConsistentHash> {
        PolicyHost::start(config, backends).unwrap()
    }

    fn ranked(host: &mut PolicyHost<ConsistentHash>, client: usize) -> Vec<u32> {
        let client_ip = format!("10.0.{}.{}", client / 256, client % 256);
        match host.choose(Request {
            client_ip,
            ..request()
        }) {
            Decision::Ranked(places) => places,
            _ => panic!("backends are ranked"),
        }
    }

    /// The addresses that 5,000 clients are given without a bound, in the order of the ranking.
    fn rankings(backends: &[Backend]) -> Vec<Vec<&str>> {
        let mut host = start(json!({"load_factor": 0}), backends);
        let address = |place: u32| backends[place as usize].address.as_str();
        let mut ranking = |client| ranked(&mut host, client).into_iter().map(address).collect();
        (0..5000).map(&mut ranking).collect()
    }

    /// The lengths of the arcs that lead to each backend, as parts of the ring.
    fn arcs(ring: &Ring) -> Vec<f64> {
        let mut arcs = vec![0.0; ring.places.len()];
        let mut before = ring.points.last().unwrap() >> 32;
        for point in &ring.points {
            let length = (point >> 32).wrapping_sub(before) as u32;
            before = point >> 32;
            let place = ring.places[(point & !UPPER_HALF) as usize];
            arcs[place as usize] += f64::from(length) / 2_f64.powi(32);
        }
        arcs
    }

    /// The arc of a backend with n points is a sum of n that are distributed exponentially; so its
    /// share has a standard deviation of 1 / sqrt(n) of itself, and five of those are next to never passed.
    #[test]
    fn shares_follow_weights_as_closely_as_points_allow() {
        for (weights, points) in [
            (vec![1; 10], 160),
            (vec![1; 10], 5000),
            ((1..=10).collect(), 160),
            (vec![1; 100], 160),
            // These have four million points and are halved to 62,500.
            (vec![100, 200, 300, 400], 4000),
        ] {
            let ring = Ring::new(&backends(&weights), points);
            let total: u32 = weights.iter().sum();
            let arcs = arcs(&ring);
            assert!((arcs.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (place, (arc, weight)) in arcs.into_iter().zip(&weights).enumerate() {
                let points = ring
                    .points
                    .iter()
                    .map(|point| ring.places[*point as u32 as usize]);
                let n_points = points.filter(|&owner| owner as usize == place).count();
                let deviation = 1.0 / (n_points as f64).sqrt();
                let excess = arc / f64::from(*weight) * f64::from(total) - 1.0;
                assert!(
                    excess.abs() < 5.0 * deviation,
                    "{weight}: {excess} of {deviation}"
                );
            }
        }
    }

    #[test]
    fn points_are_bounded_and_nobody_is_without() {
        let mut backends = backends(&[1000; 99]);
        backends.push(backend("small:80"));
        for points in [1, 10_000] {
            let ring = Ring::new(&backends, points);
            let n_points = ring.points.len();
            assert!((32_768..=65_536).contains(&n_points), "{n_points}");
            assert_eq!(ring.from(0).count(), 100);
        }
    }

    #[test]
    fn a_backend_that_goes_moves_only_its_own_keys() {
        let backends = backends(&[1, 1, 2, 1, 5, 1]);
        let mut before = rankings(&backends);
        for ranking in &mut before {
            ranking.retain(|address| *address != "10.0.0.2:80");
        }
        let mut left = backends.clone();
        left.remove(2);
        assert_eq!(rankings(&left), before);
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let backends = backends(&[1, 7, 2, 1, 5, 1, 1, 1, 1, 1]);
        let mut others = backends.clone();
        others.reverse();
        others.swap(2, 5);
        assert_eq!(rankings(&others), rankings(&backends));

        // Points that fall together are in the order of addresses.
        let ring = Ring::new(&[backend("b"), backend("a")], 1);
        assert_eq!(ring.places, [1, 0]);
    }

    #[test]
    fn no_backend_has_more_than_its_share_times_the_factor() {
        let weights = [1, 2, 3, 4];
        let mut host = start(json!({}), &backends(&weights));
        let mut active = [0_u32; 4];
        for n in 0..5000 {
            // Every other client is the same one.
            let ranked = ranked(&mut host, n % 2 * n);
            let place = ranked[0] as usize;
            active[place] += 1;
            host.set_active(&active);
            let bound = (1.25 * (n + 1) as f64 * f64::from(weights[place]) / 10.0).ceil();
            assert!(f64::from(active[place]) <= bound, "{place}: {active:?}");
            assert_eq!(ranked.len(), 4);
        }
    }

    #[test]
    fn a_key_goes_to_the_next_on_the_ring_while_its_backend_is_full() {
        let mut host = start(json!({}), &backends(&[1; 5]));
        let idle = ranked(&mut host, 1);
        assert_eq!(idle.len(), 5);
        let mut active = [10; 5];
        active[idle[0] as usize] = 13;
        host.set_active(&active);
        // 1.25 x 54 / 5 is 13.5: one more is allowed.
        assert_eq!(ranked(&mut host, 1), idle);
        active[idle[0] as usize] = 14;
        host.set_active(&active);
        let mut passed = idle.clone();
        passed.rotate_left(1);
        assert_eq!(ranked(&mut host, 1), passed);
    }

    #[test]
    fn figures_are_asked_for_only_where_loads_are_bounded() {
        let wants = |config| start(config, &[backend("a")]).policy().wants();
        assert!(wants(json!({"key": "cookie", "name": "sid"})).figures);
        let wants = wants(json!({"key": "cookie", "name": "sid", "load_factor": 0}));
        assert_eq!(
            (wants.figures, wants.headers),
            (false, vec!["cookie".to_owned()])
        );
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let refused =
            |config| PolicyHost::<ConsistentHash>::start(config, &[backend("a")]).unwrap_err();
        assert_eq!(
            refused(json!({"points": 0})),
            "points: 0 is not allowed: 1 to 10000"
        );
        for factor in [0.99, -1.0, 101.0] {
            assert_eq!(
                refused(json!({"load_factor": factor})),
                format!("load_factor: {factor} is not allowed: 1 to 100, or 0 for no bound")
            );
        }
        assert!(refused(json!({"key": "ip"})).starts_with("key: \"ip\" is not allowed: one of"));
        assert!(refused(json!({"key": "header"})).starts_with("name: missing"));
        assert!(refused(json!({"factor": 2})).contains("unknown field `factor`"));
    }
}
