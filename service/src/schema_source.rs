//! Source of writers' schemas: a decoder that knows some, and the schema registry for the others.

use std::fmt::Display;
use std::time::Duration;

use anyhow::anyhow;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::error::NeedsAttention;
use crate::health::Health;
use crate::kafka::KafkaOptions;
use crate::registry::{Registry, RegistryError, until_answered};

/// How long a command that ends by itself waits for a registry that does not answer.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(30);

/// A decoder of records, and the registry for schemas that it does not know.
pub struct SchemaSource<D> {
    /// The decoder. Give it the schema of an unknown id before it decodes the record.
    pub decoder: D,
    /// The registry, if one is configured.
    pub registry: Option<Registry>,
    runtime: Handle,
}

impl<D> SchemaSource<D> {
    /// `decoder` builds a decoder from the files of `--schemas`, given the registry's address, if one is
    /// configured. Does not connect to the registry.
    ///
    /// # Errors
    /// If a file is unusable, or a setting is wrong.
    pub fn of<E: Display>(
        kafka: &KafkaOptions,
        decoder: impl FnOnce(Option<&str>) -> Result<D, E>,
    ) -> anyhow::Result<Self> {
        let registry = Registry::of(kafka)?;
        let decoder = decoder(registry.as_ref().map(Registry::shown))
            .map_err(|error| NeedsAttention(format!("--schemas: {error}")))?;
        Ok(Self {
            decoder,
            registry,
            runtime: Handle::current(),
        })
    }

    /// The text of the schema with this id; `None` if there is none. Sends one request.
    ///
    /// # Errors
    /// If the registry does not answer, or refuses.
    pub async fn schema(&self, id: u32) -> Result<Option<String>, RegistryError> {
        match &self.registry {
            Some(registry) => registry.schema(id).await,
            None => Ok(None),
        }
    }

    /// As [`schema`](Self::schema), blocking, for commands that end by themselves: waits up to 30 s for an
    /// unavailable registry.
    ///
    /// # Errors
    /// If there is no answer, or `stop` is cancelled.
    pub fn schema_soon(&self, id: u32, stop: &CancellationToken) -> anyhow::Result<Option<String>> {
        self.blocking(id, stop, Some(REGISTRY_TIMEOUT))
    }

    /// As [`schema_soon`](Self::schema_soon), but waits without limit.
    ///
    /// # Errors
    /// If the registry refuses, or `stop` is cancelled.
    pub fn schema_eventually(
        &self,
        id: u32,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<String>> {
        self.blocking(id, stop, None)
    }

    fn blocking(
        &self,
        id: u32,
        stop: &CancellationToken,
        within: Option<Duration>,
    ) -> anyhow::Result<Option<String>> {
        let Some(registry) = &self.registry else {
            return Ok(None);
        };
        let health = Health::default();
        let asked = until_answered(|| registry.schema(id), &health, stop);
        // In an async block, because a timer must be created inside the runtime.
        let answer = self.runtime.block_on(async {
            match within {
                Some(within) => timeout(within, asked).await.map_err(|_| {
                    anyhow!(
                        "the schema registry {} does not answer within {} s",
                        registry.shown(),
                        within.as_secs()
                    )
                })?,
                None => asked.await,
            }
        });
        answer?.ok_or_else(|| anyhow!("stopped by a signal"))
    }
}
