//! Temporary failures are waited for: nothing is lost, duplicated or turned into a letter, the consumer stays in its
//! group, and operators can see the reason.

mod mariadb;
mod operators;
mod rebalances;
mod transactions;
mod waits;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::strategies;
use crate::support::{Pipeline, Program};

/// A member that does not poll for this long is removed from its group.
const SHORT_POLL_INTERVAL: &[&str] = &[
    "-X",
    "max.poll.interval.ms=10000",
    "-X",
    "session.timeout.ms=6000",
];

/// A consumer that has stored a first part of its events.
async fn storing(pipeline: &Pipeline, program: Program, events: usize) -> Program {
    pipeline.fill_numbered(&strategies::sample_event(), events, 0);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program
}

/// Holds after every outage: the same member has stored each event once and written no letters, has logged once that it
/// waits and once that it continues, and exits in order.
async fn nothing_happened(pipeline: &Pipeline, mut program: Program, members: &[String]) {
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.until_ready().await;
    // It is ready slightly before it logs that.
    program.until_logged("answers again").await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members.to_vec()));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    let log = program.log();
    let message = log
        .lines()
        .filter_map(|line| line.split_once(" waiting for "));
    let message: Vec<&str> = message.map(|(_, what)| what).collect();
    let kinds: BTreeSet<&str> = message.iter().copied().collect();
    assert!(
        !message.is_empty() && kinds.len() == message.len(),
        "said once per change:\n{log}"
    );
    assert_eq!(log.matches("answers again, after ").count(), 1, "{log}");
    program.stop().await;
}
