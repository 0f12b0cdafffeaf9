//! Many applications at a time: what is slow or gone delays no other, and a stop ends it all in time.

use std::time::{Duration, Instant};

use crate::support::polled::{self, WAIT};
use crate::support::spark::{Adapter, App, Spark, asked_for, ended, job};
use crate::support::{Reports, number_before};
use schemas::{TaskRunningInfo, TaskStatus};
use serde_json::json;
use service::testing::{ANY_PORT, until};

/// The longest time between two reports of a task that follow each other.
fn longest_gap(received: &[TaskRunningInfo]) -> Duration {
    let gaps = received.windows(2).map(|two| {
        let micros = two[1].reported_at - two[0].reported_at;
        Duration::from_micros(u64::try_from(micros).unwrap())
    });
    gaps.max().unwrap()
}

/// A newer report may have replaced one that was not sent yet.
fn assert_in_order(id: &str, received: &[TaskRunningInfo]) {
    let sequences: Vec<i64> = received.iter().map(|report| report.sequence).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{id}: {sequences:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_hundred_applications_that_take_a_fifth_of_a_second_are_each_reported_every_interval() {
    const APPLICATIONS: usize = 100;
    /// The default.
    const INTERVAL: Duration = Duration::from_secs(5);
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let app = |i| App::new(&format!("app-{i}"), job("RUNNING", 1));
    let app = |i| app(i).answering_in(Duration::from_millis(200));
    let spark = Spark::start((0..APPLICATIONS).map(app)).await;
    let adapter = Adapter::polling_every("5s", &reports, &["--url", &spark.url]);
    spark.polled_each(5, |_| true).await;
    adapter.stop().await;

    let received = reports.by_task();
    assert_eq!(received.len(), APPLICATIONS);
    let mut longest = Duration::ZERO;
    for (id, received) in &received {
        assert_in_order(id, received);
        longest = longest.max(longest_gap(received));
        // The fifth poll of some may have been under way.
        let (first, last) = (&received[0], received.last().unwrap());
        let polled = last.sequence - first.sequence;
        let micros = last.reported_at - first.reported_at;
        let mean = Duration::from_micros(u64::try_from(micros / polled).unwrap());
        assert!(mean < INTERVAL * 3 / 2, "{id}: {mean:?}");
    }
    println!("longest time between two reports of a task: {longest:?}");
    // One after the other they would take more than 20 s. The rest is for a busy machine.
    assert!(longest < 3 * INTERVAL, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_20_s_and_ten_whose_end_is_looked_up_delay_no_other() {
    const PROMPT: usize = 20;
    const GONE: usize = 10;
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let slow = Duration::from_secs(20);
    let app = |id: String| App::new(&id, job("RUNNING", 1));
    let mut apps = vec![app("slow".to_owned()).answering_in(slow)];
    apps.extend((0..PROMPT).map(|i| app(format!("prompt-{i}"))));
    let gone: Vec<App> = (0..GONE).map(|i| app(format!("gone-{i}"))).collect();
    apps.extend(gone.iter().cloned());
    let spark = Spark::start(apps).await;
    let history = Spark::start([]).await;
    history.set(|state| state.delay = slow);
    let urls = ["--url", &spark.url, "--history-url", &history.url];
    let limits = ["--polls", "2", "--give-up-after", "10m"];
    let adapter = Adapter::polling_every("1s", &reports, &[&urls[..], &limits].concat());
    spark.polled_each(2, |id| id != "slow").await;
    spark.set(|state| state.apps.retain(|app| !app.id.starts_with("gone")));
    history.polled_list(2).await;
    spark.polled_each(10, |id| id != "slow").await;

    // While it knows nothing of nine and is in trouble with the tenth, it says so once.
    history.set(|state| {
        let troubled = true;
        state.apps = vec![App {
            troubled,
            ..gone[0].clone()
        }];
        state.delay = Duration::ZERO;
    });
    adapter.logs("it answers 503").await;
    history.polled_list(3 * GONE).await;
    let log = adapter.process.log();
    let complaints = log.lines().filter(|line| line.contains("it answers 503"));
    assert_eq!(complaints.count(), 1, "{log}");

    // In the end each is reported.
    history.set(|state| {
        let ended = |app: App| {
            App {
                jobs: Some(job("SUCCEEDED", 4)),
                ..app
            }
            .completed()
        };
        state.apps = gone.into_iter().map(ended).collect();
    });
    for app in 0..=PROMPT {
        spark.complete(app, job("SUCCEEDED", 4));
    }
    let Adapter { mut process, .. } = adapter;
    assert!(process.ended().await.success(), "{}", process.log());
    let received = reports.by_task();
    assert_eq!(received.len(), 1 + PROMPT + GONE);
    let mut longest = Duration::ZERO;
    for (id, received) in &received {
        assert_in_order(id, received);
        assert_eq!(ended(received), [TaskStatus::Succeed], "{id}");
        if id.starts_with("prompt") {
            longest = longest.max(longest_gap(received));
        }
    }
    println!("longest time between two reports of a prompt task: {longest:?}");
    assert!(longest < slow / 2, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_polls_run_at_a_time_than_allowed_and_never_two_of_one_application() {
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let app = |i| App::new(&format!("app-{i}"), job("RUNNING", 1));
    let app = |i| app(i).answering_in(Duration::from_millis(300));
    let spark = Spark::start((0..40).map(app)).await;
    // The next poll is due long before one ends.
    let polls = ["--url", &spark.url, "--polls", "3"];
    let mut adapter = Adapter::start(&reports, &polls);
    spark.polled_each(2, |_| true).await;
    for i in 0..40 {
        spark.complete(i, job("SUCCEEDED", 4));
    }
    assert!(adapter.process.ended().await.success());
    let (most, most_of_one) = spark.state().most_polls;
    // Slow ones and lookups have a share of their own.
    assert!((2..=2 * 3).contains(&most), "{most}");
    assert_eq!(most_of_one, 1);
    for (id, received) in reports.by_task() {
        assert_in_order(&id, &received);
        assert_eq!(ended(&received), [TaskStatus::Succeed], "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_while_polls_are_under_way_it_ends_in_time_and_delivers_what_it_reported() {
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let app = |i| App::new(&format!("app-{i}"), job("RUNNING", 1));
    let spark = Spark::start((0..20).map(app)).await;
    let adapter = Adapter::start(&reports, &["--url", &spark.url]);
    spark.polled_each(3, |_| true).await;
    spark.set(|state| state.delay = Duration::from_secs(600));
    spark.polled().await;
    let signalled = Instant::now();
    let log = adapter.stop().await;
    let took = signalled.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}: {log}");
    let received = reports.by_task();
    assert_eq!(received.len(), 20);
    for (id, received) in &received {
        assert_in_order(id, received);
        assert_eq!(ended(received), [], "{id}");
    }
    let sent = log.lines().find(|line| line.starts_with("sent ")).unwrap();
    let total: usize = received.values().map(Vec::len).sum();
    let counts = ["reports", "tasks"].map(|word| number_before(sent, word));
    assert_eq!(counts, [total, 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stays_waits_for_new_applications_and_for_its_address() {
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let done = |id| App::new(id, job("SUCCEEDED", 4)).completed();
    let spark = Spark::start([done("app-1")]).await;
    let mut stay = vec!["--url", &spark.url, "--stay", "--give-up-after", "1s"];
    stay.extend(["--metrics-listen", ANY_PORT]);
    let mut adapter = Adapter::start(&reports, &stay);
    adapter.logs("waiting for new applications").await;
    spark.set(|state| state.apps.push(App::new("app-2", job("RUNNING", 1))));
    adapter.logs("following application app-2").await;
    spark.polled().await;
    adapter
        .measures("taskrunning_followed_applications 1")
        .await;
    spark.complete(1, job("FAILED", 1));
    adapter.logs("application app-2 has ended").await;
    adapter
        .measures("taskrunning_followed_applications 0")
        .await;
    for share in ["running", "other"] {
        let polls = format!("taskrunning_poll_duration_seconds_count{{share=\"{share}\"}}");
        adapter.measures(&polls).await;
    }
    let address = spark.url.trim_start_matches("http://").to_owned();
    // Longer than it waits for an address otherwise.
    let spark = spark
        .restart(async {
            adapter.logs("nobody listens there").await;
            asked_for(&address, Duration::from_secs(2)).await;
        })
        .await;
    spark.set(|state| state.apps.push(done("app-3")));
    adapter.logs("application app-3 has ended").await;
    adapter.process.assert_running();
    adapter.stop().await;
    let received = reports.by_task();
    for (id, status) in [
        ("app-1", TaskStatus::Succeed),
        ("app-2", TaskStatus::Failed),
        ("app-3", TaskStatus::Succeed),
    ] {
        assert_eq!(ended(&received[id]), [status], "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_a_file_gains_and_loses_are_followed_and_concluded() {
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let one = |id: &str| [App::new(id, job("RUNNING", 1))];
    let (stays, leaves, ends) = (
        Spark::start(one("stays")).await,
        Spark::start(one("leaves")).await,
        Spark::start(one("ends")).await,
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("urls");
    let write = |lines: &[&str]| std::fs::write(&file, lines.join("\n")).unwrap();
    write(&["# drivers", "ftp://node-1", &leaves.url]);
    let urls = ["--urls-file", file.to_str().unwrap(), "--stay"];
    let adapter = Adapter::start(&reports, &urls);
    adapter.logs("urls, line 2: ").await;
    adapter.logs("following application leaves").await;
    leaves.polled().await;

    // Without a History Server, nobody can say more.
    write(&[&stays.url, &ends.url]);
    adapter.logs("following application stays").await;
    adapter.logs("following application ends").await;
    adapter
        .logs("application leaves: its address was removed; how it ended, if it has, is not known")
        .await;
    ends.complete(0, job("SUCCEEDED", 4));
    adapter.logs("application ends has ended").await;

    // A file that cannot be read removes nothing, and an address that returns is followed again.
    std::fs::remove_file(&file).unwrap();
    adapter.logs("the content read before stays in use").await;
    stays.polled().await;
    write(&[&stays.url, &leaves.url]);
    adapter.logs("leaves: http").await;
    leaves.complete(0, job("FAILED", 1));
    adapter.logs("application leaves has ended").await;
    stays.polled().await;
    adapter.stop().await;
    let received = reports.by_task();
    assert_eq!(ended(&received["stays"]), []);
    assert_eq!(ended(&received["ends"]), [TaskStatus::Succeed]);
    let leaves = [TaskStatus::Unknown, TaskStatus::Failed];
    assert_eq!(ended(&received["leaves"]), leaves);
    for (id, received) in &received {
        assert_in_order(id, received);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_in_the_file_is_used_from_the_next_poll_on() {
    let spark = polled::Server::start().await;
    let attempt = json!({"completed": false, "sparkUser": "ada",
        "startTime": "2015-02-03T16:43:00.906GMT", "lastUpdated": "", "lastUpdatedEpoch": 0});
    let list = json!([{"id": "app-1", "name": "test", "attempts": [attempt]}]);
    let (path, jobs) = ("/api/v1/applications", "/api/v1/applications/app-1/jobs");
    spark.answers.json(path, list);
    spark.answers.json(jobs, json!([]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("urls");
    let write = |password: &str| {
        let with_password = spark.url.replace("//", &format!("//ada:{password}@"));
        // Of two lines with one address, the first counts.
        let without = &spark.url;
        std::fs::write(&file, format!("{with_password}\n{without}\n")).unwrap();
    };
    write("hunter2");
    let urls = ["--urls-file", file.to_str().unwrap(), "--stay"];
    let adapter = polled::Adapter::start("spark", &urls);
    // ada:hunter2, ada:hunter3
    for (password, sent) in [
        ("hunter2", "Basic YWRhOmh1bnRlcjI="),
        ("hunter3", "Basic YWRhOmh1bnRlcjM="),
    ] {
        write(password);
        until(&format!("{password} is sent"), WAIT, async || {
            let is_sent = |path| {
                let headers = spark.answers.headers(path)?;
                Some(headers.get("authorization")? == sent)
            };
            (is_sent(path)? && is_sent(jobs)?).then_some(())
        })
        .await;
    }
    let log = adapter.log();
    assert!(
        !log.contains("hunter") && !log.contains("was removed"),
        "{log}"
    );
    let reports = adapter.reports();
    assert!(reports.iter().all(|report| report.exec_id == "app-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_addresses_of_a_file_are_followed_within_64_mib() {
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let spark = Spark::start([App::new("app-1", job("RUNNING", 1))]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("urls");
    // Nobody listens at most of them.
    let mut lines: Vec<String> = (1..250).map(|i| format!("http://127.0.1.{i}:1")).collect();
    lines.push(spark.url.clone());
    std::fs::write(&file, lines.join("\n")).unwrap();
    let urls = ["--urls-file", file.to_str().unwrap(), "--stay"];
    let adapter = Adapter::polling_every("1s", &reports, &urls);
    adapter
        .logs("http://127.0.1.249:1: nobody listens there")
        .await;
    spark.polled().await;
    let peak = adapter.process.peak_memory_mib();
    adapter.stop().await;
    println!("at most {peak} MiB");
    assert!(peak < 64, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_an_application_whose_address_was_removed_is_asked_of_the_history_server() {
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let spark = Spark::start([App::new("app-1", job("RUNNING", 1))]).await;
    let history = Spark::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("urls");
    std::fs::write(&file, &spark.url).unwrap();
    let file_name = file.to_str().unwrap();
    let urls = ["--urls-file", file_name, "--history-url", &history.url];
    let mut adapter = Adapter::start(&reports, &urls);
    spark.polled().await;
    std::fs::write(&file, "").unwrap();
    history.polled_list(2).await;
    let ended_app = App::new("app-1", job("SUCCEEDED", 4)).completed();
    history.set(|state| state.apps.push(ended_app));
    let status = adapter.process.ended().await;
    let log = adapter.process.log();
    assert!(log.contains("was removed"), "{log}");
    // A file without addresses at the end is a mistake, unless the adapter stays.
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("urls has no address"), "{log}");
    let received = &reports.by_task()["app-1"];
    assert_eq!(ended(received), [TaskStatus::Succeed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_history_server_only_what_runs_can_be_reported() {
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    let done = App::new("done", job("SUCCEEDED", 4)).completed();
    let history = Spark::start([done, App::new("runs", job("RUNNING", 1))]).await;
    let urls = ["--url", &history.url, "--running-only"];
    let mut adapter = Adapter::start(&reports, &urls);
    history.polled().await;
    history.polled_list(2).await;
    history.complete(1, job("SUCCEEDED", 4));
    let status = adapter.process.ended().await;
    assert!(status.success(), "{}", adapter.process.log());
    let received = reports.by_task();
    assert_eq!(received.keys().collect::<Vec<_>>(), ["runs"]);
    assert_eq!(ended(&received["runs"]), [TaskStatus::Succeed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_lists_of_many_applications_at_a_time_are_read_within_96_mib() {
    const APPLICATIONS: usize = 16;
    const STAGES: usize = 2_000;
    let Some(reports) = Reports::make("spark-polls").await else {
        return;
    };
    // 8 MB an application, as Spark's own are: most of a stage is of no use here.
    let stage = format!(
        r#"{{"stageId": 1, "inputBytes": 7, "details": "{}"}}"#,
        "x".repeat(4_000)
    );
    let stages = format!("[{}]", vec![stage; STAGES].join(","));
    let mut app = App::new("", job("RUNNING", 1));
    app.stages = stages;
    let app = |i| App {
        id: format!("app-{i}"),
        ..app.clone()
    };
    let spark = Spark::start((0..APPLICATIONS).map(app)).await;
    let adapter = Adapter::polling_every("1s", &reports, &["--url", &spark.url]);
    spark.polled_each(2, |_| true).await;
    let peak = adapter.process.peak_memory_mib();
    adapter.stop().await;
    assert_eq!(reports.by_task().len(), APPLICATIONS);
    println!("at most {peak} MiB");
    assert!(peak < 96, "{peak} MiB");
}
