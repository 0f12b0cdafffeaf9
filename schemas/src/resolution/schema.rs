//! Parsed schemas, and scanning a datum.

use std::fmt;

use apache_avro::Schema;
use apache_avro::schema::{
    EnumSchema, InnerDecimalSchema, NamesRef, RecordSchema, ResolvedSchema, UuidSchema,
};

use super::datum::{Fault, Input, within};

/// Maximum nesting: of a schema, and of a recursive type in a skipped field.
pub(super) const MAX_DEPTH: usize = 64;
/// Length of `-Infinity`: a metric with such a text becomes null.
const LONGEST_NAME_OF_A_NUMBER: usize = 9;

/// A schema with an index of its named types.
pub(crate) struct Parsed {
    schema: &'static Schema,
    names: NamesRef<'static>,
}

impl Parsed {
    /// Leaks the schema: there are few, and they live as long as the program.
    pub(crate) fn new(schema: Schema) -> Result<Self, apache_avro::Error> {
        let schema: &'static Schema = Box::leak(Box::new(schema));
        let names = ResolvedSchema::new(schema)?.get_names().clone();
        Ok(Self { schema, names })
    }

    pub(crate) fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// Scans a datum of this schema; returns the number of bytes left over.
    pub(crate) fn check(&self, datum: &[u8]) -> Result<usize, Fault> {
        let mut input = Input::new(datum);
        self.skip(self.schema, &mut input, MAX_DEPTH)?;
        Ok(input.left())
    }

    /// Minimum size of a datum of this schema after repair and encoding, in bytes: a number takes at least
    /// one, and a double or a short text may become null. `None` if it is not a datum of this schema.
    pub(crate) fn least_bytes(&self, datum: &[u8]) -> Option<usize> {
        let mut input = Input::new(datum);
        self.skip(self.schema, &mut input, MAX_DEPTH).ok()?;
        Some(input.least)
    }

    pub(super) fn kind(&self, schema: &'static Schema) -> Kind {
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
    pub(super) fn is_empty(&self, schema: &'static Schema, depth: usize) -> bool {
        match self.kind(schema) {
            Kind::Null | Kind::Fixed(0, _) => true,
            Kind::Record(record) => {
                let mut fields = record.fields.iter();
                depth > 0 && fields.all(|field| self.is_empty(&field.schema, depth - 1))
            }
            _ => false,
        }
    }

    /// Skips a value.
    pub(super) fn skip(
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

/// A schema reduced to its encoding.
pub(super) enum Kind {
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

/// The unit of a time type.
pub(super) fn unit(schema: &Schema) -> Option<&'static str> {
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
