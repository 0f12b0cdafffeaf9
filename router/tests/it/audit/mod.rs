//! `router audit` on a real Kafka: outputs of routers are proved equal, and each forgery is found and
//! classified correctly.

mod differing;
mod equal;
mod findings;
mod range;

use std::time::Duration;

use crate::audit_support::{Audited, Copied, audit, encoded, forged};
use crate::faults_support::Topics;
use crate::strategies;
use schemas::TaskRunningInfo;

/// No limit on bad records.
const PATIENT: [&str; 4] = ["--max-rejects-in-a-row", "0", "--max-rejects-per-1000", "0"];

/// A report with all fields.
fn full(exec_id: &str, sequence: i64) -> TaskRunningInfo {
    let mut info = strategies::sample_event().info;
    (info.exec_id, info.sequence) = (exec_id.to_owned(), sequence);
    info
}

/// The `i`-th record of a mixture of good, repairable and bad ones.
fn mixed(i: i64) -> (String, Vec<u8>) {
    let mut info = full(&format!("exec-{}", i % 7), i);
    match i % 20 {
        3 => info.progress.as_mut().unwrap().progress = f64::NAN,
        8 => info.engine.running_tasks = -3,
        13 => info.job_id = " ".into(),
        17 => return (info.exec_id, b"no report".to_vec()),
        _ => {}
    }
    (info.exec_id.clone(), encoded(&info))
}

fn send(topics: &Topics, records: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let records: Vec<_> = records.into_iter().collect();
    topics.send(
        records
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone())),
    );
}

/// Topics of two partitions with this number of mixed records, which a router has routed.
async fn routed(bootstrap: &str, count: i64) -> Topics {
    let topics = Topics::make(bootstrap, 2).await;
    send(&topics, (0..count).map(mixed));
    let router = topics.start_static("router-1", &PATIENT);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success());
    topics
}

/// Audits with other outputs.
async fn audit_forged(topics: &Topics, events: &[Copied], letters: Option<&[Copied]>) -> Audited {
    let events = forged(topics, events).await;
    let mut more = vec!["--events-topic", events.as_str()];
    let letters = match letters {
        Some(letters) => forged(topics, letters).await,
        None => topics.letters.clone(),
    };
    more.extend(["--dead-letters-topic", &letters]);
    audit(topics, &more).await
}
