//! A row with an invalid value: whatever reads it names table, column, exec task and repair.

use crate::strategies;
use crate::support::{Answered, Kind, Pipeline, numbered, on_every_database};

on_every_database!(an_invalid_value_is_named_and_repaired);

/// Values that a time column accepts and no report can have.
fn times(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Mariadb => &["1000000000000000000", "-1000000000000000000"],
        Kind::Sqlite => &["'noon'", "1000000000000000000", "-1000000000000000000"],
        Kind::Postgres => &[
            "'infinity'",
            "'-infinity'",
            "'12000-01-01T00:00:00Z'",
            "'0044-03-15 00:00:00Z BC'",
        ],
    }
}

async fn an_invalid_value_is_named_and_repaired(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let events: Vec<_> = (0..200).map(|i| numbered(&sample, i)).collect();
    pipeline.send_events(&events);
    pipeline.store_all().await;
    let server = pipeline.serve("serve", &[]).await;
    let of_task = "WHERE exec_id = 'exec-03'";
    let of_history = "WHERE task_id = (SELECT task_id FROM task WHERE exec_id = 'exec-03')";
    let fails = |arguments: &[&str], column: &str| {
        let error = pipeline.fails(arguments, 1);
        for words in [column, "\"exec-03\"", "consumer audit --repair"] {
            assert!(error.contains(words), "{arguments:?}: {error}");
        }
    };
    // A job is of its latest report.
    let latest = times(kind)[0];
    let damage = format!("UPDATE task SET reported_at = {latest} {of_task}");
    pipeline.execute(&damage).await;
    fails(&["jobs"], "task.reported_at");
    for time in times(kind) {
        let damage = format!("UPDATE task SET reported_at = {time} {of_task}");
        pipeline.execute(&damage).await;
        for arguments in [&["tasks"][..], &["tasks", "--order", "started"]] {
            fails(arguments, "task.reported_at");
        }
        fails(&["task", "exec-03"], "task.reported_at");
        // Which task it is, the log says: the caller may be allowed to see others only.
        let refused: Answered = server.get("/api/v1/tasks").await;
        let detail = refused.problem(500);
        assert!(detail.contains("task.reported_at"), "{detail}");
        assert!(!detail.contains("exec-03"), "{detail}");
        assert!(server.process.log().contains("\"exec-03\""));
        assert_eq!(server.get("/api/v1/status").await.status, 200);
        pipeline.audit(&["--repair"]).assert_equal();
        pipeline.ask(&["tasks"]);

        let damage = format!("UPDATE task_progress SET reported_at = {time} {of_history}");
        pipeline.execute(&damage).await;
        fails(&["task", "exec-03"], "task_progress.reported_at");
        fails(&["series", "exec-03"], "task_progress.reported_at");
        pipeline.audit(&["--repair"]).assert_equal();
        pipeline.ask(&["series", "exec-03"]);
    }
    // SQLite keeps any bytes as text, and no search finds these. The database answers all the same.
    if kind == Kind::Sqlite {
        let damage = format!("UPDATE task SET engine_user = CAST(x'ff' AS text) {of_task}");
        pipeline.execute(&damage).await;
        for _ in 0..3 {
            server.get("/api/v1/tasks").await.problem(500);
        }
        let log = server.process.log();
        let lines = log.lines().filter(|line| line.contains("engine_user"));
        assert_eq!(lines.count(), 1, "{log}");
        assert!(!log.contains("503"), "{log}");
        pipeline.audit(&["--repair"]).assert_equal();
        assert_eq!(server.get("/api/v1/tasks").await.status, 200);
    }
    server.stop().await;
}
