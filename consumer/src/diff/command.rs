//! `consumer diff`: its options, and the steps from two databases to a report.

use std::collections::BTreeMap;

use schemas::topics;
use service::address::Address;
use service::exit::NeedsAttention;
use service::settings::topic_name;

use super::compared::Compared;
use super::histories::compare_histories;
use super::report::Report;
use super::shared::shared;
use super::side::Side;
use super::tasks::compare_tasks;
use crate::audit::finding::{Finding, Findings};
use crate::audit::{COULD_NOT_TELL, EQUAL, UNEQUAL, print_unproven};
use crate::store::{Database, database_url};

/// Options of `consumer diff`.
#[derive(Clone, Debug, clap::Args)]
pub struct DiffOptions {
    /// One database: sqlite:FILE, postgres://USER@HOST:PORT/NAME (password in PGPASSWORD or PGPASSFILE), or
    /// mysql://USER@HOST:PORT/NAME (in MYSQL_PWD or MYSQL_PWD_FILE)
    #[arg(value_name = "A", value_parser = database_url())]
    pub a: Address,

    /// The other database
    #[arg(value_name = "B", value_parser = database_url())]
    pub b: Address,

    /// Topic that the tables came from: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Maximum number of findings to show; 0 for all that are kept in memory
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
}

/// Compares two databases and prints the result. Returns the exit code: 0 equal, 1 unequal, 2 could not tell (the log
/// gives the reason).
pub async fn diff(asked: DiffOptions) -> u8 {
    let compared = async {
        let report = compare(&asked).await?;
        report.print(asked.json, asked.limit)?;
        anyhow::Ok(report.is_equal())
    };
    match compared.await {
        Ok(true) => EQUAL,
        Ok(false) => UNEQUAL,
        Err(error) => {
            tracing::error!("could not tell: {error:#}");
            if asked.json {
                print_unproven(&error);
            }
            COULD_NOT_TELL
        }
    }
}

async fn compare(asked: &DiffOptions) -> anyhow::Result<Report> {
    let (a, b) = (
        Database::parse_url("A", &asked.a)?,
        Database::parse_url("B", &asked.b)?,
    );
    if a.is_same(&b) {
        return Err(NeedsAttention(format!(
            "A and B are one database, {}; give two different ones",
            a.place()
        ))
        .into());
    }
    let topic = &asked.events_topic;
    let (a, b) = tokio::join!(Side::open("A", &a, topic), Side::open("B", &b, topic));
    let (mut a, mut b) = (a?, b?);
    let spans = shared(&a, &b, topic)?;
    let mut compared = Compared {
        spans,
        rows: Default::default(),
        outside: Default::default(),
        findings: Findings::default(),
        lost: BTreeMap::new(),
    };
    compare_histories(&mut a, &mut b, &mut compared).await?;
    compare_tasks(&mut a, &mut b, &mut compared).await?;
    let key = |finding: &Finding| {
        (
            finding.table,
            finding.partition,
            finding.offset,
            finding.fault,
        )
    };
    compared.findings.found.sort_by_key(key);
    Ok(Report::new(topic, &a, &b, compared))
}
