//! Options of every program that uses Kafka, and the settings of its clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::builder::TypedValueParser;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;

use crate::address::{Address, AddressParser};
use crate::brokers::{Brokers, brokers, check_protocol};
use crate::error::NeedsAttention;
use crate::settings::{host_name, instance_id};

const BROKERS: &str = "bootstrap.servers";
/// Prefix of a registry's settings, as in Confluent's clients.
pub(crate) const REGISTRY_PREFIX: &str = "schema.registry.";
/// Where to give user and password.
pub(crate) const USER_INFO_INSTEAD: &str = "the environment variable SCHEMA_REGISTRY_USER_INFO=USER:PASSWORD, or schema.registry.basic.auth.user.info in --kafka-config";
/// Suffixes of settings whose value is, or may be, a secret.
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
/// Settings with two names in librdkafka, and the name used here: a client accepts only one of the two.
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
/// Options of every program that uses Kafka.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Kafka")]
pub struct KafkaOptions {
    /// Bootstrap brokers: HOST:PORT, separated by commas
    #[arg(
        long,
        env = "KAFKA_BOOTSTRAP_SERVERS",
        value_name = "HOST:PORT,…",
        default_value = "localhost:9092",
        value_parser = Brokers,
        global = true
    )]
    pub bootstrap_servers: String,

    /// File of librdkafka and schema.registry.* settings, for TLS, SASL and secrets; one key=value per line, # begins a comment
    #[arg(long, env = "KAFKA_CONFIG", value_name = "FILE", global = true)]
    pub kafka_config: Option<PathBuf>,

    /// Any librdkafka setting except secrets; takes precedence over the file (repeatable)
    #[arg(short = 'X', value_name = "KEY=VALUE", value_parser = Setting, global = true)]
    pub settings: Vec<(String, String)>,

    /// Schema registry (Confluent's API): write records in its framing, read both framings. User and password: SCHEMA_REGISTRY_USER_INFO=USER:PASSWORD, or in the file
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_URL",
        value_name = "URL",
        value_parser = AddressParser::http(USER_INFO_INSTEAD),
        hide_env_values = true,
        global = true
    )]
    pub schema_registry: Option<Address>,

    /// `client.id` of every client, unless the user overrides it: see [`named`](Self::named). `None`:
    /// librdkafka's default
    #[arg(skip)]
    pub client_id: Option<String>,
}

/// Parser of a setting on the command line. It refuses secrets, since every user of the machine can read a
/// command line. Errors do not show the value, which may be a secret.
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
    // A value may be an address, as in schema.registry.url.
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

/// The error of a client with wrong settings. Omits the value, which may be a secret under a misspelled name.
pub fn wrong_settings(error: KafkaError) -> NeedsAttention {
    NeedsAttention(match error {
        KafkaError::ClientConfig(_, why, key, _) => format!("Kafka setting {key}: {why}"),
        error => format!("Kafka settings: {error}"),
    })
}

impl KafkaOptions {
    /// Names the clients after the program and its instance (default: the host), as in `router-1`. Quotas
    /// apply to that name, and brokers' logs and `kafka-consumer-groups.sh` show it.
    #[must_use]
    pub fn named(mut self, program: &str, instance: Option<&str>) -> Self {
        let instance = instance.map_or_else(host_name, ToOwned::to_owned);
        self.client_id = match instance.strip_prefix(program) {
            Some(rest) if rest.starts_with('-') => Some(instance),
            _ => Some(format!("{program}-{instance}")),
        };
        self
    }

    /// The bootstrap brokers; those of `-X` or the file take precedence.
    pub fn servers(&self) -> String {
        let chosen = self.chosen().ok();
        let chosen = chosen.and_then(|mut chosen| chosen.remove(BROKERS));
        chosen.unwrap_or_else(|| self.bootstrap_servers.clone())
    }

    /// A client's settings: `defaults`, overridden by the file, by `-X`, and by `fixed`, on which correctness
    /// depends and which cannot be changed.
    ///
    /// # Errors
    /// If the file cannot be read, a line of it is not a setting, a fixed setting has another value, or a
    /// broker's address is invalid.
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
                    "Kafka setting {key}={value}: exactly-once depends on {key}={must}; remove this setting"
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

    /// The command that grants this user a right: `resource` as in `--topic NAME`, `operation` as in `Read`.
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

    /// The settings of the file and of `-X`, which takes precedence.
    pub(crate) fn chosen(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut chosen = match &self.kafka_config {
            Some(path) => read_settings(path)?,
            None => BTreeMap::new(),
        };
        chosen.extend(self.settings.iter().cloned());
        Ok(chosen)
    }
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
        // The line is not shown: it may contain a secret.
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
    fn an_invalid_line_is_named_by_its_number_and_not_shown() {
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
            refused.contains("exactly-once depends on acks=all"),
            "{refused}"
        );
    }

    #[test]
    fn a_broker_of_a_file_that_cannot_be_used_is_an_error_of_the_settings() {
        let path = std::env::temp_dir().join(format!("kafka-brokers-{}", std::process::id()));
        for (line, why) in [
            (
                "bootstrap.servers=kafka://a:9092",
                "kafka:// is not one of the protocols",
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
