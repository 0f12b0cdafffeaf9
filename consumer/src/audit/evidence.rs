//! Decides whether a row that the topic does not expect is wrong. Only a record at its offset proves that: without one,
//! retention, compaction or a deletion may have removed the record that the row came from. (An offset without a record
//! may also be a transaction marker; a client can neither tell these apart nor see whether the topic was ever
//! compacted.)

use std::collections::BTreeSet;

use rdkafka::Message;

use super::finding::{Correction, Fault, Findings};
use super::spans::Spans;
use super::topic::{Isolation, Topic, each_record};
use crate::tables::Table;

/// Settles the findings at offsets without a committed record. A row of an aborted record is extra, and so is a row of
/// a partition that the topic does not have, because a topic never loses partitions, and one of a negative offset,
/// which no record has. All others stay unprovable.
///
/// # Errors
/// If the topic cannot be read.
pub(super) fn settle(
    topic: &Topic<'_>,
    spans: &Spans,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let span = |table: &str, partition| {
        let table = Table::ALL.into_iter().find(|it| it.name() == table)?;
        spans.get(&(table, partition))
    };
    let unprovable = findings.found.iter().filter(|finding| {
        finding.fault == Fault::Unprovable
            && span(finding.table, finding.partition).is_some_and(|it| it.contains(&finding.offset))
    });
    let places: BTreeSet<(i32, i64)> = unprovable
        .map(|finding| (finding.partition, finding.offset))
        .collect();
    // None of them was read as committed, so a record found now was aborted.
    let mut aborted = BTreeSet::new();
    each_record(topic, places, Isolation::All, |record| {
        aborted.insert((record.partition(), record.offset()));
        Ok(())
    })?;
    let unprovable = findings
        .found
        .iter_mut()
        .filter(|finding| finding.fault == Fault::Unprovable);
    for finding in unprovable {
        let is_of_topic = (0..topic.partitions).contains(&finding.partition) && finding.offset >= 0;
        match is_of_topic && !aborted.contains(&(finding.partition, finding.offset)) {
            true => finding.correction = Correction::None,
            false => finding.fault = Fault::Extra,
        }
    }
    Ok(())
}
