//! Keeps the tables of error codes in the book equal to those of the code.

use std::collections::BTreeSet;
use std::path::Path;

use service::testing::book::{assert_generated, read};

use super::error::Meaning;
use super::{mysql, postgres, sqlite};

const PAGE: &str = "reference/errors.md";

fn row(codes: &str, meaning: Meaning, name: &str) -> String {
    let done = match meaning {
        Meaning::Transient => "wait and retry",
        Meaning::TooLong => "smaller batch",
        Meaning::Refused => "dead letter",
        Meaning::Permanent => "exit 78",
    };
    format!("| `{codes}` | {name} | {done} |\n")
}

#[test]
fn the_book_has_the_tables_of_the_code() {
    let postgres = postgres::MEANINGS.iter();
    let postgres = postgres.map(|(code, meaning, name)| row(code, *meaning, name));
    let postgres = format!(
        "| SQLSTATE | What | Outcome |\n| --- | --- | --- |\n{}",
        postgres.collect::<String>()
    );
    assert_generated(PAGE, "postgres-errors", &postgres);
    let mysql = mysql::MEANINGS.iter();
    let mysql = mysql.map(|(code, meaning, name)| row(&code.to_string(), *meaning, name));
    let mysql = format!(
        "| Error | What | Outcome |\n| --- | --- | --- |\n{}",
        mysql.collect::<String>()
    );
    assert_generated(PAGE, "mysql-errors", &mysql);
    let sqlite = sqlite::MEANINGS.iter();
    let sqlite =
        sqlite.map(|(code, name, meaning, what)| row(&format!("{code}` `{name}"), *meaning, what));
    let sqlite = format!(
        "| Code | What | Outcome |\n| --- | --- | --- |\n{}",
        sqlite.collect::<String>()
    );
    assert_generated(PAGE, "sqlite-errors", &sqlite);
}

/// The docs list each librdkafka error code that a program handles specifically.
#[test]
fn the_book_names_each_code_of_kafka_that_is_treated_apart() {
    let docs = read(&format!("docs/src/{PAGE}"));
    let mut named = BTreeSet::new();
    for folder in ["service/src", "router/src", "consumer/src", "producer/src"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(folder);
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(path).unwrap_or_default();
                for after in text.split("RDKafkaErrorCode::").skip(1) {
                    let list = match after.strip_prefix('{') {
                        Some(list) => list.split('}').next().unwrap(),
                        None => after
                            .split(|c: char| !c.is_ascii_alphanumeric())
                            .next()
                            .unwrap(),
                    };
                    let codes = list.split(',').map(str::trim);
                    let is_code = |code: &&str| code.starts_with(|c: char| c.is_uppercase());
                    named.extend(codes.filter(is_code).map(str::to_owned));
                }
            }
        }
    }
    let missing: Vec<_> = named
        .iter()
        .filter(|code| !docs.contains(&format!("`{code}`")))
        .collect();
    assert!(missing.is_empty(), "not in {PAGE}: {missing:?}");
}
