//! What the caller does about a failed operation: retry or exit.

use rdkafka::error::KafkaError;
use service::exit::NeedsAttention;

use crate::store::StoreError;

/// A failed operation of Kafka or the database.
pub(crate) enum Failure {
    /// Try again. The text says what is awaited, and why.
    Retry(String),
    /// A retry does not help.
    Exit(anyhow::Error),
}

impl Failure {
    /// Classifies an error of the database at `place`. Errors that the caller handles itself, such as
    /// [`StoreError::Fenced`], count as [`Failure::Retry`].
    pub(crate) fn of(error: StoreError, place: &str) -> Self {
        match error.is_lasting() {
            true => Self::Exit(NeedsAttention(format!("{place} refuses: {error}")).into()),
            false => Self::Retry(format!("{place}: {error}")),
        }
    }

    /// Kafka did not answer, or not in time.
    pub(crate) fn kafka(error: impl std::fmt::Display) -> Self {
        Self::Retry(format!("Kafka: {error}"))
    }

    /// Converts it for a command that does not retry.
    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Retry(what) => anyhow::anyhow!(what),
            Self::Exit(error) => error,
        }
    }
}

impl From<KafkaError> for Failure {
    fn from(error: KafkaError) -> Self {
        Self::kafka(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Exit(error)
    }
}

/// Classifies the error of any command: a lasting database error needs an operator.
pub fn for_an_operator(error: anyhow::Error) -> anyhow::Error {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<StoreError>());
    match causes.any(StoreError::is_lasting) {
        true => NeedsAttention(format!("{error:#}")).into(),
        false => error,
    }
}
