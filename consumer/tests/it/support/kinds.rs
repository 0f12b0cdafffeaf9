//! The kinds of databases, and tests that run on several of them.

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    Mariadb,
}

impl Kind {
    /// Its name in messages.
    pub(crate) fn product(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
            // For a URL of this scheme.
            Self::Mariadb => "MySQL",
        }
    }

    /// Ends a transaction that has locked rows of a consumer. PostgreSQL commits, without a change: the consumer then meets
    /// new versions of the rows. MariaDB locks only what changes, so that is undone.
    pub(crate) fn unlock(self) -> &'static str {
        match self {
            Self::Mariadb => "ROLLBACK",
            _ => "COMMIT",
        }
    }
}

/// All kinds of databases.
pub(crate) const KINDS: [Kind; 3] = [Kind::Sqlite, Kind::Postgres, Kind::Mariadb];
/// Those that are servers.
pub(crate) const SERVERS: [Kind; 2] = [Kind::Postgres, Kind::Mariadb];

/// One test per given database.
macro_rules! on {
    (@ $module:ident $kind:ident { $($(#[$attribute:meta])* $name:ident),* $(,)? }) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread")] $(#[$attribute])*
            async fn $name() { super::$name($crate::support::Kind::$kind).await; })*
        }
    };
    ($tests:tt $($module:ident $kind:ident),*) => {
        $($crate::support::on!(@ $module $kind $tests);)*
    };
}
pub(crate) use on;

/// One test per database that has existed since the first version.
macro_rules! on_sqlite_and_postgres {
    ($($tests:tt)*) => { $crate::support::on!({ $($tests)* } sqlite Sqlite, postgres Postgres); };
}
pub(crate) use on_sqlite_and_postgres;

/// One test per database that is a server.
macro_rules! on_servers {
    ($($tests:tt)*) => { $crate::support::on!({ $($tests)* } postgres Postgres, mariadb Mariadb); };
}
pub(crate) use on_servers;

/// One test per database.
macro_rules! on_every_database {
    ($($tests:tt)*) => {
        $crate::support::on!({ $($tests)* } sqlite Sqlite, postgres Postgres, mariadb Mariadb);
    };
}
pub(crate) use on_every_database;
