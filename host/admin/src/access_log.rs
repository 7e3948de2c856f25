//! One line of JSON per thing that happened, for machines to read.
//!
//! In come facts from the workers; out go lines, to a [`LogWriter`] that nobody waits for. Queries of paths are
//! never written, for tokens live there. `docs/access-log.md` describes the keys.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::format_rfc3339_millis;
use pointsman_contract::session::{EndReport, Ender};
use pointsman_log::writer::LogWriter;
use serde::Serialize;

/// What workers log by. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog(LogWriter);

/// Whom and what a session is between. What is not there is left out of the line.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// As in `X-Request-Id`.
    pub request_id: &'a str,
    /// The peer of the TCP connection.
    pub client: SocketAddr,
    /// The client that the chain of trusted proxies vouches for; without one, the peer.
    pub client_ip: IpAddr,
    /// As configured.
    pub route: &'a str,
    /// Where the route leads.
    pub target: LoggedTarget<'a>,
    /// The address as configured.
    pub backend: Option<&'a str>,
    /// What chose the backend.
    pub policy: Option<&'a str>,
    /// The policy's.
    pub policy_generation: Option<u64>,
}

/// What a route leads to, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoggedTarget<'a> {
    /// A group of backends.
    Upstream(&'a str),
    /// A plugin that is the far end of WebSockets.
    Handler(&'a str),
    /// A plugin that answers requests.
    Http(&'a str),
}

/// A session began.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    /// Whom and what.
    pub session: Session<'a>,
    /// Of the request.
    pub method: &'a str,
    /// Of the request; what follows a `?` is not written.
    pub path: &'a str,
}

/// A session ended.
#[derive(Debug, Clone, Copy)]
pub struct Closed<'a> {
    /// Whom and what.
    pub session: Session<'a>,
    /// What moved, and whose doing the end was.
    pub report: &'a EndReport,
    /// Which plugin has ended it by failing, and how.
    pub reason: Option<&'a str>,
}

/// A request was answered without a session: plain HTTP, an upgrade that was refused, or what could not be read
/// as a request.
#[derive(Debug, Clone, Copy)]
pub struct Requested<'a> {
    /// As in `X-Request-Id`.
    pub request_id: &'a str,
    /// The peer of the TCP connection.
    pub client: SocketAddr,
    /// The client that the chain of trusted proxies vouches for; without one, the peer.
    pub client_ip: IpAddr,
    /// Of the request; none: it could not be read.
    pub method: Option<&'a str>,
    /// Of the request; what follows a `?` is not written. None: it could not be read.
    pub path: Option<&'a str>,
    /// As configured; none: no route matches.
    pub route: Option<&'a str>,
    /// Where the route leads.
    pub target: Option<LoggedTarget<'a>>,
    /// The one that answered.
    pub backend: Option<&'a str>,
    /// Of the answer.
    pub status: u16,
    /// Why the host or a plugin refused.
    pub reason: Option<&'a str>,
    /// From the request's head to the head of the answer; none: the head never was whole.
    pub duration: Option<Duration>,
}

/// A plain answer broke off, after the line that its request has.
#[derive(Debug, Clone, Copy)]
pub struct Aborted<'a> {
    /// As in `X-Request-Id`.
    pub request_id: &'a str,
    /// The peer of the TCP connection.
    pub client: SocketAddr,
    /// The client that the chain of trusted proxies vouches for; without one, the peer.
    pub client_ip: IpAddr,
    /// As configured.
    pub route: &'a str,
    /// Where the route leads.
    pub target: LoggedTarget<'a>,
    /// The one that answered.
    pub backend: Option<&'a str>,
    /// Whose doing it was.
    pub by: Ender,
    /// How it broke off.
    pub reason: &'a str,
    /// From the request's head.
    pub duration: Duration,
}

impl AccessLog {
    /// Writes to this log.
    pub fn new(writer: LogWriter) -> Self {
        Self(writer)
    }

    /// A session began.
    pub fn open(&self, opened: &Opened<'_>) {
        self.put(&opened.line(SystemTime::now()));
    }

    /// A session ended.
    pub fn close(&self, closed: &Closed<'_>) {
        self.put(&closed.line(SystemTime::now()));
    }

    /// A request was answered.
    pub fn request(&self, requested: &Requested<'_>) {
        self.put(&requested.line(SystemTime::now()));
    }

    /// A plain answer broke off.
    pub fn abort(&self, aborted: &Aborted<'_>) {
        self.put(&aborted.line(SystemTime::now()));
    }

    fn put(&self, line: &Line<'_>) {
        // Strings and numbers under fixed keys: there is nothing in a line that JSON cannot say.
        if let Ok(mut line) = serde_json::to_string(line) {
            line.push('\n');
            self.0.put(line);
        }
    }
}

/// Every key that a line may have, in the order in which they are written.
#[derive(Debug, Default, Serialize)]
struct Line<'a> {
    event: &'static str,
    time: String,
    request_id: &'a str,
    client: String,
    client_ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handler: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_up: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_down: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages_up: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages_down: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close_code: Option<u16>,
}

impl<'a> Line<'a> {
    fn new(
        event: &'static str,
        now: SystemTime,
        request_id: &'a str,
        (client, client_ip): (SocketAddr, IpAddr),
    ) -> Self {
        Self {
            event,
            time: rfc3339(now),
            request_id,
            client: client.to_string(),
            client_ip: client_ip.to_string(),
            ..Self::default()
        }
    }

    fn of_session(event: &'static str, now: SystemTime, session: &Session<'a>) -> Self {
        let (upstream, handler) = session.target.names();
        Self {
            route: Some(session.route),
            upstream,
            handler,
            backend: session.backend,
            policy: session.policy,
            policy_generation: session.policy_generation,
            ..Self::new(
                event,
                now,
                session.request_id,
                (session.client, session.client_ip),
            )
        }
    }
}

impl<'a> LoggedTarget<'a> {
    /// The values of `upstream` and `handler`.
    fn names(self) -> (Option<&'a str>, Option<&'a str>) {
        match self {
            Self::Upstream(name) => (Some(name), None),
            Self::Handler(name) | Self::Http(name) => (None, Some(name)),
        }
    }
}

impl<'a> Opened<'a> {
    fn line(&self, now: SystemTime) -> Line<'a> {
        Line {
            method: Some(self.method),
            path: Some(without_query(self.path)),
            status: Some(101),
            ..Line::of_session("open", now, &self.session)
        }
    }
}

impl<'a> Closed<'a> {
    fn line(&self, now: SystemTime) -> Line<'a> {
        let report = self.report;
        Line {
            reason: self.reason,
            bytes_up: Some(report.bytes_up),
            bytes_down: Some(report.bytes_down),
            messages_up: Some(report.messages_up),
            messages_down: Some(report.messages_down),
            duration_ms: Some(millis(report.duration)),
            closed_by: Some(report.ended_by.label()),
            close_code: report.code,
            ..Line::of_session("close", now, &self.session)
        }
    }
}

impl<'a> Aborted<'a> {
    fn line(&self, now: SystemTime) -> Line<'a> {
        let (upstream, handler) = self.target.names();
        Line {
            route: Some(self.route),
            upstream,
            handler,
            backend: self.backend,
            reason: Some(self.reason),
            duration_ms: Some(millis(self.duration)),
            closed_by: Some(self.by.label()),
            ..Line::new(
                "aborted",
                now,
                self.request_id,
                (self.client, self.client_ip),
            )
        }
    }
}

impl<'a> Requested<'a> {
    fn line(&self, now: SystemTime) -> Line<'a> {
        let (upstream, handler) = self.target.map_or((None, None), LoggedTarget::names);
        Line {
            method: self.method,
            path: self.path.map(without_query),
            route: self.route,
            upstream,
            handler,
            backend: self.backend,
            status: Some(self.status),
            reason: self.reason,
            duration_ms: self.duration.map(millis),
            ..Line::new(
                "request",
                now,
                self.request_id,
                (self.client, self.client_ip),
            )
        }
    }
}

fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or(path)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-07-28T12:34:56.789Z`, RFC 3339. A clock before 1970 shows 1970.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let mut text = String::with_capacity("2026-07-28T12:34:56.789Z".len());
    // There is no text for a year of five digits.
    let _ = write!(text, "{}", format_rfc3339_millis(time.max(UNIX_EPOCH)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_says() {
        for (millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_001, "2000-03-01T00:00:00.001Z"),
            (1_785_242_096_789, "2026-07-28T12:34:56.789Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(
                rfc3339(UNIX_EPOCH + Duration::from_millis(millis)),
                expected
            );
        }
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn an_opening_has_the_request_and_the_choice_but_no_query() {
        let opened = Opened {
            session: session(),
            method: "GET",
            path: "/chat?token=secret",
        };
        check(
            &opened.line(UNIX_EPOCH),
            r#"{"event":"open","time":"1970-01-01T00:00:00.000Z","request_id":"r-1","client":"192.0.2.1:5000","client_ip":"203.0.113.7","method":"GET","path":"/chat","route":"/chat","upstream":"app","backend":"127.0.0.1:3001","policy":"round_robin","policy_generation":2,"status":101}"#,
        );
    }

    #[test]
    fn a_closing_has_what_moved_and_who_ended_it() {
        let report = EndReport {
            ended_by: Ender::Client,
            code: Some(1001),
            duration: Duration::from_micros(1_500_999),
            bytes_up: 1,
            bytes_down: 2,
            messages_up: 3,
            messages_down: 4,
        };
        let session = Session {
            target: LoggedTarget::Handler("echo"),
            backend: None,
            policy: None,
            policy_generation: None,
            ..session()
        };
        check(
            &Closed {
                session,
                report: &report,
                reason: None,
            }
            .line(UNIX_EPOCH),
            r#"{"event":"close","time":"1970-01-01T00:00:00.000Z","request_id":"r-1","client":"192.0.2.1:5000","client_ip":"203.0.113.7","route":"/chat","handler":"echo","bytes_up":1,"bytes_down":2,"messages_up":3,"messages_down":4,"duration_ms":1500,"closed_by":"client","close_code":1001}"#,
        );
        let unclosed = EndReport {
            code: None,
            ended_by: Ender::Host,
            ..report
        };
        let line = serde_json::to_value(
            Closed {
                session,
                report: &unclosed,
                reason: Some("plugin instance lost: chat"),
            }
            .line(UNIX_EPOCH),
        )
        .unwrap();
        assert_eq!(line["closed_by"], "host");
        assert_eq!(line["reason"], "plugin instance lost: chat");
        assert!(line.get("close_code").is_none());
    }

    #[test]
    fn a_refusal_has_its_reason_and_nothing_that_is_not_known() {
        let client = "[2001:db8::1]:5000".parse().unwrap();
        let refused = Requested {
            client,
            status: 404,
            reason: Some("no route matches"),
            ..requested()
        };
        check(
            &refused.line(UNIX_EPOCH),
            r#"{"event":"request","time":"1970-01-01T00:00:00.000Z","request_id":"r-1","client":"[2001:db8::1]:5000","client_ip":"203.0.113.7","method":"GET","path":"/","status":404,"reason":"no route matches","duration_ms":1}"#,
        );
        let unread = Requested {
            method: None,
            path: None,
            duration: None,
            status: 431,
            reason: Some("message head is too large"),
            ..requested()
        };
        check(
            &unread.line(UNIX_EPOCH),
            r#"{"event":"request","time":"1970-01-01T00:00:00.000Z","request_id":"r-1","client":"192.0.2.1:5000","client_ip":"203.0.113.7","status":431,"reason":"message head is too large"}"#,
        );
        let answered = Requested {
            route: Some("/api/*"),
            target: Some(LoggedTarget::Http("hello")),
            backend: Some("127.0.0.1:3001"),
            ..requested()
        };
        check(
            &answered.line(UNIX_EPOCH),
            r#"{"event":"request","time":"1970-01-01T00:00:00.000Z","request_id":"r-1","client":"192.0.2.1:5000","client_ip":"203.0.113.7","method":"GET","path":"/","route":"/api/*","handler":"hello","backend":"127.0.0.1:3001","status":200,"duration_ms":1}"#,
        );
    }

    #[test]
    fn an_answer_that_broke_off_has_whose_doing_it_was() {
        let aborted = Aborted {
            request_id: "r-1",
            client: "192.0.2.1:5000".parse().unwrap(),
            client_ip: "203.0.113.7".parse().unwrap(),
            route: "/api/*",
            target: LoggedTarget::Upstream("app"),
            backend: Some("127.0.0.1:3001"),
            by: Ender::Backend,
            reason: "it stopped",
            duration: Duration::from_millis(1500),
        };
        check(
            &aborted.line(UNIX_EPOCH),
            r#"{"event":"aborted","time":"1970-01-01T00:00:00.000Z","request_id":"r-1","client":"192.0.2.1:5000","client_ip":"203.0.113.7","route":"/api/*","upstream":"app","backend":"127.0.0.1:3001","reason":"it stopped","duration_ms":1500,"closed_by":"backend"}"#,
        );
    }

    #[test]
    fn paths_lose_their_query_and_cannot_break_a_line() {
        for (path, expected) in [
            ("/a?b?c", "/a"),
            ("?x", ""),
            ("/a#b", "/a"),
            ("*", "*"),
            ("/a\"\n", "/a\"\n"),
        ] {
            let requested = Requested {
                path: Some(path),
                ..requested()
            };
            let line = serde_json::to_string(&requested.line(UNIX_EPOCH)).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&line).unwrap()["path"],
                expected
            );
        }
    }

    fn check(line: &Line<'_>, expected: &str) {
        assert_eq!(serde_json::to_string(line).unwrap(), expected);
    }

    fn session() -> Session<'static> {
        Session {
            request_id: "r-1",
            client: SocketAddr::from(([192, 0, 2, 1], 5000)),
            client_ip: IpAddr::from([203, 0, 113, 7]),
            route: "/chat",
            target: LoggedTarget::Upstream("app"),
            backend: Some("127.0.0.1:3001"),
            policy: Some("round_robin"),
            policy_generation: Some(2),
        }
    }

    fn requested() -> Requested<'static> {
        Requested {
            request_id: "r-1",
            client: SocketAddr::from(([192, 0, 2, 1], 5000)),
            client_ip: IpAddr::from([203, 0, 113, 7]),
            method: Some("GET"),
            path: Some("/"),
            route: None,
            target: None,
            backend: None,
            status: 200,
            reason: None,
            duration: Some(Duration::from_millis(1)),
        }
    }
}
