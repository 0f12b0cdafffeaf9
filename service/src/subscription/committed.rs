//! The group's committed offsets.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::stream::{ASK, Subscription};
use crate::kafka::LoggingContext;
use crate::threads::blocking;
use crate::transaction::transaction_timeout;

/// How long the broker may withhold committed offsets before the reason is checked.
const ASK_STABLE: Duration = Duration::from_secs(3);

/// Why the group's committed offsets are unknown.
#[derive(Debug, thiserror::Error)]
pub enum NoCommitted {
    /// Kafka does not answer.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// A transaction that commits offsets of the group is open; its outcome is pending.
    #[error(
        "an open transaction of another member of group {group} may commit offsets, and Kafka withholds them until it ends: \
         when that member commits or aborts, or up to 10 s after its transaction.timeout.ms ({} s by default)",
        .longest.as_secs()
    )]
    OpenTransaction {
        /// The group.
        group: String,
        /// `transaction.timeout.ms` of this program.
        longest: Duration,
    },
}

impl Subscription {
    /// The group's committed offsets of these partitions, with their metadata; sends one request.
    ///
    /// # Errors
    /// If Kafka is unavailable, or an earlier owner's transaction is still open: try again.
    pub fn committed(
        &self,
        partitions: &TopicPartitionList,
    ) -> Result<TopicPartitionList, NoCommitted> {
        type Ask<'a> = &'a dyn Fn(Duration) -> KafkaResult<TopicPartitionList>;
        let ask = |asked: Ask<'_>, within| -> KafkaResult<TopicPartitionList> {
            let offsets = blocking(|| asked(within))?;
            for partition in offsets.elements() {
                partition.error()?;
            }
            Ok(offsets)
        };
        let stable = |within| self.consumer.committed_offsets(partitions.clone(), within);
        let error: KafkaError = match ask(&stable, ASK_STABLE) {
            Ok(offsets) => return Ok(offsets),
            Err(error) => error,
        };
        // While a transaction that commits offsets is open, the broker withholds them, and librdkafka retries
        // until the timeout without giving the reason. A read_uncommitted reader gets an answer at once.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::OperationTimedOut) {
            return Err(error.into());
        }
        let uncommitted: BaseConsumer<LoggingContext> = self
            .options
            .client_config(&[("enable.auto.commit", "false")], &[])
            .and_then(|mut config| {
                config.set("group.id", &self.group);
                config.set("isolation.level", "read_uncommitted");
                Ok(config.create_with_context(LoggingContext)?)
            })
            .map_err(|_| error.clone())?;
        let unstable = |within| uncommitted.committed_offsets(partitions.clone(), within);
        ask(&unstable, ASK)?;
        // So it was not an outage, unless the brokers have come back meanwhile.
        match ask(&stable, ASK_STABLE) {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut) =>
            {
                Err(NoCommitted::OpenTransaction {
                    group: self.group.clone(),
                    longest: transaction_timeout(&self.options),
                })
            }
            asked => Ok(asked?),
        }
    }
}
