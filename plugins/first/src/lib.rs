//! Policy `first`: the first backend in the order written that has not failed within the last ten
//! seconds, so that clients do not wait for its dial each time; where all have, the first. Should it
//! fail now, the host goes on in the order written.

use pointsman_sdk::{
    NoConfig,
    policy::{Backend, Decision, Policy, Request, Wants},
};

/// There is nothing to remember: all it needs comes with the request.
#[derive(Debug)]
pub struct First;

impl Policy for First {
    type Config = NoConfig;

    fn configure(_config: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn wants(&self) -> Wants {
        Wants {
            figures: true,
            ..Wants::default()
        }
    }

    fn backends_changed(&mut self, _backends: &[Backend]) {}

    fn choose(&mut self, request: &Request) -> Decision {
        let mut figures = request.figures.iter();
        let works = figures.position(|figures| figures.recent_failures == 0);
        Decision::Prefer(works.unwrap_or(0) as u32)
    }
}

pointsman_sdk::export!(First: policy);

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        policy::Figures,
        testing::{PolicyHost, backend, request},
    };
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_that_has_not_failed_is_tried() {
        let mut host =
            PolicyHost::<First>::start(json!({}), &["c", "a", "b", "d"].map(backend)).unwrap();
        let mut check = |failures: [u32; 4], expected: u32| {
            host.set_figures(&failures.map(|recent_failures| Figures {
                active: 9 - recent_failures,
                pending: 0,
                recent_failures,
                latency_us: 100,
            }));
            let expected = Decision::Prefer(expected);
            assert_eq!(host.choose(request()), expected, "{failures:?}");
        };
        check([0, 0, 0, 0], 0);
        check([1, 0, 0, 0], 1);
        check([7, 0, 1, 0], 1);
        check([7, 1, 2, 0], 3);
        check([7, 1, 2, 3], 0);
    }

    #[test]
    fn the_first_gets_everything_while_it_works() {
        let mut host = PolicyHost::<First>::start(json!({}), &["b", "a"].map(backend)).unwrap();
        assert_eq!(host.pick_many(3), ["b", "b", "b"]);
        host.backends_changed(&["a"].map(backend));
        assert_eq!(host.pick_many(1), ["a"]);
        host.backends_changed(&["b", "a"].map(backend));
        assert_eq!(host.pick_many(1), ["b"]);
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PolicyHost::<First>::start(json!({"x": 1}), &[backend("a")]);
        assert!(refused.unwrap_err().contains("`x`"));
    }
}
