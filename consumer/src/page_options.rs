//! Paging options of commands that list jobs or engines.

use crate::query::{DEFAULT_LIMIT, LARGEST_LIMIT};

/// Options of commands that print a list page by page.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PageOptions {
    /// Maximum number of rows
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_LIMIT)))]
    pub(crate) limit: u32,
    /// Continue after an earlier page, which printed this cursor; all other options must be the same, and times
    /// absolute: relative ones change with each call
    #[arg(long, value_name = "CURSOR")]
    pub(crate) cursor: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The line that follows a page; empty after the last page.
pub(crate) fn next_page(cursor: Option<&str>) -> String {
    cursor.map_or_else(String::new, |next| format!("next page: --cursor {next}\n"))
}
