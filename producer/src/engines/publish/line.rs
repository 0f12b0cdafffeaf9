//! One line of JSON → a report, or everything that is wrong with it. Pure.

use std::collections::HashMap;

use jiff::Timestamp;
use schemas::TaskRunningInfo;
use serde_json::value::RawValue;

/// Tasks whose reports are counted at a time.
const COUNTED_TASKS_MAX: usize = 100_000;

/// What is wrong with a line, and where in it.
#[derive(Debug, PartialEq)]
pub(crate) struct Fault {
    /// The field's path; empty where the line is no JSON object at all.
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl Fault {
    fn whole(reason: impl Into<String>) -> Vec<Self> {
        vec![Self {
            field: String::new(),
            reason: reason.into(),
        }]
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// Counts each task's reports, for lines without `sequence`.
#[derive(Default)]
pub(crate) struct Sequences(HashMap<String, i64>);

impl Sequences {
    fn next(&self, exec_id: &str) -> Option<i64> {
        let full = self.0.len() >= COUNTED_TASKS_MAX;
        match self.0.get(exec_id) {
            None if full => None,
            next => Some(next.copied().unwrap_or(0)),
        }
    }

    fn note(&mut self, info: &TaskRunningInfo) {
        let room = self.0.len() < COUNTED_TASKS_MAX;
        if info.status.is_final() {
            self.0.remove(&info.exec_id);
        } else if room || self.0.contains_key(&info.exec_id) {
            let next = info.sequence.saturating_add(1);
            self.0.insert(info.exec_id.clone(), next);
        }
    }
}

/// Reads a line. `reportedAt` is now where it is left out, and `sequence` counts the lines of its
/// execId. What the router repairs is passed on as it is.
///
/// # Errors
/// Everything that makes the record unusable, at least one thing.
pub(crate) fn read(line: &[u8], sequences: &mut Sequences) -> Result<TaskRunningInfo, Vec<Fault>> {
    let text = std::str::from_utf8(line)
        .map_err(|error| Fault::whole(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    let completed = complete(text.trim(), sequences)?;

    let mut json = serde_json::Deserializer::from_str(&completed);
    let info: TaskRunningInfo = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        vec![Fault {
            field: if field == "." { String::new() } else { field },
            reason: reason(error.inner()),
        }]
    })?;
    let unusable: Vec<Fault> = info
        .problems()
        .into_iter()
        .filter(|problem| problem.fault.adjustment().is_none())
        .map(|problem| {
            let text = problem.to_string();
            let field = problem.field.into_owned();
            let reason = text.strip_prefix(&field).unwrap_or(&text).trim().to_owned();
            Fault { field, reason }
        })
        .collect();
    if !unusable.is_empty() {
        return Err(unusable);
    }
    sequences.note(&info);
    Ok(info)
}

/// Adds the fields that may be left out, at the end of the object, so that the columns that errors
/// name stay those of the line.
fn complete(text: &str, sequences: &Sequences) -> Result<String, Vec<Fault>> {
    let given: HashMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|error| Fault::whole(reason(&error)))?;
    let mut added = String::new();
    if !given.contains_key("reportedAt") {
        added += &format!(",\"reportedAt\":{}", Timestamp::now().as_microsecond());
    }
    if !given.contains_key("sequence") {
        // An execId that is missing or no text is told with the other fields.
        let exec_id = given.get("execId");
        let exec_id = exec_id.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let next = sequences.next(&exec_id.unwrap_or_default()).ok_or_else(|| {
            vec![Fault {
                field: "sequence".to_owned(),
                reason: format!(
                    "is missing, and cannot be counted for more than {COUNTED_TASKS_MAX} tasks at a time: write it yourself"
                ),
            }]
        })?;
        added += &format!(",\"sequence\":{next}");
    }
    let added = if given.is_empty() {
        added.trim_start_matches(',')
    } else {
        &added
    };
    let body = text.strip_suffix('}').unwrap_or(text);
    Ok(format!("{body}{added}}}"))
}

/// serde_json's message; there is but one line, so only the column is of use.
fn reason(error: &serde_json::Error) -> String {
    error
        .to_string()
        .replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::{TaskStatus, timestamp};

    const GOOD: &str = r#"{"execId":"exec-1","jobId":"job-1","engine":{"instance":"node-1:1","engineType":"shell"},"status":"Running","reportedAt":"2026-11-25T14:05:00.123456Z","sequence":3}"#;

    fn fails(line: &str) -> Vec<String> {
        let faults = read(line.as_bytes(), &mut Sequences::default()).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn microseconds_of_reported_at_are_kept() {
        let info = read(GOOD.as_bytes(), &mut Sequences::default()).unwrap();
        assert_eq!(info.reported_at % 1_000_000, 123_456);
        assert_eq!(
            timestamp::to_rfc3339(info.reported_at).as_deref(),
            Some("2026-11-25T14:05:00.123456Z")
        );
    }

    #[test]
    fn a_line_without_time_and_sequence_gets_the_present_and_the_next_number() {
        let bare = r#"{"execId":"exec-1","jobId":"job-1","engine":{"instance":"node-1:1","engineType":"shell"},"status":"Running"}"#;
        let last = bare.replace("Running", "Succeed");
        let mut sequences = Sequences::default();
        let mut next = |line: &str| read(line.as_bytes(), &mut sequences).unwrap();
        let first = next(bare);
        assert!(first.reported_at > 1_700_000_000_000_000);
        assert_eq!(first.sequence, 0);
        assert_eq!(next(bare).sequence, 1);
        assert_eq!(next(&bare.replace("exec-1", "exec-2")).sequence, 0);
        assert_eq!(next(GOOD).sequence, 3);
        let last = next(&last);
        assert_eq!((last.sequence, last.status), (4, TaskStatus::Succeed));
        assert_eq!(sequences.0.len(), 1, "an ended task is not remembered");
    }

    #[test]
    fn a_lone_surrogate_is_named_with_its_field() {
        let line = GOOD.replace(
            r#""sequence":3"#,
            r#""sequence":3,"resource":{"applications":{"a":{"queueMemory":1,"queueCores":1,"queueInstances":1,"jobStatus":"","queue":"a\ud83d"}}}"#,
        );
        let faults = fails(&line);
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].starts_with("resource.applications.a.queue: "),
            "{faults:?}"
        );
    }

    #[test]
    fn a_wrong_type_and_an_unknown_field_are_named_by_field_and_column() {
        let wrong = fails(&GOOD.replace("\"node-1:1\"", "7"));
        assert_eq!(
            wrong,
            [r#"engine.instance: invalid type: integer `7`, expected a string at column 57"#]
        );
        let unknown = fails(&GOOD.replace("\"sequence\"", "\"sequense\""));
        assert!(
            unknown[0].starts_with("sequense: unknown field `sequense`"),
            "{unknown:?}"
        );
        let missing = fails(r#"{"execId":"a"}"#);
        assert!(missing[0].contains("missing field `jobId`"), "{missing:?}");
        assert!(fails("{}")[0].contains("missing field `execId`"));
        assert!(fails("[1]")[0].contains("expected a map"));
        assert!(fails("{\"execId\":")[0].contains("EOF"));
    }

    #[test]
    fn every_thing_that_makes_a_record_unusable_is_listed() {
        let line = GOOD
            .replace("exec-1", " ")
            .replace("job-1", &"j".repeat(600))
            .replace("\"2026-11-25T14:05:00.123456Z\"", "9223372036854775807");
        let fields: Vec<String> = read(line.as_bytes(), &mut Sequences::default())
            .unwrap_err()
            .into_iter()
            .map(|fault| fault.field)
            .collect();
        assert_eq!(fields, ["execId", "jobId", "reportedAt"]);
    }

    #[test]
    fn what_the_router_repairs_is_passed_on_as_it_is() {
        let line = GOOD.replace(
            r#""sequence":3"#,
            r#""sequence":-3,"progress":{"progress":"NaN","progressInfo":[{"id":"0","totalTasks":-1,"runningTasks":0,"failedTasks":0,"succeedTasks":0}]},"metrics":{"busy":"NaN","uptime":-1}"#,
        );
        let info = read(line.as_bytes(), &mut Sequences::default()).unwrap();
        let progress = info.progress.unwrap();
        assert!(progress.progress.is_nan());
        assert_eq!(progress.progress_info[0].total_tasks, -1);
        assert_eq!(info.sequence, -3);
        let metrics = info.metrics.unwrap();
        assert_eq!(metrics["busy"], schemas::MetricValue::String("NaN".into()));
        assert_eq!(metrics["uptime"], schemas::MetricValue::Long(-1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_report_or_name_a_fault(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err(faults) = read(&line, &mut Sequences::default()) {
                prop_assert!(!faults.is_empty());
            }
        }

        #[test]
        fn a_good_line_with_any_damage_is_a_report_or_names_a_fault(at in 0..GOOD.len(), with in any::<u8>()) {
            let mut line = GOOD.as_bytes().to_vec();
            line[at] = with;
            if let Err(faults) = read(&line, &mut Sequences::default()) {
                prop_assert!(!faults.is_empty());
            }
        }
    }
}
