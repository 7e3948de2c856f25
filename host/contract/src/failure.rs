//! What goes wrong at a plugin.

use std::fmt;
use std::net::IpAddr;

use crate::names::PluginName;
use crate::session::{EndReport, Ender, SessionId};

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
    /// Whose that is: [`client_ip`](crate::handler::Facts::client_ip).
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
