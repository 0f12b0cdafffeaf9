//! Text tables for terminals.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// An empty table with this header.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// The table's text with a line feed; these columns are right-aligned.
pub fn right_aligned(table: &mut Table, numbers: impl IntoIterator<Item = usize>) -> String {
    for column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}
