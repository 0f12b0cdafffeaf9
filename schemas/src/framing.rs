//! The two framings of records. Each identifies the writer's schema:
//!
//! - Avro single-object encoding (Avro 1.11 specification, "Single-object encoding"): `C3 01`, the
//!   CRC-64-AVRO fingerprint of the writer's schema in 8 bytes little endian, then the datum;
//! - Confluent's, where a schema registry is used: `00`, the schema's id there in 4 bytes big endian,
//!   then the datum.

use std::fmt;

use crate::versions::{CURRENT_EVENT, CURRENT_INFO, EVENT_VERSIONS, Version};

pub(crate) const MARKER: [u8; 2] = [0xC3, 0x01];
pub(crate) const HEADER_BYTES: usize = 10;

/// Headers of records of the current versions.
pub(crate) const INFO_HEADER: [u8; HEADER_BYTES] = header(CURRENT_INFO);
pub(crate) const EVENT_HEADER: [u8; HEADER_BYTES] = header(CURRENT_EVENT);
/// Headers of events of versions 1 and 2, which also have a zero-copy path.
pub(crate) const EVENT_V1_HEADER: [u8; HEADER_BYTES] = header(&EVENT_VERSIONS[0]);
pub(crate) const EVENT_V2_HEADER: [u8; HEADER_BYTES] = header(&EVENT_VERSIONS[1]);

const fn header(current: &Version) -> [u8; HEADER_BYTES] {
    let [a, b, c, d, e, f, g, h] = current.fingerprint.to_le_bytes();
    [MARKER[0], MARKER[1], a, b, c, d, e, f, g, h]
}

/// First byte of a registry's framing; the id follows.
pub(crate) const MAGIC: u8 = 0;
const ID_HEADER_BYTES: usize = 5;

/// The framing of written records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Avro single-object encoding.
    #[default]
    SingleObject,
    /// Confluent's, with the registry's id of the current version's schema.
    Registry(u32),
}

impl Framing {
    /// Appends a record's header; `single_object` is the header in the other framing.
    pub(crate) fn begin(self, single_object: &[u8; HEADER_BYTES], bytes: &mut Vec<u8>) {
        match self {
            Self::SingleObject => bytes.extend_from_slice(single_object),
            Self::Registry(id) => bytes.extend_from_slice(&id_header(id)),
        }
    }

    /// Size of the header, in bytes.
    pub fn header_bytes(self) -> usize {
        match self {
            Self::SingleObject => HEADER_BYTES,
            Self::Registry(_) => ID_HEADER_BYTES,
        }
    }

    /// Replaces the header of a record in single-object encoding, in place.
    pub fn put_on(self, record: &mut Vec<u8>) {
        if let Self::Registry(id) = self
            && record.len() >= HEADER_BYTES
        {
            record.splice(..HEADER_BYTES, id_header(id));
        }
    }
}

fn id_header(id: u32) -> [u8; ID_HEADER_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [MAGIC, a, b, c, d]
}

/// Splits a value in a registry's framing into id and datum.
pub(crate) fn split_id(value: &[u8]) -> Option<(u32, &[u8])> {
    match value.split_first_chunk() {
        Some(([MAGIC, a, b, c, d], datum)) => Some((u32::from_be_bytes([*a, *b, *c, *d]), datum)),
        _ => None,
    }
}

/// The writer's schema as named by a record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterSchema {
    /// Its CRC-64-AVRO.
    Fingerprint(u64),
    /// Its id in the schema registry.
    Id(u32),
}

impl fmt::Display for WriterSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fingerprint(fingerprint) => write!(f, "schema {fingerprint:016x}"),
            Self::Id(id) => write!(f, "schema id {id}"),
        }
    }
}
