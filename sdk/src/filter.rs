//! Filters: between a client and a backend, with a say on every message.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error},
};

pub use crate::bindings::exports::pointsman::plugin::filter::{
    Admission, Direction, Interest, Verdict, Wants,
};
use crate::{Facts, Message, Refusal, Report};

/// Opens sessions. See [`Handler`](crate::handler::Handler), which is built alike.
///
/// ```
/// use pointsman_sdk::{Close, Facts, Message, close, filter::{Direction, Filter, FilterSession, Verdict}};
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Limit { max_bytes: usize }
///
/// impl Filter for Limit {
///     type Config = Limit;
///     type Session = Limit;
///     fn configure(config: Limit) -> Result<Self, String> { Ok(config) }
///     fn open(&mut self, _facts: Facts) -> Limit { Limit { max_bytes: self.max_bytes } }
/// }
///
/// impl FilterSession for Limit {
///     fn message(&mut self, _from: Direction, message: Message) -> Verdict {
///         if message.len() > self.max_bytes {
///             return Verdict::Close(Close::new(close::MESSAGE_TOO_BIG, "too long"));
///         }
///         Verdict::Forward
///     }
/// }
/// pointsman_sdk::export!(Limit: filter);
///
/// use pointsman_sdk::testing::{FilterHost, facts};
/// let mut host = FilterHost::<Limit>::start(serde_json::json!({ "max_bytes": 3 }))?;
/// let mut session = host.open(facts()).expect("not refused");
/// assert_eq!(session.from_client(Message::text("abc")), Verdict::Forward);
/// assert_ne!(session.from_backend(Message::text("abcd")), Verdict::Forward);
/// # Ok::<(), String>(())
/// ```
pub trait Filter: Sized + 'static {
    /// The operator's `[plugin.NAME] config`; see [`Policy::Config`](crate::policy::Policy::Config).
    type Config: DeserializeOwned;

    /// One session between a client and a backend.
    type Session: FilterSession;

    /// Called once, first.
    ///
    /// # Errors
    ///
    /// The text is for the operator: which key is wrong, and what is allowed. It refuses the plugin.
    fn configure(config: Self::Config) -> Result<Self, String>;

    /// What the host hands over; asked once, after `configure`. Nothing, unless this says otherwise.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// Called before the backend is dialled, if [`Wants::accept`]: what changes in its request. That is
    /// an upgrade or a plain HTTP request of the route; of the latter comes no session.
    ///
    /// # Errors
    ///
    /// The client gets the refusal as an HTTP answer, and there is no session.
    fn accept(&mut self, _facts: &Facts) -> Result<Admission, Refusal> {
        Ok(Admission::default())
    }

    /// A session begins.
    fn open(&mut self, facts: Facts) -> Self::Session;
}

/// One session between a client and a backend.
pub trait FilterSession: 'static {
    /// The messages that this session wants to see; the others pass without a call. Asked once.
    fn interest(&self) -> Interest {
        Interest::all()
    }

    /// How often [`tick`](Self::tick) is wanted, in milliseconds; 0: never. Asked once.
    fn tick_interval_ms(&self) -> u32 {
        0
    }

    /// A whole message, and where it comes from.
    fn message(&mut self, from: Direction, message: Message) -> Verdict;

    /// The interval of `tick_interval_ms` has passed. `Forward` and `Drop` do nothing; `Answer` goes
    /// to the client.
    fn tick(&mut self) -> Verdict {
        Verdict::Drop
    }

    /// The session has ended; nothing is called after this.
    fn closed(&mut self, _report: &Report) {}
}

/// Which way the messages go that a filter looks at: what `directions` in an operator's configuration
/// says.
///
/// ```
/// use pointsman_sdk::filter::{Directions, Interest};
///
/// let directions: Directions = serde_json::from_str("\"from_backend\"")?;
/// assert_eq!(directions.interest(), Interest::BACKEND_TEXT | Interest::BACKEND_BINARY);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directions {
    /// `"from_client"`
    FromClient,
    /// `"from_backend"`
    FromBackend,
    /// `"both"`
    Both,
}

impl Directions {
    /// All messages of these directions, text and binary.
    pub fn interest(self) -> Interest {
        match self {
            Self::FromClient => Interest::CLIENT_TEXT | Interest::CLIENT_BINARY,
            Self::FromBackend => Interest::BACKEND_TEXT | Interest::BACKEND_BINARY,
            Self::Both => Interest::all(),
        }
    }
}

/// By hand for the reason that [`KeyKind`](crate::policy::KeyKind) is.
impl<'de> Deserialize<'de> for Directions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "from_client" => Ok(Self::FromClient),
            "from_backend" => Ok(Self::FromBackend),
            "both" => Ok(Self::Both),
            other => Err(D::Error::custom(format_args!(
                "directions: {other:?} is not allowed: one of \"from_client\", \"from_backend\", \"both\""
            ))),
        }
    }
}
