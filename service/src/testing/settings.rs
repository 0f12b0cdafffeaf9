//! What tests share about options and environment variables.

use std::collections::BTreeSet;
use std::process::{Command, Output};

/// Each environment variable that an option of a program takes its value from, of all its commands, as `--help` names
/// them.
pub fn variables(program: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut commands = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let line: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = run(program, &[&line[..], &["--help"]].concat(), &[]);
        let help = String::from_utf8(output.stdout).unwrap();
        let listed = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
        for one in listed.lines().take_while(|line| !line.is_empty()) {
            let name = one.split_whitespace().next().unwrap();
            if one.starts_with("  ") && !one.starts_with("   ") && name != "help" {
                commands.push([&command[..], &[name.to_owned()]].concat());
            }
        }
        let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = flat.split("[env: ").skip(1);
        names.extend(found.filter_map(|rest| {
            let (name, _) = rest.split_once(['=', ']'])?;
            Some(name.to_owned())
        }));
    }
    names
}

/// Runs a program to its end, with these variables and none of the test's own that may be a setting.
pub fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let kept = ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"];
    let kept = kept
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(kept)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// Asserts that each of these commands, which fails for something absent, does so with these words on standard error
/// while every variable is blank that an option takes its value from.
pub fn takes_blank_variables_as_unset(program: &str, lines: &[(&[&str], &str)]) {
    let variables = variables(program);
    assert!(variables.contains("LOG_LEVEL"), "{variables:?}");
    for blank in ["", " "] {
        let blank: Vec<(&str, &str)> = variables.iter().map(|name| (&**name, blank)).collect();
        for (line, words) in lines {
            let output = run(program, line, &blank);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{line:?}");
            assert!(error.contains(words), "{line:?}: {error}");
        }
    }
}

/// Asserts that a program refuses each of these command lines with exit code 2 and these words on standard error, at
/// once and without a panic.
pub fn refuses(program: &str, lines: &[(&[&str], &str)]) {
    for (line, words) in lines {
        let output = run(program, line, &[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {error}");
        assert!(error.contains(words), "{line:?}: {error}");
        assert!(!error.contains("panicked"), "{line:?}: {error}");
    }
}

/// For a program whose clients are to name themselves in its log: see [`client_ids`].
pub const NAME_CLIENTS: [&str; 4] = ["-X", "debug=conf", "--log-level", "debug"];

/// The `client.id` of each client that a program with [`NAME_CLIENTS`] has made; `rdkafka` where it has none.
pub fn client_ids(log: &str) -> BTreeSet<String> {
    let clients = log.split("Client configuration").skip(1);
    let ids = clients.map(|client| {
        let of_client = client.split_once("client.id = ");
        let id = of_client.and_then(|(_, rest)| rest.split_whitespace().next());
        id.unwrap_or("rdkafka").to_owned()
    });
    ids.collect()
}
