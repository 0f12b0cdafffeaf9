//! Suspended routers, and routers with one identity: the replaced one is fenced.

use std::time::{Duration, Instant};

use crate::faults_support::{Alongside, Load, Topics};
use service::testing::{kafka, until};

/// Whether a router's log says that another one has replaced it.
fn logs_that_it_was_fenced(log: &str) -> bool {
    log.contains("was fenced") || log.contains("removed from the group")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_static_router_that_was_suspended_in_a_transaction_duplicates_nothing() {
    suspended_router(&["--instance-id", "sleeper"], "6000").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_dynamic_router_that_was_suspended_in_a_transaction_duplicates_nothing() {
    suspended_router(&[], "6000").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_router_that_resumes_while_its_transaction_is_open_duplicates_nothing() {
    suspended_router(&[], "60000").await;
}

/// A router is suspended in the middle of a transaction until its session times out, and also the transaction
/// if its timeout is shorter.
#[expect(
    clippy::print_stdout,
    reason = "the output of a test is for the person who runs it"
)]
async fn suspended_router(identity: &[&str], transaction_timeout_ms: &str) {
    const COMMIT_AFTER: Duration = Duration::from_secs(10);
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let timeout = format!("transaction.timeout.ms={transaction_timeout_ms}");
    let short = ["-X", "session.timeout.ms=6000", "-X", &timeout];
    let commit_after = COMMIT_AFTER.as_millis().to_string();
    // The group has committed offsets, without which a router would wait until no transaction is open.
    let before = topics.start("before", &short);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(before.stop().await.code(), Some(0));

    let more = [identity, &short, &["--commit-interval-ms", &commit_after]].concat();
    let mut sleeper = topics.start("sleeper", &more);
    topics.send_good(200);
    topics.until_transaction_is_open().await;
    sleeper.signal("STOP");
    let asleep = Instant::now();
    assert!(topics.transaction_is_open(), "it was asleep too late");

    let mut other = topics.start_static("other", &short);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    if transaction_timeout_ms == "6000" {
        // The broker checks for timed-out transactions every 10 s.
        assert_eq!(topics.audit().await, (600, 0));
    } else {
        assert!(topics.transaction_is_open());
    }

    until("its commit is due", Duration::from_secs(60), async || {
        (asleep.elapsed() > COMMIT_AFTER).then_some(())
    })
    .await;
    sleeper.signal("CONT");
    topics.send_good(200);
    let ended = until(
        "the sleeper has ended, or works again",
        Duration::from_secs(60),
        async || match sleeper.status() {
            Some(status) => Some(Some(status)),
            None => (sleeper.log().matches("assigned ").count() > 1).then_some(None),
        },
    )
    .await;
    println!("woken, it ended with {ended:?}");
    if let Some(status) = ended {
        assert_eq!(status.code(), Some(1), "{}", sleeper.log());
        assert!(logs_that_it_was_fenced(&sleeper.log()), "{}", sleeper.log());
    }
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    other.assert_running();
    assert_eq!(other.stop().await.code(), Some(0));
    if ended.is_none() {
        assert_eq!(sleeper.stop().await.code(), Some(0));
    }
    assert_eq!(topics.audit().await, (1_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn of_two_static_routers_with_one_identity_the_earlier_ends_and_says_why() {
    of_two_with_one_identity(&["--instance-id", "twin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn of_two_routers_on_one_host_without_identities_the_earlier_ends_and_says_why() {
    of_two_with_one_identity(&[]).await;
}

/// A router that was suspended in a transaction resumes after another has taken its identity: it does not
/// fence that one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_router_that_resumes_after_it_was_replaced_does_not_fence_its_successor() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let more = [
        "--instance-id",
        "twin",
        "-X",
        "session.timeout.ms=6000",
        "-X",
        "transaction.timeout.ms=6000",
        "--commit-interval-ms",
        "500",
    ];
    let mut earlier = topics.start("earlier", &more);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    topics.send_good(200);
    topics.until_transaction_is_open().await;
    earlier.signal("STOP");
    let mut later = topics.start("later", &more);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    earlier.signal("CONT");
    assert_eq!(earlier.ended().await.code(), Some(78), "{}", earlier.log());
    later.assert_running();
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(!later.log().contains("was fenced"), "{}", later.log());
    assert_eq!(later.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (800, 0));
}

async fn of_two_with_one_identity(identity: &[&str]) {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let alongside = Alongside::start(&topics, &topics.events);
    let load = Load::start(&topics, 300);
    let short = [
        "-X",
        "session.timeout.ms=6000",
        "--commit-interval-ms",
        "500",
    ];
    let more = [identity, &short].concat();
    let stopped = topics.start("stopped", &more);
    alongside.until(100, Duration::from_secs(120)).await;
    let mut earlier = topics.start("earlier", &more);
    // A router that is stopped while it looks for its rival has nothing left to do.
    until("it is fenced", Duration::from_secs(120), async || {
        let log = stopped.log();
        log.contains("checking whether another member")
            .then_some(())
    })
    .await;
    assert_eq!(stopped.stop().await.code(), Some(0));
    let seen = alongside.count();
    alongside.until(seen + 100, Duration::from_secs(120)).await;
    let mut later = topics.start("later", &more);
    let ended = earlier.ended().await;
    let log = earlier.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    let names_it = |name: &str| last.contains(name);
    assert!(
        logs_that_it_was_fenced(last) && names_it("--instance-id") && names_it("client.id"),
        "{last}"
    );
    // The later one continues.
    let seen = alongside.count();
    alongside
        .until(seen + 1_000, Duration::from_secs(120))
        .await;
    later.assert_running();
    load.stop().await;
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(later.stop().await.code(), Some(0));
    let (events, letters) = topics.audit().await;
    assert_eq!(letters, 0);
    assert_eq!(alongside.stop_at(events).await.len(), events);
}
