//! How the consumer reacts to error codes, on real databases: see docs/src/reference/errors.md.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use crate::sql::Sql;
use crate::strategies;
use crate::support::{Kind, Pipeline, Program, connect, on_servers};

const WITHIN: Duration = Duration::from_secs(120);

on_servers!(
    #[ignore = "heavy"]
    a_lock_timeout_is_waited_for,
    a_cancelled_statement_is_retried,
    an_error_raised_by_a_trigger_refuses_the_row,
    a_prepared_statement_is_retried_after_its_table_changed,
    a_tls_handshake_that_is_cut_off_is_waited_for,
    #[ignore = "heavy"]
    temporary_errors_are_retried_and_permanent_ones_need_an_operator,
);

/// A consumer that has stored 500 events as the owner of the database, whose sessions have this setting in PostgreSQL.
async fn with_setting(kind: Kind, setting: &str) -> Option<(Pipeline, Program)> {
    let pipeline = Pipeline::make(kind, 1).await?;
    let url = pipeline.make_owner().await;
    if kind == Kind::Postgres {
        let role = pipeline.database();
        pipeline
            .administer(&format!("ALTER ROLE {role} SET {setting}"))
            .await;
    }
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

/// Locks rows until [`Kind::unlock`].
fn change(kind: Kind) -> &'static str {
    match kind {
        Kind::Mariadb => "BEGIN; UPDATE task SET job_id = 'other'",
        _ => "BEGIN; UPDATE task SET job_id = job_id",
    }
}

/// Locks the row of a task, and waits until the consumer waits for it.
async fn block(pipeline: &Pipeline) -> Sql {
    let mut other = connect(&pipeline.database_url).await;
    let change = change(pipeline.kind);
    other
        .run(&format!("{change} WHERE exec_id = 'exec-05'"))
        .await
        .unwrap();
    fill(pipeline);
    pipeline.until_count(&pipeline.blocked(), 1).await;
    other
}

/// 25P03: the consumer stalls within a transaction, and the server ends its session. (In MariaDB, each session sets its
/// own limit, of 60 s.)
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_that_timed_out_is_retried() {
    let setting = "idle_in_transaction_session_timeout = '500ms'";
    let Some((pipeline, program)) = with_setting(Kind::Postgres, setting).await else {
        return;
    };
    let mut other = block(&pipeline).await;
    program.process.signal("STOP");
    other.run(pipeline.kind.unlock()).await.unwrap();
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

/// 55P03, and 1205 of MariaDB, whose sessions wait for 20 s.
async fn a_lock_timeout_is_waited_for(kind: Kind) {
    let Some((pipeline, mut program)) = with_setting(kind, "lock_timeout = '100ms'").await else {
        return;
    };
    let mut other = connect(&pipeline.database_url).await;
    other.run(change(kind)).await.unwrap();
    fill(&pipeline);
    let message = match kind {
        Kind::Mariadb => "Lock wait timeout exceeded",
        _ => "lock timeout",
    };
    program.until_waiting(&[kind.product(), message]).await;
    other.run(kind.unlock()).await.unwrap();
    all_is_stored(&pipeline, program).await;
}

/// 57014 and 1317, by an operator; 57P01 and 1927.
async fn a_cancelled_statement_is_retried(kind: Kind) {
    let Some((pipeline, program)) = with_setting(kind, "statement_timeout = 0").await else {
        return;
    };
    let ends = match kind {
        Kind::Mariadb => [
            ("KILL QUERY", "Query execution was interrupted"),
            ("KILL", "waiting for MySQL"),
        ],
        _ => [
            (
                "pg_cancel_backend",
                "canceling statement due to user request",
            ),
            ("pg_terminate_backend", "due to administrator command"),
        ],
    };
    for (end, output) in ends {
        let mut other = block(&pipeline).await;
        let name = pipeline.database();
        let end = match kind {
            Kind::Mariadb => {
                let waiting = pipeline.blocked().replace("count(*)", "CAST(id AS text)");
                let id = pipeline.rows(&waiting).await[0][0].clone().unwrap();
                format!("{end} {id}")
            }
            _ => format!(
                "SELECT {end}(pid) FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'consumer' \
                 AND wait_event_type = 'Lock'"
            ),
        };
        pipeline.administer(&end).await;
        program.until_logged(output).await;
        other.run(kind.unlock()).await.unwrap();
        pipeline.until_all_stored(WITHIN).await;
    }
    all_is_stored(&pipeline, program).await;
}

/// P0001, and 1644 of MariaDB, like SQLite's RAISE in a trigger.
async fn an_error_raised_by_a_trigger_refuses_the_row(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let refuse = match kind {
        Kind::Mariadb => {
            "CREATE TRIGGER refuse BEFORE INSERT ON task_metrics FOR EACH ROW \
             IF NEW.event_offset IN (7, 300) THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF"
        }
        _ => {
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.event_offset IN (7, 300) THEN RAISE 'not this one'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON task_metrics FOR EACH ROW EXECUTE FUNCTION refuse()"
        }
    };
    pipeline.execute(refuse).await;
    fill(&pipeline);
    let program = pipeline.program("consumer", &[]);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    pipeline.assert_each_once(&[(0, 7), (0, 300)].into()).await;
}

/// 0A000: a prepared statement no longer fits the table. MariaDB prepares it again.
async fn a_prepared_statement_is_retried_after_its_table_changed(kind: Kind) {
    let Some((pipeline, program)) = with_setting(kind, "statement_timeout = 0").await else {
        return;
    };
    let change = match kind {
        Kind::Mariadb => "ALTER TABLE consumed_offset MODIFY part varchar(20) NOT NULL",
        _ => "ALTER TABLE consumed_offset ALTER COLUMN part TYPE varchar(20)",
    };
    pipeline.execute(change).await;
    fill(&pipeline);
    all_is_stored(&pipeline, program).await;
}

/// What MariaDB says first: its version, its abilities (TLS among them), and the plugin of passwords.
fn mariadbs_greeting() -> Vec<u8> {
    let mut packet = b"\x0a10.11.0-MariaDB\0\x01\0\0\0saltsalt\0".to_vec();
    // Protocol 4.1, TLS, transactions, secure connections; utf8mb4; autocommit; plugins; 21 bytes of salt.
    packet.extend(
        b"\x00\xaa\x2d\x02\0\x08\0\x15\0\0\0\0\0\0\0\0\0\0saltsaltsalt\0mysql_native_password\0",
    );
    let length = packet.len() as u8;
    [&[length, 0, 0, 0], &packet[..]].concat()
}

async fn a_tls_handshake_that_is_cut_off_is_waited_for(kind: Kind) {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if kind == Kind::Mariadb {
                let _ = stream.write_all(&mariadbs_greeting());
                let _ = stream.read_exact(&mut [0; 36]);
                continue;
            }
            let _ = stream.read_exact(&mut [0; 8]);
            let _ = stream.write_all(b"S");
        }
    });
    let url = match kind {
        Kind::Mariadb => format!("mysql://nobody@127.0.0.1:{port}/nothing?ssl-mode=REQUIRED"),
        _ => format!("postgres://nobody@127.0.0.1:{port}/nothing?sslmode=require"),
    };
    let mut program = pipeline.program_on(&url, "consumer", &[]);
    program.until_waiting(&[kind.product(), "TLS"]).await;
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

/// Temporary and permanent codes.
fn codes(kind: Kind) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        Kind::Mariadb => (
            &[
                "1020", "1021", "1030", "1038", "1040", "1041", "1053", "1077", "1114", "1152",
                "1158", "1159", "1160", "1161", "1180", "1203", "1205", "1206", "1213", "1226",
                "1290", "1317", "1412", "1461", "1792", "1836", "1927", "1969", "3572", "4031",
            ],
            &[
                "1044", "1045", "1049", "1054", "1129", "1130", "1142", "1143", "1146", "1153",
                "1390", "1665",
            ],
        ),
        _ => (
            &[
                "08006", "25006", "25P02", "25P03", "25P04", "40001", "40P01", "53000", "53100",
                "53200", "53300", "53400", "55000", "55006", "55P03", "57014", "57P01", "57P02",
                "57P03", "57P05", "58030", "72000", "F0000", "XX000",
            ],
            &[
                "0A000", "25001", "26000", "28000", "3D000", "42501", "42P05", "XX001", "XX002",
            ],
        ),
    }
}

/// A trigger fails once with each temporary code, then with permanent ones.
async fn temporary_errors_are_retried_and_permanent_ones_need_an_operator(kind: Kind) {
    let Some((pipeline, mut program)) = with_setting(kind, "statement_timeout = 0").await else {
        return;
    };
    let memory = match kind {
        // Of an engine without transactions, so that the failure is counted.
        Kind::Mariadb => "CREATE TABLE failures (code char(5)) ENGINE = Aria TRANSACTIONAL = 0",
        _ => "CREATE SEQUENCE failures; GRANT USAGE ON SEQUENCE failures TO PUBLIC",
    };
    pipeline.execute(memory).await;
    let fail_once = async |code: &str| {
        let trigger = match kind {
            Kind::Mariadb => format!(
                "DELETE FROM failures; CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON task_metrics FOR EACH ROW \
                 IF NOT EXISTS (SELECT 1 FROM failures) THEN INSERT INTO failures VALUES ('{code}'); \
                 SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'the fault {code}'; END IF"
            ),
            _ => format!(
                "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   IF nextval('failures') = 1 THEN RAISE 'the fault {code}' USING ERRCODE = '{code}'; END IF; \
                   RETURN NEW; END $$; \
                 CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON task_metrics FOR EACH ROW EXECUTE FUNCTION fail(); \
                 ALTER SEQUENCE failures RESTART"
            ),
        };
        pipeline.execute(&trigger).await;
        fill(&pipeline);
    };
    let (passing, lasting) = codes(kind);
    for code in passing {
        fail_once(code).await;
        pipeline.until_all_stored(WITHIN).await;
        program.until_logged(&format!("the fault {code}")).await;
        program.process.assert_running();
    }
    pipeline.assert_each_once(&BTreeSet::new()).await;
    for code in lasting {
        fail_once(code).await;
        let log = program.needs_attention().await;
        assert!(log.contains(&format!("the fault {code}")), "{log}");
        program = pipeline.program("again", &[]);
        pipeline.until_all_stored(WITHIN).await;
    }
    all_is_stored(&pipeline, program).await;
}
