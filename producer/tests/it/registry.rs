//! Reports in a schema registry's framing.

use std::time::Duration;

use crate::support::{Reports, text};
use producer::{Options, Reporter};
use rdkafka::message::Message;
use schemas::{Decoder, EngineInstance, TaskStatus};
use service::address::Address;
use service::registry::Registry;
use service::testing::{Gate, read_all, service, until};

fn options(reports: &Reports, registry: &str) -> Options {
    let mut options = Options {
        topic: reports.topic.clone(),
        first_after: Duration::from_millis(10),
        interval: Duration::from_millis(20),
        ..Options::new(&reports.bootstrap)
    };
    options.kafka.schema_registry = Some(Address::http(registry));
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reporters_reports_wait_for_the_registry_and_the_engine_does_not() {
    let Some(url) = service("TEST_SCHEMA_REGISTRY_URL") else {
        return;
    };
    let Some(reports) = Reports::make("registry").await else {
        return;
    };
    let host = url.split('/').nth(2).unwrap();
    let mut gate = Gate::to(host, None);
    let options = options(&reports, &url.replace(host, &gate.address()));
    let engine = EngineInstance {
        instance: "node-1:7077".into(),
        engine_type: "test".into(),
        user: String::new(),
        ticket_id: String::new(),
        running_tasks: 0,
    };
    let reporter = Reporter::with_options(options.clone(), engine).unwrap();
    let task = reporter.task("exec-1", "job-1", ());
    until("reports are made", Duration::from_secs(60), async || {
        (reporter.stats().made > 3).then_some(())
    })
    .await;
    task.finish(TaskStatus::Succeed);
    assert_eq!(reporter.stats().delivered, 0);
    gate.open();
    let stats = reporter.close().await.unwrap();
    assert_eq!((stats.waiting, stats.lost), (0, 0));

    let registry = Registry::of(&options.kafka).unwrap().unwrap();
    let decoder = Decoder::default().with_registry("");
    let records = read_all(&reports.bootstrap, &reports.topic);
    assert_eq!(records.len() as u64, stats.delivered);
    for record in &records {
        if let Some(id) = decoder.unknown_id(record.payload()) {
            let schema = until("it answers", Duration::from_secs(60), async || {
                registry.schema(id).await.ok()
            });
            decoder.learn_id(id, schema.await.as_deref());
        }
        let info = decoder.plain_info(record.payload().unwrap()).unwrap();
        assert_eq!(info.exec_id, "exec-1");
    }
    let last = decoder.info(records.last().unwrap().payload()).unwrap();
    assert_eq!(last.status, TaskStatus::Succeed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_of_something_else_is_left_as_it_is() {
    let Some(url) = service("TEST_SCHEMA_REGISTRY_URL") else {
        return;
    };
    let Some(reports) = Reports::make("registry").await else {
        return;
    };
    let registry = Registry::of(&options(&reports, &url).kafka)
        .unwrap()
        .unwrap();
    let subject = format!("{}-value", reports.topic);
    let other = r#"{"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]}"#;
    until("it is registered", Duration::from_secs(60), async || {
        registry.register(&subject, other).await.ok()
    })
    .await;
    let arguments = ["publish", "--schema-registry", &url];
    let output = reports.run(&arguments, b"");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains(&subject) && said.contains("not compatible"),
        "{said}"
    );
    assert!(read_all(&reports.bootstrap, &reports.topic).is_empty());
}
