//! `router dead-letters list`.

use std::fmt::Write as _;

use service::exit::OK;
use service::output;
use service::text::shown;
use service::words::counted;

use super::letter::{Detail, Letter};
use super::letters::Filter;
use super::listing::{Count, Listing};
use super::print::{as_json, table};
use super::topic::DeadLetterTopic;

/// Prints the newest matching letters, at most `limit` (0: all), and counts all; returns the exit code.
pub(super) fn list(
    topic: &DeadLetterTopic<'_>,
    filter: Filter,
    json: bool,
    limit: usize,
) -> anyhow::Result<u8> {
    let detail = if json { Detail::Whole } else { Detail::Row };
    let listing = Listing::read(topic, filter, limit, detail)?;
    for (partition, offset) in topic.held_back()? {
        output::note(format_args!(
            "{} partition {partition}: not shown from offset {offset} on, where a transaction is still open",
            topic.name
        ));
    }
    let listed: Vec<&Letter> = listing.newest().collect();
    if json {
        let objects: Vec<_> = listed.iter().map(|letter| as_json(letter)).collect();
        output::print_json(&objects)?;
        return Ok(OK);
    }
    let mut text = String::new();
    if !listed.is_empty() {
        text.push_str(&table(&listed));
    }
    let mut total = 0;
    for (kind, Count { all, not_redriven }) in listing.counts() {
        total += all;
        writeln!(
            text,
            "{all:>8} {} ({not_redriven} not redriven)",
            shown(kind)
        )?;
    }
    let more = match total - listed.len() {
        0 => String::new(),
        more => format!("; {more} more with --limit 0"),
    };
    writeln!(text, "{} in {}{more}", counted(total, "letter"), topic.name)?;
    output::print(&text)?;
    Ok(OK)
}
