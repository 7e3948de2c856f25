//! The calls of the contract, by name.

use std::fmt;

/// What the host calls a guest for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// An instance is made.
    Instantiate,
    /// `configure`
    Configure,
    /// `backends-changed`
    BackendsChanged,
    /// `choose`
    Choose,
    /// `placed`
    Placed,
    /// `session-ended`
    SessionEnded,
    /// `accept`
    Accept,
    /// The constructor of a session, `interest` and `tick-interval-ms`.
    Open,
    /// `opened`
    Opened,
    /// `message`
    Message,
    /// `tick`
    Tick,
    /// `closed` and the destructor of a session.
    Closed,
    /// `version` and `save`
    Save,
    /// `restore`
    Restore,
    /// `wasi:http/incoming-handler`
    Http,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Instantiate,
        Self::Configure,
        Self::BackendsChanged,
        Self::Choose,
        Self::Placed,
        Self::SessionEnded,
        Self::Accept,
        Self::Open,
        Self::Opened,
        Self::Message,
        Self::Tick,
        Self::Closed,
        Self::Save,
        Self::Restore,
        Self::Http,
    ];

    /// Whether a client is at its other end: then there is one who can be named if it fails, and whose
    /// session alone may end.
    pub(super) fn is_for_a_session(self) -> bool {
        match self {
            Self::Accept
            | Self::Open
            | Self::Opened
            | Self::Message
            | Self::Tick
            | Self::Closed => true,
            Self::Instantiate
            | Self::Configure
            | Self::BackendsChanged
            | Self::Choose
            | Self::Placed
            | Self::SessionEnded
            | Self::Save
            | Self::Restore
            | Self::Http => false,
        }
    }

    /// As in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Instantiate => "instantiate",
            Self::Configure => "configure",
            Self::BackendsChanged => "backends-changed",
            Self::Choose => "choose",
            Self::Placed => "placed",
            Self::SessionEnded => "session-ended",
            Self::Accept => "accept",
            Self::Open => "open",
            Self::Opened => "opened",
            Self::Message => "message",
            Self::Tick => "tick",
            Self::Closed => "closed",
            Self::Save => "save",
            Self::Restore => "restore",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
