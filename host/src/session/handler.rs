//! What the far end of a handled WebSocket is, whoever wrote it: messages in, verdicts out.
//!
//! Owns the [`Handler`] and [`HandlerSession`] traits. They know no sockets and no wasm.

use std::fmt;
use std::net::IpAddr;

use bytes::Bytes;

use super::outbox::Outbox;
use super::{EndReport, Ender, SessionId};
use crate::config::{PluginName, QueueSettings};
use crate::routing::policy::Refusal;

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
    fn interest(&self) -> Interest;

    /// The 101 is out.
    ///
    /// # Errors
    /// This and the next three: the handler failed and the session is closed with 1011.
    fn opened(&mut self) -> Result<Verdict, PluginError>;

    /// A whole data message has come.
    ///
    /// # Errors
    /// See [`HandlerSession::opened`].
    fn message(&mut self, message: Received<'_>) -> Result<Verdict, PluginError>;

    /// [`Interest::tick_interval_ms`] has passed.
    ///
    /// # Errors
    /// See [`HandlerSession::opened`].
    fn tick(&mut self) -> Result<Verdict, PluginError>;

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
pub struct Interest {
    /// Text messages.
    pub text: bool,
    /// Binary messages.
    pub binary: bool,
    /// 0: no ticks.
    pub tick_interval_ms: u32,
}

impl Interest {
    /// Wants to see nothing.
    pub const NONE: Self = Self {
        text: false,
        binary: false,
        tick_interval_ms: 0,
    };
}

/// A whole data message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Text or binary.
    pub kind: MessageKind,
    /// Valid UTF-8 where the kind is text.
    pub payload: Bytes,
}

/// A whole data message, where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received<'a> {
    /// Opcode 1.
    Text(&'a str),
    /// Opcode 2.
    Binary(&'a [u8]),
}

impl Received<'_> {
    /// The payload's length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// No payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Message {
    /// None: it says that it is text, and is no UTF-8.
    pub fn as_received(&self) -> Option<Received<'_>> {
        match self.kind {
            MessageKind::Binary => Some(Received::Binary(&self.payload)),
            MessageKind::Text => std::str::from_utf8(&self.payload).ok().map(Received::Text),
        }
    }
}

/// The two kinds of data messages (RFC 6455 section 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// Opcode 1.
    Text,
    /// Opcode 2.
    Binary,
}

/// What a handler says about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is sent.
    Ignore,
    /// The message goes back unchanged.
    Echo,
    /// These go to the client.
    Reply(Vec<Message>),
    /// The session ends.
    Close(CloseReason),
}

/// A close code that may go on the wire, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// See RFC 6455 section 7.4.
    pub code: u16,
    /// At most 123 bytes.
    pub reason: String,
}

impl CloseReason {
    /// For the sessions of an instance that is dead, or that misbehaved.
    pub fn plugin_failed() -> Self {
        Self {
            code: 1011,
            reason: "plugin failed".to_owned(),
        }
    }
}

/// A handler or filter could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginError {
    /// For people.
    pub message: String,
    /// The call that failed, where it was one that was made for this very client.
    pub call: Option<Box<FailedCall>>,
}

/// A call that was made for one client, and failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedCall {
    /// Of which plugin.
    pub plugin: PluginName,
    /// That plugin's.
    pub generation: u64,
    /// As in the plugin contract: `message`, ...
    pub call: &'static str,
    /// For which session.
    pub session: SessionId,
    /// Whose that is: [`Facts::client_ip`].
    pub client: IpAddr,
    /// Whether the client's request, message or close was what the call was about. A tick is the clock's doing, and a
    /// filter sees a backend's messages, too.
    pub is_clients_doing: bool,
    /// Other sessions that ended with the plugin's instance; none: the instance lives on.
    pub n_lost: Option<usize>,
}

impl FailedCall {
    /// What it ended: `session`, or the whole `instance`.
    pub fn scope(&self) -> &'static str {
        match self.n_lost {
            None => "session",
            Some(_) => "instance",
        }
    }
}

impl PluginError {
    /// One that is nobody's call.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            call: None,
        }
    }

    /// For a session whose instance went down in a call for another one.
    pub fn instance_lost(plugin: &PluginName) -> Self {
        Self::new(format!("plugin instance lost: {plugin}"))
    }

    /// What ended a session, for its line in the access log.
    pub fn reason(&self) -> String {
        match &self.call {
            Some(call) => format!("plugin call failed: {}: {self}", call.plugin),
            None => self.message.clone(),
        }
    }

    /// The same; but the client has not caused it.
    pub fn not_the_clients_doing(mut self) -> Self {
        if let Some(call) = &mut self.call {
            call.is_clients_doing = false;
        }
        self
    }

    /// The same, of a call that told the plugin that a session is over: who ended it has caused it.
    pub fn at_the_end(self, report: &EndReport) -> Self {
        match report.ended_by {
            Ender::Client => self,
            Ender::Backend | Ender::Plugin | Ender::Operator | Ender::Host => {
                self.not_the_clients_doing()
            }
        }
    }
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PluginError {}
