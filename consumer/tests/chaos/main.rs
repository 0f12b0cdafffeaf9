//! Chaos test: runs the whole pipeline on three brokers under random faults of machines and processes, then compares
//! the stored rows with the reports that were sent. `deploy/chaos` runs it for any duration.
//!
//! ```text
//! producer simulate ─┐                  routers            consumers
//! Poison ────────────┴─▶ source topic ───▶ events topic ─┬──▶ database
//!                             │          Poison ─────────┘  │
//!                             └──────▶ dead letters ◀───────┘
//!
//! Faults: SIGKILL, SIGTERM, SIGSTOP ▶ routers, consumers     Fleet restarts services that have ended
//!         SIGKILL, SIGSTOP          ▶ brokers, one at a time
//!         crash, cut connections, … ▶ the database
//!         more partitions           ▶ both topics
//! ```
//!
//! The seed determines the faults and their times, but not how processes interleave: runs with the same seed are
//! similar, not identical.
//!
//! It is a binary of its own, because it manages its own processes, cluster and report, and runs alone.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod database;
mod faults;
mod fleet;
mod journal;
mod kafka;
mod poison;
mod progress;
mod proof;
#[path = "../sql/mod.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod sql;
#[path = "../../../schemas/tests/it/strategies/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the contract")]
mod strategies;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use database::Database;
use faults::Faults;
use fleet::Fleet;
use journal::Journal;
use kafka::Kafka;
use poison::Poison;
use progress::Progress;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use schemas::topics;
use serde_json::{Value, json};
use service::testing::{Process, program, service};
use tokio::time::{Instant, sleep};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
/// Initial number of partitions of each topic.
const PARTITIONS: i32 = 6;
/// Time limit for draining without faults: a constant for session timeouts, open transactions and retry pauses …
const DRAIN: Duration = Duration::from_secs(120);
/// … plus this per waiting record, for small, busy machines.
const DRAIN_A_RECORD: Duration = Duration::from_millis(10);
/// Interval at which the fleet and the faults are updated.
const TICK: Duration = Duration::from_millis(50);

/// Parameters of a run, from the environment.
struct Plan {
    seconds: u64,
    seed: u64,
    rate: u32,
    routers: usize,
    consumers: usize,
    database: database::Kind,
}

impl Plan {
    fn from_environment() -> Self {
        let seed = setting("CHAOS_SEED", rand::random::<u32>().into());
        Self {
            seconds: setting("CHAOS_SECONDS", 45),
            seed,
            rate: setting("CHAOS_RATE", 300),
            routers: setting("CHAOS_ROUTERS", 3),
            consumers: setting("CHAOS_CONSUMERS", 3),
            database: setting("CHAOS_DATABASE", database::Kind::Postgres),
        }
    }
}

fn setting<T: FromStr<Err: std::fmt::Debug>>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error:?}")),
        _ => default,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn whatever_breaks_every_record_is_stored_or_set_aside_exactly_once() {
    let plan = Plan::from_environment();
    let Some(kafka_tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let Some(database_tool) = plan.database.tool().map_or(Some(String::new()), service) else {
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let folder: PathBuf = setting("CHAOS_DIR", temporary.path().to_owned());
    std::fs::create_dir_all(&folder).unwrap();
    let journal = Arc::new(Journal::open(&folder.join("chaos.log")));
    journal.line(&format!(
        "seed {}: {} s, {} reports a second, {} routers, {} consumers, {:?}; logs are in {}",
        plan.seed,
        plan.seconds,
        plan.rate,
        plan.routers,
        plan.consumers,
        plan.database,
        folder.display()
    ));

    let mut report = json!({
        "seed": plan.seed,
        "seconds": plan.seconds,
        "rate": plan.rate,
        "routers": plan.routers,
        "consumers": plan.consumers,
        "database": format!("{:?}", plan.database),
    });
    let outcome = run(
        &plan,
        &folder,
        [&kafka_tool, &database_tool],
        &journal,
        &mut report,
    )
    .await;
    report["outcome"] = match &outcome {
        Ok(()) => json!("passed"),
        Err(error) => json!(format!("{error:#}")),
    };
    let text = serde_json::to_string_pretty(&report).unwrap();
    let path: PathBuf = setting("CHAOS_REPORT", folder.join("report.json"));
    std::fs::write(&path, &text).unwrap();
    journal.line(&format!("{text}\nalso in {}", path.display()));
    if let Err(error) = outcome {
        panic!(
            "seed {}: {error:#}\nlogs are in {}",
            plan.seed,
            folder.display()
        );
    }
}

async fn run(
    plan: &Plan,
    folder: &Path,
    [kafka_tool, database_tool]: [&str; 2],
    journal: &Arc<Journal>,
    report: &mut Value,
) -> anyhow::Result<()> {
    journal.line("starting three brokers and the database");
    let kafka = Arc::new(Kafka::start(kafka_tool, &folder.join("kafka"), PARTITIONS));
    let database = Arc::new(Database::start(plan.database, database_tool, folder).await);
    kafka.until_in_sync().await?;

    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut fleet = Fleet::new(ChaCha8Rng::from_rng(&mut rng), journal.clone());
    add_services(&mut fleet, plan, folder, &kafka, &database);
    let simulated = simulate(plan, folder, &kafka);
    let poison = Poison::start(&kafka.bootstrap, plan.rate, ChaCha8Rng::from_rng(&mut rng));
    let progress = Progress::watch(kafka.bootstrap.clone(), database.clone());
    let mut faults = Faults::new(rng, kafka.clone(), database.clone(), journal.clone());

    let broken = break_things(
        plan,
        journal,
        &mut fleet,
        &mut faults,
        &progress,
        Simulation(simulated),
    )
    .await;
    report["faults"] = faults.counts();
    report["stored_meanwhile"] = json!(progress.now().stored);
    report["restarts"] = fleet.restarts();
    let Simulation(simulated) = broken?;

    journal.line("no more faults: all that is down comes up again");
    let settled = faults.settle(&mut fleet).await;
    report["restarts"] = fleet.restarts();
    settled?;
    let reports = stop_simulation(simulated).await?;
    let poisoned = poison.stop().await;
    report["reports"] = json!(reports);
    report["poison"] = json!(poisoned);
    journal.line(&format!(
        "sent {reports} reports and {} other records; waiting until all is stored",
        poisoned.values().sum::<u64>()
    ));

    let begun = Instant::now();
    let drained = drain(&mut fleet, &kafka.bootstrap, &database, &progress, journal).await;
    report["restarts"] = fleet.restarts();
    report["drain_seconds"] = json!(begun.elapsed().as_secs_f64());
    drained?;
    fleet.stop().await?;

    journal.line("all drained and stopped; comparing the topics with the tables");
    let begun = Instant::now();
    let proved = proof::prove(&kafka.bootstrap, &database, reports, &poisoned).await;
    report["proof_seconds"] = json!(begun.elapsed().as_secs_f64());
    report["proved"] = proved?;
    Ok(())
}

/// Static and dynamic members. Only the first router can be dynamic: without an instance id, the host's name is the
/// transactional id.
fn add_services(fleet: &mut Fleet, plan: &Plan, folder: &Path, kafka: &Kafka, database: &Database) {
    let common = [
        "--bootstrap-servers",
        &kafka.bootstrap,
        // Added partitions must be discovered during the run.
        "-X",
        "topic.metadata.refresh.interval.ms=2000",
    ];
    for i in 1..=plan.routers {
        let name = format!("router-{i}");
        let mut arguments = common.map(str::to_owned).to_vec();
        if i > 1 {
            arguments.extend(["--instance-id".to_owned(), name.clone()]);
        }
        fleet.add(folder, &name, program(CONSUMER, "router"), arguments);
    }
    for i in 1..=plan.consumers {
        let name = format!("consumer-{i}");
        let mut arguments = vec!["run".to_owned()];
        arguments.extend(common.map(str::to_owned));
        arguments.extend(["--database-url".to_owned(), database.url().to_owned()]);
        if i % 2 == 0 {
            arguments.extend(["--instance-id".to_owned(), name.clone()]);
        }
        fleet.add(folder, &name, CONSUMER.into(), arguments);
    }
}

/// The simulated engines. No fault is caused directly to this program, only to its brokers.
struct Simulation(Process);

fn simulate(plan: &Plan, folder: &Path, kafka: &Kafka) -> Process {
    let (rate, seed) = (plan.rate.to_string(), plan.seed.to_string());
    let producer = program(CONSUMER, "producer");
    // If more than five records of a partition are unacknowledged and others are due, librdkafka's threads spin. Few
    // records are due at once, so that these threads do not take CPU time from the pipeline under test.
    let arguments = [
        "-n",
        "19",
        producer.to_str().expect("a path of ours"),
        "simulate",
        "--bootstrap-servers",
        &kafka.bootstrap,
        "-X",
        "topic.metadata.refresh.interval.ms=2000",
        "-X",
        "linger.ms=200",
        "--tasks",
        "100",
        "--rate",
        &rate,
        "--seed",
        &seed,
    ];
    Process::start(folder, "producer", Path::new("nice"), &arguments)
}

/// Stops it; returns the number of reports that it claims to have sent.
async fn stop_simulation(mut simulated: Process) -> anyhow::Result<u64> {
    simulated.signal("TERM");
    let ended = simulated.ended().await;
    let log = simulated.log();
    ensure!(ended.success(), "producer ended with {ended}:\n{log}");
    let message = log.lines().find_map(|line| line.strip_prefix("sent "));
    let count = message
        .and_then(|message| message.split(' ').next())
        .context(log.clone())?;
    Ok(count.parse()?)
}

async fn break_things(
    plan: &Plan,
    journal: &Journal,
    fleet: &mut Fleet,
    faults: &mut Faults,
    progress: &Progress,
    Simulation(mut simulated): Simulation,
) -> anyhow::Result<Simulation> {
    let first = Instant::now() + Duration::from_secs(240);
    while progress.now().stored == 0 {
        ensure!(Instant::now() < first, "nothing was stored in 240 s");
        fleet.tick()?;
        sleep(TICK).await;
    }
    journal.line("the line works; from now on things break");
    let end = Instant::now() + Duration::from_secs(plan.seconds);
    let mut logged_at = Instant::now();
    while Instant::now() < end {
        fleet.tick()?;
        faults.tick(fleet).await?;
        if let Some(ended) = simulated.status() {
            anyhow::bail!("producer ended with {ended}:\n{}", simulated.log());
        }
        if logged_at.elapsed() > Duration::from_secs(10) {
            logged_at = Instant::now();
            journal.line(&format!("{}, {} faults", progress.now(), faults.count()));
        }
        sleep(TICK).await;
    }
    Ok(Simulation(simulated))
}

/// Waits until everything is routed and stored.
async fn drain(
    fleet: &mut Fleet,
    bootstrap: &str,
    database: &Database,
    progress: &Progress,
    journal: &Journal,
) -> anyhow::Result<()> {
    let waiting = progress.now().waiting();
    let within = DRAIN + DRAIN_A_RECORD * waiting;
    let deadline = Instant::now() + within;
    let mut logged_at = Instant::now();
    loop {
        fleet.tick()?;
        let left = progress::left(bootstrap, database)
            .await
            .unwrap_or_else(|error| vec![format!("{error:#}")]);
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "not drained within {within:?} ({waiting} waited) though nothing is broken:\n{}",
            left.join("\n")
        );
        if logged_at.elapsed() > Duration::from_secs(10) {
            logged_at = Instant::now();
            journal.line(&format!("{}; left: {}", progress.now(), left.join(", ")));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Topics have their default names, because the cluster is this run's own.
const SOURCE: &str = topics::TASK_RUNNING_INFO;
const EVENTS: &str = topics::TASK_RUNNING_INFO_EVENTS;
const LETTERS: &str = topics::TASK_RUNNING_INFO_DEAD_LETTERS;
/// The groups' default names.
const ROUTER_GROUP: &str = "task-running-info-router";
