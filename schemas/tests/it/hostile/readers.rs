//! The four readers of records: of either record, of the current version or of one from a file.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use schemas::{DecodeError, Decoder, TaskRunningInfo, TaskRunningInfoEvent};
use serde_json::{Value as Json, json};

use crate::{cost, encoding, newer, strategies};

/// The result of `work`, and its peak memory in bytes.
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let (done, allocated) = cost::allocated(work);
    (done, allocated.peak_bytes as usize)
}

/// One of the four readers.
pub(crate) struct RecordReader {
    pub(crate) name: &'static str,
    pub(crate) header: Vec<u8>,
    pub(crate) avsc: Json,
    /// The sample event or info in this schema.
    pub(crate) sample: Json,
    pub(crate) read: fn(Option<&[u8]>) -> Result<Read, DecodeError>,
}

#[derive(Debug)]
pub(crate) enum Read {
    Info(Box<TaskRunningInfo>),
    Event(Box<TaskRunningInfoEvent>),
}

/// A decoder with a newer version, whose added fields the current version drops.
static DECODER: LazyLock<(Decoder, Json, Json)> = LazyLock::new(|| {
    let (mut info, mut event) = (newer::info(), newer::event());
    let nothing = json!({"type": "array", "items": "null"});
    for (name, kind) in [
        ("nothing", nothing.clone()),
        ("nested", json!({"type": "array", "items": nothing})),
        ("named", json!({"type": "map", "values": nothing})),
        (
            "hollow",
            json!({"type": "array", "items": {"type": "record", "name": "Hollow", "fields": [
                {"name": "none", "type": "null"},
                {"name": "void", "type": {"type": "fixed", "name": "Void", "size": 0}}]}}),
        ),
    ] {
        newer::add_before(&mut info, "progress", json!({"name": name, "type": kind}));
    }
    newer::field(&mut event, "info")["type"] = info.clone();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("info.avsc"), info.to_string()).unwrap();
    std::fs::write(folder.path().join("event.avsc"), event.to_string()).unwrap();
    let decoder = Decoder::with_schemas(Some(folder.path())).unwrap();
    (decoder, info, event)
});

fn info(value: Option<&[u8]>) -> Result<Read, DecodeError> {
    DECODER.0.info(value).map(Box::new).map(Read::Info)
}

fn event(value: Option<&[u8]>) -> Result<Read, DecodeError> {
    DECODER.0.event(value).map(Box::new).map(Read::Event)
}

pub(crate) fn readers() -> [RecordReader; 4] {
    let sample = strategies::sample_event();
    let header = |bytes: Vec<u8>| bytes[..10].to_vec();
    let newer_header = |record: &str| {
        let mut newer = DECODER.0.newer_schemas().iter();
        let found = newer.find(|one| one.record == record).unwrap();
        [&[0xC3, 1][..], &found.fingerprint.to_le_bytes()].concat()
    };
    let mut info_json = serde_json::to_value(&sample.info).unwrap();
    info_json["reportedAt"] = json!(sample.info.reported_at);
    let mut event_json = serde_json::to_value(&sample).unwrap();
    event_json["routedAt"] = json!(sample.routed_at);
    event_json["info"] = info_json.clone();
    let mut newer_info = info_json.clone();
    newer_info["attempt"] = json!(1);
    newer_info["startedAt"] = json!(null);
    for empty in ["nothing", "nested", "hollow"] {
        newer_info[empty] = json!([]);
    }
    newer_info["named"] = json!({});
    let mut newer_event = event_json.clone();
    newer_event["router"] = json!("r");
    newer_event["info"] = newer_info.clone();
    let released = |versions: &[schemas::Version]| {
        serde_json::from_str(versions.last().unwrap().avsc).unwrap()
    };
    [
        RecordReader {
            name: "info",
            header: header(schemas::encode_info(&sample.info).unwrap()),
            avsc: released(schemas::INFO_VERSIONS),
            sample: info_json,
            read: info,
        },
        RecordReader {
            name: "event",
            header: header(schemas::encode_event(&sample).unwrap()),
            avsc: released(schemas::EVENT_VERSIONS),
            sample: event_json,
            read: event,
        },
        RecordReader {
            name: "newer info",
            header: newer_header("TaskRunningInfo"),
            avsc: DECODER.1.clone(),
            sample: newer_info,
            read: info,
        },
        RecordReader {
            name: "newer event",
            header: newer_header("TaskRunningInfoEvent"),
            avsc: DECODER.2.clone(),
            sample: newer_event,
            read: event,
        },
    ]
}

impl RecordReader {
    pub(crate) fn info_of<'a>(&self, json: &'a mut Json) -> &'a mut Json {
        if self.name.ends_with("event") {
            &mut json["info"]
        } else {
            json
        }
    }

    pub(crate) fn encode(&self, json: Json) -> Vec<u8> {
        let fingerprint = u64::from_le_bytes(self.header[2..].try_into().unwrap());
        let value = apache_avro::types::Value::try_from(json).unwrap();
        encoding::encode(&self.avsc, fingerprint, value)
    }

    /// The sample up to a block: of `progressInfo`, or else of `metrics`. Two bytes of null follow in the
    /// first case, nothing in the second.
    pub(crate) fn up_to_block(&self, array: bool) -> Vec<u8> {
        let mut json = self.sample.clone();
        let info = self.info_of(&mut json);
        info["resource"] = Json::Null;
        info["progress"]["progressInfo"] = json!([]);
        info["metrics"] = if array { Json::Null } else { json!({}) };
        let mut bytes = self.encode(json);
        bytes.truncate(bytes.len() - if array { 3 } else { 1 });
        bytes
    }

    /// Asserts that a value is refused within 10 ms and 1 MiB.
    pub(crate) fn refuse(&self, value: Option<&[u8]>, reason: &str) {
        let mut least = Duration::MAX;
        // The minimum of five runs, because the machine may be busy.
        for _ in 0..5 {
            let begun = Instant::now();
            let (read, bytes) = measured(|| (self.read)(value));
            least = least.min(begun.elapsed());
            let error = read.expect_err(reason).to_string();
            assert!(
                error.contains(reason),
                "{}: {error}\n is not: {reason}",
                self.name
            );
            assert!(bytes < 1 << 20, "{}: {bytes} bytes for {error}", self.name);
        }
        assert!(
            least < Duration::from_millis(10),
            "{}: {least:?} for {reason}",
            self.name
        );
    }
}
