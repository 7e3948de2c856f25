//! Runs a filter.

use serde_json::Value;

use crate::{
    Facts, Message, Refusal, Report, State, config,
    filter::{Admission, Direction, Filter, FilterSession, Interest, Verdict, Wants},
    testing::{keep_wanted, world},
};

/// A filter.
#[derive(Debug)]
pub struct FilterHost<F> {
    filter: F,
    wants: Wants,
}

impl<F: Filter> FilterHost<F> {
    /// Empties the world and loads the filter, as the host would.
    ///
    /// # Errors
    ///
    /// The filter refuses the configuration.
    pub fn start(config: Value) -> Result<Self, String> {
        world::restart(world::Kind::Sessions);
        Self::load(config)
    }

    fn load(config: Value) -> Result<Self, String> {
        let filter = F::configure(config::read(&config.to_string())?)?;
        Ok(Self {
            wants: filter.wants(),
            filter,
        })
    }

    /// A client connects; `accept` is asked if the filter wants that.
    ///
    /// # Errors
    ///
    /// The filter refuses.
    pub fn open(&mut self, mut facts: Facts) -> Result<OpenFilterSession<F::Session>, Refusal> {
        keep_wanted(&mut facts.headers, &self.wants.headers);
        facts.session = world::with(|world| world.open_session());
        let id = facts.session;
        let admission = match self.wants.accept {
            true => self.filter.accept(&facts)?,
            false => Admission::default(),
        };
        let session = self.filter.open(facts);
        Ok(OpenFilterSession {
            interest: session.interest(),
            tick_interval_ms: session.tick_interval_ms(),
            session,
            id,
            admission,
        })
    }

    /// The filter itself.
    pub fn filter(&mut self) -> &mut F {
        &mut self.filter
    }
}

impl<F: Filter + State> FilterHost<F> {
    /// Loads `New` in the filter's place, with its state, as a new version of the plugin. Open sessions
    /// stay with the filter that opened them.
    ///
    /// # Errors
    ///
    /// The new filter refuses the configuration or the state.
    pub fn swap<New: Filter + State>(self, config: Value) -> Result<FilterHost<New>, String> {
        let mut host = FilterHost::<New>::load(config)?;
        host.filter.restore(&self.filter.save(), F::VERSION)?;
        Ok(host)
    }
}

/// One open session.
#[derive(Debug)]
pub struct OpenFilterSession<S> {
    session: S,
    interest: Interest,
    /// Its `Facts::session`.
    pub id: u64,
    /// How often the session wants a tick; 0: never.
    pub tick_interval_ms: u32,
    /// What `accept` said.
    pub admission: Admission,
}

impl<S: FilterSession> OpenFilterSession<S> {
    /// A message from the client. `Forward` if the session is not interested.
    pub fn from_client(&mut self, message: Message) -> Verdict {
        self.message(Direction::FromClient, message)
    }

    /// A message from the backend. `Forward` if the session is not interested.
    pub fn from_backend(&mut self, message: Message) -> Verdict {
        self.message(Direction::FromBackend, message)
    }

    fn message(&mut self, from: Direction, message: Message) -> Verdict {
        let kind = match (from, &message) {
            (Direction::FromClient, Message::Text(_)) => Interest::CLIENT_TEXT,
            (Direction::FromClient, Message::Binary(_)) => Interest::CLIENT_BINARY,
            (Direction::FromBackend, Message::Text(_)) => Interest::BACKEND_TEXT,
            (Direction::FromBackend, Message::Binary(_)) => Interest::BACKEND_BINARY,
        };
        if !self.interest.contains(kind) {
            return Verdict::Forward;
        }
        self.session.message(from, message)
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
