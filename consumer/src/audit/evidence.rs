//! What a row proves that the topic does not say. Only a record at its offset can tell that it is wrong: where there
//! is none, retention, compaction or a deletion may have taken the record that the row came from. (An offset without a
//! record may also be the end of a transaction; a client cannot see which, nor whether a topic was compacted before.)

use std::collections::BTreeSet;

use rdkafka::Message;

use super::finding::{Cure, Fault, Findings};
use super::spans::Spans;
use super::topic::{Isolation, Topic, each_record};
use crate::tables::Table;

/// Settles what was found at offsets without a committed record: a row of an aborted transaction's record is extra, and
/// so is one of a partition that the topic does not have, since a topic loses none. All others are left as they are.
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
    // Those read as committed were told apart before; what is there all the same was aborted.
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
        let is_of_topic = (0..topic.partitions).contains(&finding.partition);
        match is_of_topic && !aborted.contains(&(finding.partition, finding.offset)) {
            true => finding.cure = Cure::None,
            false => finding.fault = Fault::Extra,
        }
    }
    Ok(())
}
