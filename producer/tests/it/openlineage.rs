//! `producer openlineage`: events in a topic, each one report, whatever happens meanwhile. Long because each fault and each
//! of OpenLineage's own clients has its test here.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use schemas::{MetricValue, TaskRunningInfo, TaskStatus, dead_letter};
use serde_json::{Value, json};
use service::kafka::header;
use service::testing::{
    Process, Topic, alter_topic, create_topics, kafka, read_all, service, set_max_bytes,
    topic_setting, unique, until,
};
use tempfile::TempDir;

use crate::support::text;
use TaskStatus::{Cancelled, Failed, Running, Succeed, Unknown};

const PRODUCER: &str = env!("CARGO_BIN_EXE_producer");

/// How long anything may take that a test waits for.
const WAIT: Duration = Duration::from_secs(120);

/// The topics of a test, and its group.
struct Lineage {
    bootstrap: String,
    events: String,
    reports: String,
    letters: String,
    folder: TempDir,
}

impl Lineage {
    /// `None`, and the test is to return, without a Kafka.
    async fn make(partitions: i32) -> Option<Self> {
        let bootstrap = kafka()?;
        let [events, reports, letters] =
            ["lineage", "lineage-reports", "lineage-letters"].map(unique);
        let new = [&events, &reports, &letters].map(|name| Topic {
            name,
            partitions,
            settings: &[],
        });
        create_topics(&bootstrap, &new).await;
        Some(Self {
            bootstrap,
            events,
            reports,
            letters,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn start(&self, name: &str) -> Process {
        self.start_with(name, &[])
    }

    fn start_with(&self, name: &str, more: &[&str]) -> Process {
        let arguments = self.arguments(name, more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Process::start(self.folder.path(), name, Path::new(PRODUCER), &arguments)
    }

    fn arguments(&self, name: &str, more: &[&str]) -> Vec<String> {
        let own = [
            "openlineage",
            "--from-topic",
            &self.events,
            "--topic",
            &self.reports,
            "--dead-letters-topic",
            &self.letters,
            "--group",
            &self.events,
            "--instance-id",
            name,
            "--bootstrap-servers",
            &self.bootstrap,
        ];
        own.iter().chain(more).map(|it| (*it).to_owned()).collect()
    }

    /// Writes events, in order, under the keys of OpenLineage's clients.
    async fn write(&self, events: &[String]) {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("message.max.bytes", "33554432")
            .set("enable.idempotence", "true")
            .create()
            .unwrap();
        let mut sent = Vec::new();
        for event in events {
            let key = key(event);
            let record = FutureRecord::to(&self.events).key(&key).payload(event);
            sent.push(
                producer
                    .send_result(record)
                    .map_err(|(error, _)| error)
                    .unwrap(),
            );
        }
        for sent in sent {
            sent.await.unwrap().unwrap();
        }
    }

    /// All reports, by run and in the order of the topic.
    fn told(&self) -> BTreeMap<String, Vec<TaskRunningInfo>> {
        let mut told: BTreeMap<String, Vec<TaskRunningInfo>> = BTreeMap::new();
        for record in read_all(&self.bootstrap, &self.reports) {
            let info = schemas::decode_info(record.payload()).unwrap();
            assert_eq!(record.key(), Some(info.exec_id.as_bytes()));
            told.entry(info.exec_id.clone()).or_default().push(info);
        }
        told
    }

    fn letters(&self) -> Vec<OwnedMessage> {
        read_all(&self.bootstrap, &self.letters)
    }

    /// Waits until there are this many reports, and returns them.
    async fn until_told(
        &self,
        adapters: &mut [Process],
        reports: usize,
    ) -> BTreeMap<String, Vec<TaskRunningInfo>> {
        until(&format!("{reports} reports"), WAIT, async || {
            for adapter in &mut *adapters {
                adapter.assert_running();
            }
            let told = self.told();
            (told.values().map(Vec::len).sum::<usize>() >= reports).then_some(told)
        })
        .await
    }
}

/// As OpenLineage's clients choose it: the root's, the parent's or the run's own job.
fn key(event: &str) -> String {
    let event: Value = serde_json::from_str(event).unwrap_or_default();
    let parent = &event["run"]["facets"]["parent"];
    let jobs = [&parent["root"]["job"], &parent["job"], &event["job"]];
    let job = jobs.into_iter().find(|job| job.is_object());
    job.map_or_else(String::new, |job| {
        let [namespace, name] =
            ["namespace", "name"].map(|it| job[it].as_str().unwrap_or_default());
        format!("run:{namespace}/{name}")
    })
}

fn event(run: &str, kind: &str, time: &str) -> String {
    let event = json!({
        "eventType": kind, "eventTime": time, "run": {"runId": run},
        "job": {"namespace": "shop", "name": format!("job-of-{run}")},
    });
    event.to_string()
}

fn statuses(reports: &[TaskRunningInfo]) -> Vec<TaskStatus> {
    reports.iter().map(|info| info.status).collect()
}

/// Each run's reports are numbered 0, 1, 2 …, in the order of the topic.
fn assert_each_once(told: &BTreeMap<String, Vec<TaskRunningInfo>>) {
    for (run, reports) in told {
        let sequences: Vec<i64> = reports.iter().map(|info| info.sequence).collect();
        assert!(
            sequences.iter().copied().eq(0..reports.len() as i64),
            "{run}: {sequences:?}"
        );
    }
}

fn inputs() -> Option<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/inputs/openlineage");
    if !folder.is_dir() {
        return None;
    }
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let mut events = Vec::new();
    for file in [
        "airflow.ndjson",
        "spark-complete.ndjson",
        "simple-run-event.ndjson",
    ] {
        events.extend(read(file).lines().map(str::to_owned));
    }
    for file in ["no_timezone", "without_schema_url", "large"] {
        let required = if file == "no_timezone" {
            "required_"
        } else {
            ""
        };
        events.push(read(&format!("marquez-event_{required}{file}.json")));
    }
    events.push(read("marquez-event_job_event.json"));
    events.push(read("marquez-event_dataset_event.json"));
    Some(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn real_events_arrive_each_once_and_a_dry_run_prints_the_same() {
    let Some(lineage) = Lineage::make(4).await else {
        return;
    };
    let Some(events) = inputs() else {
        eprintln!("skipped: ../shared/inputs/openlineage is absent");
        return;
    };
    lineage.write(&events).await;
    let mut adapters = [lineage.start("a")];
    let told = lineage.until_told(&mut adapters, 52).await;
    let [adapter] = adapters;
    assert!(adapter.stop().await.success());
    assert_each_once(&told);
    assert_eq!(told.len(), 16 + 7 + 4);
    let ended = |reports: &&Vec<TaskRunningInfo>| reports.iter().any(|info| info.status == Succeed);
    assert_eq!(told.values().filter(ended).count(), 16 + 7 + 3);
    assert_eq!(lineage.letters().len(), 0);

    let arguments = lineage.arguments("dry", &["--dry-run"]);
    let dry = std::process::Command::new(PRODUCER)
        .args(arguments)
        .output()
        .unwrap();
    assert!(dry.status.success(), "{}", text(&dry.stderr));
    let mut printed: BTreeMap<String, Vec<TaskRunningInfo>> = BTreeMap::new();
    for line in text(&dry.stdout).lines() {
        let info: TaskRunningInfo = serde_json::from_str(line).unwrap();
        printed.entry(info.exec_id.clone()).or_default().push(info);
    }
    assert_eq!(printed, told);
    assert!(text(&dry.stderr).contains("would have sent 52 reports, 0 dead letters"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_the_sequence_continues_and_a_second_end_does_not_win() {
    let Some(lineage) = Lineage::make(2).await else {
        return;
    };
    let first = [
        event("a", "START", "2026-03-01T10:00:00Z"),
        event("b", "START", "2026-03-01T10:00:00Z"),
        event("a", "COMPLETE", "2026-03-01T10:00:01Z"),
    ];
    lineage.write(&first).await;
    let mut adapters = [lineage.start("a")];
    lineage.until_told(&mut adapters, 3).await;
    let [adapter] = adapters;
    let log = adapter.log();
    assert!(adapter.stop().await.success(), "{log}");

    let second = [
        event("a", "FAIL", "2026-03-01T10:00:02Z"),
        event("b", "FAIL", "2026-03-01T10:00:02Z"),
        event("c", "FAIL", "2026-03-01T10:00:02Z"),
    ];
    lineage.write(&second).await;
    let mut adapters = [lineage.start("a")];
    let told = lineage.until_told(&mut adapters, 6).await;
    assert_each_once(&told);
    assert_eq!(statuses(&told["a"]), [Running, Succeed, Unknown]);
    assert_eq!(statuses(&told["b"]), [Running, Failed]);
    assert_eq!(statuses(&told["c"]), [Failed]);
    let [adapter] = adapters;
    assert!(adapter.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_a_dead_letter_and_the_rest_is_reported() {
    let Some(lineage) = Lineage::make(1).await else {
        return;
    };
    let events = [
        event("a", "START", "2026-03-01T10:00:00Z"),
        "{\"run\": {}}".to_owned(),
        event("a", "COMPLETE", "yesterday"),
        event("a", "COMPLETE", "2026-03-01T10:00:01Z"),
    ];
    lineage.write(&events).await;
    let mut adapters = [lineage.start("a")];
    let told = lineage.until_told(&mut adapters, 2).await;
    assert_eq!(statuses(&told["a"]), [Running, Succeed]);
    let letters = lineage.letters();
    let told_of: Vec<_> = letters
        .iter()
        .map(|letter| {
            let header = |name| header(letter, name).unwrap();
            assert_eq!(header(dead_letter::TOPIC), lineage.events);
            assert_eq!(header(dead_letter::CONNECTOR_NAME), "producer");
            assert_eq!(header(dead_letter::TASK_ID), "a");
            let offset: usize = header(dead_letter::OFFSET).parse().unwrap();
            assert_eq!(letter.payload(), Some(events[offset].as_bytes()));
            (offset, header(dead_letter::EXCEPTION_MESSAGE))
        })
        .collect();
    let expected = [
        (1, "job is missing"),
        (2, "eventTime yesterday is not a time as in RFC 3339"),
    ];
    assert_eq!(told_of, expected);
    let [adapter] = adapters;
    adapter.signal("TERM");
    let mut adapter = adapter;
    assert!(adapter.ended().await.success());
    let log = adapter.log();
    assert!(log.contains("sent 2 reports, 2 dead letters\n"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_something_else_stops_the_adapter_before_anything_is_set_aside() {
    let Some(lineage) = Lineage::make(1).await else {
        return;
    };
    let other: Vec<String> = (0..200).map(|n| format!("{{\"order\": {n}}}")).collect();
    lineage.write(&other).await;
    let mut adapter = lineage.start("a");
    assert_eq!(adapter.ended().await.code(), Some(78));
    let log = adapter.log();
    assert!(log.contains("100 records in a row are unusable"), "{log}");
    assert!(log.contains("it is not of OpenLineage"), "{log}");
    assert_eq!((lineage.told().len(), lineage.letters().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_committed_offset_an_adapter_that_may_not_begin_stops() {
    let Some(lineage) = Lineage::make(1).await else {
        return;
    };
    let mut adapter = lineage.start_with("a", &["--on-no-offset", "fail"]);
    assert_eq!(adapter.ended().await.code(), Some(78));
    let log = adapter.log();
    assert!(log.contains("has no committed offset for"), "{log}");
}

/// The runs of an aborted transaction are what they were before it.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_aborted_transactions_are_reported_once_when_one_commits() {
    let Some(lineage) = Lineage::make(2).await else {
        return;
    };
    let before = topic_setting(&lineage.bootstrap, &lineage.reports, "max.message.bytes").await;
    let mut adapters = [lineage.start("a")];
    lineage
        .write(&[event("a", "START", "2026-03-01T10:00:00Z")])
        .await;
    lineage.until_told(&mut adapters, 1).await;
    set_max_bytes(&lineage.bootstrap, &lineage.reports, 100).await;
    let events =
        ["RUNNING", "COMPLETE", "FAIL"].map(|kind| event("a", kind, "2026-03-01T10:00:01Z"));
    lineage.write(&events).await;
    lineage
        .write(&[event("b", "COMPLETE", "2026-03-01T10:00:01Z")])
        .await;
    until("transactions abort", WAIT, async || {
        adapters[0].assert_running();
        adapters[0]
            .log()
            .contains("aborted, reading them again")
            .then_some(())
    })
    .await;
    alter_topic(
        &lineage.bootstrap,
        &lineage.reports,
        "max.message.bytes",
        &before,
    )
    .await;
    let told = lineage.until_told(&mut adapters, 5).await;
    assert_each_once(&told);
    assert_eq!(statuses(&told["a"]), [Running, Running, Succeed, Unknown]);
    assert_eq!(statuses(&told["b"]), [Succeed]);
    let [adapter] = adapters;
    assert!(adapter.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_23_megabytes_is_reported() {
    let Some(lineage) = Lineage::make(1).await else {
        return;
    };
    set_max_bytes(&lineage.bootstrap, &lineage.events, 33_554_432).await;
    let plan = "x".repeat(23_347_619);
    let large = event("a", "COMPLETE", "2026-03-01T10:00:00Z");
    let large = large.replace(
        "\"run\":{",
        &format!("\"run\":{{\"facets\":{{\"spark.logicalPlan\":\"{plan}\"}},"),
    );
    // Too large for a letter with its value.
    let bad = large.replace("2026-03-01T10:00:00Z", "yesterday");
    lineage
        .write(&[
            large,
            bad.clone(),
            event("a", "START", "2026-03-01T10:00:00Z"),
        ])
        .await;
    let mut adapters = [lineage.start("a")];
    let told = lineage.until_told(&mut adapters, 2).await;
    assert_eq!(statuses(&told["a"]), [Succeed, Running]);
    let letters = lineage.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].payload(), None);
    let omitted = header(&letters[0], dead_letter::OMITTED_VALUE_BYTES);
    assert_eq!(omitted, Some(bad.len().to_string().as_str()));
    let [adapter] = adapters;
    assert!(adapter.stop().await.success());
}

/// The runs' events are written while adapters join, leave and are killed.
#[tokio::test(flavor = "multi_thread")]
async fn adapters_that_are_killed_and_that_join_report_each_event_once_and_in_order() {
    const RUNS: usize = 300;
    const KINDS: [&str; 5] = ["START", "RUNNING", "RUNNING", "COMPLETE", "FAIL"];
    let Some(lineage) = Lineage::make(4).await else {
        return;
    };
    let (mut a, mut b) = (Some(lineage.start("a")), None);
    let mut written = 0;
    for (round, kind) in KINDS.into_iter().enumerate() {
        for runs in (0..RUNS).collect::<Vec<_>>().chunks(100) {
            let time = format!("2026-03-01T10:00:0{round}Z");
            let events: Vec<String> = runs
                .iter()
                .map(|run| event(&format!("run-{run}"), kind, &time))
                .collect();
            lineage.write(&events).await;
            written += events.len();
        }
        // A member is killed in the middle of its work; the other takes over.
        match round {
            0 => b = Some(lineage.start("b")),
            1 => a.take().unwrap().kill(),
            2 => a = Some(lineage.start("a")),
            3 => b.take().unwrap().kill(),
            _ => {}
        }
    }
    let mut adapters: Vec<Process> = [a, b].into_iter().flatten().collect();
    let told = lineage.until_told(&mut adapters, written).await;
    for adapter in adapters {
        assert!(adapter.stop().await.success());
    }
    assert_each_once(&told);
    assert_eq!(told.len(), RUNS);
    for (run, reports) in &told {
        assert_eq!(
            statuses(reports),
            [Running, Running, Running, Succeed, Unknown],
            "{run}"
        );
    }
    let again = lineage.told();
    assert_eq!(again, told, "nothing came after the last");
}

/// Starts `deploy/openlineage/client`.
pub(crate) fn start_client(
    tool: &str,
    arguments: &[&str],
    settings: &str,
    folder: &Path,
) -> Process {
    let config = folder.join("openlineage.yml");
    std::fs::write(&config, settings).unwrap();
    let config = config.to_str().unwrap();
    let environment = [("OPENLINEAGE_CONFIG", config)];
    Process::start_with(folder, "client", Path::new(tool), arguments, &environment)
}

/// Runs `deploy/openlineage/client` to its end, and returns what it printed.
async fn client(tool: &str, arguments: &[&str], settings: &str, folder: &Path) -> String {
    let mut client = start_client(tool, arguments, settings, folder);
    assert!(client.ended().await.success(), "{}", client.log());
    client.log()
}

/// The reports of the runs that a client has sent, through the Kafka transport of these settings.
async fn clients_runs_arrive(name: &str, settings: impl FnOnce(&Lineage) -> String) {
    const RUNS: usize = 300;
    let Some(lineage) = Lineage::make(4).await else {
        return;
    };
    let Some(tool) = service("TEST_OPENLINEAGE_TOOL") else {
        return;
    };
    let mut adapters = [lineage.start("a")];
    let arguments = [name, &RUNS.to_string()];
    let said = client(
        &tool,
        &arguments,
        &settings(&lineage),
        lineage.folder.path(),
    )
    .await;
    let told = lineage.until_told(&mut adapters, 3 * RUNS).await;
    let [adapter] = adapters;
    assert!(adapter.stop().await.success());
    assert_runs_of_client(&said, RUNS, &told);
    assert_eq!(lineage.letters().len(), 0);
}

/// These are the reports of the events that a client has sent, by what it printed.
pub(crate) fn assert_runs_of_client(
    said: &str,
    runs: usize,
    told: &BTreeMap<String, Vec<TaskRunningInfo>>,
) {
    let sent = format!("sent {} events of {runs} runs of ", 3 * runs);
    let (_, parent) = said.split_once(&sent).expect(said);
    assert_each_once(told);
    assert_eq!(told.len(), runs);
    let mut ends: BTreeMap<TaskStatus, usize> = BTreeMap::new();
    let mut rows = 0;
    for reports in told.values() {
        assert_eq!(reports.len(), 3, "{reports:?}");
        assert_eq!(statuses(&reports[..2]), [Running, Running]);
        let last = &reports[2];
        *ends.entry(last.status).or_default() += 1;
        assert_eq!(last.job_id, parent.trim());
        assert_eq!(last.engine.instance, "clients");
        let metrics = last.metrics.as_ref().unwrap();
        let Some(MetricValue::Long(more)) = metrics.get("recordsOut") else {
            panic!("{metrics:?}")
        };
        rows += more;
        assert!(!json!(reports).to_string().contains("s3cr3t"));
    }
    let third = runs / 3;
    assert_eq!(
        ends,
        [(Succeed, third), (Failed, third), (Cancelled, third)].into()
    );
    assert_eq!(rows, (runs * (runs - 1) / 2) as i64);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_event_of_openlineages_java_client_is_one_report() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    let serializer = "org.apache.kafka.common.serialization.StringSerializer";
    clients_runs_arrive("java", |lineage| {
        let Lineage { bootstrap, events, .. } = lineage;
        format!(
            "transport:\n  type: kafka\n  topicName: {events}\n  properties:\n    bootstrap.servers: {bootstrap}\n    \
             key.serializer: {serializer}\n    value.serializer: {serializer}\n"
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_event_of_openlineages_python_client_is_one_report() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    clients_runs_arrive("python", |lineage| {
        let Lineage { bootstrap, events, .. } = lineage;
        format!(
            "transport:\n  type: kafka\n  topic: {events}\n  config:\n    bootstrap.servers: {bootstrap}\n  flush: false\n"
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_event_of_a_spark_application_with_openlineages_listener_is_one_report() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    let Some(lineage) = Lineage::make(4).await else {
        return;
    };
    let Some(tool) = service("TEST_OPENLINEAGE_TOOL") else {
        return;
    };
    let mut adapters = [lineage.start("a")];
    let folder = lineage.folder.path();
    let arguments = [
        "spark",
        &lineage.bootstrap,
        &lineage.events,
        folder.to_str().unwrap(),
    ];
    let said = client(&tool, &arguments, "", folder).await;
    assert!(
        said.contains("failed 1\n") && said.contains("wrote 1000 100\n"),
        "{said}"
    );
    let (_, application) = said.split_once("\napplication ").expect(&said);
    let application = application.lines().next().unwrap();

    let events = read_all(&lineage.bootstrap, &lineage.events);
    let told = lineage.until_told(&mut adapters, events.len()).await;
    let [adapter] = adapters;
    assert!(adapter.stop().await.success());
    assert_each_once(&told);
    assert_eq!(told.values().map(Vec::len).sum::<usize>(), events.len());
    // After the FAIL of the failed query, Spark sends a COMPLETE.
    let place = |info: &&TaskRunningInfo| (info.status.is_final(), info.reported_at, info.sequence);
    let newest = |reports: &'_ Vec<TaskRunningInfo>| reports.iter().max_by_key(place).cloned();
    let ends: Vec<TaskRunningInfo> = told.values().filter_map(newest).collect();
    let count = |status| ends.iter().filter(|info| info.status == status).count();
    assert_eq!(count(Failed), 1);
    assert_eq!(count(Succeed), ends.len() - 1);
    let rows = ends
        .iter()
        .filter_map(|info| info.metrics.as_ref()?.get("recordsOut"));
    let mut rows: Vec<&MetricValue> = rows.collect();
    rows.sort_by_key(|rows| format!("{rows:?}"));
    assert_eq!(rows, [&MetricValue::Long(100), &MetricValue::Long(1_000)]);
    // The listener does not always name the parent of a job of an RDD.
    let sql = MetricValue::String("SQL_JOB".to_owned());
    let queries: Vec<&TaskRunningInfo> = ends
        .iter()
        .filter(|info| {
            info.metrics
                .as_ref()
                .and_then(|metrics| metrics.get("jobType"))
                == Some(&sql)
        })
        .collect();
    assert_eq!(queries.len(), 3);
    for query in queries {
        assert_eq!(query.engine.ticket_id, application);
        assert_eq!(told[&query.job_id][0].engine.ticket_id, application);
    }
    assert!(ends.iter().all(|info| info.engine.engine_type == "spark"));
    assert!(!json!(ends).to_string().contains("s3cr3t"));
}
