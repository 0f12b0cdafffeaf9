//! Moves the stored offsets.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::QueryAs;

use crate::positions::{Advance, Anchor};
use crate::store::{Identity, StoreError};

const INSERT_OFFSET: &str = "INSERT INTO consumed_offset (part, topic, partition, next_offset, cluster_id, anchor_offset, \
     anchor_timestamp_ms, anchor_crc32, group_id, updated_at, first_offset, topic_id) \
     SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, now(), $10, $11 \
     WHERE NOT EXISTS (SELECT 1 FROM consumed_offset WHERE topic <> $2 OR cluster_id <> $5) ON CONFLICT DO NOTHING";

/// Acquired before a first offset is inserted, so that each such statement sees earlier inserts: of two topics in one
/// empty database, the second is refused. (A statement's snapshot is taken when it begins, so the lock is a statement
/// of its own.) The key is arbitrary; advisory locks need no right and are local to a database.
const FIRST_OFFSETS_KEY: i64 = 7022639402163274087;
/// Interval between tries to acquire the lock.
const LOCK_AGAIN: Duration = Duration::from_millis(100);
/// A lock that is held longer is reported: a consumer holds it for one short transaction.
const LOCK_REPORTED: Duration = Duration::from_secs(3);

/// The session that holds an advisory lock of one 64-bit key in this database.
const LOCK_HOLDER: &str = "SELECT held.pid, coalesce(activity.application_name, ''), coalesce(activity.usename::text, '') \
     FROM pg_locks AS held LEFT JOIN pg_stat_activity AS activity USING (pid) \
     WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1 \
     AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND held.classid::bigint = $1 >> 32 AND held.objid::bigint = $1 & 4294967295 LIMIT 1";

/// The steps, and the stored offsets locked in a fixed order: an UPDATE alone locks in any order.
pub(super) const WITH_LOCKED: &str = "WITH sent AS (SELECT * FROM unnest($4::text[], $5::integer[], $6::bigint[], $7::bigint[], $8::bigint[], \
     $9::bigint[], $10::bigint[]) \
     AS sent (part, partition, expected, next_offset, anchor_offset, anchor_timestamp_ms, anchor_crc32)), \
     locked AS (SELECT held.part, held.partition, held.next_offset = sent.expected AS is_expected \
     FROM consumed_offset held JOIN sent USING (part, partition) \
     WHERE held.topic = $1 ORDER BY held.partition, held.part FOR UPDATE OF held)";

/// Number of parameters of [`WITH_LOCKED`] and [`move_locked`], as bound by [`bind_offsets`].
pub(super) const OFFSET_PARAMETERS: usize = 11;

/// Performs all steps at once, if `only_if` holds too. A step without an anchor keeps the stored one. The UPDATE sees
/// the current row, so it detects an offset that someone else has moved meanwhile.
pub(super) fn move_locked(only_if: &str) -> String {
    format!(
        "UPDATE consumed_offset held SET next_offset = sent.next_offset, cluster_id = $2, \
         anchor_offset = coalesce(sent.anchor_offset, held.anchor_offset), \
         anchor_timestamp_ms = coalesce(sent.anchor_timestamp_ms, held.anchor_timestamp_ms), \
         anchor_crc32 = coalesce(sent.anchor_crc32, held.anchor_crc32), group_id = $3, updated_at = now(), \
         topic_id = coalesce($11, held.topic_id) FROM sent JOIN locked USING (part, partition) \
         WHERE held.topic = $1 AND held.part = sent.part AND held.partition = sent.partition \
         AND held.next_offset = sent.expected{only_if} RETURNING held.part, held.partition"
    )
}

static MOVE_OFFSETS: LazyLock<String> =
    LazyLock::new(|| format!("{WITH_LOCKED} {}", move_locked("")));

/// Moves the stored offsets forward.
///
/// # Errors
/// [`StoreError::Fenced`] if one is not the expected one.
pub(super) async fn move_offsets(
    connection: &mut PgConnection,
    advances: &[Advance],
    identity: &Identity,
) -> Result<(), StoreError> {
    let (moved, begun): (Vec<&Advance>, Vec<&Advance>) = advances
        .iter()
        .partition(|advance| advance.expected.is_some());
    if !moved.is_empty() {
        let of = |advance: &&Advance| (advance.part.as_str(), advance.partition);
        let query = bind_offsets(sqlx::query_as(MOVE_OFFSETS.as_str()), &moved, identity);
        let done: Vec<(String, i32)> = query.fetch_all(&mut *connection).await?;
        let is_done = |advance: &Advance| {
            let mut done = done.iter();
            done.any(|(part, partition)| (part.as_str(), *partition) == of(&advance))
        };
        if let Some(fenced) = moved.into_iter().find(|advance| !is_done(advance)) {
            return Err(StoreError::Fenced(*fenced));
        }
    }
    if !begun.is_empty() {
        lock_first_offsets(connection).await?;
    }
    for advance in begun {
        let anchor = advance.anchor.unwrap_or(Anchor::NONE);
        let query = sqlx::query(INSERT_OFFSET)
            .bind(advance.part.as_str())
            .bind(&identity.topic)
            .bind(advance.partition)
            .bind(advance.next)
            .bind(&identity.cluster_id)
            .bind(anchor.offset)
            .bind(anchor.timestamp_ms)
            .bind(i64::from(anchor.crc32))
            .bind(&identity.group_id)
            .bind(advance.first)
            .bind(identity.topic_id.as_deref());
        if query.execute(&mut *connection).await?.rows_affected() == 0 {
            return Err(StoreError::Fenced(*advance));
        }
    }
    Ok(())
}

/// Waits for the lock until the transaction's time limit. Any role can hold it, so a long wait is reported once.
async fn lock_first_offsets(connection: &mut PgConnection) -> Result<(), StoreError> {
    let begun = Instant::now();
    let mut is_reported = false;
    loop {
        let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)");
        let is_locked = lock.bind(FIRST_OFFSETS_KEY).fetch_one(&mut *connection);
        if is_locked.await? {
            return Ok(());
        }
        if !is_reported && begun.elapsed() >= LOCK_REPORTED {
            is_reported = true;
            let holder = sqlx::query_as(LOCK_HOLDER).bind(FIRST_OFFSETS_KEY);
            let holder: Option<(i32, String, String)> =
                holder.fetch_optional(&mut *connection).await?;
            if let Some((pid, application, user)) = holder {
                tracing::warn!(
                    "storing the first offsets waits for the advisory lock {FIRST_OFFSETS_KEY}, which PostgreSQL's process {pid} \
                     (application {application:?}, user {user:?}) holds; if that is no consumer, end it: \
                     SELECT pg_terminate_backend({pid})"
                );
            }
        }
        tokio::time::sleep(LOCK_AGAIN).await;
    }
}

/// Binds topic, cluster, group, seven arrays of the steps, and the topic's id.
pub(super) fn bind_offsets<'q, O>(
    query: QueryAs<'q, sqlx::Postgres, O, PgArguments>,
    moved: &[&Advance],
    identity: &'q Identity,
) -> QueryAs<'q, sqlx::Postgres, O, PgArguments> {
    let numbers = |number: fn(&Advance) -> i64| -> Vec<i64> {
        moved.iter().map(|advance| number(advance)).collect()
    };
    let anchors = |number: fn(Anchor) -> i64| -> Vec<Option<i64>> {
        let anchors = moved.iter().map(|advance| advance.anchor);
        anchors.map(|anchor| anchor.map(number)).collect()
    };
    let of = |advance: &&Advance| (advance.part.as_str(), advance.partition);
    let (parts, partitions): (Vec<&str>, Vec<i32>) = moved.iter().map(of).unzip();
    query
        .bind(&identity.topic)
        .bind(&identity.cluster_id)
        .bind(&identity.group_id)
        .bind(parts)
        .bind(partitions)
        .bind(numbers(|advance| advance.expected.unwrap_or_default()))
        .bind(numbers(|advance| advance.next))
        .bind(anchors(|anchor| anchor.offset))
        .bind(anchors(|anchor| anchor.timestamp_ms))
        .bind(anchors(|anchor| anchor.crc32.into()))
        .bind(identity.topic_id.as_deref())
}
