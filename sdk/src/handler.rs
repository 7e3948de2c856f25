//! Handlers: the far end of a WebSocket.

use serde::de::DeserializeOwned;

pub use crate::bindings::exports::pointsman::plugin::handler::{Interest, Verdict, Wants};
use crate::{Facts, Message, Refusal, Report};

/// Opens sessions. What a session has to know of the configuration it is given by
/// [`open`](Handler::open); what sessions share is best kept in the [`store`](crate::store) and in
/// [`topics`](crate::topics), which reach the sessions on other workers too.
///
/// ```
/// use pointsman_sdk::{Facts, Message, NoConfig, handler::{Handler, HandlerSession, Verdict}};
///
/// struct Counting;
/// struct Count(u64);
///
/// impl Handler for Counting {
///     type Config = NoConfig;
///     type Session = Count;
///     fn configure(_: NoConfig) -> Result<Self, String> { Ok(Self) }
///     fn open(&mut self, _facts: Facts) -> Count { Count(0) }
/// }
///
/// impl HandlerSession for Count {
///     fn message(&mut self, _message: Message) -> Verdict {
///         self.0 += 1;
///         Verdict::Reply(Message::text(self.0.to_string()))
///     }
/// }
/// pointsman_sdk::export!(Counting: handler);
///
/// use pointsman_sdk::testing::{HandlerHost, facts};
/// let mut host = HandlerHost::<Counting>::start(serde_json::json!({}))?;
/// let mut session = host.open(facts()).expect("not refused");
/// session.text("one");
/// assert_eq!(session.text("two"), Verdict::Reply(Message::text("2")));
/// # Ok::<(), String>(())
/// ```
pub trait Handler: Sized + 'static {
    /// The operator's `[plugin.NAME] config`; see [`Policy::Config`](crate::policy::Policy::Config).
    type Config: DeserializeOwned;

    /// One open WebSocket.
    type Session: HandlerSession;

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

    /// Called before the upgrade is answered, if [`Wants::accept`]: the subprotocol to answer with,
    /// one of [`Facts::offered_subprotocols`] or none.
    ///
    /// # Errors
    ///
    /// The client gets the refusal as an HTTP answer, and there is no session.
    fn accept(&mut self, _facts: &Facts) -> Result<Option<String>, Refusal> {
        Ok(None)
    }

    /// A session begins.
    fn open(&mut self, facts: Facts) -> Self::Session;
}

/// One open WebSocket, from the upgrade to the close. Each call is about one message and returns
/// what to do; see [`Verdict`].
pub trait HandlerSession: 'static {
    /// The messages that this session wants to see; the others are read and dropped. Asked once.
    fn interest(&self) -> Interest {
        Interest::all()
    }

    /// How often [`tick`](Self::tick) is wanted, in milliseconds; 0: never. Asked once.
    fn tick_interval_ms(&self) -> u32 {
        0
    }

    /// The upgrade is answered: what to greet the client with. `Echo` does nothing here.
    fn opened(&mut self) -> Verdict {
        Verdict::Ignore
    }

    /// A whole message from the client.
    fn message(&mut self, message: Message) -> Verdict;

    /// The interval of `tick_interval_ms` has passed. `Echo` does nothing here.
    fn tick(&mut self) -> Verdict {
        Verdict::Ignore
    }

    /// The session has ended; nothing is called after this.
    fn closed(&mut self, _report: &Report) {}
}
