//! What happens to a request once its route is known: a backend is chosen and dialled, and bytes or messages go
//! both ways until the end.
//!
//! In the order of a session: [`routing`] chooses among the backends of [`upstream`] and dials one; [`session`] owns
//! both sockets from the 101 to the close and has [`relay`] move the bytes; [`proxy`] and [`body`] are the same for plain
//! requests. [`overload`] answers how much is too much, and [`masking`] has the
//! keys for frames to backends. Knows no wasm: policies, filters and handlers come in as
//! the traits of `pointsman-contract`.

pub mod body;
pub mod client_http;
pub mod environment;
pub mod interim;
pub mod masking;
pub mod overload;
pub mod proxy;
pub mod relay;
pub mod routing;
pub mod session;
pub mod spelling;
pub mod upstream;
