//! Whether what a peer sends of a message comes on. Pure: the time is handed in.
//!
//! A message that has begun has a time to come whole in. Each time that as much of it has come as a slow
//! client brings in that time, the time starts over: so a client that is slow but steady is not ended
//! whatever it sends, and one that has stopped, or brings a byte now and then, is. Only payload counts, and
//! no more of it than a message may have, so that no stream of nothing goes on for ever.

use std::time::Duration;

use pointsman_protocol::messages::UnderWay;
use tokio::time::Instant;

/// What a client is expected to bring of a message, over the time that one has. Far less than any network
/// carries; a byte now and then is not it.
const MIN_BYTES_PER_SEC: f64 = 64.0;

/// The pace of one peer.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the time began that runs, and where the message was then.
    begun: Option<(Instant, UnderWay)>,
}

impl Pace {
    /// Looks at what is under way; none: nothing, or it is not read now. True: it takes too long.
    pub(super) fn is_too_slow(
        &mut self,
        now: Instant,
        allowed: Duration,
        under_way: Option<UnderWay>,
    ) -> bool {
        let Some(at) = under_way else {
            self.begun = None;
            return false;
        };
        let expected = MIN_BYTES_PER_SEC * allowed.as_secs_f64();
        match self.begun {
            Some((since, then))
                if then.nth == at.nth && ((at.n_bytes - then.n_bytes) as f64) < expected =>
            {
                now - since >= allowed
            }
            _ => {
                self.begun = Some((now, at));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks twice a second at what `n_bytes` says of each second; after how many it is too slow.
    fn ends(allowed_secs: u64, at: impl Fn(f64) -> Option<UnderWay>) -> Option<f64> {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        let allowed = Duration::from_secs(allowed_secs);
        (0..2000).map(|look| f64::from(look) / 2.0).find(|&secs| {
            pace.is_too_slow(begun + Duration::from_secs_f64(secs), allowed, at(secs))
        })
    }

    fn under_way(nth: u64, n_bytes: f64) -> Option<UnderWay> {
        Some(UnderWay {
            nth,
            n_bytes: n_bytes as u64,
        })
    }

    #[test]
    fn who_stops_or_trickles_is_too_slow_and_who_is_steady_is_not() {
        // Half a message, a header, or half a control frame, and then nothing.
        assert_eq!(ends(30, |_| under_way(0, 900_000.0)), Some(30.0));
        assert_eq!(ends(30, |_| under_way(0, 0.0)), Some(30.0));
        // A byte a second; and one that stops after a minute.
        assert_eq!(ends(30, |secs| under_way(0, secs)), Some(30.0));
        let stops = |secs: f64| under_way(0, 10_000.0 * secs.min(60.0));
        assert_eq!(ends(30, stops), Some(90.0));
        // Slow but steady, by whatever the time is.
        for allowed in [1, 30, 600] {
            assert_eq!(
                ends(allowed, |secs| under_way(0, 100.0 * secs)),
                None,
                "{allowed}"
            );
        }
        // No more comes than may, whatever is sent.
        let endless = |secs: f64| under_way(0, (1000.0 * secs).min(100_000.0));
        assert_eq!(ends(30, endless), Some(130.0));
    }

    #[test]
    fn each_message_has_its_own_time() {
        // Another byte of another message at each look.
        assert_eq!(ends(5, |secs| under_way((2.0 * secs) as u64, 1.0)), None);
        let then_stops = |secs: f64| under_way((secs as u64).min(20), 1.0);
        assert_eq!(ends(5, then_stops), Some(25.0));
        // None is under way, or it is not read, now and then.
        let now_and_then = |secs: f64| under_way(0, 1.0).filter(|_| secs % 4.0 > 0.0);
        assert_eq!(ends(5, now_and_then), None);
    }
}
