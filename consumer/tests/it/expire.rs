//! `consumer expire` removes old history; audits, comparisons and queries of the past take it into account.
//!
//! Long because one test follows the removed history through every affected command.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, connect, on_every_database};
use jiff::{SignedDuration, Timestamp};
use schemas::TaskRunningInfoEvent;
use schemas::TaskStatus::{self, Running, Succeed};
use serde_json::{Value, json};
use service::testing::{Process, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const HISTORIES: [&str; 3] = ["task_progress", "task_resource", "task_metrics"];

on_every_database!(
    an_expiry_that_cannot_be_proves_nothing,
    an_expire_that_fails_does_not_say_that_it_removed_anything,
    expired_rows_are_distinguished_from_missing_ones,
    tasks_that_report_while_they_expire_keep_each_row_under_its_task,
    an_expire_that_is_stopped_ends_well_and_the_next_one_removes_the_rest,
);

/// A consumer is storing a late report: its task is not removed, and neither waits for the other. (In MariaDB, the removal
/// of history waits for a row that a consumer is inserting behind the last one.)
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_a_consumer_is_storing_a_report_of_is_left() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let old = pipeline.days_ago(31);
    for exec_id in ["reports", "silent"] {
        let task = format!(
            "INSERT INTO task (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
             reported_at, sequence, event_partition, event_offset) \
             VALUES ('{exec_id}', 'j', 'e', 't', 'u', '', 'Succeed', true, {old}, 1, 0, 1)"
        );
        pipeline.execute(&task).await;
    }
    let mut connection = connect(&pipeline.database_url).await;
    // As in a consumer's statement, for a report that is older than the task's row.
    for statement in [
        "BEGIN".to_owned(),
        "SELECT 1 FROM task WHERE exec_id = 'reports' FOR UPDATE".to_owned(),
        format!(
            "INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status) \
             SELECT task_id, 0, 2, {old}, 0, 'Running' FROM task WHERE exec_id = 'reports'"
        ),
    ] {
        connection.run(&statement).await.unwrap();
    }
    let url = pipeline.database_url.as_str();
    let arguments = ["expire", "--older-than", "30d", "--database-url", url];
    let mut expire = Process::start(pipeline.folder(), "expire", Path::new(CONSUMER), &arguments);
    assert_eq!(expire.ended().await.code(), Some(0));
    connection.run("COMMIT").await.unwrap();
    connection.close().await;
    assert_eq!(pipeline.names().await, ["reports"]);
    assert_eq!(pipeline.orphans().await, 0);
    pipeline.expire(&[]);
    assert_eq!(
        (
            pipeline.rows_in("task").await,
            pipeline.rows_in("task_progress").await
        ),
        (0, 0)
    );
}

/// A report this many hours ago.
fn report(exec_id: &str, sequence: i64, hours: i64, status: TaskStatus) -> TaskRunningInfoEvent {
    let mut event = strategies::sample_event();
    let info = &mut event.info;
    (info.exec_id, info.sequence, info.status) = (exec_id.into(), sequence, status);
    info.reported_at = (Timestamp::now() - SignedDuration::from_hours(hours)).as_microsecond();
    event
}

impl Pipeline {
    /// Exit code, standard output and standard error of `consumer` on this pipeline's database.
    fn asked(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(CONSUMER)
            .args(arguments)
            .args(["--database-url", &self.database_url])
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    /// The rows of each table that an expire removed, or would remove with `--dry-run`.
    fn expire(&self, more: &[&str]) -> Value {
        let arguments = ["expire", "--older-than", "30d", "--json"];
        let (code, out, log) = self.asked(&[&arguments, more].concat());
        assert_eq!(code, Some(0), "{log}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["finished"], true);
        report["rows"].clone()
    }

    /// The audit is equal, except for this many expired rows.
    fn assert_audit_is_equal_but_for(&self, expired: u64) {
        let audited = self.audit(&[]);
        let report = &audited.assert_code(0).report;
        assert_eq!(report["totals"]["expired"], expired);
        let of_partitions = report["partitions"].as_array().unwrap().iter();
        let of_tables =
            of_partitions.flat_map(|partition| partition["tables"].as_object().unwrap());
        let sum: u64 = of_tables
            .map(|(_, table)| table["expired"].as_u64().unwrap())
            .sum();
        assert_eq!(sum, expired);
    }

    async fn rows_in(&self, table: &str) -> i64 {
        self.count(&format!("SELECT count(*) FROM {table}")).await
    }

    async fn names(&self) -> Vec<String> {
        let rows = self.rows("SELECT exec_id FROM task ORDER BY exec_id").await;
        rows.into_iter().flatten().flatten().collect()
    }

    /// Rows of the histories without a task.
    async fn orphans(&self) -> i64 {
        let mut orphans = 0;
        for table in HISTORIES {
            let select = format!(
                "SELECT count(*) FROM {table} h LEFT JOIN task t ON t.task_id = h.task_id WHERE t.task_id IS NULL"
            );
            orphans += self.count(&select).await;
        }
        orphans
    }

    /// The time this many days ago, from the database.
    fn days_ago(&self, days: i64) -> String {
        let time = Timestamp::now() - SignedDuration::from_hours(24 * days);
        match self.kind {
            Kind::Sqlite | Kind::Mariadb => time.as_microsecond().to_string(),
            Kind::Postgres => format!("timestamptz '{time}'"),
        }
    }
}

async fn expired_rows_are_distinguished_from_missing_ones(kind: Kind) {
    let (Some(pipeline), Some(mut half)) = (
        Pipeline::make(kind, 1).await,
        Pipeline::make(Kind::Sqlite, 1).await,
    ) else {
        return;
    };
    half.events.clone_from(&pipeline.events);
    half.letters.clone_from(&pipeline.letters);
    let day = 24;
    let events = [
        report("ended", 0, 41 * day, Running),
        report("ended", 1, 40 * day, Succeed),
        report("silent", 0, 35 * day, Running),
        report("goes-on", 0, 40 * day, Running),
        report("goes-on", 1, 20 * day, Running),
        report("goes-on", 2, 1, Running),
        // Its last report was final; only its row shows that once the history is gone.
        report("late", 1, 40 * day, Succeed),
        report("late", 0, 10 * day, Running),
        report("young", 0, 2, Running),
        report("young", 1, 1, Succeed),
    ];
    pipeline.send_events(&events);
    let consumer = pipeline.consumer(&[]);
    let all = events.len() as i64;
    pipeline
        .until_count(&Pipeline::stored("metrics"), all)
        .await;
    consumer.stop().await;
    let copy = half.database_url.clone();
    let replayed = Command::new(CONSUMER)
        .args(["replay", "--bootstrap-servers", &pipeline.bootstrap])
        .args(["--events-topic", &pipeline.events, "--into", &copy])
        .output()
        .unwrap();
    assert!(replayed.status.success(), "{replayed:?}");
    let applications = events[0].info.resource.as_ref().unwrap().applications.len() as u64;
    let (old, old_rows) = (5, 5 * (2 + applications));
    pipeline.assert_audit_is_equal_but_for(0);

    // Counted, then removed; not again.
    let of_each = json!({"task": 2, "task_metrics": old, "task_progress": old, "task_resource": old * applications});
    let none = json!({"task": 0, "task_metrics": 0, "task_progress": 0, "task_resource": 0});
    let before = pipeline.contents().await;
    assert_eq!(pipeline.expire(&["--dry-run"]), of_each);
    assert!(pipeline.contents().await == before);
    assert_eq!(
        pipeline.rows_in("expiry").await,
        0,
        "nothing is noted of a count"
    );
    assert_eq!(pipeline.expire(&[]), of_each);
    assert_eq!(pipeline.expire(&[]), none);
    for (more, summary) in [
        (&[][..], "nothing removed from "),
        (&["--dry-run"], "nothing would be removed from "),
    ] {
        let arguments = [&["expire", "--older-than", "30d"], more].concat();
        let (code, out, log) = pipeline.asked(&arguments);
        assert_eq!(code, Some(0), "{log}");
        let last = out.lines().last().unwrap();
        assert!(last.starts_with(summary), "{out}");
    }
    let old_ones = format!(
        "SELECT count(*) FROM task_progress WHERE reported_at < {}",
        pipeline.days_ago(30)
    );
    assert_eq!(pipeline.count(&old_ones).await, 0);
    assert_eq!(pipeline.rows_in("task_progress").await, all - old as i64);
    assert_eq!(pipeline.names().await, ["goes-on", "late", "young"]);
    // First report and end of a task are kept after their reports are removed.
    let task = |contents: &[Vec<Vec<Option<String>>>], name: &str| {
        let mut tasks = contents[0].iter();
        let task = tasks.find(|task| task[0].as_deref() == Some(name));
        task.cloned()
    };
    let after = pipeline.contents().await;
    for name in ["goes-on", "late", "young"] {
        assert!(task(&after, name).is_some() && task(&after, name) == task(&before, name));
    }

    pipeline.assert_audit_is_equal_but_for(old_rows);
    for (a, b) in [
        (&pipeline.database_url, &copy),
        (&copy, &pipeline.database_url),
    ] {
        let output = Command::new(CONSUMER)
            .args(["diff", a, b, "--json", "--events-topic", &pipeline.events])
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{message}\n{output:?}");
        assert!(message.contains("expired_before"), "{message}");
    }

    // The past can be queried only as far as it is known.
    for arguments in [
        &["tasks", "--at", "-840h"][..],
        &["task", "goes-on", "--at", "-840h"],
    ] {
        let (code, _, log) = pipeline.asked(arguments);
        assert_eq!(code, Some(2));
        assert!(log.contains("has no history for"), "{log}");
    }
    let (_, out, log) = pipeline.asked(&["tasks", "--at", "-120h", "--json"]);
    assert!(log.contains("was removed from"), "{log}");
    let actual: Value = serde_json::from_str(&out).unwrap();
    let actual = actual.as_array().unwrap().iter();
    let actual: Vec<_> = actual
        .map(|t| {
            (
                t["exec_id"].clone(),
                t["status"].clone(),
                t["sequence"].clone(),
            )
        })
        .collect();
    let state = |exec_id: &str, status: &str, sequence: i64| {
        (json!(exec_id), json!(status), json!(sequence))
    };
    assert_eq!(
        actual,
        [state("goes-on", "Running", 1), state("late", "Succeed", 1)]
    );
    let (_, out, _) = pipeline.asked(&["task", "goes-on", "--json"]);
    let task: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(task["sequences"]["missing"], 0);
    assert!(task["expired_before"].is_string());

    // Faults in the remaining rows are found, and a repair restores nothing that expired.
    pipeline
        .execute("DELETE FROM task_metrics WHERE event_offset = 5")
        .await;
    pipeline
        .execute("UPDATE task SET status = 'Running', is_final = (1 = 0) WHERE exec_id = 'late'")
        .await;
    pipeline
        .execute("UPDATE task SET first_reported_at = reported_at WHERE exec_id = 'goes-on'")
        .await;
    let audited = pipeline.audit(&[]);
    let findings = audited.assert_code(1).report["findings"]
        .as_array()
        .unwrap()
        .iter();
    let findings: Vec<_> = findings
        .map(|f| (f["table"].clone(), f["fault"].clone(), f["offset"].clone()))
        .collect();
    let finding =
        |table: &str, fault: &str, offset: i64| (json!(table), json!(fault), json!(offset));
    assert_eq!(
        findings,
        [
            finding("task", "differing", 5),
            finding("task", "differing", 6),
            finding("task_metrics", "missing", 5)
        ]
    );
    pipeline.audit(&["--repair"]).assert_code(0);
    pipeline.assert_audit_is_equal_but_for(old_rows);
    assert_eq!(pipeline.rows_in("task_progress").await, all - old as i64);
    let late = pipeline
        .rows("SELECT status FROM task WHERE exec_id = 'late'")
        .await;
    assert_eq!(late, [[Some("Succeed".to_owned())]]);
    let earliest_left = "SELECT count(*) FROM task t JOIN task_progress p USING (task_id) \
         WHERE exec_id = 'goes-on' AND p.event_offset = 4 AND p.reported_at = t.first_reported_at";
    assert_eq!(pipeline.count(earliest_left).await, 1);

    // An expire that was killed half way: some rows remain.
    half.execute(&format!(
        "INSERT INTO expiry (reported_before, updated_at) VALUES ({0}, {0}); DELETE FROM task_progress WHERE event_offset < 3",
        half.days_ago(30)
    ))
    .await;
    half.assert_audit_is_equal_but_for(old_rows);
    half.execute("DELETE FROM task_resource WHERE event_offset = 4")
        .await;
    let missing = half.audit(&[]).assert_code(1).report["totals"]["missing"].clone();
    assert_eq!(missing, applications);

    // A late report creates its task again, until the next expire.
    pipeline.send_events(&[report("ended", 2, 39 * day, Running)]);
    let consumer = pipeline.consumer(&[]);
    pipeline
        .until_count(&Pipeline::stored("metrics"), all + 1)
        .await;
    consumer.stop().await;
    assert_eq!(
        pipeline.names().await,
        ["ended", "goes-on", "late", "young"]
    );
    pipeline.assert_audit_is_equal_but_for(old_rows + 2 + applications);
    let one =
        json!({"task": 1, "task_metrics": 1, "task_progress": 1, "task_resource": applications});
    assert_eq!(pipeline.expire(&[]), one);
    pipeline.assert_audit_is_equal_but_for(old_rows + 2 + applications);
}

async fn an_expiry_that_cannot_be_proves_nothing(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.send_events(&[report("a", 0, 2, Running), report("a", 1, 1, Succeed)]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_count(&Pipeline::stored("metrics"), 2).await;
    consumer.stop().await;
    for table in HISTORIES {
        pipeline.execute(&format!("DELETE FROM {table}")).await;
    }
    pipeline.audit(&[]).assert_code(1);
    let (none, future) = match kind {
        Kind::Sqlite | Kind::Mariadb => (i64::MAX.to_string(), "4102444800000000".to_owned()),
        Kind::Postgres => (
            "'infinity'".to_owned(),
            "timestamptz '2100-01-01 00:00Z'".to_owned(),
        ),
    };
    let (old, older) = (pipeline.days_ago(1), pipeline.days_ago(2));
    for (before, noted) in [
        (&future, &older),
        (&future, &future),
        (&old, &older),
        (&none, &none),
    ] {
        pipeline
            .execute(&format!(
                "DELETE FROM expiry; INSERT INTO expiry (reported_before, updated_at) VALUES ({before}, {noted})"
            ))
            .await;
        let audited = pipeline.audit(&[]);
        assert_eq!(audited.assert_code(2).report["verdict"], "unproven");
        let error = audited.report["error"].as_str().unwrap();
        assert!(
            error.contains("expiry") && error.contains("altered"),
            "{error}"
        );
        let (code, _, log) = pipeline.asked(&["tasks"]);
        assert_eq!(code, Some(78));
        assert!(log.contains("altered") && !log.contains("migrate"), "{log}");
    }
}

async fn an_expire_that_fails_does_not_say_that_it_removed_anything(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    pipeline
        .execute("ALTER TABLE task_metrics RENAME TO away")
        .await;
    let (code, out, log) = pipeline.asked(&["expire", "--older-than", "30d"]);
    assert_eq!((code, out.as_str()), (Some(78), ""), "{log}");
    assert!(
        log.contains("task_metrics") && log.contains("consumer migrate"),
        "{log}"
    );
}

/// A consumer stores late reports of tasks that are being removed, beside other reports.
async fn tasks_that_report_while_they_expire_keep_each_row_under_its_task(kind: Kind) {
    const ROUNDS: usize = 5;
    /// Old tasks that report in a round, each beside one that stays.
    const TASKS: usize = 600;
    const EVENTS: usize = ROUNDS * 2 * TASKS;
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let event = |i: usize| match i % 2 {
        // The same tasks report in every second round.
        0 => report(
            &format!("old-{}", i / 2 % (2 * TASKS)),
            i as i64,
            24 * 40,
            Succeed,
        ),
        _ => report(&format!("young-{}", i % 15), i as i64, 1, Running),
    };
    // Many transactions.
    let mut consumer = pipeline.program("c", &["--max-events", "30"]);
    let stored = Pipeline::stored("metrics");
    let mut removed = 0;
    for round in 0..ROUNDS {
        let events = 2 * TASKS * round..2 * TASKS * (round + 1);
        let (begin, end) = (events.start as i64, events.end as i64);
        pipeline.send_events(&events.map(event).collect::<Vec<_>>());
        pipeline.until_count(&stored, begin + 1).await;
        loop {
            removed += pipeline.expire(&[])["task"].as_u64().unwrap();
            if pipeline.count(&stored).await == end {
                break;
            }
            consumer.process.assert_running();
        }
    }
    let log = consumer.log();
    consumer.stop().await;
    // All old rows, except those of the last round, are removed at the latest in the round after.
    assert!(removed >= ((ROUNDS - 1) * TASKS) as u64, "{removed}");
    // Messages of librdkafka about a broker that has just started are unrelated.
    for line in log.lines().filter(|line| !line.contains("librdkafka")) {
        for trouble in ["deadlock", "Deadlock", "WARN", "ERROR"] {
            assert!(!line.contains(trouble), "{log}");
        }
    }
    assert_eq!(pipeline.orphans().await, 0);
    pipeline.expire(&[]);
    assert_eq!(pipeline.rows_in("task_progress").await, EVENTS as i64 / 2);
    assert_eq!(pipeline.rows_in("task").await, 15);
    let applications = event(0).info.resource.unwrap().applications.len() as u64;
    pipeline.assert_audit_is_equal_but_for(EVENTS as u64 / 2 * (2 + applications));
}

async fn an_expire_that_is_stopped_ends_well_and_the_next_one_removes_the_rest(kind: Kind) {
    const ROWS: i64 = 60_000;
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let numbers = match kind {
        Kind::Sqlite => format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) "
        ),
        Kind::Mariadb => format!("WITH n AS (SELECT seq AS i FROM seq_1_to_{ROWS}) "),
        Kind::Postgres => format!("WITH n(i) AS (SELECT generate_series(1, {ROWS})) "),
    };
    let old = pipeline.days_ago(31);
    pipeline
        .execute(&format!(
            "INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status) \
             {numbers} SELECT i % 100, 0, i, {old}, i, 'Running' FROM n"
        ))
        .await;
    let url = pipeline.database_url.as_str();
    let arguments = [
        "expire",
        "--older-than",
        "30d",
        "--json",
        "--database-url",
        url,
    ];
    // Expire must not finish before it is stopped, so it has to wait for a row lock (the servers) or the write lock
    // (SQLite).
    let mut holder = connect(url).await;
    if kind != Kind::Sqlite {
        // Without an index, MariaDB locks each row that it looks at.
        let column = match kind {
            Kind::Mariadb => "row_id",
            _ => "event_offset",
        };
        let hold = format!(
            "BEGIN; SELECT 1 FROM task_progress WHERE {column} = {} FOR UPDATE",
            ROWS / 2
        );
        holder.run(&hold).await.unwrap();
    }
    let mut expire = Process::start(pipeline.folder(), "expire", Path::new(CONSUMER), &arguments);
    let mut connection = connect(url).await;
    until("rows are removed", Duration::from_secs(60), async || {
        if kind == Kind::Sqlite {
            holder.run("BEGIN IMMEDIATE").await.unwrap();
        }
        let count = connection
            .number("SELECT count(*) FROM task_progress")
            .await;
        if count.unwrap() < ROWS {
            return Some(());
        }
        if kind == Kind::Sqlite {
            holder.run("COMMIT").await.unwrap();
        }
        None
    })
    .await;
    let folder = pipeline.folder().join("expire.log");
    expire.signal("TERM");
    until("it is told to stop", Duration::from_secs(60), async || {
        // It may exit before the signal is logged.
        let log = expire.log();
        let words = ["SIGTERM", "stopped before the end"];
        words.iter().any(|words| log.contains(words)).then_some(())
    })
    .await;
    holder.close().await;
    assert_eq!(expire.ended().await.code(), Some(0));
    let log = std::fs::read_to_string(folder).unwrap();
    assert!(log.contains("\"finished\": false"), "{log}");
    let left = pipeline.rows_in("task_progress").await;
    assert!(left > 0 && left < ROWS, "{left} rows are left");
    let removed = format!("\"task_progress\": {}", ROWS - left);
    assert!(log.contains(&removed), "{log}");
    assert_eq!(pipeline.expire(&[])["task_progress"], left);
    connection.close().await;
}
