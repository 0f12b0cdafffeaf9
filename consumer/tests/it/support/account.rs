//! Sends many events, and checks where each of them went.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::TaskRunningInfoEvent;
use service::testing::{ASK, read_all, reader, until};

use super::{Kind, Pipeline, connect, execute, run};

/// A value that no router writes.
pub(crate) const BAD: &[u8] = b"no event";

/// The `i`th of many events: of 97 tasks, each of which counts its reports.
pub(crate) fn numbered(sample: &TaskRunningInfoEvent, i: usize) -> TaskRunningInfoEvent {
    let mut event = sample.clone();
    event.info.exec_id = format!("exec-{:02}", i % 97);
    event.info.sequence = (i / 97) as i64;
    event.info.reported_at += i as i64;
    event
}

/// [`numbered`], but some lack a part or adjustments, and some have more applications.
pub(crate) fn varied_parts(sample: &TaskRunningInfoEvent, i: usize) -> TaskRunningInfoEvent {
    let mut event = numbered(sample, i);
    if i.is_multiple_of(7) {
        event.info.progress = None;
    }
    if i.is_multiple_of(5) {
        event.info.resource = None;
    }
    if i.is_multiple_of(11) {
        event.info.metrics = None;
    }
    if i.is_multiple_of(3) {
        event.adjustments.clear();
    }
    if let (Some(resource), true) = (&mut event.info.resource, i.is_multiple_of(4)) {
        let first = resource.applications["app-1"].clone();
        resource.applications.insert("ÿ-app".into(), first.clone());
        resource.applications.insert("app-0".into(), first);
    }
    event
}

impl Pipeline {
    /// Sends `count` values, to each partition in turn, and waits until the broker has them.
    pub(crate) fn fill(&self, count: usize, value: impl Fn(usize) -> Vec<u8>) {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("batch.size", "500000")
            .set("compression.type", "lz4")
            .set("message.max.bytes", "1100000")
            .create()
            .unwrap();
        for i in 0..count {
            let value = value(i);
            let key = format!("key-{i}");
            let mut record = BaseRecord::<str, [u8]>::to(&self.events)
                .key(&key)
                .payload(&value)
                .partition((i % self.partitions as usize) as i32);
            while let Err((error, back)) = producer.send(record) {
                let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                assert_eq!(error, full);
                std::thread::sleep(Duration::from_millis(5));
                record = back;
            }
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }

    /// Sends `count` numbered events; each `bad_every`th record is no event (0: none).
    pub(crate) fn fill_numbered(
        &self,
        sample: &TaskRunningInfoEvent,
        count: usize,
        bad_every: usize,
    ) {
        self.fill(count, |i| match bad_every {
            0 => schemas::encode_event(&numbered(sample, i)).unwrap(),
            n if i % n == n - 1 => BAD.to_vec(),
            _ => schemas::encode_event(&numbered(sample, i)).unwrap(),
        });
    }

    /// The partitions' first offsets and ends.
    pub(crate) fn ends(&self) -> BTreeMap<i32, (i64, i64)> {
        let reader = reader(&self.bootstrap);
        let metadata = reader.fetch_metadata(Some(&self.events), ASK).unwrap();
        let partitions = metadata.topics()[0].partitions();
        partitions
            .iter()
            .map(|partition| {
                let ends = reader.fetch_watermarks(&self.events, partition.id(), ASK);
                (partition.id(), ends.unwrap())
            })
            .collect()
    }

    /// Number of records ever sent to the events topic.
    pub(crate) fn sent(&self) -> i64 {
        self.ends().values().map(|(_, end)| end).sum()
    }

    /// Waits until all parts of all sent events are stored.
    pub(crate) async fn until_all_stored(&self, within: Duration) {
        let sent = self.sent();
        let slowest = "SELECT CAST(coalesce(min(stored), 0) AS bigint) FROM \
             (SELECT sum(next_offset) AS stored FROM consumed_offset GROUP BY part) AS parts";
        until(&format!("{sent} events are stored"), within, async || {
            (self.count(slowest).await >= sent).then_some(())
        })
        .await;
    }

    /// The letters that committed readers see.
    pub(crate) fn read_letters(&self) -> Vec<OwnedMessage> {
        read_all(&self.bootstrap, &self.letters)
    }

    /// Positions of the records in the events topic that are no events.
    pub(crate) fn bad(&self) -> BTreeSet<(i32, i64)> {
        read_all(&self.bootstrap, &self.events)
            .iter()
            .filter(|record| record.payload() == Some(BAD))
            .map(|record| (record.partition(), record.offset()))
            .collect()
    }

    /// Panics unless each record of the events topic is in all three tables exactly once; a record in `lettered` must
    /// be in none and have exactly one dead letter.
    pub(crate) async fn assert_each_once(&self, lettered: &BTreeSet<(i32, i64)>) {
        let letters = coordinates(&self.read_letters());
        let expected: Vec<_> = lettered.iter().copied().collect();
        assert_eq!(letters, expected, "one letter each, and no others");
        let ends = self.ends();
        for table in ["task_progress", "task_resource", "task_metrics"] {
            let select = format!(
                "SELECT CAST(event_partition AS text), CAST(count(*) AS text), CAST(count(DISTINCT event_offset) AS text), \
                 CAST(min(event_offset) AS text), CAST(max(event_offset) AS text) FROM {table} GROUP BY event_partition"
            );
            let number = |text: &Option<String>| text.as_deref().unwrap().parse::<i64>().unwrap();
            let held: BTreeMap<i32, Vec<i64>> = self
                .rows(&select)
                .await
                .iter()
                .map(|row| {
                    (
                        number(&row[0]) as i32,
                        row[1..].iter().map(number).collect(),
                    )
                })
                .collect();
            for (partition, (low, end)) in &ends {
                let aside = lettered.iter().filter(|(p, _)| p == partition).count() as i64;
                let events = end - low - aside;
                match held.get(partition) {
                    None => assert_eq!(events, 0, "{table}, partition {partition}: no row"),
                    Some(held) => {
                        let [rows, distinct, least, greatest] = held[..].try_into().unwrap();
                        assert_eq!(
                            (rows, distinct),
                            (events, events),
                            "rows and distinct offsets of {table}, partition {partition}"
                        );
                        assert!(least >= *low && greatest < *end, "{table}: {held:?}");
                    }
                }
            }
            if !lettered.is_empty() {
                let values: Vec<_> = lettered
                    .iter()
                    .map(|(p, o)| format!("({p}, {o})"))
                    .collect();
                let both = format!(
                    "SELECT count(*) FROM {table} WHERE (event_partition, event_offset) IN (VALUES {})",
                    values.join(", ")
                );
                assert_eq!(
                    self.count(&both).await,
                    0,
                    "{table} has rows of lettered records"
                );
            }
        }
    }

    /// The group's state and its members' ids, from the broker.
    pub(crate) fn members(&self) -> (String, Vec<String>) {
        let groups = reader(&self.bootstrap)
            .fetch_group_list(Some(&self.events), ASK)
            .unwrap();
        let group = &groups.groups()[0];
        let mut ids: Vec<_> = group.members().iter().map(|m| m.id().to_owned()).collect();
        ids.sort();
        (group.state().to_owned(), ids)
    }

    /// Waits until the group is stable with this many members; returns their ids.
    pub(crate) async fn until_stable(&self, members: usize) -> Vec<String> {
        until(
            &format!("the group is stable with {members} members"),
            Duration::from_secs(120),
            async || {
                let (state, ids) = self.members();
                (state == "Stable" && ids.len() == members).then_some(ids)
            },
        )
        .await
    }

    /// The name of the server's database.
    pub(crate) fn database(&self) -> &str {
        assert_ne!(self.kind, Kind::Sqlite);
        self.database_url.rsplit_once('/').unwrap().1
    }

    /// Runs statements as superuser in a database of the server other than this pipeline's.
    pub(crate) async fn administer(&self, statements: &str) {
        execute(&self.administration(), statements).await;
    }

    fn administration(&self) -> String {
        let (host, _) = self.database_url.rsplit_once('/').unwrap();
        let other = match self.kind {
            Kind::Mariadb => "mysql",
            _ => "postgres",
        };
        format!("{host}/{other}")
    }

    /// Creates a user, named like the database and with all rights in it, whose rights and limits a test may change;
    /// returns the URL to connect as that user.
    pub(crate) async fn make_owner(&self) -> String {
        let name = self.database();
        let (superuser, create) = match self.kind {
            Kind::Mariadb => (
                "root@",
                format!(
                    "CREATE USER {name} IDENTIFIED BY 'right'; GRANT ALL ON {name}.* TO {name} WITH GRANT OPTION"
                ),
            ),
            _ => (
                "postgres@",
                format!(
                    "CREATE ROLE {name} LOGIN PASSWORD 'right'; ALTER DATABASE {name} OWNER TO {name}"
                ),
            ),
        };
        self.administer(&create).await;
        self.database_url
            .replacen(superuser, &format!("{name}:right@"), 1)
    }

    /// Ends the sessions of the [owner](Self::make_owner), who gets no other until it is [let in](Self::let_in). What
    /// the errors then contain is returned.
    pub(crate) async fn lock_out(&self, owner: &str) -> &'static str {
        let name = self.database();
        match self.kind {
            Kind::Mariadb => {
                self.administer(&format!(
                    "ALTER USER {name} WITH MAX_CONNECTIONS_PER_HOUR 1"
                ))
                .await;
                connect(owner).await.close().await;
                self.end_sessions().await;
                "max_connections_per_hour"
            }
            _ => {
                self.administer(&format!("ALTER ROLE {name} CONNECTION LIMIT 0"))
                    .await;
                self.end_sessions().await;
                "too many connections"
            }
        }
    }

    pub(crate) async fn let_in(&self) {
        let name = self.database();
        let unlimited = match self.kind {
            Kind::Mariadb => format!("ALTER USER {name} WITH MAX_CONNECTIONS_PER_HOUR 0"),
            _ => format!("ALTER ROLE {name} CONNECTION LIMIT -1"),
        };
        self.administer(&unlimited).await;
    }

    /// Terminates the consumers' sessions; in MariaDB, all sessions in the database.
    pub(crate) async fn end_sessions(&self) {
        let name = self.database();
        match self.kind {
            Kind::Mariadb => {
                let mut administrator = connect(&self.administration()).await;
                let sessions = format!(
                    "SELECT CAST(id AS text) FROM information_schema.processlist WHERE db = '{name}'"
                );
                let sessions: Vec<(String,)> = administrator.rows(&sessions).await.unwrap();
                for (session,) in sessions {
                    // It may have ended.
                    let _ = administrator.run(&format!("KILL {session}")).await;
                }
                administrator.close().await;
            }
            _ => {
                self.administer(&format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = '{name}' AND application_name = 'consumer'"
                ))
                .await;
            }
        }
    }

    /// A query for the number of sessions in the database that wait for a lock.
    pub(crate) fn blocked(&self) -> String {
        let name = self.database();
        match self.kind {
            Kind::Mariadb => format!(
                "SELECT count(*) FROM information_schema.innodb_trx JOIN information_schema.processlist \
                 ON id = trx_mysql_thread_id WHERE trx_state = 'LOCK WAIT' AND db = '{name}'"
            ),
            _ => format!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'consumer' \
                 AND wait_event_type = 'Lock'"
            ),
        }
    }

    /// A copy of MariaDB's database as a file for [`restore`](Self::restore).
    pub(crate) fn dump(&self) -> PathBuf {
        let file = self.folder().join("dump.sql");
        let dump = format!(
            "mariadb-dump {} --single-transaction {} >{}",
            self.client(),
            self.database(),
            file.display()
        );
        run("bash", &["-c", &dump]);
        file
    }

    /// Replaces the tables of one of MariaDB's databases by those of a dump.
    pub(crate) fn restore(&self, file: &Path, database: &str) {
        let restore = format!("mariadb {} {database} <{}", self.client(), file.display());
        run("bash", &["-c", &restore]);
    }

    /// The options of MariaDB's clients.
    fn client(&self) -> String {
        let (_, authority) = self.database_url.split_once('@').unwrap();
        let (host, rest) = authority.split_once(':').unwrap();
        let (port, _) = rest.split_once('/').unwrap();
        format!("--no-defaults --host={host} --port={port} --user=root")
    }
}

/// The positions of the letters' records, in order.
pub(crate) fn coordinates(letters: &[OwnedMessage]) -> Vec<(i32, i64)> {
    let mut coordinates: Vec<_> = letters
        .iter()
        .map(|letter| {
            let headers = headers(letter);
            let number = |name: &str| headers[name].parse::<i64>().unwrap();
            (
                number("__connect.errors.partition") as i32,
                number("__connect.errors.offset"),
            )
        })
        .collect();
    coordinates.sort_unstable();
    coordinates
}

/// A letter's headers by name.
pub(crate) fn headers(letter: &OwnedMessage) -> BTreeMap<String, String> {
    let headers = letter.headers().unwrap();
    let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
    headers
        .iter()
        .map(|header| (header.key.to_owned(), text(header.value)))
        .collect()
}
