//! The mapping, on answers that real Sparks gave and on odd ones made up; no network.

mod limits;
mod progress;
mod recorded;
mod resource;
mod status;

use schemas::{MetricValue, TaskRunningInfo};

use super::answers::Attempt;
use super::application::{Application, Key, Poll};
use super::mapping::State;

fn application(id: &str) -> Application {
    let key = Key::new(id, &Attempt::default());
    Application::new(key, "ada", "node-1:4040")
}

fn jobs(answer: serde_json::Value) -> Poll {
    Poll {
        jobs: Some(serde_json::from_value(answer).unwrap()),
        ..Poll::default()
    }
}

fn reports(answer: serde_json::Value, state: State) -> Vec<TaskRunningInfo> {
    application("app-1").reports(jobs(answer), state, 0)
}

fn report(answer: serde_json::Value, state: State) -> TaskRunningInfo {
    let mut reports = reports(answer, state);
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

fn progress(info: &TaskRunningInfo) -> f64 {
    info.progress.as_ref().unwrap().progress
}

fn long(info: &TaskRunningInfo, name: &str) -> i64 {
    match info.metrics.as_ref().unwrap().get(name) {
        Some(MetricValue::Long(value)) => *value,
        other => panic!("{name} is {other:?}"),
    }
}
