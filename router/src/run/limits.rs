//! Maximum record sizes of the output topics.

use schemas::{DeadLetter, Letter};
use service::limits::SizeLimits;
use service::transaction::{Failed, TransactionalProducer};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Maximum record sizes of the output topics: key, value and headers, in bytes.
pub(super) struct Limits {
    pub(super) event_bytes: usize,
    events_topic: String,
    letters_topic: String,
    sizes: SizeLimits,
}

impl Limits {
    pub(super) async fn read(config: &Config) -> anyhow::Result<Self> {
        let (events_topic, letters_topic) = (&config.events_topic, &config.dead_letters_topic);
        let sizes = SizeLimits::read(&config.kafka, &[events_topic, letters_topic]).await?;
        Ok(Self {
            event_bytes: sizes.record_bytes(events_topic),
            events_topic: events_topic.clone(),
            letters_topic: letters_topic.clone(),
            sizes,
        })
    }

    /// Maximum size of a batch for both topics.
    pub(super) fn batch_bytes(&self) -> usize {
        self.sizes.smallest()
    }

    /// Reads the limits again, unless they were read within the last seconds. Call before a record counts as
    /// too large.
    pub(super) async fn confirm(&mut self) -> Result<(), Failed> {
        let confirmed = self.sizes.confirm().await;
        confirmed.map_err(Failed::unread_limit)?;
        self.update();
        Ok(())
    }

    /// Reads the limits again after the broker refused a record or a batch as too large; returns whether they
    /// have changed. `producer` then sends batches that fit.
    ///
    /// # Errors
    /// If this user may not describe the topics, or a producer with smaller batches cannot start.
    pub(super) async fn adapt(
        &mut self,
        producer: &mut TransactionalProducer,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let changed = match self.sizes.read_again().await.map_err(Failed::unread_limit) {
            Ok(changed) => changed,
            // The transaction will fail again, and the limits are read again then.
            Err(Failed::Abort(_)) => return Ok(false),
            Err(Failed::StartOver(error) | Failed::Exit(error)) => return Err(error),
        };
        self.update();
        producer.fit_batches(self.batch_bytes(), shutdown).await?;
        Ok(changed)
    }

    fn update(&mut self) {
        self.event_bytes = self.sizes.record_bytes(&self.events_topic);
    }

    /// The dead letter of a record, reduced to the size limit of its topic.
    pub(super) async fn fit<'a>(
        &mut self,
        letter: &DeadLetter<'_>,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
    ) -> Result<Letter<'a>, Failed> {
        let fit = |room| letter.letter(key, value, room).measured();
        let fitted = self.sizes.fit(&self.letters_topic, fit).await?;
        self.update();
        Ok(fitted)
    }
}
