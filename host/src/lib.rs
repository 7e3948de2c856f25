//! Pointsman: a WebSocket balancer whose routing policies and message handlers are WebAssembly
//! plugins. `ARCHITECTURE.md` is the map; this is the map again, in the order of a connection.

pub mod cli;
pub mod server;
pub mod worker;

pub mod body;
pub mod connection;
pub mod listener;
pub mod overload;
pub mod proxy;
pub mod relay;
pub mod routing;
pub mod session;
pub mod upstream;

pub mod admin;
pub mod demo;
pub mod drain;
pub mod plugins;
pub mod site;
pub mod systemd;
pub mod watch;
