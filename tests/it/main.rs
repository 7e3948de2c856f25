//! One file per promise, each test a sentence. They run the real binary: `cargo xtask build` makes
//! it, `cargo xtask test` makes it and runs these. `harness/` is what they are told with.

mod backends;
mod backends_file;
mod capacity;
mod check;
mod chromium;
mod conformance;
mod dns;
mod drain;
mod ejection;
mod faults;
mod fences;
mod filters;
mod handlers;
mod handshake;
mod harness;
mod health;
mod hostile;
mod http_handlers;
mod limits;
mod logs;
mod messages;
mod observe;
mod overload;
mod plugin_attacks;
mod policies;
mod proxy;
mod relay;
mod reload;
mod signals;
mod slow_start;
mod socketio;
mod swap;
mod systemd;
mod tls;
mod tutorial;
