//! `consumer diff` on real databases, filled from a real Kafka: it finds all differences over the common range, and
//! nothing else.

mod equal;
mod findings;

use std::process::Command;
use std::time::Duration;

use crate::strategies;
use crate::support::{Finding, Kind, Pipeline, findings, varied_parts};
use schemas::TaskRunningInfoEvent;
use serde_json::{Value, json};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

const EVENTS: usize = 600;

/// A: a pipeline with tables filled by a consumer; B: another database.
struct Pair {
    a: Pipeline,
    b: Pipeline,
}

/// Exit code, JSON output, and standard error.
struct Compared {
    code: i32,
    report: Value,
    log: String,
}

impl Compared {
    fn findings(&self) -> Vec<Finding> {
        findings(&self.report)
    }

    fn assert_equal(&self) -> &Self {
        assert_eq!(self.code, 0, "{:#}\n{}", self.report, self.log);
        assert_eq!(self.report["verdict"], "equal");
        assert_eq!(self.report["findings"], json!([]));
        assert_eq!(
            self.report["totals"]["rows_a"],
            self.report["totals"]["rows_b"]
        );
        assert_eq!(
            self.report["totals"]["rows_a"],
            self.report["totals"]["equal"]
        );
        self
    }

    fn total(&self, what: &str) -> u64 {
        self.report["totals"][what].as_u64().unwrap()
    }
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(CONSUMER).args(arguments).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The `i`th event of a varied load.
fn varied(sample: &TaskRunningInfoEvent, i: usize) -> TaskRunningInfoEvent {
    let mut event = varied_parts(sample, i);
    // Names that collations order differently.
    if event.info.exec_id.ends_with('3') {
        event.info.exec_id = event.info.exec_id.replace("exec-", "Éxec_");
    }
    event
}

fn fill(pipeline: &Pipeline, events: std::ops::Range<usize>) {
    let sample = strategies::sample_event();
    pipeline.fill(events.len(), |i| {
        schemas::encode_event(&varied(&sample, events.start + i)).unwrap()
    });
}

async fn store(pipeline: &Pipeline) {
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(60)).await;
    consumer.stop().await;
}

impl Pair {
    /// A topic with three partitions and a varied load that A has stored, and an empty B.
    async fn make(a: Kind, b: Kind) -> Option<Self> {
        let a = Pipeline::make(a, 3).await?;
        let mut b = Pipeline::make(b, 1).await?;
        b.events.clone_from(&a.events);
        b.letters.clone_from(&a.letters);
        b.partitions = a.partitions;
        fill(&a, 0..EVENTS);
        store(&a).await;
        Some(Self { a, b })
    }

    /// Replays into B.
    fn replay(&self, more: &[&str]) {
        let mut arguments = vec!["replay", "--bootstrap-servers", &self.a.bootstrap];
        arguments.extend(["--events-topic", &self.a.events]);
        arguments.extend(["--into", &self.b.database_url]);
        arguments.extend(more);
        let (code, _, log) = run(&arguments);
        assert_eq!(code, 0, "{log}");
    }

    fn diff_of(&self, a: &str, b: &str, more: &[&str]) -> Compared {
        let mut arguments = vec!["diff", a, b, "--json", "--events-topic", &self.a.events];
        arguments.extend(more);
        let (code, message, log) = run(&arguments);
        Compared {
            code,
            report: serde_json::from_str(&message).unwrap_or(Value::Null),
            log,
        }
    }

    fn diff(&self) -> Compared {
        self.diff_of(&self.a.database_url, &self.b.database_url, &[])
    }

    /// Compares in the other direction.
    fn diff_back(&self) -> Compared {
        self.diff_of(&self.b.database_url, &self.a.database_url, &[])
    }

    fn text(&self, more: &[&str]) -> (i32, String) {
        let (a, b) = (&self.a.database_url, &self.b.database_url);
        let mut arguments = vec!["diff", a, b, "--events-topic", &self.a.events];
        arguments.extend(more);
        let (code, message, log) = run(&arguments);
        (code, message + &log)
    }

    /// It cannot compare them, in either direction, for reasons that contain these texts.
    fn cannot_tell(&self, reasons: &[&str]) {
        for compared in [self.diff(), self.diff_back()] {
            assert_eq!(compared.code, 2, "{reasons:?}: {}", compared.log);
            assert_eq!(compared.report["verdict"], "unproven");
            let error = compared.report["error"].as_str().unwrap();
            assert!(compared.log.contains(error), "{error}: {}", compared.log);
            for reason in reasons {
                assert!(
                    compared.log.contains(reason),
                    "{reason} is not in {}",
                    compared.log
                );
            }
        }
    }
}

/// A row from the middle of a table: a condition that selects it, its partition and offset.
async fn some_row(pipeline: &Pipeline, table: &str) -> (String, i64, i64) {
    let address = match pipeline.kind {
        Kind::Mariadb if table == "task" => "CAST(h.task_id AS text)",
        Kind::Mariadb => "CAST(h.row_id AS text)",
        Kind::Sqlite => "CAST(h.rowid AS text)",
        Kind::Postgres => "h.ctid::text",
    };
    let select = format!(
        "SELECT {address}, CAST(event_partition AS text), CAST(event_offset AS text) FROM {table} h \
         ORDER BY event_partition, event_offset"
    );
    let rows = pipeline.rows(&select).await;
    let row = &rows[rows.len() / 2];
    let text = |i: usize| row[i].clone().unwrap();
    let condition = match pipeline.kind {
        Kind::Mariadb if table == "task" => format!("task_id = {}", text(0)),
        Kind::Mariadb => format!("row_id = {}", text(0)),
        Kind::Sqlite => format!("rowid = {}", text(0)),
        Kind::Postgres => format!("ctid = '{}'::tid", text(0)),
    };
    (
        condition,
        text(1).parse().unwrap(),
        text(2).parse().unwrap(),
    )
}
