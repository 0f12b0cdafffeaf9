//! Encoding of records with schemas outside this program, by apache-avro.

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::Value as Json;

/// A value in single-object encoding.
pub(crate) fn encode(avsc: &Json, fingerprint: u64, value: impl Into<Value>) -> Vec<u8> {
    let schema = Schema::parse(avsc).unwrap();
    let value = value.into().resolve(&schema).unwrap();
    let mut bytes = [&[0xC3, 0x01][..], &fingerprint.to_le_bytes()].concat();
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    writer.write_value(&mut bytes, value).unwrap();
    bytes
}
