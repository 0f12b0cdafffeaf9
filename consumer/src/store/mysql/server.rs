//! The server of a URL, how to connect to it, and the settings of every session.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use service::exit::{NeedsAttention, WrongUsage};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tokio::time::timeout;

use super::dialect::{MARIADB, MYSQL, MySql};
use crate::store::StoreError;
use crate::store::authorities::Authorities;
use crate::store::socket::Sockets;

/// Timeout for connecting, including TLS, authentication and settings.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// The smallest max_allowed_packet: an event of 1 MiB and its row fit with ease, as do the texts of a series.
const LEAST_PACKET: u64 = 4 << 20;

/// The variables of the password, for a URL without one.
const PASSWORD: &str = "MYSQL_PWD";
const PASSWORD_FILE: &str = "MYSQL_PWD_FILE";

/// The server's own databases.
const RESERVED: [&str; 4] = ["mysql", "sys", "information_schema", "performance_schema"];

/// Every value that a column cannot hold is an error, `"` quotes names, and `||` joins texts.
const SQL_MODE: &str = "STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,\
     NO_ENGINE_SUBSTITUTION,ANSI_QUOTES,PIPES_AS_CONCAT";

/// A database and how to reach it.
#[derive(Clone)]
pub(crate) struct Server {
    options: MySqlConnectOptions,
    authorities: Authorities,
    /// As the URL calls it.
    product: &'static str,
    name: String,
}

/// A session with its settings.
pub(super) struct Connected {
    pub(super) connection: MySqlConnection,
    pub(super) dialect: &'static MySql,
    /// The number of the session.
    pub(super) id: u64,
    /// Bytes of a statement with its values.
    pub(super) max_packet: u64,
}

impl Server {
    /// # Errors
    /// If the option's URL, or a file that it or the environment names, is invalid. The error does not show the URL,
    /// which may contain a password.
    pub(super) fn parse(option: &str, url: &str) -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let wrong = |why: String| WrongUsage(format!("{option}: {why}"));
        let (_, hosts) = authority(url)
            .rsplit_once('@')
            .unwrap_or(("", authority(url)));
        if hosts.contains(',') {
            let why = "the URL names several hosts: name one, such as that of a proxy that follows the primary";
            return Err(wrong(why.to_owned()).into());
        }
        let mut options =
            MySqlConnectOptions::from_str(url).map_err(|error| wrong(error.to_string()))?;
        let name = options.get_database().unwrap_or_default().to_owned();
        if name.is_empty() {
            let why = "the URL names no database: add one, as in mysql://USER@HOST/NAME";
            return Err(wrong(why.to_owned()).into());
        }
        if RESERVED.contains(&name.to_lowercase().as_str()) {
            return Err(wrong(format!(
                "the database {name} is the server's own: create another, with CREATE DATABASE, and name that"
            ))
            .into());
        }
        let files = files(url);
        // Checked now: later, a missing file would look like an unavailable server.
        for (field, file) in &files {
            std::fs::File::open(file)
                .map_err(|error| NeedsAttention(format!("{option}: {field} {file}: {error}")))?;
        }
        for field in unknown_fields(url) {
            tracing::warn!("{option}: ignoring the unknown query field {field}");
        }
        if !has_password(url)
            && let Some(password) = password(variable)?
        {
            options = options.password(&password);
        }
        let verifies = matches!(
            options.get_ssl_mode(),
            MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity
        );
        let is_authorities =
            |(field, _): &(String, String)| matches!(field.as_str(), "ssl-ca" | "sslca");
        // As sqlx does, the last one counts.
        let authorities = files.into_iter().rfind(is_authorities);
        Ok(Self {
            options: options.disable_statement_logging(),
            authorities: Authorities::of(authorities.filter(|_| verifies).map(|(_, file)| file)),
            product: match url.starts_with("mariadb:") {
                true => "MariaDB",
                false => "MySQL",
            },
            name,
        })
    }

    /// The database for messages, without the password.
    pub(super) fn place(&self) -> String {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        format!("{} {host}:{port}/{}", self.product, self.name)
    }

    /// Names by which databases are compared.
    pub(super) fn identities(&self) -> BTreeSet<String> {
        let host = match self.options.get_host() {
            "127.0.0.1" | "::1" | "[::1]" => "localhost",
            host => host,
        };
        let place = match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{host} {}", self.options.get_port()),
        };
        [format!("MySQL {place} {}", self.name)].into()
    }

    /// A session with its settings.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses this user, or is too old.
    pub(super) async fn connect(&self) -> Result<Connected, StoreError> {
        timeout(CONNECT, self.connect_and_set())
            .await
            .map_err(|_| {
                StoreError::Retry(format!("no connection within {} s", CONNECT.as_secs()))
            })?
    }

    /// A session as it is.
    pub(super) async fn connect_alone(&self) -> Result<MySqlConnection, sqlx::Error> {
        let sockets = Sockets::open();
        let connect = |authority: Option<&str>| {
            let options = match authority {
                Some(authority) => self.options.clone().ssl_ca_from_pem(authority.into()),
                None => self.options.clone(),
            };
            async move { options.connect().await }
        };
        let connection = self.authorities.connect(connect).await?;
        sockets.set_new_ones(self.options.get_port());
        Ok(connection)
    }

    async fn connect_and_set(&self) -> Result<Connected, StoreError> {
        let mut connection = self.connect_alone().await?;
        let select = "SELECT version(), CAST(connection_id() AS unsigned), CAST(@@max_allowed_packet AS unsigned)";
        let facts = sqlx::query_as(select).persistent(false);
        let (version, id, max_packet): (String, u64, u64) =
            facts.fetch_one(&mut connection).await?;
        let dialect = dialect(&version)?;
        if max_packet < LEAST_PACKET {
            return Err(StoreError::Exit(format!(
                "the server's max_allowed_packet is {max_packet}, which is less than {LEAST_PACKET} bytes: SET GLOBAL \
                 max_allowed_packet = {LEAST_PACKET}, and in its configuration file"
            )));
        }
        let settings = settings(dialect);
        sqlx::raw_sql(AssertSqlSafe(settings))
            .execute(&mut connection)
            .await?;
        Ok(Connected {
            connection,
            dialect,
            id,
            max_packet,
        })
    }
}

/// Statements that settle what the server's configuration leaves open.
fn settings(dialect: &MySql) -> String {
    let collation = dialect.collation;
    // MySQL has neither. idle_write_transaction_timeout: ends a transaction whose client is gone, so that its locks do not
    // outlive it for long; twice the time that a transaction of a consumer may take. in_predicate_conversion_threshold: by
    // default, an IN of 1,000 values becomes a table, by which prepared statements of servers before 10.6.8 find no row
    // (MDEV-27937).
    let own = match std::ptr::eq(dialect, &MARIADB) {
        true => ", idle_write_transaction_timeout = 60, in_predicate_conversion_threshold = 0",
        false => "",
    };
    // net_write_timeout: an audit may read Kafka for long between two rows. READ COMMITTED: the default also locks the gaps
    // between rows, where other writers then wait.
    format!(
        "SET NAMES utf8mb4 COLLATE {collation}; SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
         SET SESSION sql_mode = '{SQL_MODE}', time_zone = '+00:00', autocommit = 1, innodb_lock_wait_timeout = 20, \
         net_write_timeout = 7200, group_concat_max_len = 1073741824{own}"
    )
}

/// The dialect of a server of this version.
///
/// # Errors
/// If it is older than MySQL 8.0.17 or MariaDB 10.6.
fn dialect(version: &str) -> Result<&'static MySql, StoreError> {
    let is_mariadb = version.to_lowercase().contains("mariadb");
    // Some MariaDB servers call themselves 5.5.5 first, for old replicas.
    let number = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut numbers = number
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let found = (next(), next(), next());
    let (dialect, least) = match is_mariadb {
        true => (&MARIADB, (10, 6, 0)),
        false => (&MYSQL, (8, 0, 17)),
    };
    match found >= least {
        true => Ok(dialect),
        false => Err(StoreError::Exit(format!(
            "the server is {version}; MySQL 8.0.17 or MariaDB 10.6 is the oldest version that works"
        ))),
    }
}

/// The part of the URL with user and host.
fn authority(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    rest.split(['/', '?']).next().unwrap_or_default()
}

/// Whether the URL has a password.
fn has_password(url: &str) -> bool {
    let user = authority(url).rsplit_once('@').map(|(user, _)| user);
    user.is_some_and(|user| user.contains(':'))
}

/// The password of the environment, or the first line of the file that it names.
///
/// # Errors
/// If the file cannot be read.
fn password(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, NeedsAttention> {
    if let Some(password) = variable(PASSWORD) {
        return Ok(Some(password));
    }
    let Some(file) = variable(PASSWORD_FILE).map(PathBuf::from) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&file)
        .map_err(|error| NeedsAttention(format!("{PASSWORD_FILE} {}: {error}", file.display())))?;
    Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
}

/// The fields of a URL's query, decoded.
fn fields(url: &str) -> Vec<(String, String)> {
    let (_, query) = url.split_once('?').unwrap_or_default();
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let fields = query.split('&').filter(|field| !field.is_empty());
    fields
        .map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

/// The certificate and key files of a URL.
fn files(url: &str) -> Vec<(String, String)> {
    const FILES: &[&str] = &[
        "ssl-ca", "sslca", "ssl-cert", "sslcert", "ssl-key", "sslkey",
    ];
    let mut fields = fields(url);
    fields.retain(|(name, file)| FILES.contains(&name.as_str()) && !file.contains("-----BEGIN"));
    fields
}

/// The URL fields that sqlx ignores, which may be misspelt.
fn unknown_fields(url: &str) -> Vec<String> {
    const KNOWN: &[&str] = &[
        "ssl-mode",
        "sslmode",
        "ssl-ca",
        "sslca",
        "ssl-cert",
        "sslcert",
        "ssl-key",
        "sslkey",
        "socket",
        "statement-cache-capacity",
    ];
    let fields = fields(url).into_iter().map(|(name, _)| name);
    fields
        .filter(|name| !KNOWN.contains(&name.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides_the_dialect_and_old_ones_are_refused() {
        let collation = |version: &str| dialect(version).map(|dialect| dialect.collation).ok();
        for version in [
            "10.11.19-MariaDB-0+deb12u1",
            "5.5.5-10.6.2-MariaDB",
            "11.4.1-MariaDB",
        ] {
            assert_eq!(collation(version), Some("utf8mb4_nopad_bin"), "{version}");
        }
        for version in ["8.0.17", "8.4.2", "9.1.0-commercial"] {
            assert_eq!(collation(version), Some("utf8mb4_0900_bin"), "{version}");
        }
        for version in [
            "8.0.16",
            "5.7.44-log",
            "10.5.9-MariaDB",
            "5.5.5-10.3.1-MariaDB",
            "",
        ] {
            assert_eq!(collation(version), None, "{version}");
        }
    }

    #[test]
    fn a_url_needs_a_database_and_shows_no_password() {
        let parse = |url: &str| Server::parse("--database-url", url);
        let server = parse("mariadb://ada:hunter2@127.0.0.1:3307/tasks").unwrap();
        assert_eq!(server.place(), "MariaDB 127.0.0.1:3307/tasks");
        let other = parse("mysql://localhost:3307/tasks").unwrap();
        assert_eq!(server.identities(), other.identities());
        for url in ["mysql://ada:hunter2@h", "mysql://ada:hunter2@h:99999/tasks"] {
            let error = format!("{:#}", parse(url).err().unwrap());
            assert!(!error.contains("hunter2"), "{error}");
        }
        for (url, why) in [
            ("mysql://ada:hunter2@h/mysql", "the server's own"),
            ("mysql://ada:hunter2@h/SYS", "the server's own"),
            ("mysql://h/information_schema", "the server's own"),
            ("mysql://ada:hunter2@h:1,i:2/tasks", "several hosts"),
            ("mysql://h,i/tasks", "several hosts"),
        ] {
            let error = format!("{:#}", parse(url).err().unwrap());
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        parse("mysql://a,b@h/tasks").unwrap();
        let missing = parse("mysql://h/tasks?ssl-mode=VERIFY_CA&ssl-ca=/no/such%20file");
        let error = format!("{:#}", missing.err().unwrap());
        assert!(error.contains("ssl-ca /no/such file"), "{error}");
        let url = "mysql://h/d?sslmode=REQUIRED&pasword=hunter2&charset=latin1";
        assert_eq!(unknown_fields(url), ["pasword", "charset"]);
    }

    #[test]
    fn a_password_is_of_the_url_or_of_the_environment_or_of_a_file() {
        assert!(has_password("mysql://ada:hunter2@h/d?x=a@b"));
        assert!(!has_password("mysql://ada@h:3306/d"));
        assert!(!has_password("mysql://h:3306/d?x=a:b@c"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "from file\n").unwrap();
        let file = file.display().to_string();
        let of_file = |name: &str| (name == PASSWORD_FILE).then(|| file.clone());
        assert_eq!(password(of_file).unwrap(), Some("from file".to_owned()));
        let of_both = |name: &str| Some(format!("{file}{name}"));
        assert_eq!(
            password(of_both).unwrap(),
            Some(format!("{file}{PASSWORD}"))
        );
        assert_eq!(password(|_| None).unwrap(), None);
        let of_none = |name: &str| (name == PASSWORD_FILE).then(|| format!("{file}/none"));
        assert!(password(of_none).is_err());
    }
}
