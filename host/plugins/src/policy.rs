//! A policy that is a guest: lowers requests, lifts decisions.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use pointsman_contract::policy::{
    Candidate, ChoiceRequest, Decision, Figures, Policy, PolicyError, PolicyWants,
};
use pointsman_contract::session::EndReport;
use wasmtime::component::Instance;

use super::bindings;
use super::bindings::exports::pointsman::plugin::{policy as wire, state};
use super::bindings::pointsman::plugin::types::HeaderParam;
use super::call::Call;
use super::failure::{CallError, cut};
use super::generation::{Generation, Saved};
use super::guest::{Guest, InstanceContext};
use super::host::PluginHost;

/// One upstream's policy on one worker. After an error that is not about its output it is dead and
/// says so each time: make another one.
pub struct GuestPolicy {
    guest: Guest,
    policy: wire::Guest,
    state: Option<state::Guest>,
    wants: PolicyWants,
    wanted_headers: Vec<HeaderName>,
    /// Used again by each call.
    lowered: Lowered,
}

#[derive(Default)]
struct Lowered {
    client_ip: String,
    figures: Vec<wire::Figures>,
}

impl GuestPolicy {
    pub(super) fn new(
        generation: &Arc<Generation>,
        config: &serde_json::Value,
        host: &PluginHost,
    ) -> Result<Self, CallError> {
        let about = InstanceContext::new(generation, host);
        let (mut guest, (policy, state)) =
            Guest::new(about, |code, store, instance: &Instance| {
                let Some(policy) = &code.policy else {
                    return Err(wasmtime::Error::msg("it exports no policy"));
                };
                let policy = policy.load(&mut *store, instance)?;
                let state = code
                    .state
                    .as_ref()
                    .map(|state| state.load(&mut *store, instance))
                    .transpose()?;
                Ok((policy, state))
            })?;
        let config = config.to_string();
        let configured = guest.call(Call::Configure, |store| {
            policy.call_configure(store, &config)
        })?;
        let wants = configured.map_err(|reason| CallError::Refused {
            call: Call::Configure,
            reason: cut(reason),
        })?;
        let wanted_headers =
            guest.check(Call::Configure, bindings::wanted_headers(&wants.headers))?;
        Ok(Self {
            guest,
            policy,
            state,
            wants: PolicyWants {
                headers: wanted_headers.iter().map(ToString::to_string).collect(),
                figures: wants.figures,
                placed: wants.placed,
                session_ended: wants.session_ended,
            },
            wanted_headers,
            lowered: Lowered::default(),
        })
    }

    /// What it knows, for the one that takes its place; none: it is dead, or has nothing to hand over.
    ///
    /// # Errors
    /// It could not say.
    pub fn save(&mut self) -> Result<Option<Saved>, CallError> {
        match &self.state {
            Some(state) if !self.guest.is_dead() => self.guest.save(state).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    /// Takes over what the one before knew; nothing happens if it keeps no state. Call it before the
    /// first choice.
    ///
    /// # Errors
    /// It refuses: make another one, which begins afresh.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), CallError> {
        match &self.state {
            Some(state) => self.guest.restore(state, saved),
            None => Ok(()),
        }
    }

    /// Whether it has to be recreated.
    pub fn is_dead(&self) -> bool {
        self.guest.is_dead()
    }

    /// As [`Policy::backends_changed`], with all that is known of a failure.
    ///
    /// # Errors
    /// The guest failed.
    pub fn try_backends_changed(&mut self, backends: &[Candidate]) -> Result<(), CallError> {
        let labels: Vec<Vec<(&str, &str)>> = backends.iter().map(labels).collect();
        let lowered: Vec<wire::Backend<'_>> = backends
            .iter()
            .zip(&labels)
            .map(|(backend, labels)| wire::Backend {
                address: &backend.address,
                weight: backend.weight,
                labels,
            })
            .collect();
        let policy = &self.policy;
        self.guest.call(Call::BackendsChanged, |store| {
            policy.call_backends_changed(store, &lowered)
        })
    }

    /// As [`Policy::choose`], with all that is known of a failure.
    ///
    /// # Errors
    /// The guest failed.
    pub fn try_choose(&mut self, request: &ChoiceRequest<'_>) -> Result<Decision, CallError> {
        let values = wanted_values(&self.wanted_headers, request.headers);
        let headers = header_params(&values);
        let lowered = self.lowered.request(request, &headers);
        let policy = &self.policy;
        let decision = self
            .guest
            .call(Call::Choose, |store| policy.call_choose(store, lowered))?;
        self.guest.check(Call::Choose, bindings::decision(decision))
    }

    fn try_placed(
        &mut self,
        request: &ChoiceRequest<'_>,
        backend: u32,
    ) -> Result<Vec<(String, String)>, CallError> {
        let values = wanted_values(&self.wanted_headers, request.headers);
        let headers = header_params(&values);
        let lowered = self.lowered.request(request, &headers);
        let policy = &self.policy;
        let added = self.guest.call(Call::Placed, |store| {
            policy.call_placed(store, lowered, backend)
        })?;
        self.guest
            .check(Call::Placed, bindings::headers(Call::Placed, added))
    }
}

impl Lowered {
    fn request<'a>(
        &'a mut self,
        request: &'a ChoiceRequest<'_>,
        headers: &'a [HeaderParam<'a>],
    ) -> wire::Request<'a> {
        self.client_ip.clear();
        // Writing to a string cannot fail.
        let _ = write!(self.client_ip, "{}", request.client_ip);
        self.figures.clear();
        self.figures.extend(request.figures.iter().map(figures));
        wire::Request {
            sequence: request.sequence,
            random: request.random,
            now_ms: request.now_ms,
            client_ip: &self.client_ip,
            host: request.host,
            path: request.path,
            headers,
            figures: &self.figures,
        }
    }
}

fn figures(figures: &Figures) -> wire::Figures {
    wire::Figures {
        active: figures.active,
        pending: figures.pending,
        recent_failures: figures.recent_failures,
        latency_us: figures.latency_us,
    }
}

fn labels(backend: &Candidate) -> Vec<(&str, &str)> {
    let labels = backend.labels.iter();
    labels
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

fn wanted_values<'a>(
    wanted: &'a [HeaderName],
    headers: &'a HeaderMap,
) -> Vec<(&'a str, Cow<'a, str>)> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut values = Vec::with_capacity(wanted.len());
    for name in wanted {
        for value in headers.get_all(name) {
            values.push((name.as_str(), String::from_utf8_lossy(value.as_bytes())));
        }
    }
    values
}

fn header_params<'a>(values: &'a [(&'a str, Cow<'a, str>)]) -> Vec<HeaderParam<'a>> {
    let params = values
        .iter()
        .map(|(name, value)| HeaderParam { name, value });
    params.collect()
}

impl Policy for GuestPolicy {
    fn wants(&self) -> &PolicyWants {
        &self.wants
    }

    fn backends_changed(&mut self, backends: &[Candidate]) -> Result<(), PolicyError> {
        self.try_backends_changed(backends)
            .map_err(into_policy_error)
    }

    fn choose(&mut self, request: &ChoiceRequest<'_>) -> Result<Decision, PolicyError> {
        self.try_choose(request).map_err(into_policy_error)
    }

    fn placed(
        &mut self,
        request: &ChoiceRequest<'_>,
        backend: u32,
    ) -> Result<Vec<(String, String)>, PolicyError> {
        self.try_placed(request, backend).map_err(into_policy_error)
    }

    fn session_ended(&mut self, backend: &str, report: &EndReport) -> Result<(), PolicyError> {
        let policy = &self.policy;
        let report = bindings::report(report);
        let ended = self.guest.call(Call::SessionEnded, |store| {
            policy.call_session_ended(store, backend, report)
        });
        ended.map_err(into_policy_error)
    }
}

fn into_policy_error(error: CallError) -> PolicyError {
    PolicyError(error.to_string())
}

impl fmt::Debug for GuestPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = &self.guest.about.generation;
        f.debug_struct("GuestPolicy")
            .field("plugin", &generation.name)
            .field("generation", &generation.number)
            .field("is_dead", &self.is_dead())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use http::HeaderValue;

    use super::*;
    use crate::guests;
    use crate::limits::monotonic_ns;

    fn candidates(n: u32) -> Vec<Candidate> {
        let candidate = |n| Candidate {
            address: format!("127.0.0.1:{n}"),
            weight: 1,
            labels: vec![("zone".to_owned(), "a".to_owned())],
        };
        (0..n).map(candidate).collect()
    }

    fn choose(policy: &mut GuestPolicy, sequence: u64) -> Result<Decision, CallError> {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_bytes(b"\xff").unwrap());
        policy.try_choose(&ChoiceRequest {
            sequence,
            random: 1,
            now_ms: 2,
            client_ip: IpAddr::V6(Ipv6Addr::LOCALHOST),
            host: "localhost",
            path: "/chat?a=b",
            headers: &headers,
            figures: &[Figures::default(); 3],
        })
    }

    fn guest(choose: &str) -> GuestPolicy {
        let generation = guests::load(&guests::policy(choose)).unwrap();
        generation
            .policy(&serde_json::json!({}), &guests::host())
            .unwrap()
    }

    #[test]
    fn a_policy_that_never_returns_is_stopped_and_can_be_made_anew() {
        let generation = guests::load(&guests::policy(
            "(if (i64.eqz (local.get 0)) (then (call $spin)))",
        ))
        .unwrap();
        let make = || {
            generation
                .policy(&serde_json::json!({}), &guests::host())
                .unwrap()
        };
        let mut policy = make();
        policy.try_backends_changed(&candidates(3)).unwrap();
        assert_eq!(choose(&mut policy, 1), Ok(Decision::Prefer(0)));
        let started_ns = monotonic_ns();
        assert_eq!(choose(&mut policy, 0).unwrap_err().kind(), "timeout");
        let took_ms = (monotonic_ns() - started_ns) / 1_000_000;
        assert!((10..400).contains(&took_ms), "{took_ms} ms");
        assert!(policy.is_dead());
        assert_eq!(choose(&mut policy, 1), Err(CallError::Dead));
        assert_eq!(choose(&mut make(), 1), Ok(Decision::Prefer(0)));
    }

    #[test]
    fn memory_past_the_bound_is_refused() {
        let grow = "(if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable))";
        assert_eq!(choose(&mut guest(grow), 0).unwrap_err().kind(), "memory");
        let within = "(if (i32.eq (memory.grow (i32.const 32)) (i32.const -1)) (then unreachable))";
        assert_eq!(choose(&mut guest(within), 0), Ok(Decision::Prefer(0)));
    }

    #[test]
    fn a_trap_names_its_cause() {
        let error = choose(&mut guest("unreachable"), 0).unwrap_err();
        let CallError::Trap {
            call: Call::Choose,
            cause,
        } = error
        else {
            panic!("{error:?}")
        };
        assert!(cause.contains("unreachable"), "{cause}");
    }

    #[test]
    fn recursion_without_end_is_a_trap() {
        let error = choose(
            &mut guest(
                "(drop (call $choose (local.get 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))",
            ),
            0,
        );
        assert_eq!(error.unwrap_err().kind(), "trap");
    }

    #[test]
    fn a_list_that_claims_to_be_huge_is_an_output_error() {
        // Case 1, `ranked`: five million places, which lie within no memory but are within the file's
        // address space once it has grown; each is refused before it is copied.
        let huge = "(i32.store8 (i32.const 16) (i32.const 1))
            (drop (memory.grow (i32.const 32)))
            (i32.store (i32.const 20) (i32.const 0)) (i32.store (i32.const 24) (i32.const 500000))";
        let error = choose(&mut guest(huge), 0).unwrap_err();
        assert_eq!(error.kind(), "output", "{error}");
        assert!(error.to_string().contains("500000 ranked"), "{error}");
    }

    #[test]
    fn strings_that_overlap_cannot_fill_the_hosts_memory() {
        // Case 2, `refuse`: 20,000 headers, all of whose names are the same first megabyte.
        let overlapping = "(i32.store8 (i32.const 16) (i32.const 2))
            (drop (memory.grow (i32.const 32)))
            (i32.store (i32.const 24) (i32.const 98304)) (i32.store (i32.const 28) (i32.const 20000))
            (local.set 3 (i32.const 98304))
            (loop $next
                (i32.store (local.get 3) (i32.const 1000000))
                (i32.store (i32.add (local.get 3) (i32.const 4)) (i32.const 1000000))
                (local.set 3 (i32.add (local.get 3) (i32.const 8)))
                (br_if $next (i32.lt_u (local.get 3) (i32.const 418304))))";
        let error = choose(&mut guest(overlapping), 0).unwrap_err();
        assert_eq!(error.kind(), "output", "{error}");
    }

    #[test]
    fn shipped_policies_choose() {
        let generation = guests::shipped("round_robin");
        let mut policy = generation
            .policy(&serde_json::json!({}), &guests::host())
            .unwrap();
        policy.try_backends_changed(&candidates(3)).unwrap();
        let chosen: Vec<_> = (0..4)
            .map(|sequence| choose(&mut policy, sequence).unwrap())
            .collect();
        assert_eq!(chosen, [0, 1, 2, 0].map(Decision::Prefer));
        let error = generation
            .policy(&serde_json::json!({"loud": 1}), &guests::host())
            .unwrap_err();
        let CallError::Refused { reason, .. } = error else {
            panic!("{error:?}")
        };
        assert!(reason.contains("loud"), "{reason}");

        let generation = guests::shipped("least_connections");
        let mut policy = generation
            .policy(&serde_json::json!({}), &guests::host())
            .unwrap();
        policy.try_backends_changed(&candidates(3)).unwrap();
        assert!(policy.wants().figures);
        assert!(matches!(choose(&mut policy, 0), Ok(Decision::Prefer(_))));
        generation
            .trial_policy(
                &serde_json::json!({}),
                &candidates(2),
                &[],
                guests::limits(),
            )
            .unwrap();
    }
}
