//! What peers are made to do, and what is measured meanwhile: the list.
//!
//! [`Workload`] says what there is, [`run`] carries one [`Case`] out against one subject. Knows peers by
//! their setup only; a table for each is made elsewhere.

pub mod calls;
pub mod case;
pub mod figure;
pub mod metrics;
pub mod reload;
pub mod run;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::load::Shape;
use crate::subjects::Subject;
use case::{CHURN, Case, ECHO_64, Kind, PACED, chat, echo, stream};
use figure::Figure;

/// A question; its answer is one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Workload {
    /// 64 connections echo 64 bytes.
    #[value(name = "echo-64")]
    Echo64,
    /// 64 connections echo 1 KiB.
    #[value(name = "echo-1k")]
    Echo1k,
    /// 1,000 connections echo 64 bytes.
    #[value(name = "echo-1000")]
    Echo1000,
    /// One connection echoes 64 bytes.
    #[value(name = "latency-1")]
    Latency1,
    /// 8,000 messages a second over 64 connections.
    Paced,
    /// Echoes over 10 to 9,000 connections.
    Growth,
    /// 32 clients connect, echo once and close, again and again.
    Churn,
    /// The churn, with access logs.
    #[value(name = "churn-log")]
    ChurnLog,
    /// 9,000 clients whose backends end all connections, and who all come back.
    Storm,
    /// Memory of open sessions.
    Idle,
    /// Messages of 64 KiB to the backend.
    #[value(name = "upload-64k")]
    Upload64k,
    /// Messages of 64 KiB from the backend.
    #[value(name = "download-64k")]
    Download64k,
    /// Messages of 1 MiB to the backend.
    #[value(name = "upload-1m")]
    Upload1m,
    /// Messages of 1 MiB from the backend.
    #[value(name = "download-1m")]
    Download1m,
    /// Echo servers, 64 connections, 64 bytes.
    #[value(name = "handler-64")]
    Handler64,
    /// Echo servers, 64 connections, 1 KiB.
    #[value(name = "handler-1k")]
    Handler1k,
    /// The relay of the same echo without a filter and with one.
    #[value(name = "filter-64")]
    Filter64,
    /// Chat servers, 10 rooms of 100.
    Chat,
    /// Chat servers, 100 rooms of 100.
    #[value(name = "chat-10000")]
    Chat10000,
    /// System calls of an echo.
    Calls,
    /// Two workers that share the machine with the load.
    Workers,
    /// A plugin is replaced while messages flow.
    Reload,
}

const RELAYS: &[Subject] = &[
    Subject::Pointsman,
    Subject::Nginx,
    Subject::Haproxy,
    Subject::Envoy,
];
const STREAMING_RELAYS: &[Subject] = &[
    Subject::Pointsman,
    Subject::Nginx,
    Subject::Nginx64k,
    Subject::Haproxy,
    Subject::Envoy,
];
const ECHO_SERVERS: &[Subject] = &[
    Subject::PointsmanEcho,
    Subject::Fastify,
    Subject::Ws,
    Subject::TokioTungstenite,
    Subject::Fastwebsockets,
    Subject::Epoll,
];

const FILTERS: &[Subject] = &[
    Subject::Pointsman,
    Subject::PointsmanFilter,
    Subject::PointsmanFilterBoth,
];
const CHAT_SERVERS: &[Subject] = &[Subject::PointsmanChat, Subject::TokioTungsteniteChat];

impl Workload {
    /// As it is called on the command line and in files of figures.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Head of its table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Echo64 => "Echo of 64 bytes, 64 connections",
            Self::Echo1k => "Echo of 1 KiB, 64 connections",
            Self::Echo1000 => "Echo of 64 bytes, 1,000 connections",
            Self::Latency1 => "Echo of 64 bytes, one connection",
            Self::Paced => "8,000 messages of 64 bytes a second, 64 connections",
            Self::Growth => "Echo of 64 bytes, from 10 to 9,000 connections",
            Self::Churn => "Connect, upgrade, one echo, close",
            Self::ChurnLog => "Connect, upgrade, one echo, close, with access logs",
            Self::Storm => "All of 9,000 clients connect again",
            Self::Idle => "Open sessions that wait",
            Self::Upload64k => "Upload, messages of 64 KiB",
            Self::Download64k => "Download, messages of 64 KiB",
            Self::Upload1m => "Upload, messages of 1 MiB",
            Self::Download1m => "Download, messages of 1 MiB",
            Self::Handler64 => "Echo servers, 64 bytes, 64 connections",
            Self::Handler1k => "Echo servers, 1 KiB, 64 connections",
            Self::Filter64 => "Filters, 64 bytes, 64 connections",
            Self::Chat => "Chat, 10 rooms of 100",
            Self::Chat10000 => "Chat, 100 rooms of 100",
            Self::Calls => "System calls of an echo",
            Self::Workers => "Two workers",
            Self::Reload => "A plugin replaced every 500 ms",
        }
    }

    /// What is done and measured, in a sentence or two for the reader of the table.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Echo64 | Self::Echo1k | Self::Echo1000 => {
                "Each connection sends a message, waits for its echo and sends the next: the peer's \
                 one processor is busy all the time."
            }
            Self::Latency1 => {
                "One message is under way at a time, so this is the time of a way there and back."
            }
            Self::Paced => {
                "The same load for all; latency counts from when a message was due, whether or not \
                 it could be sent then."
            }
            Self::Growth => "CPU µs per echo, by the number of connections, all of them busy.",
            Self::Churn => "32 at a time; latency is that from connect to the 101.",
            Self::ChurnLog => {
                "The same, with a line of each session written to a file, in each program's own format."
            }
            Self::Storm => {
                "The backends close all connections at once and go on listening, as programs do that are \
                 restarted. Each client connects again as soon as it sees the end, and is back when a message \
                 is echoed."
            }
            Self::Idle => {
                "Memory (PSS) that each session adds once it has echoed one message, in bytes, from \
                 100 open sessions to so many."
            }
            Self::Upload64k | Self::Upload1m => {
                "8 connections send, each message is acknowledged by a short one."
            }
            Self::Download64k | Self::Download1m => {
                "8 connections ask, each with a short message for a long one."
            }
            Self::Handler64 | Self::Handler1k => {
                "No backend: a handler plugin of Pointsman beside servers that do nothing else."
            }
            Self::Filter64 => {
                "The plain relay, and the same with the `tap` filter, which counts each message and passes it \
                 on: those of the client, and those of both sides."
            }
            Self::Chat | Self::Chat10000 => {
                "One in each room says five messages of 64 bytes, everybody there is sent them, and the \
                 next one speaks. A delivery is one message to one of them."
            }
            Self::Calls => "Counted by `strace`, which slows peers down but not the count.",
            Self::Workers => {
                "Nothing is pinned. How evenly 1,000 sessions are spread (1 is even), and the echo of 64 \
                 bytes over 64 connections."
            }
            Self::Reload => {
                "The load of 8,000 messages a second, in peace and while a changed \
                 `least_connections.wasm` is renamed over the old."
            }
        }
    }

    /// What it consists of; each case has a subject of its own.
    pub fn cases(self) -> Vec<Case> {
        let one = |kind| {
            vec![Case {
                label: String::new(),
                kind,
            }]
        };
        let several = |cases: Vec<(String, Kind)>| {
            cases
                .into_iter()
                .map(|(label, kind)| Case { label, kind })
                .collect()
        };
        match self {
            Self::Echo64 => one(ECHO_64),
            Self::Echo1k => one(echo(64, 1024)),
            Self::Echo1000 => one(echo(1000, 64)),
            Self::Latency1 => one(echo(1, 64)),
            Self::Paced => one(PACED),
            Self::Growth => {
                let sizes = [(10, "10"), (100, "100"), (1000, "1,000"), (9000, "9,000")];
                several(
                    sizes
                        .map(|(n, label)| (label.to_owned(), echo(n, 64)))
                        .to_vec(),
                )
            }
            Self::Churn => {
                let (connections, shape) = CHURN;
                one(Kind::Load { connections, shape })
            }
            Self::ChurnLog => {
                let (connections, shape) = CHURN;
                one(Kind::Logged { connections, shape })
            }
            Self::Storm => one(Kind::Storm { sessions: 9000 }),
            Self::Idle => {
                let sizes = [(1000, "1,000"), (9000, "9,000")];
                let memory = |(sessions, label): (usize, &str)| {
                    (label.to_owned(), Kind::Memory { sessions })
                };
                several(sizes.map(memory).to_vec())
            }
            Self::Upload64k => one(stream(Shape::Upload { bytes: 64 << 10 })),
            Self::Download64k => one(stream(Shape::Download { bytes: 64 << 10 })),
            Self::Upload1m => one(stream(Shape::Upload { bytes: 1 << 20 })),
            Self::Download1m => one(stream(Shape::Download { bytes: 1 << 20 })),
            Self::Handler64 => one(ECHO_64),
            Self::Handler1k => one(echo(64, 1024)),
            Self::Filter64 => one(ECHO_64),
            Self::Chat => one(chat(10)),
            Self::Chat10000 => one(chat(100)),
            Self::Calls => one(Kind::Calls),
            Self::Workers => several(vec![
                ("placement".to_owned(), Kind::Placement { sessions: 1000 }),
                ("echo".to_owned(), ECHO_64),
            ]),
            Self::Reload => one(Kind::Reload),
        }
    }

    /// The columns of its table: a case by its place in [`Workload::cases`], and a figure of it.
    pub fn columns(self) -> Vec<(usize, Figure)> {
        use Figure as F;
        let of_one = |figures: &[Figure]| figures.iter().map(|figure| (0, *figure)).collect();
        match self {
            Self::Chat | Self::Chat10000 => {
                of_one(&[F::CpuUsPerDelivery, F::PerSecond, F::P50Us, F::P99Us])
            }
            Self::Echo64
            | Self::Echo1k
            | Self::Echo1000
            | Self::Filter64
            | Self::Handler64
            | Self::Handler1k => of_one(&[
                F::CpuUsPerEcho,
                F::UserUsPerEcho,
                F::PerSecond,
                F::P50Us,
                F::P99Us,
                F::P999Us,
            ]),
            Self::Latency1 => of_one(&[
                F::P50Us,
                F::P99Us,
                F::P999Us,
                F::CpuUsPerEcho,
                F::UserUsPerEcho,
                F::PerSecond,
            ]),
            Self::Paced => of_one(&[
                F::CpuUsPerEcho,
                F::UserUsPerEcho,
                F::P50Us,
                F::P99Us,
                F::P999Us,
            ]),
            Self::Growth => (0..4).map(|case| (case, F::CpuUsPerEcho)).collect(),
            Self::Storm => of_one(&[F::SecondsUntilBack, F::CpuUsPerSession, F::Refused]),
            Self::Churn | Self::ChurnLog => {
                of_one(&[F::CpuUsPerSession, F::PerSecond, F::P50Us, F::P99Us])
            }
            Self::Idle => (0..2).map(|case| (case, F::BytesPerSession)).collect(),
            Self::Upload64k | Self::Download64k | Self::Upload1m | Self::Download1m => of_one(&[
                F::CpuUsPerMegabyte,
                F::MegabytesPerSecond,
                F::P50Us,
                F::P99Us,
            ]),
            Self::Calls => of_one(&[
                F::CallsPerEcho,
                F::ReadsPerEcho,
                F::WritesPerEcho,
                F::WaitsPerEcho,
            ]),
            Self::Workers => vec![
                (1, F::CpuUsPerEcho),
                (1, F::PerSecond),
                (1, F::P99Us),
                (0, F::WorstWorker),
            ],
            Self::Reload => of_one(&[
                F::ReloadMs,
                F::P99Us,
                F::ReloadingP99Us,
                F::P999Us,
                F::ReloadingP999Us,
            ]),
        }
    }

    /// Place of the column that peers are compared by: the first, or the one with most sessions.
    pub fn compared(self) -> usize {
        match self {
            Self::Growth | Self::Idle => self.columns().len() - 1,
            _ => 0,
        }
    }

    /// Who is measured unless the command line says otherwise.
    pub fn subjects(self) -> &'static [Subject] {
        match self {
            Self::Upload64k | Self::Download64k | Self::Upload1m | Self::Download1m => {
                STREAMING_RELAYS
            }
            Self::Handler64 | Self::Handler1k => ECHO_SERVERS,
            Self::Filter64 => FILTERS,
            Self::Chat | Self::Chat10000 => CHAT_SERVERS,
            Self::Reload => &[Subject::PointsmanLeast],
            _ => RELAYS,
        }
    }

    /// Rounds unless the command line says otherwise. Memory varies little.
    pub fn rounds(self) -> usize {
        match self {
            Self::Idle | Self::Storm => 3,
            _ => 5,
        }
    }

    /// Workers of each peer, if the workload is about their number.
    pub fn workers(self) -> Option<usize> {
        matches!(self, Self::Workers).then_some(2)
    }
}

impl From<Workload> for String {
    fn from(workload: Workload) -> Self {
        workload.name()
    }
}

impl TryFrom<String> for Workload {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(&name, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_of_a_case_and_every_case_has_a_column() {
        for workload in Workload::value_variants() {
            let n_cases = workload.cases().len();
            let columns = workload.columns();
            for case in 0..n_cases {
                assert!(
                    columns.iter().any(|(of, _)| *of == case),
                    "{workload:?} case {case}"
                );
            }
            assert!(
                columns.iter().all(|(case, _)| *case < n_cases),
                "{workload:?}"
            );
        }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!(Workload::Echo64.name(), "echo-64");
        assert_eq!(Workload::Latency1.name(), "latency-1");
        assert_eq!(Workload::Growth.name(), "growth");
    }
}
