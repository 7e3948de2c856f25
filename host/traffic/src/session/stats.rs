//! What a session counts: for the metrics as it goes, and in the end for its report.

use std::sync::Arc;

use pointsman_contract::session::{EndReport, Ender};
use pointsman_metrics::counters::TargetCounters;
use tokio::time::Instant;

use crate::relay::Moved;

/// The counts of one session, from its 101 on; it is counted as open until they are dropped.
#[derive(Debug)]
pub(super) struct SessionStats {
    counters: Arc<TargetCounters>,
    begun: Instant,
    up: Moved,
    down: Moved,
}

impl SessionStats {
    /// Begins at the moment of the call.
    pub(super) fn new(counters: Arc<TargetCounters>) -> Self {
        counters.sessions.add(1);
        Self {
            counters,
            begun: Instant::now(),
            up: Moved::default(),
            down: Moved::default(),
        }
    }

    /// From the client.
    pub(super) fn bytes_up(&mut self, n: u64) {
        self.up.bytes += n;
        self.counters.bytes_up.add(n);
    }

    /// To the client.
    pub(super) fn bytes_down(&mut self, n: u64) {
        self.down.bytes += n;
        self.counters.bytes_down.add(n);
    }

    /// Whole data messages from the client.
    pub(super) fn messages_up(&mut self, n: u64) {
        self.up.messages += n;
        self.counters.messages_up.add(n);
    }

    /// Whole data messages to the client.
    pub(super) fn messages_down(&mut self, n: u64) {
        self.down.messages += n;
        self.counters.messages_down.add(n);
    }

    /// What has come to it so far: from the client, and to it.
    pub(super) fn moved(&self) -> (Moved, Moved) {
        (self.up, self.down)
    }

    /// The report of a session that ends now.
    pub(super) fn report(&self, ended_by: Ender, code: Option<u16>) -> EndReport {
        EndReport {
            ended_by,
            code,
            duration: self.begun.elapsed(),
            bytes_up: self.up.bytes,
            bytes_down: self.down.bytes,
            messages_up: self.up.messages,
            messages_down: self.down.messages,
        }
    }
}

impl Drop for SessionStats {
    fn drop(&mut self) {
        self.counters.sessions.sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_report_says_what_was_counted() {
        let counters = Arc::new(TargetCounters::default());
        let mut stats = SessionStats::new(Arc::clone(&counters));
        assert_eq!(counters.sessions.value(), 1);
        for n in [1, 10] {
            stats.bytes_up(n);
            stats.bytes_down(2 * n);
            stats.messages_up(3 * n);
            stats.messages_down(4 * n);
        }
        tokio::time::advance(Duration::from_secs(5)).await;
        let report = stats.report(Ender::Backend, Some(1001));
        let expected = EndReport {
            ended_by: Ender::Backend,
            code: Some(1001),
            duration: Duration::from_secs(5),
            bytes_up: 11,
            bytes_down: 22,
            messages_up: 33,
            messages_down: 44,
        };
        assert_eq!(report, expected);
        let counted = [
            &counters.bytes_up,
            &counters.bytes_down,
            &counters.messages_up,
            &counters.messages_down,
        ];
        assert_eq!(counted.map(|count| count.value()), [11, 22, 33, 44]);
        drop(stats);
        assert_eq!(counters.sessions.value(), 0);
    }
}
