//! Reading and writing the two records with apache-avro, in any framing and version.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{DecodeError, EncodeError};
use crate::fingerprint::fingerprint;
use crate::framing::{HEADER_BYTES, MAGIC, MARKER, WriterSchema, split_id};
use crate::ids::{Ids, Known};
use crate::resolution::{Parsed, Resolution};
use crate::versions::{EVENT_VERSIONS, INFO_VERSIONS, Version};
use crate::{TaskRunningInfo, TaskRunningInfoEvent};

/// Resolutions of newer versions, by fingerprint.
pub(crate) type Newer = HashMap<u64, Resolution>;

/// Bytes that apache-avro may allocate for a claimed length. Its input has been checked before; this is a
/// second limit.
const MAX_CLAIMED_BYTES: usize = 32 << 20;

pub(crate) static INFO: LazyLock<Codec> =
    LazyLock::new(|| Codec::new("TaskRunningInfo", INFO_VERSIONS));
pub(crate) static EVENT: LazyLock<Codec> =
    LazyLock::new(|| Codec::new("TaskRunningInfoEvent", EVENT_VERSIONS));

/// Encodes a `TaskRunningInfo` in single-object encoding, including the header.
///
/// # Errors
/// Only if the Rust types and the schema disagree.
pub fn encode_info(info: &TaskRunningInfo) -> Result<Vec<u8>, EncodeError> {
    INFO.encode(info)
}

/// Encodes a `TaskRunningInfoEvent` in single-object encoding, including the header.
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
    INFO.decode(value, &Newer::new(), None)
}

/// Reads a `TaskRunningInfoEvent` of any released version.
///
/// # Errors
/// What is wrong with the bytes; see [`DecodeError`]. Trailing bytes are an error.
pub fn decode_event(value: Option<&[u8]>) -> Result<TaskRunningInfoEvent, DecodeError> {
    EVENT.decode(value, &Newer::new(), None)
}

/// Splits a value into the writer's schema, from the header, and the datum.
fn unframe(value: &[u8]) -> Result<(WriterSchema, &[u8]), DecodeError> {
    if let Some((id, datum)) = split_id(value) {
        return Ok((WriterSchema::Id(id), datum));
    }
    match value.split_at_checked(HEADER_BYTES) {
        Some(([0xC3, 0x01, fingerprint @ ..], datum)) => {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(fingerprint);
            Ok((WriterSchema::Fingerprint(u64::from_le_bytes(bytes)), datum))
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
                MAGIC => " (a schema registry's framing, cut off in the header)",
                b'{' => " (JSON)",
                b'O' if value.starts_with(b"Obj\x01") => " (an Avro container file)",
                _ => "",
            },
        }),
    }
}

/// Codec of one record type, created once: schemas are parsed and resolved a single time.
pub(crate) struct Codec {
    record: &'static str,
    fingerprint: u64,
    current: Parsed,
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    older: Newer,
}

/// A schema and its fingerprint.
pub(crate) struct Fingerprinted {
    pub(crate) fingerprint: u64,
    parsed: Parsed,
}

impl Fingerprinted {
    /// Name of the record; `None` if the schema is not a record's.
    pub(crate) fn name(&self) -> Option<&'static str> {
        match self.parsed.schema() {
            Schema::Record(record) => Some(record.name.name()),
            _ => None,
        }
    }
}

impl Codec {
    /// `versions`, oldest first; the last is the current one.
    #[expect(
        clippy::expect_used,
        reason = "the schemas are part of this program, and a test parses them"
    )]
    pub(crate) fn new(record: &'static str, versions: &[Version]) -> Self {
        apache_avro::util::max_allocation_bytes(MAX_CLAIMED_BYTES);
        let parse = |version: &Version| {
            let schema = Schema::parse_str(version.avsc).expect("a released schema parses");
            Parsed::new(schema).expect("a released schema resolves")
        };
        let (newest, older) = versions.split_last().expect("at least one version");
        let current = parse(newest);
        Self {
            record,
            fingerprint: newest.fingerprint,
            writer: GenericDatumWriter::builder(current.schema())
                .human_readable(false)
                .build()
                .expect("a released schema resolves"),
            reader: GenericDatumReader::builder(current.schema())
                .human_readable(false)
                .build()
                .expect("a released schema resolves"),
            older: older
                .iter()
                .map(|version| {
                    let resolution = Resolution::new(parse(version), &current);
                    let resolution = resolution.expect("a released schema fits the current one");
                    (version.fingerprint, resolution)
                })
                .collect(),
            current,
        }
    }

    /// Parses the text of any schema.
    pub(crate) fn parse(avsc: &str) -> Result<Fingerprinted, String> {
        let json: serde_json::Value =
            serde_json::from_str(avsc).map_err(|error| format!("not JSON: {error}"))?;
        let no_schema = |error: apache_avro::Error| format!("not an Avro schema: {error}");
        Ok(Fingerprinted {
            fingerprint: fingerprint(&json).map_err(no_schema)?,
            parsed: Schema::parse(&json)
                .and_then(Parsed::new)
                .map_err(no_schema)?,
        })
    }

    pub(crate) fn record(&self) -> &'static str {
        self.record
    }

    /// Whether this is the current version's fingerprint.
    pub(crate) fn is_current(&self, fingerprint: u64) -> bool {
        fingerprint == self.fingerprint
    }

    /// Whether a released version has this fingerprint.
    pub(crate) fn knows(&self, fingerprint: u64) -> bool {
        fingerprint == self.fingerprint || self.older.contains_key(&fingerprint)
    }

    /// The resolution from another schema to the current version.
    pub(crate) fn resolution(&self, writer: Fingerprinted) -> Result<Resolution, String> {
        Resolution::new(writer.parsed, &self.current)
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

    /// Reads a record of a released version, of one of `newer`, or of a registry's schema.
    pub(crate) fn decode<R: DeserializeOwned>(
        &self,
        value: Option<&[u8]>,
        newer: &Newer,
        ids: Option<&Ids>,
    ) -> Result<R, DecodeError> {
        let (writer, datum) = self.datum(value.ok_or(DecodeError::NoValue)?, newer, ids)?;
        self.reader
            .read_deser(&mut &*datum)
            .map_err(|error| self.malformed(writer, error.to_string()))
    }

    /// Minimum size of a repaired record with this value's content, in bytes; `None` if the value is not such
    /// a record. Scans the bytes, and allocates only for a record of another version.
    pub(crate) fn least_bytes(
        &self,
        value: &[u8],
        newer: &Newer,
        ids: Option<&Ids>,
    ) -> Option<usize> {
        let (_, datum) = self.datum(value, newer, ids).ok()?;
        self.current.least_bytes(&datum)
    }

    /// Resolves a value of any version to a checked datum of the current version.
    fn datum<'a>(
        &self,
        value: &'a [u8],
        newer: &Newer,
        ids: Option<&Ids>,
    ) -> Result<(WriterSchema, Cow<'a, [u8]>), DecodeError> {
        let record = self.record;
        let (writer, datum) = unframe(value)?;
        let datum = match writer {
            WriterSchema::Fingerprint(fingerprint) if fingerprint == self.fingerprint => {
                self.resolve(writer, datum, None)
            }
            WriterSchema::Fingerprint(fingerprint) => {
                let older = self.older.get(&fingerprint);
                let other = older.or_else(|| newer.get(&fingerprint));
                let unknown = DecodeError::UnknownSchema {
                    record,
                    fingerprint,
                };
                self.resolve(writer, datum, Some(other.ok_or(unknown)?))
            }
            WriterSchema::Id(id) => {
                let ids = ids.ok_or(DecodeError::NoSchemaRegistry { id })?;
                let other = |reason: String| DecodeError::OtherSchema { record, id, reason };
                ids.look(id, |known| match known {
                    Some(Known::Current(name)) if *name == record => {
                        self.resolve(writer, datum, None)
                    }
                    Some(Known::Other {
                        record: name,
                        resolution,
                        ..
                    }) if *name == record => self.resolve(writer, datum, Some(resolution)),
                    Some(Known::Current(name) | Known::Other { record: name, .. }) => {
                        Err(other(format!("it is one of {name}")))
                    }
                    Some(Known::Unfit(reason)) => Err(other(reason.clone())),
                    Some(Known::Missing(_)) | None => Err(DecodeError::UnknownSchemaId {
                        registry: ids.registry().to_owned(),
                        id,
                    }),
                })
            }
        }?;
        Ok((writer, datum))
    }

    /// Resolves a datum of the current version, or of one that resolves to it, to the current version.
    fn resolve<'a>(
        &self,
        writer: WriterSchema,
        datum: &'a [u8],
        other: Option<&Resolution>,
    ) -> Result<Cow<'a, [u8]>, DecodeError> {
        // The bytes are checked before anything is allocated for their claims.
        let (datum, left) = match other {
            None => {
                let left = self.current.check(datum);
                left.map(|left| (Cow::Borrowed(datum), left))
            }
            Some(other) => {
                let resolved = other.resolve(datum);
                resolved.map(|(datum, left)| (Cow::Owned(datum), left))
            }
        }
        .map_err(|fault| self.malformed(writer, fault.to_string()))?;
        if left > 0 {
            return Err(DecodeError::TrailingBytes {
                record: self.record,
                count: left,
            });
        }
        Ok(datum)
    }

    fn malformed(&self, writer: WriterSchema, reason: String) -> DecodeError {
        DecodeError::Malformed {
            record: self.record,
            writer,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    /// During an upgrade, programs of all versions run side by side, so each version must be read as each
    /// other: an older one by a newer program, a newer one by an older program with its file.
    #[test]
    fn each_released_version_is_read_as_each_other() {
        let parsed = |version: &Version| {
            let schema = Schema::parse_str(version.avsc).unwrap();
            Parsed::new(schema).unwrap()
        };
        for versions in [INFO_VERSIONS, EVENT_VERSIONS] {
            for writer in versions {
                for reader in versions {
                    Resolution::new(parsed(writer), &parsed(reader)).unwrap();
                }
            }
        }
    }

    /// A consumer that is replaced after its routers, with the file of their version.
    #[test]
    fn programs_of_older_versions_read_current_events_without_newer_fields() {
        let mut source = crate::SourcePosition {
            topic: "t".into(),
            partition: 1,
            offset: 2,
            timestamp: 3,
            topic_id: Some("ASNFZ4mrze8AESIzRFVmdw".into()),
        };
        let event = TaskRunningInfoEvent {
            source: source.clone(),
            routed_at: 4,
            adjustments: vec![],
            not_finite: [("metrics.busy".to_owned(), "NaN".to_owned())].into(),
            info: TaskRunningInfo {
                exec_id: "e".into(),
                ..TaskRunningInfo::default()
            },
        };
        let value = encode_event(&event).unwrap();
        let (newest, older) = EVENT_VERSIONS.split_last().unwrap();
        // Newest first: fields that an older version does not know are dropped.
        for (i, version) in older.iter().enumerate().rev() {
            let older = Codec::new("TaskRunningInfoEvent", &[*version]);
            let resolution = older.resolution(Codec::parse(newest.avsc).unwrap());
            let newer = Newer::from([(newest.fingerprint, resolution.unwrap())]);
            let read: TaskRunningInfoEvent = older.decode(Some(&value), &newer, None).unwrap();
            if i == 0 {
                source.topic_id = None;
            }
            let expected = TaskRunningInfoEvent {
                source: source.clone(),
                not_finite: std::collections::BTreeMap::new(),
                ..event.clone()
            };
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn each_file_of_a_version_is_in_the_list_of_versions() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("avro");
        let count = std::fs::read_dir(&folder).unwrap().count();
        for (record, versions) in [
            ("TaskRunningInfo", INFO_VERSIONS),
            ("TaskRunningInfoEvent", EVENT_VERSIONS),
        ] {
            // A folder has the records that changed with it.
            let files = (1..=count).map(|i| folder.join(format!("v{i}/{record}.avsc")));
            let files = files.filter_map(|file| std::fs::read_to_string(file).ok());
            let listed = versions.iter().map(|version| version.avsc);
            assert!(files.eq(listed), "{record}");
        }
    }

    /// A type that no released version has.
    #[test]
    fn a_program_of_a_newer_version_reads_records_of_older_ones() {
        let mut avsc: serde_json::Value = serde_json::from_str(INFO_VERSIONS[0].avsc).unwrap();
        let fields = avsc["fields"].as_array_mut().unwrap();
        for (name, kind, default) in [
            ("attempt", json!("int"), json!(7)),
            ("region", json!("string"), json!("eu")),
            (
                "tags",
                json!({"type": "array", "items": "string"}),
                json!(["a", "b"]),
            ),
            (
                "shape",
                json!({"type": "record", "name": "Shape", "fields": [
                    {"name": "size", "type": "double"}, {"name": "unit", "type": ["null", "string"]}]}),
                json!({"size": 1.5, "unit": null}),
            ),
            (
                "endedAt",
                json!(["null", {"type": "long", "logicalType": "timestamp-micros"}]),
                json!(null),
            ),
        ] {
            let field = json!({"name": name, "type": kind, "default": default});
            fields.insert(1, field);
        }
        let by_name = |name: &str| {
            let found = fields.iter().position(|field| field["name"] == name);
            found.unwrap()
        };
        let (engine, status) = (by_name("engine"), by_name("status"));
        fields[engine]["type"]["fields"][4]["type"] = json!("long");
        let symbols = fields[status]["type"]["symbols"].as_array_mut().unwrap();
        symbols.insert(1, json!("Paused"));
        let text = avsc.to_string();
        let second = Version {
            fingerprint: fingerprint(&avsc).unwrap(),
            avsc: text.leak(),
        };

        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename = "TaskRunningInfo", rename_all = "camelCase")]
        struct Second {
            exec_id: String,
            attempt: i32,
            region: String,
            tags: Vec<String>,
            shape: Shape,
            ended_at: Option<i64>,
            engine: Engine,
            status: crate::TaskStatus,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        struct Shape {
            size: f64,
            unit: Option<String>,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename = "EngineInstance", rename_all = "camelCase")]
        struct Engine {
            running_tasks: i64,
        }

        let first: TaskRunningInfo = serde_json::from_value(json!({
            "execId": "e", "jobId": "j", "status": "Timeout", "reportedAt": 5, "sequence": 6,
            "engine": {"instance": "i", "engineType": "t", "runningTasks": 9},
        }))
        .unwrap();
        let bytes = encode_info(&first).unwrap();
        let newer = Codec::new("TaskRunningInfo", &[INFO_VERSIONS[0], second]);
        let read: Second = newer.decode(Some(&bytes), &Newer::new(), None).unwrap();
        let expected = Second {
            exec_id: "e".into(),
            attempt: 7,
            region: "eu".into(),
            tags: vec!["a".into(), "b".into()],
            shape: Shape {
                size: 1.5,
                unit: None,
            },
            ended_at: None,
            engine: Engine { running_tasks: 9 },
            status: crate::TaskStatus::Timeout,
        };
        assert_eq!(read, expected);
        assert!(newer.knows(INFO_VERSIONS[0].fingerprint) && newer.knows(second.fingerprint));
    }
}
