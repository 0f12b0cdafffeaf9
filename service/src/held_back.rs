//! Records behind the last stable offset, which an open transaction holds back from committed readers.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A last stable offset that has not moved for this long is logged. Transactions of running routers end
/// within a second.
const NOTED_AFTER: Duration = Duration::from_secs(5);

/// Ends of a partition's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// The last stable offset.
    pub(crate) stable: i64,
    /// The high watermark.
    pub(crate) high: i64,
}

/// The partitions of a topic whose records an open transaction holds back.
#[derive(Debug, Default)]
pub(crate) struct HeldBack(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The last stable offset of each partition with records behind it, and since when it has not moved.
    since: BTreeMap<i32, (i64, Instant)>,
    /// Start of the logged condition.
    noted: Option<Instant>,
}

impl HeldBack {
    /// Takes the ends of all assigned partitions.
    pub(crate) fn observe(&self, topic: &str, ends: &BTreeMap<i32, Ends>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = state.observe(Instant::now(), topic, ends);
        drop(state);
        match line {
            Some((true, line)) => tracing::warn!("{line}"),
            Some((false, line)) => tracing::info!("{line}"),
            None => {}
        }
    }
}

impl State {
    /// Returns the line to log, and whether it begins the condition.
    fn observe(
        &mut self,
        now: Instant,
        topic: &str,
        ends: &BTreeMap<i32, Ends>,
    ) -> Option<(bool, String)> {
        let known = std::mem::take(&mut self.since);
        let held = ends.iter().filter(|(_, ends)| ends.high > ends.stable);
        self.since = held
            .map(|(partition, ends)| {
                let same = known
                    .get(partition)
                    .filter(|(stable, _)| *stable == ends.stable);
                let since = same.map_or(now, |(_, since)| *since);
                (*partition, (ends.stable, since))
            })
            .collect();
        let is_long = |since: Instant| now.duration_since(since) >= NOTED_AFTER;
        let long = self.since.iter().filter(|(_, (_, since))| is_long(*since));
        let first = long.clone().map(|(_, (_, since))| *since).min();
        match (self.noted, first) {
            (None, Some(since)) => {
                self.noted = Some(since);
                let partitions: Vec<_> = long
                    .map(|(partition, (stable, _))| format!("{partition} from offset {stable}"))
                    .collect();
                Some((
                    true,
                    format!(
                        "waiting for an open transaction, {} s so far: it holds back the records behind it in {topic}, \
                         partition {}. They are read once the transaction commits or aborts; the brokers abort it after its \
                         transaction.timeout.ms (30 s for a router by default). If that does not happen: \
                         kafka-transactions.sh --bootstrap-server … find-hanging --topic {topic}",
                        now.duration_since(since).as_secs(),
                        partitions.join(", ")
                    ),
                ))
            }
            (Some(since), None) => {
                self.noted = None;
                Some((
                    false,
                    format!(
                        "the open transaction that held back {topic} has ended after {} s",
                        now.duration_since(since).as_secs()
                    ),
                ))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_stays_open_is_logged_once_and_committed_ones_are_not() {
        let (mut state, begun) = (State::default(), Instant::now());
        let mut lines = Vec::new();
        for second in 0..60 {
            let busy = Ends {
                stable: second as i64,
                high: second as i64 + 1,
            };
            let stuck = Ends {
                stable: 7,
                high: if second < 40 { 9 } else { 7 },
            };
            let ends = BTreeMap::from([(0, busy), (3, stuck)]);
            let line = state.observe(begun + Duration::from_secs(second), "e", &ends);
            lines.extend(line.map(|(begins, line)| (second, begins, line)));
        }
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert_eq!((lines[0].0, lines[0].1), (5, true));
        assert!(
            lines[0].2.contains("in e, partition 3 from offset 7."),
            "{lines:?}"
        );
        assert_eq!((lines[1].0, lines[1].1), (40, false));
        assert!(lines[1].2.contains("after 40 s"), "{lines:?}");
    }
}
