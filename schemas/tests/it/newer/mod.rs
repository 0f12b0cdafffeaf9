//! A fictitious newer version of both records.

use std::path::Path;

use schemas::{EVENT_VERSIONS, INFO_VERSIONS};
use serde_json::{Value as Json, json};

/// The newest released schema of TaskRunningInfo, to edit.
pub(crate) fn released_info() -> Json {
    serde_json::from_str(INFO_VERSIONS.last().unwrap().avsc).unwrap()
}

/// A field of a record, or of the record behind a null branch.
pub(crate) fn field<'a>(record: &'a mut Json, name: &str) -> &'a mut Json {
    let record = match record {
        Json::Array(branches) => branches.last_mut().unwrap(),
        other => other,
    };
    let fields = record["fields"].as_array_mut().unwrap();
    fields.iter_mut().find(|f| f["name"] == name).unwrap()
}

/// Adds a field before one of the record's.
pub(crate) fn add_before(record: &mut Json, before: &str, added: Json) {
    let fields = record["fields"].as_array_mut().unwrap();
    let at = fields.iter().position(|f| f["name"] == before).unwrap();
    fields.insert(at, added);
}

/// TaskRunningInfo with an added field and nullable time, two widened counts, and an additional status and
/// type of metric, all in the middle.
pub(crate) fn info() -> Json {
    let mut info = released_info();
    add_before(
        &mut info,
        "engine",
        json!({"name": "attempt", "type": "int", "default": 0}),
    );
    add_before(
        &mut info,
        "sequence",
        json!({"name": "startedAt", "default": null,
               "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]}),
    );
    let engine = &mut field(&mut info, "engine")["type"];
    field(engine, "runningTasks")["type"] = json!("long");
    let progress = &mut field(&mut info, "progress")["type"];
    let jobs = &mut field(progress, "progressInfo")["type"]["items"];
    field(jobs, "totalTasks")["type"] = json!("long");
    let symbols = &mut field(&mut info, "status")["type"]["symbols"];
    symbols.as_array_mut().unwrap().insert(5, json!("Paused"));
    let metrics = &mut field(&mut info, "metrics")["type"][1]["values"];
    metrics
        .as_array_mut()
        .unwrap()
        .insert(1, json!({"type": "array", "items": "double"}));
    info
}

/// TaskRunningInfoEvent with [`info`], an added field and an additional repair.
pub(crate) fn event() -> Json {
    let mut event: Json = serde_json::from_str(EVENT_VERSIONS.last().unwrap().avsc).unwrap();
    field(&mut event, "info")["type"] = info();
    add_before(
        &mut event,
        "routedAt",
        json!({"name": "router", "type": "string", "default": ""}),
    );
    let symbols = &mut field(&mut event, "adjustments")["type"]["items"]["symbols"];
    symbols
        .as_array_mut()
        .unwrap()
        .insert(1, json!("ClockAhead"));
    event
}

/// Writes both into a folder.
pub(crate) fn write(folder: &Path) {
    for (name, avsc) in [
        ("TaskRunningInfo.avsc", info()),
        ("TaskRunningInfoEvent.avsc", event()),
    ] {
        std::fs::write(folder.join(name), avsc.to_string()).unwrap();
    }
}

/// A record of the newer version as JSON, with times in microseconds.
pub(crate) fn sample(exec_id: &str, sequence: i64) -> Json {
    json!({
        "execId": exec_id, "jobId": "job", "attempt": 3, "status": "Running",
        "engine": {"instance": "node:1", "engineType": "test", "user": "", "ticketId": "", "runningTasks": 1},
        "reportedAt": 1_764_079_500_123_456_i64, "startedAt": 1_764_079_400_000_000_i64, "sequence": sequence,
        "progress": {"progress": 0.5, "progressInfo": [
            {"id": "0", "totalTasks": 4, "runningTasks": 1, "failedTasks": 0, "succeedTasks": 2}]},
        "resource": null, "metrics": {"rows": 7},
    })
}

/// The same in an event of the newer version.
pub(crate) fn sample_event(exec_id: &str, sequence: i64) -> Json {
    json!({
        "source": {"topic": "t", "partition": 0, "offset": sequence, "timestamp": 1_764_079_500_123_i64,
                   "topicId": null},
        "router": "router-1", "routedAt": 1_764_079_500_200_001_i64, "adjustments": [],
        "notFinite": {},
        "info": sample(exec_id, sequence),
    })
}

/// Output of Python's fastavro: for each of the [`write`]n schemas, the record's name and header, then the
/// bytes of `records`, which are of one of the two.
pub(crate) fn fastavro(
    python: &str,
    record: &str,
    records: &[Json],
) -> (Vec<String>, Vec<Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    std::fs::write(folder.path().join(format!("{record}.json")), lines).unwrap();
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/tests/it/fastavro_writes.py");
    let output = std::process::Command::new(python)
        .arg(script)
        .arg(folder.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(str::to_owned);
    let headers = lines.by_ref().take(2).collect();
    let byte = |line: &str, i: usize| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
    let values = lines
        .map(|line| (0..line.len()).step_by(2).map(|i| byte(&line, i)).collect())
        .collect();
    (headers, values)
}
