//! Policy `least_latency`: the backend with the least latency x (what it is busy with + 1) / weight,
//! of all of them. Equals take turns.

use pointsman_sdk::{
    NoConfig,
    policy::{Backend, Decision, Policy, Request, Wants, least},
};

/// The weights, in the order of the backends.
#[derive(Debug)]
pub struct LeastLatency {
    weights: Vec<f64>,
}

impl Policy for LeastLatency {
    type Config = NoConfig;

    fn configure(_config: NoConfig) -> Result<Self, String> {
        Ok(Self {
            weights: Vec::new(),
        })
    }

    fn wants(&self) -> Wants {
        Wants {
            figures: true,
            ..Wants::default()
        }
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        self.weights = backends
            .iter()
            .map(|b| f64::from(b.weight.max(1)))
            .collect();
    }

    fn choose(&mut self, request: &Request) -> Decision {
        Decision::Prefer(least(&costs(request, &self.weights), request.sequence))
    }
}

pointsman_sdk::export!(LeastLatency: policy);

/// A backend that was never dialled counts as the quickest of the others: it is tried soon, and its
/// dials under way keep it from getting everything meanwhile.
fn costs(request: &Request, weights: &[f64]) -> Vec<f64> {
    let latencies = request.figures.iter().map(|figures| figures.latency_us);
    let known = latencies.filter(|&latency_us| latency_us > 0);
    let least_known = known.min().unwrap_or(1);
    let pairs = request.figures.iter().zip(weights);
    pairs
        .map(|(figures, weight)| {
            let latency_us = match figures.latency_us {
                0 => least_known,
                known => known,
            };
            f64::from(latency_us) * (figures.load() + 1) as f64 / weight
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        policy::Figures,
        testing::{PolicyHost, backend, request, weighted},
    };
    use serde_json::json;

    use super::*;

    fn start(backends: &[Backend]) -> PolicyHost<LeastLatency> {
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

    #[test]
    fn the_quickest_for_its_work_is_chosen() {
        let mut host = start(&["a", "b", "c"].map(backend));
        host.set_figures(&[figures(0, 900), figures(0, 300), figures(0, 400)]);
        assert_eq!(host.pick_many(2), ["b", "b"]);
        host.set_figures(&[figures(0, 900), figures(1, 300), figures(0, 400)]);
        assert_eq!(host.pick(request()), Some("c"));
        host.set_figures(&[figures(0, 900), figures(3, 300), figures(2, 400)]);
        assert_eq!(host.pick(request()), Some("a"));
    }

    #[test]
    fn dials_under_way_count() {
        let mut host = start(&["a", "b"].map(backend));
        let dialled = Figures {
            pending: 2,
            ..figures(0, 300)
        };
        host.set_figures(&[dialled, figures(1, 300)]);
        assert_eq!(host.pick(request()), Some("b"));
    }

    #[test]
    fn equals_take_turns() {
        let mut host = start(&[backend("a"), backend("b"), weighted("c", 2)]);
        host.set_figures(&[figures(0, 300), figures(0, 400), figures(1, 300)]);
        assert_eq!(host.pick_many(4), ["a", "c", "a", "c"]);
    }

    #[test]
    fn a_fresh_backend_neither_floods_nor_starves() {
        let mut host = start(&["a", "b", "c"].map(backend));
        host.set_figures(&[figures(1, 800), figures(0, 0), figures(0, 900)]);
        assert_eq!(host.pick(request()), Some("b"));
        host.set_figures(&[figures(2, 800), figures(1, 0), figures(0, 900)]);
        assert_eq!(host.pick(request()), Some("c"));
        host.set_figures(&[figures(0, 0), figures(0, 0), figures(0, 0)]);
        assert_eq!(host.pick_many(3), ["c", "a", "b"]);
    }

    #[test]
    fn loads_follow_weights_where_latency_is_the_same() {
        let weights = [1, 2, 3, 4];
        let mut host = start(&weights.map(|weight| weighted(&format!("b:{weight}"), weight)));
        let mut active = [0; 4];
        for _ in 0..10_000 {
            host.set_figures(&active.map(|active| figures(active, 500)));
            let Decision::Prefer(place) = host.choose(request()) else {
                panic!("one backend is preferred");
            };
            active[place as usize] += 1;
        }
        assert_eq!(active, [1000, 2000, 3000, 4000]);
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PolicyHost::<LeastLatency>::start(json!({"x": 1}), &[backend("a")]);
        assert!(refused.unwrap_err().contains("`x`"));
    }
}
