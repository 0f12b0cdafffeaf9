//! Messages of an audit that cannot prove anything, and the report that it writes.

use std::time::Duration;

use super::stored;
use crate::strategies;
use crate::support::{Kind, Pipeline};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_cannot_prove_anything_says_so() {
    let Some(mut pipeline) = stored(Kind::Sqlite).await else {
        return;
    };
    let refuses = |more: &[&str], words: &[&str]| {
        let audited = pipeline.audit(more);
        assert_eq!(audited.code, 2, "{more:?}: {}", audited.log);
        for word in words {
            assert!(audited.log.contains(word), "{more:?}: {}", audited.log);
        }
    };
    let nowhere = pipeline.audit_with("sqlite:/nowhere/at/all.db", &[]);
    assert_eq!(
        (nowhere.code, &nowhere.report["verdict"]),
        (2, &json!("unproven"))
    );
    assert!(
        nowhere.log.contains("/nowhere/at/all.db"),
        "{}",
        nowhere.log
    );
    refuses(&["--report", "report.pdf"], &[".html", ".json", ".prom"]);
    refuses(&["--from", "noon"], &["earliest", "offset:"]);
    // Another topic under the tables' name.
    let renamed = format!("UPDATE consumed_offset SET topic = '{}'", pipeline.source);
    pipeline.execute(&renamed).await;
    pipeline.events = pipeline.source.clone();
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 2);
    for word in ["recreated", "has the topic id"] {
        assert!(audited.log.contains(word), "{}", audited.log);
    }
    // Without ids, the topic is recognised by its records.
    pipeline
        .execute("UPDATE consumed_offset SET topic_id = NULL")
        .await;
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 2);
    for word in ["recreated", "partition 0"] {
        assert!(audited.log.contains(word), "{}", audited.log);
    }
    pipeline
        .execute("UPDATE consumed_offset SET topic = 'no-such-topic'")
        .await;
    pipeline.events = "no-such-topic".to_owned();
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 2);
    assert!(
        audited.log.contains("no-such-topic does not exist"),
        "{}",
        audited.log
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_contains_the_findings_and_escapes_foreign_text() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let mut event = strategies::sample_event();
    event.info.exec_id = "<script>alert(1)</script>".into();
    pipeline.send_events(&[event]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    consumer.stop().await;
    let file = |name: &str| pipeline.folder().join(name).display().to_string();
    let (page, data, metrics) = (
        file("report.html"),
        file("report.json"),
        file("report.prom"),
    );
    pipeline.execute("DELETE FROM task_metrics").await;
    let reports = ["--report", &page, "--report", &data, "--report", &metrics];
    let audited = pipeline.audit(&reports);
    assert_eq!(audited.code, 1);
    let metrics = std::fs::read_to_string(metrics).unwrap();
    let labels = format!(
        "topic=\"{}\",database=\"SQLite {}\"",
        pipeline.events,
        pipeline.folder().join("tasks.db").display()
    );
    for line in [
        format!("taskrunning_audit_equal{{{labels}}} 0"),
        format!("taskrunning_audit_findings{{{labels},fault=\"missing\"}} 1"),
        format!("taskrunning_audit_unproven_rows{{{labels},cause=\"expired\"}} 0"),
        "# TYPE taskrunning_audit_made_at_timestamp_seconds gauge".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is not in\n{metrics}"
        );
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("unequal") && audited.report["digest"] == Value::Null);
    assert!(
        page.contains("script") && !page.contains("<script>"),
        "{page}"
    );
    assert!(!page.contains("http"), "self-contained: {page}");
    let data: Value = serde_json::from_str(&std::fs::read_to_string(data).unwrap()).unwrap();
    for field in [
        "cluster_id",
        "topic",
        "schemas",
        "version",
        "partitions",
        "findings",
    ] {
        assert_eq!(data[field], audited.report[field], "{field}");
    }
}
