//! Who is in which room, who speaks next, and how many have yet to hear it.

use std::ops::Range;
use std::time::Instant;

use super::{Plan, Shape};

/// All rooms of a plan; client `i` is in room `i % rooms`.
#[derive(Debug)]
pub(super) struct Rooms {
    rooms: Vec<Room>,
    members: usize,
    burst: u64,
}

#[derive(Debug)]
struct Room {
    /// Messages said so far.
    said: u64,
    said_at: Instant,
    /// Who speaks next, as a place among the members.
    next: usize,
    /// Deliveries of the last burst that are still to come.
    outstanding: usize,
}

/// What a member is to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The client.
    pub(super) speaker: usize,
    /// Numbers of the messages, in the order of the room.
    pub(super) numbers: Range<u64>,
    /// How many deliveries follow from it.
    pub(super) deliveries: usize,
}

impl Rooms {
    /// None, unless the plan is of [`Shape::Fanout`].
    pub(super) fn new(plan: &Plan) -> Self {
        let (rooms, burst) = match plan.shape {
            Shape::Fanout { rooms, burst, .. } => (rooms, burst),
            _ => (0, 0),
        };
        let room = || Room {
            said: 0,
            said_at: Instant::now(),
            next: 0,
            outstanding: 0,
        };
        Self {
            rooms: (0..rooms).map(|_| room()).collect(),
            members: plan.connections / rooms.max(1),
            burst,
        }
    }

    /// The room of a client.
    pub(super) fn of(&self, client: usize) -> usize {
        client % self.rooms.len().max(1)
    }

    /// When the last burst in a client's room was said.
    pub(super) fn said_at(&self, client: usize) -> Instant {
        self.rooms[self.of(client)].said_at
    }

    /// The next burst in a room.
    pub(super) fn say(&mut self, room: usize, now: Instant) -> Said {
        let n_rooms = self.rooms.len();
        let (members, burst) = (self.members, self.burst);
        let state = &mut self.rooms[room];
        let speaker = room + state.next * n_rooms;
        state.next = (state.next + 1) % members;
        let numbers = state.said..state.said + burst;
        state.said += burst;
        state.said_at = now;
        state.outstanding = members * burst as usize;
        Said {
            speaker,
            numbers,
            deliveries: state.outstanding,
        }
    }

    /// A client has heard so many messages; whether all have heard all.
    pub(super) fn delivered(&mut self, client: usize, n: usize) -> bool {
        let room = self.of(client);
        let state = &mut self.rooms[room];
        state.outstanding -= n;
        state.outstanding == 0
    }
}

/// What is said: begins with what tells it from any other, and is as long as wanted.
pub(super) fn text(room: usize, number: u64, bytes: usize) -> String {
    let mark = mark(room, number);
    let filler = bytes.saturating_sub(mark.len());
    mark + &"x".repeat(filler)
}

/// What tells a message from any other; it says nothing that JSON would escape.
pub(super) fn mark(room: usize, number: u64) -> String {
    format!("<{room}:{number}>")
}
