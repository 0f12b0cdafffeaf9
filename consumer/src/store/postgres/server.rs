//! The PostgreSQL server that a URL names, or several, and the one way to connect to it.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use service::exit::{NeedsAttention, WrongUsage};
use socket2::{SockRef, TcpKeepalive};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::time::timeout;

use super::super::connection::Access;
use super::StoreError;

/// How long one server may take until it has let us in, TLS and password included. Over networks that
/// work it takes less than 1 s.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// A host that is gone without a word (power, network) is given up after so long: Linux alone would send
/// again for 15 minutes, or wait for ever where nothing is to be sent.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// After so long without a word from the server its host is asked whether it is still there, so often.
const IDLE: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The field of a URL, and the variable, that say which of several hosts to take.
const SESSION: &str = "target_session_attrs";
const SESSION_VARIABLE: &str = "PGTARGETSESSIONATTRS";

/// Which database, and how to reach it.
#[derive(Clone)]
pub(crate) struct Server {
    /// Tried in this order; at least one.
    hosts: Vec<PgConnectOptions>,
    /// `None`: not said.
    session: Option<Session>,
    /// The file of the authorities that may have signed a server's certificate.
    authorities: Option<String>,
    /// The place, in it, of the one by which a server was verified last.
    authority: Arc<AtomicUsize>,
}

/// What a server must be (libpq's `target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl FromStr for Session {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => {
                return Err(format!(
                    "{SESSION} {name:?} is none of any, read-write, read-only, primary, standby, prefer-standby"
                ));
            }
        })
    }
}

impl Server {
    /// # Errors
    /// If the option's URL, or a file that it names, is no good. The URL itself is not shown: it may hold
    /// a password.
    pub(crate) fn parse(option: &str, url: &str) -> anyhow::Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| WrongUsage(format!("{option}: {error}"));
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (urls, session) = hosts(url, variable).map_err(|error| wrong(&error))?;
        let files = files(url, variable);
        // One that is not there would be waited for like a server.
        for (field, file) in &files {
            std::fs::File::open(file)
                .map_err(|error| NeedsAttention(format!("{option}: {field} {file}: {error}")))?;
        }
        for field in unknown_fields(url) {
            tracing::warn!("{option}: the field {field} of its query is unknown, and ignored");
        }
        let authorities = files.into_iter().find(|(field, _)| *field == "sslrootcert");
        let mut hosts = Vec::new();
        for url in urls {
            let mut options = PgConnectOptions::from_str(&url).map_err(|error| wrong(&error))?;
            if let Some(address) = options.get_host().strip_prefix('[') {
                let address = address.trim_end_matches(']').to_owned();
                options = options.host(&address);
            }
            let options = options
                .application_name("consumer")
                // Numbers come in binary; and PgBouncer takes no session that asks for this.
                .extra_float_digits(None)
                .disable_statement_logging();
            hosts.push(options);
        }
        Ok(Self {
            hosts,
            session,
            authorities: authorities.map(|(_, file)| file),
            authority: Arc::default(),
        })
    }

    /// Where the database is, without the password.
    pub(crate) fn place(&self) -> String {
        let hosts = self.hosts.iter().map(address).collect::<Vec<_>>();
        format!("PostgreSQL {}/{}", hosts.join(","), self.name())
    }

    fn name(&self) -> &str {
        let options = &self.hosts[0];
        options.get_database().unwrap_or(options.get_username())
    }

    /// Whether the two name one database, as far as that can be told.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let of = |server: &Self| -> BTreeSet<(String, u16)> {
            let hosts = server.hosts.iter();
            hosts
                .map(|options| {
                    let host = match options.get_host() {
                        "127.0.0.1" | "::1" => "localhost",
                        host => host,
                    };
                    (host.to_owned(), options.get_port())
                })
                .collect()
        };
        self.name() == other.name() && !of(self).is_disjoint(&of(other))
    }

    /// A connection to the first host that lets us in and is what the URL asks for: where it names
    /// several and does not ask, one that can be written to if it is to be.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) async fn connect(&self, access: Access) -> Result<PgConnection, StoreError> {
        let (connection, _) = self.connect_to_one(access).await?;
        Ok(connection)
    }

    /// The same, with what leads to that host alone.
    pub(super) async fn connect_to_one(
        &self,
        access: Access,
    ) -> Result<(PgConnection, Self), StoreError> {
        let session = match self.session {
            Some(session) => session,
            None if self.hosts.len() > 1 && access == Access::Write => Session::ReadWrite,
            None => Session::Any,
        };
        let rounds: &[Session] = match session {
            Session::PreferStandby => &[Session::Standby, Session::Any],
            _ => &[session],
        };
        let mut failures = Vec::new();
        for round in rounds {
            failures.clear();
            for options in &self.hosts {
                let connected = timeout(CONNECT, self.connect_to(options, *round));
                let error = match connected.await {
                    Ok(Ok(connection)) => {
                        let alone = Self {
                            hosts: vec![options.clone()],
                            ..self.clone()
                        };
                        return Ok((connection, alone));
                    }
                    Ok(Err(error)) => error,
                    Err(_) => {
                        StoreError::Retry(format!("no connection within {} s", CONNECT.as_secs()))
                    }
                };
                // As psql does: the next host is for where this one is away, not for a wrong password.
                let (StoreError::Retry(why) | StoreError::TooLong(why)) = error else {
                    return Err(error);
                };
                failures.push(match self.hosts.len() {
                    1 => why,
                    _ => format!("{}: {why}", address(options)),
                });
            }
        }
        Err(StoreError::Retry(failures.join("; ")))
    }

    async fn connect_to(
        &self,
        options: &PgConnectOptions,
        session: Session,
    ) -> Result<PgConnection, StoreError> {
        let mut connection = self.connect_by_any_authority(options).await?;
        set_sockets(options.get_port());
        // What PostgreSQL's manual says of the parameter, "Database Connection Control Functions".
        let (asked, wanted, found) = match session {
            Session::Any | Session::PreferStandby => return Ok(connection),
            Session::ReadWrite => (IS_READ_ONLY, false, "is read-only"),
            Session::ReadOnly => (IS_READ_ONLY, true, "is not read-only"),
            Session::Primary => (IS_STANDBY, false, "is a standby"),
            Session::Standby => (IS_STANDBY, true, "is no standby"),
        };
        let is: bool = sqlx::query_scalar(asked).fetch_one(&mut connection).await?;
        match is == wanted {
            true => Ok(connection),
            false => Err(StoreError::Retry(format!("the server {found}"))),
        }
    }

    /// A connection to the first host, whatever it is.
    pub(super) async fn connect_alone(&self) -> Result<PgConnection, sqlx::Error> {
        self.connect_by_any_authority(&self.hosts[0]).await
    }

    /// sqlx 0.9.0 loads the first certificate alone of a file of authorities: so each of them is tried,
    /// first the one that was right last.
    async fn connect_by_any_authority(
        &self,
        options: &PgConnectOptions,
    ) -> Result<PgConnection, sqlx::Error> {
        let verifies = matches!(
            options.get_ssl_mode(),
            PgSslMode::VerifyCa | PgSslMode::VerifyFull
        );
        let (true, Some(file)) = (verifies, &self.authorities) else {
            return options.connect().await;
        };
        let text = tokio::fs::read_to_string(file).await?;
        let authorities = authorities(&text);
        if authorities.len() < 2 {
            return options.connect().await;
        }
        let first = self.authority.load(Ordering::Relaxed);
        let mut last = None;
        for place in (0..authorities.len()).map(|i| (first + i) % authorities.len()) {
            let options = options.clone();
            let options = options.ssl_root_cert_from_pem(authorities[place].into());
            match options.connect().await {
                Ok(connection) => {
                    self.authority.store(place, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(sqlx::Error::Tls(error)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        let last = last.map_or_else(String::new, |error| format!(": {error}"));
        let count = authorities.len();
        let error = format!(
            "the server's certificate is by none of the {count} authorities of {file}{last} (each is tried by itself: a \
             server whose certificate is by an intermediate authority has to send that authority's certificate too)"
        );
        Err(sqlx::Error::Tls(error.into()))
    }
}

const IS_READ_ONLY: &str =
    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";
const IS_STANDBY: &str = "SELECT pg_is_in_recovery()";

fn address(options: &PgConnectOptions) -> String {
    format!("{}:{}", options.get_host(), options.get_port())
}

/// A URL for each host that a URL names, and what the host must be. `variable` gives those of libpq.
fn hosts(
    url: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(Vec<String>, Option<Session>), String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Ok((vec![url.to_owned()], None));
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, name) = match place.find('/') {
        Some(at) => place.split_at(at),
        None => (place, ""),
    };
    let (user, authority) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let mut fields: Vec<&str> = query.split('&').filter(|field| !field.is_empty()).collect();
    let mut take = |name: &str, only_lists: bool| {
        let is = |field: &&str| {
            let value = field
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('='));
            value.is_some_and(|value| !only_lists || value.contains(',') || value.contains("%2C"))
        };
        let at = fields.iter().position(is)?;
        Some(fields.remove(at)[name.len() + 1..].replace("%2C", ","))
    };
    let session = take(SESSION, false).or_else(|| variable(SESSION_VARIABLE));
    let session = session.as_deref().map(str::parse).transpose()?;
    let (mut host, mut port) = (take("host", true), take("port", true));
    if authority.is_empty() && host.is_none() && !fields.iter().any(|f| f.starts_with("host")) {
        host = variable("PGHOST").filter(|hosts| hosts.contains(','));
        port = port.or_else(|| variable("PGPORT").filter(|ports| ports.contains(',')));
    }
    let url = |authority: &str, more: &[String]| {
        let fields = fields.iter().map(|field| (*field).to_owned());
        let fields = fields.chain(more.iter().cloned()).collect::<Vec<_>>();
        let query = match fields.is_empty() {
            true => String::new(),
            false => format!("?{}", fields.join("&")),
        };
        format!("{scheme}://{user}{authority}{name}{query}")
    };
    let Some(hosts) = host else {
        if port.is_some() {
            return Err("several ports are for several hosts in the field host".to_owned());
        }
        return Ok((
            authority.split(',').map(|host| url(host, &[])).collect(),
            session,
        ));
    };
    let ports: Vec<&str> = port.iter().flat_map(|ports| ports.split(',')).collect();
    let hosts: Vec<&str> = hosts.split(',').collect();
    if !matches!(ports.len(), 0 | 1) && ports.len() != hosts.len() {
        return Err(format!(
            "{} ports are named for {} hosts",
            ports.len(),
            hosts.len()
        ));
    }
    let urls = hosts.iter().enumerate().map(|(i, host)| {
        let port = ports.get(i).or(ports.first());
        let mut more = vec![format!("host={host}")];
        more.extend(port.map(|port| format!("port={port}")));
        url(authority, &more)
    });
    Ok((urls.collect(), session))
}

/// The files of certificates and keys that a URL names, else a variable of libpq.
fn files(url: &str, variable: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let (_, query) = url.split_once('?').unwrap_or_default();
    // By their names of libpq and of sqlx.
    const FILES: [(&str, &[&str], &str); 3] = [
        (
            "sslrootcert",
            &["sslrootcert", "ssl-root-cert", "ssl-ca"],
            "PGSSLROOTCERT",
        ),
        ("sslcert", &["sslcert", "ssl-cert"], "PGSSLCERT"),
        ("sslkey", &["sslkey", "ssl-key"], "PGSSLKEY"),
    ];
    let named = FILES.map(|(field, names, name)| {
        let mut fields = query.rsplit('&').filter_map(|field| field.split_once('='));
        let named = fields.find(|(name, _)| names.contains(name));
        let file = named
            .map(|(_, file)| decoded(file))
            .or_else(|| variable(name));
        Some((field, file.filter(|file| !file.contains("-----BEGIN"))?))
    });
    named.into_iter().flatten().collect()
}

/// The names of a URL's fields that sqlx and this module ignore. (sqlx's own warning, which shows the value
/// too, is filtered out: a password may stand under a misspelt name.)
fn unknown_fields(url: &str) -> Vec<String> {
    const KNOWN: &[&str] = &[
        SESSION,
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ];
    let (_, query) = url.split_once('?').unwrap_or_default();
    let fields = query.split('&').filter(|field| !field.is_empty());
    let names = fields.map(|field| decoded(field.split('=').next().unwrap_or_default()));
    names
        .filter(|name| !KNOWN.contains(&name.as_str()) && !name.starts_with("options["))
        .collect()
}

/// A value of a URL's query.
fn decoded(value: &str) -> String {
    let value = value.replace('+', " ");
    percent_decode_str(&value).decode_utf8_lossy().into_owned()
}

/// The certificates in a file, each with its first and last line.
fn authorities(text: &str) -> Vec<&str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let begun = text.match_indices(BEGIN).map(|(begin, _)| &text[begin..]);
    begun
        .filter_map(|text| Some(&text[..text.find(END)? + END.len()]))
        .collect()
}

/// Sets what sqlx 0.9.0 leaves as it is, on the sockets to this port (it does not give its own away):
///
/// - Nagle's algorithm off (transact-rs/sqlx#4335): the end of each COPY would wait for the
///   acknowledgement of its data, which Linux delays by 40 ms.
/// - A limit to waiting for a host that is gone.
fn set_sockets(port: u16) {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return; // only slower
    };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for number in numbers.collect::<Vec<_>>() {
        #[expect(
            unsafe_code,
            reason = "the only way to a socket that a library keeps to itself"
        )]
        // SAFETY: nothing is read, written or closed by it. Where the file was closed meanwhile, or is no
        // TCP socket, the calls fail.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let socket = SockRef::from(&file);
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        if peer.is_some_and(|peer| peer.port() == port) {
            let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(ASK_AGAIN);
            let _ = socket.set_tcp_nodelay(true);
            let _ = socket.set_tcp_keepalive(&keepalive);
            let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> (Vec<String>, Option<Session>) {
        hosts(url, |_| None).unwrap()
    }

    #[test]
    fn a_url_of_several_hosts_is_one_of_each() {
        assert_eq!(
            of("postgres://u@h/d?a=b"),
            (vec!["postgres://u@h/d?a=b".into()], None)
        );
        assert_eq!(of("postgres:///d"), (vec!["postgres:///d".into()], None));
        assert_eq!(
            of("postgres://u:p@h1:1,h2,[::1]:3/d?target_session_attrs=primary&sslmode=require"),
            (
                vec![
                    "postgres://u:p@h1:1/d?sslmode=require".into(),
                    "postgres://u:p@h2/d?sslmode=require".into(),
                    "postgres://u:p@[::1]:3/d?sslmode=require".into(),
                ],
                Some(Session::Primary)
            )
        );
        assert_eq!(
            of("postgres://u@/d?host=h1,h2&port=1,2").0,
            [
                "postgres://u@/d?host=h1&port=1",
                "postgres://u@/d?host=h2&port=2"
            ]
        );
        let variables = |name: &str| match name {
            "PGHOST" => Some("h1,h2".to_owned()),
            SESSION_VARIABLE => Some("standby".to_owned()),
            _ => None,
        };
        let (urls, session) = hosts("postgresql:///d", variables).unwrap();
        assert_eq!(urls, ["postgresql:///d?host=h1", "postgresql:///d?host=h2"]);
        assert_eq!(session, Some(Session::Standby));
        assert!(hosts("postgres://h/d?target_session_attrs=x", |_| None).is_err());
        assert!(hosts("postgres:///d?host=a,b,c&port=1,2", |_| None).is_err());
    }

    #[test]
    fn files_are_those_of_the_url_or_else_of_the_variables() {
        let url = "postgres://h/d?ssl-ca=a%20b%2Fc&sslmode=require&sslkey=k+1";
        let variables = |name: &str| (name != "PGSSLKEY").then(|| name.to_lowercase());
        assert_eq!(
            files(url, variables),
            [
                ("sslrootcert", "a b/c".to_owned()),
                ("sslcert", "pgsslcert".to_owned()),
                ("sslkey", "k 1".to_owned())
            ]
        );
        assert_eq!(files("postgres://h", |_| None), []);
        assert_eq!(decoded("100%&%zz%4"), "100%&%zz%4");
        let url =
            "postgres://h/d?p%61ssword=a&pasword=hunter2&options[a]=b&target_session_attrs=any&&x";
        assert_eq!(unknown_fields(url), ["pasword", "x"]);
    }

    /// Of an IPv6 address, and of a user's name that makes no URL.
    #[test]
    fn whatever_can_be_parsed_can_be_told() {
        for (url, place) in [
            ("postgres://[::1]:1/d", "PostgreSQL ::1:1/d"),
            ("postgres://a:b%2F@h/d", "PostgreSQL h:5432/d"),
            ("postgres://a%3Ab%2F@h/d", "PostgreSQL h:5432/d"),
        ] {
            assert_eq!(Server::parse("A", url).unwrap().place(), place);
        }
    }

    #[test]
    fn a_file_of_authorities_holds_each_of_them() {
        let one = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
        let other = one.replace("AAAA", "BBBB");
        let bundle =
            format!("# first\n{one}\n\n# second\n{other}\n-----BEGIN CERTIFICATE-----\ncut");
        assert_eq!(authorities(&bundle), [one, &other]);
        assert!(authorities("").is_empty());
    }
}
