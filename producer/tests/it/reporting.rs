//! [`Reporter`], for engines written in Rust.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::Reports;
use crate::support::own_kafka::OwnKafka;
use producer::{Options, Part, Reporter, ReporterError, Stats, TaskSource};
use schemas::{EngineInstance, MetricValue, TaskProgressInfo, TaskStatus, topics};
use service::testing::{NOBODY, set_max_bytes, until};
use tokio::time::Instant;

fn engine() -> EngineInstance {
    EngineInstance {
        instance: "node-1:7077".into(),
        engine_type: "test".into(),
        user: "ada".into(),
        ticket_id: "ticket-1".into(),
        running_tasks: 0,
    }
}

fn quick(bootstrap: &str, topic: &str) -> Options {
    Options {
        topic: topic.to_owned(),
        first_after: Duration::from_millis(20),
        interval: Duration::from_millis(50),
        // What is well is fetched within this on a busy machine too.
        fetch_timeout: Duration::from_secs(5),
        ..Options::new(bootstrap)
    }
}

fn half_done() -> Part<TaskProgressInfo> {
    Ok(Some(TaskProgressInfo {
        progress: 0.5,
        progress_info: Vec::new(),
    }))
}

fn sound(stats: &Stats) -> bool {
    let Stats {
        made,
        delivered,
        replaced,
        dropped,
        lost,
        refused,
        waiting,
        ..
    } = *stats;
    made == delivered + replaced + dropped + lost + refused + waiting
}

#[test]
fn it_reports_first_after_a_second_and_then_every_five() {
    let options = Options::new("localhost:9092");
    assert_eq!(options.first_after, Duration::from_secs(1));
    assert_eq!(options.interval, Duration::from_secs(5));
}

/// A source whose parts fail each in its own way until it is well.
#[derive(Default)]
struct Ailing {
    asked: AtomicU32,
}

impl Ailing {
    const WELL_AFTER: u32 = 3;

    fn well(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > Self::WELL_AFTER
    }
}

impl TaskSource for Ailing {
    async fn status(&self) -> Part<TaskStatus> {
        let well = self.asked.fetch_add(1, Ordering::Relaxed) >= Self::WELL_AFTER;
        if well {
            Ok(None)
        } else {
            Err("the status is away".into())
        }
    }

    async fn progress(&self) -> Part<TaskProgressInfo> {
        half_done()
    }

    async fn resource(&self) -> Part<schemas::TaskResourceInfo> {
        if !self.well() {
            panic!("no resource");
        }
        Ok(Some(schemas::TaskResourceInfo::default()))
    }

    async fn metrics(&self) -> Part<BTreeMap<String, MetricValue>> {
        if !self.well() {
            std::future::pending::<()>().await;
        }
        Ok(Some(BTreeMap::new()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_cannot_be_fetched_is_null_and_the_others_go_out() {
    let Some(reports) = Reports::make("reporting").await else {
        return;
    };
    let reporter =
        Reporter::with_options(quick(&reports.bootstrap, &reports.topic), engine()).unwrap();
    let task = reporter.task("exec-1", "job-1", Ailing::default());
    until("it is well again", Duration::from_secs(120), async || {
        (reporter.stats().made > 5).then_some(())
    })
    .await;
    task.finish(TaskStatus::Succeed);
    let stats = reporter.close().await.unwrap();
    assert!(sound(&stats), "{stats:?}");
    let received = &reports.by_task()["exec-1"];
    assert_eq!(received.len() as u64, stats.delivered);
    let (last, before) = received.split_last().unwrap();
    assert_eq!(last.status, TaskStatus::Succeed);
    assert_eq!(last.sequence + 1, stats.made as i64);
    assert_eq!(last.engine.running_tasks, 0);
    assert!(last.progress.is_some() && last.resource.is_some() && last.metrics.is_some());
    for report in before {
        assert_eq!(report.status, TaskStatus::Running);
        assert_eq!(report.engine.running_tasks, 1);
        assert!(report.progress.is_some());
        if report.sequence < i64::from(Ailing::WELL_AFTER) {
            assert_eq!((&report.resource, &report.metrics), (&None, &None));
        }
    }
    // Status, resource and metrics of the first three, and what was asked while it got well.
    assert!((9..=12).contains(&stats.parts_failed), "{stats:?}");
}

struct Ends(AtomicU32);

impl TaskSource for Ends {
    async fn status(&self) -> Part<TaskStatus> {
        let asked = self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Some(if asked < 2 {
            TaskStatus::Scheduled
        } else {
            TaskStatus::Timeout
        }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_ends_by_what_its_source_says_and_one_that_is_dropped_keeps_its_last_status() {
    let Some(reports) = Reports::make("reporting").await else {
        return;
    };
    let reporter =
        Reporter::with_options(quick(&reports.bootstrap, &reports.topic), engine()).unwrap();
    let ends = reporter.task("ends", "job-1", Ends(AtomicU32::new(0)));
    drop(reporter.task("dropped", "job-1", ()));
    let open = reporter.task("open", "job-1", ());
    until("one has ended", Duration::from_secs(120), async || {
        let received = reports.by_task();
        let last = received.get("ends")?.last()?;
        last.status.is_final().then_some(())
    })
    .await;
    ends.finish(TaskStatus::Succeed);
    reporter.close().await.unwrap();
    drop(open);

    let received = reports.by_task();
    let statuses = |exec_id: &str| -> Vec<TaskStatus> {
        received[exec_id]
            .iter()
            .map(|report| report.status)
            .collect()
    };
    use TaskStatus::{Running, Scheduled, Timeout};
    // Before Kafka has answered for the first time, reports may be replaced.
    let ends = statuses("ends");
    let (last, before) = ends.split_last().unwrap();
    assert_eq!(*last, Timeout);
    assert!(before.len() <= 2 && before.iter().all(|status| *status == Scheduled));
    assert_eq!(statuses("dropped"), [Running]);
    assert!(statuses("open").iter().all(|status| *status == Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_is_away_nothing_waits_nothing_grows_and_closing_says_what_is_left() {
    let options = Options {
        queue_reports: 20,
        close_timeout: Duration::from_millis(300),
        interval: Duration::from_millis(5),
        ..quick(NOBODY, topics::TASK_RUNNING_INFO)
    };
    let reporter = Reporter::with_options(options, engine()).unwrap();
    let begun = Instant::now();
    let begin = |name: &str, count: usize| -> Vec<_> {
        (0..count)
            .map(|i| reporter.task(&format!("{name}-{i}"), "job-1", ()))
            .collect()
    };
    let first = begin("first", 10);
    assert!(begun.elapsed() < Duration::from_secs(1));
    let stats = until("much was replaced", Duration::from_secs(120), async || {
        let stats = reporter.stats();
        assert!(stats.waiting <= 20 && sound(&stats), "{stats:?}");
        // Each of the ten has a report that waits, and as many as are let have one on its way.
        (stats.replaced > 200 && stats.waiting == 10 + 5).then_some(stats)
    })
    .await;
    assert_eq!((stats.delivered, stats.dropped, stats.lost), (0, 0, 0));
    // More last reports than there is room for.
    for task in first.into_iter().chain(begin("second", 30)) {
        task.finish(TaskStatus::Failed);
    }

    let begun = Instant::now();
    let error = reporter.close().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    let ReporterError::Undelivered(left) = &error else {
        panic!("{error}");
    };
    assert!(sound(&left.stats), "{left:?}");
    // A quarter of the room is on its way to Kafka; the rest is full of last reports.
    let found = (left.stats.waiting, left.finals, left.stats.lost);
    assert_eq!(found, (20, 15, 25));
    let said = error.to_string();
    let begins = format!(
        "20 of {} reports (15 of them final) could not be delivered",
        left.stats.made
    );
    assert!(said.starts_with(&begins), "{said}");
    assert!(said.contains("Connection refused"), "{said}");
    assert!(said.contains("25 final reports found no room"), "{said}");
}

struct Halfway;

impl TaskSource for Halfway {
    async fn progress(&self) -> Part<TaskProgressInfo> {
        half_done()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn when_kafka_comes_back_the_newest_and_all_last_reports_arrive_and_the_gap_shows() {
    let Some(kafka) = OwnKafka::make() else {
        return;
    };
    let bootstrap = kafka.bootstrap();
    let reporter =
        Reporter::with_options(quick(&bootstrap, topics::TASK_RUNNING_INFO), engine()).unwrap();
    let ended = reporter.task("ended", "job-1", Halfway);
    let alive = reporter.task("alive", "job-1", Halfway);
    until("much was replaced", Duration::from_secs(120), async || {
        (reporter.stats().replaced > 20).then_some(())
    })
    .await;
    ended.finish(TaskStatus::Cancelled);
    let away = reporter.stats();
    assert_eq!(away.delivered, 0);

    let kafka = tokio::task::spawn_blocking(move || {
        kafka.start();
        kafka
    });
    let kafka = kafka.await.unwrap();
    until("reports arrive", Duration::from_secs(120), async || {
        (reporter.stats().delivered > 10).then_some(())
    })
    .await;
    alive.finish(TaskStatus::Succeed);
    let stats = reporter.close().await.unwrap();
    assert!(sound(&stats), "{stats:?}");
    assert_eq!(stats.delivered + stats.replaced, stats.made);

    let reports = Reports {
        bootstrap,
        topic: topics::TASK_RUNNING_INFO.to_owned(),
    };
    let received = reports.by_task();
    let delivered: usize = received.values().map(Vec::len).sum();
    assert_eq!(delivered as u64, stats.delivered);
    for (exec_id, status) in [
        ("ended", TaskStatus::Cancelled),
        ("alive", TaskStatus::Succeed),
    ] {
        let received = &received[exec_id];
        assert_eq!(received.last().unwrap().status, status);
        assert!(
            received.is_sorted_by(|a, b| a.sequence < b.sequence),
            "{received:?}"
        );
        let gap = received.last().unwrap().sequence + 1 - received.len() as i64;
        assert!(gap > 0, "what was replaced shows: {received:?}");
    }
    drop(kafka);
}

/// A source with so many bytes of metrics that no compression shrinks much.
struct Wordy(usize);

impl TaskSource for Wordy {
    async fn metrics(&self) -> Part<BTreeMap<String, MetricValue>> {
        let mut state = 88_172_645_463_325_252_u64;
        let text = (0..self.0).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'!' + (state % 90) as u8)
        });
        let text = MetricValue::String(text.collect());
        Ok(Some([("text".to_owned(), text)].into()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_can_never_fit_is_refused_at_once_and_evicts_nobody() {
    let options = Options {
        interval: Duration::from_secs(3_600),
        fetch_timeout: Duration::from_secs(120),
        ..quick(NOBODY, topics::TASK_RUNNING_INFO)
    };
    let reporter = Reporter::with_options(options, engine()).unwrap();
    let small: Vec<_> = (0..33)
        .map(|i| reporter.task(&format!("small-{i}"), "job-1", Wordy(900_000)))
        .collect();
    until("33 reports wait", Duration::from_secs(120), async || {
        (reporter.stats().waiting == 33).then_some(())
    })
    .await;
    // With the others it would be more than there is room for.
    let large = reporter.task("large", "job-1", Wordy(40 << 20));
    until("it is refused", Duration::from_secs(120), async || {
        (reporter.stats().refused == 1).then_some(())
    })
    .await;
    let stats = reporter.stats();
    assert_eq!((stats.waiting, stats.dropped, stats.lost), (33, 0, 0));
    assert!(sound(&stats), "{stats:?}");
    drop((small, large, reporter));
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_limit_is_read_a_report_above_kafkas_default_waits() {
    let options = Options {
        first_after: Duration::from_secs(3_600),
        ..quick(NOBODY, topics::TASK_RUNNING_INFO)
    };
    let reporter = Reporter::with_options(options, engine()).unwrap();
    let task = reporter.task("exec-1", "job-1", Wordy(1_500_000));
    task.finish(TaskStatus::Succeed);
    until("it is made", Duration::from_secs(120), async || {
        (reporter.stats().made == 1).then_some(())
    })
    .await;
    let stats = reporter.stats();
    assert_eq!((stats.waiting, stats.refused), (1, 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_report_that_only_a_raised_limit_lets_through_is_delivered() {
    let Some(reports) = Reports::make("reporting").await else {
        return;
    };
    let (bootstrap, topic) = (&reports.bootstrap, &reports.topic);
    set_max_bytes(bootstrap, topic, 2_097_152).await;
    let options = Options {
        first_after: Duration::from_secs(3_600),
        close_timeout: Duration::from_secs(120),
        ..quick(bootstrap, topic)
    };
    let reporter = Reporter::with_options(options, engine()).unwrap();
    let task = reporter.task("exec-1", "job-1", Wordy(1_500_000));
    task.finish(TaskStatus::Succeed);
    let stats = reporter.close().await.unwrap();
    assert_eq!((stats.delivered, stats.refused), (1, 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_refused_batch_only_the_report_that_cannot_fit_is_refused() {
    let Some(reports) = Reports::make("reporting").await else {
        return;
    };
    let options = Options {
        first_after: Duration::from_secs(3_600),
        close_timeout: Duration::from_secs(120),
        ..quick(&reports.bootstrap, &reports.topic)
    };
    let reporter = Reporter::with_options(options, engine()).unwrap();
    let first = reporter.task("first", "job-1", ());
    first.finish(TaskStatus::Succeed);
    until("it is connected", Duration::from_secs(120), async || {
        (reporter.stats().delivered == 1).then_some(())
    })
    .await;
    set_max_bytes(&reports.bootstrap, &reports.topic, 50_000).await;
    let tasks: Vec<_> = (0..42)
        .map(|i| {
            let bytes = if i == 20 { 200_000 } else { 20_000 };
            reporter.task(&format!("exec-{i}"), "job-1", Wordy(bytes))
        })
        .collect();
    for task in tasks {
        task.finish(TaskStatus::Succeed);
    }
    let Err(ReporterError::Undelivered(closed)) = reporter.close().await else {
        panic!("the large one was delivered");
    };
    let stats = closed.stats;
    assert_eq!(
        (stats.delivered, stats.refused, stats.waiting),
        (42, 1, 0),
        "{stats:?}"
    );
    assert!(sound(&stats), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_was_raised_lets_reports_through_that_were_refused_before() {
    let Some(reports) = Reports::make("reporting").await else {
        return;
    };
    set_max_bytes(&reports.bootstrap, &reports.topic, 50_000).await;
    let reporter =
        Reporter::with_options(quick(&reports.bootstrap, &reports.topic), engine()).unwrap();
    let task = reporter.task("exec-1", "job-1", Wordy(2_000_000));
    until("it is refused", Duration::from_secs(120), async || {
        (reporter.stats().refused > 0).then_some(())
    })
    .await;
    set_max_bytes(&reports.bootstrap, &reports.topic, 4_000_000).await;
    until("it is delivered", Duration::from_secs(120), async || {
        (reporter.stats().delivered > 0).then_some(())
    })
    .await;
    task.finish(TaskStatus::Succeed);
    let closed = reporter.close().await;
    assert!(
        matches!(closed, Err(ReporterError::Undelivered(_))),
        "{closed:?}"
    );
}
