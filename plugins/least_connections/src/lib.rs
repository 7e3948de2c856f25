//! Policy `least_connections`: the backend with the fewest open sessions and dials under way for its
//! weight. Equals take turns, so that idle backends share alike.

use pointsman_sdk::{
    NoConfig,
    policy::{Backend, Decision, Policy, Request, Wants, least},
};

/// The weights, in the order of the backends.
#[derive(Debug)]
pub struct LeastConnections {
    weights: Vec<f64>,
}

impl Policy for LeastConnections {
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
        let pairs = request.figures.iter().zip(&self.weights);
        // Exact: loads have 33 bits and weights 10, so that different quotients stay different.
        let loads: Vec<f64> = pairs
            .map(|(figures, weight)| figures.load() as f64 / weight)
            .collect();
        Decision::Prefer(least(&loads, request.sequence))
    }
}

pointsman_sdk::export!(LeastConnections: policy);

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        policy::Figures,
        testing::{PolicyHost, backend, request, weighted},
    };
    use serde_json::json;

    use super::*;

    fn start(backends: &[Backend]) -> PolicyHost<LeastConnections> {
        PolicyHost::start(json!({}), backends).unwrap()
    }

    #[test]
    fn the_least_loaded_is_chosen() {
        let mut host = start(&[backend("a"), backend("b"), backend("c")]);
        host.set_active(&[3, 1, 2]);
        assert_eq!(host.pick_many(3), ["b", "b", "b"]);
    }

    #[test]
    fn dials_under_way_count() {
        let mut host = start(&[backend("a"), backend("b")]);
        let figures = |active, pending| Figures {
            active,
            pending,
            recent_failures: 0,
            latency_us: 0,
        };
        host.set_figures(&[figures(1, 2), figures(2, 0)]);
        assert_eq!(host.pick(request()), Some("b"));
    }

    #[test]
    fn load_is_measured_by_weight() {
        let mut host = start(&[weighted("a", 1), weighted("b", 4)]);
        host.set_active(&[1, 3]);
        assert_eq!(host.pick(request()), Some("b"));
        host.set_active(&[1, 5]);
        assert_eq!(host.pick(request()), Some("a"));
    }

    #[test]
    fn equals_take_turns() {
        let mut host = start(&[backend("a"), backend("b"), backend("c"), weighted("d", 2)]);
        host.set_active(&[1, 9, 1, 2]);
        assert_eq!(host.pick_many(6), ["a", "c", "d", "a", "c", "d"]);
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PolicyHost::<LeastConnections>::start(json!({"x": 1}), &[backend("a")]);
        assert!(refused.unwrap_err().contains("`x`"));
    }
}
