use super::*;
use proptest::prelude::*;
use schemas::{TaskStatus, timestamp};

const GOOD: &str = r#"{"execId":"exec-1","jobId":"job-1","engine":{"instance":"node-1:1","engineType":"shell"},"status":"Running","reportedAt":"2026-11-25T14:05:00.123456Z","sequence":3}"#;

fn fails(line: &str) -> Vec<String> {
    let faulty = read(line.as_bytes(), Some(&mut Sequences::default())).unwrap_err();
    faulty.faults.iter().map(ToString::to_string).collect()
}

#[test]
fn microseconds_of_reported_at_are_kept() {
    let info = read(GOOD.as_bytes(), Some(&mut Sequences::default())).unwrap();
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
    let mut next = |line: &str| read(line.as_bytes(), Some(&mut sequences)).unwrap();
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
fn where_nobody_counts_a_report_without_sequence_is_a_fault() {
    assert!(read(GOOD.as_bytes(), None).is_ok());
    let bare = GOOD.replace(",\"sequence\":3", "");
    let faulty = read(bare.as_bytes(), None).unwrap_err();
    assert_eq!(
        faulty
            .faults
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["sequence: is missing: number the reports of each execId 0, 1, 2 …"]
    );
}

#[test]
fn a_report_of_several_lines_is_read_and_its_faults_name_no_column() {
    let lines = GOOD.replace(',', ",\n");
    assert!(read(lines.as_bytes(), None).is_ok());
    let wrong = lines.replace("\"sequence\":3", "\"sequence\":\n\"x\"");
    let faulty = read(wrong.as_bytes(), None).unwrap_err();
    assert_eq!(
        faulty.faults[0].to_string(),
        "sequence: invalid type: string \"x\", expected i64"
    );
    let cut = &lines[..lines.len() - 1];
    let faulty = read(cut.as_bytes(), None).unwrap_err();
    assert!(faulty.faults[0].reason.contains(" at line "), "{faulty:?}");
}

#[test]
fn tasks_that_another_run_would_number_anew_are_known() {
    let bare = r#"{"execId":"exec-1","jobId":"job-1","engine":{"instance":"node-1:1","engineType":"shell"},"status":"Running"}"#;
    let mut sequences = Sequences::default();
    let mut take = |line: &str| {
        read(line.as_bytes(), Some(&mut sequences)).unwrap();
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
        read(line.as_bytes(), Some(&mut Sequences::default()))
            .map(|info| info.reported_at)
            .map_err(|faults| {
                let [fault] = &faults.faults[..] else {
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
    assert_eq!(
        reported_at("\"9999-12-31T23:59:59Z\""),
        Ok(253_402_300_799_000_000)
    );
    // Given explicitly.
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
    let fields: Vec<String> = read(line.as_bytes(), Some(&mut Sequences::default()))
        .unwrap_err()
        .faults
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
    let info = read(line.as_bytes(), Some(&mut Sequences::default())).unwrap();
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
        if let Err(faults) = read(&line, Some(&mut Sequences::default())) {
            prop_assert!(!faults.faults.is_empty());
        }
    }

    #[test]
    fn a_good_line_with_any_damage_is_a_report_or_names_a_fault(at in 0..GOOD.len(), with in any::<u8>()) {
        let mut line = GOOD.as_bytes().to_vec();
        line[at] = with;
        if let Err(faults) = read(&line, Some(&mut Sequences::default())) {
            prop_assert!(!faults.faults.is_empty());
        }
    }
}

#[test]
fn of_a_million_faults_the_first_are_kept_and_the_others_counted() {
    let empty = vec!["{}"; 200_000].join(",");
    let progress = format!(r#","progress":{{"progress":0.5,"progressInfo":[{empty}]}}}}"#);
    let line = format!("{}{progress}", GOOD.strip_suffix('}').unwrap());
    let faulty = read(line.as_bytes(), None).unwrap_err();
    assert_eq!(faulty.faults.len(), 100);
    assert_eq!(faulty.count(), 1_000_000);
    assert_eq!(
        faulty.faults[0].to_string(),
        "progress.progressInfo[0].id: is missing"
    );
}
