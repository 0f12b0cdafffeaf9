//! What a failed operation means to its caller: try again, or exit.

use rdkafka::error::KafkaError;
use service::exit::NeedsAttention;

use crate::store::StoreError;

/// Why Kafka or the database did not do what it was asked.
pub(crate) enum Failure {
    /// Try again: what is waited for, and why.
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

    /// Kafka did not answer, or not yet.
    pub(crate) fn kafka(error: impl std::fmt::Display) -> Self {
        Self::Retry(format!("Kafka: {error}"))
    }

    /// For a command that does not retry.
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

/// Classifies the error of any command: a database error that no retry cures needs an operator.
pub fn for_an_operator(error: anyhow::Error) -> anyhow::Error {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<StoreError>());
    match causes.any(StoreError::is_lasting) {
        true => NeedsAttention(format!("{error:#}")).into(),
        false => error,
    }
}
