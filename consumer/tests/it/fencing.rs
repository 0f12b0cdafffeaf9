//! Consumers stall, are killed, join and leave: each event is stored once.

use std::time::{Duration, Instant};

use crate::strategies;
use crate::support::{KINDS, Kind, Pipeline, SERVERS, connect, numbered, on_every_database};
use service::testing::until;

on_every_database!(a_consumer_that_stood_still_past_its_session_writes_nothing);

/// Only servers serve several writers at once.
mod servers {
    use super::*;
    use crate::support::on_servers;

    on_servers!(
        #[ignore = "heavy"]
        consumers_that_are_stopped_at_any_moment_and_go_on_late_store_each_event_once,
        partitions_that_are_given_up_in_mid_batch_are_stored_first,
    );
}

/// It holds a batch with bad events that it would commit only after 15 s. It is stopped before that; another consumer
/// stores the partition's events; then it continues, with the commit due.
async fn a_consumer_that_stood_still_past_its_session_writes_nothing(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let short = ["-X", "session.timeout.ms=6000"];
    let slow = ["--commit-interval-ms", "15000", "--max-events", "1000000"];
    let mut stopped = pipeline.program("stopped", &[&short[..], &slow].concat());
    stopped.until_ready().await;
    pipeline.fill_numbered(&sample, 1_000, 100);
    let filled = Instant::now();
    stopped.until_it_holds(&pipeline.events, 1_000).await;
    stopped.process.signal("STOP");
    assert_eq!(pipeline.count("SELECT count(*) FROM task_metrics").await, 0);

    let other = pipeline.program("other", &short);
    pipeline.fill_numbered(&sample, 1_000, 100);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    let bad = pipeline.bad();
    pipeline.assert_each_once(&bad).await;
    until("its commit is due", Duration::from_secs(60), async || {
        (filled.elapsed() > Duration::from_secs(15)).then_some(())
    })
    .await;
    stopped.process.signal("CONT");
    // It either reports that it lost its partitions and continues, or exits with the cause.
    let recovered = stopped.recovers_or_ends().await;
    pipeline.fill_numbered(&sample, 1_000, 100);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.assert_each_once(&pipeline.bad()).await;
    if recovered {
        pipeline.until_stable(2).await;
        stopped.stop().await;
    }
    other.stop().await;
    pipeline.assert_each_once(&pipeline.bad()).await;
}

/// If the supervisor restarted the earlier one, both would fence each other in turn.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn the_earlier_of_two_consumers_with_one_identity_needs_an_operator_and_names_the_later() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    let twin = ["--instance-id", "twin", "-X", "session.timeout.ms=6000"];
    let mut earlier = pipeline.program("earlier", &twin);
    earlier.until_ready().await;
    let later = pipeline.program("later", &twin);
    let log = earlier.needs_attention().await;
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    for message in [
        "removed from the group",
        "127.0.0.1",
        "member twin-",
        "--instance-id",
    ] {
        assert!(last.contains(message), "{message:?} is not in: {last}");
    }
    pipeline.fill_numbered(&strategies::sample_event(), 100, 0);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    later.stop().await;
    pipeline.assert_each_once(&pipeline.bad()).await;
}

/// Stops may fall inside a transaction of the database or of Kafka.
async fn consumers_that_are_stopped_at_any_moment_and_go_on_late_store_each_event_once(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let short = ["-X", "session.timeout.ms=6000", "--max-events", "50"];
    let mut consumers = [
        Some(pipeline.program("consumer-0", &short)),
        Some(pipeline.program("consumer-1", &short)),
    ];
    for (number, consumer) in consumers.iter_mut().enumerate() {
        pipeline.fill_numbered(&sample, 3_000, 97);
        let some = pipeline.sent() - 2_000;
        pipeline
            .until_count(&Pipeline::stored("metrics"), some)
            .await;
        let stopped = consumer.as_mut().unwrap();
        stopped.process.signal("STOP");
        // The fault: 2 s longer than the session.
        tokio::time::sleep(Duration::from_secs(8)).await;
        stopped.process.signal("CONT");
        if !stopped.recovers_or_ends().await {
            let name = format!("consumer-{}", number + 2);
            *consumer = Some(pipeline.program(&name, &short));
        }
        pipeline.until_all_stored(Duration::from_secs(120)).await;
    }
    for consumer in consumers.into_iter().flatten() {
        consumer.stop().await;
    }
    pipeline.assert_each_once(&pipeline.bad()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn two_groups_that_store_the_same_parts_never_double_a_row() {
    for kind in KINDS {
        let Some(pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let sample = strategies::sample_event();
        let group = |name: &str| format!("{}-{name}", pipeline.events);
        let (one, two) = (group("one"), group("two"));
        let small = ["--max-events", "20"];
        let mut first = pipeline.program("one", &[&small[..], &["--group", &one]].concat());
        let mut second = pipeline.program("two", &[&small[..], &["--group", &two]].concat());
        // Both know that nothing is stored yet, so the later one detects the other.
        first.until_ready().await;
        second.until_ready().await;
        for _ in 0..10 {
            pipeline.fill_numbered(&sample, 200, 0);
        }
        pipeline.until_all_stored(Duration::from_secs(120)).await;
        pipeline.assert_each_once(&[].into()).await;
        until("they have met", Duration::from_secs(120), async || {
            let log = first.log() + &second.log();
            log.contains("another consumer stored these events")
                .then_some(())
        })
        .await;
        first.stop().await;
        second.stop().await;
    }
}

/// A third and a fourth consumer take partitions from two that hold batches for all of theirs: those store their
/// batches first, and never write to a partition they have lost.
async fn partitions_that_are_given_up_in_mid_batch_are_stored_first(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 8).await else {
        return;
    };
    let sample = strategies::sample_event();
    let slow = ["--commit-interval-ms", "5000", "--max-events", "1000000"];
    let mut consumers = vec![pipeline.program("consumer-1", &slow)];
    for members in 2..=4 {
        for consumer in &mut consumers {
            consumer.until_ready().await;
        }
        pipeline.fill_numbered(&sample, 1_600, 0);
        let name = format!("consumer-{members}");
        consumers.push(pipeline.program(&name, &slow));
        pipeline.until_stable(members).await;
    }
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.assert_each_once(&[].into()).await;
    for consumer in consumers {
        let log = consumer.log();
        assert!(
            !log.contains("another consumer stored these events"),
            "{log}"
        );
        consumer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_consumer_that_restarts_twenty_times_under_load_and_ten_times_idle_stores_each_event_once()
 {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let arguments = ["--instance-id", "c", "--max-events", "100"];
    for i in 0..20 {
        let program = pipeline.program(&format!("loaded-{i}"), &arguments);
        let before = pipeline.count(&Pipeline::stored("metrics")).await;
        pipeline.fill_numbered(&sample, 2_000, 0);
        pipeline
            .until_count(&Pipeline::stored("metrics"), before + 1)
            .await;
        program.stop().await;
    }
    let program = pipeline.program("last", &arguments);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;
    pipeline.assert_each_once(&[].into()).await;
    for i in 0..10 {
        let mut program = pipeline.program(&format!("idle-{i}"), &arguments);
        program.until_ready().await;
        program.stop().await;
    }
    pipeline.assert_each_once(&[].into()).await;
}

/// Any user may hold such a lock, one that only reads too.
#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_lock_of_the_first_offsets_is_named() {
    for kind in SERVERS {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let mut other = connect(&pipeline.database_url).await;
        let (lock, unlock, named, waits) = match kind {
            Kind::Mariadb => (
                "DO get_lock(concat('consumer first ', md5(database())), 0)",
                "DO release_all_locks()",
                "(user root@",
                "waits for the lock",
            ),
            _ => (
                "SET application_name = 'grafana'; BEGIN; SELECT pg_advisory_xact_lock(7022639402163274087)",
                "COMMIT",
                "(application \"grafana\", user ",
                "waits for the advisory lock",
            ),
        };
        other.run(lock).await.unwrap();
        pipeline.send_events(&[numbered(&strategies::sample_event(), 0)]);
        let program = pipeline.program("consumer", &[]);
        program.until_logged(named).await;
        assert_eq!(pipeline.count("SELECT count(*) FROM task").await, 0);
        other.run(unlock).await.unwrap();
        pipeline.until_count("SELECT count(*) FROM task", 1).await;
        let log = program.log();
        assert_eq!(log.matches(waits).count(), 1, "{log}");
        program.stop().await;
    }
}
