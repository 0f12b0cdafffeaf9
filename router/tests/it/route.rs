//! `route` is total, and its outcome depends only on the record's problems.

use std::collections::BTreeSet;

use crate::strategies;
use proptest::prelude::*;
use router::{Outcome, route};
use schemas::{
    Adjustment, Decoder, Framing, MetricValue, PlainSource, Reject, SourcePosition,
    TaskRunningInfo, TaskRunningInfoEvent, TaskStatus,
};

fn source() -> SourcePosition {
    SourcePosition {
        topic: "t".into(),
        partition: 1,
        offset: 2,
        timestamp: 3,
        topic_id: Some("ASNFZ4mrze8AESIzRFVmdw".into()),
    }
}

/// The event or the reject of a value.
fn routed_value(value: Option<&[u8]>) -> Result<TaskRunningInfoEvent, Reject> {
    let source = source();
    let source = PlainSource {
        topic: &source.topic,
        partition: source.partition,
        offset: source.offset,
        timestamp: source.timestamp,
        topic_id: source.topic_id.as_deref(),
    };
    match route(
        &Decoder::default(),
        value,
        source,
        4,
        Framing::SingleObject,
        1 << 20,
        &mut Vec::new(),
    ) {
        Outcome::Event {
            key,
            value,
            adjustments,
        } => {
            let event = schemas::decode_event(Some(value)).unwrap();
            assert_eq!(
                (&*key, &adjustments),
                (&*event.info.exec_id, &event.adjustments)
            );
            Ok(event)
        }
        Outcome::DeadLetter(reject) => Err(reject),
    }
}

fn routed(info: &TaskRunningInfo) -> Result<TaskRunningInfoEvent, Reject> {
    routed_value(Some(&schemas::encode_info(info).unwrap()))
}

/// The event's info and adjustments.
fn event(info: &TaskRunningInfo) -> (TaskRunningInfo, Vec<Adjustment>) {
    let event = routed(info).unwrap_or_else(|reject| panic!("{reject:?}"));
    assert_eq!((&event.source, event.routed_at), (&source(), 4));
    (event.info, event.adjustments)
}

fn rejected(info: &TaskRunningInfo) -> (&'static str, String) {
    match routed(info) {
        Err(reject) => (reject.kind, reject.message),
        Ok(event) => panic!("{event:?}"),
    }
}

/// A good record to spoil.
fn good() -> TaskRunningInfo {
    strategies::sample_event().info
}

fn with_progress(progress: f64) -> TaskRunningInfo {
    let mut info = good();
    info.progress.as_mut().unwrap().progress = progress;
    info
}

#[test]
fn a_good_record_is_carried_over_as_it_is() {
    assert_eq!(event(&good()), (good(), vec![]));
}

#[test]
fn progress_out_of_range_is_repaired_and_named() {
    use Adjustment::{ProgressAboveOne, ProgressBelowZero, ProgressNotANumber};
    for (reported, repaired, named) in [
        (f64::NAN, 0.0, ProgressNotANumber),
        (-f64::NAN, 0.0, ProgressNotANumber),
        (-0.25, 0.0, ProgressBelowZero),
        (f64::NEG_INFINITY, 0.0, ProgressBelowZero),
        (1.000_000_1, 1.0, ProgressAboveOne),
        (f64::INFINITY, 1.0, ProgressAboveOne),
    ] {
        let routed = routed(&with_progress(reported)).unwrap();
        let names = Vec::from_iter(&routed.not_finite);
        let (info, adjustments) = (routed.info.clone(), routed.adjustments);
        match reported {
            reported if reported.is_finite() => assert_eq!(names, []),
            reported => {
                let name = if reported.is_nan() {
                    "NaN".to_owned()
                } else {
                    format!("{reported}").replace("inf", "Infinity")
                };
                assert_eq!(names, [(&"progress.progress".to_owned(), &name)]);
            }
        }
        let progress = info.progress.unwrap().progress;
        assert!(
            progress == repaired && progress.is_sign_positive(),
            "{reported} became {progress}"
        );
        assert_eq!(adjustments, [named]);
    }
    for reported in [0.0, f64::MIN_POSITIVE, 0.9524, 1.0] {
        assert_eq!(
            event(&with_progress(reported)),
            (with_progress(reported), vec![])
        );
    }
    // Negative zero is zero, without a problem.
    let (info, adjustments) = event(&with_progress(-0.0));
    assert!(info.progress.unwrap().progress.is_sign_positive());
    assert_eq!(adjustments, []);
}

#[test]
fn metrics_that_were_not_finite_are_named_with_their_values_and_a_null_is_not() {
    let double = |value: f64| MetricValue::Double(value);
    let text = |value: &str| MetricValue::String(value.into());
    let reported = [
        ("unknown", MetricValue::Null, None),
        ("a", double(f64::NAN), Some("NaN")),
        ("b", double(f64::INFINITY), Some("Infinity")),
        ("c", double(f64::NEG_INFINITY), Some("-Infinity")),
        ("d", text("NaN"), Some("NaN")),
        ("e", text("nan"), Some("NaN")),
        ("f", text("-nan"), Some("NaN")),
        ("g", text("Infinity"), Some("Infinity")),
        ("h", text("+Inf"), Some("Infinity")),
        ("i", text("inf"), Some("Infinity")),
        ("j", text("-inf"), Some("-Infinity")),
        ("k", text("-Infinity"), Some("-Infinity")),
        // Named as stored.
        ("l\0", double(f64::NAN), Some("NaN")),
        ("m", text("information"), None),
        ("n", text("1e999"), None),
    ];
    let mut info = good();
    let metrics = reported
        .clone()
        .map(|(name, value, _)| (name.to_owned(), value));
    info.metrics = Some(metrics.into());
    let routed = routed(&info).unwrap();
    assert_eq!(
        routed.adjustments,
        [Adjustment::NulInText, Adjustment::MetricNotFinite]
    );
    let metrics = routed.info.metrics.unwrap();
    let mut named = BTreeSet::new();
    for (name, value, was) in reported {
        let name = name.replace('\0', "\u{FFFD}");
        let became = if was.is_some() {
            MetricValue::Null
        } else {
            value
        };
        assert_eq!(metrics[&name], became, "{name}");
        named.extend(was.map(|was| (format!("metrics.{name}"), was.to_owned())));
    }
    assert!(routed.not_finite.into_iter().eq(named));
}

#[test]
fn an_event_that_not_finite_would_make_too_large_omits_it() {
    let with_metrics = |metrics: usize, digits: usize| {
        let mut info = good();
        let metrics =
            (0..metrics).map(|i| (format!("{i:0digits$}"), MetricValue::Double(f64::NAN)));
        info.metrics = Some(metrics.collect());
        routed(&info)
    };
    let named = with_metrics(900, 300).unwrap();
    assert_eq!(named.not_finite.len(), 900);
    let unnamed = with_metrics(900, 800).unwrap();
    assert_eq!(unnamed.not_finite.len(), 0);
    assert_eq!(unnamed.adjustments, [Adjustment::MetricNotFinite]);
    assert_eq!(unnamed.info.metrics.unwrap().len(), 900);
    // Only the first of many are named.
    let many = with_metrics(1_500, 5).unwrap();
    assert_eq!(many.not_finite.len(), 1_000);
    assert!(many.not_finite.contains_key("metrics.00999"));
}

#[test]
fn a_task_that_succeeded_at_less_than_all_of_its_work_keeps_both() {
    let mut info = with_progress(0.9524);
    info.status = TaskStatus::Succeed;
    let job = &mut info.progress.as_mut().unwrap().progress_info[0];
    (
        job.total_tasks,
        job.succeed_tasks,
        job.running_tasks,
        job.failed_tasks,
    ) = (21, 20, 0, 0);
    assert_eq!(event(&info), (info, vec![]));
}

#[test]
fn negative_counts_become_zero_once_named() {
    let mut info = good();
    info.engine.running_tasks = -1;
    let job = &mut info.progress.as_mut().unwrap().progress_info[0];
    (job.running_tasks, job.failed_tasks) = (-3, i32::MIN);
    info.resource
        .as_mut()
        .unwrap()
        .applications
        .get_mut("app-1")
        .unwrap()
        .queue_memory = i64::MIN;
    let (repaired, adjustments) = event(&info);
    assert_eq!(adjustments, [Adjustment::NegativeCount]);
    assert_eq!(repaired.engine.running_tasks, 0);
    let job = &repaired.progress.unwrap().progress_info[0];
    assert_eq!(
        (job.total_tasks, job.running_tasks, job.failed_tasks),
        (10, 0, 0)
    );
    assert_eq!(
        repaired.resource.unwrap().applications["app-1"].queue_memory,
        0
    );
}

#[test]
fn metrics_may_be_negative_but_not_infinite_nor_text_that_means_so() {
    let mut info = good();
    let reported = [
        ("busy.0", MetricValue::String("NaN".into())),
        ("busy.1", MetricValue::Long(0)),
        ("busy.2", MetricValue::Double(12.5)),
        ("busy.3", MetricValue::Double(f64::INFINITY)),
        ("uptime", MetricValue::Long(-1)),
        ("downtime", MetricValue::Double(-1.0)),
        ("note", MetricValue::String("NaN is not a number".into())),
    ];
    info.metrics = Some(
        reported
            .clone()
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
    );
    let (repaired, adjustments) = event(&info);
    assert_eq!(adjustments, [Adjustment::MetricNotFinite]);
    let metrics = repaired.metrics.unwrap();
    for (name, value) in reported {
        let expected = if ["busy.0", "busy.3"].contains(&name) {
            MetricValue::Null
        } else {
            value
        };
        assert_eq!(metrics[name], expected, "{name}");
    }
}

#[test]
fn text_that_postgresql_cannot_store_is_repaired_also_in_names_and_none_is_lost() {
    let mut info = good();
    info.exec_id = "exec\0-1".into();
    info.metrics = Some(
        [("a\0", 1), ("a\u{FFFD}", 2), ("b", 3)]
            .map(|(name, value)| (name.to_owned(), MetricValue::Long(value)))
            .into(),
    );
    let (repaired, adjustments) = event(&info);
    assert_eq!(adjustments, [Adjustment::NulInText]);
    assert_eq!(repaired.exec_id, "exec\u{FFFD}-1");
    let expected = [("a\u{FFFD}", 2), ("a\u{FFFD}\u{FFFD}", 1), ("b", 3)];
    assert_eq!(
        repaired.metrics,
        Some(
            expected
                .map(|(name, value)| (name.to_owned(), MetricValue::Long(value)))
                .into()
        )
    );
}

#[test]
fn times_that_no_reader_of_dates_can_hold_are_rejected_with_the_value() {
    let (first, last) = (
        *schemas::REPORTED_AT_MICROS.start(),
        *schemas::REPORTED_AT_MICROS.end(),
    );
    let mut info = good();
    for out in [i64::MIN, i64::MAX, first - 1, last + 1] {
        info.reported_at = out;
        let (kind, message) = rejected(&info);
        assert_eq!(kind, "TimeOutOfRange");
        assert!(message.contains(&out.to_string()), "{message}");
    }
    for within in [first, last, -1, 0] {
        info.reported_at = within;
        assert_eq!(event(&info), (info.clone(), vec![]));
    }
}

#[test]
fn identifiers_are_neither_blank_nor_overlong() {
    let spoil: [fn(&mut TaskRunningInfo, String); 6] = [
        |info, text| info.exec_id = text,
        |info, text| info.job_id = text,
        |info, text| info.engine.instance = text,
        |info, text| info.engine.engine_type = text,
        |info, text| info.engine.user = text,
        |info, text| info.engine.ticket_id = text,
    ];
    for (i, spoil) in spoil.into_iter().enumerate() {
        let mut info = good();
        spoil(&mut info, "ü".repeat(256));
        assert_eq!(event(&info).1, []);
        spoil(&mut info, "ü".repeat(256) + "x");
        assert_eq!(rejected(&info).0, "OverlongIdentifier");
        spoil(&mut info, " \t\u{A0}".into());
        if i < 4 {
            assert_eq!(rejected(&info).0, "BlankIdentifier");
        } else {
            assert_eq!(event(&info).1, [], "user and ticket may be empty");
        }
    }
}

/// U+FFFD takes three bytes instead of one for U+0000; consumers accept every event of the router.
#[test]
fn identifiers_that_a_repair_makes_overlong_are_rejected() {
    let spoil: [fn(&mut TaskRunningInfo, String); 6] = [
        |info, text| info.exec_id = text,
        |info, text| info.job_id = text,
        |info, text| info.engine.instance = text,
        |info, text| info.engine.engine_type = text,
        |info, text| info.engine.user = text,
        |info, text| info.engine.ticket_id = text,
    ];
    for spoil in spoil {
        let mut info = good();
        spoil(&mut info, "\0".repeat(170) + "xx");
        let (repaired, adjustments) = event(&info);
        assert_eq!(adjustments, [Adjustment::NulInText]);
        assert_eq!(repaired.problems(), vec![]);
        spoil(&mut info, "\0".repeat(171));
        let (kind, message) = rejected(&info);
        assert_eq!(kind, "OverlongIdentifier");
        assert!(
            message.contains("(171 bytes), 513 bytes once it is repaired"),
            "{message}"
        );
    }
}

/// Names that become equal get U+FFFD appended, from the ninth on with numbers; the result is deterministic.
#[test]
fn names_that_become_equal_are_made_unique_and_none_is_lost() {
    let mut info = good();
    let name = |i: u32| -> String {
        let one = |bit: u32| {
            if (i >> bit) & 1 == 1 {
                '\u{FFFD}'
            } else {
                '\0'
            }
        };
        (0..4).rev().map(one).collect()
    };
    let mut reported: Vec<String> = (0..16).map(name).collect();
    reported.push("\u{FFFD}".repeat(5) + "10"); // taken
    let metrics = reported.iter().zip(0..);
    info.metrics = Some(
        metrics
            .map(|(name, i)| (name.clone(), MetricValue::Long(i)))
            .collect(),
    );
    let (repaired, _) = event(&info);
    let mut expected = vec![
        ("\u{FFFD}".repeat(4), 15),
        ("\u{FFFD}".repeat(5) + "10", 16),
    ];
    for i in 0..15 {
        let appended = match i {
            0..8 => "\u{FFFD}".repeat(i as usize + 1),
            8 => "\u{FFFD}9".to_owned(),
            _ => format!("\u{FFFD}{}", i + 2),
        };
        expected.push(("\u{FFFD}".repeat(4) + &appended, i));
    }
    let expected = expected.into_iter();
    let expected = expected.map(|(name, i)| (name, MetricValue::Long(i)));
    assert_eq!(repaired.metrics, Some(expected.collect()));
}

#[test]
fn all_problems_of_a_rejected_record_are_listed() {
    let mut info = with_progress(f64::NAN);
    info.exec_id = String::new();
    info.reported_at = i64::MAX;
    let (kind, message) = rejected(&info);
    assert_eq!(kind, "BlankIdentifier");
    for part in [
        "execId is blank",
        "reportedAt is outside",
        "progress.progress is not a number",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn lengths_that_lie_are_rejected_fast_and_without_their_memory() {
    let header = &schemas::encode_info(&good()).unwrap()[..10];
    // i64::MAX, i64::MIN, -7 and an overlong number as zigzag varints, as execId's length.
    for length in [
        &[0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01][..],
        &[0xFF; 10],
        &[0x0D],
        &[0x80; 11],
    ] {
        let begun = std::time::Instant::now();
        let reject = routed_value(Some(&[header, length].concat())).unwrap_err();
        assert_eq!(reject.kind, "Malformed", "{reject:?}");
        assert!(begun.elapsed().as_millis() < 500);
    }
}

proptest! {
    #[test]
    fn route_is_total_on_any_bytes(value in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)), framed in any::<bool>()) {
        let value = value.map(|bytes| {
            let header = &schemas::encode_info(&good()).unwrap()[..10];
            if framed { [header, &bytes].concat() } else { bytes }
        });
        let _ = routed_value(value.as_deref());
    }

    #[test]
    fn the_outcome_follows_from_the_problems(info in strategies::info()) {
        let problems = info.problems();
        let named: BTreeSet<_> = problems.iter().filter_map(|problem| problem.fault.adjustment()).collect();
        match routed(&info) {
            Ok(event) => {
                prop_assert!(problems.iter().all(|problem| problem.fault.adjustment().is_some()));
                prop_assert_eq!(&event.adjustments, &Vec::from_iter(named));
                prop_assert_eq!(event.info.problems(), vec![]);
                if event.adjustments.is_empty() {
                    // Negative zero is equal to zero.
                    prop_assert_eq!(event.info, info);
                    prop_assert!(event.not_finite.is_empty());
                }
            }
            Err(reject) => {
                let unusable = problems.iter().find(|problem| problem.fault.adjustment().is_none()).unwrap();
                prop_assert_eq!(reject.kind, unusable.fault.as_str());
            }
        }
    }

    #[test]
    fn repairs_are_made_whatever_else_is_in_the_record(mut info in strategies::info()) {
        // Usable, so that every case becomes an event, most of them repaired.
        for text in [&mut info.exec_id, &mut info.job_id, &mut info.engine.instance, &mut info.engine.engine_type] {
            text.insert(0, 'x');
        }
        for text in [
            &mut info.exec_id, &mut info.job_id, &mut info.engine.instance, &mut info.engine.engine_type,
            &mut info.engine.user, &mut info.engine.ticket_id,
        ] {
            *text = text.chars().take(100).collect();
        }
        info.reported_at %= 1_000_000_000_000_000;
        let (repaired, adjustments) = event(&info);
        prop_assert_eq!(repaired.problems(), vec![]);
        prop_assert_eq!(adjustments.is_empty(), info.problems().is_empty());
        // A second repair changes nothing.
        prop_assert_eq!(event(&repaired), (repaired, vec![]));
    }
}
