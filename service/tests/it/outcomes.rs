//! The book's table of faults is checked against the tests: each one that it names exists, and each
//! test of a fault is named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files whose tests are all of faults. Tests of other files may be named too.
const OF_FAULTS: &[&str] = &[
    "router/tests/it/bounces.rs",
    "router/tests/it/faults",
    "router/tests/it/rejects.rs",
    "router/tests/it/sizes.rs",
    "router/tests/it/evolving.rs",
    "consumer/tests/chaos/main.rs",
    "consumer/tests/it/evolving.rs",
    "consumer/tests/it/fencing.rs",
    "consumer/tests/it/identity.rs",
    "consumer/tests/it/letters.rs",
    "consumer/tests/it/memory.rs",
    "consumer/tests/it/outages",
    "consumer/tests/it/poison.rs",
    "consumer/tests/it/storm.rs",
    "schemas/tests/it/hostile.rs",
];

#[test]
fn the_book_names_every_test_of_a_fault_and_only_existing_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let chapter = service::testing::book::read("docs/src/internals/faults.md");
    let named: BTreeSet<String> = chapter
        .lines()
        .filter_map(|line| line.strip_suffix(" |")?.rsplit_once(" | "))
        .flat_map(|(_, tests)| tests.split(", "))
        .filter_map(|test| Some(test.strip_prefix('`')?.strip_suffix('`')?.to_owned()))
        .collect();
    assert!(named.len() > 50, "the table was read: {}", named.len());

    let mut all = BTreeSet::new();
    for folder in ["schemas", "service", "producer", "router", "consumer"] {
        for file in sources(&root.join(folder)) {
            all.extend(tests(&file));
        }
    }
    let absent: Vec<_> = named.difference(&all).collect();
    assert!(absent.is_empty(), "named, but no test: {absent:#?}");

    let of_faults = OF_FAULTS.iter().flat_map(|file| {
        let file = root.join(file);
        let sources = if file.is_dir() {
            sources(&file)
        } else {
            vec![file]
        };
        let found: Vec<_> = sources.iter().flat_map(|file| tests(file)).collect();
        assert!(!found.is_empty(), "{sources:?} have no tests");
        found
    });
    let missing: Vec<_> = of_faults.filter(|test| !named.contains(test)).collect();
    assert!(missing.is_empty(), "not in the table: {missing:#?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The names of a file's tests.
fn tests(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let (mut found, mut marked, mut listed) = (Vec::new(), false, false);
    for line in text.lines().map(str::trim) {
        let lists = [
            "on_every_database!(",
            "on_servers!(",
            "on_sqlite_and_postgres!(",
        ];
        let list = lists.iter().find_map(|begin| line.strip_prefix(begin));
        if let Some(names) = list.or(listed.then_some(line)) {
            listed = !names.ends_with(");");
            if names.starts_with("#[") {
                continue; // an attribute of the next one
            }
            let names = names.trim_end_matches(");").split(',').map(str::trim);
            found.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        } else if line.starts_with("#[tokio::test") || line == "#[test]" {
            marked = true;
        } else if let Some((_, rest)) = line.split_once("fn ")
            && std::mem::take(&mut marked)
        {
            found.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
        }
    }
    found
}
