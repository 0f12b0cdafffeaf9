//! TLS, passwords and rights of a real broker and a real PostgreSQL: those that the README lists are
//! enough, none of them is too much, and no secret is ever shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::strategies;
use crate::support::{Broker, Cluster, Pipeline, execute, run};
use futures_util::{StreamExt, stream};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::topics::{
    TASK_RUNNING_INFO, TASK_RUNNING_INFO_DEAD_LETTERS, TASK_RUNNING_INFO_EVENTS,
};
use service::testing::{
    ANY_PORT, NOBODY, Process, Topic, create_topics, free_port, program, read_all, service, until,
};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;
use tokio::sync::Mutex;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
/// Programs that run at the same time.
const AT_ONCE: usize = 4;
const WITHIN: Duration = Duration::from_secs(120);

/// In every password and key of these tests, and nowhere else.
const SECRET: &str = "hunter2";
/// May do anything, and has topics of its own.
const SUPERUSER: &str = "superuser";

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// A line of deploy/kafka/acls, one operation of it.
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

/// A user that has all rights of a service but one.
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

/// Certificates: an authority, and what it has signed.
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

/// A broker with TLS, SCRAM and ACLs; shared by the tests that run at the same time.
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
                // So small that letters leave values out.
                topic(
                    TASK_RUNNING_INFO_DEAD_LETTERS,
                    &[("max.message.bytes", "3000")],
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

    /// A file for `--kafka-config`, with these settings instead of the right ones.
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
        // Whole at any moment: a program that was just started may be reading it.
        let new = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        std::fs::write(new.path(), lines.concat()).unwrap();
        new.persist(&file).unwrap();
        file
    }

    /// Sends what no engine writes, too large for a letter.
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

/// Programs as a user of the secured broker; their logs are searched for secrets in the end.
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

    /// Starts one of the three programs, by its command line.
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

    /// Waits for the end of one, which is to be with this code; gives what it has said.
    async fn ends(&self, name: &str, line: &str, code: i32) -> String {
        let mut process = self.start(name, line);
        let ended = process.ended().await;
        let log = process.log();
        assert_eq!(ended.code(), Some(code), "{name}: {line}\n{}", quiet(&log));
        log
    }
}

/// A log without what librdkafka and others say at debug level.
fn quiet(log: &str) -> String {
    let lines = log.lines().filter(|line| !line.contains("DEBUG"));
    lines.collect::<Vec<_>>().join("\n")
}

/// That no file in this folder has a secret in it, but those that are to have one.
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

#[tokio::test(flavor = "multi_thread")]
async fn each_service_works_with_the_rights_listed_and_says_which_one_is_missing() {
    let Some(secured) = Secured::share().await else {
        return;
    };
    let listed = deployed("deploy/kafka/acls");
    assert!(
        deployed("README.md").contains(&listed),
        "the README lists other rights than deploy/kafka/acls"
    );
    let logs = tempfile::tempdir().unwrap();
    let folder = logs.path();
    let user = |name: &str| As::user(&secured, folder, name);
    let database = folder.join("tasks.db").display().to_string();

    let published = user("engine")
        .ends(
            "engine",
            &format!("producer publish {}", reports(folder)),
            0,
        )
        .await;
    assert!(published.contains("sent 3 reports"), "{published}");
    secured.send_garbage(TASK_RUNNING_INFO);
    let router = user("router").start(
        "router",
        &format!("router --instance-id r --metrics-listen {ANY_PORT}"),
    );
    let all_routed = async || {
        (secured.count(TASK_RUNNING_INFO_EVENTS) == 3
            && secured.count(TASK_RUNNING_INFO_DEAD_LETTERS) == 1)
            .then_some(())
    };
    until("all is routed", WITHIN, all_routed).await;
    assert_eq!(router.stop().await.code(), Some(0));

    user("router-audit")
        .ends("router-audit", "router audit", 0)
        .await;

    secured.send_garbage(TASK_RUNNING_INFO_EVENTS);
    let consumer = user("consumer").start(
        "consumer",
        &format!("consumer run --database-url sqlite:{database}"),
    );
    let all_stored = async || (secured.count(TASK_RUNNING_INFO_DEAD_LETTERS) == 2).then_some(());
    until("all is stored", WITHIN, all_stored).await;
    assert_eq!(consumer.stop().await.code(), Some(0));

    let audit = format!("consumer audit --database-url sqlite:{database}");
    let replay = format!("consumer replay --into sqlite:{database}");
    user("consumer-audit")
        .ends("consumer-audit", &audit, 0)
        .await;
    user("consumer-audit")
        .ends("consumer-replay", &format!("{replay}-again"), 0)
        .await;
    user("dead-letters")
        .ends("list", "router dead-letters list", 0)
        .await;

    // One right less; of redrives, a later one would end an earlier one.
    let redrive = "router dead-letters redrive --all";
    let turn = Mutex::new(());
    let publish = format!("producer publish {}", reports(folder));
    let run = format!("consumer run --database-url sqlite:{database}");
    let says_what_is_missing = async |right: Right| {
        let name = without(&right);
        let (line, code) = match right.user.as_str() {
            "engine" => (&*publish, 78),
            "router" => ("router --instance-id r", 78),
            "consumer" => (&*run, 78),
            "dead-letters" => (redrive, 78),
            "router-audit" => ("router audit", 2),
            "consumer-audit" => (&*audit, 2),
            other => panic!("what does {other} do?"),
        };
        let turn = match line == redrive {
            true => Some(turn.lock().await),
            false => None,
        };
        let log = user(&name).ends(&name, line, code).await;
        drop(turn);
        let error = log
            .lines()
            .rfind(|line| line.contains("ERROR"))
            .unwrap_or_default();
        let resource = format!("--{} {}", right.resource, right.name.trim_end_matches('*'));
        let operation = format!("--operation {}", right.operation);
        for said in [
            "kafka-acls.sh",
            &format!("User:{name} "),
            &resource,
            &operation,
        ] {
            assert!(
                error.contains(said),
                "{name} does not say {said:?}:\n{}",
                quiet(&log)
            );
        }
    };
    let missing = stream::iter(rights()).map(says_what_is_missing);
    let checked = missing.buffer_unordered(AT_ONCE).count().await;
    assert_eq!(checked, rights().len());
    let redriven = user("dead-letters").ends("redrive", redrive, 0).await;
    assert!(redriven.contains("2 letters redriven"), "{redriven}");
    assert_no_secrets(folder);
}

/// What is wrong, the broker's address, settings instead of the right ones, what the error says.
type Wrong<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_wrong_password_authority_or_host_name_is_for_a_person_and_an_absent_broker_is_waited_for()
 {
    let Some(secured) = Secured::share().await else {
        return;
    };
    let logs = tempfile::tempdir().unwrap();
    let folder = logs.path();
    let port = secured.bootstrap.rsplit_once(':').unwrap().1;
    let (by_number, other_ca) = (format!("127.0.0.1:{port}"), secured.file("other-ca.pem"));
    let wrong_password = format!("{SECRET}-wrong");
    let wrong: [Wrong<'_>; 3] = [
        (
            "password",
            &secured.bootstrap,
            &[("sasl.password", &wrong_password)],
            &["invalid credentials", "SCRAM-SHA-512"],
        ),
        (
            "authority",
            &secured.bootstrap,
            &[("ssl.ca.location", other_ca.to_str().unwrap())],
            &["certificate", "ssl.ca.location"],
        ),
        ("host", &by_number, &[], &["certificate", "host name"]),
    ];
    let database = folder.join("tasks.db").display().to_string();
    let publish = format!("producer publish {}", reports(folder));
    let run = format!("consumer run --database-url sqlite:{database}");
    let audit = format!("consumer audit --database-url sqlite:{database}");
    let programs = [
        ("engine", &*publish, 78),
        ("router", "router --instance-id w", 78),
        ("consumer", &run, 78),
        ("dead-letters", "router dead-letters list", 78),
        ("consumer-audit", &audit, 2),
    ];
    let mut started = Vec::new();
    for (what, bootstrap, instead, reason) in &wrong {
        for (user, line, code) in &programs {
            let name = format!("wrong-{what}-{user}");
            let config = secured.config(&name, user, instead);
            let process = As::with(folder, bootstrap, &config).start(&name, line);
            started.push((process, *code, *bootstrap, *reason));
        }
    }
    let config = secured.config("absent", "router", &[]);
    let absent = As::with(folder, NOBODY, &config).start("absent", "router --instance-id a");
    for (process, code, bootstrap, reason) in &mut started {
        let ended = process.ended().await;
        let log = quiet(&process.log());
        assert_eq!(ended.code(), Some(*code), "{log}");
        let error = log
            .lines()
            .rfind(|line| line.contains("ERROR"))
            .unwrap_or_default();
        for said in [&[*bootstrap, "--kafka-config"], *reason].concat() {
            assert!(
                error.contains(said),
                "{said:?} is not in the last error of:\n{log}"
            );
        }
    }
    let log = absent.log();
    assert!(
        log.contains(&format!("{NOBODY} does not answer, waiting for it")),
        "{}",
        quiet(&log)
    );
    assert_eq!(absent.stop().await.code(), Some(0));
    assert_no_secrets(folder);
}

/// A PostgreSQL that takes only users with passwords, by TLS, but for its superuser.
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

    /// For a role, without its password; by this host name.
    fn url(&self, role: &str, host: &str, database: &str) -> String {
        let (_, port) = self.address();
        format!(
            "postgres://taskrunning_{role}@{host}:{port}/{database}?sslmode=verify-full&sslrootcert={}",
            self.folder.join("ca.pem").display()
        )
    }
}

/// A GRANT of deploy/postgres/grants.sql, one privilege on one table.
struct Grant {
    privilege: String,
    table: String,
    role: String,
}

fn grants() -> Vec<Grant> {
    let mut grants = Vec::new();
    for line in deployed("deploy/postgres/grants.sql").lines() {
        let Some(grant) = line.strip_prefix("GRANT ") else {
            continue;
        };
        let (privileges, rest) = grant.split_once(" ON ").unwrap();
        let (tables, role) = rest
            .trim_end_matches(';')
            .split_once(" TO taskrunning_")
            .unwrap();
        for privilege in privileges.split(", ") {
            grants.extend(tables.split(", ").map(|table| Grant {
                privilege: privilege.to_owned(),
                table: table.to_owned(),
                role: role.to_owned(),
            }));
        }
    }
    grants
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_role_works_with_the_grants_listed_and_says_which_table_a_missing_one_is_about() {
    let Some(guarded) = Guarded::start().await else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&guarded.cluster.url), 2, "").await else {
        return;
    };
    let listed = deployed("deploy/postgres/grants.sql");
    assert!(
        deployed("README.md").contains(&listed),
        "the README lists other grants than deploy/postgres/grants.sql"
    );
    let folder = pipeline.folder();
    let database = pipeline.database();
    let role = |role: &str, database: &str| {
        As::anybody(folder, &pipeline.bootstrap)
            .and("PGPASSWORD", &password(role))
            .and("DATABASE_URL", &guarded.url(role, "localhost", database))
            .and("EVENTS_TOPIC", &pipeline.events)
            .and("DEAD_LETTERS_TOPIC", &pipeline.letters)
    };
    let run = |group: &str| format!("consumer run --group {}-{group}", pipeline.events);

    // Before there are tables.
    guarded
        .execute(
            "postgres",
            &format!("ALTER DATABASE {database} OWNER TO taskrunning_owner"),
        )
        .await;
    let log = role("writer", database)
        .ends("early", &run("early"), 78)
        .await;
    assert!(
        log.contains("permission denied for schema public") && log.contains("consumer migrate"),
        "{}",
        quiet(&log)
    );
    role("owner", database)
        .ends("migrate", "consumer migrate", 0)
        .await;
    guarded
        .execute(database, &format!("SET ROLE taskrunning_owner; {listed}"))
        .await;

    // Partition 0 is stored before the rights are taken, partition 1 after: also its position, which a consumer
    // stores of a partition without records too.
    let send = |i: i64, partition: i32| {
        let mut event = strategies::sample_event();
        (event.info.exec_id, event.info.sequence) = ("exec-1".to_owned(), i);
        let value = schemas::encode_event(&event).unwrap();
        pipeline.send(&pipeline.events, &[("exec-1", value, Some(partition))]);
    };
    send(0, 0);
    let rows = "SELECT count(*) FROM task_progress";
    let writer = role("writer", database).start("writer", &run("writer"));
    pipeline.until_count(rows, 1).await;
    assert_eq!(writer.stop().await.code(), Some(0));
    guarded
        .execute(database, "DELETE FROM consumed_offset WHERE partition = 1")
        .await;

    // One grant less, each in a database of its own.
    let mut missing = Vec::new();
    for (i, grant) in grants().into_iter().enumerate() {
        let copy = format!("{database}_{i}");
        guarded
            .execute(
                "postgres",
                &format!("CREATE DATABASE {copy} TEMPLATE {database}"),
            )
            .await;
        let revoke = format!(
            "REVOKE {} ON {} FROM taskrunning_{}",
            grant.privilege, grant.table, grant.role
        );
        guarded.execute(&copy, &revoke).await;
        missing.push((grant, copy));
    }
    let is_view = |name: &str| name.ends_with("_history");
    let read_view = async |database: &str, view: &str| {
        let with_password = format!("taskrunning_reader:{}@", password("reader"));
        let url = guarded.url("reader", "localhost", database);
        let url = url.replace("taskrunning_reader@", &with_password);
        let options: PgConnectOptions = url.parse().unwrap();
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        let select = format!("SELECT count(*) FROM {view}");
        let count = sqlx::query_scalar(sqlx::AssertSqlSafe(select));
        count.fetch_one(&mut connection).await as Result<i64, sqlx::Error>
    };
    send(1, 0);
    send(2, 1);
    let writer = role("writer", database).start("writer-again", &run("writer"));
    pipeline.until_count(rows, 3).await;
    assert_eq!(writer.stop().await.code(), Some(0));
    let says_what_is_missing = async |(grant, copy): &(Grant, String)| {
        let Grant {
            role: user,
            privilege,
            table,
        } = grant;
        let name = format!("{user}-without-{privilege}-on-{table}");
        let log = match user.as_str() {
            "writer" => role(user, copy).ends(&name, &run(copy), 78).await,
            _ if is_view(table) => read_view(copy, table).await.unwrap_err().to_string(),
            _ => role(user, copy).ends(&name, "consumer audit", 2).await,
        };
        let kind = if is_view(table) { "view" } else { "table" };
        let said = format!("permission denied for {kind} {table}");
        assert!(log.contains(&said), "{said}:\n{}", quiet(&log));
        if is_view(table) {
            return; // read by no program
        }
        assert!(
            log.contains("deploy/postgres/grants.sql"),
            "{}",
            quiet(&log)
        );
        // Of PostgreSQL's source, and what would not help.
        for wrong in [
            " at line ",
            "; tables of an older version",
            "by their owner",
        ] {
            assert!(!log.contains(wrong), "{wrong}:\n{}", quiet(&log));
        }
    };
    let missing = stream::iter(&missing).map(says_what_is_missing);
    assert_eq!(
        missing.buffer_unordered(AT_ONCE).count().await,
        grants().len()
    );

    let views: Vec<Grant> = grants()
        .into_iter()
        .filter(|it| is_view(&it.table))
        .collect();
    assert_eq!(views.len(), 3);
    for view in views {
        let rows = read_view(database, &view.table).await.unwrap();
        assert!(rows >= 3, "{}: {rows}", view.table);
    }
    // Tables in a schema that a role may not use are as if they were not there.
    let copy = format!("{database}_unusable");
    guarded
        .execute(
            "postgres",
            &format!("CREATE DATABASE {copy} TEMPLATE {database}"),
        )
        .await;
    guarded
        .execute(&copy, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
        .await;
    for (user, command, code) in [
        ("writer", run(&copy), 78),
        ("reader", "consumer tasks".to_owned(), 78),
        ("reader", "consumer audit".to_owned(), 2),
    ] {
        let name = format!("{user}-without-usage-{code}");
        let log = role(user, &copy).ends(&name, &command, code).await;
        let grant = format!("GRANT USAGE ON SCHEMA public TO taskrunning_{user}");
        assert!(log.contains(&grant), "{}", quiet(&log));
        assert!(!log.contains("consumer migrate"), "{}", quiet(&log));
    }
    // Those of a schema that is not asked for are another installation's.
    for statement in [
        "CREATE SCHEMA ours AUTHORIZATION taskrunning_writer".to_owned(),
        format!("ALTER ROLE taskrunning_writer IN DATABASE {copy} SET search_path = ours"),
    ] {
        guarded.execute(&copy, &statement).await;
    }
    role("writer", &copy)
        .ends("migrate-beside", "consumer migrate", 0)
        .await;

    role("reader", database)
        .ends("audit", "consumer audit", 0)
        .await;
    let tasks = role("reader", database)
        .ends("tasks", "consumer tasks", 0)
        .await;
    assert!(tasks.contains("exec-1"), "{tasks}");
    role("reader", database)
        .ends("task", "consumer task exec-1", 0)
        .await;

    // Whom the server is not, and whom it does not let in.
    let url = |host: &str, more: &str| guarded.url("reader", host, database) + more;
    for (name, url, reason) in [
        (
            "wrong-host",
            url("127.0.0.1", ""),
            "certificate verify failed",
        ),
        (
            "wrong-authority",
            url("localhost", "").replace("ca.pem", "other-ca.pem"),
            "certificate verify failed",
        ),
        (
            "without-tls",
            url("localhost", "").replace("verify-full", "disable"),
            "pg_hba.conf rejects",
        ),
        (
            "absent-authority",
            url("localhost", "").replace("ca.pem", "absent.pem"),
            "No such file",
        ),
    ] {
        let program = role("reader", database).and("DATABASE_URL", &url);
        let log = program.ends(name, &run(name), 78).await;
        assert!(log.contains(reason), "{reason}:\n{}", quiet(&log));
        let log = program.ends(name, "consumer tasks", 78).await;
        assert!(log.contains(reason), "{reason}:\n{}", quiet(&log));
    }
    assert_no_secrets(folder);
}

/// Two authorities in one file, as while one takes over from the other: as psql, by either of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_authorities_is_read_whole() {
    let Some(guarded) = Guarded::start().await else {
        return;
    };
    let made = "CREATE DATABASE verified OWNER taskrunning_owner";
    guarded.execute("postgres", made).await;
    let authority = |file: &str| std::fs::read_to_string(guarded.folder.join(file)).unwrap();
    let url = guarded.url("owner", "localhost", "verified");
    for (files, code) in [
        (["other-ca.pem", "ca.pem"], 0),
        (["ca.pem", "other-ca.pem"], 0),
        (["other-ca.pem", "other-ca.pem"], 78),
    ] {
        let both = files.map(authority).concat();
        std::fs::write(guarded.folder.join("both.pem"), both).unwrap();
        let output = std::process::Command::new(CONSUMER)
            .arg("migrate")
            .env("DATABASE_URL", url.replace("ca.pem", "both.pem"))
            .env("PGPASSWORD", password("owner"))
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn no_secret_is_shown_whatever_becomes_of_it() {
    let Some(secured) = Secured::share().await else {
        return;
    };
    let Some(guarded) = Guarded::start().await else {
        return;
    };
    let logs = tempfile::tempdir().unwrap();
    let folder = logs.path();
    guarded
        .execute(
            "postgres",
            "CREATE DATABASE secrets OWNER taskrunning_owner",
        )
        .await;
    let url = guarded.url("owner", "localhost", "secrets");
    let with_password = url.replacen('@', &format!(":{}@", password("owner")), 1);
    let passfile = secured.file("pgpass");
    let write_passfile = |line: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&passfile, format!("{line}\n")).unwrap();
        std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let passfile_name = passfile.to_str().unwrap();
    let topics = ["SOURCE_TOPIC", "EVENTS_TOPIC", "DEAD_LETTERS_TOPIC"];
    let new = topics.map(|name| Topic {
        name,
        partitions: 1,
        settings: &[],
    });
    create_topics(&secured.broker.bootstrap, &new).await;
    let by = |url: &str| {
        let user = As::user(&secured, folder, SUPERUSER).and("PRODUCER_TOPIC", topics[0]);
        let user = topics.iter().fold(user, |user, name| user.and(name, name));
        user.and("ROUTER_GROUP", "secrets")
            .and("CONSUMER_GROUP", "secrets-too")
            .and("DATABASE_URL", url)
    };
    let by_url = || by(&with_password);
    let by_file = || by(&url).and("PGPASSFILE", passfile_name);
    let by_variable = |password: &str| by(&url).and("PGPASSWORD", password);

    // All is well.
    write_passfile(&format!(
        "localhost:*:*:taskrunning_owner:{}",
        password("owner")
    ));
    by_file().ends("migrate", "consumer migrate", 0).await;
    let metrics = format!("--metrics-listen {ANY_PORT}");
    let running = [
        by_url().start(
            "simulate",
            &format!("producer simulate --tasks 5 --rate 50 --for 600s --seed 7 {metrics}"),
        ),
        by_url().start("router", &format!("router --instance-id s {metrics}")),
        by_url().start(
            "consumer",
            &format!("consumer run --instance-id s {metrics}"),
        ),
    ];
    for (i, process) in running.iter().enumerate() {
        let ready = async || process.get("/readyz").filter(|(status, _)| *status == 200);
        until("it is ready", WITHIN, ready).await;
        let (_, metrics) = process.get("/metrics").unwrap();
        std::fs::write(folder.join(format!("metrics-{i}")), metrics).unwrap();
    }
    let stores = async || {
        let (_, metrics) = running[2].get("/metrics")?;
        metrics.contains("taskrunning_rows_total{").then_some(())
    };
    until("events are stored", WITHIN, stores).await;
    for process in running {
        assert_eq!(process.stop().await.code(), Some(0));
    }
    for (how, program) in [
        ("url", by_url()),
        ("file", by_file()),
        ("variable", by_variable(&password("owner"))),
    ] {
        let report = folder.join(how).display().to_string();
        program
            .ends(
                &format!("audit-{how}"),
                &format!("consumer audit --report {report}.html --report {report}.json"),
                0,
            )
            .await;
        program
            .ends(&format!("tasks-{how}"), "consumer tasks", 0)
            .await;
    }

    // Nothing is well.
    let wrong = format!("{SECRET}-wrong");
    let wrong_url = with_password.replace(&password("owner"), &wrong);
    let (_, port) = guarded.address();
    let nowhere = with_password.replace(&format!(":{port}/"), ":1/");
    let consumer = |url: &str| by(url);
    consumer(&wrong_url)
        .ends("wrong-url", "consumer run", 78)
        .await;
    consumer(&wrong_url)
        .ends("wrong-url", "consumer tasks", 78)
        .await;
    consumer(&wrong_url)
        .ends("wrong-url", "consumer audit", 2)
        .await;
    consumer("postgres://user:hunter2@[bad/x")
        .ends("bad-url", "consumer tasks", 2)
        .await;
    consumer(&nowhere)
        .ends("nowhere", "consumer tasks", 1)
        .await;
    by_variable(&wrong)
        .ends("wrong-variable", "consumer tasks", 78)
        .await;
    write_passfile(&format!("localhost:{SECRET}"));
    by_file().ends("bad-file", "consumer tasks", 78).await;
    for (name, instead, reason) in [
        ("misspelled", ("sasl.pasword", SECRET), "sasl.pasword"),
        ("no-key", ("ssl.key.pem", SECRET), "ssl"),
        ("key-password", ("ssl.key.password", SECRET), "ssl.key"),
    ] {
        let config = secured.config(name, "router", &[instead]);
        let log = As::with(folder, &secured.bootstrap, &config)
            .ends(name, "router --instance-id f", 78)
            .await;
        assert!(log.contains(reason), "{}", quiet(&log));
    }

    // On the command line.
    let argument = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(service::testing::program(CONSUMER, program))
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap()
            + std::str::from_utf8(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(!said.contains(SECRET), "{said}");
        said
    };
    for setting in [
        "sasl.password",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.config",
    ] {
        let setting = format!("{setting}={SECRET}");
        for (program, arguments) in [
            ("router", vec![]),
            ("consumer", vec!["run"]),
            ("producer", vec!["publish"]),
        ] {
            let said = argument(program, &[&arguments[..], &["-X", &setting]].concat());
            assert!(said.contains("--kafka-config"), "{said}");
        }
    }
    argument("router", &["-X", SECRET]);
    for arguments in [
        vec!["tasks", "--database-url", &with_password],
        vec!["replay", "--into", &with_password],
        vec!["diff", "sqlite:a.db", &with_password],
        vec![
            "tasks",
            "--database-url",
            "postgres://host/x?user=u&password=hunter2",
        ],
    ] {
        assert!(argument("consumer", &arguments).contains("PGPASSFILE"));
    }
    assert_no_secrets(folder);
}

#[test]
fn a_field_that_is_unknown_in_a_database_url_is_named_without_its_value() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .arg("tasks")
        .env(
            "DATABASE_URL",
            format!("postgres://somebody@127.0.0.1:1/x?pasword={SECRET}"),
        )
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the field pasword"), "{said}");
    assert!(!said.contains(SECRET), "{said}");
}
