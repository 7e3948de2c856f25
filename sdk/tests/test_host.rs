//! What an author may rely on in a test: the test host does what the host does.

use std::{panic, time::Duration};

use pointsman_sdk::{
    Facts, Header, Message, NoConfig, Refusal, Report, State, clock,
    filter::{self, Direction, Filter, FilterSession},
    handler::{self, Handler, HandlerSession},
    log::{self, Level},
    metrics,
    policy::{self, Backend, Decision, Policy, Request},
    sessions, store,
    testing::{self, FilterHost, HandlerHost, PolicyHost, backend, facts, report, request},
    topics,
};
use serde::Deserialize;
use serde_json::json;

/// Greets, and passes what one session says to all.
struct Chat {
    topic: String,
    n_opened: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatConfig {
    topic: String,
}

struct ChatSession {
    id: u64,
    topic: String,
}

impl Handler for Chat {
    type Config = ChatConfig;
    type Session = ChatSession;

    fn configure(config: ChatConfig) -> Result<Self, String> {
        Ok(Self {
            topic: config.topic,
            n_opened: 0,
        })
    }

    fn wants(&self) -> handler::Wants {
        handler::Wants {
            headers: vec!["cookie".to_owned()],
            accept: true,
        }
    }

    fn accept(&mut self, facts: &Facts) -> Result<Option<String>, Refusal> {
        assert_eq!(facts.header("x-secret"), None, "it was not asked for");
        match facts.header("cookie") {
            Some(_) => Ok(facts.offered_subprotocols.first().cloned()),
            None => Err(Refusal::new(401, "who are you?")),
        }
    }

    fn open(&mut self, facts: Facts) -> ChatSession {
        self.n_opened += 1;
        topics::subscribe(facts.session, &self.topic);
        ChatSession {
            id: facts.session,
            topic: self.topic.clone(),
        }
    }
}

impl HandlerSession for ChatSession {
    fn interest(&self) -> handler::Interest {
        handler::Interest::TEXT
    }

    fn tick_interval_ms(&self) -> u32 {
        1000
    }

    fn opened(&mut self) -> handler::Verdict {
        handler::Verdict::Reply(Message::text("welcome"))
    }

    fn message(&mut self, message: Message) -> handler::Verdict {
        let n_sent = topics::publish(&self.topic, &message);
        metrics::count("sent", u64::from(n_sent));
        log::info(format_args!("sent to {n_sent} at {}", clock::now_ms()));
        handler::Verdict::Ignore
    }

    fn tick(&mut self) -> handler::Verdict {
        sessions::send(self.id, &Message::text("still there?"));
        handler::Verdict::Ignore
    }

    fn closed(&mut self, report: &Report) {
        let by = i64::try_from(report.messages_up).expect("few");
        store::increment("messages", by, None).expect("there is room");
    }
}

impl State for Chat {
    const VERSION: u32 = 1;

    fn save(&self) -> Vec<u8> {
        self.n_opened.to_le_bytes().to_vec()
    }

    fn restore(&mut self, saved: &[u8], from_version: u32) -> Result<(), String> {
        assert_eq!(from_version, Self::VERSION);
        let bytes = saved.try_into().map_err(|_| "not four bytes".to_owned())?;
        self.n_opened = u32::from_le_bytes(bytes);
        Ok(())
    }
}

pointsman_sdk::export!(Chat: handler + state);

fn with_cookie() -> Facts {
    Facts {
        headers: vec![Header::new("cookie", "a"), Header::new("x-secret", "b")],
        offered_subprotocols: vec!["chat".to_owned()],
        ..facts()
    }
}

#[test]
fn a_wrong_configuration_names_the_key() {
    let refusal = |config| HandlerHost::<Chat>::start(config).err().unwrap_or_default();
    assert_eq!(
        refusal(json!({ "topic": 5 })),
        "topic: invalid type: integer `5`, expected a string"
    );
    assert_eq!(refusal(json!({})), "missing field `topic`");
}

#[test]
fn a_handler_is_run_as_the_host_runs_it() {
    let mut host = HandlerHost::<Chat>::start(json!({ "topic": "all" })).unwrap();
    assert_eq!(host.open(facts()).err().map(|r| r.status), Some(401));

    let mut a = host.open(with_cookie()).unwrap();
    let b = host.open(with_cookie()).unwrap();
    assert_eq!(a.subprotocol.as_deref(), Some("chat"));
    assert_eq!(a.tick_interval_ms, 1000);
    assert_eq!(
        a.greeting,
        handler::Verdict::Reply(Message::text("welcome"))
    );

    testing::set_now_ms(5);
    testing::advance(Duration::from_millis(2));
    a.text("hi");
    a.binary(b"not of interest");
    a.tick();
    assert_eq!(
        testing::take_sent(a.id),
        [Message::text("hi"), Message::text("still there?")]
    );
    assert_eq!(testing::take_sent(b.id), [Message::text("hi")]);
    assert_eq!(testing::counted("sent"), 2);
    let lines = testing::log_lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].level, Level::Info);
    assert_eq!(lines[0].text, "sent to 2 at 7");

    b.end(&Report {
        messages_up: 3,
        ..report()
    });
    assert_eq!(store::get("messages"), Some(b"3".to_vec()));
}

#[test]
fn state_goes_over_to_the_next_generation() {
    let mut host = HandlerHost::<Chat>::start(json!({ "topic": "all" })).unwrap();
    host.open(with_cookie()).unwrap();
    let mut host = host.swap::<Chat>(json!({ "topic": "all" })).unwrap();
    assert_eq!(host.handler().n_opened, 1);
    let refused = host.swap::<Chat>(json!({ "topc": "all" }));
    assert!(refused.err().unwrap_or_default().contains("`topc`"));
}

/// Drops what the backend says in text.
struct Mute;

impl Filter for Mute {
    type Config = NoConfig;
    type Session = Self;

    fn configure(_config: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn open(&mut self, _facts: Facts) -> Self {
        Self
    }
}

impl FilterSession for Mute {
    fn interest(&self) -> filter::Interest {
        filter::Interest::BACKEND_TEXT
    }

    fn message(&mut self, from: Direction, _message: Message) -> filter::Verdict {
        assert_eq!(from, Direction::FromBackend);
        filter::Verdict::Drop
    }
}

pointsman_sdk::export!(Mute: filter);

#[test]
fn a_filter_sees_only_what_it_is_interested_in() {
    use filter::Verdict::{Drop, Forward};
    let mut host = FilterHost::<Mute>::start(json!({})).unwrap();
    let mut session = host.open(facts()).unwrap();
    assert_eq!(session.from_client(Message::text("a")), Forward);
    assert_eq!(session.from_backend(Message::binary("a")), Forward);
    assert_eq!(session.from_backend(Message::text("a")), Drop);
}

/// Remembers what it was asked.
struct Curious {
    requests: Vec<Request>,
    reads_clock: bool,
}

#[derive(Deserialize)]
struct CuriousConfig {
    #[serde(default)]
    reads_clock: bool,
}

impl Policy for Curious {
    type Config = CuriousConfig;

    fn configure(config: CuriousConfig) -> Result<Self, String> {
        Ok(Self {
            requests: Vec::new(),
            reads_clock: config.reads_clock,
        })
    }

    fn wants(&self) -> policy::Wants {
        policy::Wants {
            headers: vec!["cookie".to_owned()],
            figures: true,
            ..policy::Wants::default()
        }
    }

    fn backends_changed(&mut self, _backends: &[Backend]) {}

    fn choose(&mut self, request: &Request) -> Decision {
        if self.reads_clock {
            clock::now_ms();
        }
        self.requests.push(request.clone());
        Decision::Ranked(vec![1, 0])
    }
}

pointsman_sdk::export!(Curious: policy);

#[test]
fn a_policy_gets_what_it_wants_and_no_more() {
    let backends = [backend("a"), backend("b")];
    let mut host = PolicyHost::<Curious>::start(json!({}), &backends).unwrap();
    testing::set_now_ms(9);
    host.set_active(&[4, 2]);
    let asked = Request {
        headers: vec![Header::new("cookie", "a"), Header::new("x-secret", "b")],
        ..request()
    };
    assert_eq!(host.pick(asked), Some("b"));
    host.choose(request());

    let seen = &host.policy().requests;
    assert_eq!(seen[0].headers, [Header::new("cookie", "a")]);
    assert_eq!(seen[0].figures[0].active, 4);
    assert_eq!((seen[0].now_ms, seen[0].sequence), (9, 0));
    assert_eq!(seen[1].sequence, 1);
    assert_ne!(seen[0].random, seen[1].random);
}

#[test]
fn a_policy_that_reads_the_clock_fails_its_test() {
    let config = json!({ "reads_clock": true });
    let mut host = PolicyHost::<Curious>::start(config, &[backend("a"), backend("b")]).unwrap();
    let chosen = panic::catch_unwind(panic::AssertUnwindSafe(|| host.choose(request())));
    let told = chosen.expect_err("the host would refuse it");
    let told = told.downcast_ref::<String>().expect("a formatted message");
    assert!(told.contains("`Request::now_ms`"), "{told}");
}
