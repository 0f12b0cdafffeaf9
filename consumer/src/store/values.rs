//! Values of rows on their way to a database without arrays, which are stored as JSON.

use schemas::Job;
use serde::{Serialize, Serializer};
use serde_json::json;

use super::error::StoreError;
use super::session::{Session, Value as Parameter};
use crate::row_format::{self, COUNTS, POSTGRES_EPOCH_MICROS, RowWriter, ValueSink, append_json};
use crate::tables::{Column, Kind, Table};

/// The values of many rows, row by row.
pub(super) struct Values {
    pub(super) values: Vec<Value>,
    /// The concatenated texts.
    texts: Vec<u8>,
}

#[derive(Clone, Copy)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Real(f64),
    /// Start and end in the texts, which are a few hundred KiB, or those of one record.
    Text(u32, u32),
}

impl Values {
    /// With capacity for this many bytes of values, and as many of texts.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self {
            values: Vec::with_capacity(bytes / size_of::<Value>()),
            texts: Vec::with_capacity(bytes),
        }
    }

    /// Adds the text that was appended from `begun` on.
    fn text_from(&mut self, begun: usize) {
        let text = Value::Text(begun as u32, self.texts.len() as u32);
        self.values.push(text);
    }

    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.texts.clear();
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.values[..]) + self.texts.len()
    }

    pub(super) fn rows(&self, columns: usize) -> impl Iterator<Item = &[Value]> {
        self.values.chunks_exact(columns)
    }

    /// The UTF-8 of a [text](Value::Text).
    pub(super) fn text(&self, from: u32, to: u32) -> &[u8] {
        &self.texts[from as usize..to as usize]
    }
}

impl<'a> ValueSink<'a> for Values {
    fn row(&mut self, _columns: usize) {}

    fn null(&mut self) {
        self.values.push(Value::Null);
    }

    fn i32(&mut self, value: i32) {
        self.i64(value.into());
    }

    fn i64(&mut self, value: i64) {
        self.values.push(Value::Integer(value));
    }

    fn f64(&mut self, value: f64) {
        self.values.push(Value::Real(value));
    }

    fn bool(&mut self, value: bool) {
        self.i64(value.into());
    }

    fn time(&mut self, micros: i64) {
        self.i64(micros);
    }

    fn text(&mut self, text: &'a str) {
        let begun = self.texts.len();
        self.texts.extend_from_slice(text.as_bytes());
        self.text_from(begun);
    }

    fn texts<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str>) {
        let begun = self.texts.len();
        append_json(&mut self.texts, |serializer| serializer.collect_seq(texts));
        self.text_from(begun);
    }

    fn job_tasks(&mut self, jobs: &[Job<'_>]) {
        self.json(&COUNTS.map(|count| Vec::from_iter(jobs.iter().map(count))));
    }

    fn json(&mut self, value: &impl Serialize) {
        let begun = self.texts.len();
        append_json(&mut self.texts, |serializer| value.serialize(serializer));
        self.text_from(begun);
    }
}

/// Inserts rows in PostgreSQL's binary COPY format, one by one.
pub(super) async fn insert_each(
    session: &mut dyn Session,
    table: Table,
    columns: &[&'static Column],
    rows: &[Vec<u8>],
) -> Result<(), StoreError> {
    let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
    let marks: Vec<String> = (1..=columns.len()).map(|i| format!("${i}")).collect();
    let statement = format!(
        "INSERT INTO {table} ({}) VALUES ({})",
        names.join(", "),
        marks.join(", ")
    );
    for row in rows {
        let fields = columns.iter().zip(row_format::fields(row));
        let values: Vec<Parameter> = fields
            .map(|(column, field)| value_of_field(column.kind, field))
            .collect();
        session.execute(&statement, &values).await?;
    }
    Ok(())
}

/// A field of a row in PostgreSQL's format, as these databases store it.
fn value_of_field(kind: Kind, field: Option<&[u8]>) -> Parameter {
    let Some(bytes) = field else {
        return Parameter::Null;
    };
    let number = row_format::i64_of(field).or(row_format::i32_of(field).map(i64::from));
    match kind {
        Kind::I32 | Kind::I64 => number.map_or(Parameter::Null, Parameter::Integer),
        Kind::Time => number.map_or(Parameter::Null, |micros| {
            Parameter::Integer(micros.wrapping_add(POSTGRES_EPOCH_MICROS))
        }),
        Kind::Bool => Parameter::Integer((*bytes == [1]).into()),
        Kind::F64 => bytes.try_into().map_or(Parameter::Null, |bytes| {
            Parameter::Real(f64::from_be_bytes(bytes))
        }),
        Kind::Text | Kind::Json => Parameter::Text(String::from_utf8_lossy(bytes).into_owned()),
        Kind::Texts | Kind::JobTasks => Parameter::Text(json!(kind.value(field)).to_string()),
    }
}

/// Writes a stored integer of a column of this kind as PostgreSQL would; one out of its column's range in another form.
pub(super) fn write_integer(writer: &mut RowWriter, kind: Kind, number: i64) {
    match kind {
        Kind::I32 => match i32::try_from(number) {
            Ok(number) => writer.i32(number),
            Err(_) => writer.i64(number),
        },
        Kind::Bool if number == 0 || number == 1 => writer.bool(number == 1),
        Kind::Time => writer.time(number),
        _ => writer.i64(number),
    }
}

/// Writes a stored JSON text of [`Kind::Texts`] or [`Kind::JobTasks`] as PostgreSQL would write the array; any other text
/// as it is.
pub(super) fn write_array(writer: &mut RowWriter, kind: Kind, text: &str) {
    if kind == Kind::Texts
        && let Ok(texts) = serde_json::from_str::<Vec<String>>(text)
    {
        return writer.texts(texts.iter().map(String::as_str));
    }
    if kind == Kind::JobTasks
        && let Ok(counts) = serde_json::from_str::<[Vec<i32>; COUNTS.len()]>(text)
        && counts.iter().all(|count| count.len() == counts[0].len())
    {
        return writer.counts(counts.map(Vec::into_iter));
    }
    writer.text(text);
}
