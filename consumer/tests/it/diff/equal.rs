//! Tables with the same contents are equal.

use super::{EVENTS, Pair, fill, run, some_row, store};
use crate::support::Kind;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_everything_equals_the_live_tables_in_either_database() {
    for (a, b) in [
        (Kind::Sqlite, Kind::Postgres),
        (Kind::Postgres, Kind::Sqlite),
        (Kind::Mariadb, Kind::Sqlite),
        (Kind::Postgres, Kind::Mariadb),
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
        assert_eq!(compared.report["partitions"].as_array().unwrap().len(), 3);
        for partition in compared.report["partitions"].as_array().unwrap() {
            for table in ["task_progress", "task_resource", "task_metrics", "task"] {
                let actual = &partition["tables"][table];
                assert_eq!((&actual["from"], &actual["to"]), (&json!(0), &json!(200)));
            }
        }
        let (code, message) = pair.text(&[]);
        assert_eq!(code, 0);
        assert!(message.contains("equal: over the offsets of"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_range_equals_the_live_tables_and_rows_beyond_it_are_ignored() {
    for (a, b) in [
        (Kind::Sqlite, Kind::Postgres),
        (Kind::Postgres, Kind::Sqlite),
        (Kind::Mariadb, Kind::Sqlite),
        (Kind::Postgres, Kind::Mariadb),
    ] {
        let Some(pair) = Pair::make(a, b).await else {
            return;
        };
        pair.replay(&["--from", "offset:0=10,1=20", "--to", "offset:0=190,1=100"]);
        let compared = pair.diff();
        compared.assert_equal();
        pair.diff_back().assert_equal();
        let tables = &compared.report["partitions"][0]["tables"];
        let progress = &tables["task_progress"];
        assert_eq!(
            (&progress["from"], &progress["to"], &progress["rows_a"]),
            (&json!(10), &json!(190), &json!(180))
        );
        assert_eq!(
            (&progress["outside_a"], &progress["outside_b"]),
            (&json!(20), &json!(0))
        );
        let beyond = &compared.report["partitions"][2]["tables"]["task_progress"];
        assert_eq!(
            (&beyond["from"], &beyond["rows_a"], &beyond["outside_a"]),
            (&Value::Null, &json!(0), &json!(200))
        );
        let tasks = pair.a.count("SELECT count(*) FROM task").await;
        let of_tasks = |what: &str| -> u64 {
            let partitions = compared.report["partitions"].as_array().unwrap();
            let actual = partitions
                .iter()
                .map(|partition| partition["tables"]["task"][what].as_u64().unwrap_or(0));
            actual.sum()
        };
        assert!(of_tasks("equal") > 0, "{:#}", compared.report);
        assert_eq!(of_tasks("rows_a") + of_tasks("outside_a"), tasks as u64);

        // The beginning of the rows, if it is not recorded.
        let unknown = "UPDATE consumed_offset SET first_offset = NULL";
        pair.b.execute(unknown).await;
        let compared = pair.diff();
        compared.assert_equal();
        let progress = &compared.report["partitions"][0]["tables"]["task_progress"];
        assert_eq!(progress["from"], json!(10));

        // A has read everything that B has, so its row of a task cannot be older.
        let (_, partition, offset) = some_row(&pair.b, "task").await;
        let place = format!("event_partition = {partition} AND event_offset = {offset}");
        let name = pair
            .b
            .rows(&format!("SELECT exec_id FROM task WHERE {place}"))
            .await[0][0]
            .clone()
            .unwrap();
        let early = match pair.a.kind {
            Kind::Sqlite | Kind::Mariadb => "1",
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
        assert_eq!(compared.report["findings"][0]["exec_id"], json!(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_further_along_equal_those_that_are_behind() {
    for (a, b) in [
        (Kind::Postgres, Kind::Sqlite),
        (Kind::Mariadb, Kind::Postgres),
    ] {
        let Some(pair) = Pair::make(a, b).await else {
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
}

/// A backup is not in WAL mode; reading does not change that.
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
