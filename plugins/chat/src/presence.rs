//! Who is in which room, as numbers in the shared store that forget the sessions of an instance
//! that died.
//!
//! Time is cut into periods, and a room has a number for each of them. A session counts itself in
//! every period once: when it enters, and at its first tick in a new one. Whoever enters counts
//! itself in the period before too, and whoever leaves takes itself out of both. So the number of the
//! period before this one is complete, and holds nobody who has left. Those whose instance died
//! without a word are in it for two periods at most.

use std::time::Duration;

use pointsman_sdk::{clock, store};

/// How often [`Seat::keep`] has to be called, in milliseconds.
pub(crate) const TICK_MS: u32 = 30_000;

/// Twice the tick, so that a late tick still falls into each.
const PERIOD_MS: u64 = 2 * TICK_MS as u64;

/// A number is made in its period, and read until the next one ends.
const TTL: Duration = Duration::from_millis(3 * PERIOD_MS);

/// One session in one room. Give it back with [`leave`](Self::leave).
#[derive(Debug)]
pub(crate) struct Seat {
    room: String,
    /// The last period that it is counted in.
    counted_in: u64,
}

impl Seat {
    /// Enters. None: the room has `limit` sessions already. As numbers are added and compared in one
    /// step, of two who come for the last seat one gets it.
    pub(crate) fn take(room: String, limit: Option<u64>) -> Option<Self> {
        let period = period();
        let n_present = count(&room, period - 1, 1);
        count(&room, period, 1);
        let seat = Self {
            room,
            counted_in: period,
        };
        if limit.is_some_and(|limit| n_present > limit) {
            seat.leave();
            return None;
        }
        Some(seat)
    }

    pub(crate) fn room(&self) -> &str {
        &self.room
    }

    /// Counts the session in this period. It is in the one before as well, unless its tick was very
    /// late, as it is if the client does not read.
    pub(crate) fn keep(&mut self) {
        let period = period();
        for uncounted in (self.counted_in + 1).max(period - 1)..=period {
            count(&self.room, uncounted, 1);
            self.counted_in = uncounted;
        }
    }

    /// The room that it was in.
    pub(crate) fn leave(self) -> String {
        for counted in period() - 1..=self.counted_in {
            count(&self.room, counted, -1);
        }
        self.room
    }
}

/// How many sessions are in a room.
pub(crate) fn present(room: &str) -> u64 {
    let number = store::get(&key(room, period() - 1));
    let number = number.and_then(|text| str::from_utf8(&text).ok()?.parse().ok());
    number.map_or(0, |number: i64| number.max(0).unsigned_abs())
}

fn period() -> u64 {
    clock::now_ms().max(PERIOD_MS) / PERIOD_MS
}

/// The sum; 0 if the store is full. Chat goes on then, with numbers that are too small.
fn count(room: &str, period: u64, by: i64) -> u64 {
    let sum = store::increment(&key(room, period), by, Some(TTL));
    sum.map_or(0, |sum| sum.max(0).unsigned_abs())
}

fn key(room: &str, period: u64) -> String {
    format!("present/{period}/{room}")
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing;

    use super::*;

    fn take(limit: Option<u64>) -> Option<Seat> {
        Seat::take("r".to_owned(), limit)
    }

    fn tick(seats: &mut [Seat]) {
        testing::advance(Duration::from_millis(TICK_MS.into()));
        seats.iter_mut().for_each(Seat::keep);
    }

    #[test]
    fn seats_are_counted_through_all_periods() {
        testing::restart();
        let mut seats: Vec<Seat> = Vec::new();
        for n in 1..20 {
            seats.extend(take(None));
            assert_eq!(present("r"), n);
            tick(&mut seats);
            assert_eq!(present("r"), n);
        }
        while let Some(seat) = seats.pop() {
            assert_eq!(seat.leave(), "r");
            assert_eq!(present("r"), seats.len() as u64);
            tick(&mut seats);
            assert_eq!(present("r"), seats.len() as u64);
        }
        assert_eq!(present("other"), 0);
    }

    #[test]
    fn a_limit_is_exact_and_who_is_refused_does_not_count() {
        testing::restart();
        let first = take(Some(2)).unwrap();
        let _second = take(Some(2)).unwrap();
        assert!(take(Some(2)).is_none() && take(Some(1)).is_none());
        first.leave();
        assert!(take(Some(2)).is_some());
        assert_eq!(present("r"), 2);
    }

    #[test]
    fn the_dead_are_forgotten_and_their_seats_free() {
        testing::restart();
        let mut alive = [take(Some(3)).unwrap()];
        drop([take(Some(3)).unwrap(), take(Some(3)).unwrap()]);
        assert_eq!(present("r"), 3);
        for _ in 0..4 {
            tick(&mut alive);
        }
        assert_eq!(present("r"), 1);
        assert!(take(Some(2)).is_some());
    }

    /// No tick comes while a client does not take what it is sent.
    #[test]
    fn who_was_stuck_is_back_with_its_next_tick() {
        testing::restart();
        let mut seats = [take(None).unwrap(), take(None).unwrap()];
        for _ in 0..9 {
            tick(&mut seats[..1]);
        }
        assert_eq!(present("r"), 1);
        tick(&mut seats);
        assert_eq!(present("r"), 2);

        let [kept, stuck] = seats;
        let mut kept = [kept];
        for _ in 0..9 {
            tick(&mut kept);
        }
        stuck.leave();
        assert_eq!(present("r"), 1);
    }
}
