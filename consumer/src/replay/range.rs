//! Resolves `--from` and `--to` to offsets.

use service::range::{Bound, End, Ranges, Reader};
use service::words::counted;

use super::{ReplayOptions, wrong_usage};

/// Returns the partitions' logs, and the offsets to replay: from `--from` to `--to`, or to the current end for
/// read_committed readers.
pub(super) fn range(
    reader: &Reader,
    options: &ReplayOptions,
    partitions: usize,
) -> anyhow::Result<(Ranges, Ranges)> {
    let topic = &options.events_topic;
    let mut logs = Ranges::new();
    for partition in 0..i32::try_from(partitions)? {
        logs.insert(partition, reader.bounds(topic, partition, End::Stable)?);
    }
    for (option, bound) in [("--from", &options.from), ("--to", &options.to)] {
        if let Bound::Offsets(offsets) = bound
            && let Some(partition) = offsets.keys().find(|p| !logs.contains_key(p))
        {
            return Err(wrong_usage(format!(
                "{option} {bound}: {topic} has no partition {partition}; it has {}, numbered from 0",
                counted(partitions, "partition")
            )));
        }
    }
    if let (Bound::Time(from), Bound::Time(to)) = (&options.from, &options.to)
        && from > to
    {
        return Err(wrong_usage(format!(
            "--from {from} is later than --to {to}; exchange them"
        )));
    }
    let starts = reader.resolve(topic, &options.from, &logs)?;
    let ends = reader.resolve(topic, &options.to, &logs)?;
    let mut range = Ranges::new();
    for (partition, log) in &logs {
        let (Some(&start), Some(&to)) = (starts.get(partition), ends.get(partition)) else {
            continue;
        };
        if start > log.end {
            return Err(wrong_usage(format!(
                "--from {}: {topic} partition {partition} ends at offset {}, before {start}; give an earlier offset",
                options.from, log.end
            )));
        }
        if to > log.end {
            tracing::warn!(
                "--to {}: {topic} partition {partition} currently ends at offset {} for read_committed readers; replaying up \
                 to there",
                options.to,
                log.end
            );
        }
        let end = to.min(log.end);
        let bounds = [&options.from, &options.to];
        if start > end
            && bounds
                .iter()
                .any(|bound| matches!(bound, Bound::Offsets(_)))
        {
            return Err(wrong_usage(format!(
                "{topic} partition {partition}: --from {} is offset {start}, after offset {end} of --to {}; the log has \
                 offsets {} to {}",
                options.from, options.to, log.start, log.end
            )));
        }
        range.insert(*partition, start..end.max(start));
    }
    if range.is_empty() {
        return Err(wrong_usage(format!(
            "--from {} and --to {} have no partition in common",
            options.from, options.to
        )));
    }
    Ok((logs, range))
}
