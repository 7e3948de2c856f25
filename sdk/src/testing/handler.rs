//! Runs a handler.

use serde_json::Value;

use crate::{
    Facts, Message, Refusal, Report, State, config,
    handler::{Handler, HandlerSession, Interest, Verdict, Wants},
    testing::{keep_wanted, world},
};

/// A handler.
#[derive(Debug)]
pub struct HandlerHost<H> {
    handler: H,
    wants: Wants,
}

impl<H: Handler> HandlerHost<H> {
    /// Empties the world and loads the handler, as the host would.
    ///
    /// # Errors
    ///
    /// The handler refuses the configuration.
    pub fn start(config: Value) -> Result<Self, String> {
        world::restart(world::Kind::Sessions);
        Self::load(config)
    }

    fn load(config: Value) -> Result<Self, String> {
        let handler = H::configure(config::read(&config.to_string())?)?;
        Ok(Self {
            wants: handler.wants(),
            handler,
        })
    }

    /// A client connects; `accept` is asked if the handler wants that.
    ///
    /// # Errors
    ///
    /// The handler refuses.
    ///
    /// # Panics
    ///
    /// The handler accepts with a subprotocol that the client did not offer.
    #[track_caller]
    pub fn open(&mut self, mut facts: Facts) -> Result<OpenHandlerSession<H::Session>, Refusal> {
        keep_wanted(&mut facts.headers, &self.wants.headers);
        facts.session = world::with(|world| world.open_session());
        let id = facts.session;
        let mut subprotocol = None;
        if self.wants.accept {
            subprotocol = self.handler.accept(&facts)?;
        }
        if let Some(chosen) = &subprotocol {
            assert!(
                facts.offered_subprotocols.contains(chosen),
                "the client did not offer subprotocol `{chosen}`"
            );
        }
        facts.subprotocol.clone_from(&subprotocol);
        let mut session = self.handler.open(facts);
        let interest = session.interest();
        let tick_interval_ms = session.tick_interval_ms();
        let greeting = session.opened();
        Ok(OpenHandlerSession {
            session,
            interest,
            id,
            subprotocol,
            tick_interval_ms,
            greeting,
        })
    }

    /// The handler itself.
    pub fn handler(&mut self) -> &mut H {
        &mut self.handler
    }
}

impl<H: Handler + State> HandlerHost<H> {
    /// Loads `New` in the handler's place, with its state, as a new version of the plugin. Open sessions
    /// stay with the handler that opened them.
    ///
    /// # Errors
    ///
    /// The new handler refuses the configuration or the state.
    pub fn swap<New: Handler + State>(self, config: Value) -> Result<HandlerHost<New>, String> {
        let mut host = HandlerHost::<New>::load(config)?;
        host.handler.restore(&self.handler.save(), H::VERSION)?;
        Ok(host)
    }
}

/// One open session.
#[derive(Debug)]
pub struct OpenHandlerSession<S> {
    session: S,
    interest: Interest,
    /// Its `Facts::session`.
    pub id: u64,
    /// What `accept` chose.
    pub subprotocol: Option<String>,
    /// How often the session wants a tick; 0: never.
    pub tick_interval_ms: u32,
    /// What `opened` said.
    pub greeting: Verdict,
}

impl<S: HandlerSession> OpenHandlerSession<S> {
    /// The client sends a text message. `Ignore` if the session is not interested.
    pub fn text(&mut self, text: &str) -> Verdict {
        self.message(Message::text(text))
    }

    /// The client sends a binary message. `Ignore` if the session is not interested.
    pub fn binary(&mut self, bytes: &[u8]) -> Verdict {
        self.message(Message::binary(bytes))
    }

    fn message(&mut self, message: Message) -> Verdict {
        let kind = match message {
            Message::Text(_) => Interest::TEXT,
            Message::Binary(_) => Interest::BINARY,
        };
        if !self.interest.contains(kind) {
            return Verdict::Ignore;
        }
        self.session.message(message)
    }

    /// The interval has passed.
    pub fn tick(&mut self) -> Verdict {
        self.session.tick()
    }

    /// The session ends.
    pub fn end(mut self, report: &Report) {
        world::with(|world| world.end_session(self.id));
        self.session.closed(report);
    }

    /// The session itself.
    pub fn session(&mut self) -> &mut S {
        &mut self.session
    }
}
