//! How the consumer reacts to error codes, on real databases: see docs/src/reference/errors.md.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use crate::sql::Sql;
use crate::strategies;
use crate::support::{Kind, Pipeline, Program, connect};

const WITHIN: Duration = Duration::from_secs(120);

/// A PostgreSQL whose owner's sessions have this setting, and a consumer that has stored 500 events as that owner.
async fn with_setting(setting: &str) -> Option<(Pipeline, Program)> {
    let pipeline = Pipeline::make(Kind::Postgres, 1).await?;
    let url = pipeline.make_owner().await;
    let role = pipeline.database();
    pipeline
        .administer(&format!("ALTER ROLE {role} SET {setting}"))
        .await;
    let program = pipeline.program_on(&url, "consumer", &[]);
    fill(&pipeline);
    pipeline.until_all_stored(WITHIN).await;
    Some((pipeline, program))
}

fn fill(pipeline: &Pipeline) {
    pipeline.fill_numbered(&strategies::sample_event(), 500, 0);
}

async fn all_is_stored(pipeline: &Pipeline, mut program: Program) {
    pipeline.until_all_stored(WITHIN).await;
    program.until_ready().await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

/// Locks the row of a task, and waits until the consumer waits for it.
async fn block(pipeline: &Pipeline) -> Sql {
    let mut other = connect(&pipeline.database_url).await;
    other
        .run("BEGIN; UPDATE task SET job_id = job_id WHERE exec_id = 'exec-05'")
        .await
        .unwrap();
    fill(pipeline);
    let blocked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'consumer' \
         AND wait_event_type = 'Lock'",
        pipeline.database()
    );
    pipeline.until_count(&blocked, 1).await;
    other
}

/// 25P03: the consumer stalls within a transaction, and the server ends its session.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_that_timed_out_is_retried() {
    let setting = "idle_in_transaction_session_timeout = '500ms'";
    let Some((pipeline, program)) = with_setting(setting).await else {
        return;
    };
    let mut other = block(&pipeline).await;
    program.process.signal("STOP");
    other.run("COMMIT").await.unwrap();
    let open = format!(
        "SELECT 1 - count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'consumer' \
         AND xact_start IS NOT NULL",
        pipeline.database()
    );
    pipeline.until_count(&open, 1).await;
    program.process.signal("CONT");
    // Detected by the server's last message or by the end of the connection.
    program.until_logged("waiting for PostgreSQL").await;
    all_is_stored(&pipeline, program).await;
}

/// 55P03
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_timeout_is_waited_for() {
    let Some((pipeline, mut program)) = with_setting("lock_timeout = '100ms'").await else {
        return;
    };
    let mut other = connect(&pipeline.database_url).await;
    other
        .run("BEGIN; UPDATE task SET job_id = job_id")
        .await
        .unwrap();
    fill(&pipeline);
    program.until_waiting(&["PostgreSQL", "lock timeout"]).await;
    other.run("COMMIT").await.unwrap();
    all_is_stored(&pipeline, program).await;
}

/// 57014, by an operator; and 57P01.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_statement_is_retried() {
    let Some((pipeline, program)) = with_setting("statement_timeout = 0").await else {
        return;
    };
    for (ends, output) in [
        (
            "pg_cancel_backend",
            "canceling statement due to user request",
        ),
        ("pg_terminate_backend", "due to administrator command"),
    ] {
        let mut other = block(&pipeline).await;
        pipeline
            .administer(&format!(
                "SELECT {ends}(pid) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'consumer' \
                 AND wait_event_type = 'Lock'",
                pipeline.database()
            ))
            .await;
        program.until_logged(output).await;
        other.run("COMMIT").await.unwrap();
        pipeline.until_all_stored(WITHIN).await;
    }
    all_is_stored(&pipeline, program).await;
}

/// P0001, like SQLite's RAISE in a trigger.
#[tokio::test(flavor = "multi_thread")]
async fn an_exception_raised_by_a_postgresql_trigger_refuses_the_row() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    pipeline
        .execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.event_offset IN (7, 300) THEN RAISE 'not this one'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON task_metrics FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    fill(&pipeline);
    let program = pipeline.program("consumer", &[]);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    pipeline.assert_each_once(&[(0, 7), (0, 300)].into()).await;
}

/// 0A000: a prepared statement no longer fits the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_is_retried_after_its_table_changed() {
    let Some((pipeline, program)) = with_setting("statement_timeout = 0").await else {
        return;
    };
    pipeline
        .execute("ALTER TABLE consumed_offset ALTER COLUMN part TYPE varchar(20)")
        .await;
    fill(&pipeline);
    all_is_stored(&pipeline, program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_handshake_that_is_cut_off_is_waited_for() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 8];
            let _ = stream.read_exact(&mut asked);
            let _ = stream.write_all(b"S");
        }
    });
    let url = format!("postgres://nobody@127.0.0.1:{port}/nothing?sslmode=require");
    let mut program = pipeline.program_on(&url, "consumer", &[]);
    program.until_waiting(&["PostgreSQL", "TLS"]).await;
    program.stop().await;
}

/// NOTADB and CANTOPEN.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_and_a_missing_folder_need_an_operator() {
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let file = pipeline.folder().join("tasks.db");
    std::fs::write(&file, vec![b'x'; 8192]).unwrap();
    let log = pipeline.program("garbage", &[]).needs_attention().await;
    assert!(log.contains("file is not a database"), "{log}");
    pipeline.database_url = format!(
        "sqlite:{}",
        pipeline.folder().join("none/tasks.db").display()
    );
    let log = pipeline.program("absent", &[]).needs_attention().await;
    assert!(log.contains("unable to open database file"), "{log}");
}

/// CORRUPT: half of a file is overwritten while it is in use.
#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_file_needs_an_operator() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    pipeline.fill_numbered(&strategies::sample_event(), 5_000, 0);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    let file = pipeline.folder().join("tasks.db");
    let bytes = std::fs::read(&file).unwrap();
    let page = 4096;
    let garbage = vec![0x55; bytes.len() - page];
    // The first page is kept, so that the file is recognised as a database.
    std::fs::write(&file, [&bytes[..page], &garbage].concat()).unwrap();
    let log = pipeline.program("corrupted", &[]).needs_attention().await;
    assert!(log.contains("malformed"), "{log}");
}

/// A trigger fails once with each temporary code, then with permanent ones.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn temporary_errors_are_retried_and_permanent_ones_need_an_operator() {
    let Some((pipeline, mut program)) = with_setting("statement_timeout = 0").await else {
        return;
    };
    pipeline
        .execute("CREATE SEQUENCE failures; GRANT USAGE ON SEQUENCE failures TO PUBLIC")
        .await;
    let fail_once = async |code: &str| {
        pipeline
            .execute(&format!(
                "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   IF nextval('failures') = 1 THEN RAISE 'the fault {code}' USING ERRCODE = '{code}'; END IF; \
                   RETURN NEW; END $$; \
                 CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON task_metrics FOR EACH ROW EXECUTE FUNCTION fail(); \
                 ALTER SEQUENCE failures RESTART"
            ))
            .await;
        fill(&pipeline);
    };
    let passing = [
        "08006", "25006", "25P02", "25P03", "25P04", "40001", "40P01", "53000", "53100", "53200",
        "53300", "53400", "55000", "55006", "55P03", "57014", "57P01", "57P02", "57P03", "57P05",
        "58030", "72000", "F0000", "XX000",
    ];
    for code in passing {
        fail_once(code).await;
        pipeline.until_all_stored(WITHIN).await;
        program.until_logged(&format!("the fault {code}")).await;
        program.process.assert_running();
    }
    pipeline.assert_each_once(&BTreeSet::new()).await;
    let lasting = [
        "0A000", "25001", "26000", "28000", "3D000", "42501", "42P05", "XX001", "XX002",
    ];
    for code in lasting {
        fail_once(code).await;
        let log = program.needs_attention().await;
        assert!(log.contains(&format!("the fault {code}")), "{log}");
        program = pipeline.program("again", &[]);
        pipeline.until_all_stored(WITHIN).await;
    }
    all_is_stored(&pipeline, program).await;
}
