//! Why a record cannot be read or written.

use crate::framing::WriterSchema;

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DecodeError {
    /// The record has no value at all.
    #[error("the record has no value (null)")]
    NoValue,
    /// The value has no bytes.
    #[error("the value is empty (0 bytes)")]
    Empty,
    /// The value does not begin with a known framing.
    #[error(
        "the value begins with {found}{hint}, not with C3 01 and a schema fingerprint, nor with 00 and a schema id; write it in Avro single-object encoding"
    )]
    UnknownFraming {
        /// The first bytes, in hexadecimal.
        found: String,
        /// The format that they look like, if any.
        hint: &'static str,
    },
    /// No known version of the schema has this fingerprint.
    #[error(
        "no version of {record} that is known here has the schema fingerprint {fingerprint:016x}; update this program, or give it the writer's .avsc file by --schemas"
    )]
    UnknownSchema {
        /// The record's name.
        record: &'static str,
        /// The fingerprint found.
        fingerprint: u64,
    },
    /// The value has a registry's framing, and no registry is configured.
    #[error(
        "the value is in a schema registry's framing, with the schema id {id}, but no registry is configured; give its address by --schema-registry"
    )]
    NoSchemaRegistry {
        /// The id found.
        id: u32,
    },
    /// The registry knows no schema of this id.
    #[error(
        "the schema registry {registry} has no schema of the id {id}; was the record written with another registry, or is it no Avro at all?"
    )]
    UnknownSchemaId {
        /// The registry's address.
        registry: String,
        /// The id found.
        id: u32,
    },
    /// The registry's schema of this id is not one of the record.
    #[error("the schema of the id {id} cannot be read as {record}: {reason}")]
    OtherSchema {
        /// The record's name.
        record: &'static str,
        /// The id found.
        id: u32,
        /// The difference.
        reason: String,
    },
    /// The bytes end early or do not match the schema.
    #[error("not a {record} of {writer}: {reason}")]
    Malformed {
        /// The record's name.
        record: &'static str,
        /// The schema named by the bytes.
        writer: WriterSchema,
        /// The decoder's reason.
        reason: String,
    },
    /// Bytes are left after the record.
    #[error("{count} bytes are left after the {record}")]
    TrailingBytes {
        /// The record's name.
        record: &'static str,
        /// Their number.
        count: usize,
    },
}

impl DecodeError {
    /// The kind as a fixed word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoValue => "NoValue",
            Self::Empty => "Empty",
            Self::UnknownFraming { .. } => "UnknownFraming",
            Self::UnknownSchema { .. } => "UnknownSchema",
            Self::NoSchemaRegistry { .. } => "NoSchemaRegistry",
            Self::UnknownSchemaId { .. } => "UnknownSchemaId",
            Self::OtherSchema { .. } => "OtherSchema",
            Self::Malformed { .. } => "Malformed",
            Self::TrailingBytes { .. } => "TrailingBytes",
        }
    }
}

/// The types do not match the schema: a defect of this program, never of its input.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode {record}: {reason}")]
pub struct EncodeError {
    pub(crate) record: &'static str,
    pub(crate) reason: String,
}
