//! The contract that producer, router and consumer share; nothing in here runs.
//!
//! - `avro/vN/*.avsc`: every released version of the two records, each file complete in itself.
//! - [`TaskRunningInfo`], [`TaskRunningInfoEvent`]: the current version as Rust types.
//! - [`encode_info`], [`decode_info`], [`encode_event`], [`decode_event`]: Avro single-object encoding of them; decoding
//!   takes every released version and gives the current one.
//! - [`Decoder`]: the same of newer versions too, which are given as files, and of a schema registry's
//!   framing, once it was told what each id means.
//! - [`plain_info`], [`plain_event`]: the records of the current version that are free of problems, read in place, fast.
//! - [`TaskRunningInfo::problems`]: everything that is wrong with a record, field by field.
//! - [`DeadLetter`]: a record that was set aside, and why: the headers of its letter.
//! - [`readable_fields`]: what can still be read of a record that cannot be decoded.
//! - [`topics`]: names of topics.

mod check;
mod codec;
pub mod dead_letter;
mod decoder;
mod fingerprint;
mod ids;
mod partial;
mod plain;
mod records;
mod resolution;
pub mod topics;
mod write;

pub use check::{
    Fault, IDENTIFIER_MAX_BYTES, Problem, REPORTED_AT_MICROS, identifier_bytes, not_finite,
};
pub use codec::{
    CURRENT_EVENT, CURRENT_INFO, DecodeError, EVENT_VERSIONS, EncodeError, Framing, INFO_VERSIONS,
    Version, Writer, decode_event, decode_info, encode_event, encode_info,
};
pub use dead_letter::{DeadLetter, Letter, Reject};
pub use decoder::{Decoder, Learned, SchemaFileError};
pub use partial::readable_fields;
pub use plain::{
    Application, Items, Job, List, NamedMetric, NotFinite, PlainEvent, PlainInfo, PlainMetric,
    PlainSource, Sorted, plain_event, plain_info,
};
pub use records::{
    Adjustment, EngineInstance, JobProgressInfo, MetricValue, ResourceWithStatus, SourcePosition,
    TaskProgressInfo, TaskResourceInfo, TaskRunningInfo, TaskRunningInfoEvent, TaskStatus,
    timestamp,
};
pub use write::{write_event, write_info};
