//! Times of a task's first report and of its end.

use std::collections::BTreeMap;

use super::{event, report, row};
use crate::support::{Kind, Pipeline, on_every_database};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::{TaskRunningInfoEvent, TaskStatus};

on_every_database!(
    a_tasks_times_are_the_least_of_all_its_reports_in_whatever_order_and_batches_they_come,
);

#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn a_tasks_times_are_the_least_of_all_its_reports_in_whatever_order_and_batches_they_come(
    kind: Kind,
) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let statuses = [
        TaskStatus::Running,
        TaskStatus::Running,
        TaskStatus::Scheduled,
        TaskStatus::Succeed,
        TaskStatus::Failed,
    ];
    // Few distinct times, so that some are equal.
    let mut infos = Vec::new();
    for task in 0..150 {
        for sequence in 0..rng.random_range(1..9) {
            let at = rng.random_range(-3..20);
            let status = statuses[rng.random_range(0..statuses.len())];
            let exec_id = format!("exec-{task:03}");
            infos.push(report(&exec_id, sequence, at, status, 0.5));
        }
    }
    infos.shuffle(&mut rng);
    let mut expected: BTreeMap<&str, (i64, Option<i64>)> = BTreeMap::new();
    for info in &infos {
        let (first, ended) = expected
            .entry(&info.exec_id)
            .or_insert((info.reported_at, None));
        *first = info.reported_at.min(*first);
        if info.status.is_final() {
            *ended = Some(ended.map_or(info.reported_at, |at| at.min(info.reported_at)));
        }
    }
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(exec_id, (first, ended))| {
            let ended = ended.map_or("NULL".to_owned(), |ended| ended.to_string());
            row(&[exec_id, &first.to_string(), &ended])
        })
        .collect();

    // A few in one statement, one by one, and many at once.
    let mut stored = 0;
    for (batch, upto) in [("7", 200), ("1", 260), ("150", infos.len())] {
        let events = infos[stored..upto].iter().map(|info| TaskRunningInfoEvent {
            info: info.clone(),
            adjustments: vec![],
            ..event()
        });
        pipeline.send_events(&Vec::from_iter(events));
        let consumer = pipeline.consumer(&["--max-events", batch]);
        pipeline
            .until_count(&Pipeline::stored("metrics"), upto as i64)
            .await;
        consumer.stop().await;
        stored = upto;
        pipeline.audit(&[]).assert_equal();
    }
    let contents = pipeline.contents().await;
    let times: Vec<_> = contents[0]
        .iter()
        .map(|task| vec![task[0].clone(), task[12].clone(), task[13].clone()])
        .collect();
    assert_eq!(times, expected, "seed {seed}");
}
