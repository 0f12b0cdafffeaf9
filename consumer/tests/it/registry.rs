//! A schema registry used by all three programs: outages, and records with unknown schemas.
//!
//! Long because one test takes all programs through every state of the registry.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::{Kind, Pipeline, headers};
use crate::{newer, strategies, support};
use rdkafka::message::Message;
use schemas::{Framing, TaskRunningInfo, TaskRunningInfoEvent};
use serde_json::json;
use service::address::Address;
use service::health::Health;
use service::kafka::KafkaOptions;
use service::registry::{Registry, until_answered};
use service::testing::{
    ANY_PORT, Gate, OwnRegistry, Process, get, program, read_all, service, until,
};
use tokio_util::sync::CancellationToken;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const ROWS: &str = "SELECT count(*) FROM task_metrics";
const AWAY: &[&str] = &["waiting for the schema registry"];
const KIND: &str = "__connect.errors.exception.class.name";
const MESSAGE: &str = "__connect.errors.exception.message";

fn client(url: &str) -> Registry {
    Registry::of(&KafkaOptions {
        bootstrap_servers: String::new(),
        kafka_config: None,
        settings: vec![],
        schema_registry: Some(Address::http(url)),
        client_id: None,
    })
    .unwrap()
    .unwrap()
}

/// Registers a schema, however slow the registry is.
async fn register(registry: &Registry, subject: &str, avsc: &str) -> anyhow::Result<u32> {
    let (health, never) = (Health::default(), CancellationToken::new());
    let id = until_answered(|| registry.register(subject, avsc), &health, &never).await?;
    Ok(id.unwrap())
}

/// A version of a record with one more field at the beginning, as FULL_TRANSITIVE permits.
fn with_attempt(versions: &[schemas::Version], first: &str) -> String {
    let mut avsc = serde_json::from_str(versions.last().unwrap().avsc).unwrap();
    let attempt = json!({"name": "attempt", "type": "int", "default": 0});
    newer::add_before(&mut avsc, first, attempt);
    avsc.to_string()
}

/// A record as written by a program of that version.
fn attempted(mut framed: Vec<u8>) -> Vec<u8> {
    framed.insert(Framing::Registry(0).header_bytes(), 7 << 1);
    framed
}

fn info(number: usize) -> TaskRunningInfo {
    TaskRunningInfo {
        exec_id: format!("exec-{number}"),
        sequence: 0,
        ..strategies::sample_event().info
    }
}

fn newer_info(id: u32, number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    schemas::write_info(&info(number), Framing::Registry(id), &mut bytes);
    attempted(bytes)
}

struct Programs<'a> {
    pipeline: &'a Pipeline,
    /// The options that configure the registry.
    registry: Vec<&'a str>,
}

impl Programs<'_> {
    fn router(&self, name: &str) -> support::Program {
        let mut arguments = self.pipeline.router_arguments();
        arguments.extend(["--instance-id", name, "--metrics-listen", ANY_PORT]);
        // Makes it visible if the group removes it for not polling.
        arguments.extend([
            "-X",
            "session.timeout.ms=6000",
            "-X",
            "max.poll.interval.ms=6000",
        ]);
        arguments.extend(&self.registry);
        let router = program(CONSUMER, "router");
        let process = Process::start(self.pipeline.folder(), name, &router, &arguments);
        support::Program { process }
    }

    fn producer(&self, arguments: &[&str]) -> Process {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--bootstrap-servers", &self.pipeline.bootstrap]);
        arguments.extend(["--topic", &self.pipeline.source]);
        arguments.extend(&self.registry);
        let producer = program(CONSUMER, "producer");
        Process::start(self.pipeline.folder(), "producer", &producer, &arguments)
    }

    fn consumer(&self, name: &str) -> support::Program {
        self.pipeline.program(name, &self.registry)
    }

    /// Runs a program to its end.
    fn run(&self, name: &str, arguments: &[&str], registry: bool) -> (Option<i32>, String) {
        let path = match name {
            "consumer" => Path::new(CONSUMER).to_owned(),
            name => program(CONSUMER, name),
        };
        let mut command = Command::new(path);
        command.args(arguments);
        if registry {
            command.args(&self.registry);
        }
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        (
            status.code(),
            String::from_utf8([stdout, stderr].concat()).unwrap(),
        )
    }

    /// The audits of router and consumer, with the expected exit codes.
    fn audit(&self, registry: bool, expected: [i32; 2]) {
        let router = [&["audit"], &self.pipeline.router_arguments()[..]].concat();
        let mut consumer = vec!["audit"];
        consumer.extend(self.pipeline.consumer_arguments());
        let both = [("router", &router[..]), ("consumer", &consumer)];
        for ((name, arguments), expected) in both.into_iter().zip(expected) {
            let (code, text) = self.run(name, arguments, registry);
            assert_eq!(code, Some(expected), "{name}: {text}");
        }
    }
}

fn ids(bootstrap: &str, topic: &str) -> Vec<u32> {
    let records = read_all(bootstrap, topic);
    let id = |value: &[u8]| u32::from_be_bytes(value[1..5].try_into().unwrap());
    let mut ids: Vec<u32> = records
        .iter()
        .map(|record| record.payload().unwrap())
        .inspect(|value| assert_eq!(value[0], 0))
        .map(id)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn all_programs_share_a_registry_and_wait_for_it_whenever_it_is_away() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    let files = pipeline.folder().join("registry");
    let Some(registry) = OwnRegistry::start(&files, &[]) else {
        return;
    };
    let programs = Programs {
        pipeline: &pipeline,
        registry: vec!["--schema-registry", &registry.url],
    };
    let (source_subject, events_subject) = (
        format!("{}-value", pipeline.source),
        format!("{}-value", pipeline.events),
    );
    let client = client(&registry.url);

    // The registry is down when the writers start: they wait, and can be stopped.
    registry.stop();
    let count = "500";
    let mut producer =
        programs.producer(&["simulate", "--rate", "0", "--count", count, "--seed", "3"]);
    let mut router = programs.router("router-1");
    let mut consumer = programs.consumer("consumer-1");
    router.until_waiting(AWAY).await;
    consumer.until_ready().await;
    until("the producer waits", Duration::from_secs(60), async || {
        producer.log().contains(AWAY[0]).then_some(())
    })
    .await;
    let mut in_vain = programs.router("router-2");
    in_vain.until_waiting(AWAY).await;
    in_vain.stop().await;
    assert!(read_all(&pipeline.bootstrap, &pipeline.source).is_empty());

    registry.start_again();
    assert!(producer.ended().await.success(), "{}", producer.log());
    pipeline.until_count(ROWS, 500).await;
    router.until_ready().await;
    assert_eq!(router.log().matches(AWAY[0]).count(), 1, "said once");

    // Each topic has its subject's one schema.
    for (topic, versions) in [
        (&pipeline.source, schemas::INFO_VERSIONS),
        (&pipeline.events, schemas::EVENT_VERSIONS),
    ] {
        let [id] = ids(&pipeline.bootstrap, topic)[..] else {
            panic!("several ids");
        };
        let (health, never) = (Health::default(), CancellationToken::new());
        let schema = until_answered(|| client.schema(id), &health, &never).await;
        let schema = schema.unwrap().flatten().unwrap();
        assert_eq!(schema, versions.last().unwrap().avsc);
        let host = registry.url.split('/').nth(2).unwrap();
        let port = host.rsplit_once(':').unwrap().1.parse().unwrap();
        let path = format!("/apis/ccompat/v7/config/{topic}-value");
        let (_, rule) = get(port, &path).unwrap();
        assert!(rule.contains("FULL_TRANSITIVE"), "{rule}");
    }

    // Reports from engines without a registry are still read.
    let own: Vec<_> = (0..20).map(info).collect();
    pipeline.send_infos(&own);
    pipeline.until_count(ROWS, 520).await;
    assert_eq!(ids(&pipeline.bootstrap, &pipeline.events).len(), 1);

    // A version that breaks readers is refused, one with a default is not.
    let mut breaking = newer::released_info();
    newer::add_before(
        &mut breaking,
        "jobId",
        json!({"name": "must", "type": "int"}),
    );
    let refused = register(&client, &source_subject, &breaking.to_string()).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("not compatible"), "{why}");
    let newer = with_attempt(schemas::INFO_VERSIONS, "execId");
    let newer = register(&client, &source_subject, &newer).await.unwrap();
    let newer_event = with_attempt(schemas::EVENT_VERSIONS, "source");
    let newer_event = register(&client, &events_subject, &newer_event)
        .await
        .unwrap();

    // The registry is down when records with an unread schema arrive: earlier records are routed, later ones wait, and
    // so does the consumer for such an event.
    registry.stop();
    let mut mixed = Vec::new();
    for number in 20..60 {
        let value = match number {
            40..50 => newer_info(newer, number),
            _ => schemas::encode_info(&info(number)).unwrap(),
        };
        mixed.push(("key", value, Some(1)));
    }
    pipeline.send(&pipeline.source, &mixed);
    router.until_waiting(AWAY).await;
    pipeline.until_count(ROWS, 540).await;
    let event = TaskRunningInfoEvent {
        info: info(60),
        ..strategies::sample_event()
    };
    let mut value = Vec::new();
    schemas::write_event(&event, Framing::Registry(newer_event), &mut value);
    pipeline.send(&pipeline.events, &[("exec-60", attempted(value), Some(2))]);
    consumer.until_waiting(AWAY).await;
    // Rebalances still work: a second consumer gets its partitions, though nobody can store.
    let mut second = programs.consumer("consumer-2");
    until(
        "the second has partitions",
        Duration::from_secs(60),
        async || second.log().contains("assigned").then_some(()),
    )
    .await;
    assert_eq!(pipeline.count(ROWS).await, 540);
    second.process.assert_running();

    registry.start_again();
    pipeline.until_count(ROWS, 561).await;
    router.until_ready().await;
    consumer.until_ready().await;
    second.stop().await;
    assert!(!router.log().contains("lost"), "{}", router.log());
    assert_eq!(read_all(&pipeline.bootstrap, &pipeline.events).len(), 561);
    assert!(read_all(&pipeline.bootstrap, &pipeline.letters).is_empty());

    // The event without a router names another source topic, so it is no fault.
    programs.audit(true, [0, 0]);

    // A schema id that the registry does not know.
    let nobodys = newer_info(i32::MAX as u32, 61);
    pipeline.send(&pipeline.source, &[("key", nobodys.clone(), None)]);
    pipeline.send(&pipeline.events, &[("key", nobodys.clone(), Some(0))]);
    let letters = until("two letters", Duration::from_secs(60), async || {
        let letters = read_all(&pipeline.bootstrap, &pipeline.letters);
        (letters.len() == 2).then_some(letters)
    })
    .await;
    for letter in &letters {
        let headers = headers(letter);
        assert_eq!(headers[KIND], "UnknownSchemaId");
        assert!(
            headers[MESSAGE].contains("has no schema of the id 2147483647"),
            "{headers:?}"
        );
        assert_eq!(letter.payload(), Some(&nobodys[..]));
    }
    let last = info(62);
    pipeline.send_infos(&[last]);
    pipeline.until_count(ROWS, 562).await;
    router.stop().await;
    consumer.stop().await;

    // The router's audit cannot tell a lost schema id from one that never existed.
    programs.audit(true, [2, 0]);
    programs.audit(false, [2, 2]);
    // A repair does not remove rows of unreadable events either.
    let mut repair = vec!["audit", "--repair"];
    repair.extend(pipeline.consumer_arguments());
    let (code, text) = programs.run("consumer", &repair, false);
    assert!(
        code == Some(2) && text.contains("--schema-registry"),
        "{text}"
    );
    assert_eq!(pipeline.count(ROWS).await, 562);
    replayed(&programs).await;
}

/// Replays, and shows the letter.
async fn replayed(programs: &Programs<'_>) {
    let pipeline = programs.pipeline;
    let into = format!("sqlite:{}", pipeline.folder().join("again.db").display());
    let topics = ["--bootstrap-servers", &pipeline.bootstrap];
    let replay = [
        "replay",
        "--events-topic",
        &pipeline.events,
        "--into",
        &into,
    ];
    let (code, text) = programs.run("consumer", &[&replay[..], &topics].concat(), true);
    assert_eq!(code, Some(0), "{text}");
    let diff = [
        "diff",
        &into,
        &pipeline.database_url,
        "--events-topic",
        &pipeline.events,
    ];
    let (code, text) = programs.run("consumer", &diff, false);
    assert_eq!(code, Some(0), "{text}");
    let letters = ["--dead-letters-topic", &pipeline.letters];
    let show = ["dead-letters", "show", "0:0"];
    let asked = [&show[..], &letters, &topics].concat();
    let (code, text) = programs.run("router", &asked, true);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("has no schema of the id 2147483647"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn framed_records_become_letters_without_a_registry_and_events_once_redriven_with_it() {
    let Some(url) = service("TEST_SCHEMA_REGISTRY_URL") else {
        return;
    };
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let with = Programs {
        pipeline: &pipeline,
        registry: vec!["--schema-registry", &url],
    };
    let without = Programs {
        pipeline: &pipeline,
        registry: vec![],
    };
    let subject = format!("{}-value", pipeline.source);
    let current = schemas::INFO_VERSIONS.last().unwrap().avsc;
    let id = register(&client(&url), &subject, current).await.unwrap();
    let mut value = schemas::encode_info(&info(0)).unwrap();
    Framing::Registry(id).put_on(&mut value);
    pipeline.send(&pipeline.source, &[("exec-0", value.clone(), None)]);

    let router = without.router("router-1");
    let letter = until("a letter", Duration::from_secs(60), async || {
        read_all(&pipeline.bootstrap, &pipeline.letters).pop()
    })
    .await;
    router.stop().await;
    let letter_headers = headers(&letter);
    assert_eq!(letter_headers[KIND], "NoSchemaRegistry");
    assert!(
        letter_headers[MESSAGE].contains("--schema-registry"),
        "{letter_headers:?}"
    );

    let topics = [
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--dead-letters-topic",
        &pipeline.letters,
    ];
    let show = [&["dead-letters", "show", "0:0"][..], &topics].concat();
    let (code, text) = with.run("router", &show, true);
    assert!(
        code == Some(0) && text.contains("a whole TaskRunningInfo, a schema registry's framing"),
        "{text}"
    );
    let redrive = ["dead-letters", "redrive", "--reason", "NoSchemaRegistry"];
    let (code, text) = without.run("router", &[&redrive[..], &topics].concat(), false);
    assert_eq!(code, Some(0), "{text}");
    let source = read_all(&pipeline.bootstrap, &pipeline.source);
    assert_eq!(source.last().unwrap().payload(), Some(&value[..]));
    let router = with.router("router-1");
    until("an event", Duration::from_secs(60), async || {
        read_all(&pipeline.bootstrap, &pipeline.events).pop()
    })
    .await;
    router.stop().await;
    let source = Programs { ..with };
    let router_audit = [&["audit"], &pipeline.router_arguments()[..]].concat();
    // The first record's letter was written under other rules.
    let (code, text) = source.run("router", &router_audit, true);
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_registry_behind_tls_and_a_password_is_used_and_the_password_is_not_revealed() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let at = |name: &str| pipeline.folder().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (at("certificate.pem"), at("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let tls = ["--certificate", &certificate, "--key", &key];
    let Some(registry) = OwnRegistry::start(Path::new(&at("registry")), &tls) else {
        return;
    };
    let Some(shared) = service("TEST_SCHEMA_REGISTRY_URL") else {
        return;
    };

    // TLS, with a certificate known only from the file.
    let ca = format!("schema.registry.ssl.ca.location={certificate}");
    let programs = Programs {
        pipeline: &pipeline,
        registry: vec!["--schema-registry", &registry.url, "-X", &ca],
    };
    let mut producer = programs.producer(&["simulate", "--count", "5"]);
    assert!(producer.ended().await.success(), "{}", producer.log());
    assert_eq!(ids(&pipeline.bootstrap, &pipeline.source).len(), 1);
    let trusting_nobody = Programs {
        pipeline: &pipeline,
        registry: vec!["--schema-registry", &registry.url],
    };
    let mut router = trusting_nobody.router("router-1");
    router.until_waiting(&["certificate"]).await;
    router.stop().await;

    // A password, from a file.
    let host = shared.split('/').nth(2).unwrap();
    let mut gate = Gate::to(host, Some("Basic YWRhOmh1bnRlcjI="));
    gate.open();
    let url = shared.replace(host, &gate.address());
    let secret = |password: &str| {
        let file = at(password);
        let line = format!("schema.registry.basic.auth.user.info=ada:{password}\n");
        std::fs::write(&file, line).unwrap();
        file
    };
    for (password, ends) in [("hunter2", Some(0)), ("hunter3", Some(78))] {
        let file = secret(password);
        let programs = Programs {
            pipeline: &pipeline,
            registry: vec!["--schema-registry", &url, "--kafka-config", &file],
        };
        let mut producer = programs.producer(&["simulate", "--count", "5"]);
        let status = producer.ended().await;
        let log = producer.log();
        assert_eq!(status.code(), ends, "{log}");
        assert!(!log.replace(&file, "").contains("hunter"), "{log}");
        assert_eq!(
            log.contains("user ada or the password"),
            ends == Some(78),
            "{log}"
        );
    }
}
