//! The book and the README: links and anchors resolve, figures stand in a results file, and the runbook has an entry for
//! each message of exit code 78 and for each alert.
//!
//! Run it with `cargo test -p service --test it book`; it needs no services.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use service::testing::book::{Page, pages, read, root};

/// Maximum length of the README for a newcomer.
const README_WORDS: usize = 1_200;

/// The lines of a page outside of fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        is_fenced ^= fence;
        !is_fenced && !fence
    })
}

/// A line without its code spans.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The anchors of a page's headings, as forges and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || "-_ ".contains(*c);
        let anchor: String = heading.trim().to_lowercase().chars().filter(kept).collect();
        let anchor = anchor.replace(' ', "-");
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let mut free = std::iter::once(anchor.clone()).chain(numbered);
        found.extend(free.find(|anchor| !found.contains(anchor)));
    }
    found
}

/// The path without `..`, for comparison.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

fn markdown(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            markdown(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.insert(normal(&path));
        }
    }
}

#[test]
fn every_link_and_anchor_leads_somewhere_and_every_page_is_listed() {
    let pages = pages();
    let mut wrong = Vec::new();
    let mut links = 0;
    for Page { path, text } in &pages {
        let folder = root().join(path).parent().unwrap().to_owned();
        for (number, line) in prose(text) {
            let line = without_code(line);
            for link in line.split("](").skip(1) {
                let target = link.split(')').next().unwrap();
                if target.starts_with("http://") || target.starts_with("https://") {
                    continue;
                }
                links += 1;
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                let file = match file {
                    "" => root().join(path),
                    file => normal(&folder.join(file)),
                };
                let leads = file.exists()
                    && (anchor.is_empty()
                        || anchors(&std::fs::read_to_string(&file).unwrap()).contains(anchor));
                if !leads {
                    wrong.push(format!("{path}:{number}: {target}"));
                }
            }
        }
    }
    assert!(links > 100, "the links were read: {links}");
    assert!(wrong.is_empty(), "these lead nowhere: {wrong:#?}");

    let mut all = BTreeSet::new();
    markdown(&root().join("docs/src"), &mut all);
    all.remove(&root().join("docs/src/SUMMARY.md"));
    for page in &pages {
        all.remove(&root().join(&page.path));
    }
    assert!(all.is_empty(), "not in docs/src/SUMMARY.md: {all:#?}");
}

#[test]
fn mdbook_finds_every_readme_that_a_link_names() {
    let settings = read("docs/book.toml");
    let mut all = BTreeSet::new();
    markdown(&root().join("docs/src"), &mut all);
    for page in all.iter().filter(|page| page.ends_with("README.md")) {
        let page = page.strip_prefix(root().join("docs/src")).unwrap();
        let html = page.with_extension("html");
        let redirect = format!("\n\"/{}\" = \"index.html\"\n", html.display());
        assert!(settings.contains(&redirect), "book.toml lacks {redirect}");
    }
}

#[test]
fn the_readme_is_read_in_a_few_minutes() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= README_WORDS, "{words} words");
}

/// The numbers of a text, without thousands separators. Not those that are a part of a name, such as `p99`.
fn numbers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let text: Vec<char> = text.chars().collect();
    let is_part = |i: usize| {
        let inside = |c: &char| ",.".contains(*c);
        text[i].is_ascii_digit()
            || (inside(&text[i])
                && i > 0
                && text[i - 1].is_ascii_digit()
                && text.get(i + 1).is_some_and(char::is_ascii_digit))
    };
    let mut i = 0;
    while i < text.len() {
        let begin = i;
        while i < text.len() && is_part(i) {
            i += 1;
        }
        let is_name =
            begin > 0 && (text[begin - 1].is_alphabetic() || "_-".contains(text[begin - 1]));
        if i > begin && !is_name {
            let number: String = text[begin..i].iter().filter(|c| **c != ',').collect();
            found.push(number);
        }
        i += 1;
    }
    found
}

/// Measured figures are in blocks (a paragraph, list or table) below a line `<!-- figures: FILE …; WORD
/// NUMBER …; … -->`. Each number of the block occurs in one of the results files, or behind a word that gives
/// the reason why not: `computed` from others, or one of the `limits` and settings around them.
#[test]
fn every_measured_figure_is_in_a_results_file() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for Page { path, text } in pages() {
        let mut known: Option<BTreeSet<String>> = None;
        let mut is_before = false;
        for (number, line) in prose(&text) {
            if let Some(marker) = line.strip_prefix("<!-- figures: ") {
                let marker = marker.strip_suffix(" -->").unwrap();
                let (files, others) = marker.split_once(';').unwrap_or((marker, ""));
                let results = files.split_whitespace().map(|file| {
                    assert!(file.starts_with("deploy/bench/results/"), "{path}:{number}");
                    numbers(&read(file))
                });
                let mut all: BTreeSet<String> = results.flatten().collect();
                all.extend(numbers(others));
                known = Some(all);
                is_before = true;
            } else if line.is_empty() && !is_before {
                known = None;
            } else if !line.is_empty() {
                is_before = false;
                // Code spans contain settings, and links name files.
                let unquoted = without_code(line);
                match &known {
                    Some(known) => {
                        for figure in numbers(&unquoted) {
                            checked += 1;
                            if !known.contains(&figure) {
                                wrong.push(format!(
                                    "{path}:{number}: {figure} is in no results file"
                                ));
                            }
                        }
                    }
                    None => {
                        let units = ["events/s", "rows/s", "CPU-s", " MiB/s"];
                        let measured = units.iter().any(|unit| {
                            let mut parts: Vec<&str> = unquoted.split(unit).collect();
                            parts.pop();
                            parts.iter().any(|before| {
                                before.trim_end().ends_with(|c: char| c.is_ascii_digit())
                            })
                        });
                        if measured {
                            wrong.push(format!(
                                "{path}:{number}: figures without <!-- figures: FILE -->"
                            ));
                        }
                    }
                }
            }
        }
    }
    assert!(checked > 50, "the figures were read: {checked}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The string literal at the beginning of `text`, unescaped; `None` if there is none.
fn literal(text: &str) -> Option<String> {
    let text = text.trim_start();
    let text = text.strip_prefix("format!(").unwrap_or(text).trim_start();
    let mut chars = text.strip_prefix('"')?.chars();
    let mut value = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(value),
            '\\' => match chars.next()? {
                '\n' => {
                    let rest = chars.as_str().trim_start();
                    chars = rest.chars();
                }
                c => value.push(c),
            },
            c => value.push(c),
        }
    }
}

/// The texts of a message between its values, sentence by sentence.
fn phrases(message: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut depth = 0;
    for c in message.chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                found.push(String::new());
            }
            ';' => found.push(String::new()),
            c if depth == 0 => found.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    let trimmed = |phrase: String| phrase.trim_matches(EDGES).to_owned();
    found
        .into_iter()
        .map(trimmed)
        .filter(|phrase| phrase.len() >= 10)
        .collect()
}

/// Characters trimmed from the ends of a phrase.
const EDGES: [char; 6] = [' ', '.', ',', ':', '(', ')'];

/// Code that creates messages of exit code 78.
const MADE_BY: [&str; 6] = [
    "NeedsAttention(",
    "needs_attention(",
    "StoreError::Exit(",
    "RegistryError::Refused(",
    "wrong(",
    "false => format!(",
];

#[test]
fn the_runbook_has_an_entry_for_each_message_of_exit_code_78_and_each_alert() {
    let runbook = read("docs/src/operating/runbook.md");
    let (entries, alerts) = runbook.split_once("\n## Alerts\n").unwrap();
    // In headings and code spans, … represents values.
    let parts = |words: &str| -> Vec<String> {
        let parts = words
            .split('…')
            .map(|part| part.trim_matches(EDGES).to_owned());
        parts.filter(|part| part.len() >= 8).collect()
    };
    let (mut cited, mut headings) = (Vec::new(), Vec::new());
    for line in entries.lines() {
        match line.strip_prefix("#### ") {
            // A heading in brackets is not a message.
            Some(heading) if !heading.starts_with('(') => headings.extend(parts(heading)),
            _ => {
                let quoted = line.split('`').skip(1).step_by(2);
                // Commands and options are not messages.
                let typed = ["-", "kafka-", "consumer ", "router ", "systemctl ", "curl "];
                let words =
                    quoted.filter(|quoted| !typed.iter().any(|begin| quoted.starts_with(begin)));
                cited.extend(
                    words
                        .flat_map(parts)
                        .filter(|part| part.contains([' ', '.'])),
                );
            }
        }
    }
    cited.extend(headings.iter().cloned());

    let mut messages: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut everything = String::new();
    for part in ["service", "producer", "router", "consumer"] {
        let mut files = Vec::new();
        sources(&root().join(part).join("src"), &mut files);
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let text = text.split("#[cfg(test)]\nmod").next().unwrap();
            everything.extend(text.split("\\\n").map(str::trim_start));
            for made_by in MADE_BY {
                // Wrong usage is another exit code.
                if made_by == "wrong(" && !file.starts_with(root().join("consumer/src/replay")) {
                    continue;
                }
                if made_by.starts_with("false") && !file.ends_with("topic_ids.rs") {
                    continue;
                }
                for rest in text.split(made_by).skip(1) {
                    messages.extend(literal(rest).map(|message| (message, file.clone())));
                }
            }
        }
    }
    assert!(
        messages.len() > 50,
        "the messages were read: {}",
        messages.len()
    );
    let has_none = |message: &&String| {
        let phrases = phrases(message);
        !phrases.is_empty()
            && !phrases.iter().any(|phrase| {
                cited
                    .iter()
                    .any(|words| phrase.contains(words) || words.contains(phrase.as_str()))
            })
    };
    let missing: Vec<_> = messages
        .iter()
        .filter(|(message, _)| has_none(message))
        .collect();
    assert!(missing.is_empty(), "no entry has words of: {missing:#?}");
    let gone = headings
        .iter()
        .filter(|heading| !everything.contains(*heading));
    let gone: Vec<_> = gone.collect();
    assert!(
        gone.is_empty(),
        "no program has this message any more: {gone:#?}"
    );

    for line in read("deploy/observe/alerts.yml").lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            assert!(
                alerts.contains(&format!("\n### {alert}\n")),
                "no entry for {alert}"
            );
            let listed = format!("[`{alert}`](runbook.md#{})", alert.to_lowercase());
            assert!(
                read("docs/src/operating/alerts.md").contains(&listed),
                "not listed: {alert}"
            );
        }
    }
}
