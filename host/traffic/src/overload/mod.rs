//! How much is too much: what is refused, or waits, before what is there suffers.
//!
//! Each part answers one question and does nothing by itself: [`clients`] how many connections one
//! address has, [`handshakes`] which of them have not asked for anything yet, [`lag`] how late the
//! worker is, [`descriptors`] whether there are enough of them, [`penalties`] who has to wait because a plugin
//! failed on what it sent. The bounds are the operator's (`[[listener]]`, `[overload]`) or constants; what
//! follows from the answers is decided where the connection is.

pub mod clients;
pub mod descriptors;
pub mod handshakes;
pub mod lag;
pub mod penalties;
