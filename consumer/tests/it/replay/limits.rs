//! What a replay omits, refuses, and stops at.

use std::time::Duration;

use super::{Ended, Replayed};
use crate::strategies;
use crate::support::{BAD, KINDS, Kind, numbered};
use service::testing::{Topic, create_topics, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_skips_and_reports_bad_events_and_writes_no_letters() {
    for kind in KINDS {
        let Some(replayed) = Replayed::make(kind, 2).await else {
            return;
        };
        let into = &replayed.into;
        into.ask(&["migrate"]);
        into.execute(match kind {
            Kind::Sqlite => {
                "CREATE TRIGGER believable BEFORE INSERT ON task_metrics WHEN NEW.engine_running_tasks >= 1000 \
                 BEGIN SELECT RAISE(ABORT, 'not believable'); END"
            }
            Kind::Postgres | Kind::Mariadb => {
                "ALTER TABLE task_metrics ADD CONSTRAINT believable CHECK (engine_running_tasks < 1000)"
            }
        })
        .await;
        let sample = strategies::sample_event();
        // Every 20th is no event, every 50th is refused, including the last one of each partition.
        let (is_bad, is_refused) = (|i: usize| i % 20 == 6, |i: usize| i % 50 == 12 || i >= 998);
        replayed.live.fill(1_000, |i| {
            let mut event = numbered(&sample, i);
            if is_refused(i) {
                event.info.engine.running_tasks = 5_000;
            }
            match is_bad(i) {
                true => BAD.to_vec(),
                false => schemas::encode_event(&event).unwrap(),
            }
        });
        let log = replayed.replays(&["--max-events", "300"]);
        let skipped = (0..1_000).filter(|i| is_bad(*i) || is_refused(*i)).count();
        for words in [
            format!("{skipped} records skipped"),
            format!("{} events", 1_000 - skipped),
            // For the 7th and the 13th record.
            "0:3 UnknownFraming".to_owned(),
            "0:6 DatabaseRefused".to_owned(),
            "believable".to_owned(),
            format!("and {} more", skipped - 20),
        ] {
            assert!(log.contains(&words), "{words} is not in\n{log}");
        }
        for partition in 0..2 {
            let good: Vec<i64> = (0..1_000)
                .filter(|i| i % 2 == partition && !is_bad(*i) && !is_refused(*i))
                .map(|i| i as i64 / 2)
                .collect();
            for table in ["task_progress", "task_metrics"] {
                assert_eq!(replayed.held(table, partition as i32).await, good);
            }
        }
        assert_eq!(replayed.spans().await, [(0, 500); 2]);
        assert!(replayed.live.read_letters().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_take_nothing_stop_a_replay() {
    let Some(replayed) = Replayed::make(Kind::Sqlite, 1).await else {
        return;
    };
    replayed.into.ask(&["migrate"]);
    replayed
        .into
        .execute(
            "CREATE TRIGGER closed BEFORE INSERT ON task_metrics BEGIN SELECT RAISE(ABORT, 'never'); END",
        )
        .await;
    replayed
        .live
        .fill_numbered(&strategies::sample_event(), 1_000, 0);
    replayed
        .is_refused(&[], &["100 records in a row", "never", "--into"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_database_that_holds_anything_else_is_left_as_it_is() {
    for kind in KINDS {
        let Some(mut replayed) = Replayed::make(kind, 1).await else {
            return;
        };
        let sample = strategies::sample_event();
        replayed.live.fill_numbered(&sample, 100, 0);
        replayed.store_live().await;
        replayed.replays(&[]);

        // The consumer's own database, under any name.
        let own = replayed.into.database_url.clone();
        replayed
            .is_refused_with(2, &["--database-url", &own], &["--into", "--database-url"])
            .await;
        let into = std::mem::replace(
            &mut replayed.into.database_url,
            replayed.live.database_url.clone(),
        );
        let Ended { code, log } = replayed.replay(&[]);
        assert_eq!(code, Some(78), "{log}");
        assert!(
            log.contains(&format!("the consumer group {}", replayed.live.events)),
            "{log}"
        );
        replayed.into.database_url = into;

        // A different topic that is as similar as possible.
        let name = format!("{}-other", replayed.live.events);
        let topic = Topic {
            name: &name,
            partitions: 1,
            settings: &[],
        };
        create_topics(&replayed.live.bootstrap, &[topic]).await;
        let events = std::mem::replace(&mut replayed.live.events, name.clone());
        replayed.live.fill_numbered(&sample, 200, 0);
        replayed
            .is_refused(&[], &["the topic", &events, &name])
            .await;
        // The same name, recreated: its id and its last stored record differ.
        replayed
            .into
            .execute(&format!("UPDATE consumed_offset SET topic = '{name}'"))
            .await;
        replayed
            .is_refused(&[], &["has the topic id", "recreated", "--into"])
            .await;
        replayed
            .into
            .execute("UPDATE consumed_offset SET topic_id = NULL")
            .await;
        replayed
            .is_refused(&[], &["offset 99", "recreated", "--into"])
            .await;
        replayed
            .into
            .execute("UPDATE consumed_offset SET next_offset = 300")
            .await;
        replayed
            .is_refused(&[], &["offset 200", "300", "recreated"])
            .await;
        replayed
            .into
            .execute("UPDATE consumed_offset SET cluster_id = 'elsewhere'")
            .await;
        replayed
            .is_refused(&[], &["the Kafka cluster elsewhere", "--into"])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_by_retention_is_reported_with_both_offsets_and_the_rest_is_read() {
    let Some(replayed) = Replayed::make(Kind::Sqlite, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    replayed.live.fill_numbered(&sample, 200, 0);
    replayed.replays(&["--to", "offset:0=60"]);
    replayed.delete_records(0, 50).await;
    // It began at the earliest offset of then, given by either name.
    replayed.replays(&["--to", "offset:0=70"]);
    replayed.replays(&["--from", "offset:0=0", "--to", "offset:0=80"]);
    assert_eq!(replayed.spans().await, [(0, 80)]);
    replayed
        .is_refused(&["--from", "offset:0=1"], &["from offset 0", "begins at 1"])
        .await;
    replayed.delete_records(0, 90).await;
    for from in ["earliest", "offset:0=0"] {
        replayed
            .is_refused(&["--from", from], &["offset 90", "up to 80", "retention"])
            .await;
    }
    let Some(mut fresh) = Replayed::make(Kind::Sqlite, 1).await else {
        return;
    };
    fresh.live.events.clone_from(&replayed.live.events);
    let Ended { code, log } = fresh.replay(&["--from", "offset:0=10"]);
    assert_eq!(code, Some(78), "{log}");
    assert!(
        log.contains("offset 90") && log.contains("offset 10"),
        "{log}"
    );
    fresh.replays(&[]);
    assert_eq!(fresh.spans().await, [(90, 200)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_overtakes_a_replay_ends_it_with_nothing_stored_from_behind_the_gap() {
    let Some(replayed) = Replayed::make(Kind::Sqlite, 1).await else {
        return;
    };
    replayed
        .live
        .fill_numbered(&strategies::sample_event(), 8_000, 0);
    // Little is prefetched, and thousands of transactions remain.
    let slowly = [
        "--max-events",
        "2",
        "-X",
        "queued.min.messages=1",
        "-X",
        "fetch.message.max.bytes=2000",
    ];
    let mut process = replayed.start("overtaken", &slowly);
    let stored = "SELECT count(*) FROM task_metrics";
    until("it has begun", Duration::from_secs(120), async || {
        process.assert_running();
        (replayed.into.count(stored).await > 0).then_some(())
    })
    .await;
    process.signal("STOP");
    replayed.delete_records(0, 7_900).await;
    process.signal("CONT");
    let status = process.ended().await;
    let log = process.log();
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(
        log.contains("now begins at offset 7900") && log.contains("retention"),
        "{log}"
    );
    let held = replayed.held("task_metrics", 0).await;
    let behind = held.iter().find(|offset| **offset >= held.len() as i64);
    assert_eq!(behind, None, "stored from behind the gap");
    assert_eq!(replayed.spans().await, [(0, held.len() as i64)]);
    replayed
        .is_refused(&[], &["offset 7900", &held.len().to_string()])
        .await;
}
