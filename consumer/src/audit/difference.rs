//! In which columns two rows differ.

use serde::Serialize;
use serde_json::Value;

use crate::row_format;
use crate::tables::Table;

/// A column in which a table's row differs from what the topic expects.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    pub(crate) column: &'static str,
    pub(crate) expected: Value,
    pub(crate) found: Value,
}

impl Table {
    /// The columns in which two rows differ, with the expected and the found value.
    pub(crate) fn differences(self, expected: &[u8], found: &[u8]) -> Vec<Difference> {
        let both = row_format::fields(expected).zip(row_format::fields(found));
        let columns = self.columns().iter().zip(both);
        columns
            .filter(|(_, (expected, found))| expected != found)
            .map(|(column, (expected, found))| Difference {
                column: column.name,
                expected: column.kind.value(expected),
                found: column.kind.value(found),
            })
            .collect()
    }
}

/// [`Table::key`], if it is text.
pub(crate) fn key_text(table: Table, row: &[u8]) -> Option<String> {
    let key = std::str::from_utf8(table.key(row)).ok()?;
    (!key.is_empty()).then(|| key.to_owned())
}
