//! One of the two databases, in one snapshot.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::audit::fingerprint::{Fingerprint, Plan};
use crate::audit::merge::Feed;
use crate::ownership::ExpectedOwner;
use crate::positions::Anchor;
use crate::rows::Part;
use crate::store::{Database, Selection, Snapshot, StoreError};
use crate::tables::Table;

/// The stored range of a part of a partition.
#[derive(Clone, Debug)]
pub(super) struct StoredPart {
    /// `None`: unknown.
    pub(super) first_offset: Option<i64>,
    /// The first offset to compare: the first stored one, or else the smallest of any row.
    pub(super) from: i64,
    pub(super) next_offset: i64,
    pub(super) cluster_id: String,
    pub(super) topic_id: Option<String>,
    pub(super) anchor: Anchor,
}

/// One of the two databases.
pub(super) struct Side {
    /// A or B.
    pub(super) name: &'static str,
    pub(super) place: String,
    pub(super) snapshot: Snapshot,
    pub(super) stored: BTreeMap<(Part, i32), StoredPart>,
    /// `consumer expire` removed older reports.
    pub(super) expired_before: Option<Timestamp>,
}

impl Side {
    pub(super) async fn open(
        name: &'static str,
        database: &Database,
        topic: &str,
    ) -> anyhow::Result<Self> {
        let place = database.place();
        let asking = || format!("reading {name}, {place}: check that it exists");
        let mut snapshot = Snapshot::take(database).await.with_context(asking)?;
        let expected = ExpectedOwner {
            topic,
            cluster_id: None, // only compared between the two databases, see `shared`
            place: &place,
            option: name,
        };
        expected.check(&snapshot.owners().await.with_context(asking)?)?;
        let stored = stored_offsets(&mut snapshot, topic)
            .await
            .with_context(asking)?;
        if stored.is_empty() {
            bail!(
                "{name}, {place}, has nothing stored of {topic}; give the topic that it came from by --events-topic, or \
                 another database"
            );
        }
        let expired_before = snapshot.expired_before().await.with_context(asking)?;
        Ok(Self {
            name,
            place,
            snapshot,
            stored,
            expired_before,
        })
    }

    pub(super) fn asking(&self) -> String {
        format!("reading {}, {}", self.name, self.place)
    }

    /// The offsets of each partition that a task's row can come from: those of any part, because each part updates
    /// `task`.
    pub(super) fn own(&self) -> BTreeMap<i32, Range<i64>> {
        let mut own: BTreeMap<i32, Range<i64>> = BTreeMap::new();
        for ((_, partition), stored) in &self.stored {
            let from = stored.first_offset.unwrap_or(i64::MIN);
            let to = stored.next_offset;
            let of_partition = own.entry(*partition).or_insert(from..to);
            *of_partition = of_partition.start.min(from)..of_partition.end.max(to);
        }
        own
    }

    /// Hashes all rows of the histories that were reported at this time or later.
    pub(super) async fn fingerprint<'a>(
        &mut self,
        plan: &'a Plan,
        reported_from: Option<Timestamp>,
        bar: &ProgressBar,
    ) -> anyhow::Result<Fingerprint<'a>> {
        let mut fingerprint = Fingerprint::new(plan);
        for table in Table::HISTORIES {
            let mut rows = 0;
            let selection = Selection {
                reported_from,
                ..Selection::of_table(table, None)
            };
            let each = |row: &[u8]| {
                fingerprint.add(table, &row[2..]);
                rows += 1;
                if rows % 10_000 == 0 {
                    bar.inc(10_000);
                }
                true
            };
            self.snapshot
                .each(&selection, each)
                .await
                .with_context(|| self.asking())?;
        }
        Ok(fingerprint)
    }
}

async fn stored_offsets(
    snapshot: &mut Snapshot,
    topic: &str,
) -> Result<BTreeMap<(Part, i32), StoredPart>, StoreError> {
    let mut least: BTreeMap<Part, BTreeMap<i32, i64>> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for held in snapshot.offsets(topic).await? {
        let from = match held.first_offset {
            Some(first) => first,
            None => {
                let of_part = match least.entry(held.part) {
                    Entry::Occupied(of_part) => of_part.into_mut(),
                    Entry::Vacant(unknown) => {
                        unknown.insert(snapshot.least_offsets(held.part).await?)
                    }
                };
                of_part.get(&held.partition).copied().unwrap_or(0)
            }
        };
        let stored = StoredPart {
            first_offset: held.first_offset,
            from,
            next_offset: held.next_offset,
            cluster_id: held.cluster_id,
            topic_id: held.topic_id,
            anchor: held.anchor,
        };
        all.insert((held.part, held.partition), stored);
    }
    Ok(all)
}

/// Reads both databases at once, each in the order of its selection, and passes their rows to `merge`.
pub(super) async fn read_both(
    a: &mut Side,
    b: &mut Side,
    [of_a, of_b]: [Selection; 2],
    merge: impl AsyncFnOnce((Feed, Feed)) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    async fn read(
        side: &mut Side,
        selection: &Selection,
        pieces: mpsc::Sender<Vec<u8>>,
    ) -> anyhow::Result<()> {
        let scanned = side.snapshot.scan(selection, &pieces).await;
        scanned.with_context(|| side.asking())
    }
    let (to_a, from_a) = mpsc::channel(4);
    let (to_b, from_b) = mpsc::channel(4);
    let feeds = (Feed::new(from_a), Feed::new(from_b));
    let (read_a, read_b, merged) =
        tokio::join!(read(a, &of_a, to_a), read(b, &of_b, to_b), merge(feeds));
    // To `merge`, a failed read looks like an early end, so its error takes precedence.
    read_a?;
    read_b?;
    merged
}
