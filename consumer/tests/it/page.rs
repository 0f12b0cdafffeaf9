//! The page of `consumer serve` in a real browser. `consumer/tests/page/page.mjs` has the checks; this fills the tables
//! before, and performs the actions that it requests.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use schemas::{JobProgressInfo, MetricValue, TaskRunningInfo, TaskRunningInfoEvent, TaskStatus};
use service::testing::service;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::serve::tokens;
use crate::strategies;
use crate::support::{Kind, Pipeline, Server};

/// Time limit of the whole run, which takes a minute on two cores.
const PATIENCE: Duration = Duration::from_secs(600);
/// Folder of the screenshots, beside the build's output.
const SCREENSHOTS: &str = "page-screenshots";

/// Strings that other programs mistook for markup, or that look different from what they are.
const HOSTILE: &[&str] = &[
    "<img src=x onerror=globalThis.hacked=1>",
    "\"><script>globalThis.hacked=1</script>",
    "' onfocus='globalThis.hacked=1' autofocus='",
    "</td></tr></table><b>bold</b><style>*{display:none}</style>",
    "javascript:globalThis.hacked=1",
    "<svg/onload=globalThis.hacked=1>",
    "a\u{202e}b\u{200b}c\u{2066}d",
    "../../%2e%2e/?a=b&c=d#e",
];

const SECOND: i64 = 1_000_000;

/// Reports as of a moment.
struct Reports {
    sample: TaskRunningInfoEvent,
    now: i64,
    events: Vec<TaskRunningInfoEvent>,
}

impl Reports {
    fn new() -> Self {
        Self {
            sample: strategies::sample_event(),
            now: Timestamp::now().as_microsecond(),
            events: Vec::new(),
        }
    }

    /// A report this many seconds ago.
    fn add(
        &mut self,
        id: &str,
        sequence: i64,
        ago: i64,
        change: impl FnOnce(&mut TaskRunningInfo),
    ) {
        let mut event = self.sample.clone();
        event.adjustments.clear();
        let info = &mut event.info;
        info.exec_id = id.to_owned();
        info.job_id = format!("job-of-{id}");
        info.sequence = sequence;
        info.reported_at = self.now - ago * SECOND;
        change(info);
        self.events.push(event);
    }

    /// Tasks of all kinds.
    fn all(mut self) -> Vec<TaskRunningInfoEvent> {
        for i in 0..12_i64 {
            for sequence in 0..5 {
                self.add(&format!("run-{i}"), sequence, 42 - sequence * 10, |info| {
                    set_progress(info, 0.05 * (i + 1) as f64 + 0.02 * sequence as f64);
                    info.engine.user = ["ada", "grace", "linus"][(i % 3) as usize].to_owned();
                    info.engine.engine_type = ["spark", "hive"][(i % 2) as usize].to_owned();
                    info.engine.instance = format!("node-{i}.example.internal:10000");
                    // One engine's own count differs from the tables.
                    info.engine.running_tasks = 1 + i32::from(i == 3);
                    info.job_id = format!("nightly-{}", i % 2);
                    let held = info
                        .resource
                        .as_mut()
                        .unwrap()
                        .applications
                        .get_mut("app-1")
                        .unwrap();
                    held.queue_memory = (i + 1) << 30;
                    held.queue_cores = 2 * (i as i32 + 1);
                });
            }
        }
        self.add("run-untold", 0, 3, |info| {
            info.progress = None;
            info.resource = None;
            info.metrics = None;
        });
        for sequence in 0..150 {
            self.add("etl-long", sequence, 20 * (149 - sequence) + 1, |info| {
                info.status = match sequence {
                    0..4 => TaskStatus::Inited,
                    4..12 => TaskStatus::Scheduled,
                    _ => TaskStatus::Running,
                };
                // Falling progress is drawn as it was, and missing values as a gap.
                set_progress(
                    info,
                    [0.0, (sequence - 12) as f64 / 150.0, 0.1][match sequence {
                        0..12 => 0,
                        60..70 => 2,
                        _ => 1,
                    }],
                );
                if (90..100).contains(&sequence) {
                    info.progress = None;
                }
                let held = info.resource.as_mut().unwrap();
                let mut one = held.applications.pop_first().unwrap().1;
                one.queue_memory = (1 + sequence / 20) << 30;
                one.queue_cores = 4 + 4 * ((sequence / 40) as i32);
                held.applications.insert("application_1".to_owned(), one);
                let metrics = info.metrics.get_or_insert_default();
                metrics.insert(
                    "shuffle.bytes".to_owned(),
                    MetricValue::Long(sequence << 20),
                );
                if let Some(progress) = &mut info.progress {
                    progress.progress_info = (0..3)
                        .map(|stage| JobProgressInfo {
                            id: format!("stage-{stage}"),
                            total_tasks: 386,
                            running_tasks: i32::from(stage == 1) * 53,
                            failed_tasks: i32::from(stage == 0) * 2,
                            succeed_tasks: [384, 333, 0][stage],
                        })
                        .collect();
                }
            });
        }
        // Hours of usage, by more users than there are colours.
        let users = ["ada", "grace", "linus", "barbara", "edsger", "tony", "alan"];
        for (i, user) in (1..).zip(users) {
            for sequence in 0..=60_i32 {
                let ago = 600 + 240 * i64::from(60 - sequence);
                self.add(&format!("past-{user}"), sequence.into(), ago, |info| {
                    info.engine.user = user.to_owned();
                    info.engine.instance = "node-past.example.internal:10000".to_owned();
                    if sequence == 60 {
                        info.status = TaskStatus::Succeed;
                    }
                    let applications = &mut info.resource.as_mut().unwrap().applications;
                    let mut held = applications.pop_first().unwrap().1;
                    held.queue_cores = i * (1 + sequence / 20);
                    held.queue_memory = i64::from(i) << 30;
                    applications.insert(format!("application-of-{user}"), held);
                });
            }
        }
        for (id, status) in [
            ("wait-0", TaskStatus::Inited),
            ("wait-1", TaskStatus::Scheduled),
            ("wait-2", TaskStatus::WaitForRetry),
        ] {
            self.add(id, 0, 5, |info| {
                info.status = status;
                set_progress(info, 0.0);
                info.resource = None;
            });
        }
        for (id, status) in [
            ("done-0", TaskStatus::Succeed),
            ("failed-at-100", TaskStatus::Failed),
            ("cancelled-0", TaskStatus::Cancelled),
            ("timeout-0", TaskStatus::Timeout),
            ("unknown-0", TaskStatus::Unknown),
        ] {
            self.add(id, 0, 300, |_| {});
            self.add(id, 1, 120, |info| {
                info.status = status;
                set_progress(info, 1.0);
            });
        }
        for sequence in 0..10 {
            self.add("quiet-1", sequence, 700 - 10 * sequence, |info| {
                set_progress(info, 0.04 * sequence as f64)
            });
        }
        for sequence in 0..90 {
            self.add("stuck-1", sequence, 20 * (89 - sequence) + 2, |info| {
                set_progress(info, 0.4)
            });
        }
        for hostile in HOSTILE {
            self.add(&format!("hostile {hostile}"), 0, 4, |info| {
                set_hostile(info, hostile)
            });
        }
        self.events
    }
}

fn set_progress(info: &mut TaskRunningInfo, progress: f64) {
    if let Some(part) = &mut info.progress {
        part.progress = progress;
    }
}

fn set_hostile(info: &mut TaskRunningInfo, text: &str) {
    let own = || text.to_owned();
    info.job_id = own();
    info.engine.instance = own();
    info.engine.engine_type = own();
    info.engine.user = own();
    info.engine.ticket_id = own();
    for job in &mut info.progress.as_mut().unwrap().progress_info {
        job.id = own();
    }
    let applications = &mut info.resource.as_mut().unwrap().applications;
    let mut held = applications.pop_first().unwrap().1;
    (held.job_status, held.queue) = (own(), own());
    applications.insert(own(), held);
    info.metrics = Some([(own(), MetricValue::String(own()))].into());
}

/// Performs the actions that the browser requests.
struct World {
    /// Dropped before its database.
    server: Option<Server>,
    pipeline: Pipeline,
    address: String,
}

impl World {
    async fn act(&mut self, asked: &str) {
        let (act, id) = asked.split_once(' ').unwrap_or((asked, ""));
        match act {
            "begin" => {
                let hostile = id.starts_with("hostile").then(|| HOSTILE[0]);
                let id = format!(
                    "{id}{}",
                    hostile.map_or_else(String::new, |text| format!(" {text}"))
                );
                self.report(&id, 0, |info| {
                    if let Some(text) = hostile {
                        set_hostile(info, text);
                    }
                })
                .await;
            }
            "advance" => self.report(id, 100, |info| set_progress(info, 0.975)).await,
            "end" => {
                self.report(id, 200, |info| {
                    info.status = TaskStatus::Succeed;
                    set_progress(info, 1.0);
                })
                .await;
            }
            "stop" => self.server.take().unwrap().stop().await,
            "start" => self.start().await,
            other => panic!("the browser asks for {other:?}"),
        }
    }

    /// Sends a report with the present time, and waits until it is stored.
    async fn report(&self, id: &str, sequence: i64, change: impl FnOnce(&mut TaskRunningInfo)) {
        let mut reports = Reports::new();
        reports.add(id, sequence, 0, change);
        self.pipeline.send_events(&reports.events);
        self.pipeline
            .until_all_stored(Duration::from_secs(60))
            .await;
    }

    /// Restarts the server at the same address.
    async fn start(&mut self) {
        let server = self
            .pipeline
            .serve("serve", &["--listen", &self.address])
            .await;
        self.address = server.origin.trim_start_matches("http://").to_owned();
        self.server = Some(server);
    }
}

/// The build's folder, in which the test's binary is.
fn screenshots() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_consumer"));
    let target = program.ancestors().nth(2).unwrap();
    target.join(SCREENSHOTS)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn every_view_works_in_a_browser() {
    let (Some(chromium), Some(modules)) = (service("TEST_CHROMIUM"), service("TEST_PAGE_MODULES"))
    else {
        return;
    };
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    pipeline.send_events(&Reports::new().all());
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    let mut world = World {
        pipeline,
        server: None,
        address: service::testing::ANY_PORT.to_owned(),
    };
    world.start().await;
    let file = tokens(&world.pipeline, "grace");
    let guarded = world.pipeline.serve("guarded", &["--tokens", &file]).await;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/page.mjs");
    let mut browser = Command::new("node")
        .arg(script)
        .env("PAGE_ORIGIN", format!("http://{}", world.address))
        .env("PAGE_GUARDED_ORIGIN", &guarded.origin)
        .env("PAGE_SCREENSHOTS", screenshots())
        .env("TEST_CHROMIUM", chromium)
        .env("TEST_PAGE_MODULES", modules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = browser.stdin.take().unwrap();
    let lines = BufReader::new(browser.stdout.take().unwrap()).lines();
    let (sender, mut receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        lines
            .map_while(Result::ok)
            .try_for_each(|line| sender.blocking_send(line))
    });
    let run = async {
        while let Some(line) = receiver.recv().await {
            match line.strip_prefix("ask ") {
                Some(asked) => {
                    world.act(asked).await;
                    answers.write_all(b"done\n").unwrap();
                }
                None => println!("{line}"),
            }
        }
    };
    let ended = timeout(PATIENCE, run).await;
    if ended.is_err() {
        browser.kill().unwrap();
    }
    let status = browser.wait().unwrap();
    assert!(
        ended.is_ok() && status.success(),
        "{status}; screenshots are in {}",
        screenshots().display()
    );
    guarded.stop().await;
    world.server.unwrap().stop().await;
    consumer.stop().await;
}
