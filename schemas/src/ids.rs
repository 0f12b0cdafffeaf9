//! What the ids of a schema registry's framing mean. Nothing here asks a registry: whoever reads
//! records does, once an id, before it reads the record ([`crate::Decoder::unknown_id`]).

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::resolution::Resolution;

/// An id that the registry did not know is asked for again after so long: it may have been brought
/// back from a backup, or be a replica that is behind.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Ids that the registry does not know are forgotten when there are more of them: bytes that are no
/// record at all may hold any.
const MISSING_MAX: usize = 10_000;

/// What an id means.
pub(crate) enum Known {
    /// The schema of the current version of this record.
    Current(&'static str),
    /// That of another version of a record, which becomes the current one so.
    Other {
        record: &'static str,
        fingerprint: u64,
        resolution: Resolution,
    },
    /// No schema that either record can be read by; why.
    Unfit(String),
    /// The registry did not know it then.
    Missing(Instant),
}

/// The ids of a registry that have been asked for.
pub(crate) struct Ids {
    registry: String,
    known: RwLock<HashMap<u32, Known>>,
}

impl Ids {
    pub(crate) fn of(registry: &str) -> Self {
        Self {
            registry: registry.to_owned(),
            known: RwLock::default(),
        }
    }

    /// The registry's address.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// What is known of an id.
    pub(crate) fn look<T>(&self, id: u32, told: impl FnOnce(Option<&Known>) -> T) -> T {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        told(known.get(&id))
    }

    pub(crate) fn is_to_be_asked_for(&self, id: u32) -> bool {
        self.look(id, |known| match known {
            None => true,
            Some(Known::Missing(asked)) => asked.elapsed() > ASK_AGAIN,
            Some(_) => false,
        })
    }

    pub(crate) fn learn(&self, id: u32, meaning: Known) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MISSING_MAX {
            known.retain(|_, meaning| !matches!(meaning, Known::Missing(_)));
        }
        known.insert(id, meaning);
    }
}
