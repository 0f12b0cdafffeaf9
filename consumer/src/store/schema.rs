//! Each database has the tables of the catalogue after all migrations.

use std::collections::BTreeSet;

use rusqlite::OpenFlags;
use service::testing::{service, unique};
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::{Database, postgres};
use crate::tables::{Column, Kind, schema};

/// A column: its table, name and type, and whether it may be null.
type Described = (String, String, String, bool);

fn expected(column_type: fn(Kind) -> &'static str) -> BTreeSet<Described> {
    let describe = |table: &'static str| {
        move |column: &'static Column| {
            let Column {
                name,
                kind,
                is_nullable,
                ..
            } = column;
            let kind = column_type(*kind).to_owned();
            (table.to_owned(), (*name).to_owned(), kind, *is_nullable)
        }
    };
    let tables = schema().into_iter();
    tables
        .flat_map(|(table, columns)| columns.into_iter().map(describe(table)))
        .collect()
}

async fn migrate(url: &str) {
    let database = Database::parse_url("--database-url", &url.parse().unwrap()).unwrap();
    database.migrate().await.unwrap();
}

#[tokio::test]
async fn postgres_has_the_tables_of_the_catalogue() {
    let Some(server) = service("TEST_POSTGRES_URL") else {
        return;
    };
    let name = unique("catalogue").replace('-', "_");
    let mut at_server = PgConnection::connect(&server).await.unwrap();
    let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&mut at_server).await.unwrap();
    let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
    migrate(&url).await;

    // The type of an array's elements is in another view.
    let select = "SELECT c.table_name::text, c.column_name::text, \
         CASE c.data_type WHEN 'ARRAY' THEN e.data_type || '[]' ELSE c.data_type END::text, c.is_nullable = 'YES' \
         FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name) \
         LEFT JOIN information_schema.element_types e ON (e.object_schema, e.object_name, e.object_type, \
         e.collection_type_identifier) = (c.table_schema, c.table_name, 'TABLE', c.dtd_identifier) \
         WHERE c.is_generated = 'NEVER' AND c.table_schema = 'public' AND t.table_type = 'BASE TABLE' AND c.table_name <> '_sqlx_migrations'";
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let found: Vec<Described> = sqlx::query_as(select)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
    sqlx::raw_sql(drop).execute(&mut at_server).await.unwrap();
    assert_eq!(BTreeSet::from_iter(found), expected(postgres::column_type));
}

#[tokio::test]
async fn mariadb_has_the_tables_of_the_catalogue() {
    let Some(server) = service("TEST_MARIADB_URL") else {
        return;
    };
    let name = unique("catalogue").replace('-', "_");
    let mut at_server = MySqlConnection::connect(&server).await.unwrap();
    let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&mut at_server).await.unwrap();
    let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
    tokio::join!(migrate(&url), migrate(&url));
    // A program that ended in the middle of the migration left this.
    let half = format!(
        "UPDATE {name}._sqlx_migrations SET success = false; DROP TABLE {name}.expiry; DROP VIEW {name}.task_metrics_history"
    );
    sqlx::raw_sql(AssertSqlSafe(half))
        .execute(&mut at_server)
        .await
        .unwrap();
    migrate(&url).await;

    // The rows of histories have an address, which is no value of an event.
    let select = format!(
        "SELECT c.table_name, c.column_name, CAST(CASE WHEN c.data_type IN ('varchar', 'longtext') THEN 'text' \
         ELSE c.data_type END AS char), c.is_nullable = 'YES' FROM information_schema.columns c \
         JOIN information_schema.tables t USING (table_schema, table_name) \
         WHERE c.table_schema = '{name}' AND t.table_type = 'BASE TABLE' AND c.table_name <> '_sqlx_migrations' \
         AND c.extra NOT LIKE '%GENERATED%' AND c.column_name <> 'row_id'"
    );
    let found: Vec<Described> = sqlx::query_as(AssertSqlSafe(select))
        .fetch_all(&mut at_server)
        .await
        .unwrap();
    let drop = AssertSqlSafe(format!("DROP DATABASE {name}"));
    sqlx::raw_sql(drop).execute(&mut at_server).await.unwrap();
    let column_type = |kind| match kind {
        Kind::I32 => "int",
        Kind::I64 | Kind::Time => "bigint",
        Kind::Bool => "tinyint",
        Kind::F64 => "double",
        Kind::Text | Kind::Texts | Kind::JobTasks | Kind::Json => "text",
    };
    assert_eq!(BTreeSet::from_iter(found), expected(column_type));
}

#[tokio::test]
async fn sqlite_has_the_tables_of_the_catalogue() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    migrate(&format!("sqlite:{}", file.display())).await;

    let connection =
        rusqlite::Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    // An integer primary key is never null, whether or not it is declared so.
    let select = "SELECT t.name, c.name, c.type, NOT (c.\"notnull\" OR c.pk) \
         FROM pragma_table_list t JOIN pragma_table_info(t.name) c \
         WHERE t.schema = 'main' AND t.type = 'table' AND t.name NOT IN ('_sqlx_migrations', 'sqlite_schema')";
    let mut statement = connection.prepare(select).unwrap();
    let found = statement
        .query_map((), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap();
    let found: Result<BTreeSet<Described>, _> = found.collect();
    let column_type = |kind| match kind {
        Kind::I32 | Kind::I64 | Kind::Bool | Kind::Time => "INTEGER",
        Kind::F64 => "REAL",
        Kind::Text | Kind::Texts | Kind::JobTasks | Kind::Json => "TEXT",
    };
    assert_eq!(found.unwrap(), expected(column_type));
}
