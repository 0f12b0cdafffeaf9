//! Helpers of the fault tests: separate topics, the real program, a load, a broker for faults, and the audit
//! of all records.

mod alongside;
mod broker;
mod load;

pub(crate) use alongside::Alongside;
pub(crate) use broker::Broker;
pub(crate) use load::Load;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

pub(crate) use crate::report::info;
use crate::support::router_arguments;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::TaskRunningInfo;
use service::testing::{
    ASK, Process, Topic, add_partitions, create_topics, delete_topic, read_all, reader, unique,
    until,
};
use tempfile::TempDir;

const ROUTER: &str = env!("CARGO_BIN_EXE_router");

/// A session and a transaction that time out soon after their router is suspended: the minimum session
/// timeout of a broker by default.
pub(crate) const SHORT: [&str; 4] = [
    "-X",
    "session.timeout.ms=6000",
    "-X",
    "transaction.timeout.ms=6000",
];

/// Waits until a router has logged its assigned partitions.
pub(crate) async fn until_it_has_partitions(router: &Process, name: &str) {
    let what = format!("{name} has partitions");
    until(&what, Duration::from_secs(120), async || {
        router.log().contains("assigned ").then_some(())
    })
    .await;
}

/// Topics of one test, and the programs on them. The group has the source topic's name.
pub(crate) struct Topics {
    pub(crate) bootstrap: String,
    pub(crate) source: String,
    pub(crate) events: String,
    pub(crate) letters: String,
    folder: TempDir,
}

impl Topics {
    /// Creates the source and events topics with this number of partitions.
    pub(crate) async fn make(bootstrap: &str, partitions: i32) -> Self {
        let name = unique("faults");
        let topics = Self {
            bootstrap: bootstrap.to_owned(),
            events: format!("{name}-events"),
            letters: format!("{name}-letters"),
            source: name,
            folder: tempfile::tempdir().unwrap(),
        };
        topics.create(&topics.source, partitions).await;
        topics.create(&topics.events, partitions).await;
        topics.create(&topics.letters, 1).await;
        topics
    }

    pub(crate) async fn create(&self, name: &str, partitions: i32) {
        let topic = Topic {
            name,
            partitions,
            settings: &[],
        };
        create_topics(&self.bootstrap, &[topic]).await;
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.bootstrap).create().unwrap()
    }

    /// Deletes a topic and waits until it no longer exists.
    pub(crate) async fn delete(&self, topic: &str) {
        delete_topic(&self.bootstrap, topic).await;
    }

    /// Increases the source topic's partitions to `count`, and waits until clients see them.
    pub(crate) async fn grow_source(&self, count: i32) {
        add_partitions(&self.bootstrap, &self.source, count).await;
    }

    /// Sends a record to the beginning of the rest of each partition whose dead letter the broker refuses, so
    /// that its transactions abort, until [`Self::accept_letters`].
    pub(crate) async fn refuse_letters(&self) {
        // Not by an age or a size: the broker holds its own transaction markers to those, and one that it
        // refuses leaves the transaction open for ever. Markers have keys.
        self.set_policy_of_letters("compact").await;
        let producer = producer(&self.bootstrap);
        for partition in self.partitions(&self.source) {
            let keyless = BaseRecord::<(), _>::to(&self.source).partition(partition);
            producer.send(keyless.payload("not Avro")).unwrap();
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }

    /// Ends [`Self::refuse_letters`].
    pub(crate) async fn accept_letters(&self) {
        self.set_policy_of_letters("delete").await;
    }

    async fn set_policy_of_letters(&self, policy: &str) {
        let letters = AlterConfig::new(ResourceSpecifier::Topic(&self.letters));
        let altered = letters.set("cleanup.policy", policy);
        // In one statement, because a client that is dropped does not answer.
        let altered = self
            .admin()
            .alter_configs([&altered], &admin_options())
            .await;
        for topic in altered.unwrap() {
            topic.unwrap();
        }
    }

    /// Deletes the source topic's records before an offset, as retention does.
    pub(crate) async fn delete_source_before(&self, partition: i32, offset: i64) {
        self.delete_before(&self.source, partition, offset).await;
    }

    /// Deletes a topic's records before an offset, as retention does.
    pub(crate) async fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut before = TopicPartitionList::new();
        before
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .unwrap();
        let deleted = self.admin().delete_records(&before, &admin_options()).await;
        for deleted in deleted.unwrap().elements() {
            deleted.error().unwrap();
        }
    }

    /// Arguments of a router on these topics.
    pub(crate) fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = Vec::from(router_arguments(
            &self.bootstrap,
            &self.source,
            &self.events,
            &self.letters,
        ));
        arguments.extend(more);
        arguments
    }

    /// Starts the program; `name` is that of its log.
    pub(crate) fn start(&self, name: &str, more: &[&str]) -> Process {
        let folder = self.folder.path();
        Process::start(folder, name, Path::new(ROUTER), &self.arguments(more))
    }

    /// Starts a static member.
    pub(crate) fn start_static(&self, instance: &str, more: &[&str]) -> Process {
        let more = [&["--instance-id", instance], more].concat();
        self.start(instance, &more)
    }

    /// Sends records to the source topic and waits until they are acknowledged.
    pub(crate) fn send<'a>(&self, records: impl IntoIterator<Item = (&'a str, Vec<u8>)>) {
        let producer = producer(&self.bootstrap);
        for (key, value) in records {
            enqueue(
                &producer,
                BaseRecord::to(&self.source)
                    .key(key.as_bytes())
                    .payload(&value[..]),
            );
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }

    /// Sends this number of good records of a few tasks.
    pub(crate) fn send_good(&self, count: i64) {
        let records: Vec<_> = (0..count).map(|i| numbered(i, 50)).collect();
        self.send(
            records
                .iter()
                .map(|(key, value)| (key.as_str(), value.clone())),
        );
    }

    /// Sends this number of good records to a partition.
    pub(crate) fn send_to_partition(&self, partition: i32, count: i64) {
        let producer = producer(&self.bootstrap);
        for i in 0..count {
            let (key, value) = numbered(i, 50);
            let record = BaseRecord::to(&self.source).partition(partition);
            enqueue(&producer, record.key(key.as_bytes()).payload(&value[..]));
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }

    pub(crate) fn partitions(&self, topic: &str) -> Vec<i32> {
        let consumer = reader(&self.bootstrap);
        let metadata = consumer.fetch_metadata(Some(topic), ASK).unwrap();
        let partitions = metadata.topics()[0].partitions();
        partitions.iter().map(|partition| partition.id()).collect()
    }

    /// The group's committed offsets of the source topic, by partition. `None` while Kafka is unavailable.
    pub(crate) fn committed(&self) -> Option<BTreeMap<i32, i64>> {
        let consumer = group_member(&self.bootstrap, &self.source);
        let mut asked = TopicPartitionList::new();
        let metadata = consumer.fetch_metadata(Some(&self.source), ASK).ok()?;
        for partition in metadata.topics()[0].partitions() {
            asked.add_partition(&self.source, partition.id());
        }
        let committed = consumer.committed_offsets(asked, ASK).ok()?;
        let committed = committed.elements();
        let known = committed
            .iter()
            .filter_map(|partition| match partition.offset() {
                Offset::Offset(offset) => Some((partition.partition(), offset)),
                _ => None,
            });
        Some(known.collect())
    }

    /// Deletes the group with its committed offsets, as Kafka does `offsets.retention.minutes` after its
    /// last member has left; waits until that is possible.
    pub(crate) async fn delete_group(&self) {
        until(
            "the group is deleted",
            Duration::from_secs(60),
            async || {
                let groups = [self.source.as_str()];
                let deleted = self.admin().delete_groups(&groups, &admin_options()).await;
                deleted.unwrap()[0].is_ok().then_some(())
            },
        )
        .await;
        assert_eq!(self.committed().unwrap(), [].into());
    }

    /// Commits an offset for the group, like `kafka-consumer-groups --reset-offsets`; the group must be
    /// empty.
    pub(crate) async fn reset_offset(&self, partition: i32, offset: i64) {
        let consumer = group_member(&self.bootstrap, &self.source);
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&self.source, partition, Offset::Offset(offset))
            .unwrap();
        consumer
            .commit(&offsets, rdkafka::consumer::CommitMode::Sync)
            .unwrap();
    }

    /// The end of each partition of a topic: the last stable offset or the high watermark.
    pub(crate) fn ends(&self, topic: &str, isolation_level: &str) -> Option<BTreeMap<i32, i64>> {
        let consumer: BaseConsumer = client(&self.bootstrap)
            .set("group.id", "none")
            .set("isolation.level", isolation_level)
            .create()
            .unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), ASK).ok()?;
        let mut ends = BTreeMap::new();
        for partition in metadata.topics()[0].partitions() {
            let (_, end) = consumer.fetch_watermarks(topic, partition.id(), ASK).ok()?;
            ends.insert(partition.id(), end);
        }
        Some(ends)
    }

    /// Waits until the group has committed the whole source topic, which was written without transactions.
    pub(crate) async fn until_routed(&self, within: Duration) {
        until("all is routed", within, async || self.is_routed()).await;
    }

    /// Whether it has.
    pub(crate) fn is_routed(&self) -> Option<()> {
        let ends = self.ends(&self.source, "read_committed")?;
        let committed = self.committed()?;
        let is_routed =
            |(partition, end): (&i32, &i64)| committed.get(partition).copied().unwrap_or(0) == *end;
        ends.iter().all(is_routed).then_some(())
    }

    /// Waits until a transaction is open on the events topic.
    pub(crate) async fn until_transaction_is_open(&self) {
        until(
            "a transaction is open",
            Duration::from_secs(120),
            async || self.transaction_is_open().then_some(()),
        )
        .await;
    }

    /// Waits until no transaction is open on the events topic any more.
    pub(crate) async fn until_no_transaction_is_open(&self) {
        until(
            "no transaction is open",
            Duration::from_secs(120),
            async || (!self.transaction_is_open()).then_some(()),
        )
        .await;
    }

    pub(crate) fn transaction_is_open(&self) -> bool {
        // Last stable offsets first: if they are below the high watermarks, a transaction was open meanwhile.
        let stable = self.ends(&self.events, "read_committed").unwrap();
        stable != self.ends(&self.events, "read_uncommitted").unwrap()
    }

    /// Asserts that each source record has one equal event or one dead letter, and that events of one
    /// partition are in source order. Returns both numbers.
    pub(crate) async fn audit(&self) -> (usize, usize) {
        // A killed router's open transaction hides later events until the broker aborts it.
        self.until_no_transaction_is_open().await;
        let mut sources = BTreeMap::new();
        for record in read_all(&self.bootstrap, &self.source) {
            sources.insert((record.partition(), record.offset()), record);
        }
        let mut outputs: BTreeMap<(i32, i64), usize> = BTreeMap::new();
        let mut newest: BTreeMap<(i32, i32), i64> = BTreeMap::new();
        let (mut events, mut disordered) = (0, Vec::new());
        for record in read_all(&self.bootstrap, &self.events) {
            let event = schemas::decode_event(record.payload()).unwrap();
            assert_eq!(event.source.topic, self.source);
            let (partition, offset) = (event.source.partition, event.source.offset);
            *outputs.entry((partition, offset)).or_default() += 1;
            events += 1;
            let source = sources.get(&(partition, offset));
            let source = source.unwrap_or_else(|| panic!("no record {partition}@{offset}"));
            assert_eq!(schemas::decode_info(source.payload()).unwrap(), event.info);
            let before = newest.insert((record.partition(), partition), offset);
            if before.is_some_and(|before| before >= offset) {
                disordered.push((partition, offset));
            }
        }
        let letters = self.letters();
        for letter in &letters {
            *outputs.entry(place(letter)).or_default() += 1;
        }
        let missing: Vec<_> = sources
            .keys()
            .filter(|at| !outputs.contains_key(at))
            .collect();
        let doubled: Vec<_> = outputs.iter().filter(|(_, count)| **count > 1).collect();
        let invented: Vec<_> = outputs
            .keys()
            .filter(|at| !sources.contains_key(at))
            .collect();
        assert!(
            missing.is_empty()
                && doubled.is_empty()
                && invented.is_empty()
                && disordered.is_empty(),
            "of {} records {} are missing {:?}, {} doubled {:?}, {} made up {:?}, {} out of order {:?}",
            sources.len(),
            missing.len(),
            missing.iter().take(10).collect::<Vec<_>>(),
            doubled.len(),
            doubled.iter().take(10).collect::<Vec<_>>(),
            invented.len(),
            invented.iter().take(10).collect::<Vec<_>>(),
            disordered.len(),
            disordered.iter().take(10).collect::<Vec<_>>(),
        );
        (events, letters.len())
    }

    pub(crate) fn letters(&self) -> Vec<OwnedMessage> {
        read_all(&self.bootstrap, &self.letters)
    }
}

/// Partition and offset of a dead letter's record.
pub(crate) fn place(letter: &OwnedMessage) -> (i32, i64) {
    let header = |name: &str| {
        let headers = letter.headers().unwrap();
        let header = headers.iter().find(|header| header.key == name).unwrap();
        String::from_utf8(header.value.unwrap().to_vec()).unwrap()
    };
    (
        header("__connect.errors.partition").parse().unwrap(),
        header("__connect.errors.offset").parse().unwrap(),
    )
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))
}

pub(crate) fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// Never subscribes, so it is not a member.
fn group_member(bootstrap: &str, group: &str) -> BaseConsumer {
    client(bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        // The committed offsets, even while a transaction is open.
        .set("isolation.level", "read_uncommitted")
        .create()
        .unwrap()
}

type TestProducer = ThreadedProducer<DefaultProducerContext>;

fn producer(bootstrap: &str) -> TestProducer {
    client(bootstrap)
        .set("partitioner", "murmur2_random")
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        // Unlimited for a test: records must arrive even after outages.
        .set("message.timeout.ms", "300000")
        .create()
        .unwrap()
}

fn enqueue(producer: &TestProducer, mut record: BaseRecord<'_, [u8], [u8]>) {
    while let Err((error, unsent)) = producer.send(record) {
        let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
        assert_eq!(error, full);
        record = unsent;
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Key and value of the `i`-th record, in which `tasks` tasks take turns.
pub(crate) fn numbered(i: i64, tasks: i64) -> (String, Vec<u8>) {
    let info = info(&format!("exec-{}", i % tasks), i / tasks);
    (info.exec_id.clone(), schemas::encode_info(&info).unwrap())
}

/// The reports in a set of records, by partition and in order: exec id and sequence.
pub(crate) fn reports(
    records: &[OwnedMessage],
    decode: impl Fn(Option<&[u8]>) -> TaskRunningInfo,
) -> BTreeMap<i32, Vec<(String, i64)>> {
    let mut reports: BTreeMap<i32, Vec<_>> = BTreeMap::new();
    for record in records {
        let info = decode(record.payload());
        reports
            .entry(record.partition())
            .or_default()
            .push((info.exec_id, info.sequence));
    }
    reports
}

/// Number of reports that occur more than once.
pub(crate) fn doubles(reports: &BTreeMap<i32, Vec<(String, i64)>>) -> usize {
    let all: Vec<_> = reports.values().flatten().collect();
    all.len() - all.iter().collect::<BTreeSet<_>>().len()
}
