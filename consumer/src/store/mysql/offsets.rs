//! Moves the stored offsets.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;

use super::codes;
use crate::positions::{Advance, Anchor};
use crate::store::{Identity, StoreError};

/// Taken before a first offset is inserted, so that each such statement sees earlier inserts: of two topics in one empty
/// database, the second is refused. It belongs to the session, and ends with it.
const LOCK: &str = "SELECT get_lock(concat('consumer first ', md5(database())), ?)";
const UNLOCK: &str = "DO release_lock(concat('consumer first ', md5(database())))";

const COLUMNS: &str = "part, topic, \"partition\", next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, \
     anchor_crc32, group_id, topic_id, first_offset, updated_at";
const ROW: &str =
    "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CAST(unix_timestamp(now(6)) * 1000000 AS signed))";

/// The session that holds it.
const LOCK_HOLDER: &str =
    "SELECT CAST(is_used_lock(concat('consumer first ', md5(database()))) AS unsigned)";
/// Who that is; every user sees the sessions of its own.
const HOLDER: &str = "SELECT CAST(user AS char), CAST(host AS char) FROM information_schema.processlist WHERE id = ?";

/// After this time, the holder of the lock is logged.
const LOCK_REPORTED: Duration = Duration::from_secs(3);
/// Time to wait after that.
const LOCK_WAIT: Duration = Duration::from_secs(17);

/// A stored offset, locked.
type Stored = (String, i32, i64, i64, i64, i64);

pub(super) async fn lock_first_offsets(connection: &mut MySqlConnection) -> Result<(), StoreError> {
    if lock_within(connection, LOCK_REPORTED).await? {
        return Ok(());
    }
    let holder: Option<u64> = sqlx::query_scalar(LOCK_HOLDER)
        .fetch_one(&mut *connection)
        .await?;
    if let Some(id) = holder {
        let user = sqlx::query_as(HOLDER).bind(id);
        let user: Option<(String, String)> = user.fetch_optional(&mut *connection).await?;
        let user = user.map_or_else(String::new, |(user, host)| format!(" (user {user}@{host})"));
        tracing::warn!(
            "storing the first offsets waits for the lock that session {id}{user} holds; if that is no consumer, end it: \
             KILL {id}"
        );
    }
    match lock_within(connection, LOCK_WAIT).await? {
        true => Ok(()),
        false => Err(StoreError::Retry(
            "storing the first offsets waits for another consumer".to_owned(),
        )),
    }
}

async fn lock_within(connection: &mut MySqlConnection, wait: Duration) -> Result<bool, StoreError> {
    let lock = sqlx::query_scalar(LOCK).bind(wait.as_secs());
    let locked: Option<i64> = lock.fetch_one(connection).await?;
    Ok(locked == Some(1))
}

pub(super) async fn unlock_first_offsets(
    connection: &mut MySqlConnection,
) -> Result<(), StoreError> {
    sqlx::raw_sql(UNLOCK).execute(connection).await?;
    Ok(())
}

/// Moves the stored offsets forward, in a transaction. First offsets have to be [locked](lock_first_offsets).
///
/// # Errors
/// [`StoreError::Fenced`] if one is not the expected one.
pub(super) async fn move_offsets(
    connection: &mut MySqlConnection,
    advances: &[Advance],
    identity: &Identity,
) -> Result<(), StoreError> {
    let (moved, begun): (Vec<&Advance>, Vec<&Advance>) = advances
        .iter()
        .partition(|advance| advance.expected.is_some());
    if !moved.is_empty() {
        move_locked(connection, &moved, identity).await?;
    }
    if !begun.is_empty() {
        insert_first(connection, &begun, identity).await?;
    }
    Ok(())
}

/// Locks the rows by their whole key, in its order, so that only consumers of the same partition wait, and compares them.
async fn move_locked(
    connection: &mut MySqlConnection,
    moved: &[&Advance],
    identity: &Identity,
) -> Result<(), StoreError> {
    let keys = vec!["(part = ? AND topic = ? AND \"partition\" = ?)"; moved.len()].join(" OR ");
    let select = format!(
        "SELECT part, \"partition\", next_offset, anchor_offset, anchor_timestamp_ms, anchor_crc32 \
         FROM consumed_offset FORCE INDEX (PRIMARY) WHERE {keys} ORDER BY part, topic, \"partition\" FOR UPDATE"
    );
    let mut query = sqlx::query_as(AssertSqlSafe(select));
    for advance in moved {
        query = query
            .bind(advance.part.as_str())
            .bind(&identity.topic)
            .bind(advance.partition);
    }
    let locked: Vec<Stored> = query.fetch_all(&mut *connection).await?;
    let mut kept = Vec::with_capacity(moved.len());
    for advance in moved {
        let stored = locked.iter().find(|(part, partition, ..)| {
            (part.as_str(), *partition) == (advance.part.as_str(), advance.partition)
        });
        match stored {
            Some((_, _, next, offset, timestamp_ms, crc32)) if advance.expected == Some(*next) => {
                kept.push((*offset, *timestamp_ms, *crc32));
            }
            _ => return Err(StoreError::Fenced(**advance)),
        }
    }
    // The rows exist, and stay locked.
    let upsert = format!(
        "INSERT INTO consumed_offset ({COLUMNS}) VALUES {} ON DUPLICATE KEY UPDATE next_offset = VALUES(next_offset), \
         cluster_id = VALUES(cluster_id), anchor_offset = VALUES(anchor_offset), \
         anchor_timestamp_ms = VALUES(anchor_timestamp_ms), anchor_crc32 = VALUES(anchor_crc32), \
         group_id = VALUES(group_id), topic_id = coalesce(VALUES(topic_id), topic_id), updated_at = VALUES(updated_at)",
        vec![ROW; moved.len()].join(", ")
    );
    let mut query = sqlx::query(AssertSqlSafe(upsert));
    for (advance, kept) in moved.iter().zip(kept) {
        // A step without an anchor keeps the stored one.
        let (offset, timestamp_ms, crc32) = advance.anchor.map_or(kept, numbers);
        query = query
            .bind(advance.part.as_str())
            .bind(&identity.topic)
            .bind(advance.partition)
            .bind(advance.next)
            .bind(&identity.cluster_id)
            .bind(offset)
            .bind(timestamp_ms)
            .bind(crc32)
            .bind(&identity.group_id)
            .bind(identity.topic_id.as_deref())
            .bind(None::<i64>);
    }
    query.execute(connection).await?;
    Ok(())
}

async fn insert_first(
    connection: &mut MySqlConnection,
    begun: &[&Advance],
    identity: &Identity,
) -> Result<(), StoreError> {
    let others = "SELECT count(*) FROM consumed_offset WHERE topic <> ? OR cluster_id <> ?";
    let others: i64 = sqlx::query_scalar(others)
        .bind(&identity.topic)
        .bind(&identity.cluster_id)
        .fetch_one(&mut *connection)
        .await?;
    let insert = format!("INSERT INTO consumed_offset ({COLUMNS}) VALUES {ROW}");
    for advance in begun {
        if others > 0 {
            return Err(StoreError::Fenced(**advance));
        }
        let (offset, timestamp_ms, crc32) = numbers(advance.anchor.unwrap_or(Anchor::NONE));
        let query = sqlx::query(AssertSqlSafe(insert.clone()))
            .bind(advance.part.as_str())
            .bind(&identity.topic)
            .bind(advance.partition)
            .bind(advance.next)
            .bind(&identity.cluster_id)
            .bind(offset)
            .bind(timestamp_ms)
            .bind(crc32)
            .bind(&identity.group_id)
            .bind(identity.topic_id.as_deref())
            .bind(advance.first);
        match query.execute(&mut *connection).await {
            Ok(_) => {}
            Err(error) if codes::number(&error) == Some(codes::DUPLICATE_KEY) => {
                return Err(StoreError::Fenced(**advance));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn numbers(anchor: Anchor) -> (i64, i64, i64) {
    (anchor.offset, anchor.timestamp_ms, anchor.crc32.into())
}
