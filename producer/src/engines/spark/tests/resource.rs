//! What executors and the driver hold.

use serde_json::json;

use super::super::answers::{Environment, Executor};
use super::super::application::Poll;
use super::super::mapping::State;
use super::{application, jobs};

fn environment(properties: &[(&str, &str)]) -> Environment {
    let pairs = properties
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Environment {
        spark_properties: pairs.collect(),
    }
}

fn holds(executors: Vec<Executor>, environment: Option<Environment>) -> (i64, i32, i32, String) {
    let poll = Poll {
        executors: Some(executors),
        environment,
        ..jobs(json!([{"jobId": 0, "status": "RUNNING"}]))
    };
    let info = application("app-1")
        .reports(poll, State::Alive, 0)
        .remove(0);
    let held = &info.resource.as_ref().unwrap().applications["app-1"];
    assert_eq!(held.job_status, "RUNNING");
    (
        held.queue_memory,
        held.queue_cores,
        held.queue_instances,
        held.queue.clone(),
    )
}

#[test]
fn the_driver_is_no_executor_but_in_local_mode_it_does_the_work() {
    let executor = |id: &str, is_active| Executor {
        id: id.to_owned(),
        is_active,
        total_cores: 4,
        max_memory: 384 << 20,
        ..Executor::default()
    };
    let all = || {
        vec![
            executor("driver", true),
            executor("1", true),
            executor("2", true),
            executor("3", false),
        ]
    };
    const GIB: i64 = 1 << 30;
    const MIB: i64 = 1 << 20;

    let yarn = [
        ("spark.master", "yarn"),
        ("spark.executor.memory", "8g"),
        ("spark.yarn.queue", "etl"),
    ];
    // Overhead: a tenth, but 384 MiB at least.
    let overhead = 8 * 1024 / 10 * MIB;
    assert_eq!(
        holds(all(), Some(environment(&yarn))),
        (2 * (8 * GIB + overhead), 8, 2, "etl".into())
    );
    let received = [
        ("spark.executor.memory", "2048"),
        ("spark.executor.memoryOverhead", "512m"),
    ];
    assert_eq!(holds(all(), Some(environment(&received))).0, 2 * 2560 * MIB);
    let standalone = [("spark.master", "spark://node-1:7077")];
    assert_eq!(holds(all(), Some(environment(&standalone))).0, 2 * GIB);
    let local = [
        ("spark.master", "local[4]"),
        ("spark.driver.memory", "512m"),
    ];
    assert_eq!(
        holds(vec![executor("driver", true)], Some(environment(&local))),
        (512 * MIB, 4, 0, String::new())
    );
    // While the environment is not known: storage memory.
    assert_eq!(holds(all(), None), (2 * 384 * MIB, 8, 2, String::new()));
}
