//! Valid and invalid values of the router's options and variables.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use crate::support::{Settings, Topics};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use service::settings::host_name;
use service::testing::settings::{NamedClients, refuses, run, takes_blank_variables_as_unset};
use service::testing::{ASK, Process, kafka, until};

const ROUTER: &str = env!("CARGO_BIN_EXE_router");
const ABSENT: [&str; 2] = ["--kafka-config", "/absent.conf"];

#[test]
fn blank_variables_are_unset_in_every_command() {
    let with = |command: &[&'static str]| [command, &ABSENT].concat();
    takes_blank_variables_as_unset(
        ROUTER,
        &[
            (&with(&[]), "/absent.conf"),
            (&with(&["audit"]), "/absent.conf"),
            (&with(&["dead-letters", "list"]), "/absent.conf"),
            (&with(&["dead-letters", "show", "0:0"]), "/absent.conf"),
            (&with(&["dead-letters", "redrive", "--all"]), "/absent.conf"),
        ],
    );
}

#[test]
fn invalid_arguments_are_refused_at_once() {
    let list = |option, value| ["dead-letters", "list", option, value];
    let kinds = "[possible values: NoValue, Empty, UnknownFraming, UnknownSchema,";
    let interval = "--commit-interval-ms";
    let many = "18446744073709551616";
    refuses(
        ROUTER,
        &[
            (
                &["--instance-id", ""],
                "--instance-id <ID> has an empty value",
            ),
            (
                &["--instance-id", " "],
                "--instance-id <ID> has an empty value",
            ),
            (&["--bootstrap-servers", ""], "an address is empty"),
            (
                &["--bootstrap-servers", "http://a"],
                "http:// is not one of",
            ),
            (&["-X", "bootstrap.servers=a:99999"], "port \"99999\""),
            (&list("--reason", "Nonsense"), kinds),
            (&["dead-letters", "redrive", "--reason", "nosuch"], kinds),
            (
                &list("--service", "nosuch"),
                "[possible values: router, consumer, producer]",
            ),
            (
                &["dead-letters", "list", "--source-partition=-1"],
                "--source-partition",
            ),
            (
                &list("--source-topic", ""),
                "--source-topic <TOPIC> has an empty value",
            ),
            (
                &list("--since", "-2562047788015215h"),
                "in the years 1 to 9999",
            ),
            (
                &list("--since", "-000001-01-01T00:00Z"),
                "in the years 1 to 9999",
            ),
            (&list("--limit", many), "--limit"),
            (
                &["dead-letters", "show", "0:9223372036854775808"],
                "PARTITION:OFFSET",
            ),
            (
                &["dead-letters", "redrive", "--all", "--max-records", "0"],
                "--max-records",
            ),
            (
                &["audit", "--from", "offset:0=9223372036854775808"],
                "PARTITION=OFFSET",
            ),
            (
                &["audit", "--from", "-9223372036854775807s"],
                "a time back from now",
            ),
            (&["audit", "--examples", many], "--examples"),
            (&["--source-topic", "a b"], "a topic's name has"),
            (
                &["--dead-letters-topic", "task-running-info"],
                "--source-topic and --dead-letters-topic are both task-running-info",
            ),
            (
                &["audit", "--events-topic", "task-running-info"],
                "--source-topic and --events-topic are both task-running-info",
            ),
            (&["--instance-id", "a\"b"], "the character '\"'"),
            (&["-X", "client.id=a\\b"], "client.id"),
            (&[interval, "20001"], interval),
            (&[interval, "18446744073709551615"], interval),
            (&["--max-records", "0"], "--max-records"),
            (
                &["--max-rejects-in-a-row", "4294967296"],
                "--max-rejects-in-a-row",
            ),
            (
                &["--max-rejects-per-1000", "1001"],
                "--max-rejects-per-1000",
            ),
        ],
    );
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_with_a_blank_instance_id_has_its_hosts_name_and_its_clients_too() {
    let Some(bootstrap) = kafka() else { return };
    let clients = NamedClients::of(&bootstrap);
    let mut topics = Topics::make(bootstrap, 1, Settings::default()).await;
    let broker = std::mem::replace(&mut topics.bootstrap, clients.address.clone());
    let folder = tempfile::tempdir().unwrap();
    for (instance, name) in [("", host_name()), ("router-7", "router-7".to_owned())] {
        let variables = [("ROUTER_INSTANCE_ID", instance)];
        let program = Path::new(ROUTER);
        let arguments = topics.arguments();
        let router = Process::start_with(folder.path(), &name, program, &arguments, &variables);
        let id = format!("{}-{name}", topics.source);
        until("it routes", Duration::from_secs(120), async || {
            let log = router.log();
            (log.contains("routing ") && log.contains(&id)).then_some(())
        })
        .await;
        let client = format!("router-{}", name.trim_start_matches("router-"));
        let asking: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &broker)
            .create()
            .unwrap();
        let within = Duration::from_secs(120);
        until("its member has the client's name", within, async || {
            let groups = asking.fetch_group_list(Some(&topics.source), ASK).ok()?;
            let members = groups.groups().first()?.members();
            let is_named = members.iter().any(|member| member.client_id() == client);
            is_named.then_some(())
        })
        .await;
        assert_eq!(router.stop().await.code(), Some(0));
        assert_eq!(clients.take(), [client]);
    }
    let of_letters = [
        "--bootstrap-servers",
        &topics.bootstrap,
        "--dead-letters-topic",
        &topics.letters,
    ];
    let list = [&["dead-letters", "list"], &of_letters[..]].concat();
    let audit = [&["audit"], &topics.arguments()[..]].concat();
    for (line, name) in [(list, "router-dead-letters"), (audit, "router-audit")] {
        let log = stderr(&run(ROUTER, &line, &[]));
        let expected = format!("{name}-{}", host_name());
        assert_eq!(clients.take(), [expected], "{line:?}: {log}");
    }
}

/// Maximum offsets.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_offset_does_not_overflow() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, Settings::default()).await;
    let last = "0:9223372036854775807";
    let of_letters = [
        "--bootstrap-servers",
        &topics.bootstrap,
        "--dead-letters-topic",
        &topics.letters,
    ];
    let from = "offset:0=9223372036854775807";
    let lines = [
        [&["dead-letters", "show", last], &of_letters[..]].concat(),
        [&["dead-letters", "redrive", last], &of_letters[..]].concat(),
        [&["audit", "--from", from], &topics.arguments()[..]].concat(),
        [&["audit", "--to", from], &topics.arguments()[..]].concat(),
    ];
    for line in lines {
        let output = run(ROUTER, &line, &[]);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {error}");
        assert!(!error.contains("panicked"), "{line:?}: {error}");
    }
}
