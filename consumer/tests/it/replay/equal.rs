//! Replayed tables equal the live ones, however often the replay is interrupted.

use std::time::Duration;

use super::Replayed;
use crate::strategies;
use crate::support::{KINDS, Kind, numbered};
use jiff::Timestamp;
use service::testing::{add_partitions, until};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_replay_of_everything_equals_the_live_tables() {
    for kind in KINDS {
        let Some(replayed) = Replayed::make(kind, 3).await else {
            return;
        };
        let live = &replayed.live;
        // Routed events, so that there are commit markers, also at the ends.
        let (router, consumer) = (live.router(), live.consumer(&[]));
        let sample = strategies::sample_event();
        let mut stored = 0;
        for tens in 0..6 {
            let infos: Vec<_> = (tens * 40..(tens + 1) * 40)
                .map(|i| numbered(&sample, i).info)
                .collect();
            live.send_infos(&infos);
            stored += infos.len() as i64;
            live.until_count("SELECT count(*) FROM task_metrics", stored)
                .await;
        }
        router.stop().await;
        consumer.stop().await;

        let log = replayed.replays(&[]);
        for words in ["240 events", "240 rows of task_progress", &live.events] {
            assert!(log.contains(words), "{words} is not in\n{log}");
        }
        replayed.assert_equal().await;
        let of_live = live
            .rows(
                "SELECT CAST(first_offset AS text), CAST(next_offset AS text) FROM consumed_offset ORDER BY part, partition",
            )
            .await;
        let of_replay: Vec<_> = replayed
            .offsets()
            .await
            .into_iter()
            .map(|row| row[2..4].to_vec())
            .collect();
        assert_eq!(of_live, of_replay, "what both hold begins and ends alike");
        let again = replayed.replays(&[]);
        assert!(again.contains("0 events"), "{again}");
        replayed.assert_equal().await;
        // A consumer can take over a replayed database.
        let mut taken_over = replayed.into;
        taken_over.letters.clone_from(&live.letters);
        taken_over.send_events(&[sample]);
        let consumer = taken_over.consumer(&["--group", "taken-over"]);
        taken_over
            .until_count("SELECT count(*) FROM task_metrics", 241)
            .await;
        consumer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_replayed_and_only_the_same_range_continues_in_its_database() {
    for kind in KINDS {
        let Some(replayed) = Replayed::make(kind, 3).await else {
            return;
        };
        let sample = strategies::sample_event();
        replayed.live.fill_numbered(&sample, 300, 0);
        let to = ["--to", "offset:0=30,1=40"];
        let from = ["--from", "offset:0=10,1=20,2=0"];
        replayed.replays(&[from, to].concat());
        let numbers = |range: std::ops::Range<i64>| range.collect::<Vec<_>>();
        for table in ["task_progress", "task_resource", "task_metrics"] {
            assert_eq!(replayed.held(table, 0).await, numbers(10..30), "{table}");
            assert_eq!(replayed.held(table, 1).await, numbers(20..40), "{table}");
            assert_eq!(replayed.held(table, 2).await, [0; 0], "not in --to");
        }
        assert_eq!(replayed.spans().await, [(10, 30), (20, 40)]);

        let go_on = "--from offset:0=10,1=20 ";
        for (range, reasons) in [
            // A gap, a reversed range, a shorter one, one that omits a partition.
            (
                ["--from", "offset:0=9,1=20", "--to", "offset:0=50,1=50"],
                ["from offset 10", "begins at 9", "the event at 9"],
            ),
            (
                ["--from", "offset:0=11,1=20", "--to", "offset:0=50,1=50"],
                ["from offset 10", "begins at 11", go_on],
            ),
            (
                ["--from", "offset:0=10,1=20", "--to", "offset:0=29,1=50"],
                ["up to offset 30", "ends at 29", go_on],
            ),
            (
                ["--from", "offset:0=10", "--to", "latest"],
                ["partition 1", "offsets 20 to 40", go_on],
            ),
            (
                ["--from", "earliest", "--to", "latest"],
                ["from offset 10", "begins at 0", go_on],
            ),
        ] {
            replayed.is_refused(&range, &reasons).await;
        }
        for (range, reasons) in [
            (
                ["--from", "offset:0=40", "--to", "offset:0=30"],
                ["offset 40", "30", "after offset"],
            ),
            (
                ["--from", "offset:0=101", "--to", "latest"],
                ["offset 100", "101", "partition 0"],
            ),
            (
                ["--from", "offset:3=0", "--to", "latest"],
                ["no partition 3", "it has 3 partitions", "--from"],
            ),
        ] {
            replayed.is_refused_with(2, &range, &reasons).await;
        }
        // Continues, as suggested by the error.
        let log = replayed.replays(&["--from", "offset:0=10,1=20", "--to", "offset:0=50,1=1000"]);
        assert!(log.contains("ends at offset 100"), "{log}");
        assert_eq!(replayed.spans().await, [(10, 50), (20, 100)]);
        assert_eq!(replayed.held("task_metrics", 0).await, numbers(10..50));
        assert_eq!(replayed.held("task_metrics", 1).await, numbers(20..100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_times_is_that_of_the_events_written_then() {
    let Some(replayed) = Replayed::make(Kind::Sqlite, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    let mut times = Vec::new();
    for _ in 0..3 {
        replayed.live.fill_numbered(&sample, 20, 0);
        let written = Timestamp::now();
        // Record timestamps are in milliseconds.
        until(
            "the clock has moved on",
            Duration::from_secs(5),
            async || {
                (Timestamp::now().as_millisecond() > written.as_millisecond() + 1).then_some(())
            },
        )
        .await;
        times.push(Timestamp::now().to_string());
    }
    let log = replayed.replays(&["--from", &times[0], "--to", &format!("time:{}", times[1])]);
    assert!(log.contains("20 events"), "{log}");
    assert_eq!(replayed.spans().await, [(10, 20), (10, 20)]);
    replayed
        .is_refused(&["--from", &times[1]], &["from offset 10", "begins at 20"])
        .await;
    replayed.replays(&["--from", &times[0]]);
    assert_eq!(replayed.spans().await, [(10, 30), (10, 30)]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_replay_that_is_killed_again_and_again_stores_each_event_once() {
    // It is interrupted within its first few hundred events, and more than a thousand transactions remain: no
    // interruption comes too late.
    const EVENTS: usize = 9_000;
    const BETWEEN: i64 = 50;
    let small = ["--max-events", "5"];
    for kind in KINDS {
        let Some(replayed) = Replayed::make(kind, 3).await else {
            return;
        };
        let sample = strategies::sample_event();
        replayed.live.fill_numbered(&sample, EVENTS, 50);
        let good = (EVENTS - EVENTS / 50) as i64;
        for time in 1..=6 {
            let mut process = replayed.start(&format!("replay-{time}"), &small);
            until("it has stored more", Duration::from_secs(120), async || {
                process.assert_running();
                let stored = replayed
                    .into
                    .count("SELECT count(*) FROM task_metrics")
                    .await;
                (stored >= BETWEEN * time).then_some(())
            })
            .await;
            // The first time by a signal, in order.
            if time > 1 {
                process.kill();
                continue;
            }
            process.signal("TERM");
            let status = process.ended().await;
            let log = process.log();
            assert_eq!(status.code(), Some(0), "{log}");
            assert!(
                log.contains("run the same command again") && log.contains("stored up to"),
                "{log}"
            );
            let stored = replayed.into.count("SELECT count(*) FROM task_metrics");
            assert!(stored.await < good / 2, "it went on:\n{log}");
        }
        let log = replayed.replays(&[]);
        assert!(log.contains("continuing to"), "{log}");
        replayed.store_live().await;
        replayed.assert_equal().await;
        assert_eq!(
            replayed
                .into
                .count("SELECT count(*) FROM task_progress")
                .await,
            good
        );
        assert_eq!(replayed.spans().await, [(0, EVENTS as i64 / 3); 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_between_two_starts_are_replayed_from_their_beginnings() {
    for kind in KINDS {
        let Some(mut replayed) = Replayed::make(kind, 2).await else {
            return;
        };
        let sample = strategies::sample_event();
        replayed.live.fill_numbered(&sample, 100, 0);
        replayed.replays(&[]);
        add_partitions(&replayed.live.bootstrap, &replayed.live.events, 4).await;
        (replayed.live.partitions, replayed.into.partitions) = (4, 4);
        replayed.live.fill_numbered(&sample, 400, 0);
        replayed.replays(&[]);
        assert_eq!(
            replayed.spans().await,
            [(0, 150), (0, 150), (0, 100), (0, 100)]
        );
        replayed.into.assert_each_once(&[].into()).await;
    }
}
