//! No secret is ever shown.

use super::{
    As, CONSUMER, Guarded, SECRET, SUPERUSER, Secured, WITHIN, assert_no_secrets, password, quiet,
};
use service::testing::{ANY_PORT, Topic, create_topics, until};

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

    // Everything works.
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

    // Everything fails.
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
        let message = String::from_utf8(output.stderr).unwrap()
            + std::str::from_utf8(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(!message.contains(SECRET), "{message}");
        message
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
            let message = argument(program, &[&arguments[..], &["-X", &setting]].concat());
            assert!(message.contains("--kafka-config"), "{message}");
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
