//! TLS, passwords and rights of a real broker and real databases: the documented rights are sufficient and
//! necessary, and no secret is ever shown.

mod kafka;
mod mariadb;
mod postgres;
mod secrets;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::support::{Broker, Cluster, execute, run};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::topics::{
    TASK_RUNNING_INFO, TASK_RUNNING_INFO_DEAD_LETTERS, TASK_RUNNING_INFO_EVENTS,
};
use service::testing::{Process, Topic, create_topics, free_port, program, read_all, service};
use tempfile::TempDir;
use tokio::sync::Mutex;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// Number of concurrent programs.
const AT_ONCE: usize = 4;

const WITHIN: Duration = Duration::from_secs(120);

/// Contained in every password and key of these tests, and nowhere else.
const SECRET: &str = "hunter2";

/// Has all rights, and its own topics.
const SUPERUSER: &str = "superuser";

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// One operation of a line of deploy/kafka/acls.
#[derive(Clone, Debug, PartialEq)]
struct Right {
    user: String,
    resource: String,
    name: String,
    operation: String,
}

fn rights() -> Vec<Right> {
    let mut rights = Vec::new();
    for line in deployed("deploy/kafka/acls").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [user, resource, name, operations @ ..] = &words[..] else {
            continue;
        };
        if user.starts_with('#') {
            continue;
        }
        rights.extend(operations.iter().map(|operation| Right {
            user: (*user).to_owned(),
            resource: (*resource).to_owned(),
            name: (*name).to_owned(),
            operation: (*operation).to_owned(),
        }));
    }
    rights
}

/// A user that lacks one of a service's rights.
fn without(right: &Right) -> String {
    let Right {
        user,
        resource,
        name,
        operation,
    } = right;
    format!(
        "{user}-without-{resource}-{}-{operation}",
        name.replace('*', "")
    )
    .to_lowercase()
}

/// Creates an authority and the certificates that it signs.
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let mut words = vec![
            "-c",
            "cd \"$0\" && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 \"$@\" 2>/dev/null",
            folder.to_str().unwrap(),
        ];
        words.extend(arguments.split(' '));
        run("bash", &words);
    };
    for authority in ["ca", "other-ca"] {
        openssl(&format!(
            "-nodes -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
        ));
    }
    let signed = "-addext basicConstraints=critical,CA:FALSE -CA ca.pem -CAkey ca.key";
    openssl(&format!(
        "-nodes -subj /CN=server -addext subjectAltName=DNS:localhost {signed} -keyout server.key -out server.pem"
    ));
    openssl(&format!(
        "-passout pass:key-{SECRET} -subj /CN=client {signed} -keyout client.key -out client.pem"
    ));
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let both = read("server.key") + &read("server.pem");
    std::fs::write(folder.join("keystore.pem"), both).unwrap();
}

/// A broker with TLS, SCRAM and ACLs, shared by concurrent tests.
struct Secured {
    broker: Broker,
    /// Its address for users.
    bootstrap: String,
    folder: TempDir,
}

static SHARED: Mutex<Weak<Secured>> = Mutex::const_new(Weak::new());

impl Secured {
    async fn share() -> Option<Arc<Self>> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return Some(running);
        }
        let started = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&started);
        Some(started)
    }

    async fn start() -> Option<Self> {
        service("TEST_KAFKA_TOOL")?;
        let folder = tempfile::tempdir().unwrap();
        make_certificates(folder.path());
        let file = |name: &str| folder.path().join(name).display().to_string();
        let mut ports = Vec::new();
        while ports.len() < 3 {
            let port = free_port();
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let [plain, secured, controller] = ports[..] else {
            unreachable!()
        };
        let settings = [
            format!("listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secured},CONTROLLER://127.0.0.1:{controller}"),
            format!("advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://localhost:{secured}"),
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL".to_owned(),
            format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
            format!("super.users=User:ANONYMOUS;User:{SUPERUSER}"), // who comes by PLAINTEXT: this test
            "sasl.enabled.mechanisms=SCRAM-SHA-512".to_owned(),
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned(),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", file("keystore.pem")),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", file("ca.pem")),
            "listener.name.sasl_ssl.ssl.client.auth=requested".to_owned(),
        ];
        let rights = rights();
        let users = rights.iter().map(|right| right.user.clone());
        let users: Vec<String> = users.chain(rights.iter().map(without)).collect();
        let users = users.iter().map(String::as_str).chain([SUPERUSER]);
        let users: Vec<String> = users
            .map(|user| format!("{user}={}", password(user)))
            .collect();
        let plain = plain.to_string();
        let mut arguments = vec!["--port", &plain];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        arguments.extend(users.iter().flat_map(|user| ["--scram", user]));
        let broker = Broker::start_with(&arguments)?;

        let topic = |name, max_message_bytes| Topic {
            name,
            partitions: 1,
            settings: max_message_bytes,
        };
        create_topics(
            &broker.bootstrap,
            &[
                topic(TASK_RUNNING_INFO, &[]),
                topic(
                    TASK_RUNNING_INFO_EVENTS,
                    &[("max.message.bytes", "1114124")],
                ),
                // So small that letters omit values.
                topic(
                    TASK_RUNNING_INFO_DEAD_LETTERS,
                    &[("max.message.bytes", "3000")],
                ),
                topic(
                    "task-running-info-spark-log-checkpoints",
                    &[("cleanup.policy", "compact")],
                ),
            ],
        )
        .await;

        let mut acls = deployed("deploy/kafka/acls");
        for missing in &rights {
            let others = rights.iter().filter(|right| *right != missing);
            for right in others.filter(|right| right.user == missing.user) {
                let user = without(missing);
                writeln!(
                    acls,
                    "{user} {} {} {}",
                    right.resource, right.name, right.operation
                )
                .unwrap();
            }
        }
        let file = folder.path().join("acls");
        std::fs::write(&file, acls).unwrap();
        broker.create_acls(&file);
        Some(Self {
            broker,
            bootstrap: format!("localhost:{secured}"),
            folder,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file for `--kafka-config`, with these settings overridden.
    fn config(&self, name: &str, user: &str, instead: &[(&str, &str)]) -> PathBuf {
        let password = password(user);
        let (authority, certificate, key) = (
            self.file("ca.pem"),
            self.file("client.pem"),
            self.file("client.key"),
        );
        let key_password = format!("key-{SECRET}");
        let mut settings = BTreeMap::from([
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", user),
            ("sasl.password", &password),
            ("ssl.ca.location", authority.to_str().unwrap()),
            ("ssl.certificate.location", certificate.to_str().unwrap()),
            ("ssl.key.location", key.to_str().unwrap()),
            ("ssl.key.password", &key_password),
            ("debug", "security,broker,conf,cgrp,eos"),
        ]);
        settings.extend(instead.iter().copied());
        let lines: Vec<String> = settings
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect();
        let file = self.file(&format!("{name}.properties"));
        // Replaced atomically, because a program that has just started may be reading it.
        let new = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        std::fs::write(new.path(), lines.concat()).unwrap();
        new.persist(&file).unwrap();
        file
    }

    /// Sends an invalid value that is too large for a letter.
    fn send_garbage(&self, topic: &str) {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", &self.broker.bootstrap)
            .create()
            .unwrap();
        let garbage = vec![b'x'; 4_000];
        let record = BaseRecord::<str, [u8]>::to(topic)
            .key("garbage")
            .payload(&garbage);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(WITHIN).unwrap();
    }

    fn count(&self, topic: &str) -> usize {
        read_all(&self.broker.bootstrap, topic).len()
    }
}

fn password(user: &str) -> String {
    format!("{SECRET}-{user}")
}

/// Runs programs as a user of the secured broker; their logs are searched for secrets at the end.
struct As<'a> {
    folder: &'a Path,
    environment: Vec<(String, String)>,
}

impl<'a> As<'a> {
    fn user(secured: &Secured, folder: &'a Path, user: &str) -> Self {
        let config = secured.config(user, user, &[]);
        Self::with(folder, &secured.bootstrap, &config)
    }

    fn with(folder: &'a Path, bootstrap: &str, config: &Path) -> Self {
        Self::anybody(folder, bootstrap).and("KAFKA_CONFIG", config.to_str().unwrap())
    }

    fn anybody(folder: &'a Path, bootstrap: &str) -> Self {
        let environment = Vec::new();
        Self {
            folder,
            environment,
        }
        .and("KAFKA_BOOTSTRAP_SERVERS", bootstrap)
        .and("LOG_LEVEL", "debug")
    }

    fn and(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts one of the three programs from a command line.
    fn start(&self, name: &str, line: &str) -> Process {
        let mut words = line.split(' ');
        let program = program(CONSUMER, words.next().unwrap());
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(k, v)| (&**k, &**v)).collect();
        let arguments: Vec<&str> = words.collect();
        let started = Process::start_with(self.folder, name, &program, &arguments, &environment);
        let shown = started.command_line();
        assert!(!shown.contains(SECRET), "{shown}");
        started
    }

    /// Waits for the program to exit with this code; returns its log.
    async fn ends(&self, name: &str, line: &str, code: i32) -> String {
        let mut process = self.start(name, line);
        let ended = process.ended().await;
        let log = process.log();
        assert_eq!(ended.code(), Some(code), "{name}: {line}\n{}", quiet(&log));
        log
    }
}

/// A log without debug messages of librdkafka and others.
fn quiet(log: &str) -> String {
    let lines = log.lines().filter(|line| !line.contains("DEBUG"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Asserts that no file in this folder contains a secret, except those that must.
fn assert_no_secrets(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let lines = text.lines().filter(|line| line.contains(SECRET));
        let shown: Vec<&str> = lines.collect();
        assert!(
            shown.is_empty(),
            "{}:\n{}",
            path.display(),
            shown.join("\n")
        );
    }
}

fn reports(folder: &Path) -> String {
    let file = folder.join("reports.jsonl");
    let line = |i: u32| {
        format!(
            "{{\"execId\":\"exec-{i}\",\"jobId\":\"job\",\"engine\":{{\"instance\":\"node-1:22\",\"engineType\":\"shell\"}},\
             \"status\":\"Running\",\"progress\":{{\"progress\":0.5}}}}\n"
        )
    };
    std::fs::write(&file, (0..3).map(line).collect::<String>()).unwrap();
    file.display().to_string()
}

/// Follows the log of a Spark application that has ended and has this id.
fn spark_log(folder: &Path, id: &str) -> String {
    let file = folder.join(format!("{id}.events"));
    let log = format!(
        "{{\"Event\":\"SparkListenerApplicationStart\",\"App Name\":\"a\",\"App ID\":\"{id}\",\
         \"Timestamp\":1700000000000,\"User\":\"u\"}}\n\
         {{\"Event\":\"SparkListenerApplicationEnd\",\"Timestamp\":1700000001000}}\n"
    );
    std::fs::write(&file, log).unwrap();
    format!(
        "producer spark-log {} --follow --until-ended",
        file.display()
    )
}

/// A PostgreSQL that accepts only TLS and passwords, except from its superuser.
struct Guarded {
    cluster: Cluster,
    folder: PathBuf,
}

impl Guarded {
    async fn start() -> Option<Self> {
        let cluster = Cluster::start(&[])?;
        let data = cluster.folder().join("data");
        make_certificates(&data);
        let owner = std::fs::metadata(&data).unwrap();
        for file in ["server.key", "server.pem", "ca.pem"] {
            use std::os::unix::fs::MetadataExt;
            let file = data.join(file);
            std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let rules = data.join("pg_hba.conf");
        let trusting = std::fs::read_to_string(&rules).unwrap();
        let guarded = "hostssl all +guarded 127.0.0.1/32 scram-sha-256\nhost all +guarded 127.0.0.1/32 reject\n";
        std::fs::write(&rules, format!("{guarded}{trusting}")).unwrap();
        let guarded = Self {
            folder: data,
            cluster,
        };
        guarded.execute("postgres", "CREATE ROLE guarded").await;
        for role in ["owner", "writer", "reader"] {
            guarded
                .execute(
                    "postgres",
                    &format!(
                        "CREATE ROLE taskrunning_{role} LOGIN IN ROLE guarded PASSWORD '{}'",
                        password(role)
                    ),
                )
                .await;
        }
        for setting in [
            "ssl_cert_file = 'server.pem'",
            "ssl_key_file = 'server.key'",
            "ssl = on",
        ] {
            guarded
                .execute("postgres", &format!("ALTER SYSTEM SET {setting}"))
                .await;
        }
        guarded.execute("postgres", "SELECT pg_reload_conf()").await;
        Some(guarded)
    }

    async fn execute(&self, database: &str, statements: &str) {
        let (host, _) = self.cluster.url.rsplit_once('/').unwrap();
        execute(&format!("{host}/{database}"), statements).await;
    }

    /// Its host and port.
    fn address(&self) -> (&str, &str) {
        let (address, _) = self.cluster.url.rsplit_once('/').unwrap();
        address.rsplit_once(':').unwrap()
    }

    /// For a role, without its password, under this host name.
    fn url(&self, role: &str, host: &str, database: &str) -> String {
        let (_, port) = self.address();
        format!(
            "postgres://taskrunning_{role}@{host}:{port}/{database}?sslmode=verify-full&sslrootcert={}",
            self.folder.join("ca.pem").display()
        )
    }
}

/// Two authorities in one file, as during a rotation: either is accepted, as in `psql`. `url` names the file ca.pem in this
/// folder.
fn a_file_of_authorities_is_read_whole(folder: &Path, url: &str, variable: &str) {
    let authority = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    for (files, code) in [
        (["other-ca.pem", "ca.pem"], 0),
        (["ca.pem", "other-ca.pem"], 0),
        (["other-ca.pem", "other-ca.pem"], 78),
    ] {
        let both = files.map(authority).concat();
        std::fs::write(folder.join("both.pem"), both).unwrap();
        let output = std::process::Command::new(CONSUMER)
            .arg("migrate")
            .env("DATABASE_URL", url.replace("ca.pem", "both.pem"))
            .env(variable, password("owner"))
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{files:?}: {log}");
        assert_eq!(
            log.contains("none of the 2 authorities"),
            code != 0,
            "{log}"
        );
    }
}
