//! The group's committed offsets in Kafka: how far each partition is stored, for tools that show lag. The database
//! decides where a consumer resumes, so these may be late, but a member commits the last ones before it gives up a
//! partition.
//!
//! One OffsetCommit is in flight at a time; meanwhile only the newest offsets wait. If one were sent per transaction,
//! they would queue up whenever the database commits faster than the coordinator answers. Heartbeats would wait behind
//! them, librdkafka would give up no partition before all are answered, and the group would expel the member.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::offset_commit::OffsetCommit;
use service::subscription::Subscription;
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::letters::{Committed, offsets};

/// Maximum wait for the last offsets to be committed before partitions are given up or the group is left. A healthy
/// coordinator takes two or three round trips.
pub(super) const SETTLE: Duration = Duration::from_secs(3);

/// Poll interval for the answer.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A failed commit is logged at WARN at most this often, otherwise at DEBUG: it is retried, and only lag tools notice.
const FAILURES_EVERY: Duration = Duration::from_secs(60);

/// The offsets that this member has committed.
#[derive(Default)]
pub(super) struct Commits<'a> {
    /// The next offset of each partition, as last sent.
    sent: BTreeMap<i32, i64>,
    state: State<'a>,
    /// When a failure was last logged at WARN.
    failure_logged: Option<Instant>,
}

#[derive(Default)]
enum State<'a> {
    #[default]
    Answered,
    InFlight(OffsetCommit<'a>),
    /// Nothing is sent until the next idle check.
    Failed,
}

impl<'a> Commits<'a> {
    /// Starts with the group's committed offsets of newly assigned partitions.
    pub(super) fn take_over(&mut self, committed: &TopicPartitionList) {
        // Offsets sent during a rebalance may have been refused.
        self.sent.clear();
        let known = committed.elements();
        self.sent
            .extend(known.iter().filter_map(|element| match element.offset() {
                Offset::Offset(next) => Some((element.partition(), next)),
                _ => None,
            }));
    }

    /// Drops the state of partitions that go to another owner.
    pub(super) fn forget(&mut self, partitions: &[i32]) {
        self.sent
            .retain(|partition, _| !partitions.contains(partition));
    }

    /// Whether this next offset of a partition has not been sent yet.
    pub(super) fn is_news(&self, partition: i32, next: i64) -> bool {
        self.sent.get(&partition) != Some(&next)
    }

    /// Whether another commit may be sent. Processes the answer to the one in flight, if it has arrived.
    pub(super) fn is_free(&mut self) -> bool {
        let State::InFlight(commit) = &self.state else {
            return matches!(self.state, State::Answered);
        };
        match commit.answer() {
            None => false,
            Some(Ok(())) => {
                self.state = State::Answered;
                true
            }
            Some(Err(error)) => {
                self.failed(&error);
                false
            }
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    /// Whether the last commit was answered without an error.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.state, State::Answered)
    }

    /// Allows commits again after a failure.
    pub(super) fn retry(&mut self) {
        if self.has_failed() {
            self.state = State::Answered;
        }
    }

    /// All offsets are sent again, whichever were refused.
    fn failed(&mut self, error: &impl std::fmt::Display) {
        self.state = State::Failed;
        self.sent.clear();
        let what = "committing the group's offsets failed, retrying";
        match self.failure_logged {
            Some(logged) if logged.elapsed() < FAILURES_EVERY => tracing::debug!("{what}: {error}"),
            _ => {
                self.failure_logged = Some(Instant::now());
                tracing::warn!("{what}: {error}");
            }
        }
    }

    /// Waits until no commit is in flight, at most [`SETTLE`]: librdkafka may resend one after later commits.
    ///
    /// # Errors
    /// If there is no answer to it by then.
    pub(super) async fn until_answered(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE;
        loop {
            self.is_free();
            if !matches!(self.state, State::InFlight(_)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Failure::Retry(
                    "Kafka to answer a commit of offsets".to_owned(),
                ));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    pub(super) fn send(&mut self, subscription: &'a Subscription, committed: &[Committed]) {
        let sent: KafkaResult<OffsetCommit<'a>> =
            offsets(subscription.topic(), committed).and_then(|list| subscription.commit(&list));
        match sent {
            Ok(commit) => {
                self.state = State::InFlight(commit);
                for offset in committed {
                    self.sent.insert(offset.partition, offset.next);
                }
            }
            Err(error) => self.failed(&error),
        }
    }
}
