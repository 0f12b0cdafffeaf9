//! Which schemas wrote the events: those of this version, of a folder, and of a schema registry.

use std::path::Path;

use anyhow::anyhow;
use schemas::Decoder;
use service::exit::NeedsAttention;
use service::health::Health;
use service::kafka::KafkaOptions;
use service::registry::{Registry, RegistryError, until_answered};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Reads events of this version, of those in the folder, and of those in the registry, where each id
/// was asked for first.
pub(crate) struct Writers {
    pub(crate) decoder: Decoder,
    registry: Option<Registry>,
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
        for version in decoder.learned() {
            tracing::info!("reads newer {version} too");
        }
        if let Some(registry) = &registry {
            decoder = decoder.with_registry(registry.shown());
        }
        Ok(Self {
            decoder,
            registry,
            runtime: Handle::current(),
        })
    }

    /// Asks once what has this id.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) async fn learn(&self, id: u32) -> Result<(), RegistryError> {
        if let Some(registry) = &self.registry {
            self.decoder
                .learn_id(id, registry.schema(id).await?.as_deref());
        }
        Ok(())
    }

    /// Learns what wrote a value; for a thread that may block, on behalf of a command that ends by
    /// itself, so a registry that is away is not waited for long.
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

    /// As [`learn_soon`](Self::learn_soon), but a registry that is away is waited for.
    ///
    /// # Errors
    /// If waiting does not help, or `stop` is cancelled.
    pub(crate) fn learn_at_last(
        &self,
        value: Option<&[u8]>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if let (Some(id), Some(registry)) = (self.decoder.unknown_id(value), &self.registry) {
            let health = Health::default();
            let asked = until_answered(|| registry.schema(id), &health, stop);
            let answer = self.runtime.block_on(asked)?;
            let schema = answer.ok_or_else(|| anyhow!("stopped by a signal"))?;
            self.decoder.learn_id(id, schema.as_deref());
        }
        Ok(())
    }
}
