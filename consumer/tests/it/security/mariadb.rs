//! Grants and TLS of MariaDB.

use super::{
    As, SECRET, a_file_of_authorities_is_read_whole, assert_no_secrets, deployed,
    make_certificates, password, quiet,
};
use crate::strategies;
use crate::support::{Cluster, Pipeline, execute};

/// Privilege, table and user of each line of deploy/mysql/grants.sql.
fn grants() -> Vec<(String, String, String)> {
    let mut grants = Vec::new();
    for line in deployed("deploy/mysql/grants.sql").lines() {
        let Some(grant) = line.strip_prefix("GRANT ") else {
            continue;
        };
        let (privileges, rest) = grant.split_once(" ON ").unwrap();
        let (table, user) = rest
            .trim_end_matches(';')
            .split_once(" TO taskrunning_")
            .unwrap();
        for privilege in privileges.split(", ") {
            grants.push((privilege.to_owned(), table.to_owned(), user.to_owned()));
        }
    }
    grants
}

/// The URL of a database, which verifies the server by the file ca.pem.
fn url(server: &Cluster, user: &str, host: &str, database: &str) -> String {
    let (address, _) = server.url.rsplit_once('/').unwrap();
    let (_, port) = address.rsplit_once(':').unwrap();
    let authority = server.folder().join("ca.pem");
    format!(
        "mariadb://taskrunning_{user}@{host}:{port}/{database}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}",
        authority.display()
    )
}

/// A server with TLS and the three users, who have to use it.
async fn guarded() -> Option<Cluster> {
    let server = Cluster::mariadb(|folder| {
        use std::os::unix::fs::PermissionsExt;
        make_certificates(folder);
        let everybody = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.join("server.key"), everybody).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        vec![
            format!("ssl-cert={}", file("server.pem")),
            format!("ssl-key={}", file("server.key")),
        ]
    })?;
    for user in ["owner", "writer", "reader"] {
        let create = format!(
            "CREATE USER taskrunning_{user} IDENTIFIED BY '{}' REQUIRE SSL",
            password(user)
        );
        execute(&server.url, &create).await;
    }
    Some(server)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn each_user_works_with_the_grants_listed_and_says_which_table_a_missing_one_is_about() {
    let Some(server) = guarded().await else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&server.url), 1, "").await else {
        return;
    };
    let folder = pipeline.folder();
    let database = pipeline.database();
    let url = |user: &str, host: &str| url(&server, user, host, database);
    let user = |user: &str| {
        As::anybody(folder, &pipeline.bootstrap)
            .and("MYSQL_PWD", &password(user))
            .and("DATABASE_URL", &url(user, "localhost"))
            .and("EVENTS_TOPIC", &pipeline.events)
            .and("DEAD_LETTERS_TOPIC", &pipeline.letters)
    };
    let run = format!("consumer run --group {}", pipeline.events);
    let say_so = |log: &str| assert!(log.contains("deploy/mysql/grants.sql"), "{}", quiet(log));

    // Before there are tables and rights.
    say_so(&user("writer").ends("early", &run, 78).await);
    execute(
        &server.url,
        &format!("GRANT ALL ON {database}.* TO taskrunning_owner"),
    )
    .await;
    user("owner").ends("migrate", "consumer migrate", 0).await;
    pipeline.execute(&deployed("deploy/mysql/grants.sql")).await;

    let mut sent = 0;
    let mut send = || {
        let mut event = strategies::sample_event();
        (event.info.exec_id, event.info.sequence) = ("exec-1".to_owned(), sent);
        sent += 1;
        pipeline.send_events(&[event]);
    };
    send();
    let writer = user("writer").start("writer", &run);
    pipeline.until_count(&Pipeline::stored("metrics"), 1).await;
    assert_eq!(writer.stop().await.code(), Some(0));
    for command in ["consumer audit", "consumer tasks", "consumer task exec-1"] {
        let log = user("reader").ends("reads", command, 0).await;
        assert!(
            command == "consumer audit" || log.contains("exec-1"),
            "{log}"
        );
    }

    for (i, (privilege, table, of)) in grants().into_iter().enumerate() {
        let name = format!("{of}-without-{privilege}-on-{table}-{i}");
        let (revoke, grant) = (
            format!("REVOKE {privilege} ON {table} FROM taskrunning_{of}"),
            format!("GRANT {privilege} ON {table} TO taskrunning_{of}"),
        );
        pipeline.execute(&revoke).await;
        send();
        let log = match of.as_str() {
            _ if table.ends_with("_history") => String::new(), // read by no program
            "writer" => user(&of).ends(&name, &run, 78).await,
            _ => user(&of).ends(&name, "consumer audit", 2).await,
        };
        if !log.is_empty() {
            say_so(&log);
            assert!(log.contains(&table), "{table}:\n{}", quiet(&log));
        }
        pipeline.execute(&grant).await;
    }
    let writer = user("writer").start("writer-again", &run);
    pipeline
        .until_count(&Pipeline::stored("metrics"), sent)
        .await;
    assert_eq!(writer.stop().await.code(), Some(0));

    let file = server.folder().join("password");
    std::fs::write(&file, password("reader")).unwrap();
    let by_file = As::anybody(folder, &pipeline.bootstrap)
        .and("MYSQL_PWD_FILE", file.to_str().unwrap())
        .and("DATABASE_URL", &url("reader", "localhost"));
    by_file.ends("by-file", "consumer tasks", 0).await;
    for (name, url, reason) in [
        (
            "wrong-host",
            url("reader", "127.0.0.1"),
            "certificate verify failed",
        ),
        (
            "wrong-authority",
            url("reader", "localhost").replace("ca.pem", "other-ca.pem"),
            "certificate verify failed",
        ),
        (
            "without-tls",
            url("reader", "localhost").replace("VERIFY_IDENTITY", "DISABLED"),
            "Access denied",
        ),
        (
            "absent-authority",
            url("reader", "localhost").replace("ca.pem", "absent.pem"),
            "No such file",
        ),
        (
            "wrong-password",
            url("writer", "localhost"),
            "Access denied",
        ),
    ] {
        let program = user("reader").and("DATABASE_URL", &url);
        let log = program.ends(name, "consumer tasks", 78).await;
        assert!(log.contains(reason), "{reason}:\n{}", quiet(&log));
    }
    assert_no_secrets(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_authorities_is_read_whole_for_mariadb() {
    let Some(server) = guarded().await else {
        return;
    };
    let made = "CREATE DATABASE verified; GRANT ALL ON verified.* TO taskrunning_owner";
    execute(&server.url, made).await;
    let url = url(&server, "owner", "localhost", "verified");
    a_file_of_authorities_is_read_whole(server.folder(), &url, "MYSQL_PWD");
}

#[test]
fn a_password_in_a_url_on_the_command_line_is_refused() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["tasks", "--database-url"])
        .arg(format!("mysql://somebody:{SECRET}@127.0.0.1:1/x"))
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("MYSQL_PWD_FILE"), "{message}");
    assert!(!message.contains(SECRET), "{message}");
}
