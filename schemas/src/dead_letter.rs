//! A record that was set aside, and why: the headers that its letter carries.
//!
//! The names are those of Kafka Connect's dead letter queues
//! (`org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter`), so that tools made for
//! those read ours. A letter has the original key and value.

use crate::{DecodeError, Problem};

/// Topic of the record that was set aside.
pub const TOPIC: &str = "__connect.errors.topic";
/// Its partition, in decimal digits.
pub const PARTITION: &str = "__connect.errors.partition";
/// Its offset, in decimal digits.
pub const OFFSET: &str = "__connect.errors.offset";
/// The service that set it aside: `router` or `consumer`.
pub const CONNECTOR_NAME: &str = "__connect.errors.connector.name";
/// The instance of that service: its instance id, else its host name.
pub const TASK_ID: &str = "__connect.errors.task.id";
/// Where it failed: `VALUE_CONVERTER` (unreadable) or `TRANSFORMATION` (unusable).
pub const STAGE: &str = "__connect.errors.stage";
/// The Rust path of what refused it.
pub const CLASS_NAME: &str = "__connect.errors.class.name";
/// The kind of fault, a fixed word a kind: for grouping and filtering.
pub const EXCEPTION_CLASS_NAME: &str = "__connect.errors.exception.class.name";
/// What was found and where, for a person.
pub const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
/// The original record's timestamp, milliseconds since 1970 in decimal digits; absent when it
/// had none. The letter itself is stamped with the time it was written. (Ours, not Connect's.)
pub const TIMESTAMP_MS: &str = "taskrunning.original.timestamp.ms";
/// Bytes of the original value when the letter leaves it out because it would have been larger
/// than its topic takes: then it points at topic, partition and offset only. (Ours.)
pub const OMITTED_VALUE_BYTES: &str = "taskrunning.original.value.omitted.bytes";

/// Why a record was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// See [`STAGE`].
    pub stage: &'static str,
    /// See [`CLASS_NAME`].
    pub refused_by: &'static str,
    /// See [`EXCEPTION_CLASS_NAME`].
    pub kind: &'static str,
    /// See [`EXCEPTION_MESSAGE`].
    pub message: String,
}

impl From<DecodeError> for Reject {
    fn from(error: DecodeError) -> Self {
        Self {
            stage: "VALUE_CONVERTER",
            refused_by: "schemas::DecodeError",
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

impl Reject {
    /// The reject of a record with these problems, if any of them makes it unusable: named by the
    /// first of those, with all problems told.
    pub fn of_problems(problems: &[Problem]) -> Option<Self> {
        let unusable = problems
            .iter()
            .find(|problem| problem.fault.adjustment().is_none())?;
        let all: Vec<String> = problems.iter().map(Problem::to_string).collect();
        Some(Self {
            stage: "TRANSFORMATION",
            refused_by: "schemas::Problem",
            kind: unusable.fault.as_str(),
            message: all.join("; "),
        })
    }
}

/// A letter's envelope: where the record stood, who set it aside, and why.
#[derive(Clone, Debug)]
pub struct DeadLetter<'a> {
    /// The record's topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its Kafka timestamp, milliseconds since 1970, if it had one.
    pub timestamp_ms: Option<i64>,
    /// `router` or `consumer`.
    pub service: &'a str,
    /// The service's instance.
    pub instance: &'a str,
    /// Why.
    pub reject: &'a Reject,
}

impl DeadLetter<'_> {
    /// The headers, in a fixed order.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (TOPIC, self.topic.to_owned()),
            (PARTITION, self.partition.to_string()),
            (OFFSET, self.offset.to_string()),
            (CONNECTOR_NAME, self.service.to_owned()),
            (TASK_ID, self.instance.to_owned()),
            (STAGE, self.reject.stage.to_owned()),
            (CLASS_NAME, self.reject.refused_by.to_owned()),
            (EXCEPTION_CLASS_NAME, self.reject.kind.to_owned()),
            (EXCEPTION_MESSAGE, self.reject.message.clone()),
        ];
        headers.extend(self.timestamp_ms.map(|ms| (TIMESTAMP_MS, ms.to_string())));
        headers
    }
}
