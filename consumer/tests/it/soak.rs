//! A steady load for a long time: the memory of a router and a consumer does not grow, even if nobody scrapes their
//! metrics. `deploy/soak` runs it.

use std::time::Duration;

use crate::support::{Kind, Pipeline};
use service::testing::{ANY_PORT, Process, program};
use tokio::time::{Instant, interval};

/// Maximum growth during the second half of the run, noise included; memory settles during the first half.
const GROWTH_MAX_KIB: u64 = 4 << 10;

fn median(samples: &[u64]) -> u64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour: deploy/soak"]
async fn memory_does_not_grow_although_nobody_scrapes_the_metrics() {
    let seconds = std::env::var("SOAK_SECONDS");
    let seconds: u64 = seconds.map_or(1_800, |seconds| seconds.parse().unwrap());
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    let beside = env!("CARGO_BIN_EXE_consumer");
    let listening = ["--metrics-listen", ANY_PORT];
    let arguments = [&pipeline.router_arguments()[..], &listening].concat();
    let router = program(beside, "router");
    let router = Process::start(pipeline.folder(), "router", &router, &arguments);
    let consumer = pipeline.program("consumer", &[]);
    // Many small transactions: each records its duration.
    let length = format!("{}s", seconds + 60);
    let arguments = [
        "simulate",
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--topic",
        &pipeline.source,
        "--tasks",
        "100",
        "--rate",
        "400",
        "--for",
        &length,
    ];
    let producer = program(beside, "producer");
    let producer = Process::start(pipeline.folder(), "producer", &producer, &arguments);

    let programs = [
        ("router", &router),
        ("consumer", &consumer.process),
        ("producer", &producer),
    ];
    let mut samples = [const { Vec::new() }; 3];
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut every_second = interval(Duration::from_secs(1));
    while Instant::now() < end {
        every_second.tick().await;
        for ((name, process), samples) in programs.iter().zip(&mut samples) {
            let now = process.memory_now_kib();
            samples.push(now.unwrap_or_else(|| panic!("{name} has ended:\n{}", process.log())));
        }
    }
    let stored = pipeline.count("SELECT count(*) FROM task_progress").await;
    println!("{stored} reports stored in {seconds} s");
    assert!(stored > 0, "nothing was stored");
    let mut grown = Vec::new();
    for ((name, _), samples) in programs.iter().zip(&samples).take(2) {
        let tenth = (samples.len() / 10).max(1);
        let middle = samples.len() / 2;
        let (before, after) = (
            median(&samples[middle..middle + tenth]),
            median(&samples[samples.len() - tenth..]),
        );
        println!("{name}: {before} KiB half way, {after} KiB at the end");
        if after > before + GROWTH_MAX_KIB {
            grown.push(format!("{name} grew from {before} to {after} KiB"));
        }
    }
    assert!(grown.is_empty(), "{grown:?}");
    assert!(producer.stop().await.success());
    consumer.stop().await;
    assert!(router.stop().await.success());
}
