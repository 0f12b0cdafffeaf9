//! Bad records, interspersed on the source and events topics. A header states each record's kind, and so its expected
//! outcome.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::{Adjustment, MetricValue, TaskRunningInfo, TaskRunningInfoEvent};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{EVENTS, PARTITIONS, SOURCE, strategies};

/// Header with the record's [`Kind`]; regular reports have none.
pub(crate) const HEADER: &str = "chaos.kind";

/// One bad record per this many reports on the source topic, and half as many on the events topic: too few to trip the
/// circuit breaker.
const REPORTS_PER_POISON: f64 = 250.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    RandomBytes,
    NoValue,
    Empty,
    UnknownSchema,
    Truncated,
    TrailingBytes,
    BlankExecId,
    /// A record of the other topic.
    OtherRecord,
    /// On the events topic: a record that the router would have repaired.
    NotRouted,
    /// On the source topic: a record that the router repairs and turns into an event.
    OutOfRange,
}

impl Kind {
    const ON_SOURCE: [Self; 10] = [
        Self::RandomBytes,
        Self::NoValue,
        Self::Empty,
        Self::UnknownSchema,
        Self::Truncated,
        Self::TrailingBytes,
        Self::BlankExecId,
        Self::OtherRecord,
        Self::OutOfRange,
        Self::OutOfRange,
    ];
    const ON_EVENTS: [Self; 9] = [
        Self::RandomBytes,
        Self::NoValue,
        Self::Empty,
        Self::UnknownSchema,
        Self::Truncated,
        Self::TrailingBytes,
        Self::BlankExecId,
        Self::OtherRecord,
        Self::NotRouted,
    ];

    pub(crate) fn is_bad(self) -> bool {
        self != Self::OutOfRange
    }

    pub(crate) fn of(name: &[u8]) -> Self {
        let mut all = Self::ON_SOURCE.into_iter().chain(Self::ON_EVENTS);
        all.find(|kind| format!("{kind:?}").as_bytes() == name)
            .unwrap()
    }
}

/// The router's repairs of [`Kind::OutOfRange`] records.
pub(crate) const REPAIRS: [Adjustment; 3] = [
    Adjustment::ProgressAboveOne,
    Adjustment::NegativeCount,
    Adjustment::MetricNotFinite,
];

/// Number of sent records by topic and kind.
pub(crate) type Sent = BTreeMap<String, u64>;

/// The key of [`Sent`].
pub(crate) fn counted_as(topic: &str, kind: Kind) -> String {
    format!("{topic} {kind:?}")
}

/// The sender of bad records.
pub(crate) struct Poison {
    sending: JoinHandle<Sent>,
    stop: CancellationToken,
}

impl Poison {
    pub(crate) fn start(bootstrap: &str, rate: u32, rng: ChaCha8Rng) -> Self {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("topic.metadata.refresh.interval.ms", "2000")
            .create()
            .unwrap();
        let stop = CancellationToken::new();
        let per_second = f64::from(rate) / REPORTS_PER_POISON;
        let sending = tokio::spawn(send(producer, per_second, rng, stop.clone()));
        Self { sending, stop }
    }

    /// Stops once all records are acknowledged.
    pub(crate) async fn stop(self) -> Sent {
        self.stop.cancel();
        self.sending.await.unwrap()
    }
}

async fn send(
    producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
    per_second: f64,
    mut rng: ChaCha8Rng,
    stop: CancellationToken,
) -> Sent {
    let mut sent = Sent::new();
    for count in 0_u64.. {
        let pause = rng.random_range(0.0..2.0) / (per_second * 1.5);
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(Duration::from_secs_f64(pause)) => {}
        }
        // Kinds take turns, so that short runs contain all of them.
        let turn = count as usize / 3;
        let (topic, kind) = match count % 3 {
            2 => (EVENTS, Kind::ON_EVENTS[turn % Kind::ON_EVENTS.len()]),
            i => (
                SOURCE,
                Kind::ON_SOURCE[(2 * turn + i as usize) % Kind::ON_SOURCE.len()],
            ),
        };
        let key = format!("poison-{count}");
        let value = value(topic, kind, &key, &mut rng);
        let headers = OwnedHeaders::new().insert(Header {
            key: HEADER,
            value: Some(&format!("{kind:?}")),
        });
        let mut record = BaseRecord::<str, [u8]>::to(topic).headers(headers);
        record.key = rng.random_bool(0.9).then_some(&key);
        record.payload = value.as_deref();
        // Not into newly added source partitions. Their first record must prove to the router that nothing was routed
        // before. A record without an event, or with an event in any partition, proves this only if all events can be
        // read; with an unknown schema they cannot, and the router asks an operator.
        if topic == SOURCE {
            record.partition = Some(rng.random_range(0..PARTITIONS));
        }
        producer.send(record).map_err(|(error, _)| error).unwrap();
        *sent.entry(counted_as(topic, kind)).or_default() += 1;
    }
    tokio::task::block_in_place(|| producer.flush(Duration::from_secs(120))).unwrap();
    sent
}

fn value(topic: &str, kind: Kind, exec_id: &str, rng: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    let mut event = strategies::sample_event();
    event.info.exec_id = exec_id.to_owned();
    let encode = |event: &TaskRunningInfoEvent, on: &str| {
        if on == SOURCE {
            schemas::encode_info(&event.info).unwrap()
        } else {
            schemas::encode_event(event).unwrap()
        }
    };
    Some(match kind {
        Kind::NoValue => return None,
        Kind::Empty => Vec::new(),
        Kind::RandomBytes => {
            let mut bytes = vec![0; rng.random_range(1..2_000)];
            rng.fill_bytes(&mut bytes);
            bytes[0] &= 0x7f; // not the marker's first byte
            bytes
        }
        Kind::UnknownSchema => {
            let mut bytes = encode(&event, topic);
            rng.fill_bytes(&mut bytes[2..10]);
            bytes
        }
        Kind::Truncated => {
            let mut bytes = encode(&event, topic);
            bytes.truncate(rng.random_range(1..bytes.len()));
            bytes
        }
        Kind::TrailingBytes => {
            let mut bytes = encode(&event, topic);
            bytes.extend(vec![0; rng.random_range(1..100)]);
            bytes
        }
        Kind::BlankExecId => {
            event.info.exec_id = " ".to_owned();
            encode(&event, topic)
        }
        Kind::OtherRecord => encode(&event, if topic == SOURCE { EVENTS } else { SOURCE }),
        Kind::OutOfRange | Kind::NotRouted => {
            put_out_of_range(&mut event.info);
            encode(&event, topic)
        }
    })
}

fn put_out_of_range(info: &mut TaskRunningInfo) {
    info.progress.as_mut().unwrap().progress = 2.5;
    info.sequence = -1;
    let metrics = info.metrics.as_mut().unwrap();
    metrics.insert("seconds".to_owned(), MetricValue::Double(f64::NAN));
}
