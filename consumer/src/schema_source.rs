//! Schemas of the events' writers: those of this version, of a folder, and of a schema registry.

use std::path::Path;

use schemas::Decoder;
use service::kafka::KafkaOptions;

pub(crate) type SchemaSource = service::schema_source::SchemaSource<Decoder>;

/// Does not connect to the registry. Logs the newer versions found in the folder.
///
/// # Errors
/// If a file of the folder is unusable, or a setting is wrong.
pub(crate) fn schema_source(
    folder: Option<&Path>,
    kafka: &KafkaOptions,
) -> anyhow::Result<SchemaSource> {
    let source = SchemaSource::of(kafka, |registry| Decoder::of(folder, registry))?;
    for version in source.decoder.newer_schemas() {
        tracing::info!("also reads the newer {version}");
    }
    Ok(source)
}
