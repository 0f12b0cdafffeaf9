//! A range of the events topic, rebuilt in another database by the real program: each event once,
//! however often the replay is killed, and nothing into a database that holds anything else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::strategies;
use crate::support::{BAD, Kind, Pipeline, numbered};
use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::{Process, Topic, add_partitions, create_topics, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const KINDS: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];

/// A pipeline, and a database to replay its events into.
struct Replayed {
    live: Pipeline,
    into: Pipeline,
}

/// How a replay ended, and everything that it said.
struct Ended {
    code: Option<i32>,
    said: String,
}

impl Replayed {
    async fn make(kind: Kind, partitions: i32) -> Option<Self> {
        let live = Pipeline::make(kind, partitions).await?;
        let mut into = Pipeline::make(kind, 1).await?;
        into.events.clone_from(&live.events);
        into.partitions = partitions;
        Some(Self { live, into })
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec![
            "replay",
            "--bootstrap-servers",
            &self.live.bootstrap,
            "--events-topic",
            &self.live.events,
            "--into",
            &self.into.database_url,
        ];
        arguments.extend(more);
        arguments
    }

    /// Runs a replay to its end.
    fn replay(&self, more: &[&str]) -> Ended {
        let output = Command::new(CONSUMER)
            .args(self.arguments(more))
            .output()
            .unwrap();
        Ended {
            code: output.status.code(),
            said: [output.stdout, output.stderr]
                .map(|said| String::from_utf8(said).unwrap())
                .concat(),
        }
    }

    /// A replay that does what it is to do; gives what it said.
    fn replays(&self, more: &[&str]) -> String {
        let Ended { code, said } = self.replay(more);
        assert_eq!(code, Some(0), "{more:?}: {said}");
        said
    }

    /// A replay that a person has to look after, that says all of this, and leaves the database alone.
    async fn is_refused(&self, more: &[&str], reasons: &[&str]) {
        self.is_refused_with(78, more, reasons).await;
    }

    /// The same with this exit code.
    async fn is_refused_with(&self, ends: i32, more: &[&str], reasons: &[&str]) {
        let before = (self.into.contents().await, self.offsets().await);
        let Ended { code, said } = self.replay(more);
        assert_eq!(code, Some(ends), "{more:?}: {said}");
        for reason in reasons {
            assert!(said.contains(reason), "{reason} is not in\n{said}");
        }
        assert!(
            before == (self.into.contents().await, self.offsets().await),
            "{more:?} changed the database"
        );
    }

    fn start(&self, name: &str, more: &[&str]) -> Process {
        let arguments = self.arguments(more);
        Process::start(self.into.folder(), name, Path::new(CONSUMER), &arguments)
    }

    /// Of each part and partition what is stored: first and next offset.
    async fn offsets(&self) -> Vec<Vec<Option<String>>> {
        self.into
            .rows(
                "SELECT part, CAST(partition AS text), CAST(first_offset AS text), CAST(next_offset AS text), group_id \
                 FROM consumed_offset ORDER BY part, partition",
            )
            .await
    }

    /// First and next offset of each partition, the same for all parts.
    async fn spans(&self) -> Vec<(i64, i64)> {
        let mut spans = Vec::new();
        for row in self.offsets().await {
            let number = |i: usize| row[i].as_deref().unwrap().parse::<i64>().unwrap();
            assert_eq!(row[4].as_deref(), Some("replay"));
            spans.push((number(2), number(3)));
        }
        let parts: Vec<_> = spans.chunks(spans.len() / 3).collect();
        assert!(parts.iter().all(|part| *part == parts[0]), "{spans:?}");
        parts[0].to_vec()
    }

    /// All of a pipeline's tables but the keys of tasks.
    async fn assert_equal(&self) {
        for (live, replayed) in self
            .live
            .contents()
            .await
            .iter()
            .zip(&self.into.contents().await)
        {
            assert_eq!(live.len(), replayed.len());
            for (live, replayed) in live.iter().zip(replayed) {
                assert_eq!(live, replayed);
            }
        }
        assert_eq!(self.live.progress().await, self.into.progress().await);
        let states = "SELECT exec_id, CAST(progress AS text) FROM task ORDER BY exec_id";
        assert_eq!(self.live.rows(states).await, self.into.rows(states).await);
    }

    /// The offsets of a partition's events in a table, as often as they are there.
    async fn held(&self, table: &str, partition: i32) -> Vec<i64> {
        let select = format!(
            "SELECT CAST(event_offset AS text) FROM {table} WHERE event_partition = {partition}"
        );
        let rows = self.into.rows(&select).await;
        let mut offsets: Vec<i64> = rows
            .iter()
            .map(|row| row[0].as_deref().unwrap().parse().unwrap())
            .collect();
        offsets.sort_unstable();
        offsets
    }

    async fn store_live(&self) {
        let program = self.live.program("live", &[]);
        self.live.until_all_stored(Duration::from_secs(120)).await;
        program.stop().await;
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.live.bootstrap)
            .create()
            .unwrap()
    }

    async fn delete_records(&self, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.live.events, partition, Offset::Offset(before))
            .unwrap();
        self.admin()
            .delete_records(&list, &options())
            .await
            .unwrap();
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_everything_equals_the_live_tables() {
    for kind in KINDS {
        let Some(replayed) = Replayed::make(kind, 3).await else {
            return;
        };
        let live = &replayed.live;
        // By a router, so that there are commit markers, also at the ends.
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

        let said = replayed.replays(&[]);
        for words in ["240 events", "240 rows of task_progress", &live.events] {
            assert!(said.contains(words), "{words} is not in\n{said}");
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
        // A consumer can take over what a replay has built.
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
async fn a_range_is_replayed_and_only_the_same_one_goes_on_in_its_database() {
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
            // A hole, the other way round, a shorter one, one that leaves a partition out.
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
                ["40", "30", "later than"],
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
        // Further, as it said.
        let said = replayed.replays(&["--from", "offset:0=10,1=20", "--to", "offset:0=50,1=1000"]);
        assert!(said.contains("ends at offset 100"), "{said}");
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
        // Records are stamped in milliseconds.
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
    let said = replayed.replays(&["--from", &times[0], "--to", &format!("time:{}", times[1])]);
    assert!(said.contains("20 events"), "{said}");
    assert_eq!(replayed.spans().await, [(10, 20), (10, 20)]);
    replayed
        .is_refused(&["--from", &times[1]], &["from offset 10", "begins at 20"])
        .await;
    replayed.replays(&["--from", &times[0]]);
    assert_eq!(replayed.spans().await, [(10, 30), (10, 30)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_again_and_again_stores_each_event_once() {
    // It is interrupted within its first few hundred, and what is then left is more than a thousand
    // transactions: no interruption can find it done.
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
            // The first time in order.
            if time > 1 {
                process.kill();
                continue;
            }
            process.signal("TERM");
            let status = process.ended().await;
            let log = process.log();
            assert_eq!(status.code(), Some(0), "{log}");
            assert!(
                log.contains("the same command again goes on") && log.contains("stored up to"),
                "{log}"
            );
            let stored = replayed.into.count("SELECT count(*) FROM task_metrics");
            assert!(stored.await < good / 2, "it went on:\n{log}");
        }
        let said = replayed.replays(&[]);
        assert!(said.contains("going on to"), "{said}");
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
async fn what_cannot_be_stored_is_skipped_and_told_and_no_letter_is_written() {
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
            Kind::Postgres => {
                "ALTER TABLE task_metrics ADD CONSTRAINT believable CHECK (engine_running_tasks < 1000)"
            }
        })
        .await;
        let sample = strategies::sample_event();
        // Every 20th is no event, every 50th is refused, the last of each partition too.
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
        let said = replayed.replays(&["--max-events", "300"]);
        let skipped = (0..1_000).filter(|i| is_bad(*i) || is_refused(*i)).count();
        for words in [
            format!("{skipped} records skipped"),
            format!("{} events", 1_000 - skipped),
            // Of the 7th and the 13th record.
            "0:3 UnknownFraming".to_owned(),
            "0:6 DatabaseRefused".to_owned(),
            "believable".to_owned(),
            format!("and {} more", skipped - 20),
        ] {
            assert!(said.contains(&words), "{words} is not in\n{said}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_holds_anything_else_is_left_as_it_is() {
    for kind in KINDS {
        let Some(mut replayed) = Replayed::make(kind, 1).await else {
            return;
        };
        let sample = strategies::sample_event();
        replayed.live.fill_numbered(&sample, 100, 0);
        replayed.store_live().await;
        replayed.replays(&[]);

        // A consumer's own, by whatever name.
        let own = replayed.into.database_url.clone();
        replayed
            .is_refused_with(2, &["--database-url", &own], &["--into", "--database-url"])
            .await;
        let into = std::mem::replace(
            &mut replayed.into.database_url,
            replayed.live.database_url.clone(),
        );
        let Ended { code, said } = replayed.replay(&[]);
        assert_eq!(code, Some(78), "{said}");
        assert!(
            said.contains(&format!("the consumer group {}", replayed.live.events)),
            "{said}"
        );
        replayed.into.database_url = into;

        // Another topic, though as like as can be.
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
        // The same name, but made anew: it has another id, and the last stored record is another one.
        replayed
            .into
            .execute(&format!("UPDATE consumed_offset SET topic = '{name}'"))
            .await;
        replayed
            .is_refused(&[], &["has the topic id", "made anew", "--into"])
            .await;
        replayed
            .into
            .execute("UPDATE consumed_offset SET topic_id = NULL")
            .await;
        replayed
            .is_refused(&[], &["offset 99", "made anew", "--into"])
            .await;
        replayed
            .into
            .execute("UPDATE consumed_offset SET next_offset = 300")
            .await;
        replayed
            .is_refused(&[], &["offset 200", "300", "made anew"])
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
async fn what_retention_removed_is_told_with_both_numbers_and_what_is_stored_goes_on() {
    let Some(replayed) = Replayed::make(Kind::Sqlite, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    replayed.live.fill_numbered(&sample, 200, 0);
    replayed.replays(&["--to", "offset:0=60"]);
    replayed.delete_records(0, 50).await;
    // It began at what was the earliest then, by both names.
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
    let Ended { code, said } = fresh.replay(&["--from", "offset:0=10"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(
        said.contains("offset 90") && said.contains("offset 10"),
        "{said}"
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
    // Little is fetched ahead, and the rest is thousands of transactions away.
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
        log.contains("begins at offset 7900 now") && log.contains("retention"),
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
