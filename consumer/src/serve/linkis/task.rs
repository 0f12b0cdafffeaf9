//! A task in the format of Linkis' job history.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::entrance::progress_of;
use super::yarn::QueueResource;
use crate::query::{TaskDetails, TaskItem};

/// The largest integer that a double represents exactly, as in browsers.
const LARGEST_EXACT: i64 = (1 << 53) - 1;

/// A job's id: a number, as in Linkis, if it is one that a browser can represent; otherwise text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum TaskId {
    Number(i64),
    Text(String),
}

/// A task of the job history: an exec task and its job. Fields that reports do not have are null. Times are in
/// milliseconds since 1970.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct HistoryTask {
    #[serde(rename = "taskID")]
    task_id: TaskId,
    instance: Option<String>,
    exec_id: String,
    /// Reports have only one user, the engine's.
    um_user: String,
    execute_user: String,
    engine_instance: String,
    execution_code: Option<String>,
    /// 0 to 1, as text.
    progress: Option<String>,
    log_path: Option<String>,
    result_location: Option<String>,
    status: String,
    created_time: Option<i64>,
    updated_time: Option<i64>,
    engine_type: String,
    err_code: Option<i32>,
    err_desc: Option<String>,
    execute_application_name: String,
    request_application_name: Option<String>,
    run_type: Option<String>,
    params_json: Option<String>,
    /// Milliseconds.
    cost_time: Option<i64>,
    stronger_exec_id: String,
    source_json: Option<String>,
    source_tailor: Option<String>,
    engine_start_time: Option<i64>,
    labels: Vec<String>,
    can_retry: bool,
    observe_info: Option<String>,
    is_reuse: Option<bool>,
    request_start_time: Option<i64>,
    request_end_time: Option<i64>,
    request_spend_time: Option<i64>,
    /// A JSON object.
    metrics: String,
    engine_log_path: Option<String>,
    ecm_instance: Option<String>,
    ticket_id: String,
    sub_jobs: Option<Vec<String>>,
}

/// The fields of a task for `brief=true`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct BriefTask {
    status: String,
    progress: Option<String>,
    #[serde(rename = "taskID")]
    task_id: TaskId,
    exec_id: String,
    log_path: Option<String>,
    result_location: Option<String>,
    um_user: String,
    execute_user: String,
    err_desc: Option<String>,
    err_code: Option<i32>,
}

/// A task, in full or in brief.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum OneTask {
    Whole(Box<HistoryTask>),
    Brief(Box<BriefTask>),
}

impl TaskId {
    fn of(job_id: String) -> Self {
        match job_id.parse() {
            Ok(number) if (0..=LARGEST_EXACT).contains(&number) && number.to_string() == job_id => {
                Self::Number(number)
            }
            _ => Self::Text(job_id),
        }
    }
}

impl HistoryTask {
    /// With `details`, the metrics include the applications' resources and the engine's metrics.
    pub(super) fn of(item: TaskItem, progress: Option<f64>, details: Option<&TaskDetails>) -> Self {
        let created = item.started_at.as_deref().and_then(millis);
        Self {
            metrics: metrics(&item, details),
            progress: progress_of(&item.status, progress).map(float),
            created_time: created,
            updated_time: millis(&item.reported_at),
            cost_time: item
                .running_seconds
                .map(|seconds| (seconds * 1000.0) as i64),
            request_start_time: created,
            instance: None,
            um_user: item.engine_user.clone(),
            execute_user: item.engine_user,
            engine_instance: item.engine_instance,
            execution_code: None,
            log_path: None,
            result_location: None,
            status: item.status,
            engine_type: item.engine_type.clone(),
            err_code: None,
            err_desc: None,
            execute_application_name: item.engine_type,
            request_application_name: None,
            run_type: None,
            params_json: None,
            stronger_exec_id: item.exec_id.clone(),
            exec_id: item.exec_id,
            task_id: TaskId::of(item.job_id),
            source_json: None,
            source_tailor: None,
            engine_start_time: None,
            labels: Vec::new(),
            can_retry: false,
            observe_info: None,
            is_reuse: None,
            request_end_time: None,
            request_spend_time: None,
            engine_log_path: None,
            ecm_instance: None,
            ticket_id: item.ticket_id,
            sub_jobs: None,
        }
    }
}

impl BriefTask {
    pub(super) fn of(item: TaskItem, progress: Option<f64>) -> Self {
        Self {
            progress: progress_of(&item.status, progress).map(float),
            status: item.status,
            task_id: TaskId::of(item.job_id),
            exec_id: item.exec_id,
            log_path: None,
            result_location: None,
            um_user: item.engine_user.clone(),
            execute_user: item.engine_user,
            err_desc: None,
            err_code: None,
        }
    }
}

/// Linkis' JSON metrics of a job, with its names; only known values.
fn metrics(item: &TaskItem, details: Option<&TaskDetails>) -> String {
    let mut metrics = Map::new();
    let times = [
        ("submitTime", &item.started_at),
        ("completeTime", &item.ended_at),
    ];
    for (name, time) in times {
        if let Some(time) = time.as_deref().and_then(gson_time) {
            metrics.insert(name.to_owned(), time.into());
        }
    }
    metrics.insert(
        "engineInstance".to_owned(),
        item.engine_instance.as_str().into(),
    );
    if let Some(details) = details {
        let held = details.resource.iter();
        let held: BTreeMap<&str, QueueResource> = held
            .map(|held| (held.application_id.as_str(), held.into()))
            .collect();
        if !held.is_empty() {
            metrics.insert("yarnResource".to_owned(), json!(held));
        }
        let reported = details.metrics.as_ref().and_then(|reported| {
            let reported = reported.metrics.as_deref()?;
            serde_json::from_str::<Map<String, Value>>(reported).ok()
        });
        let mut engine = reported.unwrap_or_default();
        engine.insert("ticketId".to_owned(), item.ticket_id.as_str().into());
        engine.insert(
            "engineInstance".to_owned(),
            item.engine_instance.as_str().into(),
        );
        metrics.insert("engineconnMap".to_owned(), json!({&item.ticket_id: engine}));
    }
    Value::Object(metrics).to_string()
}

fn millis(time: &str) -> Option<i64> {
    let time: Timestamp = time.parse().ok()?;
    Some(time.as_millisecond())
}

/// A time in the format of Linkis' JSON columns.
fn gson_time(time: &str) -> Option<String> {
    let time: Timestamp = time.parse().ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%S%z").to_string())
}

/// A number from 0 to 1 in the format of a Java float: `0.1`, `1.0`, `1.0E-4`.
fn float(number: f64) -> String {
    let number = number as f32;
    if number == 0.0 || number >= 1e-3 {
        return format!("{number:?}");
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0E{exponent}"),
        _ => text.replace('e', "E"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_written_as_java_writes_a_float() {
        for (number, text) in [
            (0.0, "0.0"),
            (0.1, "0.1"),
            (0.99, "0.99"),
            (1.0, "1.0"),
            (0.001, "0.001"),
            (1e-4, "1.0E-4"),
            (1.25e-5, "1.25E-5"),
            (1.0 / 3.0, "0.33333334"),
        ] {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn ids_are_numbers_where_browsers_hold_them() {
        let id = |text: &str| serde_json::to_value(TaskId::of(text.to_owned())).unwrap();
        assert_eq!(id("12345"), json!(12345));
        assert_eq!(id("9007199254740991"), json!(9_007_199_254_740_991_i64));
        for text in ["9007199254740992", "007", "-1", "+1", "", "job-1", "1.0"] {
            assert_eq!(id(text), json!(text));
        }
    }

    #[test]
    fn times_in_columns_are_those_of_gson() {
        let time = gson_time("2025-11-25T14:05:00.123456Z");
        assert_eq!(time.as_deref(), Some("2025-11-25T14:05:00+0000"));
    }
}
