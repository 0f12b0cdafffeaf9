//! How much of a list a command prints.

use crate::query::{DEFAULT_LIMIT, LARGEST_LIMIT};

/// Options of commands that print a list page by page.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PageOptions {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_LIMIT)))]
    pub(crate) limit: u32,
    /// The page after the one that ended with this cursor, with the same options; times have to be absolute, since those
    /// back from now are others each time
    #[arg(long, value_name = "CURSOR")]
    pub(crate) cursor: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The line behind a page; empty behind the last one.
pub(crate) fn next_page(cursor: Option<&str>) -> String {
    cursor.map_or_else(String::new, |next| {
        format!("the next page: --cursor {next}\n")
    })
}
