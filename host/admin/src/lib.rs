//! The operator's door: look, steer, count, record.
//!
//! Counters and log lines come in from the workers, plain values from the other rooms at the time
//! of a scrape; out go HTTP answers, a metrics page, a status and the access log. Nothing here
//! decides about traffic, and nothing here can make a worker wait.

pub mod access_log;
pub mod commands;
mod connections;
mod gate;
pub mod http;
pub mod status;
