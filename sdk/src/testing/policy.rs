//! Runs a policy.

use serde_json::Value;

use crate::{
    Header, Report, State, config,
    policy::{Backend, Decision, Figures, Policy, Request, Wants},
    testing::{keep_wanted, request, world},
};

/// A policy, its backends, and the numbers that the host counts up.
#[derive(Debug)]
pub struct PolicyHost<P> {
    policy: P,
    wants: Wants,
    backends: Vec<Backend>,
    figures: Vec<Figures>,
    next_sequence: u64,
}

impl<P: Policy> PolicyHost<P> {
    /// Empties the world and loads the policy, as the host would.
    ///
    /// # Errors
    ///
    /// The policy refuses the configuration.
    pub fn start(config: Value, backends: &[Backend]) -> Result<Self, String> {
        world::restart(world::Kind::Policy);
        let mut host = Self::load(config)?;
        host.backends_changed(backends);
        Ok(host)
    }

    fn load(config: Value) -> Result<Self, String> {
        let policy = P::configure(config::read(&config.to_string())?)?;
        Ok(Self {
            wants: policy.wants(),
            policy,
            backends: Vec::new(),
            figures: Vec::new(),
            next_sequence: 0,
        })
    }

    /// Other backends from now on; all of them idle.
    ///
    /// # Panics
    ///
    /// There are none: the host does not ask a policy then.
    #[track_caller]
    pub fn backends_changed(&mut self, backends: &[Backend]) {
        assert!(!backends.is_empty(), "a policy always has a backend");
        self.backends = backends.to_vec();
        self.figures = backends.iter().map(|_| idle()).collect();
        self.policy.backends_changed(backends);
    }

    /// What is known of the backends from now on, in their order.
    ///
    /// # Panics
    ///
    /// There are more or fewer than backends.
    #[track_caller]
    pub fn set_figures(&mut self, figures: &[Figures]) {
        assert_eq!(figures.len(), self.backends.len(), "one for each backend");
        self.figures = figures.to_vec();
    }

    /// How many sessions are open on each backend from now on, in their order.
    #[track_caller]
    pub fn set_active(&mut self, active: &[u32]) {
        let figures = active.iter().map(|&active| Figures { active, ..idle() });
        self.set_figures(&figures.collect::<Vec<_>>());
    }

    /// One decision. The host numbers the request, puts in the time, a random number and the
    /// figures, and takes out what the policy did not ask for.
    ///
    /// # Panics
    ///
    /// The decision names a backend that is not there, or none.
    #[track_caller]
    pub fn choose(&mut self, request: Request) -> Decision {
        let request = self.complete(request);
        self.next_sequence += 1;
        let decision = self.policy.choose(&request);
        self.check(&decision);
        decision
    }

    /// The address of the backend that the decision puts first; none if the client is refused or
    /// redirected.
    #[track_caller]
    pub fn pick(&mut self, request: Request) -> Option<&str> {
        let place = match self.choose(request) {
            Decision::Prefer(place) => place,
            Decision::Ranked(places) => places[0],
            Decision::Refuse(_) | Decision::Redirect(_) => return None,
        };
        Some(&self.backends[place as usize].address)
    }

    /// The addresses that `n` requests like [`request`] get.
    ///
    /// # Panics
    ///
    /// One of them is refused or redirected.
    #[track_caller]
    pub fn pick_many(&mut self, n: usize) -> Vec<String> {
        let mut pick = || self.pick(request()).map(str::to_owned);
        (0..n)
            .map(|_| pick().expect("a backend is chosen"))
            .collect()
    }

    /// The backend at this place has accepted: the headers for the client.
    pub fn placed(&mut self, request: Request, backend: u32) -> Vec<Header> {
        if !self.wants.placed {
            return Vec::new();
        }
        let request = self.complete(request);
        self.policy.placed(&request, backend)
    }

    /// A session on the backend with this address has ended.
    pub fn session_ended(&mut self, backend: &str, report: &Report) {
        if self.wants.session_ended {
            self.policy.session_ended(backend, report);
        }
    }

    /// The policy itself.
    pub fn policy(&mut self) -> &mut P {
        &mut self.policy
    }

    fn complete(&self, mut request: Request) -> Request {
        request.sequence = self.next_sequence;
        request.random = world::with(|world| world.random.number());
        request.now_ms = world::with(|world| world.now_ms);
        keep_wanted(&mut request.headers, &self.wants.headers);
        request.figures = match self.wants.figures {
            true => self.figures.clone(),
            false => Vec::new(),
        };
        request
    }

    #[track_caller]
    fn check(&self, decision: &Decision) {
        let places = match decision {
            Decision::Prefer(place) => std::slice::from_ref(place),
            Decision::Ranked(places) => places,
            Decision::Refuse(_) | Decision::Redirect(_) => return,
        };
        assert!(!places.is_empty(), "the decision ranks no backend");
        let n_backends = self.backends.len();
        for &place in places {
            assert!(
                (place as usize) < n_backends,
                "the decision names backend {place} of {n_backends}"
            );
        }
    }
}

impl<P: Policy + State> PolicyHost<P> {
    /// Loads `New` in the policy's place, with its state, as a new version of the plugin.
    ///
    /// # Errors
    ///
    /// The new policy refuses the configuration or the state.
    pub fn swap<New: Policy + State>(self, config: Value) -> Result<PolicyHost<New>, String> {
        let mut host = PolicyHost::<New>::load(config)?;
        host.policy.restore(&self.policy.save(), P::VERSION)?;
        host.next_sequence = self.next_sequence;
        host.backends_changed(&self.backends);
        host.figures = self.figures;
        Ok(host)
    }
}

fn idle() -> Figures {
    Figures {
        active: 0,
        pending: 0,
        recent_failures: 0,
        latency_us: 0,
    }
}
