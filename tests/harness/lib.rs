//! What the tests in `it/` are told with: the real balancer in a process of its own, backends,
//! clients, raw sockets and hostile guests, all on ports that the operating system picks.
//!
//! Nothing here sleeps in place of a condition, and nothing outlives the value that stands for it:
//! dropping a `Balancer` or a backend ends it. The host's code is not linked, only its binary run.

mod backend;
mod balancer;
mod chatter;
mod chromium;
mod client;
mod config;
mod edit;
mod lines;
mod metrics;
mod node;
mod process;
mod promtool;
mod scripted;
mod skip;
mod tasks;
mod wait;
mod ways;
mod wire;

pub mod conformance;
pub mod guests;
pub mod hostile;

pub use backend::Backend;
pub use balancer::Balancer;
pub use chatter::Chatter;
pub use chromium::Chromium;
pub use client::{Client, Refused, payload};
pub use config::{NOBODY, app, own_address, repository};
pub use edit::Edit;
pub use metrics::{Metrics, documented_metrics};
pub use node::{NodeServers, NodeStory, example, node, script};
pub use process::{BackendProcess, Ended, binary, pointsman};
pub use promtool::Promtool;
pub use scripted::{Nth, Reply, ScriptedBackend, accept_upgrade};
pub use skip::skip;
pub use tasks::{Panics, Tasks};
pub use wait::{PATIENCE, eventually, in_time};
pub use ways::three_ways;
pub use wire::{Answer, Frame, Wire, ask, frame, get, upgrade_request};
