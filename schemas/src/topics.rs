//! Names of topics and of the headers that dead letters carry.

/// What engines say: one `TaskRunningInfo` a record, key `execId`.
pub const TASK_RUNNING_INFO: &str = "task-running-info";
/// What the router made of it: one `TaskRunningInfoEvent` a record, same key.
pub const TASK_RUNNING_INFO_EVENTS: &str = "task-running-info-events";
/// Records that could not be used: original key and value, and the headers of [`dead_letter`].
pub const TASK_RUNNING_INFO_DEAD_LETTERS: &str = "task-running-info-dead-letters";

/// Headers of a dead letter. The names are those of Kafka Connect's dead letter queues
/// (`org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter`), so that tools made for
/// those read ours.
pub mod dead_letter {
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
}
