//! A cluster that answers, and what it says of its topics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::logging_context::LoggingContext;
use super::options::{KafkaOptions, wrong_settings};
use crate::error::NeedsAttention;
use crate::threads::blocking;
use crate::topic_id::{TopicIdAnswer, topic_id};
use crate::{exit, repeats, warn_of_change};

/// How long a question to the cluster at start may take before it is asked again.
const ASK: Duration = Duration::from_secs(10);
/// How long a command that ends by itself waits for a cluster that does not answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How often, a quarter of a second apart, a topic is looked for that is not there.
const TOPIC_TRIES: usize = 20;
/// How often a topic's policy is asked for.
const SETTING_TRIES: usize = 3;
/// How long what a client has to say of itself is listened to.
const HEAR: Duration = Duration::from_millis(50);
/// So many tries in a row, a second apart, that brokers turn away for the same reason are no accident.
const REFUSALS: u32 = 3;
impl KafkaOptions {
    /// The value of one of a topic's settings, e.g. `cleanup.policy`.
    ///
    /// # Errors
    /// [`NeedsAttention`] if this user may not ask, or Kafka does not know the setting; a [`KafkaError`] if it
    /// does not answer.
    pub async fn topic_setting(&self, topic: &str, name: &str) -> anyhow::Result<String> {
        let (options, topic, name) = (self.clone(), topic.to_owned(), name.to_owned());
        let (tell, told) = oneshot::channel();
        // To drop an admin client takes up to 100 ms, and the end of a runtime is not to wait for an answer.
        std::thread::Builder::new()
            .name("topic setting".to_owned())
            .spawn(move || {
                let runtime = Builder::new_current_thread().build();
                let asked = runtime
                    .map_err(anyhow::Error::from)
                    .and_then(|own| own.block_on(options.ask_topic_setting(&topic, &name)));
                // Whoever asked may have ended.
                let _ = tell.send(asked);
            })?;
        told.await?
    }

    async fn ask_topic_setting(&self, topic: &str, name: &str) -> anyhow::Result<String> {
        let asked = [ResourceSpecifier::Topic(topic)];
        let options = AdminOptions::new().request_timeout(Some(ASK));
        let admin: AdminClient<LoggingContext> = self
            .client_config(&[], &[])?
            .create_with_context(LoggingContext)
            .map_err(wrong_settings)?;
        let answers = admin.describe_configs(&asked, &options).await?;
        let answer = answers.into_iter().next().ok_or(KafkaError::Canceled)?;
        let denied = || {
            let allow = self.allow(&format!("--topic {topic}"), "DescribeConfigs");
            NeedsAttention(format!(
                "topic {topic}: this user may not ask for its {name}; {allow}"
            ))
        };
        let resource = answer.map_err(|code| match code {
            RDKafkaErrorCode::TopicAuthorizationFailed => denied().into(),
            code => anyhow!(KafkaError::AdminOp(code)),
        })?;
        // rust-rdkafka 0.39 leaves out the error of a topic; one that may be described has settings.
        if resource.entries.is_empty() {
            return Err(denied().into());
        }
        let entry = resource.get(name);
        let value = entry.and_then(|entry| entry.value.clone());
        value.ok_or_else(|| NeedsAttention(format!("{topic} has no setting {name}")).into())
    }

    /// Waits until the cluster answers; `None` when `shutdown` is cancelled before.
    ///
    /// # Errors
    /// If the settings are wrong, or the brokers and this client turn each other away: a wrong password
    /// or certificate.
    pub async fn cluster(&self, shutdown: &CancellationToken) -> anyhow::Result<Option<Cluster>> {
        self.cluster_within(None, shutdown).await
    }

    /// The cluster, for a command that ends by itself: waited for 30 s at most; `None` when `shutdown`
    /// is cancelled before.
    ///
    /// # Errors
    /// If it does not answer, or as [`cluster`](Self::cluster).
    pub async fn cluster_soon(
        &self,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Cluster>> {
        self.cluster_within(Some(ANSWER), shutdown).await
    }

    async fn cluster_within(
        &self,
        limit: Option<Duration>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Cluster>> {
        let begun = Instant::now();
        let _waiting = exit::waiting(format!("Kafka at {}", self.servers()));
        let last_error = LastError::default();
        let client: BaseConsumer<LastError> = self
            .client_config(&[], &[])?
            .create_with_context(last_error.clone())
            .map_err(wrong_settings)?;
        let servers = self.servers();
        let mut cluster = Cluster {
            id: String::new(),
            options: self.clone(),
            client: Arc::new(client),
        };
        let (mut refusals, mut ask) = (0, Duration::from_secs(1));
        loop {
            let client = cluster.client.clone();
            let asked = spawn_blocking(move || client.fetch_metadata(None, ask).map(drop));
            let answer = tokio::select! {
                () = shutdown.cancelled() => return Ok(None),
                answer = asked => answer?,
            };
            let Err(error) = answer else { break };
            ask = (ask * 2).min(ASK);
            // Hears what it complained of.
            while cluster.client.poll(HEAR).is_some() {}
            let (reason, refused) = last_error.last().unwrap_or((error.to_string(), false));
            refusals = if refused { refusals + 1 } else { 0 };
            let over = limit.filter(|limit| begun.elapsed() > *limit);
            if refusals == REFUSALS || (refused && over.is_some()) {
                let hint = match reason.contains("certificate") {
                    true => {
                        "; the broker's certificate has to be signed by an authority in ssl.ca.location, and to be for \
                         the host name by which it is reached"
                    }
                    false => "",
                };
                let why = format!("Kafka at {servers}: {reason}{hint}");
                return Err(
                    NeedsAttention(format!("{why}; see the settings in --kafka-config")).into(),
                );
            }
            if let Some(limit) = over {
                let limit = limit.as_secs();
                bail!("Kafka at {servers} does not answer within {limit} s: {reason}");
            }
            warn_of_change!("Kafka at {servers} does not answer, waiting for it: {reason}");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(None),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        let id = blocking(|| cluster.client.client().fetch_cluster_id(ASK));
        cluster.id = id.context("the cluster did not return its id")?;
        Ok(Some(cluster))
    }
}

/// The last thing that a client complained of, and whether it was turned away or turns a broker away:
/// by password or certificate.
#[derive(Clone, Default)]
struct LastError(Arc<Mutex<Option<(String, bool)>>>);

impl LastError {
    /// Told once: librdkafka is silent about what repeats itself.
    fn last(&self) -> Option<(String, bool)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

impl ConsumerContext for LastError {}

impl ClientContext for LastError {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        let code = error.rdkafka_error_code();
        // That all are down says less than what each said of itself.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let refused = code.is_some_and(|code| is_refusal(code, reason));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((reason.to_owned(), refused));
    }
}

/// Whether a broker was turned away, or turns this client away: no matter of time.
fn is_refusal(code: RDKafkaErrorCode, reason: &str) -> bool {
    // What follows the broker's name, which may hold any word.
    let said = reason.split_once(": ").map_or(reason, |(_, said)| said);
    match code {
        RDKafkaErrorCode::Authentication => true,
        // Not a handshake that was cut off, as by a broker that ends. A handshake that fails in its first step,
        // since the broker's answer was there at once, is to librdkafka 2 a failure of transport.
        RDKafkaErrorCode::SSL | RDKafkaErrorCode::BrokerTransportFailure => {
            said.contains("certificate verify failed")
                || said.contains("verify broker certificate")
                || (said.contains("SSL routines") && said.contains("alert"))
        }
        _ => false,
    }
}

/// How to make a topic that does not exist.
#[derive(Clone, Copy, Debug)]
pub struct NewTopic<'a> {
    /// The number of its partitions.
    pub partitions: usize,
    /// Its settings, e.g. `("retention.ms", "604800000")`.
    pub settings: &'a [(&'a str, &'a str)],
    /// The topic whose records it carries, with something beside them: where that takes larger ones than Kafka's
    /// default, so must this.
    pub carries: Option<&'a str>,
}

impl<'a> NewTopic<'a> {
    /// One with these settings, and as many partitions as do for one machine.
    pub fn with(settings: &'a [(&'a str, &'a str)]) -> Self {
        Self {
            partitions: 8,
            settings,
            carries: None,
        }
    }
}

const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
/// Kafka's default of it.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// A cluster that answers.
pub struct Cluster {
    /// Kafka's id of the cluster.
    pub id: String,
    options: KafkaOptions,
    client: Arc<BaseConsumer<LastError>>,
}

impl Cluster {
    /// The number of each topic's partitions.
    fn partitions(&self, within: Duration) -> KafkaResult<BTreeMap<String, usize>> {
        let asked = || self.client.fetch_metadata(None, within);
        let metadata = blocking(asked)?;
        let topics = metadata.topics().iter();
        Ok(topics
            .map(|topic| (topic.name().to_owned(), topic.partitions().len()))
            .collect())
    }

    /// The number of a topic's partitions, for a program that is to have the right to this operation
    /// on it (`Read` or `Write`). A topic that was made a moment ago is waited for, since not every
    /// broker knows of it at once.
    ///
    /// `make` is how the topic is made; `None` where an empty one would be of no use.
    ///
    /// # Errors
    /// If there is no such topic, or this user may not see it: with the command that makes it so.
    pub async fn require_topic(
        &self,
        topic: &str,
        operation: &str,
        make: Option<NewTopic<'_>>,
    ) -> anyhow::Result<usize> {
        for i in 0..TOPIC_TRIES {
            let topics = self.partitions(ASK).ok();
            if let Some(count) = topics.and_then(|topics| topics.get(topic).copied()) {
                return Ok(count);
            }
            if i == 0 && self.is_hidden(topic) {
                return Err(NeedsAttention(format!(
                    "topic {topic}: this user may not see it; {}",
                    self.options.allow(&format!("--topic {topic}"), operation)
                ))
                .into());
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let tool = format!(
            "kafka-topics.sh --bootstrap-server {}",
            self.options.servers()
        );
        let hint = match make {
            Some(make) => format!(
                "create it with: {tool} {}",
                self.arguments_to_make(topic, make).await
            ),
            None => format!("list existing topics with: {tool} --list"),
        };
        Err(NeedsAttention(format!(
            "topic {topic} does not exist on {}; {hint}",
            self.options.servers()
        ))
        .into())
    }

    async fn arguments_to_make(&self, topic: &str, make: NewTopic<'_>) -> String {
        let NewTopic {
            partitions,
            settings,
            carries,
        } = make;
        // As much more than the records that it carries as it is more than Kafka's default.
        let carried = match carries {
            Some(carried) => self.topic_setting(carried, MAX_MESSAGE_BYTES).await.ok(),
            None => None,
        };
        let more = carried
            .and_then(|carried| carried.parse::<usize>().ok())
            .map_or(0, |carried| {
                carried.saturating_sub(DEFAULT_MAX_MESSAGE_BYTES)
            });
        let mut arguments = format!("--create --topic {topic} --partitions {partitions}");
        for (key, value) in settings {
            let value = match value.parse::<usize>() {
                Ok(bytes) if *key == MAX_MESSAGE_BYTES => (bytes + more).to_string(),
                _ => (*value).to_owned(),
            };
            arguments += &format!(" --config {key}={value}");
        }
        arguments
    }

    /// Whether the right to see a topic is missing.
    fn is_hidden(&self, topic: &str) -> bool {
        let asked = || self.client.fetch_metadata(Some(topic), ASK);
        let denied = RDKafkaErrorCode::TopicAuthorizationFailed;
        match blocking(asked) {
            Ok(metadata) => {
                let error = metadata.topics().first().and_then(|topic| topic.error());
                error.is_some_and(|code| RDKafkaErrorCode::from(code) == denied)
            }
            Err(error) => error.rdkafka_error_code() == Some(denied),
        }
    }

    /// The client that asks.
    pub fn client(&self) -> &Client<impl ClientContext + use<>> {
        self.client.client()
    }

    /// The id of a topic.
    ///
    /// # Errors
    /// If there is no answer within 10 s, or an error of the broker that may pass: ask again.
    pub async fn topic_id(&self, topic: &str) -> KafkaResult<TopicIdAnswer> {
        topic_id(self.client.client(), topic, ASK).await
    }

    /// As [`KafkaOptions::max_record_bytes`].
    ///
    /// # Errors
    /// As there.
    pub async fn max_record_bytes(&self, topic: &str) -> anyhow::Result<usize> {
        let asked = self.options.max_record_bytes(topic).await;
        asked.with_context(|| format!("topic {topic}: cannot ask for its max.message.bytes"))
    }

    /// As [`KafkaOptions::topic_setting`].
    ///
    /// # Errors
    /// As there.
    pub async fn topic_setting(&self, topic: &str, name: &str) -> anyhow::Result<String> {
        self.options.topic_setting(topic, name).await
    }

    /// Refuses a topic of ours that [is compacted](Self::compaction): what compaction deletes before it is read is lost
    /// without a sign.
    ///
    /// # Errors
    /// With the command that sets it right.
    pub async fn refuse_compaction(&self, topic: &str) -> anyhow::Result<()> {
        match self.compaction(topic).await {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(NeedsAttention(why).into()),
            Err(error) => {
                tracing::info!("{error:#}");
                Ok(())
            }
        }
    }

    /// What is wrong with a topic whose `cleanup.policy` lets compaction delete records, and what to do about it;
    /// `None` where it does not.
    ///
    /// # Errors
    /// [`NeedsAttention`] if this user may not ask; others if Kafka does not answer, which is asked again before.
    pub async fn compaction(&self, topic: &str) -> anyhow::Result<Option<String>> {
        let mut tries = 1;
        let policy = loop {
            match self.topic_setting(topic, "cleanup.policy").await {
                Ok(policy) => break policy,
                Err(error) if tries == SETTING_TRIES || error.is::<NeedsAttention>() => {
                    let unknown = format!("not known whether {topic} is compacted");
                    return Err(error.context(unknown));
                }
                Err(_) => tries += 1,
            }
        };
        let is_compacted = policy.split(',').any(|policy| policy.trim() == "compact");
        Ok(is_compacted.then(|| {
            format!(
                "{topic} has cleanup.policy={policy}: compaction deletes records that have a newer one of the same key, \
                 and these cannot be told from records that never existed. Set it with: kafka-configs.sh \
                 --bootstrap-server {} --alter --entity-type topics --entity-name {topic} --add-config \
                 cleanup.policy=delete",
                self.options.servers()
            )
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of librdkafka 2.12.
    #[test]
    fn a_certificate_is_a_refusal_wherever_its_handshake_failed_and_an_outage_is_none() {
        use RDKafkaErrorCode::{Authentication, BrokerTransportFailure, SSL};
        let name = "sasl_ssl://certificate-alert.example:9093/bootstrap";
        let verify = "error:0A000086:SSL routines::certificate verify failed";
        let cases = [
            (SSL, format!("SSL handshake failed: ../ssl/statem/statem_clnt.c:1889: {verify}"), true),
            (SSL, "Failed to verify broker certificate: certificate has expired".into(), true),
            (SSL, "SSL handshake failed: ssl/record: error:0A000412:SSL routines::sslv3 alert bad certificate".into(), true),
            (BrokerTransportFailure, format!("../ssl/statem/statem_clnt.c:1889: {verify} (after 48ms)"), true),
            (Authentication, "SASL authentication error".into(), true),
            (SSL, "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?".into(), false),
            (BrokerTransportFailure, "Connect to ipv4#10.0.0.1:9093 failed: Connection refused".into(), false),
        ];
        for (code, said, refused) in cases {
            assert_eq!(
                is_refusal(code, &format!("{name}: {said}")),
                refused,
                "{said}"
            );
        }
    }
}
