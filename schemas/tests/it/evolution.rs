//! This version reads records of newer versions, given their schemas.

use std::path::Path;

use crate::{encoding, newer, strategies};
use apache_avro::types::Value;
use schemas::{
    Adjustment, DecodeError, Decoder, Framing, MetricValue, TaskRunningInfo, TaskStatus,
};
use serde_json::{Value as Json, json};

/// A decoder with the newer version, and the fingerprints of its info and event.
fn decoder() -> (Decoder, u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    newer::write(folder.path());
    let decoder = Decoder::with_schemas(Some(folder.path())).unwrap();
    let of = |record: &str| {
        let mut learned = decoder.newer_schemas().iter();
        learned
            .find(|one| one.record == record)
            .unwrap()
            .fingerprint
    };
    let (info, event) = (of("TaskRunningInfo"), of("TaskRunningInfoEvent"));
    (decoder, info, event)
}

/// The sample in the newer version, as JSON with times in microseconds.
fn sample() -> Json {
    let info = strategies::sample_event().info;
    let mut json = serde_json::to_value(&info).unwrap();
    json["reportedAt"] = json!(info.reported_at);
    json["attempt"] = json!(3);
    json["startedAt"] = json!(1_764_079_400_000_000_i64);
    json
}

fn avro(json: Json) -> Value {
    Value::try_from(json).unwrap()
}

#[test]
fn a_newer_record_is_read_as_the_current_one() {
    let (decoder, fingerprint, _) = decoder();
    let read = |json: Json| {
        let bytes = encoding::encode(&newer::info(), fingerprint, avro(json));
        decoder.info(Some(&bytes))
    };
    let expected = strategies::sample_event().info;
    assert_eq!(read(sample()).unwrap(), expected);

    let mut null_time = sample();
    null_time["startedAt"] = Json::Null;
    assert_eq!(read(null_time).unwrap(), expected);

    let mut paused = sample();
    paused["status"] = json!("Paused");
    assert_eq!(read(paused).unwrap().status, TaskStatus::Unknown);
    // Behind the new symbol, so that its encoded number differs.
    let mut succeeded = sample();
    succeeded["status"] = json!("Succeed");
    assert_eq!(read(succeeded).unwrap().status, TaskStatus::Succeed);

    for part in ["progress", "resource", "metrics"] {
        let mut without = sample();
        without[part] = Json::Null;
        let read = read(without).unwrap();
        let missing = [
            read.progress.is_none(),
            read.resource.is_none(),
            read.metrics.is_none(),
        ];
        assert_eq!(missing.into_iter().filter(|missing| *missing).count(), 1);
    }
}

#[test]
fn a_wider_number_is_taken_where_it_fits_and_refused_by_name_where_not() {
    let (decoder, fingerprint, _) = decoder();
    let read = |jobs: i64| {
        let mut json = sample();
        json["progress"]["progressInfo"][0]["totalTasks"] = json!(jobs);
        decoder.info(Some(&encoding::encode(
            &newer::info(),
            fingerprint,
            avro(json),
        )))
    };
    for fits in [0, -1, i64::from(i32::MAX), i64::from(i32::MIN)] {
        let progress = read(fits).unwrap().progress.unwrap();
        assert_eq!(i64::from(progress.progress_info[0].total_tasks), fits);
    }
    for wide in [i64::from(i32::MAX) + 1, i64::from(i32::MIN) - 1, i64::MAX] {
        let error = read(wide).unwrap_err();
        assert_eq!(error.kind(), "Malformed");
        let message = error.to_string();
        assert!(
            message.contains(&format!(
                "{wide} is more than the int of the version this program reads"
            )) && message.contains("progress.progressInfo.totalTasks"),
            "{message}"
        );
    }
}

#[test]
fn a_metric_of_an_unknown_type_is_refused_and_others_are_read() {
    let (decoder, fingerprint, _) = decoder();
    let read = |value: Value| {
        let Value::Map(mut info) = avro(sample()) else {
            panic!("not a map")
        };
        let metrics = Value::Map([("m".to_owned(), value)].into());
        info.insert("metrics".into(), metrics);
        let bytes = encoding::encode(&newer::info(), fingerprint, Value::Map(info));
        decoder.info(Some(&bytes))
    };
    for (said, meant) in [
        (Value::Null, MetricValue::Null),
        (Value::Boolean(true), MetricValue::Boolean(true)),
        (Value::Long(-7), MetricValue::Long(-7)),
        (Value::Double(0.5), MetricValue::Double(0.5)),
        (Value::String("t".into()), MetricValue::String("t".into())),
    ] {
        let metrics = read(said).unwrap().metrics.unwrap();
        assert_eq!(metrics["m"], meant);
    }
    let refused = read(Value::Array(vec![Value::Double(0.5)]))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("array, where null or boolean or long or double or string is read"),
        "{refused}"
    );
}

/// During a rolling upgrade, topics contain records of old routers.
#[test]
fn events_of_older_versions_are_read_alike_by_both_paths_without_newer_fields() {
    let (_, older) = schemas::EVENT_VERSIONS.split_last().unwrap();
    for (i, version) in older.iter().enumerate() {
        let avsc: Json = serde_json::from_str(version.avsc).unwrap();
        let mut expected = strategies::sample_event();
        // Older routers did not repair texts that name NaN or an infinity.
        let text = MetricValue::String("nan".into());
        let metrics = expected.info.metrics.as_mut().unwrap();
        metrics.insert("text".into(), text);
        let mut json = serde_json::to_value(&expected).unwrap();
        json.as_object_mut().unwrap().remove("notFinite");
        if i == 0 {
            json["source"].as_object_mut().unwrap().remove("topicId");
            expected.source.topic_id = None;
        }
        json["routedAt"] = json!(expected.routed_at);
        json["info"]["reportedAt"] = json!(expected.info.reported_at);
        let value = encoding::encode(&avsc, version.fingerprint, avro(json));

        let decoder = Decoder::default().with_registry("");
        decoder.learn_id(1, Some(version.avsc));
        let mut framed = value.clone();
        Framing::Registry(1).put_on(&mut framed);
        for value in [&value, &framed] {
            assert_eq!(decoder.event(Some(value)).unwrap(), expected);
            let event = decoder.plain_event(value).expect("read in place");
            assert_eq!(event.source.topic_id, expected.source.topic_id.as_deref());
            assert_eq!(event.source.offset, expected.source.offset);
            assert!(event.not_finite.is_empty());
            assert_eq!(event.info.exec_id, expected.info.exec_id);
            // It is unchanged.
            let again = event.single_object();
            assert_eq!(decoder.event(Some(&again)).unwrap(), expected);
        }
    }
}

#[test]
fn a_newer_event_is_read_as_the_current_one() {
    let (decoder, _, fingerprint) = decoder();
    let event = strategies::sample_event();
    let mut json = serde_json::to_value(&event).unwrap();
    json["info"] = sample();
    json["routedAt"] = json!(event.routed_at);
    json["router"] = json!("router-1");
    json["adjustments"] = json!(["ClockAhead", "NegativeCount"]);
    let bytes = encoding::encode(&newer::event(), fingerprint, avro(json));
    let mut expected = event;
    expected.adjustments = vec![Adjustment::Unknown, Adjustment::NegativeCount];
    assert_eq!(decoder.event(Some(&bytes)).unwrap(), expected);
}

#[test]
fn without_its_schema_a_newer_record_is_of_an_unknown_schema_and_current_ones_are_read_with_it() {
    let (decoder, fingerprint, _) = decoder();
    let bytes = encoding::encode(&newer::info(), fingerprint, avro(sample()));
    let unknown = DecodeError::UnknownSchema {
        record: "TaskRunningInfo",
        fingerprint,
    };
    assert_eq!(schemas::decode_info(Some(&bytes)).unwrap_err(), unknown);
    assert_eq!(Decoder::default().info(Some(&bytes)).unwrap_err(), unknown);
    // An info is not an event with any schemas.
    let no_event = decoder.event(Some(&bytes)).unwrap_err();
    assert_eq!(no_event.kind(), "UnknownSchema");

    let event = strategies::sample_event();
    let bytes = schemas::encode_info(&event.info).unwrap();
    assert_eq!(decoder.info(Some(&bytes)).unwrap(), event.info);
    let bytes = schemas::encode_event(&event).unwrap();
    assert_eq!(decoder.event(Some(&bytes)).unwrap(), event);
}

#[test]
fn a_newer_record_that_is_cut_off_anywhere_is_refused_and_so_is_one_with_bytes_left() {
    let (decoder, fingerprint, _) = decoder();
    // Without metrics, the last byte is a null, which a careless reader assumes at the end.
    let mut json = sample();
    json["metrics"] = Json::Null;
    let mut bytes = encoding::encode(&newer::info(), fingerprint, avro(json));
    for end in 10..bytes.len() {
        let error = decoder.info(Some(&bytes[..end])).unwrap_err();
        assert_eq!(error.kind(), "Malformed", "cut at {end}");
    }
    bytes.extend([0, 0]);
    assert_eq!(
        decoder.info(Some(&bytes)).unwrap_err(),
        DecodeError::TrailingBytes {
            record: "TaskRunningInfo",
            count: 2
        }
    );
}

#[test]
fn fields_in_another_order_and_parts_that_are_gone_are_put_where_they_belong() {
    let mut avsc = newer::released_info();
    let fields = avsc["fields"].as_array_mut().unwrap();
    fields.reverse();
    fields.retain(|field| field["name"] != "resource");
    let (decoder, fingerprint) = decoder_of(&avsc).unwrap();
    let mut json = sample();
    json.as_object_mut().unwrap().remove("resource");
    let bytes = encoding::encode(&avsc, fingerprint, avro(json));
    let mut expected = strategies::sample_event().info;
    expected.resource = None;
    assert_eq!(decoder.info(Some(&bytes)).unwrap(), expected);
}

#[test]
fn a_type_that_holds_itself_is_left_out_down_to_a_depth() {
    let mut avsc = newer::released_info();
    let chain = json!({"name": "history", "default": null, "type": ["null", {
        "type": "record", "name": "Attempt", "fields": [
            {"name": "number", "type": "int"},
            {"name": "job", "type": "JobProgressInfo"},
            {"name": "before", "type": ["null", "Attempt"], "default": null}]}]});
    avsc["fields"].as_array_mut().unwrap().push(chain);
    let (decoder, fingerprint) = decoder_of(&avsc).unwrap();
    let read = |depth: usize| {
        let mut bytes = schemas::encode_info(&strategies::sample_event().info).unwrap();
        bytes[2..10].copy_from_slice(&fingerprint.to_le_bytes());
        for _ in 0..depth {
            bytes.extend([2, 4, 0, 0, 0, 0, 0]);
        }
        bytes.push(0);
        decoder.info(Some(&bytes))
    };
    assert_eq!(read(20).unwrap(), strategies::sample_event().info);
    let error = read(100_000).unwrap_err().to_string();
    assert!(error.contains("nested more than 64 deep"), "{error}");
}

/// A decoder with one schema of TaskRunningInfo, or the error.
fn decoder_of(avsc: &Json) -> Result<(Decoder, u64), String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("one.avsc"), avsc.to_string()).unwrap();
    let decoder = Decoder::with_schemas(Some(folder.path())).map_err(|error| error.to_string())?;
    let fingerprint = decoder.newer_schemas()[0].fingerprint;
    Ok((decoder, fingerprint))
}

#[test]
fn a_time_that_became_nullable_is_read_with_a_value_and_refused_if_null() {
    let mut avsc = newer::released_info();
    newer::field(&mut avsc, "reportedAt")["type"] =
        json!(["null", {"type": "long", "logicalType": "timestamp-micros"}]);
    let (decoder, fingerprint) = decoder_of(&avsc).unwrap();
    let read = |time: Json| {
        let mut json = sample();
        json["reportedAt"] = time;
        decoder.info(Some(&encoding::encode(&avsc, fingerprint, avro(json))))
    };
    assert_eq!(read(json!(5)).unwrap().reported_at, 5);
    let error = read(Json::Null).unwrap_err().to_string();
    assert!(
        error.contains("reportedAt at byte") && error.contains("null, where long is read"),
        "{error}"
    );
}

type Edit = fn(&mut Json);

#[test]
fn a_schema_that_cannot_become_the_current_one_is_named_with_the_field_and_the_reason() {
    let cases: &[(Edit, &str)] = &[
        (
            |info| newer::field(info, "jobId")["name"] = json!("job"),
            "jobId: missing, and there is no default for it",
        ),
        (
            |info| newer::field(info, "sequence")["type"] = json!("string"),
            "sequence: string, where long is read",
        ),
        (
            |info| newer::field(info, "sequence")["type"] = json!("double"),
            "sequence: double, where long is read",
        ),
        (
            |info| {
                newer::field(info, "reportedAt")["type"] =
                    json!({"type": "long", "logicalType": "timestamp-millis"});
            },
            "reportedAt: timestamp-millis, where timestamp-micros is read",
        ),
        (
            |info| {
                let progress = &mut newer::field(info, "progress")["type"];
                newer::field(progress, "progress")["type"] = json!("string");
            },
            "progress: progress: string, where double is read",
        ),
        (
            |info| newer::field(info, "metrics")["type"] = json!(["null", "string"]),
            "metrics: string, where null or map is read",
        ),
        (
            |info| newer::field(info, "status")["type"] = json!("string"),
            "status: string, where enum TaskStatus is read",
        ),
        (
            |info| {
                let progress = &mut newer::field(info, "progress")["type"];
                newer::field(progress, "progressInfo")["type"] =
                    json!({"type": "array", "items": "null"});
            },
            "an array of items that take no bytes",
        ),
    ];
    for (edit, reason) in cases {
        let mut avsc = newer::released_info();
        edit(&mut avsc);
        let error = decoder_of(&avsc).err().expect(reason);
        assert!(
            error.contains("one.avsc: cannot be read as the TaskRunningInfo of this program: ")
                && error.contains(reason),
            "{error}"
        );
    }
}

#[test]
fn an_invalid_schema_is_named_and_other_records_schemas_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let read = || Decoder::with_schemas(Some(folder.path()));
    write("README.md", "not a schema");
    write(
        "other.avsc",
        r#"{"type": "record", "name": "Other", "fields": []}"#,
    );
    write("plain.avsc", r#""string""#);
    for version in [schemas::INFO_VERSIONS, schemas::EVENT_VERSIONS] {
        write("released.avsc", version.last().unwrap().avsc);
        assert_eq!(read().unwrap().newer_schemas(), []);
    }
    for (text, reason) in [
        ("", "bad.avsc: not JSON: EOF"),
        ("{", "bad.avsc: not JSON: EOF"),
        (r#"{"type": "record"}"#, "bad.avsc: not an Avro schema: "),
        (r#""TaskRunningInfo""#, "bad.avsc: not an Avro schema: "),
        (
            r#"{"type": "record", "name": "TaskRunningInfo", "fields": [{"name": "a", "type": "no"}]}"#,
            "bad.avsc: not an Avro schema: ",
        ),
    ] {
        write("bad.avsc", text);
        let error = read().err().expect(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    std::fs::write(folder.path().join("bad.avsc"), [0xFF]).unwrap();
    let error = read().err().unwrap().to_string();
    assert!(error.contains("bad.avsc: "), "{error}");
    let error = Decoder::with_schemas(Some(Path::new("/absent")))
        .err()
        .unwrap()
        .to_string();
    assert!(error.starts_with("/absent: No such file"), "{error}");
}

/// Fingerprints and records of another implementation, with every kind of change.
#[test]
fn fastavro_computes_the_same_fingerprints_and_its_records_are_read() {
    let Ok(python) = std::env::var("TEST_PYTHON") else {
        assert!(
            std::env::var_os("TEST_REQUIRE_SERVICES").is_none(),
            "TEST_PYTHON is not set"
        );
        println!("skipped: TEST_PYTHON names no Python with fastavro; deploy/test makes one");
        return;
    };
    let (decoder, info, event) = decoder();
    let mut records = vec![];
    for status in ["Running", "Paused", "Succeed"] {
        for started_at in [Json::Null, json!(1)] {
            let mut json = sample();
            json["status"] = json!(status);
            json["startedAt"] = started_at;
            records.push(json);
        }
    }
    let (headers, values) = newer::fastavro(&python, "TaskRunningInfo", &records);
    let header = |fingerprint: u64| {
        let bytes = fingerprint.to_le_bytes().map(|byte| format!("{byte:02x}"));
        format!("c301{}", bytes.concat())
    };
    assert_eq!(
        headers,
        [
            format!("TaskRunningInfo {}", header(info)),
            format!("TaskRunningInfoEvent {}", header(event))
        ]
    );
    let read: Vec<TaskRunningInfo> = values
        .iter()
        .map(|bytes| decoder.info(Some(bytes)).unwrap())
        .collect();
    let expected = [
        TaskStatus::Running,
        TaskStatus::Unknown,
        TaskStatus::Succeed,
    ];
    let expected: Vec<TaskRunningInfo> = expected
        .into_iter()
        .flat_map(|status| [status; 2])
        .map(|status| TaskRunningInfo {
            status,
            ..strategies::sample_event().info
        })
        .collect();
    assert_eq!(read, expected);
}
