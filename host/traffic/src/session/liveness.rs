//! The Ping that a peer owes an answer to, where its route has silent ones pinged: when it counts as dead. Pure: times
//! are sweeps, which are handed in, and so is what the kernel says.
//!
//! Bytes are life. Those that come settle everything. A Ping waits behind what was to be sent before it; it has no
//! deadline until it has arrived, as long as its peer's kernel takes some of that: a slow reader lives. Nor has it one
//! while nothing is in its way but a frame that passes, or while no answer can come: within a frame of its own a far
//! end cannot answer (RFC 6455 section 5.4), and one that is not read is not heard.

use std::cell::Cell;

use super::send_queue::SendQueue;

/// Who owes a Pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FarEnd {
    Client,
    Backend,
}

/// A Ping and its deadline.
#[derive(Debug, Default)]
pub(super) struct OwedPong {
    /// Since when the deadline runs; none: nothing is owed.
    since: Cell<Option<u32>>,
    /// How long the Ping has waited behind bytes that were being taken.
    queued_for: Cell<u32>,
    /// How long the deadline is at least.
    patience: Cell<u32>,
    /// What was seen at the last look.
    seen: Cell<Option<Progress>>,
    /// How many bytes the peer's kernel has to acknowledge until the Ping has arrived.
    end_of_ping: Cell<Option<u64>>,
}

/// What a peer has taken so far.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// As its kernel says; none: nothing is known.
    n_acked: Option<u64>,
    /// As ours took it.
    n_written: u64,
}

/// How a session stands with a peer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PingStanding {
    /// The Ping is in memory of ours.
    pub(super) is_unsent: bool,
    /// Bytes for it wait in memory of ours.
    pub(super) holds: bool,
    /// Bytes that the kernel has taken of us, give or take what is as long each time.
    pub(super) n_written: u64,
    /// It is within a frame of its own, or it is not read.
    pub(super) cannot_answer: bool,
}

/// A receiver makes room known in steps, over loopback of 64 KiB. One that takes less than that in a second is no
/// slower than what there is to take.
const STEP_BYTES: u64 = 64 * 1024;
/// In sweeps: how long nothing of a queue of that length may be taken.
const STEP_PATIENCE: u32 = 10;

impl OwedPong {
    /// A Ping is sent.
    pub(super) fn ask(&self, now: u32) {
        self.since.set(Some(now));
        self.queued_for.set(0);
        self.patience.set(0);
        self.seen.set(None);
        self.end_of_ping.set(None);
    }

    /// Since when one is owed, in sweeps, and how long it may be owed at least.
    pub(super) fn owed(&self) -> Option<(u32, u32)> {
        Some((self.since.get()?, self.patience.get()))
    }

    /// It is there, or something as good.
    pub(super) fn settle(&self) {
        self.since.set(None);
    }

    /// Looks how the Ping comes on.
    pub(super) fn look(&self, now: u32, at: PingStanding, queue: Option<SendQueue>) {
        let Some(since) = self.since.get() else {
            return;
        };
        let progress = Progress {
            n_acked: queue.map(|queue| queue.n_acked),
            n_written: at.n_written,
        };
        let before = self.seen.replace(Some(progress));
        let is_taken = before.is_some_and(|before| progress.is_beyond(before));
        let n_waiting = queue.map_or(0, |queue| queue.n_waiting);
        let has_arrived = !at.is_unsent && self.has_arrived(queue);
        let is_in_our_way = at.holds || n_waiting > 0;
        if has_arrived && at.cannot_answer || !has_arrived && !is_in_our_way {
            self.since.set(Some(now));
        } else if !has_arrived && is_taken {
            let queued_for = self.queued_for.get() + now.wrapping_sub(since);
            self.queued_for.set(queued_for);
            self.since.set(Some(now));
        }
        // What the peer has to read before the Ping may be as much again as what its kernel has taken.
        let is_long = !has_arrived && (at.holds || n_waiting >= STEP_BYTES);
        let least = if is_long { STEP_PATIENCE } else { 0 };
        self.patience.set(self.queued_for.get().max(least));
    }

    fn has_arrived(&self, queue: Option<SendQueue>) -> bool {
        let Some(queue) = queue else {
            return true;
        };
        let all = queue.n_acked + queue.n_waiting;
        let end = self.end_of_ping.get().unwrap_or(all);
        self.end_of_ping.set(Some(end));
        queue.n_acked >= end
    }
}

impl Progress {
    fn is_beyond(self, before: Self) -> bool {
        self.n_acked > before.n_acked || self.n_written > before.n_written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two looks a second; the deadline is that of an interval of a second. After how many looks is it over, if
    /// `at` and the queue are as each look finds them?
    fn dies(at: impl Fn(u32) -> (PingStanding, Option<SendQueue>)) -> Option<u32> {
        let pong = OwedPong::default();
        pong.ask(0);
        (1..400).find(|&now| {
            let (since, patience) = pong.owed().expect("nobody answers");
            let is_over = now - since > patience.max(2);
            let (at, queue) = at(now);
            pong.look(now, at, queue);
            is_over
        })
    }

    fn queue(n_acked: u32, n_waiting: u32) -> Option<SendQueue> {
        Some(SendQueue {
            n_acked: n_acked.into(),
            n_waiting: n_waiting.into(),
        })
    }

    #[test]
    fn who_has_the_ping_and_says_nothing_is_dead_in_an_interval() {
        let at = PingStanding::default();
        assert_eq!(dies(|_| (at, queue(1000, 0))), Some(3));
        assert_eq!(dies(|_| (at, None)), Some(3));
        // Its kernel goes on taking what others send.
        assert_eq!(dies(|now| (at, queue(1000 * now, 0))), Some(3));
        assert!(dies(|now| (at, queue(1000 * now, 10))).is_some_and(|looks| looks < 6));
        // The network takes nothing any more.
        assert_eq!(dies(|_| (at, queue(1000, 2))), Some(3));
    }

    #[test]
    fn who_takes_what_is_before_the_ping_lives_and_then_has_as_long_to_get_to_it() {
        let at = PingStanding::default();
        let taken = |now: u32| queue(50_000 * now, 5_000_000_u32.saturating_sub(50_000 * now));
        // It arrives after a hundred looks.
        let dead = dies(|now| (at, taken(now))).expect("it says nothing");
        assert!((190..210).contains(&dead), "{dead}");
        // It stops in the midst.
        let stops = |now: u32| taken(now.min(40));
        let dead = dies(|now| (at, stops(now))).expect("it takes nothing");
        assert!((50..90).contains(&dead), "{dead}");
        // In memory of ours, where the kernel says nothing.
        let held = |now: u32| PingStanding {
            is_unsent: true,
            holds: true,
            n_written: u64::from(now / 4),
            ..at
        };
        assert_eq!(dies(|now| (held(now), None)), None);
        assert_eq!(dies(|_| (held(0), None)), Some(11));
        // It takes a step in three seconds.
        let step = |now: u32| queue(65_536 * (now / 6), 30_000_000 - 65_536 * (now / 6));
        assert_eq!(dies(|now| (at, step(now))), None);
    }

    #[test]
    fn a_ping_that_cannot_leave_or_be_answered_has_no_deadline() {
        let waits_for_a_frame = PingStanding {
            is_unsent: true,
            ..PingStanding::default()
        };
        assert_eq!(dies(|_| (waits_for_a_frame, queue(1000, 0))), None);
        let within_a_frame = PingStanding {
            cannot_answer: true,
            ..PingStanding::default()
        };
        assert_eq!(dies(|_| (within_a_frame, queue(1000, 0))), None);
        assert_eq!(dies(|_| (within_a_frame, None)), None);
        // But who takes nothing is dead, whatever else.
        assert_eq!(dies(|_| (within_a_frame, queue(1000, 10))), Some(3));
        assert_eq!(dies(|_| (waits_for_a_frame, queue(1000, 10))), Some(3));
    }
}
