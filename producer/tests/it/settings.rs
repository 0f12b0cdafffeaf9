//! What the producer's options and variables may hold.

use std::time::Duration;

use crate::support::{Reports, text};
use producer::{Options, Reporter};
use service::settings::host_name;
use service::testing::settings::{NamedClients, refuses, run, takes_blank_variables_as_unset};
use service::testing::{NOBODY, Process, until};

const PRODUCER: &str = env!("CARGO_BIN_EXE_producer");
const ABSENT: [&str; 2] = ["--kafka-config", "/absent.conf"];
const LONG: &str = "2562047788015215h";

#[test]
fn blank_variables_are_unset_in_every_command() {
    let spark = ["spark", "--url", "http://127.0.0.1:1"];
    takes_blank_variables_as_unset(
        PRODUCER,
        &[
            (&[&spark[..], &ABSENT].concat(), "/absent.conf"),
            (&[&["publish"][..], &ABSENT].concat(), "/absent.conf"),
            (
                &[&["listen", "127.0.0.1:0"][..], &ABSENT].concat(),
                "/absent.conf",
            ),
            (&[&["simulate"][..], &ABSENT].concat(), "/absent.conf"),
        ],
    );
    // A required option is missing then.
    let output = run(PRODUCER, &["spark"], &[("SPARK_URL", "")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--url <URL>"));
}

#[test]
fn invalid_arguments_are_refused_at_once() {
    let simulate = |option, value| ["simulate", option, value];
    let spark = |option, value| ["spark", "--url", "http://127.0.0.1:1", option, value];
    let rates = "expected reports a second, 0 or 0.000001 to 1000000000";
    let time = "expected a time longer than 0";
    refuses(
        PRODUCER,
        &[
            (
                &simulate("--topic", ""),
                "--topic <TOPIC> has an empty value",
            ),
            (&["publish", ""], "[FILE]"),
            (&["listen", "8090"], "expected ADDRESS:PORT or :PORT"),
            (&["listen", ":8090"], "--allow-anonymous"),
            (
                &simulate("--bootstrap-servers", "kafka://a:9092"),
                "kafka:// is not one of",
            ),
            (
                &simulate("--bootstrap-servers", "a:99999"),
                "port \"99999\" is not in 1 to 65535",
            ),
            (
                &simulate("--bootstrap-servers", "a:1,"),
                "an address is empty",
            ),
            (
                &simulate("-X", "bootstrap.servers=http://a"),
                "http:// is not one of",
            ),
            (
                &simulate("-X", "metadata.broker.list=a:0"),
                "port \"0\" is not in 1 to 65535",
            ),
            (&simulate("--rate", "1e-19"), rates),
            (&simulate("--rate", "1e-7"), rates),
            (&simulate("--rate", "1e10"), rates),
            (&simulate("--rate", "1e999"), rates),
            (&simulate("--rate", "NaN"), rates),
            (&["simulate", "--rate=-1"], rates),
            (&simulate("--for", LONG), time),
            (&simulate("--for", "876001h"), time),
            (&simulate("--for", "1e400s"), time),
            (&["simulate", "--for=-1s"], time),
            (&simulate("--tasks", "0"), "--tasks"),
            (&simulate("--tasks", "4294967296"), "--tasks"),
            (&simulate("--count", "18446744073709551616"), "--count"),
            (&simulate("--seed", "18446744073709551616"), "--seed"),
            (
                &simulate("--start-at", "+010000-01-01T00:00Z"),
                "--start-at",
            ),
            (
                &simulate("--metrics-listen", "127.0.0.1:65536"),
                "--metrics-listen",
            ),
            (&spark("--interval", LONG), time),
            (&spark("--interval", "0s"), time),
            (&spark("--give-up-after", LONG), time),
        ],
    );
}

/// The extremes that are taken: nothing overflows, and a signal ends the wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_times_and_the_slowest_rates_are_waited_for() {
    let Some(reports) = Reports::make("extremes").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let slow = ["--rate", "0.000001", "--for", "876000h", "--tasks", "1"];
    let dated = [&slow[..2], &["--start-at", "0001-01-01T00:00:00Z"]].concat();
    for more in [&slow[..], &dated] {
        let arguments = reports.arguments(&[&["simulate"], more].concat());
        let program = std::path::Path::new(PRODUCER);
        let producer = Process::start(folder.path(), "simulate", program, &arguments);
        until("it simulates", Duration::from_secs(120), async || {
            producer.log().contains("simulating").then_some(())
        })
        .await;
        assert_eq!(producer.stop().await.code(), Some(0));
        let log = std::fs::read_to_string(folder.path().join("simulate.log")).unwrap();
        assert!(
            log.contains("sent 1 report of 1 task") && !log.contains("panicked"),
            "{log}"
        );
    }
    let late = ["--start-at", "9999-12-30T21:00:00Z", "--count", "3"];
    let output = reports.run(&[&["simulate"], &slow[..2], &late].concat(), b"");
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("behind the year 9999"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_is_named_after_program_and_host_unless_the_user_names_it() {
    let Some(reports) = Reports::make("named").await else {
        return;
    };
    let clients = NamedClients::of(&reports.bootstrap);
    let line = [
        "simulate",
        "--count",
        "1",
        "--rate",
        "0",
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        &clients.address,
    ];
    let named = run(PRODUCER, &line, &[]);
    assert!(named.status.success(), "{}", text(&named.stderr));
    assert_eq!(
        clients.take(),
        [format!("producer-simulate-{}", host_name())]
    );
    let own = [&line[..], &["-X", "client.id=ours"]].concat();
    assert!(run(PRODUCER, &own, &[]).status.success());
    assert_eq!(clients.take(), ["ours"]);
}

#[test]
fn a_broker_of_the_file_that_cannot_be_used_ends_a_program_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "bootstrap.servers = kafka://a:9092\n").unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(
        PRODUCER,
        &[
            "publish",
            "--kafka-config",
            path,
            "--bootstrap-servers",
            NOBODY,
        ],
        &[],
    );
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{error}");
    assert!(
        error.contains("bootstrap.servers: broker \"kafka://a:9092\""),
        "{error}"
    );
}

#[tokio::test]
async fn a_reporter_refuses_what_it_cannot_use() {
    let engine = schemas::EngineInstance::default;
    let long = [
        Options {
            interval: Duration::MAX,
            ..Options::new(NOBODY)
        },
        Options {
            first_after: Duration::MAX,
            ..Options::new(NOBODY)
        },
    ];
    for options in long {
        let refused = Reporter::with_options(options, engine()).err().unwrap();
        assert!(
            refused.to_string().contains("longer than 876000h"),
            "{refused}"
        );
    }
    let refused = Reporter::connect("kafka://a:9092", engine()).err().unwrap();
    assert!(
        refused.to_string().contains("kafka:// is not one of"),
        "{refused}"
    );
}
