//! Rows in PostgreSQL's binary COPY format (PostgreSQL manual, COPY, "Binary Format"): used to write to PostgreSQL, and
//! as the common form in which audits compare and digest the rows of both databases.

use schemas::Job;
use serde::Serialize;

/// The start of a file: signature, flags, length of the header extension.
pub(crate) const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The end of a file.
pub(crate) const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Type oids in arrays (pg_type.dat).
const INT4_OID: u32 = 23;
const TEXT_OID: u32 = 25;

/// The counts of each job, in the order of the column `job_tasks`: total, running, failed and succeeded tasks.
pub(crate) const COUNTS: [fn(&Job<'_>) -> i32; 4] = [
    |job| job.total_tasks,
    |job| job.running_tasks,
    |job| job.failed_tasks,
    |job| job.succeed_tasks,
];

/// Receives the values of rows, column by column.
pub(crate) trait ValueSink<'a> {
    /// Begins a row with this number of columns.
    fn row(&mut self, columns: usize);

    /// Announces the column of the next value.
    fn column(&mut self, _name: &'static str) {}

    fn null(&mut self);

    fn i32(&mut self, value: i32);

    fn i64(&mut self, value: i64);

    fn f64(&mut self, value: f64);

    fn bool(&mut self, value: bool);

    /// A time in microseconds since 1970-01-01T00:00:00Z.
    fn time(&mut self, micros: i64);

    fn text(&mut self, text: &'a str);

    fn texts<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str>);

    /// The [counts](COUNTS) of some jobs: an array per count, with one number per job.
    fn job_tasks(&mut self, jobs: &[Job<'_>]);

    /// A value as JSON.
    fn json(&mut self, value: &impl Serialize);
}

/// Appends a value as JSON; appends nothing on failure. (Writing texts, finite numbers, and lists and maps of them to
/// memory cannot fail.)
pub(crate) fn append_json(
    bytes: &mut Vec<u8>,
    serialize: impl FnOnce(&mut serde_json::Serializer<&mut Vec<u8>>) -> serde_json::Result<()>,
) {
    let start = bytes.len();
    if serialize(&mut serde_json::Serializer::new(bytes)).is_err() {
        bytes.truncate(start);
    }
}

/// Writes rows to a reusable buffer.
#[derive(Default)]
pub(crate) struct RowWriter(Vec<u8>);

impl RowWriter {
    /// Begins a file.
    pub(crate) fn begin(&mut self) {
        self.0.clear();
        self.0.extend_from_slice(HEADER);
    }

    /// Ends a file and returns it.
    pub(crate) fn end(&mut self) -> &[u8] {
        self.0.extend_from_slice(&TRAILER);
        &self.0
    }

    /// Discards what was written.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The rows since the beginning, without header and trailer.
    pub(crate) fn rows(&self) -> &[u8] {
        &self.0
    }

    /// Truncates the only row to its first `count` fields.
    pub(crate) fn cut_fields(&mut self, count: usize) {
        let length = first_fields(self.0.get(2..).unwrap_or_default(), count).len();
        self.0.truncate(2 + length);
        if let Some(head) = self.0.first_chunk_mut() {
            *head = (count as i16).to_be_bytes();
        }
    }

    /// Takes the rows.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// Copies encoded fields of another row.
    pub(crate) fn fields(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// An array of arrays: one for each of the [counts](COUNTS), with one number per job.
    pub(crate) fn counts<I: ExactSizeIterator<Item = i32>>(&mut self, counts: [I; COUNTS.len()]) {
        let jobs = counts.iter().map(I::len).min().unwrap_or_default();
        let counts = counts.into_iter().flatten();
        self.array(
            INT4_OID,
            &[COUNTS.len(), jobs],
            counts.map(i32::to_be_bytes),
        );
    }

    /// Lengths fit: all texts of a record together are at most a few MiB.
    fn length(&mut self, length: usize) {
        self.0.extend_from_slice(&(length as u32).to_be_bytes());
    }

    /// An array without nulls (array_recv and array_send in PostgreSQL's arrayfuncs.c).
    fn array<B: AsRef<[u8]>>(
        &mut self,
        element_oid: u32,
        dimensions: &[usize],
        elements: impl Iterator<Item = B>,
    ) {
        // An empty array has no dimensions.
        let dimensions = match dimensions.contains(&0) {
            true => &[],
            false => dimensions,
        };
        let start = self.0.len();
        self.length(0);
        for word in [dimensions.len() as u32, 0, element_oid] {
            self.0.extend_from_slice(&word.to_be_bytes());
        }
        for length in dimensions {
            self.length(*length);
            self.0.extend_from_slice(&1_u32.to_be_bytes()); // lower bound
        }
        for element in elements {
            self.field(element.as_ref());
        }
        self.end_field(start);
    }

    /// Writes the length of the field that begins at `start`, where space was left for it.
    fn end_field(&mut self, start: usize) {
        let length = (self.0.len() - start - 4) as u32;
        self.0[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

impl<'a> ValueSink<'a> for RowWriter {
    fn row(&mut self, columns: usize) {
        self.0.extend_from_slice(&(columns as i16).to_be_bytes());
    }

    fn null(&mut self) {
        self.0.extend_from_slice(&(-1_i32).to_be_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.field(&value.to_be_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.field(&value.to_be_bytes());
    }

    fn f64(&mut self, value: f64) {
        self.field(&value.to_be_bytes());
    }

    fn bool(&mut self, value: bool) {
        self.field(&[u8::from(value)]);
    }

    /// Wraps: times accepted by the router and `rows`, of the years 1 to 9999, are far from the type's limits, but a
    /// table may hold anything.
    fn time(&mut self, micros: i64) {
        self.i64(micros.wrapping_sub(POSTGRES_EPOCH_MICROS));
    }

    fn text(&mut self, text: &'a str) {
        self.field(text.as_bytes());
    }

    fn texts<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str>) {
        self.array(TEXT_OID, &[texts.len()], texts.map(str::as_bytes));
    }

    fn job_tasks(&mut self, jobs: &[Job<'_>]) {
        self.counts(COUNTS.map(|count| jobs.iter().map(count)));
    }

    fn json(&mut self, value: &impl Serialize) {
        let start = self.0.len();
        self.length(0);
        append_json(&mut self.0, |serializer| value.serialize(serializer));
        self.end_field(start);
    }
}

/// The length of the first row in these bytes and its number of fields; `None` if it is incomplete, or at the end of
/// the file.
pub(crate) fn row_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let fields = usize::try_from(i16::from_be_bytes(*bytes.first_chunk()?)).ok()?;
    let mut length = 2;
    for _ in 0..fields {
        let field = i32::from_be_bytes(*bytes.get(length..)?.first_chunk()?);
        length += 4 + usize::try_from(field).unwrap_or(0);
    }
    (length <= bytes.len()).then_some((length, fields))
}

/// The complete rows in these bytes.
pub(crate) fn rows(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, _) = row_length(bytes)?;
        let (row, rest) = bytes.split_at(length);
        bytes = rest;
        Some(row)
    })
}

/// The fields of a row; `None`: null.
pub(crate) fn fields(row: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    split_fields(row.get(2..).unwrap_or_default())
}

/// The fields in these bytes; `None`: null.
pub(crate) fn split_fields(mut rest: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        let (field, after) = split_field(rest)?;
        rest = after;
        Some(field)
    })
}

/// The fields of a row after its first `count`.
pub(crate) fn after(row: &[u8], count: usize) -> &[u8] {
    let fields = row.get(2..).unwrap_or_default();
    (0..count).fold(fields, |fields, _| {
        split_field(fields).map_or(&[], |(_, after)| after)
    })
}

/// The first `count` of these fields.
pub(crate) fn first_fields(fields: &[u8], count: usize) -> &[u8] {
    let rest = (0..count).fold(fields, |rest, _| {
        split_field(rest).map_or(&[], |(_, after)| after)
    });
    &fields[..fields.len() - rest.len()]
}

/// The first field in these bytes, and the rest.
pub(crate) fn split_field(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, after) = bytes.split_first_chunk()?;
    let length = i32::from_be_bytes(*length);
    let (field, after) = after.split_at_checked(usize::try_from(length).unwrap_or(0))?;
    Some(((length >= 0).then_some(field), after))
}

/// A field of four bytes.
pub(crate) fn i32_of(field: Option<&[u8]>) -> Option<i32> {
    Some(i32::from_be_bytes(field?.try_into().ok()?))
}

/// A field of eight bytes.
pub(crate) fn i64_of(field: Option<&[u8]>) -> Option<i64> {
    Some(i64::from_be_bytes(field?.try_into().ok()?))
}

/// A field of text.
pub(crate) fn text_of(field: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(field?).ok()
}

/// The dimensions (none if empty) and the elements, as bytes, of an array without nulls.
pub(crate) fn elements(array: &[u8]) -> Option<(Vec<usize>, Vec<&[u8]>)> {
    let (head, mut rest) = array.split_first_chunk::<12>()?;
    let word = |at: usize| Some(u32::from_be_bytes(*head.get(at..)?.first_chunk()?));
    if word(4)? != 0 {
        return None;
    }
    let (mut dimensions, mut elements) = (Vec::new(), Vec::new());
    for _ in 0..word(0)? {
        let (length, after) = rest.split_first_chunk()?;
        let (lower_bound, after) = after.split_first_chunk()?;
        if u32::from_be_bytes(*lower_bound) != 1 {
            return None;
        }
        dimensions.push(u32::from_be_bytes(*length) as usize);
        rest = after;
    }
    while let Some((length, after)) = rest.split_first_chunk() {
        let (element, after) =
            after.split_at_checked(usize::try_from(i32::from_be_bytes(*length)).ok()?)?;
        elements.push(element);
        rest = after;
    }
    let count = match dimensions.as_slice() {
        [] => 0,
        lengths => lengths
            .iter()
            .try_fold(1_usize, |count, length| count.checked_mul(*length))?,
    };
    (elements.len() == count).then_some((dimensions, elements))
}
