//! Outages of MariaDB under load are waited for.

use super::{nothing_happened, storing};
use crate::strategies;
use crate::support::{Cluster, Pipeline};

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_that_crashes_under_a_load_is_waited_for() {
    let Some(server) = Cluster::mariadb(|_| Vec::new()) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&server.url), 4, "").await else {
        return;
    };
    let program = pipeline.program("consumer", &["--max-events", "50"]);
    let program = storing(&pipeline, program, 500).await;
    let members = pipeline.until_stable(1).await;
    // It crashes while these are stored.
    pipeline.fill_numbered(&strategies::sample_event(), 5_000, 0);
    server.crash();
    program.until_logged("waiting for ").await;
    server.start_again();
    nothing_happened(&pipeline, program, &members).await;
    pipeline.audit(&[]).assert_equal();
}

/// As by a machine that has stopped: connections are accepted, and nothing is answered.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_mariadb_that_is_suspended_is_waited_for() {
    let Some(server) = Cluster::mariadb(|_| Vec::new()) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&server.url), 2, "").await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    let mut program = storing(&pipeline, program, 500).await;
    let members = pipeline.until_stable(1).await;
    server.signal("STOP");
    pipeline.fill_numbered(&strategies::sample_event(), 500, 0);
    program.until_waiting(&["MySQL", "no "]).await;
    server.signal("CONT");
    nothing_happened(&pipeline, program, &members).await;
}
