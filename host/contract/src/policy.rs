//! What a routing policy is, whoever wrote it: (a request's facts, the backends) -> a decision.
//!
//! Owns the [`Policy`] trait and the values that go in and come out. A policy knows no clock, no
//! randomness and no I/O: all three are handed in. It never learns of sockets or of wasm.

use std::fmt;
use std::net::IpAddr;

use http::HeaderMap;

use crate::session::EndReport;

/// Chooses a backend for a session or a plain HTTP request. One per upstream and worker.
pub trait Policy: fmt::Debug {
    /// What this policy has to be handed, and which calls it wants.
    fn wants(&self) -> &PolicyWants;

    /// The backends that may be chosen from now on; never empty.
    ///
    /// # Errors
    /// The policy failed; the caller uses its fallback and makes a new policy for the next choice.
    fn backends_changed(&mut self, backends: &[Candidate]) -> Result<(), PolicyError>;

    /// Decides about one request. Backends are named by their place in the last
    /// [`Policy::backends_changed`].
    ///
    /// # Errors
    /// As [`Policy::backends_changed`].
    fn choose(&mut self, request: &ChoiceRequest<'_>) -> Result<Decision, PolicyError>;

    /// The backend has accepted: headers to add to the client's answer. Called if `wants().placed`.
    ///
    /// # Errors
    /// As [`Policy::backends_changed`].
    fn placed(
        &mut self,
        request: &ChoiceRequest<'_>,
        backend: u32,
    ) -> Result<Vec<(String, String)>, PolicyError>;

    /// A session that this policy placed has ended. Called if `wants().session_ended`.
    ///
    /// # Errors
    /// As [`Policy::backends_changed`].
    fn session_ended(&mut self, backend: &str, report: &EndReport) -> Result<(), PolicyError>;
}

/// What a policy asks for; what it does not ask for costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyWants {
    /// Lower-case names of headers.
    pub headers: Vec<String>,
    /// Fill [`ChoiceRequest::figures`].
    pub figures: bool,
    /// Call [`Policy::placed`].
    pub placed: bool,
    /// Call [`Policy::session_ended`].
    pub session_ended: bool,
}

/// One backend that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// As configured.
    pub address: String,
    /// 1 to 1000.
    pub weight: u32,
    /// As configured, ordered by key.
    pub labels: Vec<(String, String)>,
}

/// What is known of one backend at this moment, over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Open sessions and plain HTTP requests under way.
    pub active: u32,
    /// Dials and handshakes under way.
    pub pending: u32,
    /// Failed dials and handshakes in the last 10 s.
    pub recent_failures: u32,
    /// Moving average of the time to the backend's answer, in microseconds; 0: not known.
    pub latency_us: u32,
}

/// One request that needs a backend.
#[derive(Debug)]
pub struct ChoiceRequest<'a> {
    /// Numbers the upstream's choices over all workers, without gaps.
    pub sequence: u64,
    /// Made for this choice.
    pub random: u64,
    /// Since the Unix epoch, in milliseconds.
    pub now_ms: u64,
    /// The client, behind trusted proxies the one they vouch for.
    pub client_ip: IpAddr,
    /// In lower case, without port.
    pub host: &'a str,
    /// Path and query, as received.
    pub path: &'a str,
    /// All of the request's headers; a policy is shown those of [`PolicyWants::headers`].
    pub headers: &'a HeaderMap,
    /// One per candidate; empty unless [`PolicyWants::figures`].
    pub figures: &'a [Figures],
}

/// What a policy decided. Backends are named by their place in the list of candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This one first, then any other.
    Prefer(u32),
    /// These in this order, no others but those that the policy was not shown where it names all. The request
    /// belongs to the first, by its key or cookie: what one may have seen does not go to the next.
    Ranked(Vec<u32>),
    /// Answer the client so.
    Refuse(Refusal),
    /// Send the client elsewhere: a status of the 300s and a location.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// The value of `Location`.
        location: String,
    },
}

/// An HTTP answer that a plugin gives in place of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 400 to 599.
    pub status: u16,
    /// Names in lower case; those that are no valid field, or that speak of the connection, are dropped.
    pub headers: Vec<(String, String)>,
    /// Sent as UTF-8 text.
    pub body: String,
}

/// A policy could not decide. The chooser falls back to the host's own round robin, and makes a
/// new policy before the next choice.
#[derive(Debug)]
pub struct PolicyError(pub String);

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PolicyError {}
