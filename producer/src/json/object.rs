//! JSON objects, read field by field, so that everything that is wrong with one is found.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What is wrong with a report, and where in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// The field's path; empty if the report as a whole is wrong.
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// Faults of one report that are kept. A report of a mebibyte can have a million.
const FAULTS_MAX: usize = 100;

/// What is wrong with a report: at least one fault.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Faulty {
    /// The first ones, at most [`FAULTS_MAX`].
    pub(crate) faults: Vec<Fault>,
    /// Faults beyond them.
    pub(crate) more: usize,
}

impl Faulty {
    /// One fault, of the report as a whole.
    pub(crate) fn whole(reason: impl Into<String>) -> Self {
        let (field, reason) = (String::new(), reason.into());
        Self {
            faults: vec![Fault { field, reason }],
            more: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.faults.len() + self.more
    }
}

/// The faults of one report, as they are found.
pub(super) struct Faults<'a> {
    report: &'a str,
    /// A column in a report of several lines says nothing.
    is_one_line: bool,
    found: RefCell<Vec<Fault>>,
    more: Cell<usize>,
}

impl<'a> Faults<'a> {
    pub(super) fn of(report: &'a str) -> Self {
        Self {
            report,
            is_one_line: !report.contains('\n'),
            found: RefCell::default(),
            more: Cell::default(),
        }
    }

    pub(super) fn add(&self, path: Path<'_>, reason: impl Into<String>) {
        self.add_with(path, || reason.into());
    }

    /// As [`add`](Self::add); beyond those that are kept, a fault costs no text.
    fn add_with(&self, path: Path<'_>, reason: impl FnOnce() -> String) {
        let mut found = self.found.borrow_mut();
        if found.len() == FAULTS_MAX {
            self.more.set(self.more.get() + 1);
            return;
        }
        let (field, reason) = (path.to_string(), reason());
        found.push(Fault { field, reason });
    }

    pub(super) fn into_faulty(self) -> Faulty {
        Faulty {
            faults: self.found.into_inner(),
            more: self.more.get(),
        }
    }

    /// Reads a value that is not an object of ours.
    pub(super) fn value<T: DeserializeOwned>(
        &self,
        path: Path<'_>,
        raw: &'a RawValue,
    ) -> Option<T> {
        match serde_json::from_str(raw.get()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.add_with(path, || self.reason(raw.get(), &error));
                None
            }
        }
    }

    /// serde_json's message about `part` of the report, with the column in its line.
    pub(super) fn reason(&self, part: &str, error: &serde_json::Error) -> String {
        let before = part.as_ptr() as usize - self.report.as_ptr() as usize;
        match message(error) {
            (message, true) if self.is_one_line => {
                format!("{message} at column {}", before + error.column())
            }
            (message, _) => message,
        }
    }
}

/// serde_json's message in JSON's words, without its place; and whether it had one.
pub(super) fn message(error: &serde_json::Error) -> (String, bool) {
    let whole = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let stripped = whole.strip_suffix(&place);
    let message = stripped.unwrap_or(&whole);
    let of_type = |rust: &str, json: &str| {
        let expected = message.strip_prefix(&format!("invalid type: {rust}, "))?;
        Some(format!("invalid type: {json}, {expected}"))
    };
    let in_json = of_type("sequence", "array").or_else(|| of_type("map", "object"));
    let message = in_json.unwrap_or_else(|| message.to_owned());
    (message, stripped.is_some())
}

/// Where in a record a field is.
#[derive(Clone, Copy)]
pub(super) enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
    Key(&'p Path<'p>, &'p str),
}

/// As [`schemas::Problem::field`] has it.
impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(of, name) => write!(f, "{of}.{name}"),
            Self::Item(of, at) => write!(f, "{of}[{at}]"),
            Self::Key(of, key) => write!(f, "{of}[{key:?}]"),
        }
    }
}

/// An object whose fields are taken out one by one.
pub(super) struct Object<'a, 'f> {
    faults: &'f Faults<'a>,
    path: Path<'f>,
    left: Vec<(String, &'a RawValue)>,
    known: Vec<&'static str>,
}

impl<'a, 'f> Object<'a, 'f> {
    /// `None`, and a fault, if it is not an object. A name that is given twice is a fault, too: which value is meant
    /// is not known.
    pub(super) fn open(faults: &'f Faults<'a>, path: Path<'f>, raw: &'a RawValue) -> Option<Self> {
        Some(Self {
            faults,
            path,
            left: entries(faults, path, raw, |name| {
                Path::Field(&path, name).to_string()
            })?,
            known: Vec::new(),
        })
    }

    /// Takes a field out.
    pub(super) fn take(&mut self, name: &'static str) -> Option<&'a RawValue> {
        self.known.push(name);
        let at = self.left.iter().position(|(given, _)| given == name)?;
        Some(self.left.swap_remove(at).1)
    }

    /// A field that must be there, read by `read`; its default, and a fault, if it is missing or wrong.
    pub(super) fn required<T: Default>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Faults<'a>, Path<'_>, &'a RawValue) -> Option<T>,
    ) -> T {
        let taken = self.take(name);
        let path = Path::Field(&self.path, name);
        match taken {
            Some(raw) => read(self.faults, path, raw).unwrap_or_default(),
            None => {
                self.faults.add(path, "is missing");
                T::default()
            }
        }
    }

    /// A field that may be left out, read by `read`; its default if it is, or, with a fault, if it is wrong.
    pub(super) fn optional<T: Default>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Faults<'a>, Path<'_>, &'a RawValue) -> Option<T>,
    ) -> T {
        let taken = self.take(name);
        let path = Path::Field(&self.path, name);
        taken
            .and_then(|raw| read(self.faults, path, raw))
            .unwrap_or_default()
    }

    pub(super) fn fault(&self, name: &str, reason: &str) {
        self.faults.add(Path::Field(&self.path, name), reason);
    }

    /// The fields that were not taken out, whose names this program does not know, are faults.
    pub(super) fn end(self) {
        let unknown = |(name, _): &&(String, _)| !self.known.contains(&name.as_str());
        for (name, _) in self.left.iter().filter(unknown) {
            let known = self.known.join(", ");
            let path = Path::Field(&self.path, name);
            self.faults
                .add(path, format!("is not a known field; there are {known}"));
        }
    }
}

/// The fields of an object whose names may be any; `None`, and a fault, if it is not an object.
pub(super) fn map<'a, T>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
    read: impl Fn(&Faults<'a>, Path<'_>, &'a RawValue) -> Option<T>,
) -> Option<BTreeMap<String, T>> {
    let entries = entries(faults, path, raw, |key| Path::Key(&path, key).to_string())?;
    let read = |(key, raw): (String, &'a RawValue)| {
        let value = read(faults, Path::Key(&path, &key), raw)?;
        Some((key, value))
    };
    Some(entries.into_iter().filter_map(read).collect())
}

fn entries<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
    named: impl Fn(&str) -> String,
) -> Option<Vec<(String, &'a RawValue)>> {
    let Entries(entries) = match serde_json::from_str(raw.get()) {
        Ok(entries) => entries,
        Err(error) => {
            faults.add(path, faults.reason(raw.get(), &error));
            return None;
        }
    };
    let mut names = Vec::from_iter(entries.iter().map(|(name, _)| name.as_str()));
    names.sort_unstable();
    let mut twice = Vec::from_iter(names.windows(2).filter(|pair| pair[0] == pair[1]));
    twice.dedup();
    for pair in twice {
        faults.found.borrow_mut().push(Fault {
            field: named(pair[0]),
            reason: "is given twice".to_owned(),
        });
    }
    Some(entries)
}

/// The names and values of an object, in its order.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyObject;
        impl<'de> Visitor<'de> for AnyObject {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries<'de>, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(AnyObject)
    }
}
