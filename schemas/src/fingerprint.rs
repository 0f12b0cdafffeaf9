//! The CRC-64-AVRO fingerprint of a schema, which is in the header of each record.

use apache_avro::Schema;
use apache_avro::rabin::Rabin;
use serde_json::Value;

/// CRC-64-AVRO of a schema's parsing canonical form.
///
/// For a logical type, apache-avro 0.22 writes `{"type":"long"}` instead of the canonical `"long"`, so its
/// fingerprint differs from that of Java's org.apache.avro and Python's fastavro. Without logical types, its
/// canonical form follows the specification, so other attributes are removed first.
pub(crate) fn fingerprint(avsc: &Value) -> Result<u64, apache_avro::Error> {
    let schema = Schema::parse(&canonical(avsc))?;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&schema.fingerprint::<Rabin>().bytes);
    Ok(u64::from_le_bytes(bytes))
}

/// The attributes of the canonical form, and the namespace, which becomes part of the names.
fn canonical(schema: &Value) -> Value {
    match schema {
        Value::Object(attributes) => attributes
            .iter()
            .filter_map(|(name, value)| match name.as_str() {
                "name" | "namespace" | "symbols" | "size" => Some((name.clone(), value.clone())),
                "type" | "items" | "values" | "fields" => Some((name.clone(), canonical(value))),
                _ => None,
            })
            .collect(),
        Value::Array(several) => several.iter().map(canonical).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EVENT_VERSIONS, INFO_VERSIONS};

    fn of(avsc: &str) -> u64 {
        fingerprint(&serde_json::from_str(avsc).unwrap()).unwrap()
    }

    #[test]
    fn the_released_fingerprints_are_computed() {
        for version in INFO_VERSIONS.iter().chain(EVENT_VERSIONS) {
            assert_eq!(of(version.avsc), version.fingerprint);
        }
    }

    /// fastavro 1.12.0 gives this number for all three.
    #[test]
    fn attributes_outside_the_canonical_form_do_not_change_the_fingerprint() {
        let same = [
            r#"{"type": "record", "name": "R", "namespace": "n", "fields": [
                {"name": "at", "type": "long"}, {"name": "f", "type": {"type": "fixed", "name": "F", "size": 12}}]}"#,
            r#"{"fields": [{"default": 0, "order": "ignore", "type": {"logicalType": "timestamp-nanos", "type": "long"}, "name": "at"},
                {"name": "f", "type": {"logicalType": "duration", "type": "fixed", "name": "F", "size": 12}}],
                "name": "n.R", "type": "record", "aliases": ["Old"], "doc": "why", "more": {"type": "int"}}"#,
            r#"{"type": "record", "name": "R", "namespace": "n", "fields": [
                {"name": "at", "type": {"type": "long", "logicalType": "not-known"}, "aliases": ["was"]},
                {"name": "f", "type": {"type": "fixed", "name": "n.F", "size": 12}}]}"#,
        ];
        for avsc in same {
            assert_eq!(of(avsc), 0xc54e_6a48_6cfa_400b, "{avsc}");
        }
        let other = same[0].replace("12", "13");
        assert_ne!(of(&other), of(same[0]));
    }
}
