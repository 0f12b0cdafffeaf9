//! What the ids of a schema registry's framing mean. Nothing here asks a registry: whoever reads
//! records does, once an id, before it reads the record ([`crate::Decoder::unknown_id`]).

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::codec::{Codec, EVENT, INFO};
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

    /// Takes what the registry has for an id: its schema, or nothing.
    pub(crate) fn learn(&self, id: u32, avsc: Option<&str>) {
        let meaning = avsc.map_or_else(|| Known::Missing(Instant::now()), meaning);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MISSING_MAX {
            known.retain(|_, meaning| !matches!(meaning, Known::Missing(_)));
        }
        known.insert(id, meaning);
    }
}

/// What a schema in a registry is to the two records. The text is never compared: registries and
/// clients write the same schema in many ways.
fn meaning(avsc: &str) -> Known {
    let parsed = match Codec::parse(avsc) {
        Ok(parsed) => parsed,
        Err(reason) => return Known::Unfit(reason),
    };
    let codec: &Codec = match parsed.name() {
        Some(name) if name == INFO.record() => &INFO,
        Some(name) if name == EVENT.record() => &EVENT,
        Some(name) => return Known::Unfit(format!("it is one of {name}")),
        None => return Known::Unfit("it is not one of a record".to_owned()),
    };
    let fingerprint = parsed.fingerprint;
    // Of the current version too: the fingerprint does not tell milliseconds from microseconds.
    match codec.resolution(parsed) {
        Ok(_) if codec.is_current(fingerprint) => Known::Current(codec.record()),
        Ok(resolution) => Known::Other {
            record: codec.record(),
            fingerprint,
            resolution,
        },
        Err(reason) => Known::Unfit(reason),
    }
}
