//! Avro single-object encoding of the two records (Avro 1.11 specification, "Single-object
//! encoding"): `C3 01`, the CRC-64-AVRO fingerprint of the writer's schema in 8 bytes little
//! endian, then the datum. The fingerprint finds the version that wrote the bytes.

use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{TaskRunningInfo, TaskRunningInfoEvent};

/// A released version of a record.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// CRC-64-AVRO of the schema's parsing canonical form. Written down rather than computed:
    /// apache-avro 0.22 writes `{"type":"long"}` where the canonical form of a logical type is
    /// `"long"`, so it comes to another number than Java's org.apache.avro and Python's fastavro.
    pub fingerprint: u64,
    /// The schema, as `.avsc` text.
    pub avsc: &'static str,
}

/// Every released version of `TaskRunningInfo`, oldest first.
pub const INFO_VERSIONS: &[Version] = &[Version {
    fingerprint: 0x944a_4f94_29e9_c6b6,
    avsc: include_str!("../avro/v1/TaskRunningInfo.avsc"),
}];
/// Every released version of `TaskRunningInfoEvent`, oldest first.
pub const EVENT_VERSIONS: &[Version] = &[Version {
    fingerprint: 0x34e3_436a_c13c_e5f9,
    avsc: include_str!("../avro/v1/TaskRunningInfoEvent.avsc"),
}];

const MARKER: [u8; 2] = [0xC3, 0x01];
const HEADER_BYTES: usize = 10;

/// Bytes that one record's decoding may set aside for a claimed length. Records are at most a few
/// MiB, whatever they claim.
const MAX_CLAIMED_BYTES: usize = 32 << 20;

static INFO: LazyLock<Codec> = LazyLock::new(|| Codec::new("TaskRunningInfo", INFO_VERSIONS));
static EVENT: LazyLock<Codec> =
    LazyLock::new(|| Codec::new("TaskRunningInfoEvent", EVENT_VERSIONS));

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DecodeError {
    /// The record has no value at all.
    #[error("the record has no value (null)")]
    NoValue,
    /// The value has no bytes.
    #[error("the value is empty (0 bytes)")]
    Empty,
    /// The value does not begin as a single-object encoding does.
    #[error(
        "the value begins with {found}{hint}, not with C3 01 and a schema fingerprint; write it in Avro single-object encoding"
    )]
    UnknownFraming {
        /// The first bytes, in hexadecimal.
        found: String,
        /// What that looks like, if it looks like something.
        hint: &'static str,
    },
    /// No released version of the schema has this fingerprint.
    #[error(
        "no released version of {record} has the schema fingerprint {fingerprint:016x}; update this program or the writer"
    )]
    UnknownSchema {
        /// The record's name.
        record: &'static str,
        /// The fingerprint found.
        fingerprint: u64,
    },
    /// The bytes end early or are not what the schema says.
    #[error("not a {record} of schema {fingerprint:016x}: {reason}")]
    Malformed {
        /// The record's name.
        record: &'static str,
        /// The fingerprint found.
        fingerprint: u64,
        /// The decoder's reason.
        reason: String,
    },
    /// Bytes are left after the record.
    #[error("{count} bytes are left after the {record}")]
    TrailingBytes {
        /// The record's name.
        record: &'static str,
        /// How many.
        count: usize,
    },
}

impl DecodeError {
    /// A fixed word for the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoValue => "NoValue",
            Self::Empty => "Empty",
            Self::UnknownFraming { .. } => "UnknownFraming",
            Self::UnknownSchema { .. } => "UnknownSchema",
            Self::Malformed { .. } => "Malformed",
            Self::TrailingBytes { .. } => "TrailingBytes",
        }
    }
}

/// The types disagree with the schema: a defect of this program, never of its input.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode {record}: {reason}")]
pub struct EncodeError {
    record: &'static str,
    reason: String,
}

/// A `TaskRunningInfo` in single-object encoding, header and all.
///
/// # Errors
/// Only if the Rust types and the schema disagree.
pub fn encode_info(info: &TaskRunningInfo) -> Result<Vec<u8>, EncodeError> {
    INFO.encode(info)
}

/// A `TaskRunningInfoEvent` in single-object encoding, header and all.
///
/// # Errors
/// Only if the Rust types and the schema disagree.
pub fn encode_event(event: &TaskRunningInfoEvent) -> Result<Vec<u8>, EncodeError> {
    EVENT.encode(event)
}

/// Reads a `TaskRunningInfo` of any released version.
///
/// # Errors
/// What is wrong with the bytes; see [`DecodeError`]. Trailing bytes are an error.
pub fn decode_info(value: Option<&[u8]>) -> Result<TaskRunningInfo, DecodeError> {
    INFO.decode(value)
}

/// Reads a `TaskRunningInfoEvent` of any released version.
///
/// # Errors
/// What is wrong with the bytes; see [`DecodeError`]. Trailing bytes are an error.
pub fn decode_event(value: Option<&[u8]>) -> Result<TaskRunningInfoEvent, DecodeError> {
    EVENT.decode(value)
}

/// Splits the header off: the writer's fingerprint and the datum.
fn unframe(value: &[u8]) -> Result<(u64, &[u8]), DecodeError> {
    match value.split_at_checked(HEADER_BYTES) {
        Some(([0xC3, 0x01, fingerprint @ ..], datum)) => {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(fingerprint);
            Ok((u64::from_le_bytes(bytes), datum))
        }
        _ if value.is_empty() => Err(DecodeError::Empty),
        _ => Err(DecodeError::UnknownFraming {
            found: value
                .iter()
                .take(4)
                .map(|byte| format!("{byte:02X}"))
                .collect::<Vec<_>>()
                .join(" "),
            hint: match value[0] {
                0xC3 if MARKER.starts_with(&value[..value.len().min(2)]) => {
                    " (cut off in the header)"
                }
                0x00 => " (a schema registry's framing, but no registry is configured)",
                b'{' => " (JSON)",
                b'O' if value.starts_with(b"Obj\x01") => " (an Avro container file)",
                _ => "",
            },
        }),
    }
}

/// One record's reader and writer, made once: schemas are parsed and resolved a single time.
struct Codec {
    record: &'static str,
    fingerprint: u64,
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    /// Readers of older versions by fingerprint, each resolving to the current version.
    older: Vec<(u64, GenericDatumReader<'static>)>,
}

impl Codec {
    /// `versions` oldest first; the last is the current one.
    #[expect(
        clippy::expect_used,
        reason = "the schemas are part of this program, and a test parses them"
    )]
    fn new(record: &'static str, versions: &[Version]) -> Self {
        apache_avro::util::max_allocation_bytes(MAX_CLAIMED_BYTES);
        let parse = |version: &Version| -> &'static Schema {
            Box::leak(Box::new(
                Schema::parse_str(version.avsc).expect("a released schema parses"),
            ))
        };
        let (current, older) = versions.split_last().expect("at least one version");
        let current_schema = parse(current);
        let reader = |schema, resolve_to| {
            GenericDatumReader::builder(schema)
                .maybe_reader_schema(resolve_to)
                .human_readable(false)
                .build()
                .expect("a released schema resolves")
        };
        Self {
            record,
            fingerprint: current.fingerprint,
            writer: GenericDatumWriter::builder(current_schema)
                .human_readable(false)
                .build()
                .expect("a released schema resolves"),
            reader: reader(current_schema, None),
            older: older
                .iter()
                .map(|version| {
                    (
                        version.fingerprint,
                        reader(parse(version), Some(current_schema)),
                    )
                })
                .collect(),
        }
    }

    fn encode(&self, record: &impl Serialize) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(&MARKER);
        bytes.extend_from_slice(&self.fingerprint.to_le_bytes());
        self.writer
            .write_ser(&mut bytes, record)
            .map_err(|error| EncodeError {
                record: self.record,
                reason: error.to_string(),
            })?;
        Ok(bytes)
    }

    fn decode<R: DeserializeOwned>(&self, value: Option<&[u8]>) -> Result<R, DecodeError> {
        let record = self.record;
        let (fingerprint, mut datum) = unframe(value.ok_or(DecodeError::NoValue)?)?;
        let decoded = if fingerprint == self.fingerprint {
            self.reader.read_deser(&mut datum)
        } else if let Some((_, older)) = self.older.iter().find(|(known, _)| *known == fingerprint)
        {
            older
                .read_value(&mut datum)
                .and_then(|value| apache_avro::from_value(&value))
        } else {
            return Err(DecodeError::UnknownSchema {
                record,
                fingerprint,
            });
        }
        .map_err(|error| DecodeError::Malformed {
            record,
            fingerprint,
            reason: error.to_string(),
        })?;
        match datum.len() {
            0 => Ok(decoded),
            count => Err(DecodeError::TrailingBytes { record, count }),
        }
    }
}
