//! Values of rows on their way to a database without arrays, which are stored as JSON.

use schemas::Job;
use serde::{Serialize, Serializer};

use crate::row_format::{COUNTS, ValueSink, append_json};

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
