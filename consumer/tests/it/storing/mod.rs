//! The consumer on a real Kafka, into SQLite and into PostgreSQL.

mod contents;
mod in_place;
mod positions;
mod times;

use crate::strategies;
use clap::Parser;
use schemas::{TaskRunningInfo, TaskRunningInfoEvent, TaskStatus};

#[derive(Parser)]
struct DatabaseArguments {
    #[command(flatten)]
    database: consumer::DatabaseOptions,
}

fn event() -> TaskRunningInfoEvent {
    strategies::sample_event()
}

pub(crate) fn report(
    exec_id: &str,
    sequence: i64,
    reported_at: i64,
    status: TaskStatus,
    progress: f64,
) -> TaskRunningInfo {
    let mut info = event().info;
    (info.exec_id, info.sequence, info.reported_at, info.status) =
        (exec_id.into(), sequence, reported_at, status);
    info.progress.as_mut().unwrap().progress = progress;
    info
}

/// Texts as the columns of a row.
fn row(columns: &[&str]) -> Vec<Option<String>> {
    columns
        .iter()
        .map(|column| (*column != "NULL").then(|| (*column).to_owned()))
        .collect()
}
