//! A row of a history as one text: how it is selected, and how it is read.

use schemas::REPORTED_AT_MICROS;

use crate::store::{Dialect, StoreError};
use crate::tables::Kind;

/// SQL: a row as the text of a [`Line`].
pub(super) fn line(
    dialect: &dyn Dialect,
    sequence: &str,
    values: &[String],
    last: Option<&str>,
) -> String {
    let numbers = [
        // An infinite time is an error: null would drop the row.
        format!(
            "coalesce({}, {})",
            dialect.epoch_micros("reported_at"),
            i64::MAX
        ),
        sequence.to_owned(),
        "event_partition".to_owned(),
        "event_offset".to_owned(),
    ];
    let numbers = numbers
        .iter()
        .map(|number| dialect.cast(number, Kind::Text));
    let values = values.iter().map(|value| dialect.number_text(value));
    let fields = numbers.chain(values).chain(last.map(str::to_owned));
    fields.collect::<Vec<_>>().join(" || ' ' || ")
}

/// A row as text: time, sequence, partition, offset and values, separated by spaces.
pub(super) struct Line<'a> {
    pub(super) at: i64,
    pub(super) order: (i64, i32, i64),
    pub(super) rest: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn read(line: &'a str) -> Result<Self, StoreError> {
        let unreadable = || StoreError::Unreadable(format!("a row reads {line:?}"));
        let mut fields = line.splitn(5, ' ');
        let mut next = || fields.next().ok_or_else(unreadable);
        let number = |text: &str| text.parse::<i64>().map_err(|_| unreadable());
        let (at, sequence) = (number(next()?)?, number(next()?)?);
        if !REPORTED_AT_MICROS.contains(&at) {
            return Err(unreadable());
        }
        let partition = i32::try_from(number(next()?)?).map_err(|_| unreadable())?;
        Ok(Self {
            at,
            order: (sequence, partition, number(next()?)?),
            rest: next()?,
        })
    }

    /// `None` for null.
    pub(super) fn values(&self) -> impl Iterator<Item = Option<f64>> + 'a {
        self.rest.split(' ').map(|value| value.parse().ok())
    }

    /// The text after the single value.
    pub(super) fn last(&self) -> &'a str {
        self.rest.split_once(' ').map_or("", |(_, last)| last)
    }
}
