//! Kafka's system test of transactional copying (kafkatest's `GroupModeTransactionsTest`) with the router as
//! the copier, and a group that rebalances constantly.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::faults_support::{
    Alongside, Load, SHORT, Topics, doubles, reports, until_it_has_partitions,
};
use schemas::TaskRunningInfo;
use service::testing::{Process, alone, kafka, read_all};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn routers_killed_in_turn_copy_every_record_once_and_in_order_for_a_reader_alongside_too() {
    const RECORDS: i64 = 100_000;
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 9).await;
    let alongside = Alongside::start(&topics, &topics.events);
    // The same number of records per transaction as there, so that a kill hits an open one.
    let start = |name: &str| {
        topics.start_static(
            name,
            &["--max-records", "750", "--commit-interval-ms", "300"],
        )
    };
    let names = ["router-1", "router-2", "router-3"];
    let mut routers = names.map(|name| Some(start(name)));
    let load = Load::start(&topics, 3_000);

    for _round in 0..3 {
        for (name, router) in names.iter().zip(&mut routers) {
            until_it_has_partitions(router.as_ref().unwrap(), name).await;
            let progress = alongside.count() + 2_000;
            alongside.until(progress, Duration::from_secs(120)).await;
            drop(router.take()); // SIGKILL
            *router = Some(start(name));
        }
    }
    load.until(RECORDS).await;
    load.stop().await;
    topics.until_routed(Duration::from_secs(180)).await;
    for router in routers.into_iter().flatten() {
        assert_eq!(router.stop().await.code(), Some(0));
    }

    let event = |value: Option<&[u8]>| schemas::decode_event(value).unwrap().info;
    let info = |value: Option<&[u8]>| -> TaskRunningInfo { schemas::decode_info(value).unwrap() };
    let source = reports(&read_all(&bootstrap, &topics.source), info);
    let copied = read_all(&bootstrap, &topics.events);
    let seen = reports(&alongside.stop_at(copied.len()).await, event);
    let copied = reports(&copied, event);
    assert!(source.values().map(Vec::len).sum::<usize>() >= RECORDS as usize);
    assert_eq!(
        (doubles(&source), doubles(&copied), doubles(&seen)),
        (0, 0, 0)
    );
    // Records of a key keep their partition, so equality includes the order.
    assert!(copied == source, "the copy is not the source");
    assert!(seen == source, "the reader alongside saw something else");
    assert_eq!(topics.letters().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_group_in_constant_rebalance_routes_every_record_once() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 9).await;
    // Long transactions, so that a rebalance hits an open one.
    let more = [&SHORT[..], &["--commit-interval-ms", "200"]].concat();
    let mut started = 0;
    let mut start = || {
        started += 1;
        topics.start_static(&format!("router-{started}"), &more)
    };
    let mut routers: VecDeque<Process> = (0..3).map(|_| start()).collect();
    // Its partitions are reassigned when it leaves, not only when its session ends.
    let mut dynamic = None;
    let load = Load::start(&topics, 1_500);
    let alongside = Alongside::start(&topics, &topics.events);
    alongside.until(1_000, Duration::from_secs(120)).await;

    let begun = Instant::now();
    let mut changes = 0;
    while begun.elapsed() < Duration::from_secs(36) {
        match changes % 6 {
            0 | 2 => routers.push_back(start()),
            1 => assert_eq!(routers.pop_front().unwrap().stop().await.code(), Some(0)),
            3 => drop(routers.pop_front()), // SIGKILL
            4 => dynamic = Some(topics.start("dynamic", &more)),
            _ => {
                let dynamic = dynamic.take().unwrap();
                assert_eq!(dynamic.stop().await.code(), Some(0));
            }
        }
        changes += 1;
        for router in routers.iter_mut().chain(&mut dynamic) {
            router.assert_running();
        }
        tokio::time::sleep(Duration::from_secs(3)).await; // the rate of the fault
    }
    load.stop().await;
    topics.until_routed(Duration::from_secs(180)).await;
    for router in routers {
        assert_eq!(router.stop().await.code(), Some(0));
    }
    let (events, letters) = topics.audit().await;
    assert_eq!(letters, 0);
    assert_eq!(alongside.stop_at(events).await.len(), events);
}
