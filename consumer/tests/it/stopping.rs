//! Each command of the consumer exits within 10 s of a signal, whatever it waits for.

use std::path::Path;
use std::time::Duration;

use crate::report::info;
use crate::support::{Kind, Pipeline, on_every_database};
use service::testing::stopping::{
    BlockableProxy, SIGNALS, SilentServer, Waiting, end_in_time, start_and_end_in_time,
};
use service::testing::{Process, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const WAIT: Duration = Duration::from_secs(120);

on_every_database!(consumers_stop_although_a_broker_falls_silent);

fn one<'a>(name: &'a str, arguments: &[&'a str], code: i32) -> Waiting<'a> {
    let mut all: Vec<&str> = name.split(' ').collect();
    all.extend(arguments);
    Waiting {
        name,
        arguments: all,
        code,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_stop_although_a_broker_never_answers() {
    let folder = tempfile::tempdir().unwrap();
    let silent = SilentServer::start();
    let address = silent.address();
    let database = format!("sqlite:{}", folder.path().join("tasks.db").display());
    let migrate = ["migrate", "--database-url", &database];
    let mut made = Process::start(folder.path(), "migrate", Path::new(CONSUMER), &migrate);
    assert!(made.ended().await.success(), "{}", made.log());
    let other = format!("sqlite:{}", folder.path().join("other.db").display());
    let kafka = ["--bootstrap-servers", &address, "--database-url", &database];
    let waiting = [
        one("run", &kafka, 0),
        one("audit", &kafka, 2),
        one(
            "replay --into",
            &[&other, "--bootstrap-servers", &address],
            0,
        ),
    ];
    let connections = || silent.connections();
    start_and_end_in_time(folder.path(), CONSUMER, &waiting, connections).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_advertised_listener_keeps_no_program_from_ending() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    let infos: Vec<_> = (0..20).map(|i| info("exec-1", i)).collect();
    pipeline.send_infos(&infos);
    let (router, consumer) = (pipeline.router(), pipeline.consumer(&[]));
    pipeline
        .until_count("SELECT count(*) FROM task_progress", 20)
        .await;
    router.stop().await;
    consumer.stop().await;
    let proxy = BlockableProxy::to(&pipeline.bootstrap);
    proxy.block_named();
    let mut kafka = pipeline.consumer_arguments();
    kafka[1] = proxy.address();
    let other = pipeline.folder().join("other.db");
    let other = format!("sqlite:{}", other.display());
    let replay = [
        "--into",
        &other,
        "--bootstrap-servers",
        proxy.address(),
        "--events-topic",
        &pipeline.events,
    ];
    let letters = kafka
        .iter()
        .position(|a| *a == "--dead-letters-topic")
        .unwrap();
    let audit = [&kafka[..letters], &kafka[letters + 2..]].concat();
    let waiting = [
        one("run", &kafka, 0),
        one("audit", &audit, 2),
        one("replay", &replay, 0),
    ];
    let connections = || proxy.connections();
    start_and_end_in_time(pipeline.folder(), CONSUMER, &waiting, connections).await;
}

async fn consumers_stop_although_a_broker_falls_silent(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let router = pipeline.router();
    let proxy = BlockableProxy::to(&pipeline.bootstrap);
    let (mut sent, mut stored) = (0, 0);
    for signal in SIGNALS {
        proxy.open();
        let mut arguments = vec!["run"];
        arguments.extend(pipeline.consumer_arguments());
        arguments[2] = proxy.address();
        arguments.extend(["--group", &pipeline.events]);
        let name = format!("run-{signal}");
        let program = Path::new(CONSUMER);
        let mut consumer = Process::start(pipeline.folder(), &name, program, &arguments);
        let mut send = |count| {
            let infos: Vec<_> = (sent..sent + count).map(|i| info("exec-1", i)).collect();
            pipeline.send_infos(&infos);
            sent += count;
        };
        send(10);
        until("an event is stored", WAIT, async || {
            consumer.assert_running();
            let count = pipeline.count("SELECT count(*) FROM task_progress").await;
            (count > stored).then(|| stored = count)
        })
        .await;
        proxy.block();
        send(1_000);
        end_in_time(signal, vec![("run", consumer, 0)]).await;
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_stop_although_a_database_never_answers() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    for scheme in ["postgres", "mysql"] {
        let silent = SilentServer::start();
        let url = format!("{scheme}://taskrunning@{}/taskrunning", silent.address());
        let other = url.replace("/taskrunning", "/other");
        let kafka = [
            "--bootstrap-servers",
            &pipeline.bootstrap,
            "--events-topic",
            &pipeline.events,
        ];
        let database = ["--database-url", &url];
        let both = [
            kafka,
            [
                database[0],
                database[1],
                "--dead-letters-topic",
                &pipeline.letters,
            ],
        ]
        .concat();
        let expire = ["--older-than", "1d", database[0], database[1]];
        let audit = [&kafka[..], &database].concat();
        let replay = [&["--into", &url], &kafka[..]].concat();
        let waiting = [
            one("run", &both, 0),
            one("audit", &audit, 2),
            one("replay", &replay, 0),
            one("expire", &expire, 0),
            one("diff", &[&url, &other], 2),
            one("migrate", &database, 1),
            one("tasks", &database, 1),
            one("task exec-1", &database, 1),
        ];
        let connections = || silent.connections();
        start_and_end_in_time(pipeline.folder(), CONSUMER, &waiting, connections).await;
    }
}
