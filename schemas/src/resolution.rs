//! From the bytes that one version of a schema wrote to the bytes that another would have written.
//!
//! A [`Resolution`] is made once for a writer's and a reader's schema, which is where it shows whether
//! they fit: by Avro's rules ("Schema Resolution"), and by one of our own: a wider number than the
//! reader's is taken where its value fits. Then it walks each record's bytes a single time.
//!
//! No claim in the bytes is believed. A length is held against the bytes that are left before
//! anything is set aside for it; an item takes a byte at least, or is not walked at all; a number is
//! at most ten bytes long. So neither time nor memory is more than the bytes themselves are worth,
//! which apache-avro 0.22's decoder cannot say of itself: it sets aside for what is claimed, by
//! nested arrays again and again (apache/avro-rs#639), takes a text that is cut off for null, and
//! does not look at the size of a block.

use std::fmt;

use apache_avro::Schema;
use apache_avro::schema::{
    EnumSchema, InnerDecimalSchema, NamesRef, RecordField, RecordSchema, ResolvedSchema, UuidSchema,
};
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;

/// Deepest nesting: of a schema in itself, and of a recursive type in a field that is left out.
const MAX_DEPTH: usize = 64;
/// Bytes of the longest number: 64 bits by seven.
const LONGEST_NUMBER: usize = 10;
/// Bytes of `-Infinity`: a metric that is such a text becomes null.
const LONGEST_NAME_OF_A_NUMBER: usize = 9;

/// Where and why bytes are not what the schema says.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Names of fields, the innermost first.
    path: Vec<&'static str>,
    /// Offset in the datum.
    at: usize,
    reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, field) in self.path.iter().rev().enumerate() {
            write!(f, "{}{field}", if i > 0 { "." } else { "" })?;
        }
        let space = if self.path.is_empty() { "" } else { " " };
        write!(f, "{space}at byte {}: {}", self.at, self.reason)
    }
}

/// A schema, with the named types in it found by name.
pub(crate) struct Parsed {
    schema: &'static Schema,
    names: NamesRef<'static>,
}

impl Parsed {
    /// Schemas are few and live as long as the program.
    pub(crate) fn new(schema: Schema) -> Result<Self, apache_avro::Error> {
        let schema: &'static Schema = Box::leak(Box::new(schema));
        let names = ResolvedSchema::new(schema)?.get_names().clone();
        Ok(Self { schema, names })
    }

    pub(crate) fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// Walks a datum of this schema; gives the number of bytes that are left after it.
    pub(crate) fn check(&self, datum: &[u8]) -> Result<usize, Fault> {
        let mut input = Input::new(datum);
        self.skip(self.schema, &mut input, MAX_DEPTH)?;
        Ok(input.left())
    }

    /// The fewest bytes that a datum of this schema takes once it is written anew and repaired: a number
    /// takes one at least, and a double or a short text may become null. `None`: it is none.
    pub(crate) fn least_bytes(&self, datum: &[u8]) -> Option<usize> {
        let mut input = Input::new(datum);
        self.skip(self.schema, &mut input, MAX_DEPTH).ok()?;
        Some(input.least)
    }

    fn kind(&self, schema: &'static Schema) -> Kind {
        match schema {
            Schema::Ref { name } => self
                .names
                .get(name)
                .map_or(Kind::Dangling, |named| self.kind(named)),
            Schema::Null => Kind::Null,
            Schema::Boolean => Kind::Boolean,
            Schema::Int | Schema::Date | Schema::TimeMillis => Kind::Int,
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => Kind::Long,
            Schema::Float => Kind::Float,
            Schema::Double => Kind::Double,
            Schema::Bytes | Schema::BigDecimal | Schema::Uuid(UuidSchema::Bytes) => Kind::Bytes,
            Schema::String | Schema::Uuid(UuidSchema::String) => Kind::String,
            Schema::Fixed(fixed)
            | Schema::Duration(fixed)
            | Schema::Uuid(UuidSchema::Fixed(fixed)) => Kind::Fixed(fixed.size, fixed.name.name()),
            Schema::Decimal(decimal) => match &decimal.inner {
                InnerDecimalSchema::Bytes => Kind::Bytes,
                InnerDecimalSchema::Fixed(fixed) => Kind::Fixed(fixed.size, fixed.name.name()),
            },
            Schema::Enum(symbols) => Kind::Enum(symbols),
            Schema::Array(array) => Kind::Array(&array.items),
            Schema::Map(map) => Kind::Map(&map.types),
            Schema::Union(union) => Kind::Union(union.variants()),
            Schema::Record(record) => Kind::Record(record),
        }
    }

    /// Whether values of this schema take no bytes at all.
    fn is_empty(&self, schema: &'static Schema, depth: usize) -> bool {
        match self.kind(schema) {
            Kind::Null | Kind::Fixed(0, _) => true,
            Kind::Record(record) => {
                let mut fields = record.fields.iter();
                depth > 0 && fields.all(|field| self.is_empty(&field.schema, depth - 1))
            }
            _ => false,
        }
    }

    /// Reads a value and leaves it out.
    fn skip(
        &self,
        schema: &'static Schema,
        input: &mut Input<'_>,
        depth: usize,
    ) -> Result<(), Fault> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(input.fault(format!("nested more than {MAX_DEPTH} deep")));
        };
        match self.kind(schema) {
            Kind::Null => {}
            Kind::Boolean => input.counted(1, Input::boolean).map(drop)?,
            Kind::Int => input.counted(1, Input::int).map(drop)?,
            Kind::Long => input.counted(1, Input::long).map(drop)?,
            Kind::Float => drop(input.take(4, "a float")?),
            Kind::Double => drop(input.take(8, "a double")?),
            Kind::Bytes | Kind::String => {
                let text = input.text()?;
                if text.len() > LONGEST_NAME_OF_A_NUMBER {
                    input.least += 1 + text.len();
                }
            }
            Kind::Fixed(size, _) => drop(input.take(size, "fixed bytes")?),
            Kind::Enum(symbols) => {
                let count = symbols.symbols.len();
                input.counted(1, |input| input.index("symbol", count))?;
            }
            Kind::Union(variants) => {
                let variant = input.counted(1, |input| input.index("branch", variants.len()))?;
                self.skip(&variants[variant], input, depth)?;
            }
            Kind::Array(items) => {
                input.least += 1;
                let empty = self.is_empty(items, depth);
                while let Some(block) = input.block(!empty)? {
                    for _ in 0..if empty { 0 } else { block.items } {
                        self.skip(items, input, depth)?;
                    }
                    input.end(&block)?;
                }
            }
            Kind::Map(values) => {
                input.least += 1;
                while let Some(block) = input.block(true)? {
                    for _ in 0..block.items {
                        input.least += 1 + input.text()?.len();
                        self.skip(values, input, depth)?;
                    }
                    input.end(&block)?;
                }
            }
            Kind::Record(record) => {
                for field in &record.fields {
                    self.skip(&field.schema, input, depth)
                        .map_err(|fault| within(fault, &field.name))?;
                }
            }
            Kind::Dangling => return Err(input.fault("a type that the schema does not define")),
        }
        Ok(())
    }
}

fn within(mut fault: Fault, field: &'static str) -> Fault {
    fault.path.push(field);
    fault
}

/// A schema without what does not show in the bytes.
enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize, &'static str),
    Enum(&'static EnumSchema),
    Array(&'static Schema),
    Map(&'static Schema),
    Union(&'static [Schema]),
    Record(&'static RecordSchema),
    Dangling,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Boolean => f.write_str("boolean"),
            Self::Int => f.write_str("int"),
            Self::Long => f.write_str("long"),
            Self::Float => f.write_str("float"),
            Self::Double => f.write_str("double"),
            Self::Bytes => f.write_str("bytes"),
            Self::String => f.write_str("string"),
            Self::Fixed(size, name) => write!(f, "fixed {name} of {size} bytes"),
            Self::Enum(symbols) => write!(f, "enum {}", symbols.name.name()),
            Self::Array(_) => f.write_str("array"),
            Self::Map(_) => f.write_str("map"),
            Self::Union(_) => f.write_str("union"),
            Self::Record(record) => write!(f, "record {}", record.name.name()),
            Self::Dangling => f.write_str("undefined type"),
        }
    }
}

/// What a time counts, where the schema says so.
fn unit(schema: &Schema) -> Option<&'static str> {
    Some(match schema {
        Schema::Date => "date",
        Schema::TimeMillis => "time-millis",
        Schema::TimeMicros => "time-micros",
        Schema::TimestampMillis => "timestamp-millis",
        Schema::TimestampMicros => "timestamp-micros",
        Schema::TimestampNanos => "timestamp-nanos",
        Schema::LocalTimestampMillis => "local-timestamp-millis",
        Schema::LocalTimestampMicros => "local-timestamp-micros",
        Schema::LocalTimestampNanos => "local-timestamp-nanos",
        _ => return None,
    })
}

/// How what one schema wrote becomes what another reads.
pub(crate) struct Resolution {
    writer: Parsed,
    step: Step,
}

/// How one value does.
enum Step {
    Nothing,
    Boolean,
    /// A whole number; each side's may be an int.
    Whole {
        from_int: bool,
        to_int: bool,
    },
    WholeToFloat,
    WholeToDouble,
    FloatToDouble,
    /// So many bytes as they are.
    Copied(usize),
    /// Bytes or text, with their length.
    Text,
    /// The reader's symbol for each of the writer's.
    Enum(Vec<usize>),
    Array(Box<Step>),
    Map(Box<Step>),
    /// By the branch that the writer took.
    Union(Vec<Step>),
    /// Into a branch of the reader's union.
    Branch(usize, Box<Step>),
    Record {
        /// In the writer's order, then what the writer does not have.
        fields: Vec<(&'static str, Step)>,
        /// For each of the reader's fields the one of `fields`; `None` where they are in that order.
        order: Option<Vec<usize>>,
    },
    /// A default of the reader's; nothing is read.
    Default(Vec<u8>),
    LeftOut(&'static Schema),
    /// A value that the reader has no place for.
    Refused(String),
}

impl Resolution {
    /// # Errors
    /// Where and why no record of `writer` could be read as one of `reader`.
    pub(crate) fn new(writer: Parsed, reader: &Parsed) -> Result<Self, String> {
        let plan = Plan {
            writer: &writer,
            reader,
        };
        let step = plan.step(writer.schema, reader.schema, MAX_DEPTH)?;
        Ok(Self { writer, step })
    }

    /// The reader's bytes for a datum of the writer's, and the number of bytes left after that.
    pub(crate) fn resolve(&self, datum: &[u8]) -> Result<(Vec<u8>, usize), Fault> {
        let mut input = Input::new(datum);
        let mut output = Vec::with_capacity(datum.len());
        self.run(&self.step, &mut input, &mut output)?;
        Ok((output, input.left()))
    }

    fn run(&self, step: &Step, input: &mut Input<'_>, output: &mut Vec<u8>) -> Result<(), Fault> {
        match step {
            Step::Nothing => {}
            Step::Boolean => output.push(input.boolean()?),
            Step::Whole { from_int, to_int } => {
                let at = input.at;
                let number = if *from_int {
                    input.int()?
                } else {
                    input.long()?
                };
                if *to_int && i32::try_from(number).is_err() {
                    return Err(Fault::new(
                        at,
                        format!("{number} is more than the int of the version this program reads"),
                    ));
                }
                write_long(output, number);
            }
            Step::WholeToFloat => output.extend((input.long()? as f32).to_le_bytes()),
            Step::WholeToDouble => output.extend((input.long()? as f64).to_le_bytes()),
            Step::FloatToDouble => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(input.take(4, "a float")?);
                output.extend(f64::from(f32::from_le_bytes(bytes)).to_le_bytes());
            }
            Step::Copied(size) => output.extend(input.take(*size, "fixed bytes")?),
            Step::Text => copy_text(input, output)?,
            Step::Enum(symbols) => {
                let symbol = symbols[input.index("symbol", symbols.len())?];
                write_long(output, symbol as i64);
            }
            Step::Array(items) => {
                while let Some(block) = input.block(true)? {
                    write_long(output, block.items as i64);
                    for _ in 0..block.items {
                        self.run(items, input, output)?;
                    }
                    input.end(&block)?;
                }
                output.push(0);
            }
            Step::Map(values) => {
                while let Some(block) = input.block(true)? {
                    write_long(output, block.items as i64);
                    for _ in 0..block.items {
                        copy_text(input, output)?;
                        self.run(values, input, output)?;
                    }
                    input.end(&block)?;
                }
                output.push(0);
            }
            Step::Union(branches) => {
                let branch = &branches[input.index("branch", branches.len())?];
                self.run(branch, input, output)?;
            }
            Step::Branch(branch, step) => {
                write_long(output, *branch as i64);
                self.run(step, input, output)?;
            }
            Step::Record { fields, order } => {
                let begin = output.len();
                let mut ends = Vec::with_capacity(fields.len());
                for (name, step) in fields {
                    self.run(step, input, output)
                        .map_err(|fault| within(fault, name))?;
                    ends.push(output.len() - begin);
                }
                if let Some(order) = order {
                    let written = output.split_off(begin);
                    for &field in order {
                        let from = field.checked_sub(1).map_or(0, |before| ends[before]);
                        output.extend(&written[from..ends[field]]);
                    }
                }
            }
            Step::Default(bytes) => output.extend(bytes),
            Step::LeftOut(schema) => self.writer.skip(schema, input, MAX_DEPTH)?,
            Step::Refused(reason) => return Err(input.fault(reason)),
        }
        Ok(())
    }
}

/// The making of a [`Resolution`].
struct Plan<'a> {
    writer: &'a Parsed,
    reader: &'a Parsed,
}

impl Plan<'_> {
    fn step(
        &self,
        writer: &'static Schema,
        reader: &'static Schema,
        depth: usize,
    ) -> Result<Step, String> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(format!("the schemas nest more than {MAX_DEPTH} deep"));
        };
        if let (Some(said), Some(meant)) = (unit(writer), unit(reader))
            && said != meant
        {
            return Err(format!("{said}, where {meant} is read"));
        }
        Ok(match (self.writer.kind(writer), self.reader.kind(reader)) {
            (Kind::Union(variants), _) => self.union(variants, reader, depth)?,
            (kind, Kind::Union(variants)) => {
                let fits = |variant: &&'static Schema, exactly: bool| {
                    let same = self.reader.kind(variant).to_string() == kind.to_string();
                    same == exactly && self.step(writer, variant, depth).is_ok()
                };
                // A branch of the very type before one that it can be widened to.
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
            (Kind::Enum(said), Kind::Enum(read)) if said.name.name() == read.name.name() => {
                let position = |symbol: &String| read.symbols.iter().position(|one| one == symbol);
                let default = read.default.as_ref().and_then(position);
                let symbols = said.symbols.iter().map(|symbol| {
                    position(symbol).or(default).ok_or_else(|| {
                        format!("symbol {symbol}, which enum {} has not", read.name.name())
                    })
                });
                Step::Enum(symbols.collect::<Result<_, _>>()?)
            }
            (Kind::Array(said), Kind::Array(read)) => {
                if self.writer.is_empty(said, depth) {
                    return Err("an array of items that take no bytes".into());
                }
                Step::Array(Box::new(self.step(said, read, depth)?))
            }
            (Kind::Map(said), Kind::Map(read)) => {
                Step::Map(Box::new(self.step(said, read, depth)?))
            }
            (Kind::Record(said), Kind::Record(read)) if said.name.name() == read.name.name() => {
                self.record(said, read, depth)?
            }
            (said, read) => return Err(format!("{said}, where {read} is read")),
        })
    }

    /// A branch that the reader has no type for is refused where a record takes it (a null that was
    /// not foreseen, a new kind of metric); one that is the reader's type by name and does not fit it
    /// is a mistake.
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
                    if let Some(meant) = alternatives.iter().find(is_named) {
                        return Err(self.step(variant, meant, depth).err().unwrap_or(reason));
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
            // Not where the writer has a field of the name itself.
            let by_alias = |read: &RecordField| {
                read.aliases.contains(&field.name)
                    && position(writer, |said| said.name == read.name).is_none()
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

/// The bytes of a field's default.
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

fn copy_text(input: &mut Input<'_>, output: &mut Vec<u8>) -> Result<(), Fault> {
    let text = input.text()?;
    write_long(output, text.len() as i64);
    output.extend(text);
    Ok(())
}

fn write_long(output: &mut Vec<u8>, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
    while zigzag > 0x7F {
        output.push(0x80 | (zigzag & 0x7F) as u8);
        zigzag >>= 7;
    }
    output.push(zigzag as u8);
}

/// A datum and how far it has been read.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
    /// See [`Parsed::least_bytes`].
    least: usize,
}

/// The head of a block of items.
struct Block {
    /// Not 0.
    items: usize,
    /// Offset at which the block ends, if it says so.
    end: Option<usize>,
}

impl Fault {
    fn new(at: usize, reason: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            at,
            reason: reason.into(),
        }
    }
}

impl<'a> Input<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            least: 0,
        }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn counted<T>(
        &mut self,
        least: usize,
        read: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.least += least;
        read(self)
    }

    fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault::new(self.at, reason)
    }

    fn take(&mut self, size: usize, what: &str) -> Result<&'a [u8], Fault> {
        let left = &self.bytes[self.at..];
        let Some(taken) = left.get(..size) else {
            return Err(self.fault(format!("cut off: {what}, of which {} are left", left.len())));
        };
        self.at += size;
        Ok(taken)
    }

    fn boolean(&mut self) -> Result<u8, Fault> {
        match self.take(1, "a boolean")? {
            [byte @ (0 | 1)] => Ok(*byte),
            other => Err(Fault::new(self.at - 1, format!("a boolean of {other:?}"))),
        }
    }

    fn long(&mut self) -> Result<i64, Fault> {
        let mut zigzag = 0_u64;
        for (i, byte) in self.bytes[self.at..].iter().enumerate() {
            if i == LONGEST_NUMBER {
                return Err(self.fault("a number of more than 10 bytes"));
            }
            if i + 1 == LONGEST_NUMBER && *byte & 0x7F > 1 {
                return Err(self.fault("a number of more than 64 bits"));
            }
            zigzag |= u64::from(byte & 0x7F) << (7 * i);
            if byte & 0x80 == 0 {
                self.at += i + 1;
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        Err(self.fault(format!(
            "cut off: a number, of which {} bytes are left",
            self.left()
        )))
    }

    fn int(&mut self) -> Result<i64, Fault> {
        let at = self.at;
        let number = self.long()?;
        match i32::try_from(number) {
            Ok(_) => Ok(number),
            Err(_) => Err(Fault::new(at, format!("{number} is no int of 32 bits"))),
        }
    }

    /// The place of one of `count` symbols or branches.
    fn index(&mut self, what: &str, count: usize) -> Result<usize, Fault> {
        let at = self.at;
        let index = self.long()?;
        usize::try_from(index)
            .ok()
            .filter(|index| *index < count)
            .ok_or_else(|| Fault::new(at, format!("{what} {index} of {count}")))
    }

    /// Bytes with their length before them.
    fn text(&mut self) -> Result<&'a [u8], Fault> {
        let at = self.at;
        let length = self.long()?;
        let size = usize::try_from(length)
            .ok()
            .filter(|size| *size <= self.left());
        match size {
            Some(size) => self.take(size, "a text"),
            None => Err(Fault::new(
                at,
                format!("a text of {length} bytes, where {} are left", self.left()),
            )),
        }
    }

    /// The next block of an array or map; `None` after the last. `each_takes_bytes` is whether an
    /// item takes a byte at least.
    fn block(&mut self, each_takes_bytes: bool) -> Result<Option<Block>, Fault> {
        let at = self.at;
        let count = self.long()?;
        let end = if count < 0 {
            let said = self.long()?;
            let size = usize::try_from(said)
                .ok()
                .filter(|size| *size <= self.left());
            let Some(size) = size else {
                return Err(Fault::new(
                    at,
                    format!("a block of {said} bytes, where {} are left", self.left()),
                ));
            };
            Some(self.at + size)
        } else {
            None
        };
        let items = usize::try_from(count.unsigned_abs())
            .ok()
            .filter(|items| !each_takes_bytes || *items <= self.left());
        match items {
            Some(0) => Ok(None),
            Some(items) => Ok(Some(Block { items, end })),
            None => Err(Fault::new(
                at,
                format!(
                    "a block of {} items, where {} bytes are left",
                    count.unsigned_abs(),
                    self.left()
                ),
            )),
        }
    }

    /// Holds the end of a block against what the block said.
    fn end(&self, block: &Block) -> Result<(), Fault> {
        match block.end {
            Some(end) if end != self.at => Err(self.fault(format!(
                "a block of {} items that should end at byte {end} ends here",
                block.items
            ))),
            _ => Ok(()),
        }
    }
}
