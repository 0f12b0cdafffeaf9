//! The whole pipeline with the real programs: simulated engines, routers, and consumers that join and leave; then the
//! tables are compared with the source topic.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Kind, Pipeline, on_every_database};
use rdkafka::message::Message;
use service::testing::{Process, alone, program, read_all, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const REPORTS: usize = 50_000;

on_every_database!(
    #[ignore = "heavy"]
    every_report_is_stored_exactly_once_while_programs_come_and_go,
);

/// Programs on one pipeline.
struct Programs<'a> {
    pipeline: &'a Pipeline,
    router: PathBuf,
    producer: PathBuf,
}

impl Programs<'_> {
    fn router(&self, instance: &str) -> Process {
        let own = ["--instance-id", instance];
        let arguments = [&self.pipeline.router_arguments()[..], &own].concat();
        Process::start(self.pipeline.folder(), instance, &self.router, &arguments)
    }

    /// A dynamic member: its partitions are reassigned at once when it stops.
    fn consumer(&self, name: &str) -> Process {
        let mut arguments = vec!["run", "--group", &self.pipeline.events];
        arguments.extend(self.pipeline.consumer_arguments());
        Process::start(
            self.pipeline.folder(),
            name,
            Path::new(CONSUMER),
            &arguments,
        )
    }

    fn simulate(&self, more: &[&str]) -> Process {
        let Pipeline {
            bootstrap, source, ..
        } = self.pipeline;
        let mut arguments = vec![
            "simulate",
            "--bootstrap-servers",
            bootstrap,
            "--topic",
            source,
        ];
        arguments.extend(more);
        Process::start(
            self.pipeline.folder(),
            "producer",
            &self.producer,
            &arguments,
        )
    }
}

async fn every_report_is_stored_exactly_once_while_programs_come_and_go(kind: Kind) {
    let _alone = alone();
    let Some(pipeline) = Pipeline::make(kind, 8).await else {
        return;
    };
    let programs = Programs {
        pipeline: &pipeline,
        router: program(CONSUMER, "router"),
        producer: program(CONSUMER, "producer"),
    };
    let (first_router, second_router) = (programs.router("router-1"), programs.router("router-2"));
    let mut consumers =
        ["consumer-1", "consumer-2", "consumer-3"].map(|name| Some(programs.consumer(name)));

    // Fast enough not to be waited for, slow enough for the following to happen meanwhile.
    let count = REPORTS.to_string();
    let mut producer = programs.simulate(&[
        "--tasks", "200", "--rate", "5000", "--count", &count, "--seed", "11",
    ]);
    let stored = "SELECT count(*) FROM task_metrics";
    pipeline.until_count(stored, (REPORTS / 5) as i64).await;
    assert!(first_router.stop().await.success());
    assert!(consumers[0].take().unwrap().stop().await.success());
    let third_router = programs.router("router-3");
    consumers[0] = Some(programs.consumer("consumer-4"));
    assert!(producer.ended().await.success(), "{}", producer.log());

    until(
        "all reports are stored",
        Duration::from_secs(120),
        async || (pipeline.count(stored).await >= REPORTS as i64).then_some(()),
    )
    .await;
    for mut process in consumers
        .into_iter()
        .flatten()
        .chain([second_router, third_router])
    {
        process.assert_running();
        assert!(process.stop().await.success());
    }

    // The engines' reports, by exec id.
    let mut sent: BTreeMap<String, usize> = BTreeMap::new();
    let source = read_all(&pipeline.bootstrap, &pipeline.source);
    for record in &source {
        *sent
            .entry(String::from_utf8(record.key().unwrap().to_vec()).unwrap())
            .or_default() += 1;
    }
    assert_eq!(source.len(), REPORTS);
    assert!(read_all(&pipeline.bootstrap, &pipeline.letters).is_empty());

    // Each report has one event, and the tables hold the events' rows, each once.
    let (mut sources, mut events, mut applications) = (BTreeSet::new(), BTreeSet::new(), 0);
    for record in read_all(&pipeline.bootstrap, &pipeline.events) {
        let event = schemas::decode_event(record.payload()).unwrap();
        sources.insert((event.source.partition, event.source.offset));
        events.insert((record.partition(), record.offset()));
        applications += event
            .info
            .resource
            .map_or(0, |resource| resource.applications.len());
    }
    assert_eq!((sources.len(), events.len()), (REPORTS, REPORTS));
    for table in ["task_progress", "task_metrics"] {
        let select = format!(
            "SELECT CAST(event_partition AS text), CAST(event_offset AS text) FROM {table}"
        );
        let rows = pipeline.rows(&select).await;
        assert_eq!(rows.len(), REPORTS, "{table}");
        let number = |text: &Option<String>| text.as_deref().unwrap().parse::<i64>().unwrap();
        let held: BTreeSet<_> = rows
            .iter()
            .map(|row| (number(&row[0]) as i32, number(&row[1])))
            .collect();
        assert_eq!(held, events, "{table}");
        let select = format!(
            "SELECT exec_id, CAST(count(*) AS text) FROM {table} JOIN task USING (task_id) GROUP BY exec_id"
        );
        let stored: BTreeMap<_, _> = pipeline
            .rows(&select)
            .await
            .iter()
            .map(|row| (row[0].clone().unwrap(), number(&row[1]) as usize))
            .collect();
        assert_eq!(stored, sent, "{table}");
    }
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_resource").await,
        applications as i64
    );
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task").await,
        sent.len() as i64
    );
    let doubled = "SELECT count(*) FROM (SELECT 1 FROM task_resource GROUP BY event_partition, event_offset, application_id \
                   HAVING count(*) > 1) AS doubled";
    assert_eq!(pipeline.count(doubled).await, 0);
}
