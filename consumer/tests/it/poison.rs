//! Rows that the database refuses, and topics with other contents: one event among thousands becomes a letter with the
//! database's error; if most are bad, the consumer stops.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{KINDS, Kind, Pipeline, SERVERS, coordinates, headers, numbered};
use crate::{strategies, support};
use rdkafka::message::Message;
use schemas::TaskRunningInfoEvent;
use service::testing::service;

/// All records are read within this time, and so judged together.
const TOGETHER: [&str; 2] = ["--commit-interval-ms", "20000"];
const EVENTS: usize = 1_000;

/// Fills the topic with events, spoiling those at `poisoned`; returns their positions.
fn fill_spoilt(
    pipeline: &Pipeline,
    poisoned: &[usize],
    spoil: impl Fn(&mut TaskRunningInfoEvent),
) -> BTreeSet<(i32, i64)> {
    let sample = strategies::sample_event();
    let first = pipeline.sent() / i64::from(pipeline.partitions);
    pipeline.fill(EVENTS, |i| {
        let mut event = numbered(&sample, i);
        if poisoned.contains(&i) {
            spoil(&mut event);
        }
        schemas::encode_event(&event).unwrap()
    });
    let partitions = pipeline.partitions as usize;
    poisoned
        .iter()
        .map(|i| ((i % partitions) as i32, first + (i / partitions) as i64))
        .collect()
}

/// The spoilt events become letters with the database's error, the others are stored, and a restart changes nothing.
async fn are_set_aside(pipeline: &Pipeline, poisoned: &BTreeSet<(i32, i64)>, words: &str) {
    let arguments = ["--instance-id", "c"];
    let program = pipeline.program("consumer", &arguments);
    pipeline.until_all_stored(Duration::from_secs(60)).await;
    program.stop().await;
    pipeline.assert_each_once(poisoned).await;
    let ids = pipeline
        .rows("SELECT DISTINCT topic_id FROM consumed_offset")
        .await;
    for letter in pipeline.read_letters() {
        let headers = headers(&letter);
        assert_eq!(headers["__connect.errors.topic"], pipeline.events);
        assert_eq!(headers["__connect.errors.connector.name"], "consumer");
        let id = headers.get("taskrunning.original.topic.id").cloned();
        assert_eq!(ids, [[id]]);
        assert_eq!(headers["__connect.errors.stage"], "TASK_PUT");
        assert_eq!(
            headers["__connect.errors.exception.class.name"],
            "DatabaseRefused"
        );
        let message = &headers["__connect.errors.exception.message"];
        assert!(message.contains(words), "{message}");
        schemas::decode_event(letter.payload()).unwrap();
    }
    let mut again = pipeline.program("again", &arguments);
    again.until_ready().await;
    again.stop().await;
    pipeline.assert_each_once(poisoned).await;
}

/// The first, the last, neighbours in a partition, and single ones.
const SOME: &[usize] = &[0, 4, 8, 400, 501, 502, EVENTS - 1];

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_the_database_cannot_encode_is_set_aside() {
    for kind in SERVERS {
        let (server, options, error) = match kind {
            Kind::Mariadb => ("TEST_MARIADB_URL", "", "Incorrect string value"),
            _ => (
                "TEST_POSTGRES_URL",
                "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
                "has no equivalent in encoding \"LATIN1\"",
            ),
        };
        let Some(server) = service(server) else {
            return;
        };
        let Some(pipeline) = Pipeline::make_on(Some(&server), 4, options).await else {
            return;
        };
        if kind == Kind::Mariadb {
            // Its tables name their character set.
            pipeline.ask(&["migrate"]);
            let latin =
                "ALTER TABLE task MODIFY exec_id varchar(512) CHARACTER SET latin1 NOT NULL";
            pipeline.execute(latin).await;
        }
        let poisoned = fill_spoilt(&pipeline, &[567], |event| {
            event.info.exec_id = "exec-仕事".into();
        });
        are_set_aside(&pipeline, &poisoned, error).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_out_of_a_columns_range_is_set_aside() {
    for kind in SERVERS {
        let Some(pipeline) = Pipeline::make(kind, 4).await else {
            return;
        };
        pipeline.ask(&["migrate"]);
        let (narrow, error) = match kind {
            Kind::Mariadb => (
                "ALTER TABLE task MODIFY sequence int NOT NULL",
                "Out of range value for column 'sequence'",
            ),
            _ => (
                "ALTER TABLE task ALTER COLUMN sequence TYPE integer",
                "integer out of range",
            ),
        };
        pipeline.execute(narrow).await;
        // Each has its own task, because only the newest report of a batch is written to `task`.
        let poisoned = fill_spoilt(&pipeline, SOME, |event| {
            event.info.exec_id += "-spoilt";
            event.info.sequence = 1 << 40;
        });
        are_set_aside(&pipeline, &poisoned, error).await;
    }
}

/// A text that is too long for its column.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_too_long_for_a_column_of_mariadb_is_set_aside() {
    let Some(pipeline) = Pipeline::make(Kind::Mariadb, 4).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let narrow = "ALTER TABLE task MODIFY job_id varchar(16) NOT NULL";
    pipeline.execute(narrow).await;
    let poisoned = fill_spoilt(&pipeline, SOME, |event| {
        event.info.exec_id += "-spoilt";
        event.info.job_id = "j".repeat(17);
    });
    are_set_aside(&pipeline, &poisoned, "Data too long for column 'job_id'").await;
}

/// A server with a check that refuses these events' rows, and their positions.
async fn with_unbelievable(
    kind: Kind,
    poisoned: &[usize],
) -> Option<(Pipeline, BTreeSet<(i32, i64)>)> {
    let pipeline = Pipeline::make(kind, 4).await?;
    pipeline.ask(&["migrate"]);
    pipeline
        .execute("ALTER TABLE task_metrics ADD CONSTRAINT believable CHECK (engine_running_tasks < 1000)")
        .await;
    let poisoned = fill_spoilt(&pipeline, poisoned, |event| {
        event.info.engine.running_tasks = 5000
    });
    Some((pipeline, poisoned))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_check_of_a_server_refuses_are_set_aside_each_alone() {
    for kind in SERVERS {
        let Some((pipeline, poisoned)) = with_unbelievable(kind, SOME).await else {
            return;
        };
        are_set_aside(&pipeline, &poisoned, "believable").await;
    }
}

/// With two concurrent transactions, as PostgreSQL has them, the half without refused rows is stored, and not again when the other one is
/// retried.
#[tokio::test(flavor = "multi_thread")]
async fn if_one_half_of_a_batch_is_refused_it_is_retried_and_the_other_is_stored_once() {
    let Some((pipeline, poisoned)) = with_unbelievable(Kind::Postgres, &[402]).await else {
        return;
    };
    let count = EVENTS.to_string();
    let together = ["--max-events", &count, "--commit-interval-ms", "2000"];
    let program = pipeline.program("consumer", &together);
    program.until_logged("500 of 1000 events are stored").await;
    pipeline.until_all_stored(Duration::from_secs(60)).await;
    program.stop().await;
    pipeline.assert_each_once(&poisoned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_trigger_of_sqlite_refuses_are_set_aside_each_alone() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    pipeline
        .execute(
            "CREATE TRIGGER believable BEFORE INSERT ON task_metrics WHEN NEW.engine_running_tasks >= 1000 \
             BEGIN SELECT RAISE(ABORT, 'so many tasks are not believable'); END",
        )
        .await;
    let poisoned = fill_spoilt(&pipeline, SOME, |event| {
        event.info.engine.running_tasks = 5000
    });
    are_set_aside(&pipeline, &poisoned, "so many tasks are not believable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_rows_and_unreadable_events_in_one_batch_are_set_aside_each_once() {
    for kind in KINDS {
        let Some(pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        pipeline.ask(&["migrate"]);
        pipeline
            .execute("CREATE UNIQUE INDEX single ON task_progress (reported_at)")
            .await;
        // Reports of the same moment: only the first is accepted.
        let sample = strategies::sample_event();
        pipeline.fill(EVENTS, |i| match i {
            50 | 51 | 52 | 900 => support::BAD.to_vec(),
            54 | 56 => {
                let mut event = numbered(&sample, i);
                event.info.reported_at = numbered(&sample, 40).info.reported_at;
                schemas::encode_event(&event).unwrap()
            }
            _ => schemas::encode_event(&numbered(&sample, i)).unwrap(),
        });
        let program = pipeline.program("consumer", &[]);
        pipeline.until_all_stored(Duration::from_secs(60)).await;
        program.stop().await;
        let expected = [50, 51, 52, 54, 56, 900].map(|i| (i % 2, i64::from(i / 2)));
        pipeline.assert_each_once(&expected.into()).await;
    }
}

/// If every row is refused, the table is wrong: no event becomes a letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_every_row_stops_the_consumer_with_nothing_committed() {
    for kind in KINDS {
        let Some(pipeline) = Pipeline::make(kind, 4).await else {
            return;
        };
        pipeline.ask(&["migrate"]);
        let named = match kind {
            Kind::Mariadb => "`none`",
            _ => "\"none\"",
        };
        let (refuse, accept) = match kind {
            Kind::Postgres | Kind::Mariadb => (
                "ALTER TABLE task_metrics ADD CONSTRAINT none CHECK (engine_running_tasks < 0)",
                "ALTER TABLE task_metrics DROP CONSTRAINT none",
            ),
            Kind::Sqlite => (
                "CREATE TRIGGER refuse BEFORE INSERT ON task_metrics BEGIN SELECT RAISE(ABORT, '\"none\"'); END",
                "DROP TRIGGER refuse",
            ),
        };
        pipeline.execute(refuse).await;
        pipeline.fill_numbered(&strategies::sample_event(), 400, 0);
        let all = [&TOGETHER[..], &["--max-events", "400"]].concat();
        let log = pipeline.program("refused", &all).needs_attention().await;
        assert!(
            log.contains(named) && log.contains(&pipeline.events),
            "{log}"
        );
        nothing_was_committed(&pipeline).await;
        pipeline.execute(accept).await;
        let program = pipeline.program("corrected", &[]);
        pipeline.until_all_stored(Duration::from_secs(120)).await;
        program.stop().await;
        pipeline.assert_each_once(&BTreeSet::new()).await;
    }
}

/// A fifth of all rows is refused, in runs: no reason to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_fifth_of_refused_rows_is_set_aside_and_does_not_stop_the_consumer() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    pipeline
        .execute(
            "CREATE TRIGGER believable BEFORE INSERT ON task_metrics WHEN NEW.engine_running_tasks >= 1000 \
             BEGIN SELECT RAISE(ABORT, 'not believable'); END",
        )
        .await;
    let poisoned: Vec<usize> = (0..EVENTS).filter(|i| i % 400 < 80).collect();
    let poisoned = fill_spoilt(&pipeline, &poisoned, |event| {
        event.info.engine.running_tasks = 5000
    });
    are_set_aside(&pipeline, &poisoned, "not believable").await;
}

async fn nothing_was_committed(pipeline: &Pipeline) {
    for table in [
        "consumed_offset",
        "task",
        "task_progress",
        "task_resource",
        "task_metrics",
    ] {
        let select = format!("SELECT count(*) FROM {table}");
        assert_eq!(pipeline.count(&select).await, 0, "{table}");
    }
    assert_eq!(coordinates(&pipeline.read_letters()), []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_topic_of_something_else_stops_the_consumer_and_a_corrected_start_loses_nothing() {
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 1_000, 0);
    let right = pipeline.events.clone();
    // Any wrong topic would do. The letters' own topic would show letters, so the source topic is used.
    pipeline.events = pipeline.source.clone();
    pipeline.fill(5_000, |i| {
        format!("{{\"execId\": \"exec-{i}\"}}").into_bytes()
    });
    let log = pipeline
        .program("wrong", &[&TOGETHER[..], &["--group", &right]].concat())
        .needs_attention()
        .await;
    for output in [pipeline.events.as_str(), "partition", "offset", "JSON"] {
        assert!(log.contains(output), "{output} is not in\n{log}");
    }
    nothing_was_committed(&pipeline).await;

    pipeline.events = right;
    let program = pipeline.program("corrected", &[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
}

/// Never many in a row, but most of them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_mostly_unreadable_topic_stops_the_consumer_unless_configured_otherwise() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill(2_000, |i| match i % 3 {
        0 => schemas::encode_event(&numbered(&sample, i)).unwrap(),
        _ => support::BAD.to_vec(),
    });
    let log = pipeline
        .program("stopped", &TOGETHER)
        .needs_attention()
        .await;
    assert!(log.contains("--max-rejects-per-1000"), "{log}");
    assert_eq!(coordinates(&pipeline.read_letters()), []);
    let program = pipeline.program("told", &["--max-rejects-per-1000", "0"]);
    pipeline.until_all_stored(Duration::from_secs(60)).await;
    program.stop().await;
    pipeline.assert_each_once(&pipeline.bad()).await;
}
