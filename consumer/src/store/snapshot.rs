//! A consistent read of a database: its stored offsets, and its rows in bulk, in the same format for every database.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::offsets::{HeldOffset, held_offset};
use super::session::{Access, Next, Session};
use super::{Database, Selection, StoreError};
use crate::ownership::Owner;
use crate::rows::Part;

/// Approximate size of the pieces that [`Snapshot::scan`] sends.
const PIECE_BYTES: usize = 64 << 10;

/// A read-only transaction with one snapshot.
pub(crate) struct Snapshot(pub(super) Box<dyn Session>);

impl Snapshot {
    /// # Errors
    /// If the database cannot be reached or does not exist.
    pub(crate) async fn take(database: &Database) -> Result<Self, StoreError> {
        let mut snapshot = Self::begin(database, None).await?;
        // The first query takes the snapshot.
        let first = "SELECT count(*) AS stored FROM consumed_offset";
        snapshot.0.select(first, &[]).await?;
        Ok(snapshot)
    }

    /// The name of this snapshot, by which other connections can share it while this transaction lasts; `None` if the
    /// database does not support that.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn moment(&mut self) -> Result<Option<String>, StoreError> {
        let Some(select) = self.0.dialect().name_moment() else {
            return Ok(None);
        };
        let row = self.0.select_one(select, &[]).await?;
        row.map(|mut row| row.take("moment")).transpose()
    }

    /// Another connection with the same snapshot.
    ///
    /// # Errors
    /// If the database cannot be reached, or the first connection is gone.
    pub(crate) async fn of_moment(database: &Database, moment: &str) -> Result<Self, StoreError> {
        Self::begin(database, Some(moment)).await
    }

    async fn begin(database: &Database, moment: Option<&str>) -> Result<Self, StoreError> {
        let mut session = database.session(Access::Read).await?;
        let dialect = session.dialect();
        let begin = dialect.begin_snapshot(moment);
        session.execute(&begin, &[]).await?;
        session.execute(dialect.scan_settings(), &[]).await?;
        Ok(Self(session))
    }

    /// The topics and clusters of all stored offsets.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn owners(&mut self) -> Result<BTreeSet<Owner>, StoreError> {
        let select = "SELECT DISTINCT topic, cluster_id FROM consumed_offset";
        let rows = self.0.select(select, &[]).await?.into_iter();
        rows.map(|mut row| Ok((row.take("topic")?, row.take("cluster_id")?)))
            .collect()
    }

    /// The stored offsets of the topic.
    ///
    /// # Errors
    /// If the database fails, or a stored offset was altered to impossible values.
    pub(crate) async fn offsets(&mut self, topic: &str) -> Result<Vec<HeldOffset>, StoreError> {
        let select = "SELECT part, \"partition\", first_offset, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, \
             anchor_crc32, topic_id FROM consumed_offset WHERE topic = $1 ORDER BY part, \"partition\"";
        let rows = self.0.select(select, &[topic.into()]).await?;
        let held = rows.into_iter().map(held_offset);
        held.filter_map(Result::transpose).collect()
    }

    /// The time up to which history was removed.
    ///
    /// # Errors
    /// If the database fails, or has an impossible time.
    pub(crate) async fn expired_before(&mut self) -> Result<Option<Timestamp>, StoreError> {
        self.0.expired_before().await
    }

    /// Sends the selected rows, in pieces of whole rows.
    ///
    /// # Errors
    /// If the database fails. A closed receiver is not an error.
    pub(crate) async fn scan(
        &mut self,
        selection: &Selection,
        pieces: &mpsc::Sender<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let mut piece = Vec::with_capacity(2 * PIECE_BYTES);
        let each = &mut |row: &[u8]| {
            piece.extend_from_slice(row);
            if piece.len() < PIECE_BYTES {
                return Next::Row;
            }
            let next = Vec::with_capacity(2 * PIECE_BYTES);
            let (pieces, whole) = (pieces.clone(), std::mem::replace(&mut piece, next));
            Next::After(async move { pieces.send(whole).await.is_ok() }.boxed())
        };
        self.0.scan(selection, each).await?;
        let _ = pieces.send(piece).await;
        Ok(())
    }

    /// Passes each selected row to `each`, until that returns `false`.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn each(
        &mut self,
        selection: &Selection,
        mut each: impl FnMut(&[u8]) -> bool + Send,
    ) -> Result<(), StoreError> {
        let each = &mut |row: &[u8]| match each(row) {
            true => Next::Row,
            false => Next::Stop,
        };
        self.0.scan(selection, each).await
    }

    /// The largest offset of a partition in a part's table.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn last_offset(
        &mut self,
        part: Part,
        partition: i32,
    ) -> Result<Option<i64>, StoreError> {
        let select = format!(
            "SELECT max(event_offset) AS last FROM {} WHERE event_partition = $1",
            part.table()
        );
        let row = self.0.select_one(&select, &[partition.into()]).await?;
        row.map_or(Ok(None), |mut row| row.take("last"))
    }

    /// The smallest offset of each partition in a part's table.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn least_offsets(
        &mut self,
        part: Part,
    ) -> Result<BTreeMap<i32, i64>, StoreError> {
        let select = format!(
            "SELECT event_partition, min(event_offset) AS least FROM {} GROUP BY event_partition",
            part.table()
        );
        let rows = self.0.select(&select, &[]).await?.into_iter();
        rows.map(|mut row| Ok((row.take("event_partition")?, row.take("least")?)))
            .collect()
    }
}
