//! Separate topics of a test, and routers on them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use service::health::Health;
use service::testing::{Topic, create_topics, read_all, unique, until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use crate::report::info;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: router::Config,
}

/// Topics of one test, and the programs on them.
pub(crate) struct Topics {
    pub(crate) bootstrap: String,
    pub(crate) source: String,
    pub(crate) events: String,
    pub(crate) letters: String,
}

/// Settings of the topics, if they differ from the broker's.
#[derive(Clone, Copy, Default)]
pub(crate) struct Settings<'a> {
    pub(crate) source: &'a [(&'a str, &'a str)],
    pub(crate) events: &'a [(&'a str, &'a str)],
    pub(crate) letters: &'a [(&'a str, &'a str)],
}

/// Arguments of a router on these topics; the group has the source topic's name.
pub(crate) fn router_arguments<'a>(
    bootstrap: &'a str,
    source: &'a str,
    events: &'a str,
    letters: &'a str,
) -> [&'a str; 10] {
    [
        "--bootstrap-servers",
        bootstrap,
        "--source-topic",
        source,
        "--events-topic",
        events,
        "--dead-letters-topic",
        letters,
        "--group",
        source,
    ]
}

impl Topics {
    pub(crate) async fn make(bootstrap: String, partitions: i32, settings: Settings<'_>) -> Self {
        let name = unique("routing");
        let (source, events, letters) = (
            name.clone(),
            format!("{name}-events"),
            format!("{name}-letters"),
        );
        // A test's records may carry any time.
        let any_time = [
            ("message.timestamp.after.max.ms", "9223372036854775807"),
            ("retention.ms", "-1"),
        ];
        let source_settings = [&any_time[..], settings.source].concat();
        let topic = |name, partitions, settings| Topic {
            name,
            partitions,
            settings,
        };
        let made = [
            topic(&source, partitions, &source_settings),
            topic(&events, partitions, settings.events),
            topic(&letters, 1, settings.letters),
        ];
        create_topics(&bootstrap, &made).await;
        Self {
            bootstrap,
            source,
            events,
            letters,
        }
    }

    /// The router's arguments for these topics.
    pub(crate) fn arguments(&self) -> Vec<&str> {
        router_arguments(&self.bootstrap, &self.source, &self.events, &self.letters).into()
    }

    pub(crate) fn start(&self, instance: &str) -> Running {
        self.start_with(instance, &[])
    }

    pub(crate) fn start_with(&self, instance: &str, more: &[&str]) -> Running {
        let (stop, health) = (CancellationToken::new(), Arc::new(Health::default()));
        let own = ["router", "--instance-id", instance];
        let arguments = [&own[..], &self.arguments(), more].concat();
        let config = Arguments::parse_from(arguments).config;
        Running {
            task: tokio::spawn(router::run(config, health, stop.clone())),
            stop,
        }
    }

    pub(crate) fn send<'a>(
        &self,
        records: impl IntoIterator<Item = (Option<&'a str>, Option<&'a [u8]>, Option<i64>)>,
    ) {
        self.send_as(&[], records);
    }

    /// Sends with a producer with these settings.
    pub(crate) fn send_as<'a>(
        &self,
        settings: &[(&str, &str)],
        records: impl IntoIterator<Item = (Option<&'a str>, Option<&'a [u8]>, Option<i64>)>,
    ) {
        let delivered = Delivered::default();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("partitioner", "murmur2_random")
            .set("enable.idempotence", "true");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let producer: ThreadedProducer<_> = config.create_with_context(delivered.clone()).unwrap();
        for (key, value, timestamp) in records {
            let mut record = BaseRecord::<str, [u8]>::to(&self.source);
            (record.key, record.payload, record.timestamp) = (key, value, timestamp);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
        let refused = delivered.0.lock().unwrap().take();
        assert_eq!(refused, None, "the broker refused a record");
    }

    /// Waits until both outputs together have this number of records.
    pub(crate) async fn outputs(&self, count: usize) -> (Vec<OwnedMessage>, Vec<OwnedMessage>) {
        until(
            &format!("{count} records are routed"),
            Duration::from_secs(120),
            async || {
                let outputs = (
                    read_all(&self.bootstrap, &self.events),
                    read_all(&self.bootstrap, &self.letters),
                );
                (outputs.0.len() + outputs.1.len() >= count).then_some(outputs)
            },
        )
        .await
    }
}

/// The first undelivered record, and the error.
#[derive(Clone, Default)]
struct Delivered(Arc<Mutex<Option<KafkaError>>>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap().get_or_insert_with(|| error.clone());
        }
    }
}

pub(crate) struct Running {
    pub(crate) task: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) fn headers(letter: &OwnedMessage) -> BTreeMap<String, String> {
    let headers = letter.headers().unwrap();
    headers
        .iter()
        .map(|h| {
            (
                h.key.to_owned(),
                String::from_utf8(h.value.unwrap().to_vec()).unwrap(),
            )
        })
        .collect()
}
