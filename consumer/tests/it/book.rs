//! The book's generated pages of commands, environment, schemas and rights are up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;

use serde_json::Value;
use service::testing::book::{assert_generated, read, root};
use service::testing::program;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// A command's help: the command, the introduction, groups of options by heading, and the rest.
struct Help {
    command: String,
    groups: Vec<(String, String)>,
}

/// The help of a command and its subcommands.
fn helps(command: &[&str], found: &mut Vec<Help>) {
    let output = Command::new(program(CONSUMER, command[0]))
        .args(&command[1..])
        .arg("--help")
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut groups = vec![(String::new(), String::new())];
    for line in text.lines() {
        // A heading has no indentation.
        if line.ends_with(':') && line.starts_with(|c: char| c.is_uppercase()) {
            groups.push((line.to_owned(), String::new()));
        }
        let (_, group) = groups.last_mut().unwrap();
        group.push_str(line.trim_end());
        group.push('\n');
    }
    let listed = groups.iter().find(|(heading, _)| heading == "Commands:");
    let listed: Vec<String> = listed.map_or(Vec::new(), |(_, text)| {
        let lines = text.lines().skip(1);
        let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next());
        names
            .filter(|name| *name != "help")
            .map(str::to_owned)
            .collect()
    });
    found.push(Help {
        command: command.join(" "),
        groups,
    });
    for name in listed {
        helps(&[command, &[&name]].concat(), found);
    }
}

fn all_helps() -> Vec<Help> {
    let mut found = Vec::new();
    for name in ["router", "consumer", "producer"] {
        helps(&[name], &mut found);
    }
    assert!(found.len() > 15, "{}", found.len());
    found
}

#[test]
fn the_book_lists_every_command_and_option() {
    let helps = all_helps();
    // Groups of options shared by many commands, and the exit codes.
    let mut uses: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (heading, text) in helps.iter().flat_map(|help| &help.groups) {
        *uses.entry((heading, text.trim())).or_default() += 1;
    }
    let is_shared = |heading: &str, text: &str| {
        heading != "Exit codes:"
            && !heading.is_empty()
            && uses
                .get(&(heading, text.trim()))
                .is_some_and(|times| *times > 3)
    };
    let mut page = String::new();
    for Help { command, groups } in &helps {
        write!(page, "## {command}\n\n```text\n").unwrap();
        let mut shared = Vec::new();
        let mut text = String::new();
        for (heading, group) in groups {
            if is_shared(heading, group) {
                shared.push(heading.trim_end_matches(':'));
            } else if heading != "Exit codes:" {
                text.push_str(group);
            }
        }
        writeln!(page, "{}\n```\n", text.trim_end()).unwrap();
        if !shared.is_empty() {
            writeln!(page, "Shared options: {}.\n", shared.join(", ")).unwrap();
        }
    }
    page.push_str("## Shared options\n\n```text\n");
    let shared = uses
        .keys()
        .filter(|(heading, text)| is_shared(heading, text));
    let shared: Vec<&str> = shared.map(|(_, text)| *text).collect();
    writeln!(page, "{}\n```", shared.join("\n\n")).unwrap();
    assert_generated("reference/commands.md", "commands", &page);
}

/// The commands that use a variable, or their program if all of its commands do.
fn shortened(commands: &BTreeSet<String>, all: &[Help]) -> String {
    let mut found = Vec::new();
    for program in ["producer", "router", "consumer"] {
        let is_of = |command: &str| command.split(' ').next() == Some(program);
        let of_all = all.iter().filter(|help| is_of(&help.command)).count();
        let of_these: Vec<&String> = commands.iter().filter(|name| is_of(name)).collect();
        if of_these.len() == of_all {
            found.push(format!("all of `{program}`"));
        } else {
            found.extend(of_these.into_iter().map(|command| format!("`{command}`")));
        }
    }
    found.join(", ")
}

#[test]
fn the_book_lists_every_variable_of_the_environment() {
    let helps = all_helps();
    let mut variables: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    for Help { command, groups } in &helps {
        let mut option = String::new();
        for line in groups.iter().flat_map(|(_, text)| text.lines()) {
            let line = line.trim_start();
            let mut words = line.split([' ', ',']);
            if line.starts_with('-')
                && let Some(long) = words.find(|word| word.starts_with("--"))
            {
                option = long.to_owned();
            }
            if let Some(name) = line.strip_prefix("[env: ") {
                let name = name.split(['=', ']']).next().unwrap().to_owned();
                let (options, commands) = variables.entry(name).or_default();
                options.insert(format!("`{option}`"));
                commands.insert(command.clone());
            }
        }
    }
    assert!(variables.len() > 20, "{variables:?}");
    let mut table = "| Variable | Option | Commands |\n| --- | --- | --- |\n".to_owned();
    for (name, (options, commands)) in variables {
        let options = Vec::from_iter(options).join(", ");
        let commands = shortened(&commands, &helps);
        writeln!(table, "| `{name}` | {options} | {commands} |").unwrap();
    }
    assert_generated("reference/configuration.md", "environment", &table);
}

/// A type's name, and the types defined in it.
fn kind<'a>(schema: &'a Value, defined: &mut Vec<&'a Value>) -> String {
    match schema {
        Value::String(name) => name.clone(),
        Value::Array(any) => {
            let any: Vec<String> = any.iter().map(|schema| kind(schema, defined)).collect();
            any.join(" or ")
        }
        schema => match schema["type"].as_str() {
            Some("array") => format!("array of {}", kind(&schema["items"], defined)),
            Some("map") => format!("map of {}", kind(&schema["values"], defined)),
            Some("record" | "enum") => {
                defined.push(schema);
                format!("`{}`", schema["name"].as_str().unwrap())
            }
            _ => match schema["logicalType"].as_str() {
                Some(logical) => format!("{} ({logical})", kind(&schema["type"], defined)),
                None => kind(&schema["type"], defined),
            },
        },
    }
}

#[test]
fn the_book_describes_the_newest_schemas() {
    let newest = |name: &str| {
        let versions = (1..).map(|version| format!("schemas/avro/v{version}/{name}.avsc"));
        let mut folders = versions.take_while(|path| root().join(path).parent().unwrap().exists());
        let newest = folders
            .by_ref()
            .filter(|path| root().join(path).exists())
            .last();
        newest.unwrap()
    };
    let mut page = String::new();
    let mut described = BTreeSet::new();
    for name in ["TaskRunningInfo", "TaskRunningInfoEvent"] {
        let path = newest(name);
        let schema: Value = serde_json::from_str(&read(&path)).unwrap();
        let mut waiting = vec![&schema];
        let mut is_first = true;
        while let Some(schema) = waiting.pop() {
            let name = schema["name"].as_str().unwrap();
            if !described.insert(name.to_owned()) {
                continue;
            }
            let level = if is_first { "##" } else { "###" };
            writeln!(page, "{level} {name}\n").unwrap();
            if is_first {
                writeln!(page, "`{path}`\n").unwrap();
            }
            is_first = false;
            if let Some(about) = schema["doc"].as_str() {
                writeln!(page, "{about}\n").unwrap();
            }
            if let Some(symbols) = schema["symbols"].as_array() {
                let symbols = symbols
                    .iter()
                    .map(|symbol| format!("`{}`", symbol.as_str().unwrap()));
                let symbols: Vec<String> = symbols.collect();
                writeln!(page, "One of {}.\n", symbols.join(", ")).unwrap();
                continue;
            }
            page.push_str("| Field | Type | |\n| --- | --- | --- |\n");
            let mut defined = Vec::new();
            for field in schema["fields"].as_array().unwrap() {
                let name = field["name"].as_str().unwrap();
                let kind = kind(&field["type"], &mut defined);
                let about = field["doc"].as_str().unwrap_or_default();
                writeln!(page, "| `{name}` | {kind} | {about} |").unwrap();
            }
            page.push('\n');
            waiting.extend(defined.into_iter().rev());
        }
    }
    assert_generated("reference/schemas.md", "schemas", &page);
}

#[test]
fn the_book_lists_the_rights_that_are_deployed() {
    let acls = format!("```\n{}```", read("deploy/kafka/acls"));
    assert_generated("running/security.md", "acls", &acls);
    let grants = format!("```sql\n{}```", read("deploy/postgres/grants.sql"));
    assert_generated("running/security.md", "grants", &grants);
    let grants = format!("```sql\n{}```", read("deploy/mysql/grants.sql"));
    assert_generated("running/security.md", "mysql-grants", &grants);
}
