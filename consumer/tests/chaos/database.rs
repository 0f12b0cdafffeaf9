//! This run's own database, and the faults it supports.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::sleep;

use crate::sql::{Numbers, OfAny, Sql};

/// Small enough to be exhausted quickly, large enough for the services.
const MAX_CONNECTIONS: usize = 40;
/// The services' role: not a superuser, which would have reserved connections.
const ROLE: &str = "taskrunning";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Mariadb,
    Postgres,
    Sqlite,
}

impl Kind {
    /// The variable with the path of the tool that starts it; SQLite needs none.
    pub(crate) fn tool(self) -> Option<&'static str> {
        match self {
            Self::Mariadb => Some("TEST_MARIADB_TOOL"),
            Self::Postgres => Some("TEST_POSTGRES_TOOL"),
            Self::Sqlite => None,
        }
    }
}

impl FromStr for Kind {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "mariadb" => Ok(Self::Mariadb),
            "postgres" => Ok(Self::Postgres),
            "sqlite" => Ok(Self::Sqlite),
            _ => Err("postgres, mariadb or sqlite"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Stopped as by a power cut, then started.
    Crash,
    /// Every connection is terminated.
    Cut,
    /// Read-only, like a standby that is not promoted yet.
    ReadOnly,
    /// All connections are terminated and their slots occupied.
    Full,
    /// Another program holds SQLite's write lock.
    Locked,
}

/// Stopped and deleted when dropped; a server's log is kept.
pub(crate) struct Database {
    kind: Kind,
    url: String,
    cluster: Option<Cluster>,
}

impl Database {
    /// A server is started by this tool.
    pub(crate) async fn start(kind: Kind, tool: &str, folder: &Path) -> Self {
        let (scheme, statements) = match kind {
            Kind::Sqlite => {
                return Self {
                    kind,
                    url: format!("sqlite:{}", folder.join("tasks.db").display()),
                    cluster: None,
                };
            }
            Kind::Postgres => (
                "postgres",
                vec![
                    format!("CREATE ROLE {ROLE} LOGIN"),
                    format!("CREATE DATABASE {ROLE} OWNER {ROLE}"),
                ],
            ),
            Kind::Mariadb => (
                "mariadb",
                vec![
                    format!("CREATE USER {ROLE}"),
                    format!("CREATE DATABASE {ROLE}"),
                    format!("GRANT ALL ON {ROLE}.* TO {ROLE}"),
                ],
            ),
        };
        let cluster = Cluster::start(tool, folder, &format!("{scheme}.log"));
        let mut connection = Sql::connect(&cluster.url).await.unwrap();
        for statement in statements {
            connection.run(&statement).await.unwrap();
        }
        let (_, address) = cluster.url.split_once('@').unwrap();
        let (host, _) = address.split_once('/').unwrap();
        Self {
            kind,
            url: format!("{scheme}://{ROLE}@{host}/{ROLE}"),
            cluster: Some(cluster),
        }
    }

    /// For the services.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.kind == Kind::Postgres
    }

    /// The faults that this database supports.
    pub(crate) fn faults(&self) -> &'static [Fault] {
        match self.kind {
            Kind::Mariadb | Kind::Postgres => {
                &[Fault::Crash, Fault::Cut, Fault::ReadOnly, Fault::Full]
            }
            Kind::Sqlite => &[Fault::Locked],
        }
    }

    /// Causes the fault, and ends it after a time.
    pub(crate) async fn break_for(&self, fault: Fault, lasting: Duration) -> anyhow::Result<()> {
        let Some(cluster) = &self.cluster else {
            let mut connection = Sql::connect(&self.url).await?;
            // Waits for its turn like any writer.
            connection.run("PRAGMA busy_timeout = 20000").await?;
            connection.run("BEGIN IMMEDIATE").await?;
            sleep(lasting).await;
            return Ok(connection.run("ROLLBACK").await?);
        };
        match fault {
            Fault::Crash => {
                cluster.run(&["--mode", "immediate", "stop"]).await;
                sleep(lasting).await;
                cluster.run(&["start"]).await;
            }
            Fault::Cut => self.cut(cluster).await?,
            Fault::ReadOnly => {
                let mut connection = Sql::connect(&cluster.url).await?;
                for (value, pause) in [("on", lasting), ("off", Duration::ZERO)] {
                    if self.is_postgres() {
                        let set =
                            format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
                        connection.run(&set).await?;
                        connection.run("SELECT pg_reload_conf()").await?;
                    } else {
                        let set = format!("SET GLOBAL read_only = {value}");
                        connection.run(&set).await?;
                    }
                    sleep(pause).await;
                }
            }
            Fault::Full => {
                let mut held = Vec::new();
                self.cut(cluster).await?;
                while held.len() < MAX_CONNECTIONS {
                    match Sql::connect(&self.url).await {
                        Ok(connection) => held.push(connection),
                        Err(_) => break,
                    }
                }
                sleep(lasting).await;
            }
            Fault::Locked => unreachable!("that is SQLite's"),
        }
        Ok(())
    }

    async fn cut(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let mut connection = Sql::connect(&cluster.url).await?;
        let cut = match self.is_postgres() {
            true => format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{ROLE}'"
            ),
            false => format!("KILL USER {ROLE}"),
        };
        Ok(connection.run(&cut).await?)
    }

    /// The rows of a query whose columns are numbers.
    pub(crate) async fn numbers<const N: usize>(
        &self,
        select: &str,
    ) -> anyhow::Result<Vec<[i64; N]>> {
        let rows: Vec<Numbers<N>> = self.rows(select).await?;
        Ok(rows.into_iter().map(|Numbers(row)| row).collect())
    }

    pub(crate) async fn rows<T: OfAny>(&self, select: &str) -> anyhow::Result<Vec<T>> {
        let mut connection = Sql::connect(&self.url).await?;
        Ok(connection.rows(select).await?)
    }
}

/// A server, in a folder that its user may enter.
struct Cluster {
    tool: String,
    folder: TempDir,
    /// Where its log is kept.
    log: PathBuf,
    /// For a superuser.
    url: String,
}

impl Cluster {
    fn start(tool: &str, logs: &Path, log: &str) -> Self {
        let parent = std::env::var("TEST_POSTGRES_DIR").unwrap_or_else(|_| "/tmp".to_owned());
        let folder = tempfile::Builder::new()
            .prefix("chaos.")
            .tempdir_in(parent)
            .unwrap();
        let mut cluster = Self {
            tool: tool.to_owned(),
            folder,
            log: logs.join(log),
            url: String::new(),
        };
        let max_connections = format!("max_connections={MAX_CONNECTIONS}");
        cluster.url = tell(cluster.command(&["start", "--set", &max_connections]));
        cluster
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tool);
        command.arg("--dir").arg(self.folder.path()).args(arguments);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        command
    }

    async fn run(&self, arguments: &[&str]) {
        let command = self.command(arguments);
        tokio::task::spawn_blocking(move || tell(command))
            .await
            .unwrap();
    }
}

/// The standard output of a command, which must succeed.
fn tell(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::copy(self.folder.path().join("server.log"), &self.log);
        let _ = self.command(&["--mode", "immediate", "remove"]).status();
    }
}
