//! An outage of the schema registry: a record whose schema only the registry knows cannot be decoded, so nothing is
//! read until the registry answers. The member stays in its group meanwhile.

use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::Offset;
use service::backoff::Backoff;
use service::exit::NeedsAttention;
use service::registry::RegistryError;
use service::subscription::Subscription;
use service::{repeats, warn_of_change};
use tokio::time::Instant;

use super::router::{Outage, Router};

impl Router<'_> {
    /// Whether the schema of a record is known. If not, requests it from the schema registry; if that is
    /// unavailable, begins an outage.
    ///
    /// # Errors
    /// If the registry refuses.
    pub(super) async fn can_decode(
        &mut self,
        record: &BorrowedMessage<'_>,
    ) -> anyhow::Result<bool> {
        let schemas = &self.transform.codec.schemas;
        let (Some(id), Some(registry)) = (
            schemas.decoder.unknown_id(record.payload()),
            &schemas.registry,
        ) else {
            return Ok(true);
        };
        match registry.schema(id).await {
            Ok(schema) => {
                schemas.decoder.learn_id(id, schema.as_deref());
                Ok(true)
            }
            Err(RegistryError::Refused(why)) => Err(NeedsAttention(why).into()),
            Err(RegistryError::Away(what)) => {
                warn_of_change!("waiting for {what}");
                let mut backoff = Backoff::default();
                let next_try = Instant::now() + backoff.pause();
                self.outage = Some(Outage {
                    schema_id: id,
                    waiting_for: what,
                    backoff,
                    next_try,
                });
                Ok(false)
            }
        }
    }

    /// Pauses at this record, which is read again when the outage ends.
    pub(super) fn pause_at(
        &self,
        subscription: &Subscription,
        record: &BorrowedMessage<'_>,
    ) -> anyhow::Result<()> {
        let offset = Offset::Offset(record.offset());
        subscription.seek(&[(record.partition(), offset)].into())?;
        self.pause_in_outage(subscription)
    }

    /// Pauses all assigned partitions if there is an outage.
    pub(super) fn pause_in_outage(&self, subscription: &Subscription) -> anyhow::Result<()> {
        let Some(outage) = &self.outage else {
            return Ok(());
        };
        self.health.waiting_for(outage.waiting_for.clone());
        subscription.pause()
    }

    /// Repeats the request; an answer ends the outage.
    pub(super) async fn ask_registry_again(
        &mut self,
        subscription: &Subscription,
    ) -> anyhow::Result<()> {
        let schemas = &self.transform.codec.schemas;
        let (Some(outage), Some(registry)) = (&mut self.outage, &schemas.registry) else {
            return Ok(());
        };
        let asked = tokio::select! {
            () = self.shutdown.cancelled() => return Ok(()),
            asked = registry.schema(outage.schema_id) => asked,
        };
        match asked {
            Ok(schema) => {
                schemas
                    .decoder
                    .learn_id(outage.schema_id, schema.as_deref());
                let after = repeats::end(module_path!());
                tracing::info!("the schema registry answers again, {after}");
                self.outage = None;
                self.health.answered();
                subscription.resume()
            }
            Err(RegistryError::Refused(why)) => Err(NeedsAttention(why).into()),
            Err(RegistryError::Away(what)) => {
                warn_of_change!("waiting for {what}");
                outage.next_try = Instant::now() + outage.backoff.pause();
                outage.waiting_for.clone_from(&what);
                self.health.waiting_for(what);
                Ok(())
            }
        }
    }
}
