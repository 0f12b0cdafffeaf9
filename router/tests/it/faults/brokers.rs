//! A broker that freezes, is killed or restarts.

use std::time::{Duration, Instant};

use crate::faults_support::{Alongside, Broker, Load, Topics};
use service::testing::{Process, service, until};

/// A session and a transaction shorter than the outages, and long enough for a busy machine.
const PATIENT: [&str; 4] = [
    "-X",
    "session.timeout.ms=6000",
    "-X",
    "transaction.timeout.ms=12000",
];

/// A router that is restarted after a failure, as by a supervisor.
struct Supervised<'a> {
    topics: &'a Topics,
    instance: &'static str,
    more: &'a [&'a str],
    process: Process,
    starts: usize,
}

impl<'a> Supervised<'a> {
    fn start(topics: &'a Topics, instance: &'static str, more: &'a [&'a str]) -> Self {
        Self {
            topics,
            instance,
            more,
            process: topics.start_static(instance, more),
            starts: 1,
        }
    }

    #[expect(
        clippy::print_stdout,
        reason = "the output of a test is for the person who runs it"
    )]
    fn supervise(&mut self) {
        let Some(status) = self.process.status() else {
            return;
        };
        let log = self.process.log();
        println!("{} ended with {status}:\n{log}", self.instance);
        assert_eq!(status.code(), Some(1), "no person is to be needed:\n{log}");
        assert!(log.contains("fenced"), "the only reason to end:\n{log}");
        self.process = self.topics.start_static(self.instance, self.more);
        self.starts += 1;
    }
}

/// Supervises until everything written is routed.
async fn until_routed_by(topics: &Topics, routers: &mut [Supervised<'_>]) {
    until("all is routed", Duration::from_secs(120), async || {
        routers.iter_mut().for_each(Supervised::supervise);
        topics.is_routed()
    })
    .await;
}

/// Supervises until the concurrent reader has seen this number of records.
async fn until_seen_by(alongside: &Alongside, count: usize, routers: &mut [Supervised<'_>]) {
    let what = format!("{count} records are seen by the reader alongside");
    until(&what, Duration::from_secs(120), async || {
        routers.iter_mut().for_each(Supervised::supervise);
        (alongside.count() >= count).then_some(())
    })
    .await;
}

async fn supervise_for(time: Duration, routers: &mut [Supervised<'_>]) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        routers.iter_mut().for_each(Supervised::supervise);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_broker_that_freezes_twice_past_the_session_causes_no_loss_and_no_duplicate() {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let broker = Broker::start(tool, &[]).await;
    let topics = Topics::make(&broker.bootstrap, 4).await;
    let more = [&PATIENT[..], &["--commit-interval-ms", "200"]].concat();
    let mut routers = ["router-1", "router-2"].map(|name| Supervised::start(&topics, name, &more));
    let load = Load::start(&topics, 300);
    let alongside = Alongside::start(&topics, &topics.events);
    for _ in 0..2 {
        let progress = alongside.count() + 500;
        until_seen_by(&alongside, progress, &mut routers).await;
        topics.until_transaction_is_open().await;
        broker.signal("STOP");
        supervise_for(Duration::from_secs(13), &mut routers).await; // the fault
        broker.signal("CONT");
        until("work continues", Duration::from_secs(60), async || {
            routers.iter_mut().for_each(Supervised::supervise);
            (alongside.count() > progress).then_some(())
        })
        .await;
    }
    load.stop().await;
    until_routed_by(&topics, &mut routers).await;
    for router in routers {
        println!("{} was started {} times", router.instance, router.starts);
        assert_eq!(router.process.stop().await.code(), Some(0));
    }
    let (events, letters) = topics.audit().await;
    assert_eq!(letters, 0);
    assert_eq!(alongside.stop_at(events).await.len(), events);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_broker_that_restarts_and_one_away_for_longer_than_a_transaction_lasts_are_waited_for() {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    // A killed broker may return after its controller has removed it.
    let broker = Broker::start(tool, &["broker.session.timeout.ms=6000"]).await;
    let topics = Topics::make(&broker.bootstrap, 4).await;
    let more = [&PATIENT[..], &["--commit-interval-ms", "500"]].concat();
    let mut routers = ["router-1", "router-2"].map(|name| Supervised::start(&topics, name, &more));
    let load = Load::start(&topics, 200);
    let alongside = Alongside::start(&topics, &topics.events);
    until_seen_by(&alongside, 500, &mut routers).await;
    topics.until_transaction_is_open().await;
    broker.run(&["stop"]);
    broker.run(&["start"]);
    let progress = alongside.count() + 500;
    until_seen_by(&alongside, progress, &mut routers).await;
    topics.until_transaction_is_open().await;
    broker.signal("KILL");
    supervise_for(Duration::from_secs(35), &mut routers).await; // the fault
    broker.run(&["start"]);
    load.stop().await;
    until_routed_by(&topics, &mut routers).await;
    for router in routers {
        // Transactions resume automatically; a static member that the broker mistakes for its own duplicate
        // after such a freeze ends with code 1 and is restarted.
        println!("{} was started {} times", router.instance, router.starts);
        assert_eq!(router.process.stop().await.code(), Some(0));
    }
    let (events, letters) = topics.audit().await;
    assert_eq!(letters, 0);
    assert_eq!(alongside.stop_at(events).await.len(), events);
}
