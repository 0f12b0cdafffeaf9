//! The book's list of metrics agrees with the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline};
use service::testing::{ANY_PORT, Process, program, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
/// The programs' crates.
const CRATES: [&str; 4] = ["service", "producer", "router", "consumer"];

/// The documented type and programs of each metric.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = service::testing::book::read("docs/src/operating/metrics.md");
    let (section, _) = text.split_once("\n## Metrics of audits\n").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let programs = cells[2].split(", ").map(str::to_owned).collect();
        let name = cells[1].trim_matches('`').to_owned();
        (name, (cells[3].to_owned(), programs))
    })
    .collect()
}

/// Name and type of each metric in Prometheus' text format.
fn exposed(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pairs = types.filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

#[test]
fn every_metric_that_a_program_can_expose_is_documented_and_no_other() {
    fn collect(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, names);
                continue;
            }
            // Every quoted string that looks like a metric.
            let text = std::fs::read_to_string(&path).unwrap();
            let quoted = text.split('"').skip(1).step_by(2);
            names.extend(quoted.filter(|text| is_metric(text)).map(str::to_owned));
        }
    }
    fn is_metric(text: &str) -> bool {
        let begins = ["taskrunning_", "messaging_", "db_", "http_server_"];
        let ends = [
            "_total",
            "_seconds",
            "_messages",
            "_ready",
            "_waiting",
            "_applications",
            "_jobs",
            "_queries",
            "_runs",
            "_event_logs",
            "_tasks",
            "_silent",
            "_stalled",
        ];
        begins.iter().any(|begin| text.starts_with(begin))
            && ends.iter().any(|end| text.ends_with(end))
            && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    }
    let mut known = BTreeSet::new();
    for part in CRATES {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(part)
            .join("src");
        collect(&source, &mut known);
    }
    assert_eq!(known, documented().into_keys().collect());
}

/// The producer's own tests scrape its metrics.
#[test]
fn each_documented_metric_of_router_and_consumer_has_help_and_type() {
    for (name, own) in [("router", router::HELP), ("consumer", consumer::HELP)] {
        let known = service::telemetry::names::HELP.iter().chain(own);
        let known: BTreeSet<&str> = known.map(|(metric, _)| *metric).collect();
        for (metric, (_, programs)) in documented() {
            if programs.contains(name) {
                assert!(known.contains(metric.as_str()), "{name}: {metric}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn router_and_consumer_expose_what_is_documented_of_them() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let own = ["--instance-id", "r", "--metrics-listen", ANY_PORT];
    let router = [&pipeline.router_arguments()[..], &own].concat();
    let router = Process::start(
        pipeline.folder(),
        "router",
        &program(CONSUMER, "router"),
        &router,
    );
    let consumer = pipeline.program("c", &[]);
    // Good, repaired and unusable records for each of them.
    let mut info = strategies::sample_event().info;
    info.progress.as_mut().unwrap().progress = f64::NAN;
    pipeline.send_infos(&[info]);
    pipeline.send(&pipeline.source, &[("k", b"none".to_vec(), None)]);
    pipeline.send(&pipeline.events, &[("k", b"none".to_vec(), None)]);
    for (name, process) in [("router", &router), ("consumer", &consumer.process)] {
        let actual = documented().into_iter();
        let actual: BTreeMap<String, String> = actual
            .filter(|(_, (_, programs))| programs.contains(name))
            .map(|(metric, (kind, _))| (metric, kind))
            .collect();
        let mut page = String::new();
        until(
            &format!("{name} exposes all that is documented of it"),
            Duration::from_secs(60),
            async || {
                page = process.get("/metrics")?.1;
                let exposed = exposed(&page);
                actual
                    .keys()
                    .all(|metric| exposed.contains_key(metric))
                    .then_some(())
            },
        )
        .await;
        assert_eq!(exposed(&page), actual, "{name}");
        for metric in actual.keys() {
            let help = page
                .lines()
                .find_map(|line| line.strip_prefix(&format!("# HELP {metric} ")));
            assert!(help.is_some_and(|help| !help.is_empty()), "{name}: {page}");
        }
        until(
            &format!("{name} is ready"),
            Duration::from_secs(60),
            async || {
                let page = process.get("/metrics")?.1;
                page.contains("\ntaskrunning_ready 1\n").then_some(())
            },
        )
        .await;
    }
    consumer.stop().await;
    assert_eq!(router.stop().await.code(), Some(0));
}
