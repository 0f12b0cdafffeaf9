//! Zero-copy reading gives apache-avro's result, and rejects records with problems.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::strategies;
use proptest::prelude::*;
use schemas::{
    Adjustment, EngineInstance, Framing, JobProgressInfo, MetricValue, PlainEvent, PlainInfo,
    PlainMetric, PlainSource, ResourceWithStatus, SourcePosition, TaskProgressInfo,
    TaskResourceInfo, TaskRunningInfo, TaskRunningInfoEvent, decode_event, decode_info,
    encode_event, encode_info, plain_event, plain_info,
};

fn owned_info(info: &PlainInfo<'_>) -> TaskRunningInfo {
    TaskRunningInfo {
        exec_id: info.exec_id.into(),
        job_id: info.job_id.into(),
        engine: EngineInstance {
            instance: info.engine_instance.into(),
            engine_type: info.engine_type.into(),
            user: info.engine_user.into(),
            ticket_id: info.ticket_id.into(),
            running_tasks: info.engine_running_tasks,
        },
        status: info.status,
        reported_at: info.reported_at,
        sequence: info.sequence,
        progress: info.progress.map(|(progress, jobs)| {
            let jobs = jobs.iter().map(|job| JobProgressInfo {
                id: job.id.into(),
                total_tasks: job.total_tasks,
                running_tasks: job.running_tasks,
                failed_tasks: job.failed_tasks,
                succeed_tasks: job.succeed_tasks,
            });
            TaskProgressInfo {
                progress,
                progress_info: jobs.collect(),
            }
        }),
        resource: info.resource.map(|applications| {
            let applications = applications.iter().map(|held| {
                let resource = ResourceWithStatus {
                    queue_memory: held.memory_bytes,
                    queue_cores: held.cores,
                    queue_instances: held.instances,
                    job_status: held.status.into(),
                    queue: held.queue.into(),
                };
                (held.id.to_owned(), resource)
            });
            TaskResourceInfo {
                applications: applications.collect(),
            }
        }),
        metrics: info.metrics.map(|metrics| {
            let metrics = metrics.iter().map(|metric| {
                let value = match metric.value {
                    PlainMetric::Null => MetricValue::Null,
                    PlainMetric::Boolean(value) => MetricValue::Boolean(value),
                    PlainMetric::Long(value) => MetricValue::Long(value),
                    PlainMetric::Double(value) => MetricValue::Double(value),
                    PlainMetric::String(value) => MetricValue::String(value.into()),
                };
                (metric.name.to_owned(), value)
            });
            metrics.collect()
        }),
    }
}

fn owned_event(event: &PlainEvent<'_>) -> TaskRunningInfoEvent {
    let source = event.source;
    TaskRunningInfoEvent {
        source: SourcePosition {
            topic: source.topic.into(),
            partition: source.partition,
            offset: source.offset,
            timestamp: source.timestamp,
            topic_id: source.topic_id.map(str::to_owned),
        },
        routed_at: event.routed_at,
        adjustments: event.adjustments.iter().collect(),
        not_finite: event
            .not_finite
            .iter()
            .map(|one| (one.field.to_owned(), one.value.to_owned()))
            .collect(),
        info: owned_info(&event.info),
    }
}

/// Removes most problems of an arbitrary record.
fn mended(mut event: TaskRunningInfoEvent) -> TaskRunningInfoEvent {
    let mut info = event.info;
    let engine = &mut info.engine;
    for (i, text) in [
        &mut info.exec_id,
        &mut info.job_id,
        &mut engine.instance,
        &mut engine.engine_type,
    ]
    .into_iter()
    .enumerate()
    {
        text.push_str(&i.to_string());
    }
    let count = |count: &mut i32| *count &= i32::MAX;
    count(&mut engine.running_tasks);
    info.sequence &= i64::MAX;
    info.reported_at %= 1 << 55;
    if let Some(progress) = &mut info.progress {
        progress.progress = progress.progress.abs() % 1.0;
        for job in &mut progress.progress_info {
            count(&mut job.total_tasks);
            count(&mut job.running_tasks);
            count(&mut job.failed_tasks);
            count(&mut job.succeed_tasks);
        }
    }
    if let Some(resource) = &mut info.resource {
        for held in resource.applications.values_mut() {
            held.queue_memory &= i64::MAX;
            count(&mut held.queue_cores);
            count(&mut held.queue_instances);
        }
    }
    event.info = info;
    event
}

proptest! {
    #[test]
    fn records_are_encoded_as_by_apache_avro(event in strategies::event()) {
        let mut bytes = Vec::new();
        schemas::write_info(&event.info, Framing::SingleObject, &mut bytes);
        prop_assert_eq!(&bytes, &encode_info(&event.info).unwrap());
        bytes.clear();
        schemas::write_event(&event, Framing::SingleObject, &mut bytes);
        prop_assert_eq!(&bytes, &encode_event(&event).unwrap());
    }

    #[test]
    fn a_record_is_plain_if_and_only_if_it_has_no_problem(
        event in strategies::event(), mend in any::<bool>(),
    ) {
        let event = if mend { mended(event) } else { event };
        let bytes = encode_info(&event.info).unwrap();
        let info = plain_info(&bytes).map(|info| owned_info(&info));
        let negative_zero = matches!(&event.info.progress, Some(progress_part) if progress_part.progress.to_bits() == (-0.0_f64).to_bits());
        let is_plain = event.info.problems().is_empty() && !negative_zero;
        prop_assert_eq!(info, is_plain.then(|| event.info.clone()));
        let is_plain = event.problems().is_empty();
        let bytes = encode_event(&event).unwrap();
        let read = plain_event(&bytes).map(|event| owned_event(&event));
        prop_assert_eq!(read, is_plain.then_some(event));
    }

    #[test]
    fn changed_bytes_are_read_as_the_long_way_reads_them_or_not_at_all(
        event in strategies::event(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<Option<prop::sample::Index>>(),
    ) {
        let event = mended(event);
        for bytes in [encode_info(&event.info).unwrap(), encode_event(&event).unwrap()] {
            let mut bytes = bytes;
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Some(info) = plain_info(&bytes) {
                let long_way = decode_info(Some(&bytes)).unwrap();
                prop_assert!(long_way.problems().is_empty());
                prop_assert_eq!(owned_info(&info), long_way);
            }
            if let Some(event) = plain_event(&bytes) {
                let long_way = decode_event(Some(&bytes)).unwrap();
                prop_assert!(long_way.problems().is_empty());
                prop_assert_eq!(owned_event(&event), long_way);
            }
        }
    }

    #[test]
    fn the_event_written_from_a_record_s_bytes_is_the_event_of_the_long_way(event in strategies::event()) {
        let event = mended(event);
        let bytes = encode_info(&event.info).unwrap();
        if let Some(info) = plain_info(&bytes) {
            let source = PlainSource {
                topic: &event.source.topic,
                partition: event.source.partition,
                offset: event.source.offset,
                timestamp: event.source.timestamp,
                topic_id: event.source.topic_id.as_deref(),
            };
            let mut written = Vec::new();
            info.write_event(&source, event.routed_at, Framing::SingleObject, &mut written);
            let long_way = TaskRunningInfoEvent { adjustments: vec![], not_finite: BTreeMap::new(), ..event };
            prop_assert_eq!(written, encode_event(&long_way).unwrap());
        }
    }

    #[test]
    fn metrics_are_the_same_json_either_way(event in strategies::event()) {
        let event = mended(event);
        let bytes = encode_info(&event.info).unwrap();
        if let Some(info) = plain_info(&bytes) {
            let either_way = [serde_json::to_string(&info.metrics), serde_json::to_string(&event.info.metrics)];
            let [plain, long_way] = either_way.map(Result::unwrap);
            prop_assert_eq!(plain, long_way);
        }
    }
}

/// The sample's metrics (the last part) replaced by these bytes.
fn with_metrics(metrics: &[u8]) -> Vec<u8> {
    let mut info = strategies::sample_event().info;
    info.metrics = None;
    let mut bytes = encode_info(&info).expect("the sample is written");
    assert_eq!(bytes.pop(), Some(0));
    bytes.push(2);
    bytes.extend_from_slice(metrics);
    bytes
}

#[test]
fn a_map_in_any_order_is_plain_and_sorted_where_it_is_asked_for_so() {
    // Two blocks: b = null, then a = 1 and c = true.
    let bytes = with_metrics(b"\x02\x02b\x00\x04\x02a\x04\x02\x02c\x02\x01\x00");
    let metrics = plain_info(&bytes).unwrap().metrics.unwrap();
    let names = |metrics: Vec<schemas::NamedMetric<'_>>| -> String {
        metrics.iter().map(|metric| metric.name).collect()
    };
    assert_eq!(names(metrics.iter().collect()), "bac");
    assert_eq!(names(metrics.sorted().collect()), "abc");
    assert_eq!(
        serde_json::to_string(&metrics).unwrap(),
        r#"{"a":1,"b":null,"c":true}"#
    );
}

#[test]
fn a_duplicate_key_and_a_block_with_its_size_are_not_plain() {
    let twice = with_metrics(b"\x06\x02b\x00\x02a\x00\x02b\x00\x00");
    assert!(plain_info(&twice).is_none());
    assert_eq!(decode_info(Some(&twice)).unwrap().metrics.unwrap().len(), 2);
    let sized = with_metrics(b"\x01\x06\x02b\x00\x00");
    assert!(plain_info(&sized).is_none());
    assert_eq!(decode_info(Some(&sized)).unwrap().metrics.unwrap().len(), 1);
}

#[test]
fn both_paths_agree_on_blank_overlong_and_out_of_range_values() {
    let sample = strategies::sample_event().info;
    let changes: [fn(&mut TaskRunningInfo, &str); 6] = [
        |info, text| info.exec_id = text.into(),
        |info, text| info.job_id = text.into(),
        |info, text| info.engine.instance = text.into(),
        |info, text| info.engine.engine_type = text.into(),
        |info, text| info.engine.user = text.into(),
        |info, text| info.engine.ticket_id = text.into(),
    ];
    let longest = "x".repeat(512);
    let (overlong, accented) = (format!("{longest}x"), "é".repeat(256));
    let texts = [
        "",
        " ",
        "\t\u{2003}",
        " x",
        "\u{3000}é",
        "\0",
        "\u{7f}",
        "\u{202e}\u{200b}\u{e0041}",
        "\u{200b}任务",
        &longest,
        &overlong,
        &accented,
    ];
    let is_plain = |info: &TaskRunningInfo| {
        let plain = plain_info(&encode_info(info).unwrap()).is_some();
        assert!(!plain || info.problems().is_empty(), "{info:?}");
        plain
    };
    for change in changes {
        let mut plain = 0;
        for text in texts {
            let mut info = sample.clone();
            change(&mut info, text);
            plain += usize::from(is_plain(&info));
        }
        assert!((5..texts.len()).contains(&plain));
    }
    let Range { start, end } = -62_135_596_800_000_000..253_402_300_800_000_000;
    for (reported_at, plain) in [
        (start - 1, false),
        (start, true),
        (end - 1, true),
        (end, false),
    ] {
        let info = TaskRunningInfo {
            reported_at,
            ..sample.clone()
        };
        assert_eq!(is_plain(&info), plain);
    }
    for (progress, plain) in [
        (0.0, true),
        (-0.0, false),
        (1.0, true),
        (1.0 + f64::EPSILON, false),
        (f64::NAN, false),
        (-f64::NAN, false),
    ] {
        let mut info = sample.clone();
        info.progress = Some(TaskProgressInfo {
            progress,
            progress_info: vec![],
        });
        assert_eq!(is_plain(&info), plain);
    }
    // In an event, only faults that routers of every version repair are problems.
    for (text, in_info, in_event) in [
        ("NaN", false, false),
        ("Infinity", false, false),
        ("-Infinity", false, false),
        ("nan", false, true),
        ("-nan", false, true),
        ("Inf", false, true),
        ("+Inf", false, true),
        ("-inf", false, true),
        ("INFINITY", false, true),
        ("info", true, true),
        ("--inf", true, true),
        ("nano", true, true),
        ("1e999", true, true),
        ("-", true, true),
        ("", true, true),
    ] {
        let mut event = strategies::sample_event();
        let metric = [("m".to_owned(), MetricValue::String(text.into()))];
        event.info.metrics = Some(metric.into());
        assert_eq!(is_plain(&event.info), in_info, "{text}");
        assert_eq!(event.info.problems().is_empty(), in_info, "{text}");
        let bytes = encode_event(&event).unwrap();
        let plain = plain_event(&bytes);
        assert_eq!(plain.is_some(), in_event, "{text}");
        assert_eq!(event.problems().is_empty(), in_event, "{text}");
        let metrics = plain
            .iter()
            .flat_map(|plain| plain.info.metrics.unwrap().iter());
        assert_eq!(metrics.count(), usize::from(in_event), "{text}");
    }
}

#[test]
fn adjustments_are_read_in_place() {
    let mut event = strategies::sample_event();
    event.adjustments = vec![Adjustment::NulInText, Adjustment::NegativeCount];
    event.not_finite = [("metrics.nothing".to_owned(), "NaN".to_owned())].into();
    let bytes = encode_event(&event).unwrap();
    let plain = plain_event(&bytes).unwrap();
    assert!(plain.adjustments.iter().eq(event.adjustments));
    assert_eq!(plain.adjustments.len(), 2);
    let not_finite = plain.not_finite.iter();
    let not_finite = Vec::from_iter(not_finite.map(|one| (one.field, one.value)));
    assert_eq!(not_finite, [("metrics.nothing", "NaN")]);
}
