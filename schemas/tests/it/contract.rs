//! The Rust types match the `.avsc` files, and another Avro implementation agrees.

use std::collections::BTreeSet;

use crate::strategies;
use apache_avro::Schema;
use apache_avro::rabin::Rabin;
use apache_avro::schema::RecordSchema;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use schemas::{
    Adjustment, DecodeError, EVENT_VERSIONS, Fault, INFO_VERSIONS, TaskRunningInfo, TaskStatus,
    Version, decode_event, decode_info, encode_event, encode_info,
};

/// CRC-64-AVRO as Java's org.apache.avro 1.12.0 (`SchemaNormalization.parsingFingerprint64`) and
/// Python's fastavro 1.13.1 (`fingerprint(to_parsing_canonical_form(…), "CRC-64-AVRO")`, which prints
/// the bytes in the header's order) compute it.
const JAVA_INFO: u64 = 0x944a_4f94_29e9_c6b6;
const JAVA_EVENT: u64 = 0xcde6_93d1_c078_0b7e;

fn newest(versions: &[Version]) -> Schema {
    Schema::parse_str(versions.last().unwrap().avsc).unwrap()
}

fn record<'a>(schema: &'a Schema, path: &[&str]) -> &'a RecordSchema {
    let step = |schema: &'a Schema| match schema {
        Schema::Union(union) => union
            .variants()
            .iter()
            .find(|variant| **variant != Schema::Null)
            .unwrap(),
        Schema::Array(array) => &*array.items,
        Schema::Map(map) => &*map.types,
        other => other,
    };
    let mut schema = schema;
    for name in path {
        let Schema::Record(record) = schema else {
            panic!("{name}: not in a record: {schema:?}")
        };
        schema = &record
            .fields
            .iter()
            .find(|field| field.name == *name)
            .unwrap()
            .schema;
        while !matches!(schema, Schema::Record(_) | Schema::Enum(_)) {
            schema = step(schema);
        }
    }
    let Schema::Record(record) = schema else {
        panic!("not a record: {schema:?}")
    };
    record
}

#[test]
fn fingerprints_are_those_of_other_implementations() {
    assert_eq!(INFO_VERSIONS.last().unwrap().fingerprint, JAVA_INFO);
    assert_eq!(EVENT_VERSIONS.last().unwrap().fingerprint, JAVA_EVENT);
}

/// Fails if a schema changes without a new version.
#[test]
fn each_released_version_still_has_its_fingerprint() {
    for version in INFO_VERSIONS.iter().chain(EVENT_VERSIONS) {
        // Without logical types, apache-avro's canonical form follows the specification.
        let plain = version.avsc.replace(
            r#"{"type": "long", "logicalType": "timestamp-micros"}"#,
            r#""long""#,
        );
        let bytes = Schema::parse_str(&plain)
            .unwrap()
            .fingerprint::<Rabin>()
            .bytes;
        assert_eq!(
            u64::from_le_bytes(bytes.try_into().unwrap()),
            version.fingerprint
        );
    }
}

#[test]
fn records_begin_with_the_marker_and_the_fingerprint() {
    let event = strategies::sample_event();
    for (bytes, fingerprint) in [
        (encode_info(&event.info).unwrap(), JAVA_INFO),
        (encode_event(&event).unwrap(), JAVA_EVENT),
    ] {
        assert_eq!(bytes[..2], [0xC3, 0x01]);
        assert_eq!(bytes[2..10], fingerprint.to_le_bytes());
    }
}

#[test]
fn the_event_holds_the_very_info_that_engines_send() {
    let event = newest(EVENT_VERSIONS);
    let Schema::Record(event) = event else {
        panic!("not a record")
    };
    let info = event.fields.last().unwrap();
    assert_eq!(
        info.name, "info",
        "info is last, so that its bytes can be carried over"
    );
    assert_eq!(
        info.schema.canonical_form(),
        newest(INFO_VERSIONS).canonical_form()
    );
}

/// Serde's field names of a complete value are those of the schema, in the same order.
#[test]
fn every_field_of_the_schemas_is_a_field_of_the_types_and_none_is_missing() {
    let schema = newest(EVENT_VERSIONS);
    let sample = serde_json::to_value(strategies::sample_event()).unwrap();
    for (path, pointer) in [
        (&[][..], ""),
        (&["source"], "/source"),
        (&["info"], "/info"),
        (&["info", "engine"], "/info/engine"),
        (&["info", "progress"], "/info/progress"),
        (
            &["info", "progress", "progressInfo"],
            "/info/progress/progressInfo/0",
        ),
        (&["info", "resource"], "/info/resource"),
        (
            &["info", "resource", "applications"],
            "/info/resource/applications/app-1",
        ),
    ] {
        let in_schema: BTreeSet<&str> = record(&schema, path)
            .fields
            .iter()
            .map(|field| field.name.as_str())
            .collect();
        let value = sample.pointer(pointer).unwrap().as_object().unwrap();
        let in_types: BTreeSet<&str> = value.keys().map(String::as_str).collect();
        assert_eq!(in_schema, in_types, "at {pointer:?}");
    }
}

#[test]
fn the_enums_have_the_schemas_symbols_in_its_order() {
    use Adjustment as A;
    use TaskStatus as S;
    let info = newest(INFO_VERSIONS);
    let status = &record(&info, &[])
        .fields
        .iter()
        .find(|field| field.name == "status")
        .unwrap()
        .schema;
    let Schema::Enum(status) = status else {
        panic!("not an enum")
    };
    let all = [
        S::Unknown,
        S::Inited,
        S::WaitForRetry,
        S::Scheduled,
        S::Running,
        S::Succeed,
        S::Failed,
        S::Cancelled,
        S::Timeout,
    ];
    assert_eq!(status.symbols, all.map(|status| status.as_str().to_owned()));
    assert_eq!(status.default.as_deref(), Some("Unknown"));

    let event = newest(EVENT_VERSIONS);
    let adjustments = &record(&event, &[])
        .fields
        .iter()
        .find(|field| field.name == "adjustments")
        .unwrap()
        .schema;
    let Schema::Array(adjustments) = adjustments else {
        panic!("not an array")
    };
    let Schema::Enum(adjustment) = &*adjustments.items else {
        panic!("not an enum")
    };
    let all = [
        A::Unknown,
        A::ProgressNotANumber,
        A::ProgressBelowZero,
        A::ProgressAboveOne,
        A::NegativeCount,
        A::NulInText,
        A::MetricNotFinite,
    ];
    assert_eq!(
        adjustment.symbols,
        all.map(|adjustment| adjustment.as_str().to_owned())
    );
    for value in all {
        assert_eq!(serde_json::to_value(value).unwrap(), value.as_str());
    }
}

#[test]
fn values_that_are_not_records_have_distinct_errors() {
    let good = encode_info(&strategies::sample_event().info).unwrap();
    let error = |bytes: &[u8]| decode_info(Some(bytes)).unwrap_err();
    assert_eq!(decode_info(None).unwrap_err(), DecodeError::NoValue);
    assert_eq!(error(b""), DecodeError::Empty);
    assert_eq!(error(&good[..1]).kind(), "UnknownFraming");
    assert!(
        error(&good[..9])
            .to_string()
            .contains("cut off in the header")
    );
    assert!(
        error(b"\0\0\0\0\x07rest of it")
            .to_string()
            .contains("schema registry")
    );
    assert!(error(br#"{"execId":"a"}"#).to_string().contains("JSON"));
    assert_eq!(error(&good[..10]).kind(), "Malformed");
    assert_eq!(error(&good[..good.len() - 1]).kind(), "Malformed");
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(
        error(&longer),
        DecodeError::TrailingBytes {
            record: "TaskRunningInfo",
            count: 1
        }
    );
    let mut unknown = good.clone();
    unknown[2] ^= 1;
    assert_eq!(error(&unknown).kind(), "UnknownSchema");
    // An event is not an info.
    let event = encode_event(&strategies::sample_event()).unwrap();
    assert_eq!(error(&event).kind(), "UnknownSchema");
}

#[test]
fn the_microsecond_survives_avro_and_json() {
    let mut info = strategies::sample_event().info;
    for micros in [
        1_764_079_500_123_456,
        -1,
        0,
        *schemas::REPORTED_AT_MICROS.start(),
        *schemas::REPORTED_AT_MICROS.end(),
    ] {
        info.reported_at = micros;
        assert_eq!(
            decode_info(Some(&encode_info(&info).unwrap()))
                .unwrap()
                .reported_at,
            micros
        );
        let json = serde_json::to_string(&info).unwrap();
        let read: schemas::TaskRunningInfo = serde_json::from_str(&json).unwrap();
        assert_eq!(read.reported_at, micros, "{json}");
    }
    info.reported_at = -1;
    assert!(
        serde_json::to_string(&info)
            .unwrap()
            .contains("1969-12-31T23:59:59.999999Z")
    );
}

#[test]
fn every_problem_is_named_by_field() {
    let mut info = strategies::sample_event().info;
    assert_eq!(info.problems(), []);
    info.exec_id = " ".into();
    info.engine.user = "u".repeat(513);
    info.reported_at = i64::MAX;
    let progress = info.progress.as_mut().unwrap();
    progress.progress = f64::NAN;
    progress.progress_info[0].failed_tasks = -3;
    let fields: Vec<String> = info
        .problems()
        .iter()
        .map(|problem| problem.field.to_string())
        .collect();
    assert_eq!(
        fields,
        [
            "execId",
            "engine.user",
            "reportedAt",
            "progress.progress",
            "progress.progressInfo[0].failedTasks"
        ]
    );
}

#[test]
fn an_identifier_without_a_visible_character_is_blank() {
    type Field = fn(&mut TaskRunningInfo) -> &mut String;
    let fields: [(&str, Field); 4] = [
        ("execId", |info| &mut info.exec_id),
        ("jobId", |info| &mut info.job_id),
        ("engine.instance", |info| &mut info.engine.instance),
        ("engine.engineType", |info| &mut info.engine.engine_type),
    ];
    for (name, field) in fields {
        for text in [
            "",
            " \t",
            "\u{200b}",
            " \u{202e}\u{2067}\u{3000}",
            "\u{2028}\u{feff}",
            "\u{e0041}\u{e007f}",
            "\u{1b}\u{85}",
            "\u{fe0f}\u{200d}",
            "\u{3164}\u{2800}",
        ] {
            let mut event = strategies::sample_event();
            *field(&mut event.info) = text.to_owned();
            let problems = event.info.problems();
            let faults: Vec<_> = problems.iter().map(|it| (&*it.field, it.fault)).collect();
            assert_eq!(faults, [(name, Fault::BlankIdentifier)], "{text:?}");
            assert!(schemas::plain_info(&encode_info(&event.info).unwrap()).is_none());
            // Older routers accepted identifiers that are not all whitespace: their events stay readable.
            let was_good = !text.trim().is_empty();
            assert_eq!(event.problems().is_empty(), was_good, "{text:?}");
            let plain = schemas::plain_event(&encode_event(&event).unwrap()).is_some();
            assert_eq!(plain, was_good, "{text:?}");
        }
        for text in [
            "\u{200b}任",
            "e\u{301}",
            "👩\u{200d}🚀",
            "\u{202e}x",
            "\u{ad}-",
        ] {
            let mut event = strategies::sample_event();
            *field(&mut event.info) = text.to_owned();
            assert_eq!(event.info.problems(), [], "{text:?}");
        }
    }
    let mut info = strategies::sample_event().info;
    info.exec_id = "\u{202e}\u{200b}".to_owned();
    assert_eq!(
        info.problems()[0].to_string(),
        r#"execId is blank: "\u{202e}\u{200b}" has no visible character"#
    );
}

proptest! {
    #[test]
    fn encoding_round_trips(event in strategies::event()) {
        prop_assert_eq!(&decode_event(Some(&encode_event(&event).unwrap())).unwrap(), &event);
        prop_assert_eq!(&decode_info(Some(&encode_info(&event.info).unwrap())).unwrap(), &event.info);
    }

    #[test]
    fn json_round_trips(event in strategies::event()) {
        let json = serde_json::to_string(&event).unwrap();
        prop_assert_eq!(&serde_json::from_str::<schemas::TaskRunningInfoEvent>(&json).unwrap(), &event);
    }

    #[test]
    fn any_bytes_after_a_good_header_are_a_record_or_an_error(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = encode_info(&strategies::sample_event().info).unwrap();
        bytes.truncate(10);
        bytes.extend(tail);
        let _ = decode_info(Some(&bytes));
    }

    /// A changed byte results in another record or an error, never in a panic or a huge allocation.
    #[test]
    fn a_flipped_byte_is_survived(event in strategies::event(), at in any::<prop::sample::Index>(), with in 1..=255_u8) {
        let mut bytes = encode_event(&event).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        let _ = decode_event(Some(&bytes));
    }
}

/// Python's fastavro reads the same values from Rust's bytes, and the reverse.
#[test]
fn fastavro_reads_records_of_rust_and_the_reverse() {
    let Ok(python) = std::env::var("TEST_PYTHON") else {
        assert!(
            std::env::var_os("TEST_REQUIRE_SERVICES").is_none(),
            "TEST_PYTHON is not set"
        );
        println!("skipped: TEST_PYTHON names no Python with fastavro; deploy/test makes one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut runner = TestRunner::default();
    let mut events: Vec<_> = (0..400)
        .map(|_| strategies::event().new_tree(&mut runner).unwrap().current())
        .collect();
    events.push(strategies::sample_event());
    let lines = |text: Vec<String>| text.join("\n") + "\n";
    let hex = |bytes: Vec<u8>| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    for (record, versions) in [
        ("TaskRunningInfo", INFO_VERSIONS),
        ("TaskRunningInfoEvent", EVENT_VERSIONS),
    ] {
        let avsc = versions.last().unwrap().avsc;
        write(&format!("{record}.avsc"), avsc.to_owned());
    }
    write(
        "events.hex",
        lines(
            events
                .iter()
                .map(|event| hex(encode_event(event).unwrap()))
                .collect(),
        ),
    );
    write(
        "infos.hex",
        lines(
            events
                .iter()
                .map(|event| hex(encode_info(&event.info).unwrap()))
                .collect(),
        ),
    );
    write(
        "events.json",
        lines(
            events
                .iter()
                .map(|event| serde_json::to_string(event).unwrap())
                .collect(),
        ),
    );

    let output = std::process::Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/fastavro_peer.py"
        ))
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let read = |name: &str| -> Vec<Vec<u8>> {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        let byte = |line: &str, i: usize| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
        text.lines()
            .map(|line| (0..line.len()).step_by(2).map(|i| byte(line, i)).collect())
            .collect()
    };
    let (events_back, infos_back) = (read("events.fastavro.hex"), read("infos.fastavro.hex"));
    assert_eq!(
        (events_back.len(), infos_back.len()),
        (events.len(), events.len())
    );
    for (i, event) in events.iter().enumerate() {
        assert_eq!(&decode_event(Some(&events_back[i])).unwrap(), event);
        assert_eq!(&decode_info(Some(&infos_back[i])).unwrap(), &event.info);
    }
}
