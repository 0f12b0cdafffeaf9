//! The contract shared by producer, router and consumer: records, encodings and names.
//!
//! - `avro/vN/*.avsc`: every released version of the two records, each file self-contained.
//! - [`TaskRunningInfo`], [`TaskRunningInfoEvent`]: the current version as Rust types.
//! - [`encode_info`], [`decode_info`], [`encode_event`], [`decode_event`]: Avro single-object encoding;
//!   decoding accepts every released version and returns the current one.
//! - [`Decoder`]: decoding of newer versions, too, from files, and of a schema registry's framing.
//! - [`plain_info`], [`plain_event`]: zero-copy reading of records without problems.
//! - [`TaskRunningInfo::problems`]: validation, field by field.
//! - [`DeadLetter`]: headers of dead letters.
//! - [`readable_fields`]: the readable part of a record that cannot be decoded.
//! - [`topics`]: names of topics.

// Layers, highest first: a module uses its own layer and those below.

mod decoder;
mod partial;

mod codec;
pub mod dead_letter;
mod write;

mod ids;
mod plain;

mod check;
mod error;
mod fingerprint;
mod resolution;

mod framing;
mod records;
pub mod topics;

mod versions;

pub use check::{Fault, IDENTIFIER_MAX_BYTES, Problem, REPORTED_AT_MICROS, identifier_bytes};
pub use codec::{decode_event, decode_info, encode_event, encode_info};
pub use dead_letter::{DeadLetter, Letter, Reject};
pub use decoder::{Decoder, NewerSchema, SchemaFileError};
pub use error::{DecodeError, EncodeError};
pub use framing::{Framing, WriterSchema};
pub use partial::readable_fields;
pub use plain::{
    Application, Items, Job, List, NamedMetric, NotFinite, PlainEvent, PlainInfo, PlainMetric,
    PlainSource, Sorted, plain_event, plain_info,
};
pub use records::{
    Adjustment, EngineInstance, JobProgressInfo, MetricValue, ResourceWithStatus, SourcePosition,
    TaskProgressInfo, TaskResourceInfo, TaskRunningInfo, TaskRunningInfoEvent, TaskStatus,
    not_finite, timestamp,
};
pub use versions::{CURRENT_EVENT, CURRENT_INFO, EVENT_VERSIONS, INFO_VERSIONS, Version};
pub use write::{write_event, write_info};
