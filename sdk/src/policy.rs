//! Policies: which backend a session or a plain HTTP request goes to.

use serde::de::DeserializeOwned;

pub use crate::bindings::exports::pointsman::plugin::policy::{
    Backend, Decision, Figures, Redirect, Request, Wants,
};
pub use crate::key::{Key, KeyKind, stable_hash};
use crate::{Header, Report};

/// Chooses a backend. A policy is a pure function of what it is given and of its own state:
/// randomness, time and the order of requests come with the [`Request`], so every decision can be
/// replayed. It can write to the [`log`](crate::log) and the [`metrics`](crate::metrics); the other
/// imports are not for policies, and the host refuses a policy that uses them.
///
/// ```
/// # use pointsman_sdk::policy::{Backend, Decision, Policy, Request, Wants};
/// use pointsman_sdk::Refusal;
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     /// The request header that names the backend.
///     header: String,
/// }
///
/// struct ByHeader { header: String, addresses: Vec<String> }
///
/// impl Policy for ByHeader {
///     type Config = Config;
///
///     fn configure(config: Config) -> Result<Self, String> {
///         Ok(Self { header: config.header.to_lowercase(), addresses: Vec::new() })
///     }
///
///     fn wants(&self) -> Wants {
///         Wants { headers: vec![self.header.clone()], ..Wants::default() }
///     }
///
///     fn backends_changed(&mut self, backends: &[Backend]) {
///         self.addresses = backends.iter().map(|backend| backend.address.clone()).collect();
///     }
///
///     fn choose(&mut self, request: &Request) -> Decision {
///         let asked_for = request.header(&self.header);
///         match self.addresses.iter().position(|address| Some(address.as_str()) == asked_for) {
///             Some(place) => Decision::Prefer(place as u32),
///             None => Decision::Refuse(Refusal::new(400, "no such backend")),
///         }
///     }
/// }
/// # use pointsman_sdk::testing::{PolicyHost, backend, request};
/// # let config = serde_json::json!({ "headr": "x" });
/// # let error = PolicyHost::<ByHeader>::start(config, &[backend("a:1")]).err();
/// # assert_eq!(error.as_deref(), Some("unknown field `headr`, expected `header`"));
/// ```
pub trait Policy: Sized + 'static {
    /// The operator's `policy_config`. Let it refuse keys that it does not know
    /// (`#[serde(deny_unknown_fields)]`): an operator's slip of the pen should not pass in silence.
    /// A policy without any has [`NoConfig`](crate::NoConfig).
    type Config: DeserializeOwned;

    /// Called once, first.
    ///
    /// # Errors
    ///
    /// The text is for the operator: which key is wrong, and what is allowed. It refuses the plugin.
    fn configure(config: Self::Config) -> Result<Self, String>;

    /// What the host hands over, and which calls it makes; asked once, after `configure`. Nothing,
    /// unless this says otherwise.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// The backends that may be chosen from now on. Called before the first `choose` and whenever
    /// the set, a weight or a backend's fitness changes. Never empty.
    fn backends_changed(&mut self, backends: &[Backend]);

    /// Names backends by their place in the list of `backends_changed`.
    fn choose(&mut self, request: &Request) -> Decision;

    /// The backend at this place has accepted the request: headers to add to the answer that the
    /// client gets. Called if [`Wants::placed`].
    fn placed(&mut self, _request: &Request, _backend: u32) -> Vec<Header> {
        Vec::new()
    }

    /// A session that this policy placed has ended. `backend` is an address. Called if
    /// [`Wants::session_ended`].
    fn session_ended(&mut self, _backend: &str, _report: &Report) {}
}

/// The place of the least cost, for policies that compare backends. Equals take turns: `turn` is the
/// request's [`sequence`](Request::sequence), say. 0 if there is nothing to compare.
///
/// ```
/// use pointsman_sdk::policy::least;
///
/// let costs = [2.0, 1.5, 3.0, 1.5];
/// assert_eq!([0, 1, 2].map(|turn| least(&costs, turn)), [1, 3, 1]);
/// ```
pub fn least(costs: &[f64], turn: u64) -> u32 {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let is_least = |cost: f64| cost <= least;
    let n_equal = costs.iter().filter(|&&cost| is_least(cost)).count().max(1) as u64;
    let mut equals = (0..).zip(costs).filter(|&(_, &cost)| is_least(cost));
    equals
        .nth((turn % n_equal) as usize)
        .map_or(0, |(place, _)| place)
}
