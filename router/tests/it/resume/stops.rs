//! A router stops if it cannot prove the position to resume at.

use std::time::Duration;

use super::{ANY_LETTERS, route, send, stops_with_both_choices, write};
use crate::faults_support::{Topics, client, numbered};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use service::testing::{kafka, read_all};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_the_last_possible_offset_that_no_router_wrote_stops_a_router_without_offsets()
{
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    send(&topics, 0, 10, |_| false);
    route(&topics, "before", &[]).await;
    let events = read_all(&bootstrap, &topics.events);
    let mut event = schemas::decode_event(events[0].payload()).unwrap();
    event.source.offset = i64::MAX;
    let value = schemas::encode_event(&event).unwrap();
    let record = BaseRecord::to(&topics.events).payload(&value[..]);
    write(&topics, record);
    topics.delete_group().await;
    let why = stops_with_both_choices(topics.start("stops", &[]), &topics).await;
    assert!(why.contains("or another program wrote into"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_offset_a_router_stops_or_begins_again_as_configured() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    topics.send_good(200);
    // Without earlier outputs, nothing can be duplicated.
    route(&topics, "before", &["--on-no-offset", "fail"]).await;
    assert_eq!(topics.audit().await, (200, 0));
    topics.delete_group().await;

    let router = topics.start("fails", &["--on-no-offset", "fail"]);
    stops_with_both_choices(router, &topics).await;
    assert_eq!(topics.audit().await, (200, 0));

    let log = route(&topics, "again", &["--on-no-offset", "beginning"]).await;
    assert!(log.contains("--on-no-offset is beginning"), "{log}");
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_retention_has_deleted_the_outputs_a_router_stops_and_a_new_partition_begins() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.send_good(200);
    route(&topics, "before", &[]).await;
    let end = topics.ends(&topics.events, "read_uncommitted").unwrap()[&0];
    topics.delete_before(&topics.events, 0, end).await;
    topics.delete_group().await;
    topics.send_good(50);
    let why = stops_with_both_choices(topics.start("unproved", &[]), &topics).await;
    assert!(
        why.contains(&format!(
            "{} partition 0, whose log begins at offset {end}",
            topics.events
        )),
        "{why}"
    );
    topics.reset_offset(0, 200).await;
    route(&topics, "decided", &[]).await;
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 50);

    // The remaining outputs are older than the new partition's first record, and so were the deleted ones.
    let (old, now) = (3 * 86_400_000, 86_400_000);
    let producer: ThreadedProducer<_> = client(&bootstrap).create().unwrap();
    let another = format!("{}-other", topics.events);
    topics.create(&another, 1).await;
    for age in [old, old, now] {
        let record = BaseRecord::<(), [u8]>::to(&another).payload(b"another's");
        let stamp = jiff::Timestamp::now().as_millisecond() - age;
        let sent = producer.send(record.timestamp(stamp));
        sent.map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    topics.delete_before(&another, 0, 1).await;
    let mut topics = topics;
    topics.events = another;
    topics.grow_source(2).await;
    topics.send_to_partition(1, 70);
    let log = route(&topics, "grown", &[]).await;
    assert!(log.contains("neither events nor dead letters"), "{log}");
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 2 + 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_nobody_can_read_among_the_events_stops_only_where_it_may_be_the_next_event()
{
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.send_good(500);
    route(&topics, "before", &[]).await;
    // An event with an unknown schema, like that of a newer router.
    let unreadable = [&[0xC3, 0x01][..], &[0xAB; 8], b"whatever"].concat();
    let send_unreadable = |key: &str| {
        let producer: ThreadedProducer<_> = client(&bootstrap).create().unwrap();
        let record = BaseRecord::to(&topics.events)
            .key(key.as_bytes())
            .payload(&unreadable[..]);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(60)).unwrap();
    };
    send_unreadable("a-stranger");
    topics.delete_group().await;
    topics.send_good(100);
    let log = route(&topics, "after", &[]).await;
    assert!(log.contains("partition 0: resuming at"), "{log}");
    let events = |topics: &Topics| read_all(&bootstrap, &topics.events).len();
    assert_eq!(events(&topics), 500 + 1 + 100);

    let (key, _) = numbered(0, 50);
    send_unreadable(&key);
    topics.delete_group().await;
    topics.send_good(100);
    let log = stops_with_both_choices(topics.start("stops", &ANY_LETTERS), &topics).await;
    assert!(log.contains("--schemas"), "{log}");
    assert_eq!(events(&topics), 500 + 1 + 100 + 1);
}
