//! Grants and TLS of PostgreSQL.

use super::{
    AT_ONCE, As, Guarded, SECRET, a_file_of_authorities_is_read_whole, assert_no_secrets, deployed,
    password, quiet,
};
use crate::strategies;
use crate::support::Pipeline;
use futures_util::{StreamExt, stream};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

/// One privilege on one table, from deploy/postgres/grants.sql.
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
        deployed("docs/src/running/security.md").contains(&listed),
        "the book lists other grants than deploy/postgres/grants.sql"
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

    // Before the tables exist.
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

    // Partition 0 is stored before the rights are revoked, partition 1 after; a consumer also stores the position of a
    // partition without records.
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

    // One grant less, each in its own database.
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
        let message = format!("permission denied for {kind} {table}");
        assert!(log.contains(&message), "{message}:\n{}", quiet(&log));
        if is_view(table) {
            return; // read by no program
        }
        assert!(
            log.contains("deploy/postgres/grants.sql"),
            "{}",
            quiet(&log)
        );
        // Errors from PostgreSQL's source, and advice that would not help.
        for wrong in [
            " at line ",
            "to migrate tables of an older version",
            "the owner of the tables has to",
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
    // Tables in a schema that a role may not use are invisible.
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
    // Tables in another schema belong to another installation.
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

    // A wrong host name, and a role without access.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_authorities_is_read_whole() {
    let Some(guarded) = Guarded::start().await else {
        return;
    };
    let made = "CREATE DATABASE verified OWNER taskrunning_owner";
    guarded.execute("postgres", made).await;
    let url = guarded.url("owner", "localhost", "verified");
    a_file_of_authorities_is_read_whole(&guarded.folder, &url, "PGPASSWORD");
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
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("query field pasword"), "{message}");
    assert!(!message.contains(SECRET), "{message}");
}
