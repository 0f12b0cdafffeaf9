//! Why a database refused something, and what the caller does about it.

use super::DRIVERS;
use crate::positions::Advance;
use crate::rows::Part;

/// What to do if a table or column is missing.
pub(super) const OUTDATED: &str = "to migrate tables of an older version: consumer migrate";

/// Why the database refused something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another owner moved the stored offset: read the positions again.
    #[error("{} partition {}: the stored offset is no longer {}; another consumer stored these events", .0.part.as_str(), .0.partition, .0.expected.map_or("absent".to_owned(), |offset| offset.to_string()))]
    Fenced(Advance),
    /// The database is unavailable or busy: try again.
    #[error("{0}")]
    Retry(String),
    /// It took longer than the database or this program allows: try again with less at once.
    #[error("{0}")]
    TooLong(String),
    /// The database was replaced by another: read the positions again.
    #[error("{0}")]
    Replaced(String),
    /// Some of the records are stored, the others are not, for this reason: read the positions again.
    #[error("{reason}")]
    Half {
        reason: String,
        /// How many records are stored.
        stored: usize,
        /// Their rows.
        rows: Vec<(Part, u64)>,
    },
    /// The database cannot hold one of the rows.
    #[error("{0}")]
    Refused(String),
    /// A row has a value that its column cannot have: a time out of range, or a value of another type.
    #[error("{0}")]
    Unreadable(String),
    /// A retry does not help.
    #[error("{0}")]
    Exit(String),
    /// As `Exit`: the tables need a migration for which this user lacks the rights.
    #[error("{0}; the owner of the tables has to create or migrate them: consumer migrate")]
    MayNotMigrate(String),
}

impl StoreError {
    /// Whether a retry does not help.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Unreadable(_) | Self::Exit(_) | Self::MayNotMigrate(_) => true,
            Self::Fenced(_)
            | Self::Retry(_)
            | Self::TooLong(_)
            | Self::Replaced(_)
            | Self::Half { .. } => false,
        }
    }
}

/// The meaning of an error code: see [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Transient,
    TooLong,
    Refused,
    Permanent,
}

impl Meaning {
    /// The error with this meaning and message.
    pub(super) fn of(self, message: String) -> StoreError {
        match self {
            Self::Transient => StoreError::Retry(message),
            Self::TooLong => StoreError::TooLong(message),
            Self::Refused => StoreError::Refused(message),
            Self::Permanent => StoreError::Exit(message),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let message = error.to_string();
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Meaning::Transient.of(message),
            sqlx::Error::Tls(error) if is_cut_off(&*error) => Meaning::Transient.of(message),
            sqlx::Error::Database(error) => {
                let mut judges = DRIVERS.iter().map(|driver| driver.judge);
                let judged = judges.find_map(|judge| judge(&*error));
                judged.unwrap_or_else(|| Meaning::Permanent.of(message))
            }
            _ => Meaning::Permanent.of(message),
        }
    }
}

/// Whether a TLS handshake failed because the peer disconnected.
fn is_cut_off(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut causes = causes.map(|error| (error.is::<std::io::Error>(), error.to_string()));
    causes.any(|(is_io, message)| is_io || message.contains("unexpected EOF"))
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Exit(error.to_string())
    }
}
