//! `producer spark` against UIs and History Servers that misbehave as real ones do.

use std::time::Duration;

use crate::support::Reports;
use crate::support::spark::{Adapter, App, Behaviour, Spark, ended, job, says};
use schemas::TaskStatus;
use serde_json::json;
use service::testing::NOBODY;

const APP: &str = "app-1";

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_none_make_parts_null_warn_once_and_the_next_poll_goes_on() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let spark = Spark::start([App::new(APP, job("RUNNING", 0))]).await;
    let login = Spark::start([]).await;
    login.set(|state| {
        state.behaviour = says(
            "200 OK",
            "content-type: text/html\r\n",
            "<html>Log in</html>",
        )
    });
    // Its path begins as the API's does, so that the made-up server answers.
    let to_login = format!("location: {}/api/v1/applications/login\r\n", login.url);
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 900\r\nconnection: close\r\n\r\n[{\"jobId\": 0,";
    let faults = [
        (
            says(
                "200 OK",
                "content-type: text/html\r\n",
                "<html>loading</html>",
            ),
            "it answers with a page, not with JSON",
        ),
        (
            says("302 Found", &to_login, ""),
            "it answers with a page after a redirect to",
        ),
        (
            says("404 Not Found", "", "no such app: app-1"),
            "it answers 404: no such app: app-1",
        ),
        (
            says("503 Service Unavailable", "", "busy"),
            "it answers 503 Service Unavailable",
        ),
        (Behaviour::Fixed(cut.to_owned()), "its answer is cut short"),
    ];
    let mut adapter = Adapter::start(&reports, &["--url", &spark.url]);
    spark.polled().await;
    for (behaviour, warning) in &faults {
        spark.set(|state| state.next_behaviour = Some(behaviour.clone()));
        adapter.logs(warning).await;
        for _ in 0..3 {
            spark.polled().await;
        }
        spark.set(|state| state.next_behaviour = Some(Behaviour::Normal));
        spark.polled().await;
        spark.polled().await;
    }
    spark.complete(0, job("SUCCEEDED", 4));
    assert!(adapter.process.ended().await.success());

    let log = adapter.process.log();
    for (_, warning) in &faults {
        // One for the list of applications, one for the application's parts; and while the server changes, one for the parts
        // that have changed already.
        let warned = log.lines().filter(|line| line.contains(warning));
        let mut warned: Vec<&str> = warned.map(after_its_time).collect();
        let of_list = |line: &&&str| !line.contains("application app-1");
        assert!(warned.iter().filter(of_list).count() <= 1, "{log}");
        warned.sort_unstable();
        assert!(!warned.is_empty(), "nothing of {warning:?} in:\n{log}");
        let repeated = warned.windows(2).find(|two| two[0] == two[1]);
        assert_eq!(repeated, None, "{log}");
    }
    let received = &reports.by_task()[APP];
    let null = received
        .iter()
        .filter(|report| report.progress.is_none())
        .count();
    assert!(
        null >= faults.len(),
        "{null} null parts of {}",
        received.len()
    );
    assert_eq!(ended(received), [TaskStatus::Succeed]);
    let last = received.last().unwrap();
    assert_eq!(last.progress.as_ref().unwrap().progress, 1.0);
    assert!(
        log.contains(&format!("sent {} reports of 1 task\n", received.len())),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_refuses_connections_does_not_keep_others_from_being_reported() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let first = Spark::start([App::new("app-1", job("SUCCEEDED", 4))]).await;
    let second = Spark::start([App::new("app-2", job("FAILED", 3))]).await;
    let refused = format!("http://{NOBODY}");
    let urls = [
        "--url",
        &first.url,
        "--url",
        &refused,
        "--url",
        &second.url,
        "--give-up-after",
        "2s",
    ];
    let mut adapter = Adapter::start(&reports, &urls);
    adapter.logs(&format!("{refused} was never reached")).await;
    adapter.process.assert_running();
    first.polled().await;
    second.polled().await;
    first.complete(0, job("SUCCEEDED", 4));
    second.complete(0, job("FAILED", 3));
    // It says that something that was asked for was not done.
    assert_eq!(adapter.process.ended().await.code(), Some(1));
    let received = reports.by_task();
    assert_eq!(received.len(), 2);
    assert_eq!(ended(&received["app-1"]), [TaskStatus::Succeed]);
    assert_eq!(ended(&received["app-2"]), [TaskStatus::Failed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_answers_without_a_list_was_reached_though_it_is_gone_by_then() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let spark = Spark::start([App::new(APP, job("RUNNING", 2))]).await;
    spark.set(|state| state.list_fails = true);
    let urls = ["--url", &spark.url, "--give-up-after", "3s"];
    let mut adapter = Adapter::start(&reports, &urls);
    adapter.logs("it answers 503").await;
    spark.stop().await;
    assert_eq!(adapter.process.ended().await.code(), Some(1));
    let log = adapter.process.log();
    assert!(
        log.contains(" never listed its applications: it answers 503"),
        "{log}"
    );
    assert!(!log.contains("never reached"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_followed_to_the_history_server_and_its_end_is_reported_once() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let live = Spark::start([App::new(APP, job("RUNNING", 1))]).await;
    let history = Spark::start([]).await;
    let urls = ["--url", &live.url, "--history-url", &history.url];
    let mut adapter = Adapter::start(&reports, &urls);
    live.polled().await;
    let instance = live.url.trim_start_matches("http://").to_owned();
    live.stop().await;
    adapter.logs("nobody listens there").await;
    // It learns of the application, first of its log in progress, then of its end.
    history.set(|state| {
        state.apps = vec![App::new(APP, job("SUCCEEDED", 4))];
        state.behaviour = says("200 OK", "", "<html>loading</html>");
    });
    adapter.logs("it answers with a page").await;
    adapter.process.assert_running();
    history.set(|state| state.behaviour = Behaviour::Normal);
    history.polled_list(2).await;
    adapter.process.assert_running();
    history.complete(0, job("SUCCEEDED", 4));
    assert!(
        adapter.process.ended().await.success(),
        "{}",
        adapter.process.log()
    );

    let received = &reports.by_task()[APP];
    assert_eq!(ended(received), [TaskStatus::Succeed]);
    let last = received.last().unwrap();
    assert!(received.is_sorted_by(|a, b| a.sequence < b.sequence));
    assert_eq!(
        last.engine.instance, instance,
        "the engine is the one that ran it"
    );
    let part = last.progress.as_ref().unwrap();
    assert_eq!(
        (part.progress, part.progress_info[0].succeed_tasks),
        (1.0, 4)
    );
    let held = &last.resource.as_ref().unwrap().applications[APP];
    assert_eq!(
        (held.job_status.as_str(), held.queue_memory),
        ("COMPLETED", 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_servers_completed_applications_are_reported_once_each_and_that_is_all() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let history = Spark::start([App::new(APP, job("FAILED", 3)).completed()]).await;
    let mut adapter = Adapter::start(&reports, &["--url", &history.url]);
    assert!(adapter.process.ended().await.success());
    let received = &reports.by_task()[APP];
    assert_eq!(
        (received.len(), ended(received)),
        (1, vec![TaskStatus::Failed])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_application_on_the_same_port_ends_the_one_before_it() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let spark = Spark::start([App::new("app-1", job("SUCCEEDED", 4))]).await;
    let urls = ["--url", &spark.url, "--give-up-after", "3s"];
    let mut adapter = Adapter::start(&reports, &urls);
    spark.polled().await;
    spark.set(|state| state.apps = vec![App::new("app-2", job("RUNNING", 1))]);
    adapter
        .logs("application app-1: its address does not list it")
        .await;
    spark.polled().await;
    spark.complete(0, job("SUCCEEDED", 4));
    // What was asked for was not done: app-1 has no end.
    assert_eq!(adapter.process.ended().await.code(), Some(1));
    let log = adapter.process.log();
    let open = "how app-1 ended is not known; --history-url names a History Server that can tell";
    assert!(log.contains(open), "{log}");
    let received = reports.by_task();
    assert_eq!(
        ended(&received["app-1"]),
        [TaskStatus::Unknown],
        "that its jobs succeeded does not say that it did"
    );
    let last = received["app-1"].last().unwrap();
    assert_eq!(last.progress.as_ref().unwrap().progress, 1.0);
    assert_eq!(ended(&received["app-2"]), [TaskStatus::Succeed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_that_a_history_server_lists_last_are_followed_to_their_end() {
    const COMPLETED: usize = 1_200;
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let done = |i| App::new(&format!("done-{i}"), job("SUCCEEDED", 4)).completed();
    // The end of one that runs counts as -1: Spark sorts it behind all that have ended.
    let running = App::new("last", job("SUCCEEDED", 4));
    let history = Spark::start((0..COMPLETED).map(done).chain([running])).await;
    let mut adapter = Adapter::start(&reports, &["--url", &history.url]);
    adapter.logs("application done-1199 has ended").await;
    history.polled_list(3).await;
    adapter.process.assert_running();
    history.complete(COMPLETED, job("SUCCEEDED", 4));
    assert!(adapter.process.ended().await.success());
    let received = reports.by_task();
    assert_eq!(received.len(), COMPLETED + 1);
    let (last, done): (Vec<_>, Vec<_>) = received.iter().partition(|(id, _)| *id == "last");
    for (id, received) in done {
        assert_eq!(
            (received.len(), ended(received)),
            (1, vec![TaskStatus::Succeed]),
            "{id}"
        );
    }
    let last = last[0].1;
    assert_eq!(ended(last), [TaskStatus::Succeed]);
    assert!(last.len() > 1, "it was reported while it ran");
    assert_eq!(last.last().unwrap().status, TaskStatus::Succeed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_server_that_restarts_ends_no_application() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let app = App::new(APP, job("SUCCEEDED", 2));
    let history = Spark::start([app.clone()]).await;
    let mut adapter = Adapter::start(&reports, &["--url", &history.url]);
    history.polled().await;
    let history = history
        .restart(async {
            adapter.logs("nobody listens there").await;
            // Longer than three refusals took, one in 50 ms.
            tokio::time::sleep(Duration::from_secs(2)).await;
        })
        .await;
    // It lists what it has read of its logs so far.
    let done = App::new("done", job("FAILED", 1)).completed();
    for apps in [vec![], vec![done.clone()]] {
        history.set(|state| state.apps = apps);
        history.polled_list(4).await;
        adapter.process.assert_running();
    }
    history.set(|state| state.apps = vec![done, app]);
    history.polled().await;
    history.complete(1, job("SUCCEEDED", 4));
    let ok = adapter.process.ended().await.success();
    assert!(ok, "{}", adapter.process.log());
    let received = reports.by_task();
    assert_eq!(ended(&received["done"]), [TaskStatus::Failed]);
    let received = &received[APP];
    assert_eq!(ended(received), [TaskStatus::Succeed]);
    assert!(received.is_sorted_by(|a, b| a.sequence < b.sequence));
    assert_eq!(received.last().unwrap().status, TaskStatus::Succeed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_was_given_up_is_taken_up_where_it_returns() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let (app, other) = (
        App::new(APP, job("RUNNING", 2)),
        App::new("other", job("RUNNING", 2)),
    );
    let history = Spark::start([app.clone(), other.clone()]).await;
    let urls = ["--url", &history.url, "--give-up-after", "3s"];
    let mut adapter = Adapter::start(&reports, &urls);
    history.polled().await;
    history.set(|state| state.apps = vec![other.clone()]);
    adapter
        .logs("application app-1: its address does not list it")
        .await;
    history.set(|state| state.apps = vec![app, other]);
    adapter.logs("tells of it again").await;
    history.polled().await;
    history.complete(0, job("SUCCEEDED", 4));
    history.complete(1, job("SUCCEEDED", 4));
    let ok = adapter.process.ended().await.success();
    assert!(ok, "{}", adapter.process.log());
    let received = &reports.by_task()[APP];
    assert_eq!(ended(received), [TaskStatus::Unknown, TaskStatus::Succeed]);
    let gone = received
        .iter()
        .position(|r| r.status == TaskStatus::Unknown);
    let gone = &received[gone.unwrap()];
    // As it was last known.
    let part = gone.progress.as_ref().unwrap();
    assert_eq!((part.progress, part.progress_info.len()), (0.5, 1));
    let held = &gone.resource.as_ref().unwrap().applications[APP];
    assert_eq!((held.job_status.as_str(), held.queue_cores), ("UNKNOWN", 2));
    // Not each number, since a report that waits for Kafka is replaced by a newer one.
    let sequences: Vec<i64> = received.iter().map(|report| report.sequence).collect();
    let is_replaced = adapter
        .process
        .log()
        .contains("newer reports replace unsent ones");
    let counts_on = (sequences[0] == 0 || is_replaced) && sequences.is_sorted_by(|a, b| a < b);
    assert!(
        counts_on,
        "each counts on from the one before: {sequences:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_only_the_list_fails_what_is_told_of_goes_on_to_its_end() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let quiet = App::new("quiet", job("RUNNING", 2));
    let history = Spark::start([App::new(APP, job("RUNNING", 2)), quiet]).await;
    let urls = ["--url", &history.url, "--give-up-after", "2s"];
    let mut adapter = Adapter::start(&reports, &urls);
    history.polled().await;
    history.set(|state| state.list_fails = true);
    adapter.logs("it answers 503").await;
    history.set(|state| state.apps[1].jobs = None);
    // The list was away for longer by then.
    adapter
        .logs("application quiet: nothing about it could be read")
        .await;
    for _ in 0..3 {
        history.polled().await;
    }
    adapter.process.assert_running();
    history.complete(0, job("SUCCEEDED", 4));
    // How the quiet one ended is not known.
    assert_eq!(adapter.process.ended().await.code(), Some(1));
    let log = adapter.process.log();
    assert!(log.contains("its list could not be read for 2s"), "{log}");
    let received = reports.by_task();
    assert_eq!(ended(&received[APP]), [TaskStatus::Succeed], "{log}");
    assert_eq!(ended(&received["quiet"]), [TaskStatus::Unknown], "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_application_whose_jobs_are_never_told_has_no_progress_and_no_end() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let mut app = App::new(APP, json!([])).completed();
    app.jobs = None;
    let history = Spark::start([app]).await;
    let urls = ["--url", &history.url, "--give-up-after", "2s"];
    let mut adapter = Adapter::start(&reports, &urls);
    assert_eq!(adapter.process.ended().await.code(), Some(1));
    let log = adapter.process.log();
    let why = "application app-1: Spark says that it has ended, and does not tell its jobs";
    assert!(log.contains(why), "{log}");
    let received = &reports.by_task()[APP];
    assert_eq!(ended(received), [TaskStatus::Unknown]);
    assert_eq!((received.len(), &received[0].progress), (1, &None));
    let metrics = received[0].metrics.as_ref();
    let counts = metrics.is_some_and(|metrics| metrics.contains_key("jobsFailed"));
    assert!(!counts, "no count of jobs is known: {metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_crashed_has_ended_once_there_is_a_newer_one() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    // Its event log has no end, so that it shows as not completed for ever.
    let mut app = App::new(APP, job("SUCCEEDED", 4));
    app.attempts = vec![(Some("1"), false)];
    let history = Spark::start([app]).await;
    let mut adapter = Adapter::start(&reports, &["--url", &history.url]);
    history.polled().await;
    history.set(|state| state.apps[0].attempts.insert(0, (Some("2"), false)));
    adapter.logs("application app-1/1 has ended").await;
    history.polled().await;
    adapter.process.assert_running();
    history.set(|state| state.apps[0].attempts[0].1 = true);
    assert!(adapter.process.ended().await.success());
    let received = reports.by_task();
    assert_eq!(ended(&received["app-1/1"]), [TaskStatus::Unknown]);
    assert_eq!(ended(&received["app-1/2"]), [TaskStatus::Succeed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_was_asked_for_and_is_never_listed_is_said_to_be_missing() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let done = |id| App::new(id, job("SUCCEEDED", 4)).completed();
    let history = Spark::start([done("app-1"), done("app-2")]).await;
    let mut urls = vec!["--url", &history.url, "--give-up-after", "2s"];
    urls.extend(["--app", "app-1", "--app", "app-3"]);
    let mut adapter = Adapter::start(&reports, &urls);
    assert_eq!(adapter.process.ended().await.code(), Some(1));
    let log = adapter.process.log();
    assert!(log.contains("no address listed app-3"), "{log}");
    let warnings = log.matches("no address lists app-3 of --app, waiting for it");
    assert_eq!(warnings.count(), 1, "{log}");
    let received = reports.by_task();
    assert_eq!(received.keys().collect::<Vec<_>>(), ["app-1"]);
    assert_eq!(ended(&received["app-1"]), [TaskStatus::Succeed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_by_a_signal_it_says_nothing_of_how_the_application_ended() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let spark = Spark::start([App::new(APP, job("RUNNING", 1))]).await;
    let adapter = Adapter::start(&reports, &["--url", &spark.url]);
    spark.polled().await;
    spark.polled().await;
    adapter.stop().await;
    let received = &reports.by_task()[APP];
    assert!(!received.is_empty());
    assert_eq!(ended(received), []);
}

/// A line of a log without its time.
fn after_its_time(line: &str) -> &str {
    line.split_once(' ').map_or(line, |(_, rest)| rest)
}
