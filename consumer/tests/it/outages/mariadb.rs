//! Crashes, deadlocks and a read-only time of MariaDB are waited for.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{nothing_happened, storing};
use crate::strategies;
use crate::support::{Cluster, Kind, Pipeline, connect, execute};
use service::testing::until;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_that_is_read_only_for_a_while_is_waited_for() {
    let Some(server) = Cluster::mariadb(|_| Vec::new()) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&server.url), 2, "").await else {
        return;
    };
    // Not for users with all rights.
    let grant = format!(
        "CREATE USER writer; GRANT ALL ON {}.* TO writer",
        pipeline.database()
    );
    execute(&server.url, &grant).await;
    let url = pipeline.database_url.replace("root@", "writer@");
    let program = pipeline.program_on(&url, "consumer", &[]);
    let program = storing(&pipeline, program, 500).await;
    let members = pipeline.until_stable(1).await;
    execute(&server.url, "SET GLOBAL read_only = ON").await;
    pipeline.fill_numbered(&strategies::sample_event(), 500, 0);
    program.until_logged("read-only").await;
    execute(&server.url, "SET GLOBAL read_only = OFF").await;
    nothing_happened(&pipeline, program, &members).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_in_mariadb_is_waited_for_and_each_row_is_written_once() {
    let Some(pipeline) = Pipeline::make(Kind::Mariadb, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    // The consumer moves offsets, then waits for a task; this session holds all tasks, then waits for the offsets. Of two
    // transactions, the one that has changed fewer rows is ended: the consumer's.
    let mut other = connect(&pipeline.database_url).await;
    let hold = "START TRANSACTION; UPDATE task SET ticket_id = 'other'; UPDATE task SET ticket_id = 'another'";
    other.run(hold).await.unwrap();
    pipeline.fill_numbered(&sample, 500, 0);
    let waits = format!(
        "SELECT count(*) FROM information_schema.innodb_trx JOIN information_schema.processlist \
         ON id = trx_mysql_thread_id WHERE trx_state = 'LOCK WAIT' AND db = '{}'",
        pipeline.database()
    );
    until("the consumer waits", Duration::from_secs(60), async || {
        (pipeline.count(&waits).await > 0).then_some(())
    })
    .await;
    other
        .run("UPDATE consumed_offset SET group_id = group_id")
        .await
        .unwrap();
    program.until_logged("Deadlock found").await;
    other.run("ROLLBACK").await.unwrap();
    other.close().await;
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}
