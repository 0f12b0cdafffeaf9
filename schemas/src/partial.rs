//! What can still be read of a record that cannot be decoded as a whole.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;

use crate::{EVENT_VERSIONS, INFO_VERSIONS};

/// The fields that can be read before the fault of a value in single-object encoding, as (path,
/// JSON), in the writer's order; none when no released version wrote it. For a person: what stands
/// before a fault may be wrong already.
pub fn readable_fields(value: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let Some([0xC3, 0x01, fingerprint @ ..]) = value.first_chunk::<10>() else {
        return fields;
    };
    let known = INFO_VERSIONS
        .iter()
        .chain(EVENT_VERSIONS)
        .find(|version| version.fingerprint.to_le_bytes() == *fingerprint);
    if let Some(schema) = known.and_then(|version| Schema::parse_str(version.avsc).ok()) {
        let _ = read(&schema, &schema, "", &mut &value[10..], &mut fields);
    }
    fields
}

/// Reads field by field, into records within, up to the first that fails (`None`).
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
    // Types defined in earlier fields are referred to by name.
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
