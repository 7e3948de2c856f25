//! What looks at the messages between a client and a backend, whoever wrote it.
//!
//! Owns the [`Filter`] and [`FilterSession`] traits. They know no sockets and no wasm.

use std::fmt;

use crate::failure::PluginError;
use crate::handler::Facts;
use crate::message::{CloseReason, Message, Received};
use crate::outbox::{Outbox, QueueSettings};
use crate::policy::Refusal;
use crate::session::EndReport;

/// Makes sessions. One per plugin generation and worker.
pub trait Filter: fmt::Debug {
    /// Lower-case names of the headers that [`Facts::headers`] is to hold.
    fn wanted_headers(&self) -> Vec<String>;

    /// The longest message that it has room for.
    fn max_message_bytes(&self) -> u64;

    /// For the outbox of each session.
    fn queue(&self) -> QueueSettings;

    /// Whether it wants to be asked by [`Filter::accept`].
    fn wants_accept(&self) -> bool;

    /// Decides about an upgrade, or a plain request, before a backend hears of it: what changes in
    /// its request, or a refusal. No session comes of a plain request.
    ///
    /// # Errors
    /// The filter failed.
    fn accept(&self, facts: &Facts) -> Result<Result<Admission, Refusal>, PluginError>;

    /// Begins a session. `outbox` takes what the filter sends other than by verdict.
    ///
    /// # Errors
    /// The filter failed.
    fn open(&self, facts: &Facts, outbox: Outbox) -> Result<Box<dyn FilterSession>, PluginError>;
}

/// One open session of a filter. Dropping it without [`FilterSession::closed`] frees it silently.
pub trait FilterSession: fmt::Debug {
    /// What the session wants to see.
    fn interest(&self) -> FilterInterest;

    /// A whole data message is under way.
    ///
    /// # Errors
    /// This and the next two: the filter failed, and sees no more of the session.
    fn message(
        &mut self,
        from: Direction,
        message: Received<'_>,
    ) -> Result<FilterVerdict, PluginError>;

    /// [`FilterInterest::tick_interval_ms`] has passed.
    ///
    /// # Errors
    /// See [`FilterSession::message`].
    fn tick(&mut self) -> Result<FilterVerdict, PluginError>;

    /// The session is over.
    ///
    /// # Errors
    /// See [`FilterSession::message`].
    fn closed(self: Box<Self>, report: &EndReport) -> Result<(), PluginError>;
}

/// What changes in the request that the backend gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Of the offered subprotocols, those that it does not get.
    pub hide_subprotocols: Vec<String>,
    /// In place of the client's fields of these names; nothing takes their place if the value cannot
    /// be sent.
    pub set_headers: Vec<(String, String)>,
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the backend.
    FromClient,
    /// To the client.
    FromBackend,
}

/// What a session wants to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FilterInterest {
    /// From the client.
    pub client: MessageKinds,
    /// From the backend.
    pub backend: MessageKinds,
    /// 0: no ticks.
    pub tick_interval_ms: u32,
}

/// Kinds of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MessageKinds {
    /// Opcode 1.
    pub text: bool,
    /// Opcode 2.
    pub binary: bool,
}

/// What a filter says about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterVerdict {
    /// It passes on unchanged.
    Forward,
    /// This passes on in its place.
    Replace(Message),
    /// Nothing passes on.
    Drop,
    /// Nothing passes on; these go back to where the message came from.
    Answer(Vec<Message>),
    /// The session ends, on both sides.
    Close(CloseReason),
}

impl FilterInterest {
    /// The kinds that are wanted of what goes this way.
    pub fn of(&self, from: Direction) -> MessageKinds {
        match from {
            Direction::FromClient => self.client,
            Direction::FromBackend => self.backend,
        }
    }
}

impl MessageKinds {
    /// Whether this message is of one of them.
    pub fn has(self, message: Received<'_>) -> bool {
        match message {
            Received::Text(_) => self.text,
            Received::Binary(_) => self.binary,
        }
    }
}
