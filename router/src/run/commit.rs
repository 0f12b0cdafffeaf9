//! Commit, on condition that the topics are still the same.

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::topic_partition_list::TopicPartitionList;
use service::exit::StartOver;
use service::telemetry::names;
use service::transaction::{Failed, Transaction};
use tokio::time::Instant;

use crate::topic_ids::{NotTheSame, TopicIds};

/// Commits the transaction with these offsets on behalf of `group`, unless a topic was replaced.
///
/// # Errors
/// If the commit is not confirmed.
pub(super) async fn commit(
    transaction: &Transaction<'_>,
    offsets: &TopicPartitionList,
    group: &ConsumerGroupMetadata,
    topic_ids: &TopicIds,
) -> Result<(), Failed> {
    let begun = Instant::now();
    let condition = same_topics(topic_ids, transaction);
    let committed = transaction.commit_if(offsets, group, condition).await;
    metrics::histogram!(names::OPERATION_DURATION, "messaging_operation_name" => "commit")
        .record(begun.elapsed());
    committed
}

/// Checks that the records belong to the topic whose offsets are committed.
async fn same_topics(topic_ids: &TopicIds, transaction: &Transaction<'_>) -> Result<(), Failed> {
    match topic_ids.compare_before_commit(transaction.client()).await {
        Ok(()) => Ok(()),
        Err(NotTheSame::Changed(error)) => Err(Failed::Exit(error.into())),
        Err(NotTheSame::Unanswered(error)) => Err(Failed::Abort(error)),
    }
}

/// The error that ends these clients: this producer cannot begin another transaction.
pub(super) fn producer_error(failed: Failed) -> anyhow::Error {
    match failed {
        Failed::Exit(error) => error,
        Failed::StartOver(error) => StartOver(format!("{error:#}")).into(),
        Failed::Abort(error) => StartOver(error.to_string()).into(),
    }
}
