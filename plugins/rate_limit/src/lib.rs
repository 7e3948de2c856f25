//! Filter `rate_limit`: at most so many messages and bytes a second, with bursts, for each session or
//! for all sessions that have something in common: the client's address, a header, a cookie.
//!
//! A bucket of tokens is kept as one number, the moment at which it will be full again if nothing more
//! is taken (the "theoretical arrival time" of GCRA, ITU-T I.371 annex A). To take from it moves that
//! moment on; what would move it further ahead than a whole bucket takes to fill is refused. So nothing
//! has to be filled up by a timer, and the buckets of a key are 16 bytes in the host's store, which
//! workers change by compare-and-set and which expire when they are full.

use std::{rc::Rc, time::Duration};

use pointsman_sdk::{
    Close, Facts, Message, clock, close,
    filter::{Direction, Directions, Filter, FilterSession, Interest, Verdict, Wants},
    metrics,
    policy::{Key, KeyKind, stable_hash},
    store::{self, StoreError},
};
use serde::Deserialize;

/// Of both rates, a second.
const MIN_RATE: f64 = 0.001;
const MAX_RATE: f64 = 1e9;

const MAX_BURST: i64 = 1_000_000_000_000;

/// How long a bucket may take to fill, and so how long its key may stay in the store; 11 days. All
/// moments so far ahead are counted in nanoseconds without rounding, even as `f64`.
const MAX_FILL_SECS: f64 = 1e6;

/// How often a shared bucket is tried. Whoever is not the first to change it has lost against a
/// message that passed within the limit, so it takes this many of those in a microsecond or two for
/// one to pass uncounted.
const MAX_ATTEMPTS: usize = 16;

/// What an operator may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// [`MIN_RATE`] to [`MAX_RATE`], as the next.
    messages_per_sec: Option<f64>,
    bytes_per_sec: Option<f64>,
    /// 1 to [`MAX_BURST`], as the next; none: what comes in one second, rounded up.
    burst_messages: Option<i64>,
    burst_bytes: Option<i64>,
    #[serde(default)]
    per: Per,
    /// Of the header, the cookie or the value in the query.
    name: Option<String>,
    #[serde(default = "default_directions")]
    directions: Directions,
    #[serde(default)]
    action: Action,
    close_code: Option<i64>,
}

fn default_directions() -> Directions {
    Directions::FromClient
}

/// Who shares buckets.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Per {
    #[default]
    Session,
    Route,
    ClientIp,
    Header,
    Cookie,
    Query,
}

/// What becomes of a message for which there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    #[default]
    Close,
    Drop,
}

/// The checked configuration.
#[derive(Debug)]
pub struct RateLimit {
    limits: Rc<Limits>,
    sharing: Sharing,
}

#[derive(Debug)]
enum Sharing {
    /// Each session has buckets of its own.
    None,
    Route,
    Key(Key),
}

impl Filter for RateLimit {
    type Config = Config;
    type Session = LimitedSession;

    fn configure(config: Config) -> Result<Self, String> {
        let mut problems = Vec::new();
        let limits = Limits::new(&config, &mut problems);
        let sharing = sharing(config.per, config.name).unwrap_or_else(|problem| {
            problems.push(problem);
            Sharing::None
        });
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        Ok(Self {
            limits: Rc::new(limits),
            sharing,
        })
    }

    fn wants(&self) -> Wants {
        let headers = match &self.sharing {
            Sharing::Key(key) => key.headers(),
            Sharing::None | Sharing::Route => Vec::new(),
        };
        Wants {
            headers,
            ..Wants::default()
        }
    }

    fn open(&mut self, facts: Facts) -> LimitedSession {
        let key = match &self.sharing {
            Sharing::None => None,
            Sharing::Route => Some(facts.route.as_str().into()),
            Sharing::Key(key) => key.of_session(&facts),
        };
        LimitedSession {
            limits: Rc::clone(&self.limits),
            // A hash, because keys in the store are short and clients write long ones.
            store_key: key.map(|key| format!("{:016x}", stable_hash(0, key.as_bytes()))),
            own: FullAt::default(),
        }
    }
}

pointsman_sdk::export!(RateLimit: filter);

fn sharing(per: Per, name: Option<String>) -> Result<Sharing, String> {
    let kind = match (per, &name) {
        (Per::Session, None) => return Ok(Sharing::None),
        (Per::Route, None) => return Ok(Sharing::Route),
        // A key that has no name refuses it.
        (Per::Session | Per::Route | Per::ClientIp, _) => KeyKind::ClientIp,
        (Per::Header, _) => KeyKind::Header,
        (Per::Cookie, _) => KeyKind::Cookie,
        (Per::Query, _) => KeyKind::Query,
    };
    Key::new(kind, name).map(Sharing::Key)
}

/// A session and its buckets.
#[derive(Debug)]
pub struct LimitedSession {
    limits: Rc<Limits>,
    /// Where its shared buckets are; none: it shares nothing.
    store_key: Option<String>,
    /// By the monotonic clock.
    own: FullAt,
}

impl FilterSession for LimitedSession {
    fn interest(&self) -> Interest {
        self.limits.directions.interest()
    }

    fn message(&mut self, _from: Direction, message: Message) -> Verdict {
        match (self.take(message.len() as u64), self.limits.close_code) {
            (Ok(()), _) => Verdict::Forward,
            (Err(_), None) => {
                metrics::count("messages_dropped", 1);
                Verdict::Drop
            }
            (Err(Exceeded(what)), Some(code)) => {
                metrics::count("sessions_closed", 1);
                Verdict::Close(Close::new(code, format!("too many {what}")))
            }
        }
    }
}

impl LimitedSession {
    /// From the shared buckets, or from its own if the store has no room for those: whoever fills the
    /// store with keys is still limited.
    fn take(&mut self, n_bytes: u64) -> Result<(), Exceeded> {
        if let Some(store_key) = &self.store_key {
            match self.limits.take_shared(store_key, n_bytes) {
                Ok(taken) => return taken,
                Err(_) => metrics::count("store_full", 1),
            }
        }
        let now_ns = clock::monotonic_ns();
        self.own = self.limits.take(self.own, now_ns, n_bytes)?;
        Ok(())
    }
}

/// What there was too much of.
#[derive(Debug, PartialEq, Eq)]
struct Exceeded(&'static str);

/// The moments at which two buckets will be full, in nanoseconds of the clock that they are kept by.
/// A moment that has passed: it is full.
#[derive(Clone, Copy, Debug, Default)]
struct FullAt {
    messages: u64,
    bytes: u64,
}

impl FullAt {
    fn to_stored(self) -> [u8; 16] {
        (u128::from(self.messages) << 64 | u128::from(self.bytes)).to_be_bytes()
    }

    /// Full if this was stored by something else.
    fn from_stored(stored: &[u8]) -> Self {
        let both = stored.try_into().map_or(0, u128::from_be_bytes);
        Self {
            messages: (both >> 64) as u64,
            bytes: both as u64,
        }
    }
}

/// What holds for every session.
#[derive(Debug)]
struct Limits {
    messages: Option<Limit>,
    bytes: Option<Limit>,
    directions: Directions,
    /// None: messages are dropped.
    close_code: Option<u16>,
}

impl Limits {
    fn new(config: &Config, problems: &mut Vec<String>) -> Self {
        if config.messages_per_sec.is_none() && config.bytes_per_sec.is_none() {
            problems.push("messages_per_sec, bytes_per_sec: one of them at least is needed".into());
        }
        let mut limit = |unit, rate, burst| Limit::new(unit, rate, burst, problems);
        Self {
            messages: limit("messages", config.messages_per_sec, config.burst_messages),
            bytes: limit("bytes", config.bytes_per_sec, config.burst_bytes),
            directions: config.directions,
            close_code: close_code(config, problems),
        }
    }

    /// From both buckets or, if one of them has not enough, from none.
    fn take(&self, full_at: FullAt, now_ns: u64, n_bytes: u64) -> Result<FullAt, Exceeded> {
        let take = |limit: &Option<Limit>, full_at, n, what| match limit {
            Some(limit) => limit.take(full_at, now_ns, n).ok_or(Exceeded(what)),
            None => Ok(full_at),
        };
        Ok(FullAt {
            messages: take(&self.messages, full_at.messages, 1, "messages")?,
            bytes: take(&self.bytes, full_at.bytes, n_bytes, "bytes")?,
        })
    }

    /// From the buckets under this key, which all workers share. These go by the clock on the wall,
    /// because the other may have another beginning elsewhere.
    fn take_shared(&self, key: &str, n_bytes: u64) -> Result<Result<(), Exceeded>, StoreError> {
        for _ in 0..MAX_ATTEMPTS {
            let stored = store::get(key);
            // Read behind the bucket, so that it is never earlier than the moment of the last change.
            let now_ns = clock::now_ms() * 1_000_000;
            let full_at = stored
                .as_deref()
                .map_or(FullAt::default(), FullAt::from_stored);
            let full_at = match self.take(full_at, now_ns, n_bytes) {
                Ok(full_at) => full_at,
                Err(exceeded) => return Ok(Err(exceeded)),
            };
            // A full bucket and none are the same. Rounded up: what fills within the millisecond would
            // otherwise not be kept at all.
            let fill_ns = full_at.messages.max(full_at.bytes).saturating_sub(now_ns);
            let ttl = Duration::from_nanos(fill_ns) + Duration::from_millis(1);
            let new = full_at.to_stored();
            if store::compare_and_set(key, stored.as_deref(), &new, Some(ttl))? {
                break;
            }
        }
        Ok(Ok(()))
    }
}

/// The size of a bucket, and how fast it fills.
#[derive(Debug)]
struct Limit {
    ns_per_token: f64,
    burst: u64,
    /// What an empty bucket takes to fill.
    burst_ns: u64,
}

impl Limit {
    /// `unit` is "messages" or "bytes", as in the keys.
    fn new(
        unit: &str,
        rate: Option<f64>,
        burst: Option<i64>,
        problems: &mut Vec<String>,
    ) -> Option<Self> {
        let n_before = problems.len();
        if let Some(burst) = burst.filter(|burst| !(1..=MAX_BURST).contains(burst)) {
            problems.push(format!(
                "burst_{unit}: {burst} is not allowed: 1 to {MAX_BURST}"
            ));
        }
        match (rate, burst) {
            (Some(rate), _) if !(MIN_RATE..=MAX_RATE).contains(&rate) => problems.push(format!(
                "{unit}_per_sec: {rate} is not allowed: {MIN_RATE} to {MAX_RATE}"
            )),
            (None, Some(_)) => problems.push(format!("burst_{unit}: needs {unit}_per_sec")),
            (Some(rate), Some(burst)) if burst as f64 / rate > MAX_FILL_SECS => {
                problems.push(format!(
                    "burst_{unit}: {burst} is not allowed: what comes in {MAX_FILL_SECS} seconds at most"
                ));
            }
            _ => {}
        }
        let rate = rate.filter(|_| problems.len() == n_before)?;
        let burst = burst.map_or(rate.ceil(), |burst| burst as f64);
        let ns_per_token = 1e9 / rate;
        Some(Self {
            ns_per_token,
            burst: burst as u64,
            // Up, and what is taken is rounded down, so that a burst always fits.
            burst_ns: (burst * ns_per_token).ceil() as u64,
        })
    }

    /// When the bucket will be full after `n` tokens are taken; none if there are not so many.
    fn take(&self, full_at_ns: u64, now_ns: u64, n: u64) -> Option<u64> {
        if n > self.burst {
            return None;
        }
        let latest_ns = now_ns + self.burst_ns;
        // No bucket is emptier than empty, unless the clock was set back or the limit changed. Then a
        // new one begins: the old one would refuse until the clock comes to where it was.
        let full_at_ns = match full_at_ns > latest_ns {
            true => now_ns,
            false => full_at_ns.max(now_ns),
        };
        let then_ns = full_at_ns + (n as f64 * self.ns_per_token) as u64;
        (then_ns <= latest_ns).then_some(then_ns)
    }
}

/// None: messages are dropped.
fn close_code(config: &Config, problems: &mut Vec<String>) -> Option<u16> {
    match (config.action, config.close_code) {
        (Action::Drop, None) => None,
        (Action::Drop, Some(code)) => {
            problems.push(format!(
                "close_code: {code} is not allowed: only action = \"close\" has one"
            ));
            None
        }
        (Action::Close, code) => {
            let Some(code) = code else {
                return Some(close::POLICY_VIOLATION);
            };
            let sendable = u16::try_from(code)
                .ok()
                .filter(|&code| close::may_be_sent(code));
            if sendable.is_none() {
                problems.push(format!(
                    "close_code: {code} is not allowed: 1000 to 1003, 1007 to 1014, 3000 to 4999"
                ));
            }
            sendable
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        Header,
        testing::{
            FilterHost, OpenFilterSession, advance, counted, facts, set_now_ms, set_store_max_bytes,
        },
    };
    use serde_json::{Value, json};

    use super::*;

    type Session = OpenFilterSession<LimitedSession>;

    fn start(config: Value) -> FilterHost<RateLimit> {
        FilterHost::start(config).unwrap()
    }

    fn open(host: &mut FilterHost<RateLimit>, client_ip: &str, headers: &[Header]) -> Session {
        let facts = Facts {
            client_ip: client_ip.to_owned(),
            headers: headers.to_vec(),
            ..facts()
        };
        host.open(facts).unwrap()
    }

    /// How many of so many messages pass.
    fn n_passed(session: &mut Session, n: usize, n_bytes: usize) -> usize {
        let message = || Message::binary(vec![0; n_bytes]);
        let verdicts = (0..n).map(|_| session.from_client(message()));
        verdicts
            .filter(|verdict| *verdict == Verdict::Forward)
            .count()
    }

    /// Time to come and messages sent then: how many pass.
    type Step = (u64, usize, usize);

    fn check(config: Value, n_bytes: usize, steps: &[Step]) {
        for per in ["session", "client_ip"] {
            let mut config = config.clone();
            config["per"] = per.into();
            config["action"] = "drop".into();
            let mut session = open(&mut start(config.clone()), "192.0.2.1", &[]);
            for (n, &(after_ms, n_sent, expected)) in steps.iter().enumerate() {
                advance(Duration::from_millis(after_ms));
                let passed = n_passed(&mut session, n_sent, n_bytes);
                assert_eq!(passed, expected, "{config}, step {n}");
            }
        }
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        check(
            json!({"messages_per_sec": 10}),
            0,
            &[
                (0, 11, 10),
                (99, 1, 0),
                (1, 2, 1),
                (250, 9, 2),
                (50, 1, 1),
                (9999, 20, 10),
            ],
        );
        check(
            json!({"messages_per_sec": 10, "burst_messages": 2}),
            0,
            &[(0, 3, 2), (100, 3, 1), (1000, 3, 2)],
        );
        // Less than one a second, and rates that are no whole number of nanoseconds.
        check(
            json!({"messages_per_sec": 0.5}),
            0,
            &[(0, 3, 1), (1999, 1, 0), (1, 2, 1)],
        );
        check(
            json!({"messages_per_sec": 1.5}),
            0,
            &[(0, 5, 2), (2000, 5, 2)],
        );
        check(
            json!({"messages_per_sec": 7}),
            0,
            &[(0, 9, 7), (1000, 9, 7), (143, 2, 1)],
        );
    }

    #[test]
    fn bytes_are_counted_as_messages_are() {
        check(
            json!({"bytes_per_sec": 1000}),
            300,
            &[(0, 5, 3), (199, 1, 0), (1, 2, 1), (1000, 4, 3)],
        );
        // All of a burst at once, and never more than that.
        check(
            json!({"bytes_per_sec": 1000}),
            1000,
            &[(0, 2, 1), (999, 1, 0), (1, 1, 1)],
        );
        check(
            json!({"bytes_per_sec": 1000}),
            1001,
            &[(0, 1, 0), (60_000, 1, 0)],
        );
        check(json!({"bytes_per_sec": 1e9}), 1_000_001, &[(0, 1000, 999)]);
        check(
            json!({"bytes_per_sec": 1, "burst_bytes": 5}),
            5,
            &[(0, 2, 1), (5000, 2, 1)],
        );
        check(json!({"bytes_per_sec": 1}), 0, &[(0, 99, 99)]);
    }

    #[test]
    fn a_message_that_one_limit_refuses_takes_nothing_from_the_other() {
        let mut host = start(json!({"messages_per_sec": 2, "bytes_per_sec": 10, "action": "drop"}));
        let mut session = open(&mut host, "192.0.2.1", &[]);
        assert_eq!(n_passed(&mut session, 5, 11), 0);
        assert_eq!(n_passed(&mut session, 5, 5), 2);
        assert_eq!(counted("messages_dropped"), 8);
        assert_eq!(counted("sessions_closed"), 0);
    }

    #[test]
    fn too_much_ends_the_session_unless_it_is_dropped() {
        let check = |extra: (&str, Value), n_bytes, expected| {
            let mut config = json!({"messages_per_sec": 1, "bytes_per_sec": 9});
            config[extra.0] = extra.1;
            let mut session = open(&mut start(config), "192.0.2.1", &[]);
            assert_eq!(
                session.from_client(Message::text("12345678")),
                Verdict::Forward
            );
            advance(Duration::from_millis(if n_bytes > 0 { 1000 } else { 0 }));
            let message = Message::binary(vec![0; n_bytes]);
            assert_eq!(session.from_client(message), expected);
            assert_eq!(
                counted("messages_dropped"),
                u64::from(expected == Verdict::Drop)
            );
            assert_eq!(
                counted("sessions_closed"),
                u64::from(expected != Verdict::Drop)
            );
        };
        let close = |code, reason| Verdict::Close(Close::new(code, reason));
        check(
            ("action", "close".into()),
            0,
            close(1008, "too many messages"),
        );
        check(
            ("action", "close".into()),
            10,
            close(1008, "too many bytes"),
        );
        check(
            ("close_code", 4029.into()),
            0,
            close(4029, "too many messages"),
        );
        check(("action", "drop".into()), 0, Verdict::Drop);
        check(("action", "drop".into()), 10, Verdict::Drop);
    }

    #[test]
    fn only_the_directions_that_count_are_looked_at() {
        let check = |directions: &str, passed_up, passed_down| {
            let config = json!({"messages_per_sec": 1, "directions": directions});
            let mut session = open(&mut start(config), "192.0.2.1", &[]);
            let is_passed = |verdict| verdict == Verdict::Forward;
            let up = [(); 3].map(|()| is_passed(session.from_client(Message::text("x"))));
            let down = [(); 3].map(|()| is_passed(session.from_backend(Message::text("x"))));
            assert_eq!((up, down), (passed_up, passed_down), "{directions}");
        };
        let (all, first, none) = ([true; 3], [true, false, false], [false; 3]);
        check("from_client", first, all);
        check("from_backend", all, first);
        // One bucket for both.
        check("both", first, none);
        let mut session = open(&mut start(json!({"bytes_per_sec": 1})), "192.0.2.1", &[]);
        let interest = Interest::CLIENT_TEXT | Interest::CLIENT_BINARY;
        assert_eq!(session.session().interest(), interest);
    }

    /// Sessions of these clients and headers, each with one message: which of them pass.
    #[test]
    fn sessions_with_one_key_share_a_bucket() {
        let check = |config: Value, sessions: [(&str, &str, &str); 4], expected: [bool; 4]| {
            let mut config = config;
            config["messages_per_sec"] = 1.into();
            let mut host = start(config.clone());
            let passed = sessions.map(|(client_ip, name, value)| {
                let mut session = open(&mut host, client_ip, &[Header::new(name, value)]);
                n_passed(&mut session, 1, 1) == 1
            });
            assert_eq!(passed, expected, "{config}");
        };
        let long = "x".repeat(5000);
        let sessions = [
            ("192.0.2.1", "x-user", "ada"),
            ("192.0.2.1", "x-user", &long),
            ("192.0.2.2", "x-user", "ada"),
            ("192.0.2.2", "x-user", &long),
        ];
        check(json!({"per": "session"}), sessions, [true; 4]);
        check(json!({}), sessions, [true; 4]);
        check(
            json!({"per": "client_ip"}),
            sessions,
            [true, false, true, false],
        );
        check(
            json!({"per": "header", "name": "X-User"}),
            sessions,
            [true, true, false, false],
        );
        check(
            json!({"per": "route"}),
            sessions,
            [true, false, false, false],
        );
        // Those without a key have nothing in common.
        check(json!({"per": "query", "name": "user"}), sessions, [true; 4]);
        let cookies = sessions
            .map(|(ip, _, value)| (ip, "cookie", if value == "ada" { "a=1" } else { "a=2" }));
        check(
            json!({"per": "cookie", "name": "a"}),
            cookies,
            [true, true, false, false],
        );
    }

    #[test]
    fn a_shared_bucket_outlives_its_sessions_until_it_is_full() {
        let mut host = start(json!({"messages_per_sec": 2, "per": "client_ip", "action": "drop"}));
        let key = format!("{:016x}", stable_hash(0, b"192.0.2.1"));
        let mut session = open(&mut host, "192.0.2.1", &[]);
        assert_eq!(n_passed(&mut session, 3, 1), 2);
        session.end(&pointsman_sdk::testing::report());
        assert_eq!(n_passed(&mut open(&mut host, "192.0.2.1", &[]), 1, 1), 0);
        advance(Duration::from_millis(1000));
        assert_eq!(store::get(&key).map(|value| value.len()), Some(16));
        advance(Duration::from_millis(1));
        assert_eq!(store::get(&key), None);
    }

    #[test]
    fn what_fills_within_a_millisecond_is_counted_too() {
        let mut host = start(json!({"messages_per_sec": 1e6, "burst_messages": 3, "per": "route"}));
        let mut session = open(&mut host, "192.0.2.1", &[]);
        assert_eq!(n_passed(&mut session, 5, 1), 3);
    }

    #[test]
    fn a_clock_that_is_set_back_costs_and_gives_no_more_than_a_burst() {
        let config = json!({"messages_per_sec": 1, "burst_messages": 2, "per": "client_ip"});
        let mut session = open(&mut start(config), "192.0.2.1", &[]);
        let start_ms = clock::now_ms();
        assert_eq!(n_passed(&mut session, 3, 1), 2);
        // The bucket of three seconds from now has to be of another clock.
        set_now_ms(start_ms - 1000);
        assert_eq!(n_passed(&mut session, 3, 1), 2);
        set_now_ms(start_ms - 3_600_000);
        assert_eq!(n_passed(&mut session, 3, 1), 2);
        advance(Duration::from_secs(1));
        assert_eq!(n_passed(&mut session, 3, 1), 1);
    }

    #[test]
    fn who_finds_the_store_full_has_a_bucket_of_its_own() {
        let mut host = start(json!({"messages_per_sec": 2, "per": "client_ip", "action": "drop"}));
        set_store_max_bytes(0);
        for _ in 0..2 {
            assert_eq!(n_passed(&mut open(&mut host, "192.0.2.1", &[]), 3, 1), 2);
        }
        assert_eq!(counted("store_full"), 6);
    }

    #[test]
    fn a_bucket_is_stored_and_read_back() {
        let full_at = FullAt {
            messages: u64::MAX,
            bytes: 7,
        };
        let read = FullAt::from_stored(&full_at.to_stored());
        assert_eq!((read.messages, read.bytes), (u64::MAX, 7));
        assert_eq!(FullAt::from_stored(b"other").messages, 0);
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let check = |config, expected: &str| {
            let refused = FilterHost::<RateLimit>::start(config);
            assert_eq!(refused.unwrap_err(), expected);
        };
        check(
            json!({}),
            "messages_per_sec, bytes_per_sec: one of them at least is needed",
        );
        check(
            json!({"messages_per_sec": 0, "bytes_per_sec": 2e9, "burst_messages": 0,
                "per": "session", "name": "x", "close_code": 1006}),
            "burst_messages: 0 is not allowed: 1 to 1000000000000; \
             messages_per_sec: 0 is not allowed: 0.001 to 1000000000; \
             bytes_per_sec: 2000000000 is not allowed: 0.001 to 1000000000; \
             close_code: 1006 is not allowed: 1000 to 1003, 1007 to 1014, 3000 to 4999; \
             name: \"x\" is not allowed: only a header, a cookie or a value in the query has a name",
        );
        check(
            json!({"messages_per_sec": 1, "burst_bytes": 5, "action": "drop", "close_code": 1008}),
            "burst_bytes: needs bytes_per_sec; \
             close_code: 1008 is not allowed: only action = \"close\" has one",
        );
        check(
            json!({"messages_per_sec": 0.001, "burst_messages": 1001}),
            "burst_messages: 1001 is not allowed: what comes in 1000000 seconds at most",
        );
        check(
            json!({"messages_per_sec": 1, "per": "header"}),
            "name: missing: which header, cookie or value in the query is the key?",
        );
        check(
            json!({"messages_per_sec": 1, "per": "ip"}),
            "per: unknown variant `ip`, expected one of `session`, `route`, `client_ip`, `header`, \
             `cookie`, `query`",
        );
        check(
            json!({"messages_per_sec": "1"}),
            "messages_per_sec: invalid type: string \"1\", expected f64",
        );
        check(
            json!({"messages_per_sec": 1, "action": "deny"}),
            "action: unknown variant `deny`, expected `close` or `drop`",
        );
    }
}
