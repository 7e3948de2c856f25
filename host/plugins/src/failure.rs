//! What can go wrong in a call of a guest, and how the control plane hears of it.
//!
//! In comes wasmtime's error; out goes a [`CallError`] that names one of four kinds.

use std::fmt;
use std::time::Duration;

use pointsman_contract::names::PluginName;
use wasmtime::Trap;

use super::call::Call;
use super::limits::Limits;

/// The longest text of a trap that is kept.
const TEXT_MAX_BYTES: usize = 512;

/// A guest did not answer. But for [`CallError::Refused`], [`CallError::Output`] and a call for a
/// session that came back late, its instance is dead: make another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// It ran past its time.
    Timeout {
        /// Which call.
        call: Call,
        /// What it had.
        timeout: Duration,
    },
    /// An HTTP handler was silent for too long.
    Silent {
        /// What did not come.
        what: &'static str,
        /// What it had.
        timeout: Duration,
    },
    /// It was refused memory and gave up.
    Memory {
        /// Which call.
        call: Call,
        /// What it may have.
        max_bytes: usize,
    },
    /// It trapped, panicked, exited or would have waited.
    Trap {
        /// Which call.
        call: Call,
        /// Wasmtime's words.
        cause: String,
    },
    /// It returned too much, or what the contract does not allow.
    Output {
        /// Which call.
        call: Call,
        /// What is wrong with it.
        what: String,
    },
    /// `configure` or `restore` said no, and the operator has to read the reason; or an HTTP handler
    /// answered with an error code, or its client did not send its body. Nothing is broken.
    Refused {
        /// Which call.
        call: Call,
        /// The guest's words.
        reason: String,
    },
    /// The instance has failed before. Nothing was called and nothing is counted.
    Dead,
    /// So many instances have failed that none is made for a while. Nothing was called.
    Resting,
}

impl CallError {
    /// For metrics: `timeout`, `memory`, `trap`, `output`, `refused`, `dead` or `resting`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout { .. } | Self::Silent { .. } => "timeout",
            Self::Memory { .. } => "memory",
            Self::Trap { .. } => "trap",
            Self::Output { .. } => "output",
            Self::Refused { .. } => "refused",
            Self::Dead => "dead",
            Self::Resting => "resting",
        }
    }

    /// Whether a call was made, and did not do what it should: what counts as a failure.
    pub(super) fn is_the_guests(&self) -> bool {
        match self {
            Self::Timeout { .. }
            | Self::Silent { .. }
            | Self::Memory { .. }
            | Self::Trap { .. }
            | Self::Output { .. } => true,
            Self::Refused { .. } | Self::Dead | Self::Resting => false,
        }
    }

    /// Whose fault it is that a call failed. `was_refused_memory`: since the call began.
    pub(super) fn classify(
        call: Call,
        error: &wasmtime::Error,
        limits: &Limits,
        was_refused_memory: bool,
    ) -> Self {
        if matches!(error.downcast_ref::<Trap>(), Some(Trap::Interrupt)) {
            let timeout = limits.call_timeout;
            return Self::Timeout { call, timeout };
        }
        if was_refused_memory {
            let max_bytes = limits.memory_max_bytes;
            return Self::Memory { call, max_bytes };
        }
        let cause = error.root_cause().to_string();
        // The type of this error is private to wasmtime; a test holds its words still.
        if cause.contains("hostcalls has been exhausted") {
            let what = format!("more than {} bytes", limits.output_max_bytes());
            return Self::Output { call, what };
        }
        // Neither does this one say how many there were.
        if cause.contains("resource table has no free keys") {
            let max = limits.http.max_resources;
            let cause = format!("it holds more than {max} resources (http_max_resources)");
            return Self::Trap { call, cause };
        }
        Self::Trap {
            call,
            cause: cut(cause),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { call, timeout } => {
                write!(f, "`{call}` ran longer than {} ms", timeout.as_millis())
            }
            Self::Silent { what, timeout } => {
                write!(
                    f,
                    "`{}` sent {what} within {} ms",
                    Call::Http,
                    timeout.as_millis()
                )
            }
            Self::Memory { call, max_bytes } => {
                write!(f, "`{call}` wanted more memory than {max_bytes} bytes")
            }
            Self::Trap { call, cause } => write!(f, "`{call}` trapped: {cause}"),
            Self::Output { call, what } => write!(f, "`{call}` returned {what}"),
            Self::Refused { call, reason } => write!(f, "`{call}` refused: {reason}"),
            Self::Dead => f.write_str("the instance has failed before"),
            Self::Resting => f.write_str("it has failed so often that it rests for a while"),
        }
    }
}

impl std::error::Error for CallError {}

/// Tells the control plane that a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whose call.
    pub plugin: PluginName,
    /// Which generation.
    pub generation: u64,
    /// On which worker.
    pub worker: usize,
    /// Why.
    pub error: CallError,
}

/// Shortens a guest's text at a character.
pub(super) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
    text
}
