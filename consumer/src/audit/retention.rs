//! Events that retention deleted before or during an audit.

use anyhow::bail;
use service::range::{Bound, End};
use tokio::task::block_in_place;

use super::config::Config;
use super::extent::Extent;
use super::spans::hull;
use super::topic::Topic;

/// Whether retention deleted the events before a span that starts at `start`.
pub(super) fn deleted_before(start: i64, log_start: i64) -> bool {
    start == log_start && log_start > 0
}

/// Why a range that begins at a time may be incomplete, if it may be.
///
/// # Errors
/// If the topic cannot be read.
pub(super) fn passed_before(
    topic: &Topic<'_>,
    config: &Config,
    extent: &Extent,
) -> anyhow::Result<Option<String>> {
    let Some(from @ Bound::Time(_)) = &config.from else {
        return Ok(None);
    };
    let (reader, name) = (topic.reader, topic.name);
    let starts = block_in_place(|| reader.resolve(name, from, &extent.logs))?;
    let passed = extent.logs.iter().find(|(partition, log)| {
        let had_more = extent.stored.iter().any(|((_, of), held)| {
            of == *partition && held.first_offset.is_none_or(|first| first < log.start)
        });
        had_more && !log.is_empty() && starts.get(partition) == Some(&log.start)
    });
    Ok(passed.map(|(partition, log)| {
        format!(
            "retention has deleted the events of {name} partition {partition} before offset {}, possibly including some after \
             the time given by --from; --from earliest compares what is left",
            log.start
        )
    }))
}

/// Checks that retention did not delete compared events meanwhile.
///
/// # Errors
/// If it did, or the topic cannot be read.
pub(super) fn require_unpassed(topic: &Topic<'_>, extent: &Extent) -> anyhow::Result<()> {
    for (partition, span) in hull(&extent.spans) {
        let log = topic.reader.bounds(topic.name, partition, End::Stable)?;
        if log.start > span.start {
            bail!(
                "{} partition {partition}: retention deleted offset {} while it was read, and the log now begins at {}; run the audit again",
                topic.name,
                span.start,
                log.start
            );
        }
    }
    Ok(())
}
