//! A rebalance storm: members keep leaving and joining a group.

use std::time::{Duration, Instant};

use crate::strategies;
use crate::support::{Kind, Pipeline};

const CONSUMERS: usize = 8;
const PARTITIONS: i32 = 32;
const RESTARTS: usize = 16;
const EVENTS: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_event_is_stored_once_in_a_rebalance_storm() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, PARTITIONS).await else {
        return;
    };
    let begun = Instant::now();
    let sample = strategies::sample_event();
    let stormy = async |number: usize| {
        for restart in 0..RESTARTS {
            let program = pipeline.program(&format!("consumer-{number}-{restart}"), &[]);
            program.until_logged("storing ").await;
            program.stop().await;
        }
        pipeline.program(&format!("consumer-{number}"), &[])
    };
    let load = async {
        const STEPS: usize = 50;
        for _ in 0..STEPS {
            tokio::task::block_in_place(|| pipeline.fill_numbered(&sample, EVENTS / STEPS, 999));
            // Events are spread over the storm, which takes about this long.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let storm = async {
        tokio::join!(
            stormy(0),
            stormy(1),
            stormy(2),
            stormy(3),
            stormy(4),
            stormy(5),
            stormy(6),
            stormy(7),
        )
    };
    let ((), consumers) = tokio::join!(load, storm);
    println!("the storm lasted {:.0?}", begun.elapsed());
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    println!("all was stored after {:.0?}", begun.elapsed());
    pipeline.until_stable(CONSUMERS).await;
    let consumers: [_; CONSUMERS] = consumers.into();
    for consumer in consumers {
        consumer.stop().await;
    }
    assert_eq!(pipeline.sent(), EVENTS as i64);
    pipeline.assert_each_once(&pipeline.bad()).await;
    // It ends eventually; how soon depends on the machine and its load.
    assert!(
        begun.elapsed() < Duration::from_secs(600),
        "{:?}",
        begun.elapsed()
    );
}
