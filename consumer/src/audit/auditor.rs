//! One audit: from the snapshot to the report.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, bail};
use service::exit::NeedsAttention;
use service::kafka::Cluster;
use service::range::{End, Ranges};
use service::words::counted;
use tokio::task::block_in_place;

use super::backlog::not_stored;
use super::compare::compare_rows;
use super::config::Config;
use super::dead_letters::dead_lettered;
use super::extent::Extent;
use super::finding::{Fault, Finding, Findings};
use super::fingerprint::Marks;
use super::report::{Report, partition_reports};
use super::sums::Sums;
use super::topic::Topic;
use super::{offsets, retention};
use crate::ownership::ExpectedOwner;
use crate::rows::Part;
use crate::store::{Database, Snapshot};
use crate::tables::Table;

/// Audits the same tables any number of times.
pub(super) struct Auditor<'a> {
    pub(super) config: &'a Config,
    pub(super) database: &'a Database,
    pub(super) cluster: &'a Cluster,
    pub(super) topic: Topic<'a>,
}

impl Auditor<'_> {
    /// Compares the tables of one snapshot with the topic.
    ///
    /// # Errors
    /// If the topic or the database cannot be read, or if they do not belong together.
    pub(super) async fn audit(&mut self) -> anyhow::Result<(Report, Findings)> {
        let place = self.database.place();
        let asking = || format!("reading {place}");
        let mut snapshot = Snapshot::take(self.database).await.with_context(asking)?;
        let owners = snapshot.owners().await.with_context(asking)?;
        let expected = ExpectedOwner {
            topic: self.topic.name,
            cluster_id: None, // a row of another cluster may be a finding, see `offsets::check`
            place: &place,
            option: "--database-url",
        };
        expected.check(&owners)?;
        if owners.is_empty() {
            bail!(
                "{place} has no stored offset of {}, so there is nothing to compare; is it the database of its \
                 consumers (--database-url)?",
                self.topic.name
            );
        }
        self.topic.expired_before = snapshot.expired_before().await.with_context(asking)?;
        let count = self
            .cluster
            .require_topic(self.topic.name, "Read", None)
            .await?;
        self.topic.partitions = i32::try_from(count)?;
        let mut doubts = Vec::new();
        match self.cluster.compaction(self.topic.name).await {
            Ok(compaction) => doubts.extend(compaction),
            Err(error) if error.chain().any(|cause| cause.is::<NeedsAttention>()) => {
                tracing::info!("{error:#}");
            }
            Err(error) => return Err(error),
        }
        let mut logs = Ranges::new();
        for partition in 0..i32::try_from(count)? {
            let log = block_in_place(|| {
                self.topic
                    .reader
                    .bounds(self.topic.name, partition, End::Stable)
            })?;
            logs.insert(partition, log);
        }
        let mut findings = Findings::default();
        let held = snapshot
            .offsets(self.topic.name)
            .await
            .with_context(asking)?;
        let mut least_rows = BTreeMap::new();
        for part in Part::ALL {
            if held
                .iter()
                .any(|held| held.part == part && !held.is_sound())
            {
                let of_part = snapshot.least_offsets(part).await.with_context(asking)?;
                least_rows.extend(of_part.into_iter().map(|(p, offset)| ((part, p), offset)));
            }
        }
        let mut stored = offsets::check(
            held,
            &least_rows,
            &self.cluster.id,
            &self.topic,
            &logs,
            &mut findings,
        )?;
        let Self {
            config,
            database,
            cluster,
            topic,
        } = self;
        if config.is_whole() {
            let snapshot = &mut snapshot;
            offsets::find_missing(
                topic,
                &cluster.id,
                snapshot,
                &logs,
                &mut stored,
                &mut findings,
            )
            .await?;
        }
        let not_stored = not_stored(topic, &logs, &stored)?;
        let mut extent = Extent::of(topic, config, logs, stored)?;
        let mut sums = Sums::read(topic, database, &mut snapshot, &extent).await?;
        let (logs, stored, outside) = (&extent.logs, &mut extent.stored, &sums.outside);
        let began_before = offsets::correct_first(logs, stored, outside, &mut findings);
        let went_back =
            offsets::correct_next(topic, &mut snapshot, logs, stored, outside, &mut findings)
                .await
                .with_context(asking)?;
        if began_before || went_back {
            extent = Extent::of(topic, config, extent.logs, extent.stored)?;
            sums = Sums::read(topic, database, &mut snapshot, &extent).await?;
        }
        let dead_lettered = match sums.differing.is_empty() && sums.unreadable_count.is_empty() {
            true => Marks::default(),
            false => {
                let letters_topic = &config.dead_letters_topic;
                dead_lettered(topic, cluster, letters_topic, &extent.spans).await?
            }
        };
        compare_rows(
            topic,
            &mut snapshot,
            &extent,
            &sums,
            &dead_lettered,
            &mut findings,
        )
        .await
        .with_context(asking)?;
        require_readable(topic, &sums, &findings)?;
        block_in_place(|| retention::require_unpassed(topic, &extent))?;
        doubts.extend(retention::passed_before(topic, config, &extent)?);
        doubts.extend(without_place(&place, &sums, &findings));
        let partitions = partition_reports(&extent, &sums, &dead_lettered, &findings);
        let unreadable = sums.unreadable_shown;
        let cluster_id = &cluster.id;
        let mut report = Report::new(
            topic,
            config,
            cluster_id,
            place.clone(),
            partitions,
            unreadable,
            &findings,
        );
        report.not_stored = not_stored;
        report.judge(doubts);
        Ok((report, findings))
    }
}

/// Fails if an extra row belongs to an event that only another consumer can read: such a row must not be removed.
fn require_readable(topic: &Topic<'_>, sums: &Sums, findings: &Findings) -> anyhow::Result<()> {
    let unknown = |finding: &&Finding| {
        let is_unknown = sums
            .unknown_writer
            .is_set(finding.partition, finding.offset);
        matches!(finding.fault, Fault::Extra) && is_unknown
    };
    let Some(finding) = findings.found.iter().find(unknown) else {
        return Ok(());
    };
    let (partition, offset) = (finding.partition, finding.offset);
    Err(anyhow!(
        "{} partition {partition} offset {offset}: the tables have rows of an event whose schema is unknown here; \
         give the same --schemas or --schema-registry as the consumer has",
        topic.name
    ))
}

/// Rows without a partition and offset, which SQLite allows (columns can hold text): no record proves them.
fn without_place(place: &str, sums: &Sums, findings: &Findings) -> Option<String> {
    let counts = findings.counts();
    let found = |table: Table| -> u64 {
        let of_none = counts
            .iter()
            .filter(|((name, _, partition), _)| *name == table.name() && *partition == -1);
        of_none.map(|(_, count)| count).sum()
    };
    let of_none = sums.outside.iter().filter(|((_, at), _)| *at == -1);
    let rows: u64 = of_none
        .map(|((table, _), outside)| {
            (outside.before + outside.behind).saturating_sub(found(*table))
        })
        .sum();
    (rows > 0).then(|| {
        format!(
            "{} in {} without a valid event_partition or event_offset: find them by \
             typeof(event_partition) and typeof(event_offset)",
            counted(rows, "row"),
            place
        )
    })
}
