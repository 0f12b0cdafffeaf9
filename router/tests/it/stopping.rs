//! A router, and each of its commands, ends within 10 s of a signal, during any wait.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Settings, Topics, info};
use service::testing::stopping::{
    BlockableProxy, SIGNALS, SilentServer, Waiting, end_in_time, start_and_end_in_time,
};
use service::testing::{Process, kafka, read_all, until};

const ROUTER: &str = env!("CARGO_BIN_EXE_router");
const WAIT: Duration = Duration::from_secs(120);

fn waiting<'a>(topics: &'a Topics, bootstrap: &'a str) -> [Waiting<'a>; 4] {
    let arguments = |command: &[&'a str]| {
        let mut arguments = topics.arguments();
        arguments[1] = bootstrap;
        [&arguments[..], command].concat()
    };
    let letters = &topics.letters;
    let of_letters = |command: &[&'a str]| {
        let mut arguments = vec!["dead-letters"];
        arguments.extend(command);
        arguments.extend(["--bootstrap-servers", bootstrap]);
        arguments.extend(["--dead-letters-topic", letters]);
        arguments
    };
    let audit = [
        "audit",
        "--bootstrap-servers",
        bootstrap,
        "--source-topic",
        &topics.source,
        "--events-topic",
        &topics.events,
        "--dead-letters-topic",
        letters,
        "--group",
        &topics.source,
    ];
    let one = |name, arguments, code| Waiting {
        name,
        arguments,
        code,
    };
    [
        one("router", arguments(&["--instance-id", "stopping"]), 0),
        one("dead-letters list", of_letters(&["list"]), 1),
        one("dead-letters redrive", of_letters(&["redrive", "--all"]), 1),
        one("audit", audit.to_vec(), 2),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_stop_although_a_broker_never_answers() {
    let folder = tempfile::tempdir().unwrap();
    let silent = SilentServer::start();
    let address = silent.address();
    let topics = Topics {
        bootstrap: address.clone(),
        source: "source".to_owned(),
        events: "events".to_owned(),
        letters: "letters".to_owned(),
    };
    let waiting = waiting(&topics, &address);
    let connections = || silent.connections();
    start_and_end_in_time(folder.path(), ROUTER, &waiting, connections).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_advertised_listener_keeps_no_program_from_ending() {
    let Some(bootstrap) = kafka() else { return };
    let folder = tempfile::tempdir().unwrap();
    let topics = Topics::make(bootstrap.clone(), 2, Settings::default()).await;
    let bytes = schemas::encode_info(&info("exec-1", 0)).unwrap();
    topics.send((0..200).map(|_| (Some("exec-1"), Some(&bytes[..]), None)));
    topics.send([(Some("exec-1"), Some(&b"none"[..]), None)]);
    let proxy = BlockableProxy::to(&bootstrap);
    proxy.block_named();
    let waiting = waiting(&topics, proxy.address());
    let connections = || proxy.connections();
    start_and_end_in_time(folder.path(), ROUTER, &waiting, connections).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_broker_that_falls_silent_keeps_no_router_from_ending() {
    let Some(bootstrap) = kafka() else { return };
    let folder = tempfile::tempdir().unwrap();
    let bytes = schemas::encode_info(&info("exec-1", 0)).unwrap();
    let proxy = BlockableProxy::to(&bootstrap);
    for signal in SIGNALS {
        proxy.open();
        let topics = Topics::make(bootstrap.clone(), 2, Settings::default()).await;
        // Enough for transactions until it is stopped.
        topics.send((0..100_000).map(|_| (Some("exec-1"), Some(&bytes[..]), None)));
        let mut arguments = topics.arguments();
        arguments[1] = proxy.address();
        arguments.extend(["--instance-id", signal]);
        let program = Path::new(ROUTER);
        let mut router = Process::start(folder.path(), signal, program, &arguments);
        until("records are routed", WAIT, async || {
            router.assert_running();
            (!read_all(&topics.bootstrap, &topics.events).is_empty()).then_some(())
        })
        .await;
        proxy.block();
        end_in_time(signal, vec![("router", router, 0)]).await;
    }
}

/// librdkafka's threads use the wall clock, so the router would wait for the hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_by_an_hour_ends_a_router_to_be_started_again() {
    let Some(bootstrap) = kafka() else { return };
    let Some(library) = faketime() else {
        println!("skipped: libfaketime is not installed (apt-get install faketime)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let topics = Topics::make(bootstrap, 2, Settings::default()).await;
    let bytes = schemas::encode_info(&info("exec-1", 0)).unwrap();
    let clock = folder.path().join("clock");
    let environment = own_clock(library, &clock);
    let own = ["--instance-id", "clock"];
    let arguments = [&topics.arguments()[..], &own].concat();
    let program = Path::new(ROUTER);
    let mut router =
        Process::start_with(folder.path(), "router", program, &arguments, &environment);
    topics.send([(Some("exec-1"), Some(&bytes[..]), None)]);
    until("the first record is routed", WAIT, async || {
        router.assert_running();
        (!read_all(&topics.bootstrap, &topics.events).is_empty()).then_some(())
    })
    .await;
    std::fs::write(&clock, "-3600").unwrap();
    let begun = Instant::now();
    let status = router.ended().await;
    let (took, log) = (begun.elapsed(), router.log());
    assert!(took < Duration::from_secs(10), "{took:?}:\n{log}");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("clock was set back by 3"), "{log}");
    topics.send([(Some("exec-1"), Some(&bytes[..]), None)]);
    std::fs::remove_file(&clock).unwrap();
    let mut router = Process::start(folder.path(), "again", program, &arguments);
    until("the second record is routed", WAIT, async || {
        router.assert_running();
        (read_all(&topics.bootstrap, &topics.events).len() == 2).then_some(())
    })
    .await;
    end_in_time("TERM", vec![("router", router, 0)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_by_an_hour_ends_an_audit_without_a_verdict() {
    let Some(library) = faketime() else {
        println!("skipped: libfaketime is not installed (apt-get install faketime)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let silent = SilentServer::start();
    let address = silent.address();
    let clock = folder.path().join("clock");
    let environment = own_clock(library, &clock);
    let program = Path::new(ROUTER);
    let arguments = ["audit", "--bootstrap-servers", &address];
    let mut audit = Process::start_with(folder.path(), "audit", program, &arguments, &environment);
    until("it waits for Kafka", WAIT, async || {
        audit.assert_running();
        (silent.connections() > 0).then_some(())
    })
    .await;
    std::fs::write(&clock, "-3600").unwrap();
    let status = audit.ended().await;
    let log = audit.log();
    assert_eq!(status.code(), Some(2), "{log}");
    let expected = "could not tell: the system's clock was set back by 3";
    assert!(log.contains(expected), "{log}");
}

/// Environment in which a file sets a program's wall clock.
fn own_clock<'a>(library: &'a str, clock: &'a Path) -> [(&'a str, &'a str); 4] {
    std::fs::write(clock, "+0").unwrap();
    [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
}

fn faketime() -> Option<&'static str> {
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    ];
    places.into_iter().find(|path| Path::new(path).exists())
}
