//! The choice of a backend: asks the policy, checks what it says, and makes a plan of it.
//!
//! In go a request's facts and the upstream's pool; out comes a [`Plan`]. One [`Chooser`] per
//! upstream and worker owns the policy's instance. It knows no sockets and no plugins: the caller
//! makes policies, and dials.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::HeaderMap;
use pointsman_config::UpstreamName;
use pointsman_contract::names::PluginName;
use pointsman_contract::policy::{
    Candidate, ChoiceRequest, Decision, Figures, Policy, PolicyError, Refusal,
};
use pointsman_contract::session::EndReport;
use tokio::time::Instant;

use super::fallback;
use crate::environment::Environment;
use crate::upstream::pool::{Backend, NoBackend, Pool, ShownBackends, Tier};

/// After so many failures in a row a policy is given a rest before it is made again.
const FAILURES_BEFORE_REST: u32 = 3;
/// How long the fallback stands in then. Long enough that a policy which always runs into its time
/// limit costs a worker one percent at most.
const REST: Duration = Duration::from_secs(1);

/// A policy at work for one upstream on one worker.
#[derive(Debug)]
pub struct Chooser<P> {
    environment: Environment,
    /// The upstream's and the policy's, for the log.
    names: (UpstreamName, PluginName),
    /// None: it was never needed or has failed, and is made for the next choice.
    policy: Option<P>,
    /// What the policy was last told of, in that order, each with its weight.
    candidates: Vec<(Arc<Backend>, u32)>,
    failures_in_a_row: u32,
    rests_until: Option<Instant>,
    /// Whom the policy is shown: one that has ranked before goes by keys.
    shown: ShownBackends,
}

/// What of a request matters to a policy.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// The client, behind trusted proxies the one they vouch for.
    pub client_ip: IpAddr,
    /// In lower case, without port.
    pub host: &'a str,
    /// Path and query, as received.
    pub path: &'a str,
    /// All of them.
    pub headers: &'a HeaderMap,
}

/// What to do with a request.
#[derive(Debug)]
pub enum Plan {
    /// Dial these in this order until one accepts.
    Dial {
        /// Never empty.
        order: Vec<Arc<Backend>>,
        /// The first is where the request belongs, by its key or cookie: another may have it only if the first
        /// cannot have seen it.
        is_by_key: bool,
    },
    /// Answer the client so.
    Refuse(Refusal),
    /// Send the client elsewhere.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// The value of `Location`.
        location: String,
    },
    /// There is no backend, or the policy wants none of them.
    NoBackend,
    /// Every backend has its `max_sessions`: waiting may help.
    Full,
}

/// Makes a policy when one is needed.
pub type MakePolicy<'a, P> = &'a mut dyn FnMut() -> Result<P, PolicyError>;

impl<P: Policy> Chooser<P> {
    /// The policy is made at the first choice.
    pub fn new(pool: &Pool) -> Self {
        Self {
            environment: pool.environment().clone(),
            names: (pool.config.name.clone(), pool.config.policy.clone()),
            policy: None,
            candidates: Vec::new(),
            failures_in_a_row: 0,
            rests_until: None,
            shown: ShownBackends::Fit,
        }
    }

    /// The policy's instance, if there is one.
    pub fn policy_mut(&mut self) -> Option<&mut P> {
        self.policy.as_mut()
    }

    /// Lets go of the policy, so that its state can be handed to its successor.
    pub fn into_policy(self) -> Option<P> {
        self.policy
    }

    /// Decides about one request. Where the policy fails, the host's own round robin decides.
    pub fn choose(
        &mut self,
        pool: &Pool,
        facts: &RequestFacts<'_>,
        make: MakePolicy<'_, P>,
    ) -> Plan {
        match self.refresh_candidates(pool) {
            Ok(()) => {}
            Err(NoBackend::Full) => return Plan::Full,
            Err(NoBackend::None) => return Plan::NoBackend,
        }
        let request = choice_request(&self.environment, pool.next_sequence(), facts, &[]);
        let decision = self.ask(&request, make);
        let n = self.candidates.len();
        let decision = decision.unwrap_or_else(|| fallback::round_robin(request.sequence, n));
        if matches!(decision, Decision::Ranked(_)) {
            self.shown = ShownBackends::Lasting;
        }
        self.plan(decision, pool, request.sequence)
    }

    /// A backend has accepted: what the policy adds to the client's answer.
    pub fn placed(&mut self, backend: &Backend, facts: &RequestFacts<'_>) -> Vec<(String, String)> {
        let place = self
            .candidates
            .iter()
            .position(|(candidate, _)| candidate.address() == backend.address());
        let (Some(place), Some(policy)) = (place, &mut self.policy) else {
            return Vec::new();
        };
        if !policy.wants().placed {
            return Vec::new();
        }
        let result = policy.placed(
            &choice_request(&self.environment, 0, facts, &[]),
            place as u32,
        );
        self.keep_if_ok(result).unwrap_or_default()
    }

    /// A session that this policy placed has ended.
    pub fn session_ended(&mut self, backend: &str, report: &EndReport) {
        if let Some(policy) = self
            .policy
            .as_mut()
            .filter(|policy| policy.wants().session_ended)
        {
            let result = policy.session_ended(backend, report);
            self.keep_if_ok(result);
        }
    }

    /// Sees who may be chosen now; tells the policy if that changed.
    fn refresh_candidates(&mut self, pool: &Pool) -> Result<(), NoBackend> {
        let now = self.environment.now();
        let tier = pool.tier(now)?;
        let known = self
            .candidates
            .iter()
            .map(|(backend, weight)| (Arc::as_ptr(backend), *weight));
        let is_same = pool
            .eligible(tier, self.shown, now)
            .map(|(backend, weight)| (Arc::as_ptr(backend), weight))
            .eq(known);
        if !is_same {
            let eligible = pool.eligible(tier, self.shown, now);
            self.candidates = eligible
                .map(|(b, weight)| (Arc::clone(b), weight))
                .collect();
            // Another thread may have taken the last place since.
            if self.candidates.is_empty() {
                return Err(NoBackend::Full);
            }
            if let Some(policy) = &mut self.policy {
                let result = policy.backends_changed(&candidates(&self.candidates));
                self.keep_if_ok(result);
            }
        }
        Ok(())
    }

    fn ask(&mut self, request: &ChoiceRequest<'_>, make: MakePolicy<'_, P>) -> Option<Decision> {
        if self
            .rests_until
            .is_some_and(|until| self.environment.now() < until)
        {
            return None;
        }
        let result = self.ask_policy(request, make);
        if result.is_ok() {
            self.failures_in_a_row = 0;
            self.rests_until = None;
        }
        self.keep_if_ok(result)
    }

    fn ask_policy(
        &mut self,
        request: &ChoiceRequest<'_>,
        make: MakePolicy<'_, P>,
    ) -> Result<Decision, PolicyError> {
        let policy = match &mut self.policy {
            Some(policy) => policy,
            none => {
                let policy = none.insert(make()?);
                policy.backends_changed(&candidates(&self.candidates))?;
                policy
            }
        };
        let figures: Vec<Figures> = match policy.wants().figures {
            true => self
                .candidates
                .iter()
                .map(|(backend, _)| backend.figures())
                .collect(),
            false => Vec::new(),
        };
        let decision = policy.choose(&ChoiceRequest {
            figures: &figures,
            ..*request
        })?;
        let named = match &decision {
            Decision::Prefer(place) => std::slice::from_ref(place),
            Decision::Ranked(places) => places.as_slice(),
            Decision::Refuse(_) | Decision::Redirect { .. } => &[],
        };
        let n = self.candidates.len();
        match named.iter().find(|&&place| place as usize >= n) {
            Some(place) => Err(PolicyError(format!("it chose backend {place} of {n}"))),
            None => Ok(decision),
        }
    }

    /// A failed policy's instance may be dead: the next choice makes another, now or after a rest.
    fn keep_if_ok<T>(&mut self, result: Result<T, PolicyError>) -> Option<T> {
        if let Err(error) = &result {
            let (upstream, policy) = &self.names;
            tracing::warn!(%upstream, %policy, %error, "policy failed: round robin stands in");
            self.policy = None;
            self.failures_in_a_row += 1;
            if self.failures_in_a_row >= FAILURES_BEFORE_REST {
                self.rests_until = Some(self.environment.now() + REST);
            }
        }
        result.ok()
    }

    fn plan(&self, decision: Decision, pool: &Pool, sequence: u64) -> Plan {
        let (mut order, is_by_key) = match decision {
            Decision::Prefer(first) => {
                let first = self.reachable(first as usize, sequence);
                (self.others_behind(first, pool), false)
            }
            Decision::Ranked(places) => (self.ranked(&places, pool), true),
            Decision::Refuse(refusal) => return Plan::Refuse(refusal),
            Decision::Redirect { status, location } => return Plan::Redirect { status, location },
        };
        order.truncate(pool.config.retries as usize + 1);
        if order.is_empty() {
            Plan::NoBackend
        } else {
            Plan::Dial { order, is_by_key }
        }
    }

    /// This one; where it is out for a moment, another by turns: it has the least to do, and would be preferred
    /// each time.
    fn reachable(&self, preferred: usize, sequence: u64) -> usize {
        let is_out = |place: usize| self.candidates[place].0.is_unreachable();
        if !is_out(preferred) {
            return preferred;
        }
        let n = self.candidates.len();
        let turn = (sequence % n as u64) as usize;
        let mut places = (0..n).map(|i| (turn + i) % n);
        places.find(|&place| !is_out(place)).unwrap_or(preferred)
    }

    /// The first, then its successors in the order written, those that failed last at the end, and
    /// behind all of them the backups.
    fn others_behind(&self, first: usize, pool: &Pool) -> Vec<Arc<Backend>> {
        let n = self.candidates.len();
        let successors = (0..n).map(|i| &self.candidates[(first + i) % n].0);
        let mut order: Vec<_> = successors.cloned().collect();
        order.extend(self.backups(pool));
        order[1..].sort_by_key(|backend| {
            let is_out = backend.is_unreachable();
            let has_failed = backend.failures_in_a_row() > 0;
            (is_out, has_failed, backend.config.is_backup)
        });
        self.add_unreachable(&mut order, pool);
        order
    }

    /// These, first those that are not out for a moment. Where they are all that the policy knows of, it leaves
    /// nobody out: then behind them those that it was not shown.
    fn ranked(&self, places: &[u32], pool: &Pool) -> Vec<Arc<Backend>> {
        let named = places
            .iter()
            .map(|&place| &self.candidates[place as usize].0);
        let mut order: Vec<_> = named.cloned().collect();
        if order.len() == self.candidates.len() {
            order.extend(self.backups(pool));
            self.add_unreachable(&mut order, pool);
        }
        order.sort_by_key(|backend| backend.is_unreachable());
        order
    }

    /// Those that are fit, and no candidates.
    fn backups(&self, pool: &Pool) -> impl Iterator<Item = Arc<Backend>> {
        let backups = pool.eligible(Tier::Backups, ShownBackends::Fit, self.environment.now());
        let others = backups
            .filter(|(backup, _)| !self.candidates.iter().any(|(c, _)| Arc::ptr_eq(backup, c)));
        others.map(|(backup, _)| Arc::clone(backup))
    }

    /// One that could not be connected to a moment ago may be back, and is better than none.
    fn add_unreachable(&self, order: &mut Vec<Arc<Backend>>, pool: &Pool) {
        for backend in pool.unreachable() {
            if !order.iter().any(|known| Arc::ptr_eq(known, backend)) {
                order.push(Arc::clone(backend));
            }
        }
    }
}

fn candidates(backends: &[(Arc<Backend>, u32)]) -> Vec<Candidate> {
    let candidate = |(backend, weight): &(Arc<Backend>, u32)| Candidate {
        weight: *weight,
        ..Candidate::from(&backend.config)
    };
    backends.iter().map(candidate).collect()
}

fn choice_request<'a>(
    environment: &Environment,
    sequence: u64,
    facts: &RequestFacts<'a>,
    figures: &'a [Figures],
) -> ChoiceRequest<'a> {
    let now = environment.system_time().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    ChoiceRequest {
        sequence,
        random: environment.random(),
        now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        client_ip: facts.client_ip,
        host: facts.host,
        path: facts.path,
        headers: facts.headers,
        figures,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;
    use std::rc::Rc;

    use pointsman_config::{self as config, Config};
    use pointsman_contract::policy::PolicyWants;

    use super::*;
    use crate::upstream::pool::BackendFailure;

    /// Answers as it is told, and notes what it is told of.
    #[derive(Debug, Clone, Default)]
    struct Scripted {
        answers: Rc<RefCell<VecDeque<Decision>>>,
        candidates: Rc<RefCell<Vec<String>>>,
        weights: Rc<RefCell<Vec<String>>>,
        wants: PolicyWants,
    }

    impl Policy for Scripted {
        fn wants(&self) -> &PolicyWants {
            &self.wants
        }

        fn backends_changed(&mut self, backends: &[Candidate]) -> Result<(), PolicyError> {
            let addresses = backends.iter().map(|backend| backend.address.clone());
            *self.candidates.borrow_mut() = addresses.collect();
            let weights = backends
                .iter()
                .map(|b| format!("{} {}", b.address, b.weight));
            *self.weights.borrow_mut() = weights.collect();
            Ok(())
        }

        fn choose(&mut self, request: &ChoiceRequest<'_>) -> Result<Decision, PolicyError> {
            let n_figures = if self.wants.figures {
                self.candidates.borrow().len()
            } else {
                0
            };
            assert_eq!(request.figures.len(), n_figures);
            let next = self.answers.borrow_mut().pop_front();
            next.ok_or_else(|| PolicyError("it trapped".to_owned()))
        }

        fn placed(
            &mut self,
            _: &ChoiceRequest<'_>,
            backend: u32,
        ) -> Result<Vec<(String, String)>, PolicyError> {
            Ok(vec![("x-place".to_owned(), backend.to_string())])
        }

        fn session_ended(&mut self, _: &str, _: &EndReport) -> Result<(), PolicyError> {
            Ok(())
        }
    }

    fn pool(backends: &str) -> Pool {
        let text = format!(
            "[[listener]]\nbind = \"127.0.0.1:0\"\n[[route]]\npath = \"/*\"\nupstream = \"app\"\n\
             [[upstream]]\nname = \"app\"\nretries = 2\nbackends = [{backends}]\n"
        );
        let config = Config::from_toml(&text, std::path::Path::new(".")).unwrap();
        let config = config.upstreams[0].clone();
        let backends = config.backends.clone();
        Pool::new(&Environment::System, config, &backends, None, None)
    }

    const THREE: &str = r#""a:1", "b:1", "c:1""#;
    const BACKUP: &str = r#""a:1", { address = "z:1", backup = true }, "b:1""#;

    /// One chooser, and how often its policy was made.
    struct Chosen {
        chooser: Chooser<Scripted>,
        policy: Scripted,
        n_made: Cell<u32>,
        /// What the last order said.
        is_by_key: bool,
    }

    impl Chosen {
        fn new(answers: &[Decision]) -> Self {
            let policy = Scripted::default();
            policy.answers.borrow_mut().extend(answers.iter().cloned());
            Self {
                chooser: Chooser::new(&pool("'a:1'")),
                policy,
                n_made: Cell::new(0),
                is_by_key: false,
            }
        }

        fn plan(&mut self, pool: &Pool) -> Plan {
            let mut make = || {
                self.n_made.set(self.n_made.get() + 1);
                Ok(self.policy.clone())
            };
            self.chooser.choose(pool, &facts(), &mut make)
        }

        /// Whom to dial, in order.
        fn order(&mut self, pool: &Pool) -> String {
            match self.plan(pool) {
                Plan::Dial { order, is_by_key } => {
                    self.is_by_key = is_by_key;
                    let names: Vec<_> = order.iter().map(|b| &b.address()[..1]).collect();
                    names.join(" ")
                }
                other => format!("{other:?}"),
            }
        }
    }

    fn facts() -> RequestFacts<'static> {
        static NONE: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);
        RequestFacts {
            client_ip: Ipv4Addr::LOCALHOST.into(),
            host: "h",
            path: "/",
            headers: &NONE,
        }
    }

    #[test]
    fn the_preferred_backend_goes_first_and_those_that_failed_last() {
        let pool = pool(THREE);
        let mut chosen = Chosen::new(&[Decision::Prefer(1), Decision::Prefer(1)]);
        assert_eq!(chosen.order(&pool), "b c a");
        pool.failed(&pool.backends[2], BackendFailure::BadAnswer, "reset");
        assert_eq!(chosen.order(&pool), "b a c");
    }

    #[test]
    fn a_ranking_names_all_that_may_be_tried() {
        let pool = pool(THREE);
        let mut chosen = Chosen::new(&[Decision::Ranked(vec![2, 0]), Decision::Ranked(vec![])]);
        assert_eq!(chosen.order(&pool), "c a");
        assert!(chosen.is_by_key);
        assert_eq!(chosen.order(&pool), "NoBackend");
    }

    #[test]
    fn behind_a_ranking_of_all_stand_those_that_were_not_shown() {
        let pool = pool(BACKUP);
        let rankings = [&[1, 0][..], &[1], &[0, 1]];
        let rankings = rankings.map(|places| Decision::Ranked(places.to_vec()));
        let mut chosen = Chosen::new(&rankings);
        assert_eq!(chosen.order(&pool), "b a z");
        assert_eq!(chosen.order(&pool), "b", "the policy leaves one out");
        let unreachable = BackendFailure::Unreachable;
        pool.failed(&pool.backends[0], unreachable, "refused");
        assert_eq!(chosen.order(&pool), "b z a", "it is out, and still shown");
        assert_eq!(*chosen.policy.candidates.borrow(), ["a:1", "b:1"]);
    }

    #[test]
    fn keys_stay_when_a_backend_cannot_be_connected_to_for_a_moment() {
        let pool = pool(THREE);
        let ranking = Decision::Ranked(vec![2, 0, 1]);
        let answers = [
            ranking.clone(),
            ranking,
            Decision::Prefer(2),
            Decision::Prefer(2),
        ];
        let mut chosen = Chosen::new(&answers);
        assert_eq!(chosen.order(&pool), "c a b");
        let unreachable = BackendFailure::Unreachable;
        pool.failed(&pool.backends[2], unreachable, "refused");
        assert_eq!(chosen.order(&pool), "a b c");
        assert_eq!(*chosen.policy.candidates.borrow(), ["a:1", "b:1", "c:1"]);
        // One that it prefers in vain is passed over by turns.
        assert_eq!(chosen.order(&pool), "a b c");
        assert_eq!(chosen.order(&pool), "a b c");
        chosen
            .policy
            .answers
            .borrow_mut()
            .push_back(Decision::Prefer(2));
        assert_eq!(chosen.order(&pool), "b a c");
    }

    #[test]
    fn one_that_could_not_be_connected_to_is_tried_last() {
        let pool = pool(THREE);
        let unreachable = BackendFailure::Unreachable;
        pool.failed(&pool.backends[0], unreachable, "refused");
        let mut chosen = Chosen::new(&[Decision::Prefer(1)]);
        assert_eq!(chosen.order(&pool), "c b a");
        assert!(!chosen.is_by_key);
        assert_eq!(*chosen.policy.candidates.borrow(), ["b:1", "c:1"]);
    }

    #[test]
    fn backups_stand_behind_the_others_and_in_for_them() {
        let pool = pool(BACKUP);
        let mut chosen = Chosen::new(&[Decision::Prefer(0)]);
        assert_eq!(chosen.order(&pool), "a b z");
        assert_eq!(*chosen.policy.candidates.borrow(), ["a:1", "b:1"]);
        let full = self::pool(
            r#"{ address = "a:1", max_sessions = 1 }, { address = "z:1", backup = true }"#,
        );
        let mut chosen = Chosen::new(&[Decision::Prefer(0), Decision::Prefer(0)]);
        assert_eq!(chosen.order(&full), "a z");
        let _session = full.backends[0].dialling().map(|dial| dial.answered(true));
        assert_eq!(chosen.order(&full), "z");
        assert_eq!(*chosen.policy.candidates.borrow(), ["z:1"]);
    }

    #[test]
    fn nobody_with_room_is_worth_a_wait() {
        let pool = pool(r#"{ address = "a:1", max_sessions = 1 }"#);
        let _dial = pool.backends[0].dialling();
        assert_eq!(Chosen::new(&[]).order(&pool), "Full");
    }

    #[tokio::test(start_paused = true)]
    async fn the_policy_is_told_of_weights_that_grow() {
        let first = pool(r#""a:1""#);
        let config = config::Upstream {
            slow_start: Duration::from_secs(10),
            ..first.config.clone()
        };
        let joined = ["a:1", "b:1"].map(|address| config::BackendConfig::at(address.to_owned()));
        let second = Pool::new(&Environment::System, config, &joined, None, Some(&first));
        let mut chosen = Chosen::new(&vec![Decision::Prefer(0); 3]);
        for (seconds, expected) in [
            (0, "a:1 10, b:1 1"),
            (5, "a:1 10, b:1 6"),
            (5, "a:1 10, b:1 10"),
        ] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            chosen.plan(&second);
            assert_eq!(chosen.policy.weights.borrow().join(", "), expected);
        }
    }

    #[test]
    fn a_policy_that_fails_is_stood_in_for_by_turns_over_all_choices() {
        let pool = pool(THREE);
        let mut chosen = Chosen::new(&[Decision::Prefer(9), Decision::Prefer(2)]);
        assert_eq!(
            chosen.order(&pool),
            "a b c",
            "place 9 is none: the host's turn"
        );
        assert_eq!(chosen.order(&pool), "c a b", "a new instance");
        assert_eq!(chosen.order(&pool), "c a b", "it trapped: turn number 2");
        assert_eq!(chosen.n_made.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_fails_always_is_given_rests() {
        let pool = pool(THREE);
        let mut chosen = Chosen::new(&[]);
        for _ in 0..10 {
            chosen.plan(&pool);
        }
        assert_eq!(chosen.n_made.get(), FAILURES_BEFORE_REST);
        tokio::time::advance(REST).await;
        chosen
            .policy
            .answers
            .borrow_mut()
            .extend([Decision::Prefer(1), Decision::Prefer(1)]);
        assert_eq!(chosen.order(&pool), "b c a");
        assert_eq!(chosen.order(&pool), "b c a");
    }

    #[test]
    fn the_policy_may_add_to_the_answer_of_the_backend_it_placed() {
        let pool = pool(THREE);
        let mut chosen = Chosen::new(&[Decision::Prefer(1)]);
        chosen.policy.wants = PolicyWants {
            placed: true,
            figures: true,
            ..PolicyWants::default()
        };
        chosen.plan(&pool);
        let added = chosen.chooser.placed(&pool.backends[1], &facts());
        assert_eq!(added, [("x-place".to_owned(), "1".to_owned())]);
    }
}
