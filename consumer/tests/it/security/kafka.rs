//! Rights, passwords and certificates of a broker.

use super::{
    AT_ONCE, As, Right, SECRET, Secured, WITHIN, assert_no_secrets, deployed, quiet, reports,
    rights, spark_log, without,
};
use futures_util::{StreamExt, stream};
use schemas::topics::{
    TASK_RUNNING_INFO, TASK_RUNNING_INFO_DEAD_LETTERS, TASK_RUNNING_INFO_EVENTS,
};
use service::testing::{ANY_PORT, NOBODY, until};
use tokio::sync::Mutex;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_service_works_with_the_rights_listed_and_says_which_one_is_missing() {
    let Some(secured) = Secured::share().await else {
        return;
    };
    let listed = deployed("deploy/kafka/acls");
    assert!(
        deployed("docs/src/running/security.md").contains(&listed),
        "the book lists other rights than deploy/kafka/acls"
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
    let followed = user("spark-log")
        .ends("spark-log", &spark_log(folder, "local-1"), 0)
        .await;
    assert!(followed.contains("sent 1 report "), "{followed}");

    // One right less. For redrives, a later failure would hide an earlier one.
    let redrive = "router dead-letters redrive --all";
    let turn = Mutex::new(());
    let publish = format!("producer publish {}", reports(folder));
    let run = format!("consumer run --database-url sqlite:{database}");
    let says_what_is_missing = async |right: Right| {
        let name = without(&right);
        let follow = spark_log(folder, &name);
        let (line, code) = match right.user.as_str() {
            "engine" => (&*publish, 78),
            "router" => ("router --instance-id r", 78),
            "consumer" => (&*run, 78),
            "dead-letters" => (redrive, 78),
            "spark-log" => (&*follow, 78),
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
        for message in [
            "kafka-acls.sh",
            &format!("User:{name} "),
            &resource,
            &operation,
        ] {
            assert!(
                error.contains(message),
                "{name} does not say {message:?}:\n{}",
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

/// A fault, the broker's address, overridden settings, and texts of the error.
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
        for message in [&[*bootstrap, "--kafka-config"], *reason].concat() {
            assert!(
                error.contains(message),
                "{message:?} is not in the last error of:\n{log}"
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
