//! Handler `echo`: sends every message back, text and binary.

use pointsman_sdk::{
    Facts, Message, NoConfig,
    handler::{Handler, HandlerSession, Verdict},
};

/// Has nothing to remember.
#[derive(Debug)]
pub struct Echo;

/// Neither has a session.
#[derive(Debug)]
pub struct EchoSession;

impl Handler for Echo {
    type Config = NoConfig;
    type Session = EchoSession;

    fn configure(_config: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn open(&mut self, _facts: Facts) -> EchoSession {
        EchoSession
    }
}

impl HandlerSession for EchoSession {
    fn message(&mut self, _message: Message) -> Verdict {
        Verdict::Echo
    }
}

pointsman_sdk::export!(Echo: handler);

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{HandlerHost, facts};
    use serde_json::json;

    use super::*;

    #[test]
    fn text_and_binary_come_back() {
        let mut host = HandlerHost::<Echo>::start(json!({})).unwrap();
        let mut session = host.open(facts()).unwrap();
        assert_eq!(session.greeting, Verdict::Ignore);
        assert_eq!(session.text("hi"), Verdict::Echo);
        assert_eq!(session.binary(&[0, 255]), Verdict::Echo);
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = HandlerHost::<Echo>::start(json!({"loud": true}));
        assert!(refused.unwrap_err().contains("`loud`"));
    }
}
