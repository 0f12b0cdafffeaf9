//! Cost of reading and writing a record: `cargo bench -p schemas`. The sample has the size of simulated
//! reports.

use std::hint::black_box;

use divan::Bencher;
use schemas::{
    Decoder, Framing, INFO_VERSIONS, PlainSource, TaskRunningInfo, encode_info, plain_info,
};

fn main() {
    divan::main();
}

fn sample() -> TaskRunningInfo {
    let sample = r#"{
        "execId": "sim-7-000001", "jobId": "job-0000001", "status": "Running", "sequence": 17,
        "reportedAt": "2026-11-25T14:05:00.123456Z",
        "engine": {"instance": "node-17.cluster:34567", "engineType": "spark", "user": "ada", "ticketId": "ticket-000001", "runningTasks": 12},
        "progress": {"progress": 0.4375, "progressInfo": [
            {"id": "0", "totalTasks": 200, "runningTasks": 0, "failedTasks": 0, "succeedTasks": 200},
            {"id": "1", "totalTasks": 200, "runningTasks": 12, "failedTasks": 1, "succeedTasks": 150},
            {"id": "2", "totalTasks": 400, "runningTasks": 0, "failedTasks": 0, "succeedTasks": 0}]},
        "resource": {"applications": {"application_1764079500123_0001": {"queueMemory": 34359738368, "queueCores": 16,
            "queueInstances": 8, "jobStatus": "RUNNING", "queue": "root.analytics"}}},
        "metrics": {"gcTimeMs": 1234, "inputBytes": 123456789, "shuffleReadBytes": 4567890, "cpuShare": 0.73, "stage": "shuffle"}
    }"#;
    serde_json::from_str(sample).expect("the sample is a record")
}

#[divan::bench]
fn reading_in_place(bencher: Bencher) {
    let bytes = encode_info(&sample()).expect("the sample is written");
    bencher.bench(|| plain_info(black_box(&bytes)).is_some());
}

#[divan::bench]
fn reading_in_place_with_a_registry(bencher: Bencher) {
    let mut bytes = encode_info(&sample()).expect("the sample is written");
    Framing::Registry(7).put_on(&mut bytes);
    let decoder = Decoder::default().with_registry("");
    decoder.learn_id(7, Some(INFO_VERSIONS[0].avsc));
    bencher.bench(|| {
        let value = black_box(&bytes);
        decoder.unknown_id(Some(value)).is_none() && decoder.plain_info(value).is_some()
    });
}

#[divan::bench]
fn reading_the_long_way(bencher: Bencher) {
    let bytes = encode_info(&sample()).expect("the sample is written");
    let decoder = Decoder::default();
    bencher.bench(|| decoder.info(Some(black_box(&bytes))));
}

#[divan::bench]
fn writing_the_event_in_place(bencher: Bencher) {
    let bytes = encode_info(&sample()).expect("the sample is written");
    let info = plain_info(&bytes).expect("the sample is plain");
    let source = PlainSource {
        topic: "task-running-info",
        partition: 3,
        offset: 123_456_789,
        timestamp: 1_764_079_500_123,
        topic_id: Some("ASNFZ4mrze8AESIzRFVmdw"),
    };
    let mut event = Vec::new();
    bencher.bench_local(|| {
        event.clear();
        info.write_event(
            &source,
            1_764_079_500_200_001,
            Framing::SingleObject,
            &mut event,
        );
        black_box(&event);
    });
}

#[divan::bench]
fn writing_a_record(bencher: Bencher) {
    let sample = sample();
    bencher.bench(|| encode_info(black_box(&sample)));
}

#[divan::bench]
fn metrics_as_json(bencher: Bencher) {
    let bytes = encode_info(&sample()).expect("the sample is written");
    let info = plain_info(&bytes).expect("the sample is plain");
    let mut json = Vec::new();
    bencher.bench_local(|| {
        json.clear();
        serde_json::to_writer(&mut json, black_box(&info.metrics)).is_ok()
    });
}
