//! `consumer audit` on a real Kafka: what it finds is what is wrong, all of it and nothing else.

mod clean;
mod findings;
mod reports;

use std::time::Duration;

use crate::strategies;
use crate::support::{Audited, Kind, Pipeline, numbered};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use schemas::TaskRunningInfoEvent;
use serde_json::Value;

const EVENTS: usize = 600;

impl Audited {
    /// Table, fault, place and columns of each finding.
    fn findings(&self) -> Vec<(String, String, i64, i64, Vec<String>)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = self.said["findings"].as_array().unwrap();
        findings
            .iter()
            .map(|finding| {
                let columns = finding["columns"].as_array();
                (
                    text(&finding["table"]),
                    text(&finding["fault"]),
                    finding["partition"].as_i64().unwrap(),
                    finding["offset"].as_i64().unwrap(),
                    columns.map_or(Vec::new(), |columns| {
                        columns
                            .iter()
                            .map(|column| text(&column["column"]))
                            .collect()
                    }),
                )
            })
            .collect()
    }
}

impl Pipeline {
    /// An address for a row of a table `h`, as text, and the condition that names it.
    fn address(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite => "CAST(h.rowid AS text)",
            Kind::Postgres => "h.ctid::text",
        }
    }

    fn addressed(&self, address: &str) -> String {
        match self.kind {
            Kind::Sqlite => format!("rowid = {address}"),
            Kind::Postgres => format!("ctid = '{address}'::tid"),
        }
    }

    /// A row of a table, chosen at random: its address, partition and offset.
    async fn any_row(&self, table: &str, rng: &mut ChaCha8Rng) -> (String, i64, i64) {
        let select = format!(
            "SELECT {}, CAST(event_partition AS text), CAST(event_offset AS text) FROM {table} h \
             ORDER BY event_partition, event_offset",
            self.address()
        );
        let rows = self.rows(&select).await;
        let row = &rows[rng.random_range(0..rows.len())];
        let text = |i: usize| row[i].clone().unwrap();
        (text(0), text(1).parse().unwrap(), text(2).parse().unwrap())
    }
}

/// The `i`th event of a varied load.
fn varied(sample: &TaskRunningInfoEvent, i: usize) -> TaskRunningInfoEvent {
    let mut event = numbered(sample, i);
    if i.is_multiple_of(7) {
        event.info.progress = None;
    }
    if i.is_multiple_of(5) {
        event.info.resource = None;
    }
    if i.is_multiple_of(11) {
        event.info.metrics = None;
    }
    if i.is_multiple_of(3) {
        event.adjustments.clear();
    } else if i.is_multiple_of(2) {
        let fields = ["metrics.seconds", "metrics.count", "progress.progress"];
        let fields = fields.map(|field| (field.to_owned(), "-Infinity".to_owned()));
        event.not_finite.extend(fields);
    }
    if let (Some(resource), true) = (&mut event.info.resource, i.is_multiple_of(4)) {
        let first = resource.applications["app-1"].clone();
        resource.applications.insert("ÿ-app".into(), first.clone());
        resource.applications.insert("app-0".into(), first);
    }
    event
}

/// A pipeline of three partitions in which a varied load was stored.
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
