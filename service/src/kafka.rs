//! One way to a Kafka client: address, any librdkafka setting, secrets from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::builder::TypedValueParser;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::address::{Address, AddressParser};
use crate::brokers::{Brokers, brokers, check_protocol};
use crate::exit::{self, NeedsAttention};
use crate::registry::{REGISTRY_PREFIX, USER_INFO_INSTEAD};
use crate::settings::host_name;
use crate::settings::instance_id;
use crate::subscription::Quiet;
use crate::threads::blocking;
use crate::topic_id::{TopicIdAnswer, topic_id};
use crate::warn_of_change;

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
/// How the settings end whose value is a secret, or may be one.
const SECRETS: &[&str] = &[
    "sasl.password",
    "sasl.oauthbearer.config",
    ".secret",
    ".key.password",
    ".key.pem",
    ".key.passphrase",
    "ssl.keystore.password",
    "basic.auth.user.info",
];
/// Settings that librdkafka knows by two names, and the name that is used here: a client takes only one of the two.
const ALIASES: &[(&str, &str)] = &[
    ("auto.commit.enable", "enable.auto.commit"),
    ("compression.codec", "compression.type"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("message.send.max.retries", "retries"),
    ("metadata.broker.list", BROKERS),
    ("queue.buffering.max.ms", "linger.ms"),
    ("request.required.acks", "acks"),
    ("sasl.mechanisms", "sasl.mechanism"),
];
const BROKERS: &str = "bootstrap.servers";

/// Options of every program that talks to Kafka.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Kafka")]
pub struct KafkaOptions {
    /// Brokers to start from, host:port, comma separated
    #[arg(
        long,
        env = "KAFKA_BOOTSTRAP_SERVERS",
        value_name = "HOST:PORT,…",
        default_value = "localhost:9092",
        value_parser = Brokers,
        global = true
    )]
    pub bootstrap_servers: String,

    /// File of librdkafka settings, and of schema.registry.*, key=value a line, # begins a comment: the place for TLS, SASL and secrets
    #[arg(long, env = "KAFKA_CONFIG", value_name = "FILE", global = true)]
    pub kafka_config: Option<PathBuf>,

    /// Any librdkafka setting but secrets; wins over the file (repeatable)
    #[arg(short = 'X', value_name = "KEY=VALUE", value_parser = Setting, global = true)]
    pub settings: Vec<(String, String)>,

    /// Schema registry (Confluent's API): records are then written in its framing, and read in either. User and password: SCHEMA_REGISTRY_USER_INFO=USER:PASSWORD, or in the file
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_URL",
        value_name = "URL",
        value_parser = AddressParser::http(USER_INFO_INSTEAD),
        hide_env_values = true,
        global = true
    )]
    pub schema_registry: Option<Address>,

    /// `client.id` of every client, unless the user sets another: see [`named`](Self::named). `None`: librdkafka's own
    #[arg(skip)]
    pub client_id: Option<String>,
}

/// A setting on the command line, which every user of the machine can read: no secrets there. An error
/// does not show it, since it may hold one.
#[derive(Clone)]
struct Setting;

impl TypedValueParser for Setting {
    type Value = (String, String);

    fn parse_ref(
        &self,
        _: &clap::Command,
        _: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let wrong = |why: String| {
            clap::Error::raw(
                clap::error::ErrorKind::ValueValidation,
                format!("-X: {why}\n"),
            )
        };
        let setting = value.to_str().ok_or("expected UTF-8".to_owned());
        let (key, value) = setting.and_then(parse_setting).map_err(wrong)?;
        if is_secret(&key, &value) {
            return Err(wrong(format!(
                "{key} is or holds a secret, and every user can read a command line; write it into a file that only this user \
                 can read, and give that by --kafka-config"
            )));
        }
        if key == "client.id" {
            instance_id(&value).map_err(|why| wrong(format!("{key}: {why}")))?;
        }
        if key == BROKERS {
            brokers(&value).map_err(wrong)?;
        }
        Ok((key, value))
    }
}

fn is_secret(key: &str, value: &str) -> bool {
    // A value may be an address, such as that of schema.registry.url.
    let is_url = value.contains("://");
    SECRETS.iter().any(|secret| key.ends_with(secret))
        || is_url && Address::http(value).holds_secret()
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            let key = key.trim();
            let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
            let key = alias.map_or(key, |(_, name)| name);
            Ok((key.to_owned(), value.trim().to_owned()))
        }
        _ => Err("expected KEY=VALUE, e.g. fetch.min.bytes=1024".to_owned()),
    }
}

/// Why a client cannot be made of its settings, without a setting's value: it may be a secret under a
/// misspelled name.
pub fn wrong_settings(error: KafkaError) -> NeedsAttention {
    NeedsAttention(match error {
        KafkaError::ClientConfig(_, why, key, _) => format!("Kafka setting {key}: {why}"),
        error => format!("Kafka settings: {error}"),
    })
}

impl KafkaOptions {
    /// Names the clients after their program and its instance, else its host, as in `router-1`: quotas go by that name, and brokers' logs
    /// and `kafka-consumer-groups.sh` show it.
    #[must_use]
    pub fn named(mut self, program: &str, instance: Option<&str>) -> Self {
        let instance = instance.map_or_else(host_name, ToOwned::to_owned);
        self.client_id = match instance.strip_prefix(program) {
            Some(rest) if rest.starts_with('-') => Some(instance),
            _ => Some(format!("{program}-{instance}")),
        };
        self
    }

    /// The brokers that clients begin with: those of `-X` or the file where one of them names some.
    pub fn servers(&self) -> String {
        let chosen = self.chosen().ok();
        let chosen = chosen.and_then(|mut chosen| chosen.remove(BROKERS));
        chosen.unwrap_or_else(|| self.bootstrap_servers.clone())
    }

    /// A client's settings: `defaults`, then the file, then `-X`, then `fixed`, which correctness
    /// rests on and nobody may change.
    ///
    /// # Errors
    /// If the file cannot be read or a line of it is no setting, a fixed setting was given another value, or
    /// a broker's address cannot be used.
    pub fn client_config(
        &self,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> anyhow::Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config.set(BROKERS, &self.bootstrap_servers);
        if let Some(id) = &self.client_id {
            config.set("client.id", id);
        }
        for (key, value) in defaults {
            config.set(*key, *value);
        }
        for (key, value) in &self.chosen()? {
            if key.starts_with(REGISTRY_PREFIX) {
                continue; // of no concern to librdkafka
            }
            if let Some((_, must)) = fixed
                .iter()
                .find(|(name, must)| name == key && must != value)
            {
                return Err(NeedsAttention(format!(
                    "Kafka setting {key}={value}: exactly-once rests on {key}={must}; leave it out"
                ))
                .into());
            }
            config.set(key, value);
        }
        for (key, value) in fixed {
            config.set(*key, *value);
        }
        let protocol = config.get("security.protocol").unwrap_or("plaintext");
        let servers = brokers(config.get(BROKERS).unwrap_or_default())
            .and_then(|servers| check_protocol(&servers, protocol).map(|()| servers))
            .map_err(|why| NeedsAttention(format!("Kafka setting {BROKERS}: {why}")))?;
        config.set(BROKERS, servers);
        Ok(config)
    }

    /// The command that gives this user a right: `resource` as in `--topic NAME`, `operation` as in
    /// `Read`.
    pub fn allow(&self, resource: &str, operation: &str) -> String {
        let file = self.kafka_config.as_ref().map(|path| read_settings(path));
        let user = match file {
            Some(Ok(mut settings)) => settings.remove("sasl.username"),
            _ => None,
        };
        let given =
            |(key, value): &(String, String)| (key == "sasl.username").then(|| value.clone());
        let user = self.settings.iter().rev().find_map(given).or(user);
        format!(
            "allow it: kafka-acls.sh --bootstrap-server {} --add --allow-principal User:{} {resource} --operation {operation}",
            self.servers(),
            user.as_deref().unwrap_or("NAME"),
        )
    }

    /// The settings of the file and of `-X`, which wins.
    pub(crate) fn chosen(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut chosen = match &self.kafka_config {
            Some(path) => read_settings(path)?,
            None => BTreeMap::new(),
        };
        chosen.extend(self.settings.iter().cloned());
        Ok(chosen)
    }

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
        let admin: AdminClient<Quiet> = self
            .client_config(&[], &[])?
            .create_with_context(Quiet)
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
    pub async fn cluster(
        &self,
        shutdown: &tokio_util::sync::CancellationToken,
    ) -> anyhow::Result<Option<Cluster>> {
        self.cluster_within(None, shutdown).await
    }

    /// The cluster, for a command that ends by itself: waited for 30 s at most; `None` when `shutdown`
    /// is cancelled before.
    ///
    /// # Errors
    /// If it does not answer, or as [`cluster`](Self::cluster).
    pub async fn cluster_soon(
        &self,
        shutdown: &tokio_util::sync::CancellationToken,
    ) -> anyhow::Result<Option<Cluster>> {
        self.cluster_within(Some(ANSWER), shutdown).await
    }

    async fn cluster_within(
        &self,
        limit: Option<Duration>,
        shutdown: &tokio_util::sync::CancellationToken,
    ) -> anyhow::Result<Option<Cluster>> {
        let begun = Instant::now();
        let _waiting = exit::waiting(format!("Kafka at {}", self.servers()));
        let complaint = Complaint::default();
        let client: BaseConsumer<Complaint> = self
            .client_config(&[], &[])?
            .create_with_context(complaint.clone())
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
            let (reason, refused) = complaint.last().unwrap_or((error.to_string(), false));
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
        cluster.id = id.context("the cluster does not tell its id")?;
        Ok(Some(cluster))
    }
}

/// The last thing that a client complained of, and whether it was turned away or turns a broker away:
/// by password or certificate.
#[derive(Clone, Default)]
struct Complaint(Arc<Mutex<Option<(String, bool)>>>);

impl Complaint {
    /// Told once: librdkafka is silent about what repeats itself.
    fn last(&self) -> Option<(String, bool)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

impl ConsumerContext for Complaint {}

impl ClientContext for Complaint {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        crate::repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        let refused = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication) => true,
            // Not one that was cut off, as by a broker that ends.
            Some(RDKafkaErrorCode::SSL) => {
                reason.contains("certificate") || reason.contains("alert")
            }
            // That all are down says less than what each said of itself.
            Some(RDKafkaErrorCode::AllBrokersDown) => return,
            _ => false,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((reason.to_owned(), refused));
    }
}

/// Headers of a record to send.
pub fn headers(list: &[(&str, String)]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(list.len());
    list.iter().fold(empty, |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: Some(value),
        })
    })
}

/// A header's text, of the first header of that name.
pub fn header<'a>(record: &'a impl Message, name: &str) -> Option<&'a str> {
    let headers = record.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    std::str::from_utf8(found.value?).ok()
}

fn read_settings(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| NeedsAttention(format!("--kafka-config {}: {error}", path.display())))?;
    let mut settings = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line itself is not shown: it may hold a secret.
        let (key, value) = parse_setting(line).map_err(|expected| {
            NeedsAttention(format!(
                "--kafka-config {} line {}: {expected}",
                path.display(),
                i + 1
            ))
        })?;
        settings.insert(key, value);
    }
    Ok(settings)
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
    client: Arc<BaseConsumer<Complaint>>,
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
                "make it with: {tool} {}",
                self.arguments_to_make(topic, make).await
            ),
            None => format!("those that do are listed by: {tool} --list"),
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
                 and nobody can tell those from records that were never there. Set it with: kafka-configs.sh \
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

    fn options(settings: &[(&str, &str)], file: Option<PathBuf>) -> KafkaOptions {
        KafkaOptions {
            bootstrap_servers: "localhost:1".into(),
            kafka_config: file,
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            schema_registry: None,
            client_id: None,
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let path = std::env::temp_dir().join(format!("kafka-{}.properties", std::process::id()));
        std::fs::write(
            &path,
            "# comment\n\nlinger.ms = 7\nbatch.size=1\nsasl.password=a=b\n",
        )
        .unwrap();
        let config = options(&[("batch.size", "2")], Some(path.clone()))
            .client_config(&[("linger.ms", "5"), ("client.id", "x")], &[])
            .unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(config.get("linger.ms"), Some("7"));
        assert_eq!(config.get("batch.size"), Some("2"));
        assert_eq!(config.get("client.id"), Some("x"));
        assert_eq!(config.get("sasl.password"), Some("a=b"));
    }

    #[test]
    fn a_line_that_is_no_setting_is_named_by_number_and_not_shown() {
        let path =
            std::env::temp_dir().join(format!("kafka-bad-{}.properties", std::process::id()));
        std::fs::write(&path, "linger.ms=7\nhunter2\n").unwrap();
        let error = options(&[], Some(path.clone()))
            .client_config(&[], &[])
            .unwrap_err()
            .to_string();
        std::fs::remove_file(path).unwrap();
        assert!(error.contains("line 2"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_setting_has_one_value_by_whichever_of_its_names_it_is_given() {
        let path = std::env::temp_dir().join(format!("kafka-alias-{}", std::process::id()));
        std::fs::write(
            &path,
            "metadata.broker.list = kafka-9\nrequest.required.acks=0\n",
        )
        .unwrap();
        let given = options(&[("security.protocol", "ssl")], Some(path.clone()));
        let config = given.client_config(&[("acks", "1")], &[]).unwrap();
        assert_eq!(config.get("bootstrap.servers"), Some("kafka-9:9092"));
        assert_eq!(config.get("metadata.broker.list"), None);
        assert_eq!(config.get("acks"), Some("0"));
        assert_eq!(given.servers(), "kafka-9");
        let refused = given.client_config(&[], &[("acks", "all")]).unwrap_err();
        std::fs::remove_file(path).unwrap();
        let refused = refused.to_string();
        assert!(
            refused.contains("exactly-once rests on acks=all"),
            "{refused}"
        );
    }

    #[test]
    fn a_broker_of_a_file_that_cannot_be_used_is_an_error_of_the_settings() {
        let path = std::env::temp_dir().join(format!("kafka-brokers-{}", std::process::id()));
        for (line, why) in [
            (
                "bootstrap.servers=kafka://a:9092",
                "kafka:// is none of the protocols",
            ),
            ("metadata.broker.list=a:99999", "port \"99999\""),
            (
                "bootstrap.servers=SSL://a:9093",
                "security.protocol is plaintext",
            ),
        ] {
            std::fs::write(&path, line).unwrap();
            let given = options(&[], Some(path.clone()));
            let refused = given.client_config(&[], &[]).unwrap_err();
            assert!(refused.is::<NeedsAttention>());
            assert!(refused.to_string().contains(why), "{line}: {refused}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn clients_are_named_after_program_and_instance_unless_the_user_names_them() {
        for instance in ["1", "router-1"] {
            let named = options(&[], None).named("router", Some(instance));
            let config = named.client_config(&[], &[]).unwrap();
            assert_eq!(config.get("client.id"), Some("router-1"));
        }
        let named = options(&[("client.id", "ours")], None).named("router", None);
        let config = named.client_config(&[], &[]).unwrap();
        assert_eq!(config.get("client.id"), Some("ours"));
        let host = options(&[], None)
            .named("consumer-audit", None)
            .client_id
            .unwrap();
        assert_eq!(host, format!("consumer-audit-{}", host_name()));
    }

    #[test]
    fn a_setting_that_exactly_once_rests_on_cannot_be_changed() {
        let fixed = [("isolation.level", "read_committed")];
        let other = options(&[("isolation.level", "read_uncommitted")], None);
        let error = other.client_config(&[], &fixed).unwrap_err().to_string();
        assert!(error.contains("isolation.level"), "{error}");
        let same = options(&[("isolation.level", "read_committed")], None);
        assert!(same.client_config(&[], &fixed).is_ok());
    }
}
