//! The tables of error codes in `docs/errors.md` are those of the code.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::Meaning;
use super::{postgres, sqlite};

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

fn row(codes: &str, meaning: Meaning, name: &str) -> String {
    let done = match meaning {
        Meaning::Passes => "wait and retry",
        Meaning::TooLong => "smaller batch",
        Meaning::Refused => "dead letter",
        Meaning::Stays => "exit 78",
    };
    format!("| `{codes}` | {name} | {done} |\n")
}

/// To write the tables anew, take them from the message of the failure.
#[test]
fn the_tables_in_the_docs_are_those_of_the_code() {
    let docs = read("docs/errors.md");
    let postgres = postgres::MEANINGS.iter();
    let postgres = postgres.map(|(code, meaning, name)| row(code, *meaning, name));
    let sqlite = sqlite::MEANINGS.iter();
    let sqlite =
        sqlite.map(|(code, name, meaning, what)| row(&format!("{code}` `{name}"), *meaning, what));
    for table in [postgres.collect::<String>(), sqlite.collect()] {
        assert!(docs.contains(&table), "not in docs/errors.md:\n{table}");
    }
}

/// Each code of librdkafka that a program tells apart is in the docs.
#[test]
fn the_docs_name_each_code_of_kafka_that_is_treated_apart() {
    let docs = read("docs/errors.md");
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
    assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
}
