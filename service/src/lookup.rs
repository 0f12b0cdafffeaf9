//! Look-up of single records by partition and offset, outside any group.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::{KafkaOptions, LoggingContext, wrong_settings};
use crate::threads::blocking;

/// Timeout of a look-up.
const WITHIN: Duration = Duration::from_secs(10);

/// Reads single records of one topic.
pub struct Lookup {
    consumer: BaseConsumer<LoggingContext>,
    topic: String,
}

impl Lookup {
    /// # Errors
    /// If a setting is wrong.
    pub fn connect(options: &KafkaOptions, topic: &str) -> anyhow::Result<Self> {
        let fixed = [
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("allow.auto.create.topics", "false"),
        ];
        let defaults = [
            ("fetch.message.max.bytes", "65536"),
            ("queued.max.messages.kbytes", "4096"),
        ];
        let mut config = options.client_config(&defaults, &fixed)?;
        // The client requires a group id, though it joins no group.
        config.set("group.id", "none");
        config.remove("group.instance.id");
        let consumer = config
            .create_with_context(LoggingContext)
            .map_err(wrong_settings)?;
        Ok(Self {
            consumer,
            topic: topic.to_owned(),
        })
    }

    /// The records at these positions (partition, offset), in any order; positions without a committed record
    /// are omitted.
    ///
    /// # Errors
    /// If they could not be read within 10 s.
    pub fn records(
        &self,
        places: impl IntoIterator<Item = (i32, i64)>,
    ) -> Result<Vec<OwnedMessage>, KafkaError> {
        let mut wanted: BTreeMap<i32, VecDeque<i64>> = BTreeMap::new();
        for (partition, offset) in places {
            wanted.entry(partition).or_default().push_back(offset);
        }
        let found = blocking(|| {
            for (partition, offsets) in &mut wanted {
                // The error of an offset outside the log does not name the partition.
                let (low, end) = self
                    .consumer
                    .fetch_watermarks(&self.topic, *partition, WITHIN)?;
                offsets.retain(|offset| (low..end).contains(offset));
                offsets.make_contiguous().sort_unstable();
            }
            wanted.retain(|_, offsets| !offsets.is_empty());
            self.read(&mut wanted)
        });
        self.consumer.unassign()?;
        found
    }

    fn read(
        &self,
        wanted: &mut BTreeMap<i32, VecDeque<i64>>,
    ) -> Result<Vec<OwnedMessage>, KafkaError> {
        let mut found = Vec::new();
        let mut assignment = TopicPartitionList::new();
        for (partition, offsets) in &*wanted {
            assignment.add_partition_offset(&self.topic, *partition, Offset::Offset(offsets[0]))?;
        }
        self.consumer.assign(&assignment)?;
        let deadline = Instant::now() + WITHIN;
        while !wanted.is_empty() {
            if Instant::now() > deadline {
                return Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::OperationTimedOut,
                ));
            }
            match self.consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(record)) => {
                    let Some(offsets) = wanted.get_mut(&record.partition()) else {
                        continue;
                    };
                    while offsets.front().is_some_and(|next| *next < record.offset()) {
                        offsets.pop_front();
                    }
                    if offsets.front() == Some(&record.offset()) {
                        offsets.pop_front();
                        found.push(record.detach());
                    }
                    if offsets.is_empty() {
                        wanted.remove(&record.partition());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    wanted.remove(&partition);
                }
                // An error of the group, which is named but never joined.
                Some(Err(error))
                    if error.rdkafka_error_code()
                        == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {}
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(found)
    }
}
