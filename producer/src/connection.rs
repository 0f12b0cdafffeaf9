//! What comes before the first record: reach the cluster, require the topic, settle the framing.

use schemas::{CURRENT_INFO, Framing, topics};
use service::health::Health;
use service::kafka::{Cluster, KafkaOptions, NewTopic};
use service::registry::{Registry, RegistryError, until_answered};
use tokio_util::sync::CancellationToken;

/// A cluster that has the topic, and the framing to write its reports in.
pub(crate) struct Connection {
    pub(crate) cluster: Cluster,
    pub(crate) framing: Framing,
}

impl Connection {
    /// Waits while Kafka or the schema registry is unavailable. `None` if `shutdown` is cancelled meanwhile.
    ///
    /// # Errors
    /// If a setting is wrong, the topic does not exist and cannot be created, or the registry refuses the schema.
    pub(crate) async fn open(
        kafka: &KafkaOptions,
        topic: &str,
        health: &Health,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let Some(cluster) = kafka.cluster(shutdown).await? else {
            return Ok(None);
        };
        let new_topic = NewTopic::with(topics::REPORTS_SETTINGS);
        cluster
            .require_topic(topic, "Write", Some(new_topic))
            .await?;
        let framing = match Registry::of(kafka)? {
            None => Some(Framing::SingleObject),
            Some(registry) => {
                until_answered(|| register(&registry, topic), health, shutdown).await?
            }
        };
        Ok(framing.map(|framing| Self { cluster, framing }))
    }
}

/// Registers the schema of reports for the values of a topic. Returns the framing to write reports in.
pub(crate) async fn register(registry: &Registry, topic: &str) -> Result<Framing, RegistryError> {
    let subject = format!("{topic}-value");
    let id = registry.register(&subject, CURRENT_INFO.avsc).await?;
    tracing::info!(
        "reports have the schema id {id} of {subject} in the schema registry {}",
        registry.shown()
    );
    Ok(Framing::Registry(id))
}
