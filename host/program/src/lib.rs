//! The program: what owns every thread and socket, in the order of a connection.
//!
//! [`server`] starts everything and is the control plane; each `worker` is a thread of the data plane; `listener`
//! accepts; `connection` serves with what its worker's `context` has. `ARCHITECTURE.md` is the map of all packages.

pub mod cli;
pub mod server;

mod connection;
mod context;
mod listener;
mod worker;

pub mod demo;
mod drain;
mod site;
pub mod systemd;
