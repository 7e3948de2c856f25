//! What the far end of a handled WebSocket is, whoever wrote it: messages in, verdicts out.
//!
//! Owns the [`Handler`] and [`HandlerSession`] traits. They know no sockets and no wasm.

use std::fmt;
use std::net::IpAddr;

use crate::failure::PluginError;
use crate::message::{CloseReason, Message, Received};
use crate::outbox::{Outbox, QueueSettings};
use crate::policy::Refusal;
use crate::session::{EndReport, SessionId};

/// Makes sessions. One per plugin generation and worker.
pub trait Handler: fmt::Debug {
    /// Lower-case names of the headers that [`Facts::headers`] is to hold.
    fn wanted_headers(&self) -> Vec<String>;

    /// The longest message that it has room for.
    fn max_message_bytes(&self) -> u64;

    /// Decides about an upgrade before the 101: the subprotocol to answer with, or a refusal.
    ///
    /// # Errors
    /// The handler failed: the client gets a 500.
    fn accept(&self, facts: &Facts) -> Result<Result<Option<String>, Refusal>, PluginError>;

    /// For the outbox of each session.
    fn queue(&self) -> QueueSettings;

    /// Begins a session. `outbox` takes what the handler sends other than by verdict.
    ///
    /// # Errors
    /// The handler failed: the session is closed with 1011.
    fn open(&self, facts: &Facts, outbox: Outbox) -> Result<Box<dyn HandlerSession>, PluginError>;
}

/// One open session of a handler. Dropping it without [`HandlerSession::closed`] frees it silently.
pub trait HandlerSession: fmt::Debug {
    /// What the session wants to see.
    fn interest(&self) -> HandlerInterest;

    /// The 101 is out.
    ///
    /// # Errors
    /// This and the next three: the handler failed and the session is closed with 1011.
    fn opened(&mut self) -> Result<HandlerVerdict, PluginError>;

    /// A whole data message has come.
    ///
    /// # Errors
    /// See [`HandlerSession::opened`].
    fn message(&mut self, message: Received<'_>) -> Result<HandlerVerdict, PluginError>;

    /// [`HandlerInterest::tick_interval_ms`] has passed.
    ///
    /// # Errors
    /// See [`HandlerSession::opened`].
    fn tick(&mut self) -> Result<HandlerVerdict, PluginError>;

    /// The session is over.
    ///
    /// # Errors
    /// See [`HandlerSession::opened`].
    fn closed(self: Box<Self>, report: &EndReport) -> Result<(), PluginError>;
}

/// What a session's request was.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Unique in this process.
    pub session: SessionId,
    /// The route's path pattern.
    pub route: String,
    /// The client, behind trusted proxies the one they vouch for.
    pub client_ip: IpAddr,
    /// Whether a call for this client has failed lately: then its sessions are kept apart from those of others.
    pub is_suspect: bool,
    /// In lower case, without port.
    pub host: String,
    /// Path and query, as received.
    pub path: String,
    /// The value of `X-Request-Id`.
    pub request_id: String,
    /// Longest message, either way.
    pub max_message_bytes: u64,
    /// In the client's order.
    pub offered_subprotocols: Vec<String>,
    /// What the client was answered with; none before that is known.
    pub subprotocol: Option<String>,
    /// Those that [`Handler::wanted_headers`] names; names in lower case.
    pub headers: Vec<(String, String)>,
}

/// What a session wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandlerInterest {
    /// Text messages.
    pub text: bool,
    /// Binary messages.
    pub binary: bool,
    /// 0: no ticks.
    pub tick_interval_ms: u32,
}

impl HandlerInterest {
    /// Wants to see nothing.
    pub const NONE: Self = Self {
        text: false,
        binary: false,
        tick_interval_ms: 0,
    };
}

/// What a handler says about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerVerdict {
    /// Nothing is sent.
    Ignore,
    /// The message goes back unchanged.
    Echo,
    /// These go to the client.
    Reply(Vec<Message>),
    /// The session ends.
    Close(CloseReason),
}
