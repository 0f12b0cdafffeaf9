//! Reading what any version wrote: the released ones, and newer ones that were given as files or that
//! a schema registry has.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::codec::{Codec, EVENT, INFO, Newer};
use crate::error::DecodeError;
use crate::framing::split_id;
use crate::ids::{Ids, Known};
use crate::plain::{EventVersion, PlainEvent, PlainInfo, plain_event_datum, plain_info_datum};
use crate::{TaskRunningInfo, TaskRunningInfoEvent, plain_event, plain_info};

/// Reads the two records: of every released version, and of newer ones that were given as files or
/// that a schema registry has, so that a program of this version reads what newer ones write.
///
/// A newer version's record becomes one of the current version: a field that this one does not know
/// is left out, a number of a wider type is taken where its value fits, a symbol that this one does
/// not know becomes the enum's default.
#[derive(Default)]
pub struct Decoder {
    info: Newer,
    event: Newer,
    newer_schemas: Vec<NewerSchema>,
    ids: Option<Ids>,
}

/// A newer version that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewerSchema {
    /// The file that it stands in.
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

/// A file of a newer version that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct SchemaFileError {
    /// The file, or the folder.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl Decoder {
    /// Reads every released version, and those whose schemas stand in the `.avsc` files of a folder
    /// (if any), each complete in itself. Schemas of other records, and files of other names, are
    /// passed over.
    ///
    /// # Errors
    /// If the folder or a file cannot be read, a file is no schema, or it is one that cannot become
    /// the current version.
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
        // Of a released version too: the fingerprint does not tell milliseconds from microseconds.
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

    /// As [`with_schemas`](Self::with_schemas), and reads the framing of a schema registry, if there is one, too.
    /// `registry` is its address, for errors.
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

    /// Reads a schema registry's framing too. `registry` is its address, for errors.
    #[must_use]
    pub fn with_registry(self, registry: &str) -> Self {
        Self {
            ids: Some(Ids::of(registry)),
            ..self
        }
    }

    /// The schema id that a value begins with, where the registry is to be asked for it first: give
    /// [`learn_id`](Self::learn_id) the answer, then read the value. `None`, and cheap, for all others.
    pub fn unknown_id(&self, value: Option<&[u8]>) -> Option<u32> {
        let (id, _) = split_id(value?)?;
        let ids = self.ids.as_ref()?;
        ids.is_to_be_asked_for(id).then_some(id)
    }

    /// Where the schema id of a value is unknown, gets the schema from `registry` and learns it.
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

    /// Takes what the registry has for an id: the schema's text, or nothing.
    pub fn learn_id(&self, id: u32, avsc: Option<&str>) {
        if let Some(ids) = &self.ids {
            let missing = || Known::Missing(Instant::now());
            ids.learn(id, avsc.map_or_else(missing, meaning));
        }
    }

    /// A `TaskRunningInfo` of the current version, of either framing, where it is plain.
    pub fn plain_info<'a>(&self, value: &'a [u8]) -> Option<PlainInfo<'a>> {
        match self.datum_of(value, INFO.record()) {
            Some(datum) => plain_info_datum(datum),
            None => plain_info(value),
        }
    }

    /// A `TaskRunningInfoEvent` of a released version, of either framing, where it is plain.
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

    /// What follows the header of a value in the registry's framing, if the record's current version
    /// wrote it.
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

    /// The fewest bytes that a `TaskRunningInfo` takes, without its header, which says what this value
    /// says and is repaired; `None` where the value is none. For a value that may be too large to be
    /// read: of one of the current version nothing is set aside.
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
