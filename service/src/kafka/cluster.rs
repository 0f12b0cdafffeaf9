//! A reachable cluster, and the topics in it.

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

/// Timeout of one request at the start; it is then repeated.
const ASK: Duration = Duration::from_secs(10);
/// How long a command that ends by itself waits for the cluster.
const ANSWER: Duration = Duration::from_secs(30);
/// Number of look-ups of a missing topic, 250 ms apart.
const TOPIC_TRIES: usize = 20;
/// Number of look-ups of a topic that may fail, of up to 10 s each.
const FAILED_LOOKUPS: usize = 6;
/// Number of tries to read a topic's setting.
const SETTING_TRIES: usize = 3;
/// How long to poll a client for its errors.
const HEAR: Duration = Duration::from_millis(50);
/// After this many refusals in a row, a second apart and for the same reason, the configuration is wrong.
const REFUSALS: u32 = 3;
impl KafkaOptions {
    /// The value of one of a topic's settings, e.g. `cleanup.policy`.
    ///
    /// # Errors
    /// [`NeedsAttention`] if this user lacks the right, or Kafka does not know the setting; a [`KafkaError`]
    /// if there is no answer.
    pub async fn topic_setting(&self, topic: &str, name: &str) -> anyhow::Result<String> {
        let (options, topic, name) = (self.clone(), topic.to_owned(), name.to_owned());
        let (sender, receiver) = oneshot::channel();
        // On a separate thread: dropping an admin client takes up to 100 ms, and the runtime must not wait
        // for an answer when it ends.
        std::thread::Builder::new()
            .name("topic setting".to_owned())
            .spawn(move || {
                let runtime = Builder::new_current_thread().build();
                let asked = runtime
                    .map_err(anyhow::Error::from)
                    .and_then(|own| own.block_on(options.ask_topic_setting(&topic, &name)));
                // The caller may have been dropped.
                let _ = sender.send(asked);
            })?;
        receiver.await?
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
        // rust-rdkafka 0.39 omits the error of a topic; a topic that this user may describe has settings.
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
    /// If the settings are wrong, or brokers and client refuse each other: a wrong password or certificate.
    pub async fn cluster(&self, shutdown: &CancellationToken) -> anyhow::Result<Option<Cluster>> {
        self.cluster_within(None, shutdown).await
    }

    /// The cluster, for a command that ends by itself: waits at most 30 s; `None` if `shutdown` is cancelled
    /// before.
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
            // Polls for the client's errors.
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

/// The last error of a client, and whether it is a refusal: a wrong password or certificate.
#[derive(Clone, Default)]
struct LastError(Arc<Mutex<Option<(String, bool)>>>);

impl LastError {
    /// Not reset: librdkafka does not report a repeated error again.
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
        // "All brokers down" says less than the errors of the brokers.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let refused = code.is_some_and(|code| is_refusal(code, reason));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((reason.to_owned(), refused));
    }
}

/// Whether broker or client refuses the other, so that waiting does not help.
fn is_refusal(code: RDKafkaErrorCode, reason: &str) -> bool {
    // The text behind the broker's name, which may contain any word.
    let detail = reason.split_once(": ").map_or(reason, |(_, detail)| detail);
    match code {
        RDKafkaErrorCode::Authentication => true,
        // Not an interrupted handshake, as of a broker that shuts down. If the first step of a handshake
        // fails because the broker's answer was there at once, librdkafka 2 reports a transport failure.
        RDKafkaErrorCode::SSL | RDKafkaErrorCode::BrokerTransportFailure => {
            detail.contains("certificate verify failed")
                || detail.contains("verify broker certificate")
                || (detail.contains("SSL routines") && detail.contains("alert"))
        }
        _ => false,
    }
}

/// Arguments to create a missing topic.
#[derive(Clone, Copy, Debug)]
pub struct NewTopic<'a> {
    /// Number of partitions.
    pub partitions: usize,
    /// Settings, e.g. `("retention.ms", "604800000")`.
    pub settings: &'a [(&'a str, &'a str)],
    /// The topic whose records it contains, with some additions. If that topic allows larger records than
    /// Kafka's default, this one must, too.
    pub carries: Option<&'a str>,
}

impl<'a> NewTopic<'a> {
    /// A topic with these settings and enough partitions for one machine.
    pub fn with(settings: &'a [(&'a str, &'a str)]) -> Self {
        Self {
            partitions: 8,
            settings,
            carries: None,
        }
    }
}

const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
/// Kafka's default.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// A reachable cluster.
pub struct Cluster {
    /// Kafka's id of the cluster.
    pub id: String,
    options: KafkaOptions,
    client: Arc<BaseConsumer<LastError>>,
}

impl Cluster {
    /// The number of a topic's partitions; `None` if the broker knows no such topic. Asks for this topic alone:
    /// the answer about all topics of a large cluster has megabytes.
    fn partitions(&self, topic: &str) -> KafkaResult<Option<usize>> {
        let metadata = blocking(|| self.client.fetch_metadata(Some(topic), ASK))?;
        let Some(found) = metadata.topics().first() else {
            return Ok(None);
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None => Ok(Some(found.partitions().len()).filter(|count| *count > 0)),
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::InvalidTopic,
            ) => Ok(None),
            Some(code) => Err(KafkaError::MetadataFetch(code)),
        }
    }

    /// The number of a topic's partitions, for a program that needs the right to this operation (`Read` or
    /// `Write`). Waits briefly for a missing topic, since brokers learn of a new topic with delay.
    ///
    /// `make` has the arguments to create the topic; `None` if an empty one would be useless.
    ///
    /// # Errors
    /// If the topic does not exist or this user may not see it; contains the command to fix that. Also if Kafka
    /// does not answer after several tries.
    pub async fn require_topic(
        &self,
        topic: &str,
        operation: &str,
        make: Option<NewTopic<'_>>,
    ) -> anyhow::Result<usize> {
        let (mut absences, mut failures) = (0, 0);
        while absences < TOPIC_TRIES {
            match self.partitions(topic) {
                Ok(Some(count)) => return Ok(count),
                Ok(None) => absences += 1,
                Err(error)
                    if error.rdkafka_error_code()
                        == Some(RDKafkaErrorCode::TopicAuthorizationFailed) =>
                {
                    return Err(NeedsAttention(format!(
                        "topic {topic}: this user may not see it; {}",
                        self.options.allow(&format!("--topic {topic}"), operation)
                    ))
                    .into());
                }
                // A broker that does not answer has not said that the topic is missing.
                Err(error) => {
                    let servers = self.options.servers();
                    failures += 1;
                    if failures == FAILED_LOOKUPS {
                        return Err(anyhow::Error::new(error).context(format!(
                            "Kafka at {servers} does not say whether topic {topic} exists"
                        )));
                    }
                    warn_of_change!(
                        "Kafka at {servers} does not say whether topic {topic} exists, asking again: {error}"
                    );
                }
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
        // Adds the margin that the setting has above Kafka's default.
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

    /// The client for requests to the cluster.
    pub fn client(&self) -> &Client<impl ClientContext + use<>> {
        self.client.client()
    }

    /// The id of a topic.
    ///
    /// # Errors
    /// If there is no answer within 10 s, or the broker has a temporary error: try again.
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

    /// Refuses a topic that [is compacted](Self::compaction): records that compaction deletes before they are
    /// read are lost without a trace.
    ///
    /// # Errors
    /// If it is compacted; contains the command to change that.
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

    /// If a topic's `cleanup.policy` includes compaction: the problem and the command to fix it. `None`
    /// otherwise.
    ///
    /// # Errors
    /// [`NeedsAttention`] if this user lacks the right; others if Kafka does not answer after several tries.
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
                 and these cannot be distinguished from records that never existed. Set it with: kafka-configs.sh \
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
    fn a_certificate_error_is_a_refusal_at_any_step_and_an_outage_is_not() {
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
        for (code, detail, refused) in cases {
            assert_eq!(
                is_refusal(code, &format!("{name}: {detail}")),
                refused,
                "{detail}"
            );
        }
    }
}
