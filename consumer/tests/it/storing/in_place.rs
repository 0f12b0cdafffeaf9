//! In PostgreSQL, a report updates its task's row within its page (HOT), without new index entries.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use schemas::{TaskRunningInfoEvent, TaskStatus};

use super::{event, report};
use crate::support::{Kind, Pipeline};

const TASKS: usize = 2_000;
/// Number of updated rows, few enough that each page has room for their new versions.
const REPORTING: usize = 500;

/// Updates that were HOT, and all updates.
const UPDATES: [&str; 2] = ["n_tup_hot_upd", "n_tup_upd"];

#[tokio::test(flavor = "multi_thread")]
async fn reports_update_their_task_without_touching_an_index() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sent = 0;
    let mut tasks: Vec<usize> = (0..TASKS).collect();
    tasks.shuffle(&mut rng);
    for (sequence, tasks, batch) in [
        (0, &tasks[..], "500"),
        (1, &tasks[..REPORTING / 2], "100"),
        (1, &tasks[REPORTING / 2..REPORTING], "7"),
    ] {
        let events = tasks.iter().map(|task| {
            let status = match sequence == 1 && task % 50 == 0 {
                true => TaskStatus::Succeed,
                false => TaskStatus::Running,
            };
            let exec_id = format!("exec-{task}");
            TaskRunningInfoEvent {
                info: report(&exec_id, sequence, sequence, status, 0.5),
                adjustments: vec![],
                ..event()
            }
        });
        pipeline.send_events(&Vec::from_iter(events));
        sent += tasks.len() as i64;
        let consumer = pipeline.consumer(&["--max-events", batch]);
        pipeline
            .until_count(&Pipeline::stored("metrics"), sent)
            .await;
        consumer.stop().await;
    }
    let updates = UPDATES
        .map(|column| format!("SELECT {column} FROM pg_stat_user_tables WHERE relname = 'task'"));
    // A server process reports its statistics when idle or on exit.
    pipeline.until_count(&updates[1], REPORTING as i64).await;
    let [in_place, all] = [
        pipeline.count(&updates[0]).await,
        pipeline.count(&updates[1]).await,
    ];
    println!("{in_place} of {all} updates left the indexes alone");
    assert!(in_place * 10 >= all * 9, "only {in_place} of {all}");
}
