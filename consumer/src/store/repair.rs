//! Corrects rows and stored offsets in one transaction.
//!
//! A row is removed only if it is still what its reader found, in every column: it is read again by its address, and is
//! locked then, or gets another address with every update. So concurrent changes are left alone.

use std::collections::{HashMap, HashSet};
use std::iter::once;

use super::selection::held;
use super::session::{Access, Next, Session, Value};
use super::{Database, HeldOffset, Selection, StoreError};
use crate::row_format::{self, RowWriter, ValueSink};
use crate::tables::{Column, TASK, TASK_ID, Table, exec_id, place};

/// Rows that are reread and removed at once.
const AT_ONCE: usize = 1_000;

/// A row to insert, with its `task_id` if known.
pub(crate) type NewRow<'a> = (Option<i64>, &'a [u8]);

/// A correcting transaction. Nothing takes effect until it is [committed](Self::commit).
pub(crate) struct Repairing(Box<dyn Session>);

impl Repairing {
    /// # Errors
    /// If the database cannot be reached or does not exist.
    pub(crate) async fn begin(database: &Database) -> Result<Self, StoreError> {
        let mut session = database.session(Access::Write).await?;
        let begin = session.dialect().begin_write();
        session.execute(begin, &[]).await?;
        Ok(Self(session))
    }

    /// # Errors
    /// If the database fails. Only if the answer to the commit was lost is it unknown whether anything was stored.
    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        self.0.execute("COMMIT", &[]).await?;
        self.0.is_in_place()?;
        self.0.close().await
    }

    /// The keys of the tasks with these names, if they exist.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn task_ids(
        &mut self,
        names: &[&str],
    ) -> Result<HashMap<String, i64>, StoreError> {
        self.0.task_ids(names, false).await
    }

    /// Removes those of these rows that are unchanged. Returns their addresses.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn remove(
        &mut self,
        table: Table,
        rows: &HashMap<&str, &[u8]>,
    ) -> Result<HashSet<String>, StoreError> {
        let mut removed = HashSet::new();
        let addresses = Vec::from_iter(rows.keys().copied());
        for addresses in addresses.chunks(AT_ONCE) {
            self.remove_some(table, addresses, rows, &mut removed)
                .await?;
        }
        Ok(removed)
    }

    async fn remove_some(
        &mut self,
        table: Table,
        addresses: &[&str],
        rows: &HashMap<&str, &[u8]>,
        removed: &mut HashSet<String>,
    ) -> Result<(), StoreError> {
        let selection = Selection {
            addresses: Some(addresses.iter().map(|it| (*it).to_owned()).collect()),
            addressed: true,
            ..Selection::of_table(table, None)
        };
        let dialect = self.0.dialect();
        let (mut addresses, mut places) = (Vec::new(), Vec::new());
        let each = &mut |row: &[u8]| {
            if let Some(found) = held(row)
                && rows.get(found.address.as_str()) == Some(&&*found.row)
                && let Some((partition, offset)) = place(&found.row)
            {
                addresses.push(found.address);
                places.push(format!("({partition}, {offset})"));
            }
            Next::Row
        };
        self.0.scan(&selection, each).await?;
        if addresses.is_empty() {
            return Ok(());
        }
        let is_at = dialect.is_at(table, &addresses);
        if dialect.lock_found().is_some() {
            self.0.execute(&dialect.delete(table, &is_at), &[]).await?;
            removed.extend(addresses);
            return Ok(());
        }
        // An update in between has given the row another address.
        let unchanged = format!(
            "{is_at} AND (h.event_partition, h.event_offset) IN (VALUES {})",
            places.join(", ")
        );
        let delete = format!(
            "{} RETURNING {} AS address",
            dialect.delete(table, &unchanged),
            dialect.address_text(table, "")
        );
        for mut row in self.0.select(&delete, &[]).await? {
            removed.insert(row.take("address")?);
        }
        Ok(())
    }

    /// Inserts rows of `task`; those without a key get a new one.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn insert_tasks(&mut self, rows: &[NewRow<'_>]) -> Result<(), StoreError> {
        let (mut keyed, mut new) = (Vec::new(), Vec::new());
        for (task_id, row) in rows {
            match task_id {
                Some(task_id) => keyed.push(stored(Table::Task, *task_id, row)),
                None => new.push(row.to_vec()),
            }
        }
        let columns = Table::Task.stored_columns();
        let with_key: Vec<&Column> = once(&TASK_ID).chain(columns).collect();
        self.insert(Table::Task, &with_key, &keyed).await?;
        self.insert(Table::Task, &with_key[1..], &new).await
    }

    /// Inserts rows of a history. Their tasks are looked up by name.
    ///
    /// # Errors
    /// If the database fails, or a task does not exist.
    pub(crate) async fn insert_history(
        &mut self,
        table: Table,
        rows: &[&[u8]],
    ) -> Result<(), StoreError> {
        let names: HashSet<&str> = rows.iter().filter_map(|row| exec_id(row)).collect();
        // Locked, so that none expires before its rows are inserted.
        let task_ids = self.0.task_ids(&Vec::from_iter(names), true).await?;
        let stored = |row: &&[u8]| {
            let task_id = exec_id(row).and_then(|name| task_ids.get(name));
            task_id.map(|task_id| stored(table, *task_id, row))
        };
        let rows: Option<Vec<_>> = rows.iter().map(stored).collect();
        let rows = rows.ok_or_else(|| {
            StoreError::Retry("the row of a task was removed meanwhile".to_owned())
        })?;
        let columns: Vec<&Column> = table.stored_columns().collect();
        self.insert(table, &columns, &rows).await
    }

    async fn insert(
        &mut self,
        table: Table,
        columns: &[&'static Column],
        rows: &[Vec<u8>],
    ) -> Result<(), StoreError> {
        match rows.is_empty() {
            true => Ok(()),
            false => self.0.insert(table, columns, rows).await,
        }
    }

    /// Gives a task another name or key, provided that its name is `held`. Returns whether it was.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn rename(
        &mut self,
        task_id: i64,
        held: &str,
        exec_id: &str,
        new_task_id: i64,
    ) -> Result<bool, StoreError> {
        let rename =
            "UPDATE task SET task_id = $1, exec_id = $2 WHERE task_id = $3 AND exec_id = $4";
        let values = [
            new_task_id.into(),
            exec_id.into(),
            task_id.into(),
            held.into(),
        ];
        Ok(self.0.execute(rename, &values).await? > 0)
    }

    /// Corrects columns of a stored offset, unless a consumer has moved it. Returns whether it did.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn correct_offset(
        &mut self,
        topic: &str,
        held: &HeldOffset,
        columns: &[(&'static str, Value)],
    ) -> Result<bool, StoreError> {
        let mut values: Vec<Value> = vec![
            held.part.as_str().into(),
            topic.into(),
            held.partition.into(),
            held.next_offset.into(),
            held.cluster_id.as_str().into(),
            held.anchor.offset.into(),
            held.anchor.timestamp_ms.into(),
            held.anchor.crc32.into(),
        ];
        let mut set = Vec::new();
        for (column, value) in columns {
            values.push(value.clone());
            set.push(format!("{column} = ${}", values.len()));
        }
        let update = format!(
            "UPDATE consumed_offset SET {} WHERE part = $1 AND topic = $2 AND \"partition\" = $3 AND next_offset = $4 \
             AND cluster_id = $5 AND anchor_offset = $6 AND anchor_timestamp_ms = $7 AND anchor_crc32 = $8",
            set.join(", ")
        );
        Ok(self.0.execute(&update, &values).await? > 0)
    }

    /// Inserts a stored offset, unless it exists or the database belongs to another topic. Returns whether it did.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn insert_offset(
        &mut self,
        topic: &str,
        group_id: &str,
        offset: &HeldOffset,
    ) -> Result<bool, StoreError> {
        let dialect = self.0.dialect();
        let insert = dialect.insert_new(&format!(
            "INTO consumed_offset (part, topic, \"partition\", first_offset, next_offset, cluster_id, anchor_offset, \
             anchor_timestamp_ms, anchor_crc32, group_id, topic_id, updated_at) \
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11, ''), {} \
             WHERE NOT EXISTS (SELECT 1 FROM consumed_offset WHERE topic <> $2)",
            dialect.now()
        ));
        let values = [
            offset.part.as_str().into(),
            topic.into(),
            offset.partition.into(),
            offset.first_offset.into(),
            offset.next_offset.into(),
            offset.cluster_id.as_str().into(),
            offset.anchor.offset.into(),
            offset.anchor.timestamp_ms.into(),
            offset.anchor.crc32.into(),
            group_id.into(),
            offset.topic_id.as_deref().unwrap_or_default().into(),
        ];
        Ok(self.0.execute(&insert, &values).await? > 0)
    }
}

/// A row in its stored form: a history names its task only by this key.
fn stored(table: Table, task_id: i64, row: &[u8]) -> Vec<u8> {
    let mut stored = RowWriter::default();
    let columns = table.columns().len();
    if table == Table::Task {
        stored.row(columns + 1);
        stored.i64(task_id);
    } else {
        stored.row(columns);
    }
    for (place, field) in row_format::fields(row).enumerate() {
        match field {
            _ if place == TASK && table != Table::Task => stored.i64(task_id),
            Some(field) => stored.field(field),
            None => stored.null(),
        }
    }
    stored.take()
}
