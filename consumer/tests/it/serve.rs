//! `consumer serve`: what it answers, to whom, and what while the database is away.

use serde_json::{Value, json};

use crate::strategies;
use crate::support::{Kind, Pipeline, numbered, on_both_databases};

/// A pipeline whose tables hold so many numbered events, one partition.
async fn stored(kind: Kind, count: usize) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, 1).await?;
    let sample = strategies::sample_event();
    let events: Vec<_> = (0..count).map(|i| numbered(&sample, i)).collect();
    pipeline.send_events(&events);
    pipeline.store_all().await;
    Some(pipeline)
}

on_both_databases!(a_task_is_told_as_the_command_tells_it);

async fn a_task_is_told_as_the_command_tells_it(kind: Kind) {
    let Some(pipeline) = stored(kind, 100).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    let mut told = server.json("/api/v1/tasks/exec-01").await;
    let watermark = told.as_object_mut().unwrap().remove("watermark");
    assert_eq!(watermark, Some(json!({"0": 100})));
    let printed: Value =
        serde_json::from_str(&pipeline.ask(&["task", "exec-01", "--json"])).unwrap();
    assert_eq!(told, printed);
    let status = server.json("/api/v1/status").await;
    assert_eq!(status["watermark"], json!({"0": 100}));
    assert_eq!(status["expired_before"], Value::Null);

    let one = server.json("/api/v1/tasks/exec-01?reports=1").await;
    assert_eq!(one["reports"].as_array().unwrap().len(), 1);
    let absent = server.get("/api/v1/tasks/exec-99").await.problem(404);
    assert!(absent.contains("exec-99"), "{absent}");
    let refused = server
        .get("/api/v1/tasks/exec-01?at=noon&reports=0&limit=3")
        .await;
    let detail = refused.problem(400);
    assert!(
        detail.contains("at: expected a time of RFC 3339"),
        "{detail}"
    );
    let errors = refused.json()["errors"].clone();
    let named: Vec<_> = errors
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["parameter"])
        .collect();
    assert_eq!(named, ["at", "reports", "limit"], "{errors}");
    server.stop().await;
}
