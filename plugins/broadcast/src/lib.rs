//! Handler `broadcast`: what a publisher sends goes to every session of its topic, as it is. Who may
//! not publish is listened to by nobody: its messages never reach the plugin.

mod config;

use std::{hint::black_box, rc::Rc};

use pointsman_sdk::{
    Facts, Message, Refusal,
    handler::{Handler, HandlerSession, Interest, Verdict, Wants},
    metrics, topics,
};

use crate::config::{MAX_TOPIC_BYTES, Publishers, TopicFrom};

pub use crate::config::Config;

/// Opens sessions.
#[derive(Debug)]
pub struct Broadcast {
    topic: TopicFrom,
    publishers: Publishers,
}

/// A listener, a publisher, or both.
#[derive(Debug)]
pub struct BroadcastSession {
    topic: Rc<str>,
    is_publisher: bool,
}

impl Handler for Broadcast {
    type Config = Config;
    type Session = BroadcastSession;

    fn configure(config: Config) -> Result<Self, String> {
        Ok(Self {
            topic: TopicFrom::new(&config)?,
            publishers: Publishers::new(config)?,
        })
    }

    fn wants(&self) -> Wants {
        let headers = match &self.publishers {
            Publishers::Secret { header, .. } => vec![header.clone()],
            Publishers::Anyone | Publishers::Nobody => Vec::new(),
        };
        Wants {
            headers,
            accept: true,
        }
    }

    fn accept(&mut self, facts: &Facts) -> Result<Option<String>, Refusal> {
        if let Publishers::Secret { header, secret } = &self.publishers
            && let Some(found) = facts.header(header)
            && !is_same(found, secret)
        {
            return Err(Refusal::new(403, "this is not the publishers' secret"));
        }
        match self.topic.of(facts) {
            Some(topic) if topic.len() > MAX_TOPIC_BYTES => {
                Err(Refusal::new(400, "the topic is longer than 1024 bytes"))
            }
            Some(_) => Ok(None),
            None => Err(Refusal::new(400, "the query names no topic")),
        }
    }

    /// `accept` has seen to it that there is a topic, and that the secret, if there is one, is right.
    fn open(&mut self, facts: Facts) -> BroadcastSession {
        let topic = self.topic.of(&facts).unwrap_or_default();
        let (is_publisher, is_listener) = match &self.publishers {
            Publishers::Anyone => (true, true),
            Publishers::Nobody => (false, true),
            Publishers::Secret { header, .. } => {
                let is_publisher = facts.header(header).is_some();
                (is_publisher, !is_publisher)
            }
        };
        if is_listener {
            topics::subscribe(facts.session, &topic);
        }
        BroadcastSession {
            topic,
            is_publisher,
        }
    }
}

pointsman_sdk::export!(Broadcast: handler);

impl HandlerSession for BroadcastSession {
    fn interest(&self) -> Interest {
        match self.is_publisher {
            true => Interest::all(),
            false => Interest::empty(),
        }
    }

    fn message(&mut self, message: Message) -> Verdict {
        let n_delivered = topics::publish(&self.topic, &message);
        metrics::count("published", 1);
        metrics::count("delivered", n_delivered.into());
        Verdict::Ignore
    }
}

/// Takes as long for any two texts of one length, so that its time tells nothing of how much of a
/// guess is right.
fn is_same(a: &str, b: &str) -> bool {
    let pairs = a.bytes().zip(b.bytes());
    let difference = pairs.fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::{
        Header,
        testing::{HandlerHost, OpenHandlerSession, counted, facts, take_sent},
    };
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "of-sixteen-letters";

    type Open = OpenHandlerSession<BroadcastSession>;

    fn start(config: Value) -> HandlerHost<Broadcast> {
        HandlerHost::start(config).unwrap()
    }

    fn at(path: &str) -> Facts {
        Facts {
            path: path.to_owned(),
            ..facts()
        }
    }

    fn open(host: &mut HandlerHost<Broadcast>, path: &str) -> Open {
        host.open(at(path)).unwrap()
    }

    fn with_secret(secret: &str) -> Facts {
        Facts {
            headers: vec![Header::new("x-publisher", secret)],
            ..at("/a")
        }
    }

    fn received(session: &Open) -> Vec<Message> {
        take_sent(session.id)
    }

    #[test]
    fn every_session_of_the_topic_gets_what_is_published_in_order() {
        let mut instances = [start(json!({})), start(json!({}))];
        let mut a = open(&mut instances[0], "/a?x");
        let mut b = open(&mut instances[1], "/a");
        let other = open(&mut instances[1], "/b");
        assert_eq!(a.text("1"), Verdict::Ignore);
        assert_eq!(b.binary(&[2]), Verdict::Ignore);
        a.text("");
        let expected = [Message::text("1"), Message::binary([2]), Message::text("")];
        assert_eq!(received(&a), expected);
        assert_eq!(received(&b), expected);
        assert_eq!(received(&other), []);
        assert_eq!((counted("published"), counted("delivered")), (3, 6));
    }

    #[test]
    fn those_with_the_secret_publish_and_the_others_listen() {
        let mut host = start(json!({"publish": "secret", "publisher_secret": SECRET}));
        let mut publisher = host.open(with_secret(SECRET)).unwrap();
        let mut listener = open(&mut host, "/a");
        assert_eq!(listener.session().interest(), Interest::empty());
        listener.text("not heard");
        publisher.text("heard");
        assert_eq!(received(&listener), [Message::text("heard")]);
        assert_eq!(received(&publisher), []);
        assert_eq!((counted("published"), counted("delivered")), (1, 1));
        for wrong in ["", "x", &SECRET[1..], &format!("{SECRET}x")] {
            assert_eq!(host.open(with_secret(wrong)).unwrap_err().status, 403);
        }
    }
    #[test]
    fn nobody_publishes_where_that_is_switched_off() {
        let mut host = start(json!({"publish": "nobody"}));
        let (mut a, b) = (open(&mut host, "/a"), open(&mut host, "/a"));
        a.text("not heard");
        a.binary(b"not heard");
        assert_eq!((received(&a), received(&b)), (vec![], vec![]));
        assert_eq!(counted("published"), 0);
    }

    #[test]
    fn the_topic_is_where_it_is_said_to_be() {
        #[track_caller]
        fn check(config: Value, said_at: &str, heard_at: &[&str], not_heard_at: &[&str]) {
            let mut host = start(config);
            let mut publisher = open(&mut host, said_at);
            let mut sessions = |paths: &[&str]| -> Vec<Open> {
                paths.iter().map(|path| open(&mut host, path)).collect()
            };
            let (heard, not_heard) = (sessions(heard_at), sessions(not_heard_at));
            publisher.text("hi");
            assert!(heard.iter().all(|session| received(session).len() == 1));
            assert!(not_heard.iter().all(|session| received(session).is_empty()));
        }
        check(
            json!({"topic_from": "path"}),
            "/a?b",
            &["/a"],
            &["/", "/a/", "/%61"],
        );
        let by_query = json!({"topic_from": "query:t"});
        check(by_query.clone(), "/?t=a%20b", &["/x?u=1&t=a+b"], &["/?t=a"]);
        check(json!({"topic": "all"}), "/a", &["/b", "/?t=c"], &[]);

        let mut host = start(by_query);
        let too_long = format!("/?t={}", "a".repeat(1025));
        for path in ["/", "/?t", "/?t=", &too_long] {
            assert_eq!(host.open(at(path)).unwrap_err().status, 400, "{path}");
        }
        open(&mut host, &too_long[..too_long.len() - 1]);
    }

    #[test]
    fn the_header_is_asked_for_in_lower_case_and_secrets_are_not_shown() {
        let config =
            json!({"publish": "secret", "publisher_secret": SECRET, "publisher_header": "X-Key"});
        let mut host = start(config);
        assert_eq!(host.handler().wants().headers, ["x-key"]);
        assert!(!format!("{host:?}").contains(SECRET));
    }
}
