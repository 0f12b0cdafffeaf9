//! `consumer diff` on real databases, filled from a real Kafka: what it finds is what is not the same in
//! both over the range that they share, all of it and nothing else.

use std::process::Command;
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, numbered};
use schemas::TaskRunningInfoEvent;
use serde_json::{Value, json};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const EVENTS: usize = 600;

/// A: a pipeline whose tables a consumer has filled; B: another database.
struct Pair {
    a: Pipeline,
    b: Pipeline,
}

/// Exit code, what was printed as JSON, and what was said on standard error.
struct Compared {
    code: i32,
    said: Value,
    log: String,
}

impl Compared {
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

    fn assert_equal(&self) -> &Self {
        assert_eq!(self.code, 0, "{:#}\n{}", self.said, self.log);
        assert_eq!(self.said["verdict"], "equal");
        assert_eq!(self.said["findings"], json!([]));
        assert_eq!(self.said["totals"]["rows_a"], self.said["totals"]["rows_b"]);
        assert_eq!(self.said["totals"]["rows_a"], self.said["totals"]["equal"]);
        self
    }

    fn total(&self, what: &str) -> u64 {
        self.said["totals"][what].as_u64().unwrap()
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
    }
    if let (Some(resource), true) = (&mut event.info.resource, i.is_multiple_of(4)) {
        let first = resource.applications["app-1"].clone();
        resource.applications.insert("ÿ-app".into(), first.clone());
        resource.applications.insert("app-0".into(), first);
    }
    // Names that no two collations order alike.
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
    /// A topic of three partitions with a varied load that A has stored, and an empty B.
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
        let (code, said, log) = run(&arguments);
        Compared {
            code,
            said: serde_json::from_str(&said).unwrap_or(Value::Null),
            log,
        }
    }

    fn diff(&self) -> Compared {
        self.diff_of(&self.a.database_url, &self.b.database_url, &[])
    }

    /// The other way round.
    fn diff_back(&self) -> Compared {
        self.diff_of(&self.b.database_url, &self.a.database_url, &[])
    }

    fn text(&self, more: &[&str]) -> (i32, String) {
        let (a, b) = (&self.a.database_url, &self.b.database_url);
        let mut arguments = vec!["diff", a, b, "--events-topic", &self.a.events];
        arguments.extend(more);
        let (code, said, log) = run(&arguments);
        (code, said + &log)
    }

    /// It cannot tell, for a reason that says all of this; whichever comes first.
    fn cannot_tell(&self, reasons: &[&str]) {
        for compared in [self.diff(), self.diff_back()] {
            assert_eq!(compared.code, 2, "{reasons:?}: {}", compared.log);
            assert_eq!(compared.said["verdict"], "unproven");
            let error = compared.said["error"].as_str().unwrap();
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

/// Makes the tables what the topic says again.
fn repair(pipeline: &Pipeline) {
    let (code, _, log) = run(&[
        "audit",
        "--repair",
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
        "--dead-letters-topic",
        &pipeline.letters,
        "--database-url",
        &pipeline.database_url,
    ]);
    assert_eq!(code, 0, "{log}");
}

/// A row from the middle of a table: the condition that names it, its partition and offset.
async fn some_row(pipeline: &Pipeline, table: &str) -> (String, i64, i64) {
    let address = match pipeline.kind {
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
        Kind::Sqlite => format!("rowid = {}", text(0)),
        Kind::Postgres => format!("ctid = '{}'::tid", text(0)),
    };
    (
        condition,
        text(1).parse().unwrap(),
        text(2).parse().unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_everything_equals_the_live_tables_in_either_database() {
    for (a, b) in [
        (Kind::Sqlite, Kind::Postgres),
        (Kind::Postgres, Kind::Sqlite),
    ] {
        let Some(pair) = Pair::make(a, b).await else {
            return;
        };
        pair.replay(&[]);
        let compared = pair.diff();
        compared.assert_equal();
        pair.diff_back().assert_equal();
        let rows = pair.a.count(
            "SELECT (SELECT count(*) FROM task_progress) + (SELECT count(*) FROM task_resource) + \
             (SELECT count(*) FROM task_metrics) + (SELECT count(*) FROM task)",
        );
        assert_eq!(compared.total("rows_a") as i64, rows.await);
        assert_eq!(
            (compared.total("outside_a"), compared.total("outside_b")),
            (0, 0)
        );
        assert_eq!(compared.said["partitions"].as_array().unwrap().len(), 3);
        for partition in compared.said["partitions"].as_array().unwrap() {
            for table in ["task_progress", "task_resource", "task_metrics", "task"] {
                let told = &partition["tables"][table];
                assert_eq!((&told["from"], &told["to"]), (&json!(0), &json!(200)));
            }
        }
        let (code, said) = pair.text(&[]);
        assert_eq!(code, 0);
        assert!(said.contains("equal: over the offsets of"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_range_equals_the_live_tables_and_what_lies_beyond_is_no_finding() {
    for (a, b) in [
        (Kind::Sqlite, Kind::Postgres),
        (Kind::Postgres, Kind::Sqlite),
    ] {
        let Some(pair) = Pair::make(a, b).await else {
            return;
        };
        pair.replay(&["--from", "offset:0=10,1=20", "--to", "offset:0=190,1=100"]);
        let compared = pair.diff();
        compared.assert_equal();
        pair.diff_back().assert_equal();
        let tables = &compared.said["partitions"][0]["tables"];
        let progress = &tables["task_progress"];
        assert_eq!(
            (&progress["from"], &progress["to"], &progress["rows_a"]),
            (&json!(10), &json!(190), &json!(180))
        );
        assert_eq!(
            (&progress["outside_a"], &progress["outside_b"]),
            (&json!(20), &json!(0))
        );
        let beyond = &compared.said["partitions"][2]["tables"]["task_progress"];
        assert_eq!(
            (&beyond["from"], &beyond["rows_a"], &beyond["outside_a"]),
            (&Value::Null, &json!(0), &json!(200))
        );
        let tasks = pair.a.count("SELECT count(*) FROM task").await;
        let of_tasks = |what: &str| -> u64 {
            let partitions = compared.said["partitions"].as_array().unwrap();
            let told = partitions
                .iter()
                .map(|partition| partition["tables"]["task"][what].as_u64().unwrap_or(0));
            told.sum()
        };
        assert!(of_tasks("equal") > 0, "{:#}", compared.said);
        assert_eq!(of_tasks("rows_a") + of_tasks("outside_a"), tasks as u64);

        // Where the rows begin, if nothing else says where that is.
        let unknown = "UPDATE consumed_offset SET first_offset = NULL";
        pair.b.execute(unknown).await;
        let compared = pair.diff();
        compared.assert_equal();
        let progress = &compared.said["partitions"][0]["tables"]["task_progress"];
        assert_eq!(progress["from"], json!(10));

        // A has read all that B has: its row of a task can be no older one.
        let (_, partition, offset) = some_row(&pair.b, "task").await;
        let place = format!("event_partition = {partition} AND event_offset = {offset}");
        let name = pair
            .b
            .rows(&format!("SELECT exec_id FROM task WHERE {place}"))
            .await[0][0]
            .clone()
            .unwrap();
        let early = match pair.a.kind {
            Kind::Sqlite => "1",
            Kind::Postgres => "'1980-01-01Z'",
        };
        pair.a
            .execute(&format!(
                "UPDATE task SET reported_at = {early}, is_final = (1 = 0), event_partition = 2, event_offset = 0 \
                 WHERE exec_id = '{name}'"
            ))
            .await;
        let compared = pair.diff();
        assert_eq!(compared.code, 1);
        let findings = compared.findings();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(
            (findings[0].0.as_str(), findings[0].1.as_str()),
            ("task", "differing")
        );
        assert_eq!(compared.said["findings"][0]["exec_id"], json!(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_further_along_equal_those_that_are_behind() {
    let Some(pair) = Pair::make(Kind::Postgres, Kind::Sqlite).await else {
        return;
    };
    fill(&pair.a, EVENTS..EVENTS + 50);
    pair.replay(&[]);
    let compared = pair.diff();
    compared.assert_equal();
    let tasks = "the newest states of those tasks that B has read more of";
    assert_eq!(compared.total("outside_a"), 50, "{tasks}");
    assert!(
        compared.total("outside_b") >= 50 + 2 * 50,
        "and the histories"
    );
    store(&pair.a).await;
    assert_eq!(pair.diff().assert_equal().total("outside_b"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_that_is_deleted_doubled_or_altered_on_one_side_is_found_precisely() {
    let Some(pair) = Pair::make(Kind::Sqlite, Kind::Postgres).await else {
        return;
    };
    pair.replay(&[]);
    pair.diff().assert_equal();
    let found = |what: &str, expected: (&str, &str, i64, i64, &[&str])| {
        let compared = pair.diff();
        let (table, fault, partition, offset, columns) = expected;
        let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
        let expected = vec![(
            table.to_owned(),
            fault.to_owned(),
            partition,
            offset,
            columns,
        )];
        assert_eq!(compared.findings(), expected, "{what}: {}", compared.log);
        assert_eq!(compared.code, 1, "{what}");
        assert_eq!(compared.said["verdict"], "unequal");
        assert_eq!(compared.total(fault), 1, "{what}");
        compared
    };
    for (side, changed) in [("a", &pair.a), ("b", &pair.b)] {
        for (table, column, value) in [
            ("task_progress", "status", "'Failed'"),
            ("task_progress", "progress", "0.123"),
            ("task_progress", "event_offset", "h.event_offset + 1"),
            (
                "task_progress",
                "task_id",
                "(SELECT min(task_id) FROM task WHERE task_id <> h.task_id)",
            ),
            ("task_resource", "queue", "h.queue || ' '"),
            ("task_resource", "application_id", "'another'"),
            ("task_metrics", "metrics", "'{\"x\": 1}'"),
            ("task", "job_id", "'another'"),
            ("task", "sequence", "h.sequence - 1"),
            ("task", "exec_id", "h.exec_id || 'x'"),
            ("task", "event_offset", "h.event_offset + 1000000"),
        ] {
            let (condition, partition, mut offset) = some_row(changed, table).await;
            changed
                .execute(&format!(
                    "UPDATE {table} AS h SET {column} = {value} WHERE {condition}"
                ))
                .await;
            if (side, column) == ("a", "event_offset") {
                offset += if table == "task" { 1_000_000 } else { 1 };
            }
            let told = if column == "task_id" {
                "exec_id"
            } else {
                column
            };
            let compared = found(
                &format!("{table}.{column} of {side}"),
                (table, "differing", partition, offset, &[told]),
            );
            if (table, column) == ("task", "exec_id") {
                let rows = compared.said["findings"][0]["history_rows"].as_u64();
                assert!(rows.unwrap() > 6, "{:#}", compared.said["findings"]);
            }
            if (table, column) == ("task", "job_id") {
                let columns = &compared.said["findings"][0]["columns"][0];
                assert_eq!(columns[side], "another");
            }
            repair(changed);
        }
        let (more, less) = match side {
            "a" => ("only_in_a", "only_in_b"),
            _ => ("only_in_b", "only_in_a"),
        };
        for table in ["task_progress", "task_resource", "task_metrics", "task"] {
            let (condition, partition, offset) = some_row(changed, table).await;
            changed
                .execute(&format!("DELETE FROM {table} WHERE {condition}"))
                .await;
            found(
                &format!("{table} of {side} less a row"),
                (table, less, partition, offset, &[]),
            );
            repair(changed);

            let (condition, partition, offset) = some_row(changed, table).await;
            let double = match table {
                "task" => {
                    let columns = "job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, progress, \
                         reported_at, sequence, event_partition, event_offset";
                    format!(
                        "INSERT INTO task (exec_id, {columns}) SELECT exec_id || '-again', {columns} FROM task WHERE {condition}"
                    )
                }
                _ => format!("INSERT INTO {table} SELECT * FROM {table} WHERE {condition}"),
            };
            changed.execute(&double).await;
            found(
                &format!("{table} of {side} and a row again"),
                (table, more, partition, offset, &[]),
            );
            repair(changed);
        }
    }
    pair.diff().assert_equal();

    // Many, of which some are shown, and none of them commands the terminal.
    pair.b
        .execute("UPDATE task SET exec_id = exec_id || chr(27) || '[2J', job_id = 'other'")
        .await;
    pair.b
        .execute("DELETE FROM task_metrics WHERE event_partition = 1")
        .await;
    let (code, said) = pair.text(&["--limit", "3"]);
    assert_eq!(code, 1, "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    let shown = said
        .lines()
        .filter(|line| line.starts_with("only in "))
        .count();
    assert_eq!(shown, 3, "{said}");
    assert!(said.contains("more findings"), "{said}");
    assert!(said.contains("unequal: over the offsets"), "{said}");
    let compared = pair.diff();
    assert_eq!(compared.total("only_in_a"), 97 + 200);
    assert_eq!(compared.total("only_in_b"), 97);
    assert_eq!(compared.total("differing"), 0);
}

/// A backup is not in WAL mode, and reading it leaves it as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_sqlite_can_be_read_as_it_is() {
    let Some(pair) = Pair::make(Kind::Sqlite, Kind::Sqlite).await else {
        return;
    };
    let backup = pair.a.folder().join("backup.db");
    let file = backup.display();
    pair.a.execute(&format!("VACUUM INTO '{file}'")).await;
    let url = format!("sqlite:{file}");
    let before = std::fs::read(&backup).unwrap();
    assert_eq!(before[18..20], [1, 1]);
    pair.diff_of(&pair.a.database_url, &url, &[]).assert_equal();
    let (code, _, log) = run(&["tasks", "--json", "--database-url", &url]);
    assert_eq!(code, 0, "{log}");
    let mut audit = vec!["audit", "--bootstrap-servers", &pair.a.bootstrap];
    audit.extend(["--events-topic", &pair.a.events]);
    audit.extend(["--dead-letters-topic", &pair.a.letters]);
    audit.extend(["--database-url", &url]);
    let (code, _, log) = run(&audit);
    assert_eq!(code, 0, "{log}");
    assert!(std::fs::read(&backup).unwrap() == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_other_topics_or_ranges_cannot_be_compared() {
    let Some(pair) = Pair::make(Kind::Sqlite, Kind::Postgres).await else {
        return;
    };
    // B has no tables, then nothing stored, then nothing of the same offsets.
    pair.cannot_tell(&["reading", "consumer migrate"]);
    pair.b.ask(&["migrate"]);
    pair.cannot_tell(&["nothing stored", &pair.a.events, "--events-topic"]);
    pair.replay(&["--from", "offset:0=10", "--to", "offset:0=200"]);
    pair.diff().assert_equal();
    for (change, reasons) in [
        (
            "first_offset = 200, next_offset = 300",
            vec!["no offset of", "from 200 up to 300", "from 0 up to 200"],
        ),
        ("partition = 7", vec!["no offset of", "partition 7"]),
        (
            "cluster_id = 'another'",
            vec!["cluster another", "different topics"],
        ),
        (
            "anchor_crc32 = 255",
            vec!["up to 200", "at offset 199", "000000ff"],
        ),
        (
            "anchor_timestamp_ms = 5",
            vec!["timestamp 5 ms", "by its id it is one topic"],
        ),
        (
            "anchor_offset = 198",
            vec!["at offset 198", "at offset 199"],
        ),
        // Further than A, and the record that they both name is another.
        (
            "next_offset = 250, anchor_crc32 = 255",
            vec!["up to", "at offset 199", "000000ff"],
        ),
    ] {
        let columns = "partition, first_offset, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, anchor_crc32";
        pair.b
            .execute(&format!(
                "CREATE TABLE kept AS SELECT * FROM consumed_offset; UPDATE consumed_offset SET {change}"
            ))
            .await;
        pair.cannot_tell(&reasons);
        pair.b
            .execute(&format!(
                "UPDATE consumed_offset o SET ({columns}) = (SELECT {columns} FROM kept k WHERE k.part = o.part); DROP TABLE kept"
            ))
            .await;
        pair.diff().assert_equal();
    }

    let (a, b) = (&pair.a.database_url, &pair.b.database_url);
    let says = |a: &str, b: &str, more: &[&str], reason: &str| {
        let compared = pair.diff_of(a, b, more);
        assert_eq!(compared.code, 2, "{}", compared.log);
        assert!(compared.log.contains(reason), "{}", compared.log);
        assert!(!compared.log.contains("secret"), "{}", compared.log);
    };
    says(a, b, &["--events-topic", "unheard-of"], "");
    says(a, a, &[], "one database");
    says(a, "mysql://root@localhost/x", &[], "B begins with neither");
    says(a, "postgres://root:secret@localhost/x", &[], "PGPASSFILE");
    says(
        a,
        "sqlite:/nowhere/tasks.db",
        &[],
        "reading B, SQLite /nowhere/tasks.db",
    );
    let absent = "postgres://somebody@127.0.0.1:1/absent";
    says(absent, b, &[], "reading A, PostgreSQL 127.0.0.1:1/absent");
}
