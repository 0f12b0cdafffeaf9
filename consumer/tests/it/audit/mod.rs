//! `consumer audit` on a real Kafka finds all discrepancies and nothing else.

mod clean;
mod findings;
mod reports;

use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, varied_parts};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use schemas::TaskRunningInfoEvent;

const EVENTS: usize = 600;

impl Pipeline {
    /// SQL: the address of a row of a table `h` as text, usable in a condition.
    fn address(&self, table: &str) -> &'static str {
        match (self.kind, table) {
            (Kind::Sqlite, _) => "CAST(h.rowid AS text)",
            (Kind::Postgres, _) => "h.ctid::text",
            (Kind::Mariadb, "task") => "CAST(h.task_id AS text)",
            (Kind::Mariadb, _) => "CAST(h.row_id AS text)",
        }
    }

    fn addressed(&self, table: &str, address: &str) -> String {
        match self.kind {
            Kind::Mariadb if table == "task" => format!("task_id = {address}"),
            Kind::Mariadb => format!("row_id = {address}"),
            Kind::Sqlite => format!("rowid = {address}"),
            Kind::Postgres => format!("ctid = '{address}'::tid"),
        }
    }

    /// A random row of a table: its address, partition and offset.
    async fn any_row(&self, table: &str, rng: &mut ChaCha8Rng) -> (String, i64, i64) {
        let select = format!(
            "SELECT {}, CAST(event_partition AS text), CAST(event_offset AS text) FROM {table} h \
             ORDER BY event_partition, event_offset",
            self.address(table)
        );
        let rows = self.rows(&select).await;
        let row = &rows[rng.random_range(0..rows.len())];
        let text = |i: usize| row[i].clone().unwrap();
        (text(0), text(1).parse().unwrap(), text(2).parse().unwrap())
    }
}

/// The `i`th event of a varied load.
fn varied(sample: &TaskRunningInfoEvent, i: usize) -> TaskRunningInfoEvent {
    let mut event = varied_parts(sample, i);
    if !i.is_multiple_of(3) && i.is_multiple_of(2) {
        let fields = ["metrics.seconds", "metrics.count", "progress.progress"];
        let fields = fields.map(|field| (field.to_owned(), "-Infinity".to_owned()));
        event.not_finite.extend(fields);
    }
    event
}

/// A pipeline with three partitions that has stored a varied load.
async fn stored(kind: Kind) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, 3).await?;
    let sample = strategies::sample_event();
    pipeline.fill(EVENTS, |i| {
        schemas::encode_event(&varied(&sample, i)).unwrap()
    });
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    consumer.stop().await;
    Some(pipeline)
}
