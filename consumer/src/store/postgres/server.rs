//! The PostgreSQL server or servers of a URL, and how to connect to them.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use service::exit::{NeedsAttention, WrongUsage};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::time::timeout;

use super::url::{Role, files, hosts, unknown_fields};
use crate::store::authorities::Authorities;
use crate::store::socket::Sockets;
use crate::store::{Access, StoreError};

/// Timeout per server for connecting, including TLS and authentication. On a working network this takes less than 1 s.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// A database and how to reach it.
#[derive(Clone)]
pub(crate) struct Server {
    /// Tried in this order; at least one.
    hosts: Vec<PgConnectOptions>,
    /// `None`: not specified.
    session: Option<Role>,
    authorities: Authorities,
}

impl Server {
    /// # Errors
    /// If the option's URL, or a file that it names, is invalid. The error does not show the URL, which may contain a
    /// password.
    pub(crate) fn parse(option: &str, url: &str) -> anyhow::Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| WrongUsage(format!("{option}: {error}"));
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (urls, session) = hosts(url, variable).map_err(|error| wrong(&error))?;
        let files = files(url, variable);
        // Checked now: later, a missing file would look like an unavailable server.
        for (field, file) in &files {
            std::fs::File::open(file)
                .map_err(|error| NeedsAttention(format!("{option}: {field} {file}: {error}")))?;
        }
        for field in unknown_fields(url) {
            tracing::warn!("{option}: ignoring the unknown query field {field}");
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
                // Numbers are sent in binary, and PgBouncer rejects sessions that set this.
                .extra_float_digits(None)
                .disable_statement_logging();
            hosts.push(options);
        }
        // The mode of all hosts.
        let verifies = matches!(
            hosts[0].get_ssl_mode(),
            PgSslMode::VerifyCa | PgSslMode::VerifyFull
        );
        let authorities = authorities.filter(|_| verifies);
        Ok(Self {
            hosts,
            session,
            authorities: Authorities::of(authorities.map(|(_, file)| file)),
        })
    }

    /// The database for messages, without the password.
    pub(super) fn place(&self) -> String {
        let hosts = self.hosts.iter().map(address).collect::<Vec<_>>();
        format!("PostgreSQL {}/{}", hosts.join(","), self.name())
    }

    /// Names by which databases are compared: one per host.
    pub(super) fn identities(&self) -> BTreeSet<String> {
        let hosts = self.hosts.iter();
        hosts
            .map(|options| {
                let host = match options.get_host() {
                    "127.0.0.1" | "::1" => "localhost",
                    host => host,
                };
                let (port, name) = (options.get_port(), self.name());
                format!("PostgreSQL {host} {port} {name}")
            })
            .collect()
    }

    fn name(&self) -> &str {
        let options = &self.hosts[0];
        options.get_database().unwrap_or(options.get_username())
    }

    /// A connection to the first host that accepts it and has the role that the URL asks for. If the URL names several
    /// hosts but no role, `Access::Write` needs a writable one.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) async fn connect(&self, access: Access) -> Result<PgConnection, StoreError> {
        let (connection, _) = self.connect_to_one(access).await?;
        Ok(connection)
    }

    /// The same, with a `Server` for that host alone.
    pub(super) async fn connect_to_one(
        &self,
        access: Access,
    ) -> Result<(PgConnection, Self), StoreError> {
        let session = match self.session {
            Some(session) => session,
            None if self.hosts.len() > 1 && access == Access::Write => Role::ReadWrite,
            None => Role::Any,
        };
        let rounds: &[Role] = match session {
            Role::PreferStandby => &[Role::Standby, Role::Any],
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
                // As in psql, the next host is tried if this one is unavailable, not after a wrong password.
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
        role: Role,
    ) -> Result<PgConnection, StoreError> {
        let sockets = Sockets::open();
        let mut connection = self.connect_by_any_authority(options).await?;
        sockets.set_new_ones(options.get_port());
        // As PostgreSQL's manual defines the parameter, "Database Connection Control Functions".
        let (asked, wanted, found) = match role {
            Role::Any | Role::PreferStandby => return Ok(connection),
            Role::ReadWrite => (IS_READ_ONLY, false, "is read-only"),
            Role::ReadOnly => (IS_READ_ONLY, true, "is not read-only"),
            Role::Primary => (IS_STANDBY, false, "is a standby"),
            Role::Standby => (IS_STANDBY, true, "is not a standby"),
        };
        let is: bool = sqlx::query_scalar(asked).fetch_one(&mut connection).await?;
        match is == wanted {
            true => Ok(connection),
            false => Err(StoreError::Retry(format!("the server {found}"))),
        }
    }

    /// A connection to the first host, whatever its role.
    pub(super) async fn connect_alone(&self) -> Result<PgConnection, sqlx::Error> {
        self.connect_by_any_authority(&self.hosts[0]).await
    }

    async fn connect_by_any_authority(
        &self,
        options: &PgConnectOptions,
    ) -> Result<PgConnection, sqlx::Error> {
        let connect = |authority: Option<&str>| {
            let options = match authority {
                Some(authority) => options.clone().ssl_root_cert_from_pem(authority.into()),
                None => options.clone(),
            };
            async move { options.connect().await }
        };
        self.authorities.connect(connect).await
    }
}

const IS_READ_ONLY: &str =
    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";
const IS_STANDBY: &str = "SELECT pg_is_in_recovery()";

fn address(options: &PgConnectOptions) -> String {
    format!("{}:{}", options.get_host(), options.get_port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For an IPv6 address, and for a user name that forms no URL.
    #[test]
    fn whatever_can_be_parsed_can_be_shown() {
        for (url, place) in [
            ("postgres://[::1]:1/d", "PostgreSQL ::1:1/d"),
            ("postgres://a:b%2F@h/d", "PostgreSQL h:5432/d"),
            ("postgres://a%3Ab%2F@h/d", "PostgreSQL h:5432/d"),
        ] {
            assert_eq!(Server::parse("A", url).unwrap().place(), place);
        }
    }
}
