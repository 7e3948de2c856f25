//! What was said in each room: the number of the last message, and the last messages.
//!
//! Each message is a key of its own, which one call writes once, so that nothing is lost when several
//! workers write at the same moment; the one that falls out of the history is deleted with it. (One
//! list for each room would have to be read, changed and written whole for every message, and again
//! whenever another worker was quicker.) The number is compared and set, and not incremented, because
//! this way it lives on with every message, and is forgotten with the last of them.

use std::time::Duration;

use pointsman_sdk::store::{self, StoreError};

/// A welcome is one message, which the route bounds, by 1 MiB unless configured.
const MAX_BYTES: usize = 64 * 1024;

/// Who fails has been overtaken by one who did not, so this is more than enough.
const MAX_TRIES: u32 = 100;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History {
    /// In each room.
    pub(crate) n_messages: u64,
    /// For a message, and for the number of a room in which nothing is said.
    pub(crate) ttl: Duration,
}

impl History {
    /// The number of a new message: 1, 2 and so on in each room, over all workers.
    ///
    /// # Errors
    ///
    /// The text is for the client: the message cannot be numbered.
    pub(crate) fn next_seq(&self, room: &str) -> Result<u64, &'static str> {
        let key = seq_key(room);
        for _ in 0..MAX_TRIES {
            let last = store::get(&key);
            let seq = number(last.as_deref()) + 1;
            let text = seq.to_string();
            match store::compare_and_set(&key, last.as_deref(), text.as_bytes(), Some(self.ttl)) {
                Ok(true) => return Ok(seq),
                Ok(false) => {}
                Err(StoreError::Full) => return Err("there is no memory for another room"),
                Err(_) => break,
            }
        }
        Err("the room is busy: say it again")
    }

    /// Keeps a message of this number. If the store is full it is said all the same.
    pub(crate) fn keep(&self, room: &str, seq: u64, message: &str) {
        if self.n_messages == 0 {
            return;
        }
        if let Some(oldest) = seq.checked_sub(self.n_messages) {
            store::delete(&message_key(room, oldest));
        }
        // It is missing in the history, and that is all.
        let _ = store::set(&message_key(room, seq), message.as_bytes(), Some(self.ttl));
    }

    /// The last messages, oldest first: as many as fit into [`MAX_BYTES`].
    pub(crate) fn last(&self, room: &str) -> Vec<String> {
        let newest = match self.n_messages {
            0 => 0,
            _ => number(store::get(&seq_key(room)).as_deref()),
        };
        let oldest = newest.saturating_sub(self.n_messages) + 1;
        let mut n_bytes = 0;
        let mut messages: Vec<String> = (oldest..=newest)
            .rev()
            // One that has its number may not be written yet.
            .filter_map(|seq| String::from_utf8(store::get(&message_key(room, seq))?).ok())
            .take_while(|message| {
                n_bytes += message.len();
                n_bytes <= MAX_BYTES
            })
            .collect();
        messages.reverse();
        messages
    }
}

fn number(text: Option<&[u8]>) -> u64 {
    let number = text.and_then(|text| str::from_utf8(text).ok()?.parse().ok());
    number.unwrap_or(0)
}

fn seq_key(room: &str) -> String {
    format!("seq/{room}")
}

fn message_key(room: &str, seq: u64) -> String {
    format!("said/{seq}/{room}")
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing;

    use super::*;

    const HISTORY: History = History {
        n_messages: 3,
        ttl: Duration::from_secs(60),
    };

    fn say(message: &str) {
        let seq = HISTORY.next_seq("r").unwrap();
        HISTORY.keep("r", seq, message);
    }

    #[test]
    fn the_last_messages_are_kept_and_no_more() {
        testing::restart();
        assert_eq!(HISTORY.last("r"), [""; 0]);
        for message in ["a", "b", "c", "d"] {
            say(message);
        }
        assert_eq!(HISTORY.last("r"), ["b", "c", "d"]);
        assert_eq!(store::get("said/1/r"), None);
        assert_eq!(HISTORY.last("other"), [""; 0]);
    }

    /// Two workers have numbers, and the later one writes first.
    #[test]
    fn the_order_is_that_of_the_numbers() {
        testing::restart();
        say("a");
        let (b, c) = (HISTORY.next_seq("r"), HISTORY.next_seq("r"));
        HISTORY.keep("r", c.unwrap(), "c");
        assert_eq!(HISTORY.last("r"), ["a", "c"]);
        HISTORY.keep("r", b.unwrap(), "b");
        assert_eq!(HISTORY.last("r"), ["a", "b", "c"]);
    }

    #[test]
    fn a_room_in_which_nothing_is_said_is_forgotten() {
        testing::restart();
        say("a");
        testing::advance(Duration::from_secs(59));
        say("b");
        testing::advance(Duration::from_secs(59));
        assert_eq!(HISTORY.last("r"), ["b"]);
        assert_eq!(HISTORY.next_seq("r"), Ok(3));
        testing::advance(Duration::from_secs(60));
        assert_eq!(HISTORY.last("r"), [""; 0]);
        assert_eq!(HISTORY.next_seq("r"), Ok(1));
    }

    #[test]
    fn a_long_history_is_cut_where_it_is_old() {
        testing::restart();
        say("old");
        say(&"m".repeat(MAX_BYTES - 3));
        say("new");
        assert_eq!(HISTORY.last("r").len(), 2);
        say("newer");
        assert_eq!(HISTORY.last("r"), ["new", "newer"]);
    }

    #[test]
    fn no_history_is_kept_where_none_is_wanted() {
        testing::restart();
        let none = History {
            n_messages: 0,
            ..HISTORY
        };
        assert_eq!(none.next_seq("r"), Ok(1));
        none.keep("r", 1, "a");
        assert_eq!(store::get("said/1/r"), None);
        assert_eq!(none.last("r"), [""; 0]);
    }

    #[test]
    fn a_full_store_takes_no_new_room_and_old_ones_go_on() {
        testing::restart();
        say("a");
        testing::set_store_max_bytes(0);
        assert!(HISTORY.next_seq("new").unwrap_err().contains("no memory"));
        testing::set_store_max_bytes(1024);
        let seq = HISTORY.next_seq("r").unwrap();
        testing::set_store_max_bytes(0);
        HISTORY.keep("r", seq, "b");
        assert_eq!(HISTORY.last("r"), ["a"]);
    }
}
