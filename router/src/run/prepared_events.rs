//! Events prepared while the previous transaction commits. A transactional producer has one transaction at a
//! time, so these events wait here until the next one begins.

use std::ops::Range;
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::BaseRecord;
use schemas::Adjustment;
use service::breaker::Breaker;
use service::subscription::{Next, Subscription};
use service::transaction::{Failed, Transaction};

use super::work::Work;
use crate::route::Outcome;
use crate::transform::Transform;

/// Maximum size of the prepared keys and values, in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Polling interval while no record is waiting.
const PAUSE: Duration = Duration::from_micros(200);

/// Events that are not in a transaction yet.
#[derive(Default)]
pub(super) struct PreparedEvents {
    events: Vec<Event>,
    /// Keys and values of all events.
    bytes: Vec<u8>,
}

struct Event {
    /// The partition and the offset of the source record.
    partition: i32,
    offset: i64,
    /// Ranges of key and value in [`PreparedEvents::bytes`].
    key: Range<usize>,
    value: Range<usize>,
    adjustments: Vec<Adjustment>,
}

impl PreparedEvents {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Routes waiting records until `is_done`. Stops at the first record that does not become an event and at
    /// a rebalance, and returns it.
    pub(super) fn fill<'s>(
        &mut self,
        subscription: &'s Subscription,
        transform: &mut Transform<'_>,
        max_event_bytes: usize,
        max_records: usize,
        is_done: impl Fn() -> bool,
    ) -> anyhow::Result<Option<Next<'s>>> {
        // Leaves room for one record that may become a dead letter.
        while !is_done() && self.events.len() + 1 < max_records && self.bytes.len() < MAX_BYTES {
            let record = match subscription.try_next()? {
                Some(Next::Record(record)) => record,
                Some(rebalance) => return Ok(Some(rebalance)),
                None => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            match transform.apply(&record, max_event_bytes) {
                Outcome::Event {
                    key,
                    value,
                    adjustments,
                } => self.push(&record, &key, value, adjustments),
                Outcome::DeadLetter(_) => return Ok(Some(Next::Record(record))),
            }
        }
        Ok(None)
    }

    fn push(
        &mut self,
        record: &BorrowedMessage<'_>,
        key: &str,
        value: &[u8],
        adjustments: Vec<Adjustment>,
    ) {
        let key_start = self.bytes.len();
        self.bytes.extend_from_slice(key.as_bytes());
        let value_start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.events.push(Event {
            partition: record.partition(),
            offset: record.offset(),
            key: key_start..value_start,
            value: value_start..self.bytes.len(),
            adjustments,
        });
    }

    /// Sends the events in a transaction. If one cannot be sent, `work` still names all of them, so that they are
    /// read again.
    pub(super) async fn send(
        &mut self,
        transaction: &Transaction<'_>,
        events_topic: &str,
        breaker: &mut Breaker,
        work: &mut Work,
    ) -> Result<(), Failed> {
        for event in &self.events {
            work.read(event.partition, event.offset);
        }
        for event in self.events.drain(..) {
            breaker.accept();
            work.events += 1;
            work.adjustments.extend(event.adjustments);
            let record = BaseRecord::to(events_topic)
                .key(&self.bytes[event.key])
                .payload(&self.bytes[event.value]);
            transaction.send(record).await?;
        }
        self.bytes.clear();
        Ok(())
    }

    /// Drops the events; their records are read again.
    pub(super) fn give_back(&mut self, work: &mut Work) {
        for event in self.events.drain(..) {
            work.read_again_from(event.partition, event.offset);
        }
        self.bytes.clear();
    }
}
