//! Plan of a resolution: the steps from a writer's schema to a reader's.

use apache_avro::Schema;
use apache_avro::schema::{RecordField, RecordSchema};
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;

use super::schema::{Kind, MAX_DEPTH, Parsed, unit};

/// Step for one value.
pub(super) enum Step {
    Nothing,
    Boolean,
    /// An integer; either side may be an int.
    Whole {
        from_int: bool,
        to_int: bool,
    },
    WholeToFloat,
    WholeToDouble,
    FloatToDouble,
    /// A number of bytes to copy.
    Copied(usize),
    /// Length-prefixed bytes or text.
    Text,
    /// The reader's symbol for each of the writer's symbols.
    Enum(Vec<usize>),
    Array(Box<Step>),
    Map(Box<Step>),
    /// A step for each branch of the writer's union.
    Union(Vec<Step>),
    /// A branch of the reader's union.
    Branch(usize, Box<Step>),
    Record {
        /// Fields in the writer's order, then those that the writer does not have.
        fields: Vec<(&'static str, Step)>,
        /// For each of the reader's fields, its index in `fields`; `None` if the order is the same.
        order: Option<Vec<usize>>,
    },
    /// The reader's default; reads nothing.
    Default(Vec<u8>),
    LeftOut(&'static Schema),
    /// A value to skip.
    Refused(String),
}

/// Builds the steps from a writer's schema to a reader's.
pub(super) struct Plan<'a> {
    pub(super) writer: &'a Parsed,
    pub(super) reader: &'a Parsed,
}

impl Plan<'_> {
    pub(super) fn step(
        &self,
        writer: &'static Schema,
        reader: &'static Schema,
        depth: usize,
    ) -> Result<Step, String> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(format!("the schemas nest more than {MAX_DEPTH} deep"));
        };
        if let (Some(wrote), Some(expected)) = (unit(writer), unit(reader))
            && wrote != expected
        {
            return Err(format!("{wrote}, where {expected} is read"));
        }
        Ok(match (self.writer.kind(writer), self.reader.kind(reader)) {
            (Kind::Union(variants), _) => self.union(variants, reader, depth)?,
            (kind, Kind::Union(variants)) => {
                let fits = |variant: &&'static Schema, exactly: bool| {
                    let same = self.reader.kind(variant).to_string() == kind.to_string();
                    same == exactly && self.step(writer, variant, depth).is_ok()
                };
                // Prefers a branch of the same type to one that it can be widened to.
                let branch = [true, false].into_iter().find_map(|exactly| {
                    variants.iter().position(|variant| fits(&variant, exactly))
                });
                let Some(branch) = branch else {
                    let read: Vec<_> = variants
                        .iter()
                        .map(|variant| self.reader.kind(variant).to_string())
                        .collect();
                    return Err(format!("{kind}, where {} is read", read.join(" or ")));
                };
                let step = self.step(writer, &variants[branch], depth)?;
                Step::Branch(branch, Box::new(step))
            }
            (Kind::Null, Kind::Null) => Step::Nothing,
            (Kind::Boolean, Kind::Boolean) => Step::Boolean,
            (from @ (Kind::Int | Kind::Long), to @ (Kind::Int | Kind::Long)) => Step::Whole {
                from_int: matches!(from, Kind::Int),
                to_int: matches!(to, Kind::Int),
            },
            (Kind::Int | Kind::Long, Kind::Float) => Step::WholeToFloat,
            (Kind::Int | Kind::Long, Kind::Double) => Step::WholeToDouble,
            (Kind::Float, Kind::Double) => Step::FloatToDouble,
            (Kind::Float, Kind::Float) => Step::Copied(4),
            (Kind::Double, Kind::Double) => Step::Copied(8),
            (Kind::Bytes | Kind::String, Kind::Bytes | Kind::String) => Step::Text,
            (Kind::Fixed(size, name), Kind::Fixed(other_size, other_name))
                if size == other_size && name == other_name =>
            {
                Step::Copied(size)
            }
            (Kind::Enum(wrote), Kind::Enum(read)) if wrote.name.name() == read.name.name() => {
                let position = |symbol: &String| read.symbols.iter().position(|one| one == symbol);
                let default = read.default.as_ref().and_then(position);
                let symbols = wrote.symbols.iter().map(|symbol| {
                    position(symbol).or(default).ok_or_else(|| {
                        format!("symbol {symbol}, which enum {} has not", read.name.name())
                    })
                });
                Step::Enum(symbols.collect::<Result<_, _>>()?)
            }
            (Kind::Array(wrote), Kind::Array(read)) => {
                if self.writer.is_empty(wrote, depth) {
                    return Err("an array of items that take no bytes".into());
                }
                Step::Array(Box::new(self.step(wrote, read, depth)?))
            }
            (Kind::Map(wrote), Kind::Map(read)) => {
                Step::Map(Box::new(self.step(wrote, read, depth)?))
            }
            (Kind::Record(wrote), Kind::Record(read)) if wrote.name.name() == read.name.name() => {
                self.record(wrote, read, depth)?
            }
            (wrote, read) => return Err(format!("{wrote}, where {read} is read")),
        })
    }

    /// A branch without a type in the reader is an error only for records that use it (an unexpected null, a
    /// new kind of metric); one with the name of a reader's type that is incompatible with it is an error of
    /// the schema.
    fn union(
        &self,
        writer: &'static [Schema],
        reader: &'static Schema,
        depth: usize,
    ) -> Result<Step, String> {
        let alternatives = match self.reader.kind(reader) {
            Kind::Union(variants) => variants,
            _ => std::slice::from_ref(reader),
        };
        let (mut branches, mut fits, mut last) = (Vec::new(), false, String::new());
        for variant in writer {
            let kind = self.writer.kind(variant).to_string();
            branches.push(match self.step(variant, reader, depth) {
                Ok(step) => {
                    fits |= *variant != Schema::Null;
                    step
                }
                Err(reason) => {
                    let is_named =
                        |one: &&'static Schema| self.reader.kind(one).to_string() == kind;
                    if let Some(expected) = alternatives.iter().find(is_named) {
                        return Err(self.step(variant, expected, depth).err().unwrap_or(reason));
                    }
                    last.clone_from(&reason);
                    Step::Refused(reason)
                }
            });
        }
        if fits {
            Ok(Step::Union(branches))
        } else {
            Err(last)
        }
    }

    fn record(
        &self,
        writer: &'static RecordSchema,
        reader: &'static RecordSchema,
        depth: usize,
    ) -> Result<Step, String> {
        let mut fields = Vec::new();
        let mut order = vec![None; reader.fields.len()];
        for field in &writer.fields {
            let by_name = |read: &RecordField| read.name == field.name;
            // Not if the writer has a field with that name itself.
            let by_alias = |read: &RecordField| {
                read.aliases.contains(&field.name)
                    && position(writer, |wrote| wrote.name == read.name).is_none()
            };
            let read = position(reader, by_name).or_else(|| position(reader, by_alias));
            let step = match read {
                Some(i) => {
                    order[i] = Some(fields.len());
                    self.step(&field.schema, &reader.fields[i].schema, depth)
                        .map_err(|reason| format!("{}: {reason}", field.name))?
                }
                None => Step::LeftOut(&field.schema),
            };
            fields.push((field.name.as_str(), step));
        }
        for (read, place) in reader.fields.iter().zip(&mut order) {
            if place.is_none() {
                *place = Some(fields.len());
                let default = default(read).map_err(|reason| format!("{}: {reason}", read.name))?;
                fields.push((read.name.as_str(), Step::Default(default)));
            }
        }
        let order: Vec<usize> = order.into_iter().flatten().collect();
        Ok(Step::Record {
            fields,
            order: (!order.is_sorted()).then_some(order),
        })
    }
}

fn position(record: &RecordSchema, is: impl Fn(&RecordField) -> bool) -> Option<usize> {
    record.fields.iter().position(is)
}

/// The encoded default of a field.
fn default(field: &RecordField) -> Result<Vec<u8>, String> {
    let Some(default) = &field.default else {
        return Err("missing, and there is no default for it".into());
    };
    let written = || -> Result<Vec<u8>, apache_avro::Error> {
        let value = Value::try_from(default.clone())?.resolve(&field.schema)?;
        let mut bytes = Vec::new();
        GenericDatumWriter::builder(&field.schema)
            .build()?
            .write_value(&mut bytes, value)?;
        Ok(bytes)
    };
    written().map_err(|error| format!("its default cannot be written: {error}"))
}
