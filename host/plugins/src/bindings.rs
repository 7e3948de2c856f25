//! The contract as Rust: generated from the WIT of the sdk, and what turns its types into those of
//! `routing` and `session` and back.
//!
//! What a guest returns is held here against the bounds of `limits` and against what may go on the
//! wire. Adapters for older versions of the contract belong here too.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use pointsman_contract::close;
use pointsman_contract::fields::OF_CONNECTION;
use pointsman_contract::filter::{Admission, FilterInterest, FilterVerdict, MessageKinds};
use pointsman_contract::handler::{HandlerInterest, HandlerVerdict};
use pointsman_contract::message::{CloseReason, Message, MessageKind, Received};
use pointsman_contract::policy::{Decision, Refusal};
use pointsman_contract::session::{EndReport, Ender};

use self::exports::pointsman::plugin::{
    filter as wire_filter, handler as wire_handler, policy as wire_policy,
};
use self::pointsman::plugin::types;
use super::call::Call;
use super::failure::CallError;
use super::limits::{
    HEADERS_MAX, LOCATION_MAX_BYTES, RANKED_MAX, REFUSAL_BODY_MAX_BYTES, REPLIES_MAX,
};

pub(super) use self::generated::{exports, pointsman};

/// Fields of the handshake that are the host's alone, as those of the connection are.
const OF_HANDSHAKE: [&str; 4] = [
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-version",
];

const CLOSE_REASON_MAX_BYTES: usize = 123;

mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::use_self, reason = "generated")]

    // One world for all kinds: which of its interfaces a plugin exports is looked up one by one.
    //
    // The interface `uses` is never looked up. The generator writes a broken alias for a type that
    // an exported interface names and that none of its functions uses, as `header` in `handler`.
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "
            package pointsman:host;

            interface uses {
                use pointsman:plugin/handler@0.1.0.{header};
                use-header: func(header: header);
            }

            world every-kind {
                include pointsman:plugin/stateful-policy-plugin@0.1.0;
                include pointsman:plugin/stateful-filter-plugin@0.1.0;
                include pointsman:plugin/stateful-handler-plugin@0.1.0;
                export uses;
            }
        ",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { "pointsman:plugin/random.bytes": trappable },
    });
}

pub(super) fn report(report: &EndReport) -> types::Report {
    types::Report {
        ended_by: match report.ended_by {
            Ender::Client => types::Ender::Client,
            Ender::Backend => types::Ender::Backend,
            Ender::Plugin => types::Ender::Plugin,
            Ender::Operator => types::Ender::Operator,
            Ender::Host => types::Ender::Host,
        },
        code: report.code,
        duration_ms: report.duration.as_millis().try_into().unwrap_or(u64::MAX),
        bytes_up: report.bytes_up,
        bytes_down: report.bytes_down,
        messages_up: report.messages_up,
        messages_down: report.messages_down,
    }
}

pub(super) fn decision(decision: wire_policy::Decision) -> Result<Decision, CallError> {
    Ok(match decision {
        wire_policy::Decision::Prefer(place) => Decision::Prefer(place),
        wire_policy::Decision::Ranked(places) => {
            bound(Call::Choose, "ranked backends", places.len(), RANKED_MAX)?;
            Decision::Ranked(places)
        }
        wire_policy::Decision::Refuse(refused) => Decision::Refuse(refusal(Call::Choose, refused)?),
        wire_policy::Decision::Redirect(redirect) => {
            bound(
                Call::Choose,
                "bytes of location",
                redirect.location.len(),
                LOCATION_MAX_BYTES,
            )?;
            if HeaderValue::from_str(&redirect.location).is_err() {
                let what = "a location that is no header value".to_owned();
                return Err(CallError::Output {
                    call: Call::Choose,
                    what,
                });
            }
            let is_redirect = matches!(redirect.status, 301 | 302 | 303 | 307 | 308);
            Decision::Redirect {
                status: if is_redirect { redirect.status } else { 307 },
                location: redirect.location,
            }
        }
    })
}

pub(super) fn refusal(call: Call, refusal: types::Refusal) -> Result<Refusal, CallError> {
    bound(
        call,
        "bytes of body",
        refusal.body.len(),
        REFUSAL_BODY_MAX_BYTES,
    )?;
    Ok(Refusal {
        status: if (400..600).contains(&refusal.status) {
            refusal.status
        } else {
            500
        },
        headers: headers(call, refusal.headers)?,
        body: refusal.body,
    })
}

/// What is no valid field, or is not the plugin's to say, is dropped.
pub(super) fn headers(
    call: Call,
    headers: Vec<types::HeaderResult>,
) -> Result<Vec<(String, String)>, CallError> {
    let mut fields = named(call, headers)?;
    fields.retain(|(_, value)| HeaderValue::from_str(value).is_ok());
    Ok(fields)
}

/// Those whose name is one, and not the host's alone; whatever their value is.
fn named(
    call: Call,
    headers: Vec<types::HeaderResult>,
) -> Result<Vec<(String, String)>, CallError> {
    bound(call, "headers", headers.len(), HEADERS_MAX)?;
    let fields = headers.into_iter().filter_map(|header| {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        let is_hosts =
            OF_CONNECTION.contains(&name.as_str()) || OF_HANDSHAKE.contains(&name.as_str());
        (!is_hosts).then(|| (name.as_str().to_owned(), header.value))
    });
    Ok(fields.collect())
}

/// The headers that a guest asks for.
pub(super) fn wanted_headers(names: &[String]) -> Result<Vec<HeaderName>, CallError> {
    bound(Call::Configure, "wanted headers", names.len(), HEADERS_MAX)?;
    let parse = |name: &String| {
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| CallError::Output {
            call: Call::Configure,
            what: format!(
                "a wanted header that is none: {:?}",
                name.chars().take(80).collect::<String>()
            ),
        })
    };
    names.iter().map(parse).collect()
}

pub(super) fn interest(interest: wire_handler::Interest, tick_interval_ms: u32) -> HandlerInterest {
    HandlerInterest {
        text: interest.contains(wire_handler::Interest::TEXT),
        binary: interest.contains(wire_handler::Interest::BINARY),
        tick_interval_ms,
    }
}

pub(super) fn verdict(
    call: Call,
    verdict: wire_handler::Verdict,
    max_message_bytes: u64,
) -> Result<HandlerVerdict, CallError> {
    let replies = match verdict {
        wire_handler::Verdict::Ignore => return Ok(HandlerVerdict::Ignore),
        wire_handler::Verdict::Echo => return Ok(HandlerVerdict::Echo),
        wire_handler::Verdict::Close(close) => {
            return Ok(HandlerVerdict::Close(close_reason(close)));
        }
        wire_handler::Verdict::Reply(reply) => vec![reply],
        wire_handler::Verdict::Replies(replies) => replies,
    };
    bound(call, "replies", replies.len(), REPLIES_MAX)?;
    Ok(HandlerVerdict::Reply(messages(
        call,
        replies,
        max_message_bytes,
    )?))
}

pub(super) fn filter_interest(
    interest: wire_filter::Interest,
    tick_interval_ms: u32,
) -> FilterInterest {
    use wire_filter::Interest as Wire;
    FilterInterest {
        client: MessageKinds {
            text: interest.contains(Wire::CLIENT_TEXT),
            binary: interest.contains(Wire::CLIENT_BINARY),
        },
        backend: MessageKinds {
            text: interest.contains(Wire::BACKEND_TEXT),
            binary: interest.contains(Wire::BACKEND_BINARY),
        },
        tick_interval_ms,
    }
}

pub(super) fn filter_verdict(
    call: Call,
    verdict: wire_filter::Verdict,
    max_message_bytes: u64,
) -> Result<FilterVerdict, CallError> {
    Ok(match verdict {
        wire_filter::Verdict::Forward => FilterVerdict::Forward,
        wire_filter::Verdict::Drop => FilterVerdict::Drop,
        wire_filter::Verdict::Close(close) => FilterVerdict::Close(close_reason(close)),
        wire_filter::Verdict::Replace(other) => {
            let mut other = messages(call, vec![other], max_message_bytes)?;
            other
                .pop()
                .map_or(FilterVerdict::Drop, FilterVerdict::Replace)
        }
        wire_filter::Verdict::Answer(answers) => {
            bound(call, "answers", answers.len(), REPLIES_MAX)?;
            FilterVerdict::Answer(messages(call, answers, max_message_bytes)?)
        }
    })
}

pub(super) fn admission(admission: wire_filter::Admission) -> Result<Admission, CallError> {
    let hidden = admission.hide_subprotocols;
    bound(
        Call::Accept,
        "hidden subprotocols",
        hidden.len(),
        HEADERS_MAX,
    )?;
    Ok(Admission {
        hide_subprotocols: hidden,
        set_headers: named(Call::Accept, admission.set_headers)?,
    })
}

fn messages(
    call: Call,
    messages: Vec<types::MessageResult>,
    max_message_bytes: u64,
) -> Result<Vec<Message>, CallError> {
    let max = usize::try_from(max_message_bytes).unwrap_or(usize::MAX);
    let messages: Vec<_> = messages.into_iter().map(message).collect();
    for message in &messages {
        bound(call, "bytes in a message", message.payload.len(), max)?;
    }
    Ok(messages)
}

/// Borrows the payload.
pub(super) fn lower(message: Received<'_>) -> types::MessageParam<'_> {
    match message {
        Received::Text(text) => types::MessageParam::Text(text),
        Received::Binary(bytes) => types::MessageParam::Binary(bytes),
    }
}

/// Takes the payload over without a copy.
pub(super) fn message(message: types::MessageResult) -> Message {
    let (kind, payload) = match message {
        types::MessageResult::Text(text) => (MessageKind::Text, text.into_bytes()),
        types::MessageResult::Binary(bytes) => (MessageKind::Binary, bytes),
    };
    let payload = Bytes::from(payload);
    Message { kind, payload }
}

/// A close that may go on the wire: RFC 6455 section 7.4.
pub(super) fn close_reason(close: types::Close) -> CloseReason {
    let is_sendable = close::may_be_sent(close.code);
    let mut reason = close.reason;
    reason.truncate(reason.floor_char_boundary(CLOSE_REASON_MAX_BYTES));
    CloseReason {
        code: if is_sendable {
            close.code
        } else {
            close::INTERNAL_ERROR
        },
        reason,
    }
}

fn bound(call: Call, of_what: &str, n: usize, max: usize) -> Result<(), CallError> {
    if n <= max {
        return Ok(());
    }
    let what = format!("{n} {of_what}, at most {max} are allowed");
    Err(CallError::Output { call, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_codes_for_the_wire_pass() {
        let check = |code, sent| {
            let reason = "ä".repeat(100);
            let close = close_reason(types::Close { code, reason });
            assert_eq!((close.code, close.reason.len()), (sent, 122), "{code}");
        };
        check(1000, 1000);
        check(1004, 1011);
        check(1005, 1011);
        check(1006, 1011);
        check(1014, 1014);
        check(1015, 1011);
        check(2999, 1011);
        check(4999, 4999);
        check(5000, 1011);
    }

    #[test]
    fn headers_that_are_none_or_the_hosts_are_dropped() {
        let header = |name: &str, value: &str| types::HeaderResult {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let given = vec![
            header("Set-Cookie", "a=b"),
            header("Upgrade", "h2c"),
            header("x y", "1"),
            header("x", "a\r\nb: c"),
        ];
        let kept = headers(Call::Placed, given).unwrap();
        assert_eq!(kept, [("set-cookie".to_owned(), "a=b".to_owned())]);
        // What is set takes the client's away, also where it cannot be sent.
        let admitted = admission(wire_filter::Admission {
            hide_subprotocols: vec![],
            set_headers: vec![
                header("X-User", "a\nb"),
                header("Te", "a"),
                header("x y", "1"),
            ],
        });
        let set = [("x-user".to_owned(), "a\nb".to_owned())];
        assert_eq!(admitted.unwrap().set_headers, set);
        let many = vec![header("a", "b"); HEADERS_MAX + 1];
        assert_eq!(headers(Call::Placed, many).unwrap_err().kind(), "output");
    }

    #[test]
    fn a_status_that_is_no_refusal_is_sent_as_500() {
        let refused = |status| types::Refusal {
            status,
            headers: vec![],
            body: String::new(),
        };
        let status = |status| refusal(Call::Choose, refused(status)).unwrap().status;
        assert_eq!(
            [200, 400, 429, 599, 600].map(status),
            [500, 400, 429, 599, 500]
        );
    }
}
