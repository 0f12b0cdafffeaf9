//! Rolling upgrade: routers newer than the consumer.

use crate::support::{Kind, Pipeline};
use crate::{newer, strategies};
use serde_json::json;
use service::testing::{read_all, service};

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_routers_events_are_stored_beside_those_of_this_version() {
    let Some(python) = service("TEST_PYTHON") else {
        return;
    };
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let newer: Vec<_> = (0..10)
        .map(|i| {
            let mut json = newer::sample_event(&format!("newer-{i}"), i);
            match i {
                3 => json["info"]["status"] = json!("Paused"),
                4 => json["info"]["startedAt"] = json!(null),
                5 => json["adjustments"] = json!(["ClockAhead"]),
                6 => json["info"]["engine"]["runningTasks"] = json!(1_i64 << 40),
                _ => {}
            }
            json
        })
        .collect();
    let (_, newer) = newer::fastavro(&python, "TaskRunningInfoEvent", &newer);
    let own = |i: usize| {
        let mut event = strategies::sample_event();
        event.adjustments.clear();
        event.info.exec_id = format!("own-{i}");
        schemas::encode_event(&event).unwrap()
    };
    let records: Vec<_> = (0..10)
        .flat_map(|i| [("k", newer[i].clone(), Some(0)), ("k", own(i), Some(0))])
        .collect();
    pipeline.send(&pipeline.events, &records);

    let folder = tempfile::tempdir().unwrap();
    newer::write(folder.path());
    let consumer = pipeline.consumer(&["--schemas", folder.path().to_str().unwrap()]);
    pipeline
        .until_count(&Pipeline::stored("progress"), 20)
        .await;
    consumer.stop().await;

    let rows = pipeline
        .rows(
            "SELECT exec_id, p.status, p.adjustments FROM task_progress p JOIN task USING (task_id) \
             ORDER BY p.event_offset",
        )
        .await;
    let expected: Vec<Vec<Option<String>>> = (0..10)
        .flat_map(|i| [("newer", i), ("own", i)])
        // Excludes the one with a number that this version cannot represent.
        .filter(|which| *which != ("newer", 6))
        .map(|which| {
            let (status, adjustments) = match which {
                ("newer", 3) => ("Unknown", None),
                ("newer", 5) => ("Running", Some(r#"["Unknown"]"#)),
                _ => ("Running", None),
            };
            let exec_id = format!("{}-{}", which.0, which.1);
            vec![
                Some(exec_id),
                Some(status.to_owned()),
                adjustments.map(str::to_owned),
            ]
        })
        .collect();
    assert_eq!(rows, expected);
    let letters = read_all(&pipeline.bootstrap, &pipeline.letters);
    assert_eq!(letters.len(), 1);
}
