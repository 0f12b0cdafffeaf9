//! Parsing of librdkafka's debug log, on a real Kafka. (The consumer's tests of topics that are created again
//! cover the line about a topic's id.)

use clap::Parser;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use service::kafka::KafkaOptions;
use service::range::{Ranges, Reader};
use service::testing::{ASK, Topic, create_topics, kafka, unique};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaOptions,
}

fn send(bootstrap: &str, topic: &str, records: usize, is_committed: bool) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", unique("client-log"))
        .create()
        .unwrap();
    producer.init_transactions(ASK).unwrap();
    producer.begin_transaction().unwrap();
    for _ in 0..records {
        let record = BaseRecord::<str, str>::to(topic).key("k").payload("v");
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(ASK).unwrap();
    match is_committed {
        true => producer.commit_transaction(ASK).unwrap(),
        false => producer.abort_transaction(ASK).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_records_are_noticed_and_only_they() {
    let Some(bootstrap) = kafka() else { return };
    let topic = unique("client-log");
    let made = Topic {
        name: &topic,
        partitions: 1,
        settings: &[],
    };
    create_topics(&bootstrap, &[made]).await;
    send(&bootstrap, &topic, 20, true);
    send(&bootstrap, &topic, 1, false);
    send(&bootstrap, &topic, 20, true);
    // 20 records and a marker, one record and a marker, 20 records and a marker.
    let noticed = |more: &[&str], range: std::ops::Range<i64>| {
        let arguments = [&["test", "--bootstrap-servers", &bootstrap], more].concat();
        let reader = Reader::connect(&Cli::parse_from(arguments).kafka).unwrap();
        let (ranges, stop) = (Ranges::from([(0, range)]), CancellationToken::new());
        let mut read = 0;
        let noticed = reader.scan_and_note_aborted(&topic, &ranges, &stop, |_| {
            read += 1;
            Ok(())
        });
        (read, noticed.unwrap())
    };
    tokio::task::block_in_place(|| {
        assert_eq!(noticed(&[], 0..44), (40, true));
        assert_eq!(noticed(&[], 23..44), (20, false));
        // With other debug contexts that a user sets.
        assert_eq!(
            noticed(&["-X", "log_level=0", "-X", "debug=cgrp"], 0..44),
            (40, true)
        );
    });
    // A log queue that nobody reads would lose the lines.
    let arguments = [
        "test",
        "--bootstrap-servers",
        &bootstrap,
        "-X",
        "log.queue=true",
    ];
    let refused = Reader::connect(&Cli::parse_from(arguments).kafka);
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("log.queue=false"), "{refused}");
}
