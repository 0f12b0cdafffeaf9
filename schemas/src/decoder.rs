//! Decoder of records of any version: released ones, and newer ones from files or a schema registry.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::codec::{Codec, EVENT, INFO, Newer};
use crate::error::DecodeError;
use crate::framing::split_id;
use crate::ids::{Ids, Known};
use crate::plain::{EventVersion, PlainEvent, PlainInfo, plain_event_datum, plain_info_datum};
use crate::{TaskRunningInfo, TaskRunningInfoEvent, plain_event, plain_info};

/// Decodes the two records: of every released version, and of newer versions whose schemas come from files or
/// a schema registry.
///
/// A newer version's record becomes one of the current version: unknown fields are dropped, a number of a
/// wider type is accepted if its value fits, and an unknown symbol becomes the enum's default.
#[derive(Default)]
pub struct Decoder {
    info: Newer,
    event: Newer,
    newer_schemas: Vec<NewerSchema>,
    ids: Option<Ids>,
}

/// A newer version that the decoder reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewerSchema {
    /// Its file.
    pub file: PathBuf,
    /// Name of the record.
    pub record: &'static str,
    /// CRC-64-AVRO of the schema.
    pub fingerprint: u64,
}

impl fmt::Display for NewerSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            record,
            fingerprint,
        } = self;
        write!(f, "{record} {fingerprint:016x} of {}", file.display())
    }
}

/// An unusable schema file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct SchemaFileError {
    /// The file, or the folder.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl Decoder {
    /// A decoder of every released version, and of the schemas in the `.avsc` files of a folder (if any),
    /// each self-contained. Ignores schemas of other records, and other files.
    ///
    /// # Errors
    /// If the folder or a file cannot be read, a file is not a schema, or it does not resolve to the current
    /// version.
    pub fn with_schemas(folder: Option<&Path>) -> Result<Self, SchemaFileError> {
        let mut decoder = Self::default();
        let Some(folder) = folder else {
            return Ok(decoder);
        };
        let at = |file: &Path, reason: &dyn fmt::Display| SchemaFileError {
            file: file.to_owned(),
            reason: reason.to_string(),
        };
        let mut files = std::fs::read_dir(folder)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<std::io::Result<Vec<_>>>()
            })
            .map_err(|error| at(folder, &error))?;
        files.retain(|file| {
            file.extension()
                .is_some_and(|extension| extension == "avsc")
        });
        files.sort();
        for file in files {
            let avsc = std::fs::read_to_string(&file).map_err(|error| at(&file, &error))?;
            decoder
                .add_schema(&file, &avsc)
                .map_err(|reason| at(&file, &reason))?;
        }
        Ok(decoder)
    }

    fn add_schema(&mut self, file: &Path, avsc: &str) -> Result<(), String> {
        let parsed = Codec::parse(avsc)?;
        let (codec, newer): (&Codec, _) = match parsed.name() {
            Some(name) if name == INFO.record() => (&INFO, &mut self.info),
            Some(name) if name == EVENT.record() => (&EVENT, &mut self.event),
            _ => return Ok(()),
        };
        let fingerprint = parsed.fingerprint;
        // Also for a released version, because the fingerprint does not distinguish milliseconds from
        // microseconds.
        let resolution = codec.resolution(parsed).map_err(|reason| {
            format!(
                "cannot be read as the {} of this program: {reason}",
                codec.record()
            )
        })?;
        if codec.knows(fingerprint) || newer.contains_key(&fingerprint) {
            return Ok(());
        }
        newer.insert(fingerprint, resolution);
        self.newer_schemas.push(NewerSchema {
            file: file.to_owned(),
            record: codec.record(),
            fingerprint,
        });
        Ok(())
    }

    /// The newer versions that this decoder reads, from files.
    pub fn newer_schemas(&self) -> &[NewerSchema] {
        &self.newer_schemas
    }

    /// As [`with_schemas`](Self::with_schemas), and also reads a schema registry's framing, if one is
    /// configured. `registry` is its address, for errors.
    ///
    /// # Errors
    /// As [`with_schemas`](Self::with_schemas).
    pub fn of(folder: Option<&Path>, registry: Option<&str>) -> Result<Self, SchemaFileError> {
        let decoder = Self::with_schemas(folder)?;
        Ok(match registry {
            Some(registry) => decoder.with_registry(registry),
            None => decoder,
        })
    }

    /// Also reads a schema registry's framing. `registry` is its address, for errors.
    #[must_use]
    pub fn with_registry(self, registry: &str) -> Self {
        Self {
            ids: Some(Ids::of(registry)),
            ..self
        }
    }

    /// The schema id of a value, if it must be requested from the registry first: pass the answer to
    /// [`learn_id`](Self::learn_id), then decode the value. `None` for all other values. Cheap.
    pub fn unknown_id(&self, value: Option<&[u8]>) -> Option<u32> {
        let (id, _) = split_id(value?)?;
        let ids = self.ids.as_ref()?;
        ids.is_to_be_asked_for(id).then_some(id)
    }

    /// If the schema id of a value is unknown, gets the schema from `registry` and adds it.
    ///
    /// # Errors
    /// Those of `registry`.
    pub fn learn<E>(
        &self,
        value: Option<&[u8]>,
        registry: impl FnOnce(u32) -> Result<Option<String>, E>,
    ) -> Result<(), E> {
        if let Some(id) = self.unknown_id(value) {
            self.learn_id(id, registry(id)?.as_deref());
        }
        Ok(())
    }

    /// Adds the registry's answer for an id: the schema's text, or `None`.
    pub fn learn_id(&self, id: u32, avsc: Option<&str>) {
        if let Some(ids) = &self.ids {
            let missing = || Known::Missing(Instant::now());
            ids.learn(id, avsc.map_or_else(missing, meaning));
        }
    }

    /// A plain `TaskRunningInfo` of the current version, in either framing.
    pub fn plain_info<'a>(&self, value: &'a [u8]) -> Option<PlainInfo<'a>> {
        match self.datum_of(value, INFO.record()) {
            Some(datum) => plain_info_datum(datum),
            None => plain_info(value),
        }
    }

    /// A plain `TaskRunningInfoEvent` of a released version, in either framing.
    pub fn plain_event<'a>(&self, value: &'a [u8]) -> Option<PlainEvent<'a>> {
        let Some((id, datum)) = split_id(value) else {
            return plain_event(value);
        };
        let version = |known: Option<&Known>| match known {
            Some(Known::Current(name)) if *name == EVENT.record() => Some(EventVersion::V3),
            Some(Known::Other {
                record,
                fingerprint,
                ..
            }) if *record == EVENT.record() => EventVersion::of(*fingerprint),
            _ => None,
        };
        let version = self.ids.as_ref()?.look(id, version)?;
        plain_event_datum(datum, version)
    }

    /// The datum of a value in the registry's framing, if it is of the record's current version.
    pub(crate) fn datum_of<'a>(&self, value: &'a [u8], record: &str) -> Option<&'a [u8]> {
        let (id, datum) = split_id(value)?;
        let is_current =
            |known: Option<&Known>| matches!(known, Some(Known::Current(name)) if *name == record);
        self.ids.as_ref()?.look(id, is_current).then_some(datum)
    }

    /// Reads a `TaskRunningInfo`.
    ///
    /// # Errors
    /// What is wrong with the bytes; see [`DecodeError`]. Trailing bytes are an error.
    pub fn info(&self, value: Option<&[u8]>) -> Result<TaskRunningInfo, DecodeError> {
        INFO.decode(value, &self.info, self.ids.as_ref())
    }

    /// Minimum size of a repaired `TaskRunningInfo` with this value's content, without the header, in bytes;
    /// `None` if the value is not one. For values that may be too large to decode: allocates nothing for one
    /// of the current version.
    pub fn least_info_bytes(&self, value: &[u8]) -> Option<usize> {
        INFO.least_bytes(value, &self.info, self.ids.as_ref())
    }

    /// Reads a `TaskRunningInfoEvent`.
    ///
    /// # Errors
    /// What is wrong with the bytes; see [`DecodeError`]. Trailing bytes are an error.
    pub fn event(&self, value: Option<&[u8]>) -> Result<TaskRunningInfoEvent, DecodeError> {
        EVENT.decode(value, &self.event, self.ids.as_ref())
    }
}

/// Classifies a registry's schema. Never compares texts, because registries and clients write the same schema
/// in many ways.
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
    // Also for the current version, because the fingerprint does not distinguish milliseconds from
    // microseconds.
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
