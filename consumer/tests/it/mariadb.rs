//! What differs in MySQL and MariaDB, and what their servers may be set to: neither alters what is stored or answered.

use std::time::Duration;

use crate::strategies;
use crate::support::{Audited, Cluster, Kind, Pipeline, SmallDisk, varied_parts};

const EVENTS: usize = 300;
const WITHIN: Duration = Duration::from_secs(120);

/// A pipeline on a MariaDB server of its own with these settings.
async fn on_server(settings: &[&str]) -> Option<(Pipeline, Cluster)> {
    let settings = settings.iter().map(|setting| (*setting).to_owned());
    let server = Cluster::mariadb(|_| settings.collect())?;
    let pipeline = Pipeline::make_on(Some(&server.url), 2, "").await?;
    Some((pipeline, server))
}

/// Events of all parts, and of tasks whose names collations take for the same.
fn fill(pipeline: &Pipeline) {
    let sample = strategies::sample_event();
    pipeline.fill(EVENTS, |i| {
        let mut event = varied_parts(&sample, i);
        let names = ["task", "Task", "TASK", "task ", "tásk", "task  ", " task"];
        event.info.exec_id = match i % 3 {
            0 => names[i / 3 % names.len()].to_owned(),
            _ => format!("exec-{}", i % 7),
        };
        schemas::encode_event(&event).unwrap()
    });
}

async fn store(pipeline: &Pipeline) {
    let program = pipeline.program("consumer", &[]);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
}

/// Each of these would change statements, times, texts or locks, if sessions did not set it themselves.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_servers_defaults_are_the_rows_and_answers_are_those_of_sqlite() {
    let settings = [
        "sql_mode=NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH,HIGH_NOT_PRECEDENCE,IGNORE_SPACE",
        "autocommit=0",
        "transaction_isolation=SERIALIZABLE",
        "default_time_zone=+05:30",
        "character-set-server=latin1",
        "collation-server=latin1_german1_ci",
        "init_connect=SET NAMES latin1",
        "lower_case_table_names=1",
        "group_concat_max_len=4",
        "max_statement_time=3600",
        "default_storage_engine=MyISAM",
        "innodb_rollback_on_timeout=ON",
        "max_allowed_packet=4194304",
        "log_bin=binlog",
        "binlog_format=MIXED",
    ];
    let Some((pipeline, _server)) = on_server(&settings).await else {
        return;
    };
    // Also for users for whom init_connect runs.
    let url = pipeline.make_owner().await;
    fill(&pipeline);
    let program = pipeline.program_on(&url, "consumer", &[]);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    let audited = pipeline.audit(&[]);
    audited.assert_equal();

    let Some(mut sqlite) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    sqlite.events.clone_from(&pipeline.events);
    sqlite.letters.clone_from(&pipeline.letters);
    let program = sqlite.program("sqlite", &["--group", "sqlite"]);
    sqlite.until_all_stored(WITHIN).await;
    program.stop().await;
    assert_eq!(sqlite.audit(&[]).report["digest"], audited.report["digest"]);
    assert!(sqlite.contents().await == pipeline.contents().await);
    for query in [
        &["tasks", "--json", "--limit", "0"][..],
        &[
            "tasks",
            "--json",
            "--limit",
            "0",
            "--at",
            "2025-11-25T14:05:00.1235Z",
        ],
        &["task", "task ", "--json"],
        &["series", "task", "--metric", "text", "--json"],
        &["jobs", "--json"],
        &[
            "engines",
            "--from",
            "2025-11-25T14:00Z",
            "--to",
            "2025-11-25T15:00Z",
            "--json",
        ],
    ] {
        // Ages grow meanwhile.
        let without_ages = |text: String| {
            let lines = text.lines().filter(|line| !line.contains("_seconds\":"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let [here, there] = [&pipeline, &sqlite].map(|it| without_ages(it.ask(query)));
        assert_eq!(here, there, "{query:?}");
    }
}

/// READ COMMITTED needs rows in the binary log.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_logs_statements_only_needs_an_operator() {
    let settings = ["log_bin=binlog", "binlog_format=STATEMENT"];
    let Some((pipeline, _server)) = on_server(&settings).await else {
        return;
    };
    fill(&pipeline);
    let log = pipeline.program("consumer", &[]).needs_attention().await;
    assert!(
        log.contains("1665") && log.contains("set binlog_format to ROW or MIXED"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_only_small_statements_needs_an_operator() {
    let Some((pipeline, _server)) = on_server(&["max_allowed_packet=2M"]).await else {
        return;
    };
    let log = pipeline.program("consumer", &[]).needs_attention().await;
    assert!(
        log.contains("SET GLOBAL max_allowed_packet = 4194304"),
        "{log}"
    );
}

/// Other engines have no transactions.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_engine_are_neither_written_nor_repaired_nor_expired() {
    let Some(pipeline) = Pipeline::make(Kind::Mariadb, 2).await else {
        return;
    };
    fill(&pipeline);
    store(&pipeline).await;
    pipeline
        .execute("DELETE FROM task_progress WHERE event_offset < 10; ALTER TABLE task_metrics ENGINE = MyISAM")
        .await;
    let before = pipeline.contents().await;
    let words = "ALTER TABLE task_metrics ENGINE = InnoDB";
    let log = pipeline.program("run", &[]).needs_attention().await;
    assert!(log.contains(words), "{log}");
    let expire = ["expire", "--older-than", "1d"];
    assert!(pipeline.fails(&expire, 78).contains(words));
    let Audited { code, log, .. } = pipeline.audit(&["--repair", "--yes"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains(words), "{log}");
    assert!(pipeline.fails(&["migrate"], 78).contains(words));
    assert!(pipeline.contents().await == before);
    // Reading is no risk.
    pipeline.ask(&["tasks"]);
    pipeline.audit(&[]).assert_code(1);
    pipeline.execute(words).await;
    pipeline.audit(&["--repair"]).assert_code(0);
    pipeline.audit(&[]).assert_equal();
}

/// The server cuts joined texts at max_allowed_packet, with only a warning.
#[tokio::test(flavor = "multi_thread")]
async fn a_series_of_very_many_reports_of_one_microsecond_is_whole() {
    const REPORTS: i64 = 120_000;
    let Some((pipeline, _server)) = on_server(&["max_allowed_packet=4194304"]).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let numbers = format!("(SELECT seq AS i FROM seq_1_to_{REPORTS}) AS n");
    pipeline
        .execute(&format!(
            "INSERT INTO task (task_id, exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, \
             is_final, reported_at, sequence, event_partition, event_offset) \
             VALUES (1, 'long', 'j', 'e', 't', 'u', '', 'Running', false, 1796000000000000, {REPORTS}, 0, {REPORTS}); \
             INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status, progress) \
             SELECT 1, 0, i, 1796000000000000, i, 'Running', i / {REPORTS} FROM {numbers}; \
             INSERT INTO task_metrics (task_id, event_partition, event_offset, reported_at, engine_running_tasks, metrics) \
             SELECT 1, i % 2, i, 1796000000000000, 1, concat('{{\"x\":', i, '.125}}') FROM {numbers}"
        ))
        .await;
    let series = ["series", "long", "--metric", "x", "--points", "4", "--json"];
    let found: serde_json::Value = serde_json::from_str(&pipeline.ask(&series)).unwrap();
    for (place, least, greatest) in [
        (0, 1.0 / REPORTS as f64, 1.0),
        (4, 1.125, REPORTS as f64 + 0.125),
    ] {
        let series = &found["series"][place];
        assert_eq!(series["reports"], REPORTS, "{series}");
        let points = series["points"].as_array().unwrap().iter();
        let mut values: Vec<f64> = points.map(|it| it["value"].as_f64().unwrap()).collect();
        values.sort_by(f64::total_cmp);
        // MariaDB's quotient of integers is a decimal.
        assert!((values[0] - least).abs() < 1e-4, "{values:?}");
        assert_eq!(values.last(), Some(&greatest), "{values:?}");
    }
}

/// Sorting and grouping need room in tmpdir once memory is used up: without it, queries fail, and can be repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_tmpdir_is_a_temporary_error_that_says_what_to_do() {
    let Some(disk) = SmallDisk::mount(1 << 10) else {
        return;
    };
    let tmpdir = format!("tmpdir={}", disk.folder().display());
    let small = [
        "tmp_memory_table_size=1024",
        "sort_buffer_size=1024",
        &tmpdir,
    ];
    let Some((pipeline, server)) = on_server(&small).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    pipeline
        .execute(
            "INSERT INTO task (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
             reported_at, sequence, event_partition, event_offset) \
             SELECT concat('exec-', seq), concat('job-', seq), concat('engine-', seq), repeat('t', 200), 'u', '', 'Running', \
             false, 1796000000000000 + seq, 0, 0, seq FROM seq_1_to_20000",
        )
        .await;
    let words = "the server's tmpdir has no room for temporary tables";
    for query in [&["jobs"][..], &["engines"]] {
        let failed = pipeline.fails(query, 1);
        assert!(failed.contains(words), "{query:?}: {failed}");
    }
    let url = &pipeline.database_url;
    let serving = pipeline.serve_on(url, "serve", &[]).await;
    let answer = serving.get("/api/v1/jobs").await;
    answer.problem(503);
    serving.stop().await;
    drop(server); // before the disk that it uses
}
