//! A test's own pipeline: topics, a database, and the programs running on them.

mod account;
mod audit;
mod kinds;
mod outside;
mod program;
mod proxy;
mod server;

pub(crate) use account::{BAD, coordinates, headers, numbered, varied_parts};
pub(crate) use audit::{Audited, Finding, findings};
pub(crate) use kinds::{
    KINDS, Kind, SERVERS, on, on_every_database, on_servers, on_sqlite_and_postgres,
};
pub(crate) use outside::{Broker, Cluster, Pooler, SmallDisk, run};
pub(crate) use program::Program;
pub(crate) use proxy::Proxy;
pub(crate) use server::{Answered, Server};

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::{TaskRunningInfo, TaskRunningInfoEvent};
use service::health::Health;
use service::kafka::KafkaOptions;
use service::testing::{Topic, create_topics, kafka, service, unique, until};
use service::threads::on_this_thread;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::sql::{Sql, Texts};

pub(crate) struct Pipeline {
    pub(crate) kind: Kind,
    pub(crate) bootstrap: String,
    pub(crate) source: String,
    pub(crate) events: String,
    pub(crate) letters: String,
    pub(crate) database_url: String,
    pub(crate) partitions: i32,
    folder: TempDir,
}

#[derive(Parser)]
struct RouterArguments {
    #[command(flatten)]
    config: router::Config,
}

#[derive(Parser)]
struct ConsumerArguments {
    #[command(flatten)]
    config: consumer::Config,
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    database: consumer::DatabaseOptions,
}

/// A router or consumer inside the test, on its own thread and runtime.
pub(crate) struct Running {
    thread: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Running {
    fn start<F: Future<Output = anyhow::Result<()>>>(
        run: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) -> Self {
        let stop = CancellationToken::new();
        let shutdown = stop.clone();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Runtime::new()
                .unwrap()
                .block_on(run(shutdown))
        });
        Self { thread, stop }
    }

    /// Does not block a thread, so that a test whose consumer keeps running can end.
    async fn ended(self) -> anyhow::Result<()> {
        until("the consumer ends", Duration::from_secs(120), async || {
            self.thread.is_finished().then_some(())
        })
        .await;
        self.thread.join().unwrap()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.ended().await.unwrap();
    }

    /// The error that it ends with by itself.
    pub(crate) async fn error(self) -> String {
        format!("{:#}", self.ended().await.unwrap_err())
    }
}

impl Pipeline {
    /// Topics with this many partitions each, and an empty database; `None` if a service is absent.
    pub(crate) async fn make(kind: Kind, partitions: i32) -> Option<Self> {
        let server = match kind {
            Kind::Sqlite => None,
            Kind::Postgres => Some(service("TEST_POSTGRES_URL")?),
            Kind::Mariadb => Some(service("TEST_MARIADB_URL")?),
        };
        Self::make_on(server.as_deref(), partitions, "").await
    }

    /// The same with a database on this server, created with these options, or on SQLite.
    pub(crate) async fn make_on(
        server: Option<&str>,
        partitions: i32,
        options: &str,
    ) -> Option<Self> {
        let bootstrap = kafka()?;
        let folder = tempfile::tempdir().unwrap();
        let name = unique("storing");
        let (kind, database_url) = match server {
            None => (
                Kind::Sqlite,
                format!("sqlite:{}", folder.path().join("tasks.db").display()),
            ),
            Some(server) => {
                let database = name.replace('-', "_");
                execute(server, &format!("CREATE DATABASE {database} {options}")).await;
                let (host, _) = server.rsplit_once('/').unwrap();
                let kind = match server.starts_with("postgres") {
                    true => Kind::Postgres,
                    false => Kind::Mariadb,
                };
                (kind, format!("{host}/{database}"))
            }
        };
        let (source, events, letters) = (
            name.clone(),
            format!("{name}-events"),
            format!("{name}-letters"),
        );
        let topic = |name, partitions| Topic {
            name,
            partitions,
            settings: &[],
        };
        create_topics(
            &bootstrap,
            &[
                topic(&source, partitions),
                topic(&events, partitions),
                topic(&letters, 1),
            ],
        )
        .await;
        Some(Self {
            kind,
            bootstrap,
            source,
            events,
            letters,
            database_url,
            partitions,
            folder,
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn router(&self) -> Running {
        let mut arguments = vec!["router"];
        arguments.extend(self.router_arguments());
        arguments.extend(["--instance-id", "r"]);
        let config = RouterArguments::parse_from(arguments).config;
        Running::start(move |shutdown| router::run(config, Arc::new(Health::default()), shutdown))
    }

    /// The arguments of a router for this pipeline, without its instance id; also for its audit.
    pub(crate) fn router_arguments(&self) -> Vec<&str> {
        vec![
            "--bootstrap-servers",
            &self.bootstrap,
            "--source-topic",
            &self.source,
            "--events-topic",
            &self.events,
            "--dead-letters-topic",
            &self.letters,
            "--group",
            &self.source,
        ]
    }

    /// The arguments of `consumer run` for this pipeline.
    pub(crate) fn consumer_arguments(&self) -> Vec<&str> {
        vec![
            "--bootstrap-servers",
            &self.bootstrap,
            "--events-topic",
            &self.events,
            "--dead-letters-topic",
            &self.letters,
            "--database-url",
            &self.database_url,
        ]
    }

    pub(crate) fn consumer(&self, more: &[&str]) -> Running {
        let mut arguments = vec!["consumer"];
        arguments.extend(self.consumer_arguments());
        if !more.contains(&"--group") {
            arguments.extend(["--group", &self.events]);
        }
        arguments.extend(more);
        let ConsumerArguments {
            config,
            kafka,
            database,
        } = ConsumerArguments::parse_from(arguments);
        Running::start(async move |shutdown| {
            let health = Arc::new(Health::default());
            on_this_thread(consumer::run(config, kafka, database, health, shutdown))?
        })
    }

    /// Runs a consumer until it has stored all events.
    pub(crate) async fn store_all(&self) {
        let consumer = self.consumer(&[]);
        self.until_all_stored(Duration::from_secs(120)).await;
        consumer.stop().await;
    }

    /// Sends keyed values to a topic, to the given partition or the key's own.
    pub(crate) fn send(&self, topic: &str, records: &[(&str, Vec<u8>, Option<i32>)]) {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("partitioner", "murmur2_random")
            .create()
            .unwrap();
        for (key, value, partition) in records {
            let mut record = BaseRecord::<str, [u8]>::to(topic).key(key).payload(value);
            record.partition = *partition;
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    pub(crate) fn send_infos(&self, infos: &[TaskRunningInfo]) {
        let records: Vec<_> = infos
            .iter()
            .map(|info| {
                (
                    info.exec_id.as_str(),
                    schemas::encode_info(info).unwrap(),
                    None,
                )
            })
            .collect();
        self.send(&self.source, &records);
    }

    /// Sends events, all to partition 0 to keep their order.
    pub(crate) fn send_events(&self, events: &[TaskRunningInfoEvent]) {
        let records: Vec<_> = events
            .iter()
            .map(|event| {
                (
                    event.info.exec_id.as_str(),
                    schemas::encode_event(event).unwrap(),
                    Some(0),
                )
            })
            .collect();
        self.send(&self.events, &records);
    }

    /// Waits until a count in the database reaches `count`.
    pub(crate) async fn until_count(&self, select: &str, count: i64) {
        until(
            &format!("{select} gives {count}"),
            Duration::from_secs(120),
            async || (self.count(select).await >= count).then_some(()),
        )
        .await;
    }

    /// A count; 0 while there is no database or table.
    pub(crate) async fn count(&self, select: &str) -> i64 {
        let Ok(mut connection) = Sql::connect(&self.database_url).await else {
            return 0;
        };
        let count = connection.number(select).await;
        connection.close().await;
        count.unwrap_or(0)
    }

    /// SQL: the sum of a part's stored offsets, which is the number of records if there are no commit markers.
    pub(crate) fn stored(part: &str) -> String {
        format!(
            "SELECT CAST(coalesce(sum(next_offset), 0) AS bigint) FROM consumed_offset WHERE part = '{part}'"
        )
    }

    /// The rows of a query, each value as text.
    pub(crate) async fn rows(&self, select: &str) -> Vec<Vec<Option<String>>> {
        let mut connection = connect(&self.database_url).await;
        let rows = connection.rows(select).await.unwrap();
        connection.close().await;
        rows.into_iter().map(|Texts(row)| row).collect()
    }

    /// All tables as text, in the same form and order for every database. Keys of tasks are resolved to exec ids.
    pub(crate) async fn contents(&self) -> Vec<Vec<Vec<Option<String>>>> {
        let postgres = self.kind == Kind::Postgres;
        let micros = |column: &str| match postgres {
            true => format!("(extract(epoch FROM {column}) * 1000000)::bigint::text"),
            false => format!("CAST({column} AS text)"),
        };
        let array = |column: &str| match postgres {
            true => format!("replace(array_to_json({column})::text, ', ', ',')"),
            false => column.to_owned(),
        };
        let truth = |column: &str| match postgres {
            true => format!("CAST({column}::int AS text)"),
            false => format!("CAST({column} AS text)"),
        };
        let text = |columns: &[&str]| {
            columns
                .iter()
                .map(|c| format!("CAST({c} AS text)"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        // Without jobs, PostgreSQL has an empty outer array.
        let job_tasks = match postgres {
            true => {
                "coalesce(array_to_json(nullif(job_tasks, '{}'))::text, CASE job_tasks WHEN '{}' THEN '[[],[],[],[]]' END)"
            }
            false => "job_tasks",
        };
        let task = format!(
            "SELECT {}, {}, {}, {}, {} FROM task ORDER BY exec_id",
            text(&[
                "exec_id",
                "job_id",
                "engine_instance",
                "engine_type",
                "engine_user",
                "ticket_id",
                "status",
                "sequence",
                "event_partition",
                "event_offset"
            ]),
            truth("is_final"),
            micros("reported_at"),
            micros("first_reported_at"),
            micros("ended_at"),
        );
        let progress = format!(
            "SELECT {}, {}, {}, {}, {} FROM task_progress h JOIN task t USING (task_id) \
             ORDER BY h.event_partition, h.event_offset",
            text(&[
                "exec_id",
                "h.event_partition",
                "h.event_offset",
                "h.sequence",
                "h.status"
            ]),
            micros("h.reported_at"),
            array("job_ids"),
            job_tasks,
            array("adjustments"),
        );
        let resource = format!(
            "SELECT {}, {} FROM task_resource h JOIN task t USING (task_id) \
             ORDER BY h.event_partition, h.event_offset, application_id",
            text(&[
                "exec_id",
                "h.event_partition",
                "h.event_offset",
                "application_id",
                "memory_bytes",
                "cores",
                "instances",
                "queue",
                "h.status"
            ]),
            micros("h.reported_at"),
        );
        let metrics = format!(
            "SELECT {}, {} FROM task_metrics h JOIN task t USING (task_id) ORDER BY h.event_partition, h.event_offset",
            text(&[
                "exec_id",
                "h.event_partition",
                "h.event_offset",
                "engine_running_tasks",
                "metrics"
            ]),
            micros("h.reported_at"),
        );
        let mut contents = Vec::new();
        for select in [task, progress, resource, metrics] {
            let mut rows = self.rows(&select).await;
            // The databases collate text differently.
            rows.sort();
            contents.push(rows);
        }
        contents
    }

    /// The progress values of all reports, by partition and offset.
    pub(crate) async fn progress(&self) -> Vec<Option<f64>> {
        let mut connection = connect(&self.database_url).await;
        let select = "SELECT progress FROM task_progress ORDER BY event_partition, event_offset";
        let rows: Vec<(Option<f64>,)> = connection.rows(select).await.unwrap();
        connection.close().await;
        rows.into_iter().map(|(progress,)| progress).collect()
    }

    /// Inserts the rows of a table that satisfy a condition once more.
    pub(crate) async fn double(&self, table: &str, condition: &str) {
        let columns = match self.kind {
            // Rows have keys.
            Kind::Mariadb => {
                let select = format!(
                    "SELECT CAST(group_concat(column_name) AS char) FROM information_schema.columns \
                     WHERE table_schema = database() AND table_name = '{table}' AND column_name <> 'row_id'"
                );
                self.rows(&select).await[0][0].clone().unwrap()
            }
            Kind::Sqlite | Kind::Postgres => "*".to_owned(),
        };
        let into = match columns.as_str() {
            "*" => String::new(),
            columns => format!("({columns})"),
        };
        self.execute(&format!(
            "INSERT INTO {table} {into} SELECT {columns} FROM {table} WHERE {condition}"
        ))
        .await;
    }

    /// Executes a statement.
    pub(crate) async fn execute(&self, statement: &str) {
        execute(&self.database_url, statement).await;
    }
}

/// Executes statements.
pub(crate) async fn execute(url: &str, statements: &str) {
    let mut connection = connect(url).await;
    connection.run(statements).await.unwrap();
    connection.close().await;
}

pub(crate) async fn connect(url: &str) -> Sql {
    Sql::connect(url).await.unwrap()
}
