//! Pointsman: a WebSocket balancer whose routing policies and message handlers are WebAssembly
//! plugins. `ARCHITECTURE.md` is the map; this is the map again, in the order of a connection.

pub mod cli;
pub mod server;
pub mod worker;

pub mod connection;
pub mod listener;

pub mod demo;
pub mod drain;
pub mod site;
pub mod systemd;
