//! Grafana's dashboard of tasks: its queries, run with its role on a real PostgreSQL.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use schemas::TaskStatus::{self, Failed, Running, Scheduled, Succeed, Unknown};
use schemas::{ResourceWithStatus, TaskRunningInfoEvent};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection};

use crate::strategies;
use crate::support::{Cluster, Pipeline, execute};

const ROLE: &str = "taskrunning_grafana";
const DASHBOARD: &str = "deploy/observe/grafana/dashboards/tasks.json";
const SOURCE: &str = "deploy/observe/grafana/datasources/tasks.yml";

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// Title and query of each panel.
fn queries(dashboard: &Value) -> Vec<(&str, &str)> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            queries.push((title, target["rawSql"].as_str().unwrap()));
        }
    }
    queries
}

/// Reports of 24 tasks. The last report of a task is from a clock that is ahead, or old enough that only tasks with
/// short intervals are silent.
fn events(now: Timestamp) -> Vec<TaskRunningInfoEvent> {
    const STATUSES: [TaskStatus; 6] = [Running, Scheduled, Unknown, Running, Succeed, Failed];
    let mut events = Vec::new();
    for task in 0..24_i64 {
        let interval = [5, 20, 100][task as usize % 3];
        let age = if task / 6 % 2 == 0 { -120 } else { 150 };
        for report in 0..12 {
            let mut event = strategies::sample_event();
            let info = &mut event.info;
            info.exec_id = format!("exec-{task}");
            info.engine.user = format!("user-{}", task % 4);
            info.engine.engine_type = ["spark", "flink"][task as usize % 2].to_owned();
            info.sequence = report;
            let ago = SignedDuration::from_secs(age + (11 - report) * interval);
            info.reported_at = (now - ago).as_microsecond();
            info.status = match report {
                11 => STATUSES[task as usize / 3 % 6],
                _ => Running,
            };
            let held = ResourceWithStatus {
                queue_memory: (1 + task) << 30,
                queue_cores: 1 + report as i32 % 3,
                queue_instances: 1,
                ..ResourceWithStatus::default()
            };
            // Two tasks share one.
            let application = format!("application-{}", task / 2);
            info.resource.as_mut().unwrap().applications = [(application, held)].into();
            events.push(event);
        }
    }
    events
}

/// Rows as JSON.
async fn rows(connection: &mut PgConnection, select: &str) -> sqlx::Result<Vec<Value>> {
    let select = format!("SELECT to_jsonb(panel)::text FROM ({select}) AS panel");
    let rows: Vec<(String,)> = sqlx::query_as(AssertSqlSafe(select))
        .fetch_all(connection)
        .await?;
    let parsed = rows
        .iter()
        .map(|(text,)| serde_json::from_str(text).unwrap());
    Ok(parsed.collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn grafana_agrees_with_consumer_tasks_and_reads_nothing_else() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 1, "").await else {
        return;
    };
    execute(&cluster.url, &format!("CREATE ROLE {ROLE} LOGIN")).await;
    // Milliseconds, as in Grafana: PostgreSQL rounds finer times to microseconds, `consumer` truncates them.
    let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap();
    pipeline.send_events(&events(now));
    pipeline.store_all().await;
    let views = deployed("deploy/postgres/dashboards.sql");
    for _ in 0..2 {
        pipeline.execute(&views).await; // the second time in place of the first ones
    }

    let options: PgConnectOptions = pipeline.database_url.parse().unwrap();
    let mut grafana = PgConnection::connect_with(&options.username(ROLE))
        .await
        .unwrap();
    let (from, to) = (
        now - SignedDuration::from_mins(30),
        now - SignedDuration::from_secs(1),
    );
    let dashboard: Value = serde_json::from_str(&deployed(DASHBOARD)).unwrap();
    let mut shown = BTreeMap::new();
    for (title, query) in queries(&dashboard) {
        // In Grafana's format.
        let query = query
            .replace("$__timeFrom()", &format!("'{from}'"))
            .replace("$__timeTo()", &format!("'{to}'"));
        assert!(!query.contains("$__"), "{title}: {query}");
        let rows = rows(&mut grafana, &query).await;
        let rows = rows.unwrap_or_else(|error| panic!("{title}: {error}: {query}"));
        assert!(!rows.is_empty(), "{title}: {query}");
        shown.insert(title.to_owned(), rows);
    }

    let listed = |filter: &str| {
        let printed = pipeline.ask(&["tasks", filter, "--limit", "0", "--json"]);
        let listed: Value = serde_json::from_str(&printed).unwrap();
        let items = listed.as_array().unwrap();
        let names = items
            .iter()
            .map(|item| item["exec_id"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    };
    let names = |title: &str| {
        let rows = shown[title].iter();
        let mut names: Vec<String> = rows
            .map(|row| row["exec_id"].as_str().unwrap().to_owned())
            .collect();
        names.sort_unstable();
        names
    };
    let (running, silent) = (listed("--running"), listed("--silent"));
    assert!(
        silent.len() >= 4 && running.len() > silent.len(),
        "{silent:?} of {running:?}"
    );
    assert_eq!(shown["Running"][0]["running"], running.len());
    assert_eq!(shown["Silent"][0]["silent"], silent.len());
    assert_eq!(names("Slowest"), running);
    assert_eq!(names("Silent the longest"), silent);
    for title in ["Running, by type of engine", "Running, by engine"] {
        let tasks = shown[title]
            .iter()
            .map(|row| row["tasks"].as_u64().unwrap());
        assert_eq!(tasks.sum::<u64>(), running.len() as u64, "{title}");
    }

    for (title, by, key) in [
        ("Usage, by user", "user", "engine_user"),
        ("Usage, by type of engine", "engine-type", "engine_type"),
    ] {
        let (from, to) = (from.to_string(), to.to_string());
        let printed = pipeline.ask(&["usage", "--from", &from, "--to", &to, "--by", by, "--json"]);
        let usage: Value = serde_json::from_str(&printed).unwrap();
        let items = usage["items"].as_array().unwrap();
        assert_eq!(shown[title].len(), items.len(), "{title}");
        for item in items {
            let same = |row: &&Value| row[key] == item["key"];
            let row = shown[title].iter().find(same).expect(title);
            for (hours, seconds, unit) in [
                ("core_hours", "core_seconds", 1.0),
                ("gib_hours", "memory_byte_seconds", 1_073_741_824.0),
            ] {
                let expected = item[seconds].as_f64().unwrap() / 3600.0 / unit;
                let found = row[hours].as_f64().unwrap();
                assert!(
                    (found - expected).abs() <= 1e-9 * expected,
                    "{title}: {row} {item}"
                );
            }
        }
    }

    // The role can read these views, and can neither read nor change anything else.
    let may = "SELECT format('%s.%s', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND c.relkind IN ('r', 'v', 'm', 'S', 'p', 'f')";
    let of_kind = |rights: &str, sequence: &str| {
        format!(
            "{may} AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('{ROLE}', c.oid, '{sequence}') \
             ELSE has_any_column_privilege('{ROLE}', c.oid, '{rights}') OR has_table_privilege('{ROLE}', c.oid, '{rights}') END"
        )
    };
    let readable = of_kind("SELECT", "SELECT") + " ORDER BY name";
    let readable = rows(&mut grafana, &readable).await.unwrap();
    let readable: Vec<&str> = readable
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    let views = ["dashboards.held_resources", "dashboards.open_tasks"];
    assert_eq!(readable, views);
    let changeable = of_kind("INSERT, UPDATE, REFERENCES", "USAGE, UPDATE");
    let changeable = rows(&mut grafana, &changeable).await.unwrap();
    assert!(changeable.is_empty(), "{changeable:?}");
    for statement in [
        "SELECT * FROM task",
        "SELECT * FROM task_progress_history",
        "DELETE FROM dashboards.open_tasks",
        "CREATE TABLE dashboards.mine (a int)",
        "CREATE TABLE public.mine (a int)",
    ] {
        let refused = sqlx::raw_sql(statement).execute(&mut grafana).await;
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains("permission denied") || error.contains("cannot delete from view"),
            "{statement}: {error}"
        );
    }
    grafana.close().await.unwrap();
}

#[test]
fn the_dashboard_reads_the_provisioned_source() {
    let source = deployed(SOURCE);
    for line in [
        "    uid: tasks",
        "    type: grafana-postgresql-datasource",
        &format!("    user: {ROLE}"),
        "      password: $__file{/run/secrets/grafana-postgres-password}",
    ] {
        assert!(source.lines().any(|it| it == line), "{line}");
    }
    let dashboard: Value = serde_json::from_str(&deployed(DASHBOARD)).unwrap();
    let own = serde_json::json!({"type": "grafana-postgresql-datasource", "uid": "tasks"});
    let mut ids = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert_eq!(panel["datasource"], own);
        ids.push(panel["id"].as_u64().unwrap());
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"], own);
            assert_eq!(target["format"], "table");
            assert_eq!(target["rawQuery"], true);
        }
    }
    assert_eq!(ids, Vec::from_iter(1..=ids.len() as u64));
    let compose = deployed("deploy/compose.yaml");
    assert!(compose.contains("/deploy/postgres/dashboards.sql"));
}
