//! Rolling upgrades: engines that are newer than the router.

use std::process::Command;

use crate::newer;
use crate::support::{Settings, Topics, headers, info};
use rdkafka::message::{Message, OwnedMessage};
use schemas::TaskStatus;
use serde_json::{Value as Json, json};
use service::testing::{kafka, service, unique};

fn reason(letter: &OwnedMessage) -> String {
    headers(letter)
        .remove("__connect.errors.exception.class.name")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_engines_are_routed_by_a_router_that_has_their_schema_and_until_then_set_aside() {
    let Some(bootstrap) = kafka() else { return };
    let Some(python) = service("TEST_PYTHON") else {
        return;
    };
    // Twenty reports of a newer engine: one with a new status, one with a null time, and one with a number
    // that is too large for this version.
    let newer: Vec<Json> = (0..20)
        .map(|i| {
            let mut json = newer::sample(&format!("newer-{i}"), i);
            match i {
                3 => json["status"] = json!("Paused"),
                4 => json["startedAt"] = Json::Null,
                5 => json["progress"]["progressInfo"][0]["totalTasks"] = json!(1_i64 << 40),
                6 => json["engine"]["runningTasks"] = json!(i32::MAX),
                _ => {}
            }
            json
        })
        .collect();
    let (_, newer) = newer::fastavro(&python, "TaskRunningInfo", &newer);
    let own: Vec<_> = (0..20)
        .map(|i| schemas::encode_info(&info(&format!("own-{i}"), i)).unwrap())
        .collect();
    let topics = Topics::make(bootstrap, 1, Settings::default()).await;
    let mixed = |range: std::ops::Range<usize>| {
        let values = range.flat_map(|i| [&newer[i], &own[i]]);
        topics.send(values.map(|value| (None, Some(&value[..]), None)));
    };

    mixed(0..10);
    let router = topics.start("router-1");
    let (events, letters) = topics.outputs(20).await;
    router.stop().await;
    assert_eq!((events.len(), letters.len()), (10, 10));
    for (letter, newer) in letters.iter().zip(&newer) {
        assert_eq!(reason(letter), "UnknownSchema");
        assert_eq!(letter.payload(), Some(&newer[..]));
    }

    let folder = tempfile::tempdir().unwrap();
    newer::write(folder.path());
    let schemas = ["--schemas", folder.path().to_str().unwrap()];
    mixed(10..20);
    // The records that were set aside are sent again.
    topics.send(letters.iter().map(|letter| (None, letter.payload(), None)));
    let router = topics.start_with("router-1", &schemas);
    let (events, letters) = topics.outputs(20 + 30).await;
    router.stop().await;

    assert_eq!((events.len(), letters.len()), (39, 11));
    let refused = letters.last().unwrap();
    assert_eq!(reason(refused), "Malformed");
    assert_eq!(refused.payload(), Some(&newer[5][..]));
    let message = &headers(refused)["__connect.errors.exception.message"];
    assert!(
        message.contains("progress.progressInfo.totalTasks at byte")
            && message.contains("1099511627776 is more than the int"),
        "{message}"
    );
    for event in &events {
        // Written in this router's version.
        let event = schemas::decode_event(event.payload()).unwrap();
        let (engine, number) = event.info.exec_id.split_once('-').unwrap();
        let number: i64 = number.parse().unwrap();
        assert_eq!(
            (event.info.sequence, &event.adjustments[..]),
            (number, &[][..])
        );
        let mut expected = info(&event.info.exec_id, number);
        if engine == "newer" {
            let json = newer::sample(&event.info.exec_id, number);
            expected.progress = serde_json::from_value(json["progress"].clone()).unwrap();
            expected.metrics = serde_json::from_value(json["metrics"].clone()).unwrap();
            match number {
                3 => expected.status = TaskStatus::Unknown,
                6 => expected.engine.running_tasks = i32::MAX,
                _ => {}
            }
        }
        assert_eq!(event.info, expected);
    }
}

#[test]
fn an_unusable_schema_file_stops_the_router_at_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut avsc = newer::info();
    newer::field(&mut avsc, "sequence")["type"] = json!("string");
    std::fs::write(folder.path().join("v9.avsc"), avsc.to_string()).unwrap();
    let run = |schemas: &str| {
        // Before it connects to Kafka.
        let output = Command::new(env!("CARGO_BIN_EXE_router"))
            .args(["--bootstrap-servers", "127.0.0.1:1", "--schemas", schemas])
            .output()
            .unwrap();
        let log = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(log).unwrap())
    };
    let (code, log) = run(folder.path().to_str().unwrap());
    assert_eq!(code, Some(78), "{log}");
    assert!(
        log.contains("v9.avsc: cannot be read as the TaskRunningInfo of this program: sequence: string, where long is read"),
        "{log}"
    );
    let absent = format!("/{}", unique("absent"));
    let (code, log) = run(&absent);
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains(&format!("{absent}: No such file")), "{log}");
}
