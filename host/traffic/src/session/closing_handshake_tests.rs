//! How sessions end (RFC 6455 section 7), over pipes in memory: who is sent which Close, in what order, and
//! what the report says.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::OnFailure;
use pointsman_contract::close;
use pointsman_contract::failure::PluginError;
use pointsman_contract::handler::{HandlerInterest, HandlerSession, HandlerVerdict};
use pointsman_contract::message::{CloseReason, Received};
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::{QueueSettings, outbox};
use pointsman_contract::session::{EndReport, Ender};
use pointsman_metrics::counters::TargetCounters;
use pointsman_protocol::frames::FrameTracker;
use pointsman_protocol::messages::{Decoder, Encoder, End};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use super::buffers::tests::buffers;
use super::chain::Chain;
use super::filtered::{Codec, Filtered, Reader};
use super::handled::Handled;
use super::tests::registered;
use super::{Order, SessionControl, Sessions};

/// Of a message, in bytes.
const MAX_BYTES: usize = 100;

/// A session under way, seen from its peers.
struct UnderTest<Ends> {
    ends: Ends,
    control: Rc<SessionControl>,
    end: JoinHandle<EndReport>,
    sessions: Rc<Sessions>,
}

struct BothEnds {
    client: DuplexStream,
    backend: DuplexStream,
}

/// Echoes; "bye" has it close with 4000, "fail" fails it.
#[derive(Debug)]
struct TestHandler;

impl HandlerSession for TestHandler {
    fn interest(&self) -> HandlerInterest {
        HandlerInterest {
            text: true,
            binary: true,
            tick_interval_ms: 0,
        }
    }

    fn opened(&mut self) -> Result<HandlerVerdict, PluginError> {
        Ok(HandlerVerdict::Ignore)
    }

    fn message(&mut self, message: Received<'_>) -> Result<HandlerVerdict, PluginError> {
        match message {
            Received::Text("bye") => Ok(HandlerVerdict::Close(CloseReason {
                code: 4000,
                reason: "bye".to_owned(),
            })),
            Received::Text("fail") => Err(PluginError::instance_lost(&PluginName::round_robin())),
            _ => Ok(HandlerVerdict::Echo),
        }
    }

    fn tick(&mut self) -> Result<HandlerVerdict, PluginError> {
        Ok(HandlerVerdict::Ignore)
    }

    fn closed(self: Box<Self>, _: &EndReport) -> Result<(), PluginError> {
        Ok(())
    }
}

fn handled() -> UnderTest<DuplexStream> {
    let (sessions, registration) = registered(None);
    let control = Rc::clone(&registration.control);
    let (client, stream) = duplex(4096);
    let [buffers] = buffers(1 << 20);
    let (_, inbox) = outbox(QueueSettings::default());
    let codec = (
        Decoder::new(End::Server, MAX_BYTES, None),
        Encoder::server(None),
    );
    let mut session = Handled::new(
        stream,
        &[],
        codec,
        Ok(Box::new(TestHandler) as Box<dyn HandlerSession>),
        inbox,
        registration,
        Arc::<TargetCounters>::default(),
        buffers,
    );
    let end = spawn_local(async move { poll_fn(|cx| session.poll_report(cx)).await });
    UnderTest {
        ends: client,
        control,
        end,
        sessions,
    }
}

/// Messages of the client are looked at, frames of the backend pass.
fn filtered() -> UnderTest<BothEnds> {
    filtered_with(Reader::Frames(FrameTracker::new(u64::MAX)))
}

fn filtered_with(backend_reader: Reader) -> UnderTest<BothEnds> {
    let (sessions, registration) = registered(None);
    let control = Rc::clone(&registration.control);
    let (client, client_stream) = duplex(4096);
    let (backend, backend_stream) = duplex(4096);
    let [buffers] = buffers(1 << 20);
    let decoder = Decoder::new(End::Server, MAX_BYTES, None);
    let from_client = Codec {
        reader: Reader::Messages(Box::new(decoder)),
        encoder: Encoder::server(None),
        early: Vec::new(),
    };
    let from_backend = Codec {
        reader: backend_reader,
        encoder: Encoder::client(|| [0; 4], None),
        early: Vec::new(),
    };
    let mut session = Filtered::new(
        (client_stream, from_client),
        (backend_stream, from_backend),
        Chain::open(&[], OnFailure::Close),
        registration,
        Arc::<TargetCounters>::default(),
        buffers,
    );
    let end = spawn_local(async move { poll_fn(|cx| session.poll_report(cx)).await });
    UnderTest {
        ends: BothEnds { client, backend },
        control,
        end,
        sessions,
    }
}

impl<Ends> UnderTest<Ends> {
    /// Who ended it, with which code. It has left the registry by then.
    async fn ended(self) -> (Ender, Option<u16>) {
        let report = self.end.await.expect("the session does not panic");
        assert!(self.sessions.is_empty());
        (report.ended_by, report.code)
    }
}

/// A whole frame of a server.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x80 | opcode, payload.len() as u8], payload].concat()
}

/// A whole frame of a client, masked with a key of zeros.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let header = [0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    [&header, payload].concat()
}

fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

async fn send(stream: &mut DuplexStream, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("the session reads");
}

async fn expect(stream: &mut DuplexStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    let n = stream.read_exact(&mut received).await;
    assert!(n.is_ok(), "less than {bytes:x?} came: {received:x?}");
    assert_eq!(received, bytes, "{received:x?} came in place of {bytes:x?}");
}

async fn expect_end(stream: &mut DuplexStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("pipes hold");
    assert!(rest.is_empty(), "something more came: {rest:x?}");
}

/// Ten seconds at most: what does not come would be waited for.
async fn local(test: impl Future<Output = ()>) {
    let test = timeout(Duration::from_secs(10), test);
    let ended = LocalSet::new().run_until(test).await;
    ended.expect("something did not come");
}

#[tokio::test]
async fn a_handler_s_client_that_closes_is_answered_in_kind_behind_what_came_before() {
    local(async {
        let mut session = handled();
        let client = &mut session.ends;
        let close = close_payload(1000, "done");
        let sent = [
            masked(TEXT, b"hello"),
            masked(CLOSE, &close),
            masked(TEXT, b"late"),
        ];
        send(client, &sent.concat()).await;
        expect(client, &frame(TEXT, b"hello")).await;
        expect(client, &frame(CLOSE, &close_payload(1000, ""))).await;
        expect_end(client).await;
        assert_eq!(session.ended().await, (Ender::Client, Some(close::NORMAL)));
    })
    .await;
}

#[tokio::test]
async fn a_handler_s_close_waits_for_the_client_s() {
    local(async {
        let mut session = handled();
        let client = &mut session.ends;
        send(client, &masked(TEXT, b"bye")).await;
        expect(client, &frame(CLOSE, &close_payload(4000, "bye"))).await;
        // Neither answered any more nor an end.
        send(
            client,
            &[masked(TEXT, b"late"), masked(PING, b"p")].concat(),
        )
        .await;
        assert!(session.control.is_ending() && !session.end.is_finished());
        send(client, &masked(CLOSE, &close_payload(1000, ""))).await;
        expect_end(client).await;
        assert_eq!(session.ended().await, (Ender::Plugin, Some(4000)));
    })
    .await;
}

#[tokio::test]
async fn a_handler_that_fails_ends_its_session_with_1011() {
    local(async {
        let mut session = handled();
        let client = &mut session.ends;
        send(client, &masked(TEXT, b"fail")).await;
        let reason = CloseReason::plugin_failed();
        assert_eq!(reason.code, close::INTERNAL_ERROR);
        let close = close_payload(reason.code, &reason.reason);
        expect(client, &frame(CLOSE, &close)).await;
        send(client, &masked(CLOSE, &close)).await;
        expect_end(client).await;
        let end = (Ender::Plugin, Some(close::INTERNAL_ERROR));
        assert_eq!(session.ended().await, end);
    })
    .await;
}

#[tokio::test]
async fn a_handler_s_client_that_breaks_the_protocol_gets_a_close_and_an_end_before_it_has_ended() {
    local(async {
        let mut session = handled();
        let client = &mut session.ends;
        send(client, &frame(TEXT, b"unmasked")).await;
        let mut head = [0; 4];
        client.read_exact(&mut head).await.expect("a Close");
        assert_eq!(
            (head[0], &head[2..]),
            (0x80 | CLOSE, &1002_u16.to_be_bytes()[..])
        );
        let mut reason = vec![0; usize::from(head[1]) - 2];
        client.read_exact(&mut reason).await.expect("a reason");
        expect_end(client).await;
        assert!(
            !session.end.is_finished(),
            "input is read on, so that no reset overtakes the Close"
        );
        client.shutdown().await.expect("a pipe");
        let end = (Ender::Client, Some(close::PROTOCOL_ERROR));
        assert_eq!(session.ended().await, end);
    })
    .await;
}

#[tokio::test]
async fn a_handler_s_session_that_is_cut_says_nothing() {
    local(async {
        let mut session = handled();
        session.control.tell(Order::Cut(Ender::Operator));
        expect_end(&mut session.ends).await;
        assert_eq!(session.ended().await, (Ender::Operator, None));
    })
    .await;
}

#[tokio::test]
async fn a_close_passes_filters_and_ends_when_it_is_answered() {
    local(async {
        let mut session = filtered();
        let BothEnds { client, backend } = &mut session.ends;
        let close = close_payload(1000, "done");
        send(
            client,
            &[masked(TEXT, b"last"), masked(CLOSE, &close)].concat(),
        )
        .await;
        expect(backend, &masked(TEXT, b"last")).await;
        expect(backend, &masked(CLOSE, &close)).await;
        // What the backend had under way still arrives.
        send(
            backend,
            &[frame(TEXT, b"answer"), frame(CLOSE, &close)].concat(),
        )
        .await;
        expect(client, &frame(TEXT, b"answer")).await;
        expect(client, &frame(CLOSE, &close)).await;
        expect_end(client).await;
        assert_eq!(session.ended().await, (Ender::Client, Some(close::NORMAL)));
    })
    .await;
}

#[tokio::test]
async fn an_operator_s_close_waits_for_the_end_of_the_message_that_passes() {
    local(async {
        let mut session = filtered();
        let BothEnds { client, backend } = &mut session.ends;
        let first_fragment = [&[0x01, 2][..], b"he"].concat();
        send(backend, &first_fragment).await;
        expect(client, &first_fragment).await;
        let order = Order::Close(Ender::Operator, close::SERVICE_RESTART);
        session.control.tell(order);
        let close = close_payload(close::SERVICE_RESTART, "");
        expect(backend, &masked(CLOSE, &close)).await;
        let last_fragment = [&[0x80, 3][..], b"llo"].concat();
        send(backend, &last_fragment).await;
        expect(client, &last_fragment).await;
        expect(client, &frame(CLOSE, &close)).await;
        send(client, &masked(CLOSE, &close)).await;
        send(backend, &frame(CLOSE, &close)).await;
        expect_end(client).await;
        let end = (Ender::Operator, Some(close::SERVICE_RESTART));
        assert_eq!(session.ended().await, end);
    })
    .await;
}

/// One longer than [`MAX_BYTES`], of a client.
fn too_long() -> Vec<u8> {
    [&[0x81, 0xfe, 0, 101, 0, 0, 0, 0][..], &[b'x'; 101]].concat()
}

#[tokio::test]
async fn a_client_whose_message_is_too_long_gets_1009_and_its_backend_1001() {
    local(async {
        let mut session = filtered();
        let BothEnds { client, backend } = &mut session.ends;
        send(client, &too_long()).await;
        let going_away = close_payload(close::GOING_AWAY, "");
        expect(backend, &masked(CLOSE, &going_away)).await;
        let mut close = [0; 4];
        client.read_exact(&mut close).await.expect("a Close");
        assert_eq!(close[2..], close::MESSAGE_TOO_BIG.to_be_bytes());
        send(backend, &frame(CLOSE, &going_away)).await;
        client.shutdown().await.expect("a pipe");
        let end = (Ender::Client, Some(close::MESSAGE_TOO_BIG));
        assert_eq!(session.ended().await, end);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_gets_the_answers_of_before_ahead_of_its_close() {
    local(async {
        let decoder = Decoder::new(End::Client, MAX_BYTES, None);
        let mut session = filtered_with(Reader::Messages(Box::new(decoder)));
        let BothEnds { client, backend } = &mut session.ends;
        send(client, &[masked(TEXT, b"ask"), too_long()].concat()).await;
        expect(backend, &masked(TEXT, b"ask")).await;
        let going_away = close_payload(close::GOING_AWAY, "");
        expect(backend, &masked(CLOSE, &going_away)).await;
        let answers = [frame(TEXT, b"answer"), frame(CLOSE, &going_away)];
        send(backend, &answers.concat()).await;
        expect(client, &frame(TEXT, b"answer")).await;
        let mut close = [0; 4];
        client.read_exact(&mut close).await.expect("a Close");
        assert_eq!(close[2..], close::MESSAGE_TOO_BIG.to_be_bytes());
        client.shutdown().await.expect("a pipe");
        let end = (Ender::Client, Some(close::MESSAGE_TOO_BIG));
        assert_eq!(session.ended().await, end);
    })
    .await;
}

#[tokio::test]
async fn pings_pass_filters_but_not_behind_a_close() {
    local(async {
        let mut session = filtered();
        let BothEnds { client, backend } = &mut session.ends;
        send(client, &masked(PING, b"1")).await;
        expect(backend, &masked(PING, b"1")).await;
        send(backend, &frame(PONG, b"1")).await;
        expect(client, &frame(PONG, b"1")).await;
        let close = close_payload(close::GOING_AWAY, "");
        send(backend, &[frame(CLOSE, &close), frame(PING, b"2")].concat()).await;
        expect(client, &frame(CLOSE, &close)).await;
        send(client, &masked(CLOSE, &close)).await;
        expect(backend, &masked(CLOSE, &close)).await;
        expect_end(client).await;
        let end = (Ender::Backend, Some(close::GOING_AWAY));
        assert_eq!(session.ended().await, end);
    })
    .await;
}
