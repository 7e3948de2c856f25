//! Handler `chat`: rooms to talk in. A room is a topic: whoever is in it gets what is said there,
//! whoever comes gets the last of what was said before, and all are told who comes and goes. What
//! rooms share is in the store, because their sessions are on all workers.

mod config;
mod history;
mod presence;
mod protocol;

use std::rc::Rc;

use pointsman_sdk::{
    Close, Facts, Message, Refusal, Report, clock, close,
    handler::{Handler, HandlerSession, Interest, Verdict, Wants},
    topics,
};

use crate::{
    config::{Settings, check_name},
    presence::{Seat, present},
    protocol::{Event, Request},
};

pub use crate::config::Config;

/// Errors quote what the client sent, and a reply may not be longer than the route's messages.
const MAX_ERROR_BYTES: usize = 256;

/// Opens sessions.
#[derive(Debug)]
pub struct Chat {
    settings: Rc<Settings>,
}

/// Somebody in a room.
#[derive(Debug)]
pub struct ChatSession {
    settings: Rc<Settings>,
    id: u64,
    name: String,
    /// None: the room was full.
    seat: Option<Seat>,
}

impl Handler for Chat {
    type Config = Config;
    type Session = ChatSession;

    fn configure(config: Config) -> Result<Self, String> {
        let settings = Rc::new(Settings::try_from(config)?);
        Ok(Self { settings })
    }

    fn wants(&self) -> Wants {
        Wants {
            accept: true,
            ..Wants::default()
        }
    }

    /// Whoever takes the last seat between this and `open` leaves none: then it is a close.
    fn accept(&mut self, facts: &Facts) -> Result<Option<String>, Refusal> {
        let room = self.room(facts);
        check_name("room", &room)
            .and_then(|()| check_name("name", &name(facts)))
            .map_err(|error| Refusal::new(400, error))?;
        let limit = self.settings.room_limit;
        if limit.is_some_and(|limit| present(&room) >= limit) {
            return Err(Refusal::new(503, "the room is full"));
        }
        Ok(None)
    }

    fn open(&mut self, facts: Facts) -> ChatSession {
        ChatSession {
            settings: Rc::clone(&self.settings),
            id: facts.session,
            name: name(&facts),
            seat: Seat::take(self.room(&facts), self.settings.room_limit),
        }
    }
}

pointsman_sdk::export!(Chat: handler);

impl Chat {
    fn room(&self, facts: &Facts) -> String {
        query(facts, "room").unwrap_or_else(|| self.settings.default_room.clone())
    }
}

impl HandlerSession for ChatSession {
    fn interest(&self) -> Interest {
        Interest::TEXT
    }

    fn tick_interval_ms(&self) -> u32 {
        presence::TICK_MS
    }

    fn opened(&mut self) -> Verdict {
        match &self.seat {
            Some(seat) => self.enter(seat),
            None => Verdict::Close(Close::new(close::TRY_AGAIN_LATER, "the room is full")),
        }
    }

    fn message(&mut self, message: Message) -> Verdict {
        let Message::Text(text) = message else {
            return Verdict::Ignore;
        };
        let request = self.settings.check_length(&text);
        let request = request.and_then(|()| Request::read(text));
        let verdict = request.and_then(|request| match request {
            Request::Say { text } => self.say(&text),
            Request::Join { room, name } => self.join(room, name),
            Request::Who => self.who(),
        });
        verdict.unwrap_or_else(|error| {
            let error = &error[..error.floor_char_boundary(MAX_ERROR_BYTES)];
            reply(&Event::Error { error })
        })
    }

    fn tick(&mut self) -> Verdict {
        if let Some(seat) = &mut self.seat {
            seat.keep();
        }
        Verdict::Ignore
    }

    fn closed(&mut self, _report: &Report) {
        if let Some(seat) = self.seat.take() {
            self.leave(seat);
        }
    }
}

impl ChatSession {
    /// The sender gets its message from the topic too, so that it sees the order that others see.
    fn say(&self, text: &str) -> Result<Verdict, String> {
        let room = self.seat()?.room();
        let (n_bytes, max_bytes) = (text.len(), self.settings.max_text_bytes);
        if !(1..=max_bytes).contains(&n_bytes) {
            return Err(format!(
                "text: {n_bytes} bytes are not allowed: 1 to {max_bytes}"
            ));
        }
        let seq = self.settings.history.next_seq(room)?;
        let said = Event::Said {
            room,
            from: &self.name,
            text,
            seq,
            at: clock::now_ms(),
        }
        .json();
        // In this order, and with `enter` the other way round: who comes in between finds it in the
        // history, or gets it, or both, but never misses it.
        self.settings.history.keep(room, seq, &said);
        topics::publish(room, &Message::Text(said));
        Ok(Verdict::Ignore)
    }

    /// Takes the new seat before the old one is given up. In the same room that is one too many for
    /// a moment.
    fn join(&mut self, room: Option<String>, name: Option<String>) -> Result<Verdict, String> {
        let old_room = self.seat()?.room();
        let room = room.unwrap_or_else(|| old_room.to_owned());
        let name = name.unwrap_or_else(|| self.name.clone());
        check_name("room", &room)?;
        check_name("name", &name)?;
        let own = u64::from(room == old_room);
        let limit = self.settings.room_limit.map(|limit| limit + own);
        let seat = Seat::take(room, limit).ok_or("the room is full")?;
        if let Some(old) = self.seat.take() {
            self.leave(old);
        }
        self.name = name;
        let welcome = self.enter(&seat);
        self.seat = Some(seat);
        Ok(welcome)
    }

    fn who(&self) -> Result<Verdict, String> {
        let room = self.seat()?.room();
        let present = present(room);
        Ok(reply(&Event::Who { room, present }))
    }

    fn seat(&self) -> Result<&Seat, String> {
        self.seat.as_ref().ok_or("the room is full".to_owned())
    }

    fn enter(&self, seat: &Seat) -> Verdict {
        let (room, name, present) = (seat.room(), &self.name, present(seat.room()));
        let joined = Event::Joined {
            room,
            name,
            present,
        };
        publish(room, &joined);
        topics::subscribe(self.id, room);
        let mut welcome = Event::Welcome {
            room,
            you: name,
            present,
        }
        .json();
        // What was said is JSON already.
        let history = self.settings.history.last(room).join(",");
        welcome.pop();
        welcome += &format!(",\"history\":[{history}]}}");
        Verdict::Reply(Message::Text(welcome))
    }

    fn leave(&self, seat: Seat) {
        let room = &seat.leave();
        topics::unsubscribe(self.id, room);
        let left = Event::Left {
            room,
            name: &self.name,
            present: present(room),
        };
        publish(room, &left);
    }
}

fn name(facts: &Facts) -> String {
    query(facts, "name").unwrap_or_else(|| format!("guest-{}", facts.session))
}

/// None if it is empty, as in a form that was not filled in.
fn query(facts: &Facts, name: &str) -> Option<String> {
    let value = facts.query(name)?;
    (!value.is_empty()).then(|| value.into_owned())
}

fn publish(room: &str, event: &Event<'_>) {
    topics::publish(room, &Message::Text(event.json()));
}

fn reply(event: &Event<'_>) -> Verdict {
    Verdict::Reply(Message::Text(event.json()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pointsman_sdk::testing::{self, HandlerHost, OpenHandlerSession, facts, report, take_sent};
    use serde_json::{Value, json};

    use super::*;

    type Open = OpenHandlerSession<ChatSession>;

    fn start(config: Value) -> HandlerHost<Chat> {
        HandlerHost::start(config).unwrap()
    }

    fn at(query: &str) -> Facts {
        Facts {
            path: format!("/chat?{query}"),
            ..facts()
        }
    }

    fn open(host: &mut HandlerHost<Chat>, query: &str) -> Open {
        host.open(at(query)).unwrap()
    }

    /// Without the time, which stands still.
    fn parsed(message: &Message) -> Value {
        let mut event: Value = serde_json::from_slice(message.as_bytes()).unwrap();
        let at = event.as_object_mut().and_then(|event| event.remove("at"));
        assert!(at.is_none_or(|at| at == 1_700_000_000_000_u64));
        event
    }

    fn replied(verdict: &Verdict) -> Value {
        match verdict {
            Verdict::Reply(message) => parsed(message),
            other => panic!("{other:?} is no reply"),
        }
    }

    fn received(session: &Open) -> Vec<Value> {
        take_sent(session.id).iter().map(parsed).collect()
    }

    fn texts(events: &[Value]) -> Vec<&str> {
        let texts = events.iter().map(|event| event["text"].as_str());
        texts.collect::<Option<_>>().unwrap()
    }

    #[test]
    fn what_is_said_reaches_everyone_in_the_room_once() {
        let mut host = start(json!({}));
        let mut ada = open(&mut host, "room=r&name=ada");
        let bob = open(&mut host, "room=r&name=bob");
        let eve = open(&mut host, "room=s&name=eve");
        take_sent(ada.id);
        assert_eq!(
            ada.text(r#"{"type":"say","text":"\"hi\""}"#),
            Verdict::Ignore
        );
        let said =
            [json!({"type": "said", "room": "r", "from": "ada", "text": "\"hi\"", "seq": 1})];
        assert_eq!(received(&ada), said);
        assert_eq!(received(&bob), said);
        assert_eq!(received(&eve), [] as [Value; 0]);
    }

    #[test]
    fn plain_text_is_said_as_it_is() {
        let mut host = start(json!({}));
        let mut ada = open(&mut host, "");
        for text in ["hi", "[1]", "\"", " 7 "] {
            assert_eq!(ada.text(text), Verdict::Ignore);
            assert_eq!(texts(&received(&ada)), [text]);
        }
        assert_eq!(ada.binary(b"hi"), Verdict::Ignore);
        assert_eq!(received(&ada), [] as [Value; 0]);
    }

    #[test]
    fn a_newcomer_is_welcomed_and_announced() {
        let mut host = start(json!({"history": 2}));
        let mut ada = open(&mut host, "name=ada");
        let welcome =
            json!({"type": "welcome", "room": "lobby", "you": "ada", "present": 1, "history": []});
        assert_eq!(replied(&ada.greeting), welcome);
        for text in ["a", "b", "c"] {
            ada.text(text);
        }
        let said = received(&ada);

        let bob = open(&mut host, "room=&name=b%C3%B6b+1");
        let mut welcome = replied(&bob.greeting);
        for message in welcome["history"].as_array_mut().unwrap() {
            message.as_object_mut().unwrap().remove("at");
        }
        let expected = json!({"type": "welcome", "room": "lobby", "you": "böb 1", "present": 2, "history": said[1..]});
        assert_eq!(welcome, expected);
        let joined = json!({"type": "joined", "room": "lobby", "name": "böb 1", "present": 2});
        assert_eq!(received(&ada), [joined]);
        assert_eq!(received(&bob), [] as [Value; 0]);

        bob.end(&report());
        let left = json!({"type": "left", "room": "lobby", "name": "böb 1", "present": 1});
        assert_eq!(received(&ada), [left]);
        let guest = open(&mut host, "name=");
        let expected = format!("guest-{}", guest.id);
        assert_eq!(replied(&guest.greeting)["you"], expected);
    }

    /// Instances share nothing but the store and the topics.
    #[test]
    fn instances_number_messages_together_and_all_see_one_order() {
        let mut instances = [start(json!({})), start(json!({}))];
        let mut sessions: Vec<Open> = Vec::new();
        for n in 0..6 {
            sessions.push(open(&mut instances[n % 2], &format!("name={n}")));
        }
        sessions.iter().for_each(|session| drop(received(session)));
        for n in 0..60 {
            sessions[n * 5 % 6].text(&n.to_string());
        }
        let seen = received(&sessions[0]);
        for (n, said) in seen.iter().enumerate() {
            let (text, from) = (n.to_string(), (n * 5 % 6).to_string());
            let expected =
                json!({"type": "said", "room": "lobby", "from": from, "text": text, "seq": n + 1});
            assert_eq!(*said, expected);
        }
        assert_eq!(seen.len(), 60);
        for session in &sessions[1..] {
            assert_eq!(received(session), seen);
        }
        let late = open(&mut instances[1], "");
        let welcome = replied(&late.greeting);
        let history = welcome["history"].as_array().unwrap();
        let numbers = history.iter().map(|said| said["seq"].as_u64().unwrap());
        assert!(numbers.eq(41..=60));
        assert_eq!(welcome["present"], 7);
    }

    #[test]
    fn one_can_go_to_another_room_and_take_another_name() {
        let mut host = start(json!({}));
        let mut ada = open(&mut host, "room=r&name=ada");
        let (r, s) = (open(&mut host, "room=r"), open(&mut host, "room=s"));
        take_sent(ada.id);
        let welcome = replied(&ada.text(r#" {"type":"join","room":"s","name":"eda"}"#));
        assert_eq!(
            (&welcome["room"], &welcome["you"]),
            (&json!("s"), &json!("eda"))
        );
        let left = json!({"type": "left", "room": "r", "name": "ada", "present": 1});
        assert_eq!(received(&r), [left]);
        let joined = json!({"type": "joined", "room": "s", "name": "eda", "present": 2});
        assert_eq!(received(&s), [joined]);

        ada.text("hi");
        assert_eq!(received(&r), [] as [Value; 0]);
        assert_eq!(received(&s)[0]["from"], "eda");
        assert_eq!(received(&ada).len(), 1);
        assert_eq!(
            replied(&ada.text(r#"{"type":"who"}"#)),
            json!({"type": "who", "room": "s", "present": 2})
        );
    }

    #[test]
    fn every_text_and_every_name_may_be_written_with_escapes() {
        let mut host = start(json!({"max_text_bytes": 1000}));
        let mut ada = open(&mut host, "room=r");
        let written = |c: &str, n: usize| c.repeat(n);
        let name = written(r"\ud83e\udd80", 64);
        let join = format!(r#"{{"type":"join","room":"{name}","name":"{name}"}}"#);
        assert_eq!(replied(&ada.text(&join))["type"], "welcome");
        let say = format!(
            r#" {{ "type" : "say", "text" : "{}" }}"#,
            written(r"\u0061", 1000)
        );
        assert_eq!(ada.text(&say), Verdict::Ignore);
        assert_eq!(received(&ada)[0]["text"], "a".repeat(1000));
        // What is not known is passed over.
        let others = r#"{"type":"who","x":{"y":[{}]},"z":1,"z":1}"#;
        assert_eq!(replied(&ada.text(others))["type"], "who");
    }

    #[test]
    fn a_full_room_refuses_and_has_room_again_when_one_leaves() {
        let mut host = start(json!({"room_limit": 2}));
        let mut ada = open(&mut host, "room=r");
        let bob = open(&mut host, "room=r");
        let refused = host.open(at("room=r")).unwrap_err();
        assert_eq!(
            (refused.status, refused.body.as_str()),
            (503, "the room is full")
        );

        // Another came between `accept` and `open`.
        let mut late = host.handler().open(at("room=r"));
        let full = Verdict::Close(Close::new(close::TRY_AGAIN_LATER, "the room is full"));
        assert_eq!(late.opened(), full);
        late.closed(&report());
        let mut eve = open(&mut host, "room=s");
        let full = json!({"type": "error", "error": "the room is full"});
        assert_eq!(replied(&eve.text(r#"{"type":"join","room":"r"}"#)), full);
        assert_eq!(replied(&eve.text(r#"{"type":"who"}"#))["room"], "s");

        let renamed = replied(&ada.text(r#"{"type":"join","name":"ada"}"#));
        assert_eq!(
            (&renamed["room"], &renamed["present"]),
            (&json!("r"), &json!(2))
        );
        bob.end(&report());
        assert_eq!(
            replied(&eve.text(r#"{"type":"join","room":"r"}"#))["present"],
            2
        );
    }

    #[test]
    fn sessions_of_an_instance_that_died_leave_after_two_minutes() {
        let mut host = start(json!({"room_limit": 2}));
        let mut ada = open(&mut host, "");
        drop(open(&mut host, ""));
        assert_eq!(host.open(at("")).unwrap_err().status, 503);
        for _ in 0..4 {
            testing::advance(Duration::from_millis(ada.tick_interval_ms.into()));
            assert_eq!(ada.tick(), Verdict::Ignore);
        }
        assert_eq!(replied(&open(&mut host, "").greeting)["present"], 2);
    }

    #[test]
    fn what_cannot_be_understood_is_answered_with_a_short_error() {
        let mut host = start(json!({"max_text_bytes": 3}));
        let mut ada = open(&mut host, "");
        let mut check = |text: &str, expected: &str| {
            let answer = replied(&ada.text(text));
            let error = answer["error"].as_str().unwrap();
            assert!(error.starts_with(expected) && error.len() <= 256, "{error}");
        };
        check("four", "text: 4 bytes are not allowed: 1 to 3");
        check("", "text: 0 bytes are not allowed: 1 to 3");
        check("{", "EOF while parsing");
        check("{}", "missing field `type`");
        check(r#"{"type":"say"}"#, "missing field `text`");
        check(r#"{"type":"say","text":5}"#, "invalid type: integer `5`");
        check(
            r#"{"type":"join","room":"a\u0000"}"#,
            r#"room: "a\0" is not"#,
        );
        check(r#"{"type":"join","name":""}"#, "name: 0 characters");
        check(
            r#"{"type":"say","text":"a","text":"a"}"#,
            "duplicate field `text`",
        );
        check(r#"{"type":"who","type":"who"}"#, "duplicate field `type`");
        let long = "ä".repeat(1000);
        check(&format!(r#"{{"type":"{long}"}}"#), "unknown variant");
        check(
            &format!(r#"{{"type":"join","room":"{long}"}}"#),
            "room: 1000 characters",
        );
        // Longer than any request, whatever it is.
        let n_bytes = 6 * 3 + 4096;
        check(&"{".repeat(n_bytes), "key must be a string");
        for text in ["{", " ", "\"k\":1,", "a"] {
            let text = text.repeat(n_bytes + 1);
            let expected = format!(
                "message: {} bytes are not allowed: {n_bytes} at most",
                text.len()
            );
            check(&text, &expected);
        }
        assert_eq!(received(&ada), [] as [Value; 0]);

        for query in ["room=%00", "name=%7F", &format!("room={}", "a".repeat(65))] {
            assert_eq!(host.open(at(query)).unwrap_err().status, 400);
        }
    }
}
