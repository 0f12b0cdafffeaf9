//! One line of JSON → a report, or everything that is wrong with it. Pure.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use schemas::{
    EngineInstance, JobProgressInfo, MetricValue, Problem, ResourceWithStatus, TaskProgressInfo,
    TaskResourceInfo, TaskRunningInfo,
};
use serde_json::value::RawValue;

use super::object::{Fault, Faults, Object, Path, map, message};

/// Tasks whose reports are counted at a time.
const COUNTED_TASKS_MAX: usize = 100_000;

/// Whole microseconds since 1970 of the years 1973 to 5138. A number outside of them is taken for another unit: in
/// seconds, milliseconds and nanoseconds, those years have other magnitudes.
const PLAUSIBLE_MICROS: std::ops::Range<i64> = 100_000_000_000_000..100_000_000_000_000_000;

/// Counts each task's reports, for lines without `sequence`.
#[derive(Default)]
pub(super) struct Sequences(HashMap<String, Counted>);

/// A task that has not ended.
struct Counted {
    next: i64,
    /// Whether its last report had no number of its own.
    left_out: bool,
}

impl Sequences {
    fn next(&self, exec_id: &str) -> Option<i64> {
        let full = self.0.len() >= COUNTED_TASKS_MAX;
        match self.0.get(exec_id) {
            None if full => None,
            counted => Some(counted.map_or(0, |counted| counted.next)),
        }
    }

    fn note(&mut self, info: &TaskRunningInfo, left_out: bool) {
        let room = self.0.len() < COUNTED_TASKS_MAX;
        if info.status.is_final() {
            self.0.remove(&info.exec_id);
        } else if room || self.0.contains_key(&info.exec_id) {
            let next = info.sequence.saturating_add(1);
            self.0
                .insert(info.exec_id.clone(), Counted { next, left_out });
        }
    }

    /// Of the tasks that were numbered here and have not ended: how many, and one of them.
    pub(super) fn unfinished(&self) -> Option<(usize, &str)> {
        let mut tasks = self.0.iter().filter(|(_, counted)| counted.left_out);
        let (first, _) = tasks.next()?;
        Some((tasks.count() + 1, first))
    }
}

/// Reads a line. `reportedAt` is now where it is left out, and `sequence` counts the lines of its
/// execId. What the router repairs is passed on as it is.
///
/// # Errors
/// Everything that makes the record unusable, at least one thing.
pub(super) fn read(line: &[u8], sequences: &mut Sequences) -> Result<TaskRunningInfo, Vec<Fault>> {
    let whole = |reason| {
        vec![Fault {
            field: String::new(),
            reason,
        }]
    };
    let text = std::str::from_utf8(line)
        .map_err(|error| whole(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| {
        let reason = error
            .to_string()
            .replace(" at line 1 column ", " at column ");
        let hint = not_finite_hint(text, error.column()).unwrap_or_default();
        whole(format!("not JSON: {reason}{hint}"))
    })?;
    let faults = Faults::of(text);
    let read = Object::open(&faults, Path::Root, raw).map(|report| info(report, sequences));
    let mut found = faults.into_found();
    let (info, left_out) = match read {
        Some(read) => read,
        None => return Err(found),
    };
    let unusable = info.problems().into_iter();
    let unusable = unusable.filter(|problem| problem.fault.adjustment().is_none());
    // A field that is missing or wrong was replaced by its default.
    let unread = Vec::from_iter(found.iter().map(|fault| fault.field.clone()));
    let unusable = unusable.filter(|problem| {
        let within = |field: &String| problem.field.strip_prefix(field.as_str());
        !unread
            .iter()
            .filter_map(within)
            .any(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    found.extend(unusable.map(fault));
    if !found.is_empty() {
        return Err(found);
    }
    sequences.note(&info, left_out);
    Ok(info)
}

/// How to write what Python's `json.dumps` and others write for a number that JSON does not have.
fn not_finite_hint(line: &str, column: usize) -> Option<String> {
    let (before, rest) = line.split_at_checked(column.checked_sub(1)?)?;
    let name = ["NaN", "Infinity"]
        .into_iter()
        .find(|name| rest.starts_with(name))?;
    let sign = if before.ends_with('-') { "-" } else { "" };
    Some(format!("; write \"{sign}{name}\", in quotes"))
}

fn fault(problem: Problem) -> Fault {
    let text = problem.to_string();
    let field = problem.field.into_owned();
    let reason = text.strip_prefix(&field).unwrap_or(&text).trim().to_owned();
    Fault { field, reason }
}

/// The record, and whether its sequence was left out.
fn info(mut of: Object<'_, '_>, sequences: &Sequences) -> (TaskRunningInfo, bool) {
    let mut info = TaskRunningInfo {
        exec_id: of.required("execId", Faults::value),
        job_id: of.required("jobId", Faults::value),
        engine: of.required("engine", engine),
        status: of.required("status", Faults::value),
        reported_at: of
            .optional("reportedAt", |faults, path, raw| {
                let time = reported_at(raw.get());
                Some(time.map_err(|reason| faults.add(path, reason)).ok())
            })
            .unwrap_or_else(|| Timestamp::now().as_microsecond()),
        sequence: 0,
        progress: of.optional("progress", |faults, path, raw| {
            part(faults, path, raw, progress)
        }),
        resource: of.optional("resource", |faults, path, raw| {
            part(faults, path, raw, resource)
        }),
        metrics: of.optional("metrics", |faults, path, raw| {
            part(faults, path, raw, metrics)
        }),
    };
    let given = of.optional("sequence", |faults, path, raw| {
        Some(Some(faults.value(path, raw).unwrap_or_default()))
    });
    match given.or_else(|| sequences.next(&info.exec_id)) {
        Some(sequence) => info.sequence = sequence,
        None => of.fault(
            "sequence",
            &format!(
                "is missing, and cannot be counted for more than {COUNTED_TASKS_MAX} tasks at a time: write it yourself"
            ),
        ),
    }
    of.end();
    (info, given.is_none())
}

/// A part that may be null.
fn part<'a, T>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
    read: impl FnOnce(&Faults<'a>, Path<'_>, &'a RawValue) -> Option<T>,
) -> Option<Option<T>> {
    match raw.get() {
        "null" => Some(None),
        _ => read(faults, path, raw).map(Some),
    }
}

fn engine<'a>(faults: &Faults<'a>, path: Path<'_>, raw: &'a RawValue) -> Option<EngineInstance> {
    let mut of = Object::open(faults, path, raw)?;
    let engine = EngineInstance {
        instance: of.required("instance", Faults::value),
        engine_type: of.required("engineType", Faults::value),
        user: of.optional("user", Faults::value),
        ticket_id: of.optional("ticketId", Faults::value),
        running_tasks: of.optional("runningTasks", Faults::value),
    };
    of.end();
    Some(engine)
}

fn progress<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<TaskProgressInfo> {
    let mut of = Object::open(faults, path, raw)?;
    let progress = TaskProgressInfo {
        progress: of.required("progress", |faults, path, raw| {
            match serde_json::from_str::<String>(raw.get()) {
                Ok(text) => schemas::not_finite(&text).or_else(|| {
                    let expected =
                        "expected a number, or one of \"NaN\", \"Infinity\", \"-Infinity\"";
                    faults.add(path, format!("{expected}; found {text:?}"));
                    None
                }),
                Err(_) => faults.value(path, raw),
            }
        }),
        progress_info: of.optional("progressInfo", |faults, path, raw| {
            let jobs: Vec<&RawValue> = serde_json::from_str(raw.get())
                .map_err(|error| faults.add(path, faults.reason(raw.get(), &error)))
                .ok()?;
            let jobs = jobs.into_iter().enumerate();
            let jobs = jobs.map(|(at, raw)| job(faults, Path::Item(&path, at), raw));
            Some(jobs.map(Option::unwrap_or_default).collect())
        }),
    };
    of.end();
    Some(progress)
}

fn job<'a>(faults: &Faults<'a>, path: Path<'_>, raw: &'a RawValue) -> Option<JobProgressInfo> {
    let mut of = Object::open(faults, path, raw)?;
    let job = JobProgressInfo {
        id: of.required("id", Faults::value),
        total_tasks: of.required("totalTasks", Faults::value),
        running_tasks: of.required("runningTasks", Faults::value),
        failed_tasks: of.required("failedTasks", Faults::value),
        succeed_tasks: of.required("succeedTasks", Faults::value),
    };
    of.end();
    Some(job)
}

fn resource<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<TaskResourceInfo> {
    let mut of = Object::open(faults, path, raw)?;
    let applications = of.optional("applications", |faults, path, raw| {
        map(faults, path, raw, application)
    });
    of.end();
    Some(TaskResourceInfo { applications })
}

fn application<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<ResourceWithStatus> {
    let mut of = Object::open(faults, path, raw)?;
    let application = ResourceWithStatus {
        queue_memory: of.required("queueMemory", Faults::value),
        queue_cores: of.required("queueCores", Faults::value),
        queue_instances: of.required("queueInstances", Faults::value),
        job_status: of.required("jobStatus", Faults::value),
        queue: of.required("queue", Faults::value),
    };
    of.end();
    Some(application)
}

fn metrics<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<BTreeMap<String, MetricValue>> {
    map(faults, path, raw, Faults::value)
}

/// A time in microseconds since 1970: RFC 3339 text, or that number.
fn reported_at(json: &str) -> Result<i64, String> {
    let text: Option<String> = serde_json::from_str(json).ok();
    let given = text.as_deref().unwrap_or(json).trim();
    if let Ok(number) = given.parse::<f64>() {
        return match given.parse() {
            Ok(micros) if text.is_none() && PLAUSIBLE_MICROS.contains(&micros) => Ok(micros),
            _ => Err(wrong_unit(json, number)),
        };
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    schemas::timestamp::deserialize(&mut deserializer).map_err(|error| {
        if given.parse::<jiff::civil::DateTime>().is_ok() {
            return format!(
                "{given:?} has no offset from UTC: end it with Z, or with one such as +08:00"
            );
        }
        message(&error).0
    })
}

fn wrong_unit(json: &str, number: f64) -> String {
    let (unit, micros) = match number {
        1e8..1e11 => ("looks like epoch seconds", Some(number * 1e6)),
        1e11..1e14 => ("looks like epoch milliseconds", Some(number * 1e3)),
        1e14..1e17 => ("is not a whole number in digits", Some(number)),
        1e17..1e20 => ("looks like epoch nanoseconds", Some(number / 1e3)),
        _ => ("is no plausible time in microseconds since 1970", None),
    };
    let meant = micros.and_then(|micros| {
        let micros = micros.round() as i64;
        Some(format!(
            ": {:?} or {micros}",
            schemas::timestamp::to_rfc3339(micros)?
        ))
    });
    let meant = meant.unwrap_or_default();
    format!(
        "{json} {unit}; give RFC 3339 text, or whole microseconds since 1970 as a number{meant}"
    )
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
    fn tasks_that_another_run_would_number_anew_are_known() {
        let bare = r#"{"execId":"exec-1","jobId":"job-1","engine":{"instance":"node-1:1","engineType":"shell"},"status":"Running"}"#;
        let mut sequences = Sequences::default();
        let mut take = |line: &str| {
            read(line.as_bytes(), &mut sequences).unwrap();
            let unfinished = sequences.unfinished();
            unfinished.map(|(count, exec_id)| (count, exec_id.to_owned()))
        };
        assert_eq!(take(GOOD), None, "its sequence is written");
        assert_eq!(take(bare), Some((1, "exec-1".to_owned())));
        assert_eq!(take(&bare.replace("exec-1", "exec-2")).unwrap().0, 2);
        assert_eq!(take(&bare.replace("Running", "Failed")).unwrap().0, 1);
    }

    #[test]
    fn numbers_of_reported_at_are_microseconds_and_other_units_are_named() {
        let reported_at = |json: &str| {
            let line = GOOD.replace("\"2026-11-25T14:05:00.123456Z\"", json);
            read(line.as_bytes(), &mut Sequences::default())
                .map(|info| info.reported_at)
                .map_err(|faults| {
                    let [fault] = &faults[..] else {
                        panic!("{faults:?}")
                    };
                    assert_eq!(fault.field, "reportedAt");
                    fault.reason.clone()
                })
        };
        assert_eq!(reported_at("1764425885000000"), Ok(1_764_425_885_000_000));
        assert_eq!(
            reported_at("\"2025-11-29T14:18:05Z\""),
            Ok(1_764_425_885_000_000)
        );
        assert_eq!(
            reported_at("\"2025-11-29T22:18:05+08:00\""),
            Ok(1_764_425_885_000_000)
        );
        // Meant in so many words.
        assert_eq!(reported_at("\"1970-01-01T00:00:01Z\""), Ok(1_000_000));
        let give = "give RFC 3339 text, or whole microseconds since 1970 as a number";
        let meant = "\"2025-11-29T14:18:05.000000Z\" or 1764425885000000";
        for (json, looks_like) in [
            ("1764425885", "looks like epoch seconds"),
            ("1764425885.0", "looks like epoch seconds"),
            ("1.764425885e9", "looks like epoch seconds"),
            ("\"1764425885\"", "looks like epoch seconds"),
            ("1764425885000", "looks like epoch milliseconds"),
            ("1764425885000000000", "looks like epoch nanoseconds"),
            ("\"1764425885000000\"", "is not a whole number in digits"),
            ("1764425885000000.0", "is not a whole number in digits"),
            ("1.764425885e15", "is not a whole number in digits"),
        ] {
            let reason = format!("{json} {looks_like}; {give}: {meant}");
            assert_eq!(reported_at(json), Err(reason));
        }
        for json in ["0", "-1", "86400", "-1764425885", "1e300"] {
            let reason = format!("{json} is no plausible time in microseconds since 1970; {give}");
            assert_eq!(reported_at(json), Err(reason));
        }
        let local = reported_at("\"2025-11-29T14:18:05\"").unwrap_err();
        assert!(local.contains("has no offset from UTC"), "{local}");
        let none = reported_at("null").unwrap_err();
        assert_eq!(
            none,
            "invalid type: null, expected RFC 3339 text such as \"2026-11-25T14:05:00.123456Z\", or whole microseconds since 1970"
        );
        for (json, found) in [("[]", "array"), ("{}", "object")] {
            let reason = none.replace("null", found);
            assert_eq!(reported_at(json), Err(reason));
        }
    }

    #[test]
    fn every_wrong_field_is_named() {
        let line = r#"{"execId":7,"jobId":" ","engine":{"instance":null,"engineTyp":"shell"},"status":"Ruining","reportedAt":1764425885,"sequence":1.5,
            "progress":{"progress":"much","progressInfo":[{"id":"0","totalTasks":1},7]},
            "resource":{"applications":{"a b":{"queueMemory":1,"queueCores":3000000000,"queueInstances":1,"jobStatus":"","queue":""}}},
            "metrics":{"fine":1,"x":[],"far":1e999}}"#;
        let faults = fails(&line.replace('\n', ""));
        let named = [
            "execId: invalid type: integer `7`, expected a string at column 11",
            "engine.instance: invalid type: null, expected a string",
            "engine.engineType: is missing",
            "engine.engineTyp: is not a known field; there are instance, engineType, user, ticketId, runningTasks",
            "status: unknown variant `Ruining`",
            "reportedAt: 1764425885 looks like epoch seconds",
            "progress.progress: expected a number, or one of",
            "progress.progressInfo[0].runningTasks: is missing",
            "progress.progressInfo[0].failedTasks: is missing",
            "progress.progressInfo[0].succeedTasks: is missing",
            "progress.progressInfo[1]: invalid type: integer `7`, expected a JSON object",
            "resource.applications[\"a b\"].queueCores: invalid value: integer `3000000000`, expected i32",
            "metrics[\"x\"]: invalid type: array, expected null, a boolean, a number or a text",
            "metrics[\"far\"]: number out of range",
            "sequence: invalid type: floating point `1.5`, expected i64",
            "jobId: is blank",
        ];
        assert_eq!(faults.len(), named.len(), "{faults:#?}");
        for (fault, named) in faults.iter().zip(named) {
            assert!(
                fault.starts_with(named),
                "{fault:?} does not begin with {named:?}"
            );
        }
    }

    #[test]
    fn a_line_that_is_not_json_or_not_an_object_is_called_that() {
        for (line, said) in [
            ("hello", "not JSON: expected value at column 1"),
            (
                "{\"execId\":",
                "not JSON: EOF while parsing a value at column 10",
            ),
            ("{} {}", "not JSON: trailing characters at column 4"),
            ("{\"execId\":\"a\0b\"}", "not JSON: control character"),
            (
                "{\"execId\":NaN}",
                "not JSON: expected value at column 11; write \"NaN\", in quotes",
            ),
            (
                "{\"execId\": Infinity}",
                "not JSON: expected value at column 12; write \"Infinity\", in quotes",
            ),
            (
                "{\"execId\":\"é\",\"a\":[-Infinity]}",
                "not JSON: invalid number at column 22; write \"-Infinity\", in quotes",
            ),
            ("[1]", "invalid type: array, expected a JSON object"),
            ("7", "invalid type: integer `7`, expected a JSON object"),
        ] {
            let faults = fails(line);
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].starts_with(said), "{faults:?}");
        }
    }

    #[test]
    fn a_name_that_is_given_twice_is_refused_wherever_it_is() {
        let line = GOOD.replace(
            r#""sequence":3"#,
            r#""sequence":3,"sequence":4,"metrics":{"a":1,"\u0061":2}"#,
        );
        assert_eq!(
            fails(&line),
            ["sequence: is given twice", "metrics[\"a\"]: is given twice"]
        );
    }

    #[test]
    fn nesting_of_any_depth_is_a_wrong_type() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let line = GOOD.replace(
            r#""sequence":3"#,
            &format!(r#""sequence":3,"metrics":{{"deep":{deep}}},"progress":{deep}"#),
        );
        let faults = fails(&line);
        assert_eq!(faults.len(), 2);
        assert!(faults[0].starts_with("progress: invalid type: array"));
        assert!(faults[1].starts_with("metrics[\"deep\"]: invalid type: array"));
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
            faults[0].starts_with("resource.applications[\"a\"].queue: "),
            "{faults:?}"
        );
    }

    #[test]
    fn a_wrong_type_is_named_by_field_and_column() {
        let wrong = fails(&GOOD.replace("\"node-1:1\"", "7"));
        assert_eq!(
            wrong,
            [r#"engine.instance: invalid type: integer `7`, expected a string at column 57"#]
        );
        assert_eq!(
            fails(r#"{"execId":"a"}"#),
            [
                "jobId: is missing",
                "engine: is missing",
                "status: is missing"
            ]
        );
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
        assert_eq!(fields, ["reportedAt", "execId", "jobId"]);
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
