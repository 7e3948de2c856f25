//! A session at a backend: runs its relay, counts as bytes move, and obeys its orders.
//!
//! In go the two upgraded streams; out comes the [`EndReport`]. The path of a byte allocates
//! nothing, takes no lock and reads no clock.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pointsman_contract::close;
use pointsman_contract::session::{EndReport, Ender};
use pointsman_metrics::counters::TargetCounters;
use pointsman_metrics::labels::Limit;
use tokio::net::TcpStream;

use super::buffers::{Buffers, Held};
use super::liveness::{FarEnd, PingStanding};
use super::stats::SessionStats;
use super::{Order, Registration};
use crate::relay::pipe::Pipe;
use crate::relay::{Relay, RelayEnd};
use crate::upstream::tls::BackendStream;

/// A session at a backend.
#[derive(Debug)]
pub struct Relayed {
    relay: Relay<TcpStream, BackendStream>,
    registration: Registration,
    stats: SessionStats,
    held: Held,
    pipe: Option<Rc<Pipe>>,
}

impl Relayed {
    /// Begins at the moment of the call.
    pub fn new(
        relay: Relay<TcpStream, BackendStream>,
        registration: Registration,
        counters: Arc<TargetCounters>,
        buffers: Rc<Buffers>,
        pipe: Option<Rc<Pipe>>,
    ) -> Self {
        let held = Held::new(buffers, &registration.control);
        Self {
            relay,
            registration,
            stats: SessionStats::new(counters),
            held,
            pipe,
        }
    }

    /// Ready once both sides are done or the session is cut; only dropping is left then, which cuts
    /// both sides. A method and no future: a future that is awaited within another takes its room
    /// twice, and there are many sessions.
    pub fn poll_report(&mut self, cx: &mut Context<'_>) -> Poll<EndReport> {
        let end = ready!(self.poll(cx));
        Poll::Ready(self.stats.report(end.by, end.code))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        while let Poll::Ready(order) = self.registration.control.poll_order(cx) {
            match order {
                Order::Ping { client, backend } => {
                    if client {
                        self.relay.ping_client();
                    }
                    if backend {
                        self.relay.ping_backend();
                    }
                }
                Order::Close(by, code) => self.relay.close(by, code),
                // What is held goes with the side that does not take it, at the latest after a linger.
                Order::Shed => {
                    self.held.buffers().counters.ended_by(Limit::BufferedBytes);
                    self.relay.close(Ender::Host, close::TRY_AGAIN_LATER);
                }
                // A relay follows frames, and holds no message.
                Order::Look => self.look_at_pongs(),
                Order::Cut(by) => {
                    return Poll::Ready(self.relay.end().unwrap_or(RelayEnd { by, code: None }));
                }
            }
        }
        let buffers = self.held.buffers();
        let pipe = self.pipe.as_deref().filter(|_| !buffers.are_tight());
        let polled = self.relay.poll(cx, &mut buffers.scratch(), pipe);
        self.held.set(self.relay.n_held());
        self.count();
        if self.relay.end().is_some() {
            self.registration.control.ending();
        }
        polled
    }

    fn look_at_pongs(&self) {
        let control = &self.registration.control;
        for far_end in [FarEnd::Client, FarEnd::Backend] {
            if !control.owes_pong(far_end) {
                continue;
            }
            let side = match far_end {
                FarEnd::Client => self.relay.client_side(),
                FarEnd::Backend => self.relay.backend_side(),
            };
            let at = PingStanding {
                is_unsent: side.is_ping_unsent,
                holds: side.holds,
                n_written: side.n_written,
                cannot_answer: side.is_within_frame || !side.is_read,
            };
            let buffers = self.held.buffers();
            let queue = side.connection.and_then(|side| buffers.send_queue(side));
            control.look_at_pong(far_end, at, queue);
        }
    }

    fn count(&mut self) {
        let (up, down) = (self.relay.moved_up(), self.relay.moved_down());
        let (up_before, down_before) = self.stats.moved();
        if (up, down) == (up_before, down_before) {
            return;
        }
        if up.bytes != up_before.bytes {
            self.registration.control.client_heard();
        }
        if down.bytes != down_before.bytes {
            self.registration.control.backend_heard();
        }
        self.stats.bytes_up(up.bytes - up_before.bytes);
        self.stats.bytes_down(down.bytes - down_before.bytes);
        self.stats.messages_up(up.messages - up_before.messages);
        self.stats
            .messages_down(down.messages - down_before.messages);
    }
}
