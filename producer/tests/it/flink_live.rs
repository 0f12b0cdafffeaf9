//! `producer flink` against real Flink clusters, of the two generations that are in use.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::Value;
use service::address::Address;
use service::http::{HttpClient, HttpOptions, Method};
use service::testing::{Process, get, service, until};

use crate::support::Reports;

const WAIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn the_reports_of_jobs_of_flink_1_hold_what_its_own_rest_api_says() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    jobs_of(1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn the_reports_of_jobs_of_flink_2_hold_what_its_own_rest_api_says() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    jobs_of(2).await;
}

/// A cluster, and its jobs by kind.
struct Flink {
    process: Process,
    url: String,
    jobs: BTreeMap<String, String>,
}

impl Flink {
    async fn start(folder: &Path, tool: &str, generation: u8) -> Self {
        let kinds = ["batch", "endless", "throws", "fails"];
        let generation = generation.to_string();
        let arguments = [&[generation.as_str()][..], &kinds[..]].concat();
        let mut process = Process::start(folder, "flink", Path::new(tool), &arguments);
        let (url, jobs) = until("Flink has taken the jobs", WAIT, async || {
            process.assert_running();
            let log = process.log();
            let url = log.lines().find_map(|line| line.strip_prefix("rest "))?;
            let jobs = log.lines().filter_map(|line| line.strip_prefix("job "));
            let jobs: BTreeMap<String, String> = jobs
                .filter_map(|job| job.split_once(' '))
                .map(|(kind, id)| (kind.to_owned(), id.to_owned()))
                .collect();
            (jobs.len() == kinds.len()).then(|| (url.to_owned(), jobs))
        })
        .await;
        Self { process, url, jobs }
    }

    fn ask(&self, path: &str) -> Value {
        let port = self.url.rsplit_once(':').unwrap().1.parse().unwrap();
        let (status, body) = get(port, &format!("/v1{path}")).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        let json = body.find(['{', '[']).unwrap();
        serde_json::from_str(&body[json..]).unwrap()
    }

    async fn cancel(&self, job: &str) {
        let (base, _) = Address::http(&self.url).to_http().unwrap();
        let options = HttpOptions {
            response_timeout: WAIT,
            connect_timeout: WAIT,
            follow_redirects: false,
            user_agent: None,
            certificates: Vec::new(),
        };
        let client = HttpClient::new(base, None, options).unwrap();
        let request = client.request(Method::PATCH, ["v1", "jobs", job]);
        let response = client.send(request).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
    }
}

fn long(report: &TaskRunningInfo, name: &str) -> Option<i64> {
    match report.metrics.as_ref()?.get(name)? {
        MetricValue::Long(value) => Some(*value),
        other => panic!("{name} is {other:?}"),
    }
}

async fn jobs_of(generation: u8) {
    let (Some(reports), Some(tool)) = (
        Reports::make("flink-live").await,
        service("TEST_FLINK_TOOL"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let flink = Flink::start(folder.path(), &tool, generation).await;
    let arguments = ["flink", "--url", &flink.url, "--interval", "500ms"];
    let arguments = reports.arguments(&arguments);
    let program = Path::new(env!("CARGO_BIN_EXE_producer"));
    let mut producer = Process::start(folder.path(), "producer", program, &arguments);
    let job = |kind: &str| &flink.jobs[kind];

    until("the jobs are reported as they run", WAIT, async || {
        producer.assert_running();
        let received = reports.by_task();
        let any = |kind, is: fn(&TaskRunningInfo) -> bool| {
            received
                .get(job(kind))?
                .iter()
                .find(|report| is(report))
                .map(drop)
        };
        any("endless", |report| {
            long(report, "checkpointsCompleted") >= Some(2) && long(report, "recordsOut") > Some(0)
        })?;
        any("throws", |report| long(report, "restarts") == Some(2))?;
        any("batch", |report| report.status.is_final())?;
        any("fails", |report| report.status.is_final())
    })
    .await;
    flink.cancel(job("endless")).await;
    assert!(producer.ended().await.success(), "{}", producer.log());

    let received = reports.by_task();
    assert!(
        received.keys().eq(flink
            .jobs
            .values()
            .collect::<std::collections::BTreeSet<_>>())
    );
    for (kind, status) in [
        ("batch", TaskStatus::Succeed),
        ("endless", TaskStatus::Cancelled),
        ("throws", TaskStatus::Succeed),
        ("fails", TaskStatus::Failed),
    ] {
        let of_job = &received[job(kind)];
        for report in of_job {
            assert_eq!(report.problems(), []);
            assert_ne!(report.status, TaskStatus::Unknown, "{kind}: {report:?}");
            assert!(
                kind == "batch" || report.progress.is_none(),
                "{kind}: {report:?}"
            );
            let text = format!("{report:?}");
            assert!(!text.contains("customer-4711"), "{text}");
            assert!(
                !text.contains("Source:") && !text.contains("Keyed Reduce"),
                "{text}"
            );
        }
        assert!(of_job.is_sorted_by(|a, b| a.sequence < b.sequence));
        let (last, before) = of_job.split_last().unwrap();
        assert!(
            before.iter().all(|report| !report.status.is_final()),
            "{kind}"
        );
        assert_eq!(last.status, status, "{kind}");
        assert_equal_to_rest(last, &flink.ask(&format!("/jobs/{}", job(kind))));
    }

    // While they run, each holds slots of one core and of 16 MiB heap, 4 MiB managed and 6 MiB network memory.
    let slots = received.values().flatten().filter_map(|report| {
        let held = &report.resource.as_ref()?.applications[&report.job_id];
        (held.queue_instances > 0).then_some(held)
    });
    let slots: Vec<_> = slots.collect();
    assert!(!slots.is_empty());
    for held in slots {
        assert_eq!(held.queue_cores, held.queue_instances);
        assert_eq!(
            held.queue_memory,
            i64::from(held.queue_instances) * (26 << 20)
        );
    }

    let checkpoints = flink.ask(&format!("/jobs/{}/checkpoints", job("endless")));
    let last = received[job("endless")].last().unwrap();
    assert_eq!(
        long(last, "checkpointsCompleted"),
        checkpoints["counts"]["completed"].as_i64()
    );
    assert_eq!(
        long(last, "checkpointsFailed"),
        checkpoints["counts"]["failed"].as_i64()
    );
    let failed = received[job("fails")]
        .last()
        .unwrap()
        .metrics
        .as_ref()
        .unwrap();
    // Its cause is the exception of the job, which Flink holds only as text.
    assert_eq!(
        failed["failureException"],
        MetricValue::String("org.apache.flink.runtime.JobException".into())
    );
    let restarts: Vec<i64> = received[job("throws")]
        .iter()
        .filter_map(|report| long(report, "restarts"))
        .collect();
    assert!(
        restarts.is_sorted() && restarts.iter().all(|count| *count <= 2),
        "{restarts:?}"
    );
    flink.process.stop().await;
}

/// Tasks and records of an ended job.
fn assert_equal_to_rest(last: &TaskRunningInfo, detail: &Value) {
    let vertices = detail["vertices"].as_array().unwrap();
    assert_eq!(vertices.len(), 3);
    let tasks = |of: &Value, states: &[&str]| -> i64 {
        let states = states
            .iter()
            .map(|state| of["tasks"][*state].as_i64().unwrap_or(0));
        states.sum()
    };
    let all = |states: &[&str]| vertices.iter().map(|vertex| tasks(vertex, states)).sum();
    let parallelism = vertices
        .iter()
        .map(|vertex| vertex["parallelism"].as_i64().unwrap())
        .sum();
    for (name, expected) in [
        ("tasksTotal", parallelism),
        ("tasksRunning", 0),
        ("tasksFinished", all(&["FINISHED"])),
        ("tasksFailed", all(&["FAILED"])),
        (
            "recordsIn",
            vertices[0]["metrics"]["write-records"].as_i64().unwrap(),
        ),
        (
            "recordsOut",
            vertices[2]["metrics"]["read-records"].as_i64().unwrap(),
        ),
        (
            "bytesIn",
            vertices[0]["metrics"]["write-bytes"].as_i64().unwrap(),
        ),
    ] {
        assert_eq!(
            long(last, name),
            Some(expected),
            "{name} of {}",
            last.exec_id
        );
    }
    let Some(progress) = &last.progress else {
        return;
    };
    assert_eq!(progress.progress, 1.0);
    let stages = progress.progress_info.iter().map(|stage| {
        (
            stage.id.as_str(),
            i64::from(stage.total_tasks),
            i64::from(stage.succeed_tasks),
        )
    });
    let expected = vertices.iter().map(|vertex| {
        (
            vertex["id"].as_str().unwrap(),
            vertex["parallelism"].as_i64().unwrap(),
            tasks(vertex, &["FINISHED"]),
        )
    });
    assert!(stages.eq(expected), "{progress:?}");
}
