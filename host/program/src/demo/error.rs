//! Why the demo can fail, in words for the person who runs it.

use std::path::PathBuf;
use std::{fmt, io};

use pointsman_admin::status::FetchError;
use pointsman_config::Problem;
use tokio_tungstenite::tungstenite::Error as WsError;

use super::STEP_DEADLINE;
use super::client::Tally;
use crate::server::StartError;

/// Why the demo did not end as it should.
#[derive(Debug)]
pub enum DemoError {
    /// The binary does not carry this plugin: build it with `cargo xtask build`.
    NoPlugin(&'static str),
    /// Something in the temporary folder cannot be written.
    Folder(PathBuf, io::Error),
    /// A backend cannot listen.
    Backend(io::Error),
    /// The demo's own configuration is refused.
    Config(Vec<Problem>),
    /// The balancer did not start.
    Start(StartError),
    /// The balancer does not know where it listens.
    NoAddress,
    /// The balancer does not tell its status.
    Status(FetchError),
    /// A connection through the balancer failed.
    Connection(Box<WsError>),
    /// The header that names the backend did not come through.
    NoName,
    /// A connection went to another backend than the policy says.
    Misplaced {
        /// By the policy.
        expected: char,
        /// In fact.
        found: char,
    },
    /// The plugin put in the place of the policy is not taken.
    Refused(String),
    /// Sockets were closed, or messages lost.
    Disturbed(Tally),
    /// This was not done in time.
    TooSlow(&'static str),
    /// A signal came before the end.
    Interrupted,
    /// Signals cannot be waited for.
    Signal(io::Error),
    /// Nobody reads what is shown.
    Print(io::Error),
}

impl From<WsError> for DemoError {
    fn from(error: WsError) -> Self {
        Self::Connection(Box::new(error))
    }
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlugin(name) => write!(
                f,
                "this binary carries no plugin {name}: build it with `cargo xtask build`"
            ),
            Self::Folder(path, _) => write!(f, "cannot write {}", path.display()),
            Self::Backend(_) => f.write_str("a backend cannot listen"),
            Self::Config(problems) => {
                f.write_str("the demo's configuration is refused")?;
                problems
                    .iter()
                    .try_for_each(|problem| write!(f, "\n{problem}"))
            }
            Self::Start(_) => f.write_str("the balancer did not start"),
            Self::NoAddress => f.write_str("the balancer does not know where it listens"),
            Self::Status(_) => f.write_str("the balancer does not tell its status"),
            Self::Connection(_) => f.write_str("a connection through the balancer failed"),
            Self::NoName => f.write_str("the balancer's answer names no backend in X-Backend"),
            Self::Misplaced { expected, found } => write!(
                f,
                "a connection went to backend {found} where the policy says {expected}"
            ),
            Self::Refused(error) => write!(f, "the balancer does not take the new policy: {error}"),
            Self::Disturbed(tally) => write!(f, "of {} sockets {tally}", tally.sockets),
            Self::TooSlow(what) => {
                write!(
                    f,
                    "{what} did not come within {} s",
                    STEP_DEADLINE.as_secs()
                )
            }
            Self::Interrupted => f.write_str("interrupted before the end"),
            Self::Signal(_) => f.write_str("cannot wait for signals"),
            Self::Print(_) => f.write_str("cannot write to stdout"),
        }
    }
}

impl std::error::Error for DemoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Folder(_, error)
            | Self::Backend(error)
            | Self::Signal(error)
            | Self::Print(error) => Some(error),
            Self::Start(error) => Some(error),
            Self::Status(error) => Some(error),
            Self::Connection(error) => Some(error),
            Self::NoPlugin(_)
            | Self::Config(_)
            | Self::NoAddress
            | Self::NoName
            | Self::Misplaced { .. }
            | Self::Refused(_)
            | Self::Disturbed(_)
            | Self::TooSlow(_)
            | Self::Interrupted => None,
        }
    }
}
