//! Which schemas wrote the records: those of this version, of a folder, and of a schema registry.

use std::path::Path;

use schemas::Decoder;
use service::exit::NeedsAttention;
use service::kafka::KafkaOptions;
use service::registry::Registry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Reads records of this version, of those in the folder, and of those in the registry, where each id
/// was asked for first.
pub(crate) struct Writers {
    pub(crate) decoder: Decoder,
    pub(crate) registry: Option<Registry>,
    runtime: Handle,
}

impl Writers {
    /// Asks no registry yet.
    ///
    /// # Errors
    /// If a file of the folder is of no use, or a setting is wrong.
    pub(crate) fn of(schemas: Option<&Path>, kafka: &KafkaOptions) -> anyhow::Result<Self> {
        let registry = Registry::of(kafka)?;
        let mut decoder = Decoder::with_schemas(schemas)
            .map_err(|error| NeedsAttention(format!("--schemas: {error}")))?;
        if let Some(registry) = &registry {
            decoder = decoder.with_registry(registry.shown());
        }
        Ok(Self {
            decoder,
            registry,
            runtime: Handle::current(),
        })
    }

    /// Learns what wrote a value, if that is not known; for a thread that may block, on behalf of a
    /// command that ends by itself, so a registry that is away is not waited for long.
    ///
    /// # Errors
    /// If there is no answer, or `stop` is cancelled.
    pub(crate) fn learn_soon(
        &self,
        value: Option<&[u8]>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if let (Some(id), Some(registry)) = (self.decoder.unknown_id(value), &self.registry) {
            let schema = registry.schema_soon(id, &self.runtime, stop)?;
            self.decoder.learn_id(id, schema.as_deref());
        }
        Ok(())
    }
}
