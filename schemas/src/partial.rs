//! The readable part of a record that cannot be decoded.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;

use crate::codec::{EVENT, INFO};
use crate::{CURRENT_EVENT, CURRENT_INFO, Decoder, EVENT_VERSIONS, INFO_VERSIONS, Version};

/// The readable fields before the fault of a value, as (path, JSON), in the writer's order; empty if no
/// released version wrote it (in a registry's framing: not the current one). For people only: fields before a
/// fault may be wrong, too.
pub fn readable_fields(decoder: &Decoder, value: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let written = written(decoder, value);
    let schema = written.and_then(|(version, datum)| {
        let schema = Schema::parse_str(version.avsc).ok()?;
        Some((schema, datum))
    });
    if let Some((schema, mut datum)) = schema {
        let _ = read(&schema, &schema, "", &mut datum, &mut fields);
    }
    fields
}

/// The writer's version of a value, and the datum.
fn written<'a>(decoder: &Decoder, value: &'a [u8]) -> Option<(&'static Version, &'a [u8])> {
    if let Some(([0xC3, 0x01, fingerprint @ ..], datum)) = value.split_first_chunk::<10>() {
        let mut versions = INFO_VERSIONS.iter().chain(EVENT_VERSIONS);
        let version = versions.find(|version| version.fingerprint.to_le_bytes() == *fingerprint)?;
        return Some((version, datum));
    }
    let current = [
        (INFO.record(), CURRENT_INFO),
        (EVENT.record(), CURRENT_EVENT),
    ];
    let mut current = current.into_iter();
    current.find_map(|(record, version)| Some((version, decoder.datum_of(value, record)?)))
}

/// Reads field by field, including nested records, up to the first failure (`None`).
fn read(
    whole: &Schema,
    schema: &Schema,
    path: &str,
    datum: &mut &[u8],
    fields: &mut Vec<(String, String)>,
) -> Option<()> {
    if let Schema::Record(record) = schema {
        for field in &record.fields {
            let path = match path {
                "" => field.name.clone(),
                path => format!("{path}.{}", field.name),
            };
            read(whole, &field.schema, &path, datum, fields)?;
        }
        return Some(());
    }
    // Earlier fields may define types that are referenced by name.
    let names = apache_avro::schema::ResolvedSchema::try_from(whole).ok()?;
    let value = GenericDatumReader::builder(schema)
        .resolved_writer_schemata(names)
        .human_readable(false)
        .build()
        .ok()?
        .read_value(datum)
        .ok()?;
    let json = serde_json::Value::try_from(value).ok()?;
    fields.push((path.to_owned(), json.to_string()));
    Some(())
}
