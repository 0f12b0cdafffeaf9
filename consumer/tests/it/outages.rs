//! What passes by itself is waited for: nothing is lost, doubled or set aside, the consumer stays in
//! its group, and its operators can see what it waits for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::{Cluster, Kind, Pipeline, Program, SmallDisk, connect};
use crate::{strategies, support};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use service::testing::until;

/// A member that does not answer for so long is put out of its group.
const SHORT_POLL_INTERVAL: &[&str] = &[
    "-X",
    "max.poll.interval.ms=10000",
    "-X",
    "session.timeout.ms=6000",
];

/// A consumer that has stored a first part of its events.
async fn storing(pipeline: &Pipeline, program: Program, events: usize) -> Program {
    pipeline.fill_numbered(&strategies::sample_event(), events, 0);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program
}

/// What holds after every outage: the same member has stored each event once, has set nothing aside,
/// has said once that it waits and once that it goes on, and ends in order.
async fn nothing_happened(pipeline: &Pipeline, mut program: Program, members: &[String]) {
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.until_ready().await;
    // It is ready a little before it says so.
    program.until_logged("answers again").await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members.to_vec()));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    let log = program.log();
    let said = log
        .lines()
        .filter_map(|line| line.split_once(" waiting for "));
    let said: Vec<&str> = said.map(|(_, what)| what).collect();
    let kinds: BTreeSet<&str> = said.iter().copied().collect();
    assert!(
        !said.is_empty() && kinds.len() == said.len(),
        "said once per change:\n{log}"
    );
    assert_eq!(log.matches("answers again, after ").count(), 1, "{log}");
    program.stop().await;
}

/// An outage while events come in: waited for, told, survived.
async fn outlasts(
    pipeline: &Pipeline,
    program: Program,
    reason: &[&str],
    begin: impl AsyncFnOnce(),
    end: impl AsyncFnOnce(),
) {
    let mut program = storing(pipeline, program, 500).await;
    program.until_ready().await;
    let members = pipeline.until_stable(1).await;
    begin().await;
    pipeline.fill_numbered(&strategies::sample_event(), 2000, 0);
    program.until_waiting(reason).await;
    end().await;
    nothing_happened(pipeline, program, &members).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_postgresql_that_crashes_and_comes_back_is_waited_for() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 4, "").await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    outlasts(
        &pipeline,
        program,
        &["PostgreSQL 127.0.0.1:", pipeline.database()],
        async || cluster.crash(),
        async || cluster.start_again(),
    )
    .await;
}

/// 25 s of an outage, with 10 s in which a member has to poll and a session of 6 s.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn an_outage_longer_than_the_poll_interval_leaves_the_member_in_its_group() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 2, "").await else {
        return;
    };
    let program = pipeline.program("consumer", SHORT_POLL_INTERVAL);
    outlasts(
        &pipeline,
        program,
        &["PostgreSQL"],
        async || cluster.crash(),
        async || {
            // The fault is its length.
            let begun = Instant::now();
            let members = pipeline.until_stable(1).await;
            while begun.elapsed() < Duration::from_secs(25) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                assert_eq!(pipeline.members(), ("Stable".to_owned(), members.clone()));
            }
            cluster.start_again();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn sessions_that_are_ended_again_and_again_cost_no_row_and_make_none_double() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 4).await else {
        return;
    };
    let program = pipeline.program("consumer", &["--max-events", "200"]);
    let program = storing(&pipeline, program, 500).await;
    let members = pipeline.until_stable(1).await;
    for _ in 0..20 {
        pipeline.fill_numbered(&strategies::sample_event(), 300, 0);
        pipeline.end_sessions().await;
    }
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_is_read_only_for_a_while_is_waited_for() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 4).await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    let database = pipeline.database();
    outlasts(
        &pipeline,
        program,
        &["read-only"],
        async || {
            pipeline
                .administer(&format!(
                    "ALTER DATABASE {database} SET default_transaction_read_only = on"
                ))
                .await;
            pipeline.end_sessions().await;
        },
        async || {
            pipeline
                .administer(&format!(
                    "ALTER DATABASE {database} RESET default_transaction_read_only"
                ))
                .await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_without_a_connection_to_spare_is_waited_for() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 4).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let program = pipeline.program_on(&url, "consumer", &[]);
    let role = pipeline.database();
    outlasts(
        &pipeline,
        program,
        &["too many connections"],
        async || {
            pipeline
                .administer(&format!("ALTER ROLE {role} CONNECTION LIMIT 0"))
                .await;
            pipeline.end_sessions().await;
        },
        async || {
            pipeline
                .administer(&format!("ALTER ROLE {role} CONNECTION LIMIT -1"))
                .await;
        },
    )
    .await;
}

/// Waits until the consumer waits for a lock.
async fn until_blocked(pipeline: &Pipeline) {
    let blocked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'consumer' \
         AND wait_event_type = 'Lock'",
        pipeline.database()
    );
    pipeline.until_count(&blocked, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_a_deadlock_ends_is_written_again_each_row_once() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    for _ in 0..3 {
        // The consumer moves the offsets on, then waits for a task; we hold the task, then wait for
        // the offsets. Only the consumer's session looks for deadlocks, so that it is the one to end.
        let mut other = connect(&pipeline.database_url).await;
        let mut run = async |statement: &str| {
            other.run(statement).await.unwrap();
        };
        run("SET deadlock_timeout = '1h'").await;
        run("BEGIN; UPDATE task SET job_id = job_id WHERE exec_id = 'exec-05'").await;
        pipeline.fill_numbered(&sample, 500, 0);
        until_blocked(&pipeline).await;
        run("UPDATE consumed_offset SET group_id = group_id").await;
        run("COMMIT").await;
        pipeline.until_all_stored(Duration::from_secs(120)).await;
    }
    let deadlocks = format!(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = '{}'",
        pipeline.database()
    );
    // Its statistics come late.
    pipeline.until_count(&deadlocks, 3).await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_cannot_be_serialized_is_written_again_each_row_once() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    pipeline
        .administer(&format!(
            "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'",
            pipeline.database()
        ))
        .await;
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    for round in 1..=3 {
        let mut other = connect(&pipeline.database_url).await;
        let locks = "BEGIN; UPDATE consumed_offset SET group_id = group_id";
        other.run(locks).await.unwrap();
        pipeline.fill_numbered(&sample, 500, 0);
        until_blocked(&pipeline).await;
        other.run("COMMIT").await.unwrap();
        pipeline.until_all_stored(Duration::from_secs(120)).await;
        let failures = program.log().matches("could not serialize access").count();
        assert!(failures >= round, "the fault happened: {failures} times");
    }
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn where_one_of_two_transactions_fails_the_other_ones_events_are_stored_and_counted_once() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 100).await;
    // Three times, where a second transaction is open beside it. (A sequence is not rolled back.)
    pipeline
        .execute(
            "CREATE SEQUENCE failures; \
             CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'consumer' \
                   AND xact_start IS NOT NULL) > 1 AND nextval('failures') <= 3 THEN \
                 RAISE 'not now' USING ERRCODE = 'serialization_failure'; \
               END IF; RETURN NEW; END $$; \
             CREATE TRIGGER fail BEFORE INSERT ON task_metrics FOR EACH ROW \
               WHEN (NEW.event_partition = 0 AND NEW.event_offset % 100 = 0) EXECUTE FUNCTION fail()",
        )
        .await;
    // It says once what goes wrong, and each time where it reads on from.
    let failures = || program.log().matches("reading on from").count();
    let mut events = 100;
    // Only a batch of many is stored by two transactions, and how many there are at once is not ours to say.
    while failures() < 3 && events < 200_000 {
        pipeline.fill_numbered(&sample, 8_000, 0);
        events += 8_000;
        pipeline.until_all_stored(Duration::from_secs(120)).await;
    }
    let log = program.log();
    assert_eq!(failures(), 3, "the fault happened: {log}");
    assert_eq!(log.matches("the others are read again").count(), 1, "{log}");
    pipeline.assert_each_once(&BTreeSet::new()).await;
    let counted = [
        "messaging_client_consumed_messages_total{",
        "taskrunning_rows_total{db_collection_name=\"task_progress\"}",
        "taskrunning_rows_total{db_collection_name=\"task_metrics\"}",
    ];
    // It counts just after the commit that tells us that all is stored.
    until(
        "each is counted once",
        Duration::from_secs(60),
        async || {
            let (_, metrics) = program.process.get("/metrics")?;
            let of = |name: &&str| metrics.lines().find(|line| line.starts_with(*name));
            let all = counted
                .iter()
                .all(|name| of(name).is_some_and(|line| line.ends_with(&format!(" {events}"))));
            all.then_some(())
        },
    )
    .await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn where_statements_time_out_smaller_pieces_are_written() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    pipeline.fill_numbered(&strategies::sample_event(), 100, 0);
    let program = pipeline.program_on(&url, "consumer", &[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;
    // A millisecond a row, so that a batch of the backlog takes seconds.
    pipeline
        .execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$; \
             CREATE TRIGGER slowly BEFORE INSERT ON task_metrics FOR EACH ROW EXECUTE FUNCTION slowly()",
        )
        .await;
    let role = pipeline.database();
    pipeline
        .administer(&format!(
            "ALTER ROLE {role} SET statement_timeout = '200ms'"
        ))
        .await;
    pipeline.fill_numbered(&strategies::sample_event(), 4000, 0);
    let program = pipeline.program_on(&url, "consumer", &[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    assert!(
        program.log().contains("statement timeout"),
        "the fault happened"
    );
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_postgresql_is_waited_for() {
    let (Some(cluster), Some(disk)) = (Cluster::start(&[]), SmallDisk::mount(24 << 10)) else {
        return;
    };
    let small = disk.folder().join("tablespace");
    std::fs::create_dir(&small).unwrap();
    let owner = std::fs::metadata(cluster.folder()).unwrap();
    use std::os::unix::fs::MetadataExt;
    std::os::unix::fs::chown(&small, Some(owner.uid()), Some(owner.gid())).unwrap();
    support::execute(
        &cluster.url,
        &format!("CREATE TABLESPACE small LOCATION '{}'", small.display()),
    )
    .await;
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 4, "TABLESPACE small").await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    outlasts(
        &pipeline,
        program,
        &["No space left on device"],
        async || {
            disk.fill();
        },
        async || std::fs::remove_file(disk.folder().join("ballast")).unwrap(),
    )
    .await;
    drop(cluster); // before the disk that it uses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_sqlite_is_waited_for() {
    let Some(disk) = SmallDisk::mount(16 << 10) else {
        return;
    };
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    pipeline.database_url = format!("sqlite:{}", disk.folder().join("tasks.db").display());
    let program = pipeline.program("consumer", &[]);
    outlasts(
        &pipeline,
        program,
        &["full"],
        async || {
            disk.fill();
        },
        async || std::fs::remove_file(disk.folder().join("ballast")).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn an_sqlite_that_another_process_keeps_locked_is_waited_for_and_can_be_read_meanwhile() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    for _ in 0..4 {
        pipeline.fill_numbered(&sample, 500, 0);
        let mut other = connect(&pipeline.database_url).await;
        let mut run = async |statement: &'static str| {
            other.run(statement).await.unwrap();
        };
        run("PRAGMA busy_timeout = 10000").await;
        run("BEGIN IMMEDIATE; UPDATE task SET job_id = job_id").await;
        let before = pipeline.count("SELECT count(*) FROM task_metrics").await;
        pipeline.fill_numbered(&sample, 500, 0);
        // The fault is how long the lock is held.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(pipeline.ask(&["tasks", "--json"]).contains("exec-05"));
        let after = pipeline.count("SELECT count(*) FROM task_metrics").await;
        assert_eq!(after, before, "the lock was one");
        run("COMMIT").await;
    }
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

/// While the database is away for one consumer, another joins and takes half of its partitions.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_database_is_away_gives_partitions_up_to_one_that_can_store() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 4).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let role = pipeline.database();
    let first = pipeline.program_on(&url, "first", SHORT_POLL_INTERVAL);
    let mut first = storing(&pipeline, first, 500).await;
    pipeline
        .administer(&format!("ALTER ROLE {role} CONNECTION LIMIT 0"))
        .await;
    pipeline.end_sessions().await;
    pipeline.fill_numbered(&strategies::sample_event(), 2000, 0);
    first.until_waiting(&["too many connections"]).await;

    let mut second = pipeline.program("second", SHORT_POLL_INTERVAL);
    let members = pipeline.until_stable(2).await;
    // Two of four partitions are the second's, and it stores them to their ends.
    let ends = pipeline.ends();
    let stored =
        "SELECT CAST(partition AS bigint), next_offset FROM consumed_offset WHERE part = 'metrics'";
    until(
        "two partitions are stored",
        Duration::from_secs(120),
        async || {
            let mut connection = connect(&pipeline.database_url).await;
            let rows: Vec<(i64, i64)> = connection.rows(stored).await.unwrap();
            let done = rows
                .iter()
                .filter(|(p, next)| *next == ends[&(*p as i32)].1);
            (done.count() == 2).then_some(())
        },
    )
    .await;
    first.process.assert_running();
    pipeline
        .administer(&format!("ALTER ROLE {role} CONNECTION LIMIT -1"))
        .await;
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    first.until_ready().await;
    second.until_ready().await;
    assert_eq!(
        pipeline.until_stable(2).await,
        members,
        "nobody was put out"
    );
    // What the first gave up while it waited comes back to it, and is read on.
    second.stop().await;
    pipeline.fill_numbered(&strategies::sample_event(), 500, 0);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    first.stop().await;
}

/// While the database is away for all, any member that joins is answered.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_rebalance_during_an_outage_is_answered() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 4, "").await else {
        return;
    };
    let first = pipeline.program("first", SHORT_POLL_INTERVAL);
    let mut first = storing(&pipeline, first, 500).await;
    cluster.crash();
    pipeline.fill_numbered(&strategies::sample_event(), 2000, 0);
    first.until_waiting(&["PostgreSQL"]).await;
    let other: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("group.id", &pipeline.events)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("session.timeout.ms", "6000")
        .create()
        .unwrap();
    other.subscribe(&[&pipeline.events]).unwrap();
    until(
        "the other has two partitions",
        Duration::from_secs(120),
        async || {
            let _ = other.poll(Duration::from_millis(100));
            (other.assignment().unwrap().count() == 2).then_some(())
        },
    )
    .await;
    let (state, members) = pipeline.members();
    assert_eq!((state.as_str(), members.len()), ("Stable", 2));
    drop(other);
    cluster.start_again();
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.until_stable(1).await;
    first.until_ready().await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    first.stop().await;
}

/// One consumer that runs until the fault, and one that is started into it: both end for a person.
async fn ends_for_a_person(
    pipeline: &Pipeline,
    url: &str,
    reason: &[&str],
    fault: impl AsyncFnOnce(),
) {
    let program = pipeline.program_on(url, "running", &[]);
    let program = storing(pipeline, program, 200).await;
    fault().await;
    pipeline.fill_numbered(&strategies::sample_event(), 200, 0);
    let names = |log: &str| assert!(reason.iter().all(|word| log.contains(word)), "{log}");
    names(&program.needs_attention().await);
    names(
        &pipeline
            .program_on(url, "started", &[])
            .needs_attention()
            .await,
    );
    assert!(pipeline.read_letters().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_is_for_a_person() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let Some(pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let drop = match kind {
            Kind::Sqlite => "DROP VIEW task_metrics_history; DROP TABLE task_metrics",
            Kind::Postgres => "DROP TABLE task_metrics CASCADE",
        };
        ends_for_a_person(
            &pipeline,
            &pipeline.database_url,
            &["task_metrics"],
            async || {
                pipeline.execute(drop).await;
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_is_for_a_person() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let reason = ["permission denied for table task_metrics"];
    ends_for_a_person(&pipeline, &url, &reason, async || {
        let role = pipeline.database();
        pipeline
            .execute(&format!("REVOKE INSERT ON task_metrics FROM {role}"))
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_for_a_person_and_not_shown() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 2, "").await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let role = pipeline.database();
    let rules = cluster.folder().join("data/pg_hba.conf");
    let trusting = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(
        &rules,
        format!("host all {role} 127.0.0.1/32 scram-sha-256\n{trusting}"),
    )
    .unwrap();
    pipeline.administer("SELECT pg_reload_conf()").await;
    ends_for_a_person(
        &pipeline,
        &url,
        &["password authentication failed"],
        async || {
            pipeline
                .administer(&format!("ALTER ROLE {role} PASSWORD 'changed'"))
                .await;
            pipeline.end_sessions().await;
        },
    )
    .await;
    for name in ["running", "started"] {
        let log = std::fs::read_to_string(pipeline.folder().join(format!("{name}.log"))).unwrap();
        assert!(
            !log.contains(":right@") && !log.contains("changed"),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_exist_is_for_a_person() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    let absent = format!("{}_absent", pipeline.database_url);
    let log = pipeline
        .program_on(&absent, "consumer", &[])
        .needs_attention()
        .await;
    assert!(
        log.contains("_absent") && log.contains("does not exist"),
        "{log}"
    );
}
