//! OpenLineage's own clients, by their HTTP transport, to `producer listen`.

use std::time::Duration;

use service::testing::stopping::BlockableProxy;
use service::testing::{service, until};

use crate::listen::Listening;
use crate::openlineage::{assert_runs_of_client, start_client};
use crate::support::Reports;

const WITHIN: Duration = Duration::from_secs(60);
/// The checksum of `secret`.
const TOKENS: &str =
    "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b engine\n";

/// `timeout`: the client's setting of a limit that is longer than the server's own.
async fn events_arrive(name: &str, timeout: &str) {
    const RUNS: usize = 150;
    let Some(reports) = Reports::make("lineage-http").await else {
        return;
    };
    let Some(tool) = service("TEST_OPENLINEAGE_TOOL") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, TOKENS).unwrap();
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let mut listening = Listening::start(&[
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        proxy.address(),
        "--tokens",
        tokens.to_str().unwrap(),
        "-X",
        "message.timeout.ms=5000",
        "-X",
        "socket.timeout.ms=1000",
        // Java's client sends again once: Kafka has to be reached again within the time of a message.
        "-X",
        "reconnect.backoff.max.ms=500",
    ])
    .await;
    listening.until_ready().await;
    let origin = listening.origin.clone();
    let settings = |token: &str| {
        format!(
            "transport:\n  type: http\n  url: {origin}\n  compression: gzip\n  {timeout}\n  auth:\n    \
             type: api_key\n    apiKey: {token}\n"
        )
    };

    let stranger = tempfile::tempdir().unwrap();
    let mut refused = start_client(&tool, &[name, "1"], &settings("other"), stranger.path());
    assert!(!refused.ended().await.success());
    assert!(refused.log().contains("401"), "{}", refused.log());
    assert!(reports.by_task().is_empty());

    let runs = RUNS.to_string();
    let mut client = start_client(&tool, &[name, &runs], &settings("secret"), folder.path());
    let metric = |name: &str| {
        let (_, metrics) = listening.process.get("/metrics")?;
        let line = metrics.lines().find(|line| line.starts_with(name))?;
        line.rsplit_once(' ')?.1.parse::<f64>().ok()
    };
    let route = r#"{http_route="/api/v1/lineage""#;
    let acknowledged =
        format!(r#"taskrunning_received_reports_total{route},result="acknowledged"}}"#);
    let unacknowledged =
        format!(r#"taskrunning_received_reports_total{route},result="unacknowledged"}}"#);
    // Kafka is slow: some events are acknowledged after a second or more.
    for _ in 0..3 {
        let before = metric(&acknowledged).unwrap_or(0.0);
        until("events are acknowledged", WITHIN, async || {
            client.assert_running();
            metric(&acknowledged).filter(|count| *count > before)
        })
        .await;
        proxy.block();
        until("an event waits", WITHIN, async || {
            client.assert_running();
            metric("taskrunning_reports_waiting").filter(|count| *count > 0.0)
        })
        .await;
        proxy.open();
    }
    // Kafka is away for longer than the server waits, so the client has to send again.
    proxy.block();
    until("an event is refused", WITHIN, async || {
        metric(&unacknowledged).filter(|count| *count > 0.0)
    })
    .await;
    proxy.open();
    assert!(client.ended().await.success(), "{}", client.log());
    let mut told = reports.by_task();
    for reports in told.values_mut() {
        // One that was on its way when its time ran out may have arrived, too.
        reports.dedup();
    }
    assert_runs_of_client(&client.log(), RUNS, &told);
    let log = listening.stop().await;
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_event_of_openlineages_java_client_arrives_over_http_although_kafka_is_slow_or_away() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    events_arrive("java", "timeoutInMillis: 15000").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_event_of_openlineages_python_client_arrives_over_http_although_kafka_is_slow_or_away()
{
    let _alone = service::testing::alone(); // a real engine takes all cores
    events_arrive("python", "timeout: 15").await;
}
