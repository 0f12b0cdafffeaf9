//! The circuit breaker for events that the database refuses: each event counts once, independent of batches, and the
//! message on exit is accurate.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, Program, numbered, on_every_database};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use tokio::time::{Instant, MissedTickBehavior, interval};

on_every_database!(
    #[ignore = "heavy"]
    a_backlog_with_three_tenths_refused_is_stored_and_the_refused_become_letters,
    of_a_trickle_that_is_refused_nothing_is_set_aside_before_the_consumer_stops,
    #[ignore = "heavy"]
    a_consumer_stopped_by_slow_refused_events_reports_its_letters,
);

/// A database that refuses events from engines with a thousand tasks.
async fn pipeline(kind: Kind, partitions: i32) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, partitions).await?;
    pipeline.ask(&["migrate"]);
    let rule = match kind {
        Kind::Postgres | Kind::Mariadb => {
            "ALTER TABLE task_metrics ADD CONSTRAINT believable CHECK (engine_running_tasks < 1000)"
        }
        Kind::Sqlite => {
            "CREATE TRIGGER believable BEFORE INSERT ON task_metrics WHEN NEW.engine_running_tasks >= 1000 \
             BEGIN SELECT RAISE(ABORT, 'believable'); END"
        }
    };
    pipeline.execute(rule).await;
    Some(pipeline)
}

fn event(i: usize, is_refused: bool) -> Vec<u8> {
    let mut event = numbered(&strategies::sample_event(), i);
    if is_refused {
        event.info.engine.running_tasks = 1_000;
    }
    schemas::encode_event(&event).unwrap()
}

async fn a_backlog_with_three_tenths_refused_is_stored_and_the_refused_become_letters(kind: Kind) {
    const EVENTS: usize = 2_000;
    let Some(pipeline) = pipeline(kind, 4).await else {
        return;
    };
    let is_refused = |i: usize| i % 10 < 3;
    pipeline.fill(EVENTS, |i| event(i, is_refused(i)));
    let refused = (0..EVENTS).filter(|i| is_refused(*i));
    let refused: BTreeSet<(i32, i64)> = refused.map(|i| ((i % 4) as i32, (i / 4) as i64)).collect();
    // All events in one batch.
    let count = EVENTS.to_string();
    let together = ["--max-events", &count, "--commit-interval-ms", "20000"];
    let program = pipeline.program("consumer", &together);
    pipeline.until_all_stored(Duration::from_secs(240)).await;
    program.stop().await;
    pipeline.assert_each_once(&refused).await;
}

/// Sends an event every few milliseconds until the consumer stops, storing each good one before the next; returns their
/// number and the log.
async fn trickle(
    pipeline: &Pipeline,
    mut program: Program,
    most: usize,
    is_refused: impl Fn(usize) -> bool,
) -> (usize, String) {
    program.until_ready().await;
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .create()
        .unwrap();
    let mut ticks = interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0;
    while sent < most && program.process.status().is_none() {
        ticks.tick().await;
        let value = event(sent, is_refused(sent));
        let record = BaseRecord::to(&pipeline.events).key("key").payload(&value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        sent += 1;
        let stored = Pipeline::stored("progress");
        while !is_refused(sent - 1)
            && program.process.status().is_none()
            && pipeline.count(&stored).await < sent as i64
        {
            ticks.tick().await;
        }
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let begun = Instant::now();
    while program.process.status().is_none() {
        ticks.tick().await;
        let log = program.log();
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it did not stop\n{log}"
        );
    }
    (sent, program.needs_attention().await)
}

/// The number before these words.
fn number(log: &str, words: &str) -> i64 {
    let at = log
        .find(words)
        .unwrap_or_else(|| panic!("{words:?} is not in\n{log}"));
    let before = log[..at].trim_end().rsplit(' ').next();
    before.unwrap().parse().unwrap()
}

/// The consumer's account of its work is accurate.
async fn assert_told(pipeline: &Pipeline, log: &str) -> i64 {
    let letters = pipeline.read_letters().len() as i64;
    let stored = pipeline.count("SELECT count(*) FROM task_metrics").await;
    assert_eq!(number(log, " events and wrote"), stored, "{log}");
    assert_eq!(
        number(log, " dead letters; of partition 0"),
        letters,
        "{log}"
    );
    // Everything before that offset is a row or a letter.
    let words = "nothing is stored from offset ";
    let (_, offset) = log.split_once(words).unwrap();
    let offset: i64 = offset[..offset.find(' ').unwrap()].parse().unwrap();
    assert_eq!(offset, stored + letters, "{log}");
    letters
}

async fn of_a_trickle_that_is_refused_nothing_is_set_aside_before_the_consumer_stops(kind: Kind) {
    let Some(pipeline) = pipeline(kind, 1).await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    let (_, log) = trickle(&pipeline, program, 2_000, |_| true).await;
    assert!(log.contains("100 records in a row are unusable"), "{log}");
    // If the machine stalls for a second, the records read by then become letters.
    let letters = assert_told(&pipeline, &log).await;
    match letters {
        0 => assert!(log.contains("None of them became a dead letter"), "{log}"),
        letters => {
            assert!(letters < 100);
            assert_eq!(
                number(&log, " of them became dead letters"),
                letters,
                "{log}"
            );
        }
    }
}

async fn a_consumer_stopped_by_slow_refused_events_reports_its_letters(kind: Kind) {
    let Some(pipeline) = pipeline(kind, 1).await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    // At most three in a row, but five of every seven.
    let is_refused = |i: usize| !matches!(i % 7, 2 | 6);
    let (_, log) = trickle(&pipeline, program, 2_000, is_refused).await;
    assert!(log.contains("500 of the last "), "{log}");
    let letters = assert_told(&pipeline, &log).await;
    assert!((1..500).contains(&letters), "{letters}");
    assert_eq!(
        number(&log, " of them became dead letters"),
        letters,
        "{log}"
    );
}
