//! Cache of a schema registry's ids. Sends no requests: callers request each unknown id once, before they
//! decode the record ([`crate::Decoder::unknown_id`]).

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::resolution::Resolution;

/// An unknown id is requested again after this time: the registry may have been restored from a backup, or be
/// a stale replica.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Maximum number of unknown ids; beyond it, they are dropped. Arbitrary bytes may contain any id.
const MISSING_MAX: usize = 10_000;

/// Meaning of an id.
pub(crate) enum Known {
    /// The current version of this record.
    Current(&'static str),
    /// Another version of a record, with its resolution to the current one.
    Other {
        record: &'static str,
        fingerprint: u64,
        resolution: Resolution,
    },
    /// A schema that does not resolve to either record; why.
    Unfit(String),
    /// Unknown to the registry at this time.
    Missing(Instant),
}

/// The known ids of a registry.
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

    /// Looks up an id.
    pub(crate) fn look<T>(&self, id: u32, visit: impl FnOnce(Option<&Known>) -> T) -> T {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        visit(known.get(&id))
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
