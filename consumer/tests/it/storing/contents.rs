//! The rows that an event becomes.

use std::time::Duration;

use super::{DatabaseArguments, event, report, row};
use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};
use clap::Parser;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rdkafka::message::{Headers, Message};
use schemas::{MetricValue, TaskRunningInfo, TaskRunningInfoEvent, TaskStatus};
use service::testing::{read_all, until};

on_every_database!(
    every_column_holds_the_engines_value,
    the_newest_state_does_not_depend_on_the_order_of_arrival,
    out_of_range_values_are_stored_repaired_and_unusable_records_become_letters,
    an_unreadable_event_is_set_aside_once_and_the_others_are_stored,
);

async fn every_column_holds_the_engines_value(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let mut silent = event();
    silent.info.exec_id = "silent".into();
    silent.info.reported_at = -1;
    silent.adjustments.clear();
    (
        silent.info.progress,
        silent.info.resource,
        silent.info.metrics,
    ) = (None, None, None);
    pipeline.send_events(&[event(), silent]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_count(&Pipeline::stored("metrics"), 2).await;
    consumer.stop().await;

    let [task, progress, resource, metrics] = pipeline.contents().await.try_into().unwrap();
    assert_eq!(
        task,
        [
            row(&[
                "exec-1",
                "job-1",
                "node-1:4040",
                "spark",
                "ada",
                "t-1",
                "Running",
                "7",
                "0",
                "0",
                "0",
                "1764079500123456",
                "1764079500123456",
                "NULL"
            ]),
            row(&[
                "silent",
                "job-1",
                "node-1:4040",
                "spark",
                "ada",
                "t-1",
                "Running",
                "7",
                "0",
                "1",
                "0",
                "-1",
                "-1",
                "NULL"
            ]),
        ]
    );
    assert_eq!(
        progress,
        [
            row(&[
                "exec-1",
                "0",
                "0",
                "7",
                "Running",
                "1764079500123456",
                r#"["0"]"#,
                "[[10],[2],[1],[5]]",
                r#"["NegativeCount"]"#
            ]),
            row(&[
                "silent", "0", "1", "7", "Running", "-1", "NULL", "NULL", "NULL"
            ]),
        ]
    );
    assert_eq!(pipeline.progress().await, [Some(0.5), None]);
    assert_eq!(
        resource,
        [row(&[
            "exec-1",
            "0",
            "0",
            "app-1",
            "8589934592",
            "4",
            "2",
            "default",
            "RUNNING",
            "1764079500123456"
        ]),]
    );
    let json = r#"{"count":-1,"flag":true,"nothing":null,"seconds":12.5,"text":"ü","whole":3.0}"#;
    assert_eq!(
        metrics,
        [
            row(&["exec-1", "0", "0", "2", json, "1764079500123456"]),
            row(&["silent", "0", "1", "2", "NULL", "-1"]),
        ]
    );
    // Views show the jobs' counts separately, and times to the microsecond.
    let counts = pipeline
        .rows("SELECT CAST(total_tasks AS text), CAST(running_tasks AS text), CAST(failed_tasks AS text), CAST(succeed_tasks AS text) FROM task_progress_history ORDER BY event_offset")
        .await;
    let shown = match kind {
        Kind::Sqlite | Kind::Mariadb => ["[10]", "[2]", "[1]", "[5]"],
        Kind::Postgres => ["{10}", "{2}", "{1}", "{5}"],
    };
    assert_eq!(counts, [row(&shown), row(&["NULL"; 4])]);
    let shown = pipeline
        .rows("SELECT CAST(reported_at AS text) FROM task_progress_history ORDER BY event_offset")
        .await;
    let [first, second] = [
        shown[0][0].as_deref().unwrap(),
        shown[1][0].as_deref().unwrap(),
    ];
    assert!(
        first.contains("14:05:00.123456")
            && second.contains("1969-12-31")
            && second.contains("23:59:59.999999"),
        "{first} {second}"
    );
}

async fn the_newest_state_does_not_depend_on_the_order_of_arrival(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let at = event().info.reported_at;
    use TaskStatus::{Failed, Running, Succeed};
    // Reports of each task in the order they were made; the last is the newest state.
    let lives = [
        // A later report does not undo a final status: engines may retry reports.
        vec![
            report("a", 0, at, Running, 0.9),
            report("a", 2, at + 9, Running, 0.4),
            report("a", 1, at + 5, Succeed, 0.95),
        ],
        // Progress may fall: the newest report counts, not the highest value.
        vec![
            report("b", 0, at, Running, 0.9),
            report("b", 1, at + 1, Running, 0.4),
            report("b", 2, at + 2, Running, 0.6),
        ],
        // Equal times: the sequence decides.
        vec![
            report("c", 0, at, Running, 0.9),
            report("c", 1, at, Running, 0.3),
        ],
        vec![
            report("d", 3, at, Succeed, 1.0),
            report("d", 4, at + 1, Failed, 0.7),
        ],
    ];
    let expected: Vec<_> = lives
        .iter()
        .map(|life| life.last().unwrap().clone())
        .collect();
    let events = |infos: Vec<TaskRunningInfo>| -> Vec<_> {
        infos
            .into_iter()
            .map(|info| TaskRunningInfoEvent {
                info,
                adjustments: vec![],
                ..event()
            })
            .collect()
    };
    // Forwards and backwards, in one batch and one by one.
    let forwards: Vec<_> = lives.iter().flatten().cloned().collect();
    let mut backwards: Vec<_> = forwards.clone();
    backwards.reverse();
    for info in &mut backwards {
        info.exec_id.insert(0, 'x');
    }
    let consumer = pipeline.consumer(&["--max-events", "3"]);
    pipeline.send_events(&events(forwards.clone()));
    for event in events(backwards) {
        pipeline.send_events(&[event]);
    }
    pipeline
        .until_count(&Pipeline::stored("metrics"), 2 * forwards.len() as i64)
        .await;
    consumer.stop().await;

    let state = "SELECT exec_id, status, CAST(sequence AS text) FROM task ORDER BY exec_id";
    let states = pipeline.rows(state).await;
    let state = |info: &TaskRunningInfo, x: &str| {
        row(&[
            &format!("{x}{}", info.exec_id),
            info.status.as_str(),
            &info.sequence.to_string(),
        ])
    };
    let expected: Vec<_> = expected
        .iter()
        .map(|info| state(info, ""))
        .chain(expected.iter().map(|info| state(info, "x")))
        .collect();
    assert_eq!(states, expected);
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_progress").await,
        2 * forwards.len() as i64,
        "history keeps all"
    );
}

async fn out_of_range_values_are_stored_repaired_and_unusable_records_become_letters(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let at = event().info.reported_at;
    let mut negative = report("negative", 0, at, TaskStatus::Running, 0.5);
    negative.progress.as_mut().unwrap().progress_info[0].running_tasks = -3;
    let mut odd = report("odd", 0, at, TaskStatus::Running, 0.5);
    odd.metrics = Some(
        [
            ("t".to_owned(), MetricValue::String("a\0b".into())),
            ("n".to_owned(), MetricValue::Double(f64::NAN)),
            ("far".to_owned(), MetricValue::String("-inf".into())),
            ("unknown".to_owned(), MetricValue::Null),
        ]
        .into(),
    );
    pipeline.send_infos(&[
        report("nan", 0, at, TaskStatus::Running, f64::NAN),
        report("infinite", 0, at, TaskStatus::Running, f64::INFINITY),
        report("minus-zero", 0, at, TaskStatus::Running, -0.0),
        report("late", 0, i64::MAX, TaskStatus::Running, 0.5),
        report("early", 0, i64::MIN, TaskStatus::Running, 0.5),
        negative,
        odd,
        report("repeated", 4, at, TaskStatus::Running, 0.5),
        report("repeated", 4, at, TaskStatus::Running, 0.5),
    ]);
    let (router, consumer) = (pipeline.router(), pipeline.consumer(&[]));
    pipeline
        .until_count("SELECT count(*) FROM task_metrics", 7)
        .await;
    router.stop().await;
    consumer.stop().await;

    let adjusted =
        "SELECT exec_id, CAST(adjustments AS text) FROM task_progress_history ORDER BY exec_id";
    let named: Vec<_> = pipeline
        .rows(adjusted)
        .await
        .into_iter()
        .map(|row| {
            let [exec_id, adjustments] = row.try_into().unwrap();
            let adjustments = adjustments.unwrap_or_default();
            (
                exec_id.unwrap(),
                adjustments
                    .trim_matches(|c: char| !c.is_alphabetic() && c != ',')
                    .replace("\",\"", ","),
            )
        })
        .collect();
    let expected = [
        ("infinite", "ProgressAboveOne,progress.progress=Infinity"),
        ("minus-zero", ""),
        ("nan", "ProgressNotANumber,progress.progress=NaN"),
        ("negative", "NegativeCount"),
        (
            "odd",
            "NulInText,MetricNotFinite,metrics.far=-Infinity,metrics.n=NaN",
        ),
        ("repeated", ""),
        ("repeated", ""),
    ];
    assert_eq!(
        named,
        expected.map(|(a, b)| (a.to_owned(), b.to_owned())),
        "an engine that says a thing twice is stored twice"
    );
    let odd = pipeline
        .rows("SELECT CAST(metrics AS text) FROM task_metrics_history WHERE exec_id = 'odd'")
        .await;
    assert_eq!(
        odd,
        [row(&[
            "{\"far\":null,\"n\":null,\"t\":\"a\u{FFFD}b\",\"unknown\":null}"
        ])]
    );
    let zero = pipeline
        .rows(
            "SELECT CAST(progress AS text) FROM task_progress_history WHERE exec_id = 'minus-zero'",
        )
        .await;
    let zero = zero[0][0].as_deref().unwrap();
    assert!(["0", "0.0"].contains(&zero), "{zero}");
    let letters = read_all(&pipeline.bootstrap, &pipeline.letters);
    let mut keys: Vec<_> = letters.iter().map(|letter| letter.key().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, [&b"early"[..], b"late"]);
}

async fn an_unreadable_event_is_set_aside_once_and_the_others_are_stored(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    // Valid framing, but not from a router: PostgreSQL could not store it.
    let mut unrouted = event();
    unrouted.info.job_id = "a\0b".into();
    pipeline.send_events(&[event()]);
    pipeline.send(&pipeline.events, &[("k", b"no event".to_vec(), Some(0))]);
    pipeline.send_events(&[unrouted, event()]);
    for _ in 0..3 {
        let consumer = pipeline.consumer(&["--instance-id", "c"]);
        pipeline.until_count(&Pipeline::stored("metrics"), 4).await;
        consumer.stop().await;
    }
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_progress").await,
        2
    );
    let letters = read_all(&pipeline.bootstrap, &pipeline.letters);
    assert_eq!(letters.len(), 2);
    let header = |i: usize, name: &str| {
        let headers = letters[i].headers().unwrap();
        let found = headers.iter().find(|header| header.key == name).unwrap();
        String::from_utf8(found.value.unwrap().to_vec()).unwrap()
    };
    assert_eq!(
        (letters[0].key(), letters[0].payload()),
        (Some(&b"k"[..]), Some(&b"no event"[..]))
    );
    assert_eq!(header(0, "__connect.errors.topic"), pipeline.events);
    assert_eq!(header(0, "__connect.errors.offset"), "1");
    assert_eq!(header(0, "__connect.errors.connector.name"), "consumer");
    assert_eq!(header(0, "__connect.errors.task.id"), "c");
    assert_eq!(
        header(0, "__connect.errors.exception.class.name"),
        "UnknownFraming"
    );
    assert_eq!(
        header(1, "__connect.errors.exception.class.name"),
        "NotRouted"
    );
}

/// Both databases hold equal rows for any event, whether it was stored in a small batch or a large one.
#[tokio::test(flavor = "multi_thread")]
async fn all_databases_hold_equal_rows_for_equal_events() {
    let (Some(sqlite), Some(mut mariadb), Some(mut postgres), Some(mut by_few)) = (
        Pipeline::make(Kind::Sqlite, 1).await,
        Pipeline::make(Kind::Mariadb, 1).await,
        Pipeline::make(Kind::Postgres, 1).await,
        Pipeline::make(Kind::Postgres, 1).await,
    ) else {
        return;
    };
    let mut runner = TestRunner::default();
    let usable = |mut info: TaskRunningInfo, i: i64| {
        for text in [
            &mut info.exec_id,
            &mut info.job_id,
            &mut info.engine.instance,
            &mut info.engine.engine_type,
        ] {
            *text = format!("x{}", text.chars().take(100).collect::<String>());
        }
        for text in [&mut info.engine.user, &mut info.engine.ticket_id] {
            *text = text.chars().take(100).collect();
        }
        // Several reports per task.
        info.exec_id = format!(
            "{}{}",
            i % 40,
            info.exec_id.chars().take(1).collect::<String>()
        );
        info.reported_at %= 60_000_000_000_000_000;
        info
    };
    let infos: Vec<_> = (0..400)
        .map(|i| {
            usable(
                strategies::info().new_tree(&mut runner).unwrap().current(),
                i,
            )
        })
        .collect();
    sqlite.send_infos(&infos);
    let router = sqlite.router();
    until("all are routed", Duration::from_secs(60), async || {
        (read_all(&sqlite.bootstrap, &sqlite.events).len() == infos.len()).then_some(())
    })
    .await;
    router.stop().await;
    // All databases are filled from one topic.
    mariadb.events.clone_from(&sqlite.events);
    postgres.events.clone_from(&sqlite.events);
    by_few.events.clone_from(&sqlite.events);
    let arguments = ["test", "--database-url", &by_few.database_url];
    let database = DatabaseArguments::parse_from(arguments).database;
    consumer::migrate(&database).await.unwrap();
    by_few
        .execute(
            "CREATE TABLE written (number serial, statement text); \
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN INSERT INTO written (statement) VALUES (left(current_query(), 4)); RETURN NULL; END $$; \
             CREATE TRIGGER note AFTER INSERT ON task_metrics EXECUTE FUNCTION note()",
        )
        .await;
    let consumers = [
        sqlite.consumer(&["--group", "s"]),
        mariadb.consumer(&["--group", "m"]),
        postgres.consumer(&["--group", "p"]),
        by_few.consumer(&["--group", "f", "--max-events", "7"]),
    ];
    for pipeline in [&sqlite, &mariadb, &postgres, &by_few] {
        pipeline
            .until_count("SELECT count(*) FROM task_metrics", infos.len() as i64)
            .await;
    }
    for consumer in consumers {
        consumer.stop().await;
    }
    let select = "SELECT statement FROM written GROUP BY 1 ORDER BY min(number)";
    // The first ones had no stored offset to update, and some have an earlier time for an existing task.
    assert_eq!(by_few.rows(select).await, [row(&["COPY"]), row(&["WITH"])]);
    for other in [&mariadb, &postgres, &by_few] {
        let (left, right) = (sqlite.contents().await, other.contents().await);
        for (left, right) in left.iter().zip(&right) {
            assert!(!left.is_empty());
            for (left, right) in left.iter().zip(right) {
                assert_eq!(left, right);
            }
            assert_eq!(left.len(), right.len());
        }
    }
    let bits = |values: Vec<Option<f64>>| {
        values
            .into_iter()
            .map(|value| value.map(f64::to_bits))
            .collect::<Vec<_>>()
    };
    for other in [&mariadb, &postgres, &by_few] {
        let (left, right) = (sqlite.progress().await, other.progress().await);
        assert_eq!(bits(left), bits(right));
        let compare = [
            "diff",
            &sqlite.database_url,
            &other.database_url,
            "--events-topic",
            &sqlite.events,
        ];
        sqlite.ask(&compare); // code 0: equal
    }
}
