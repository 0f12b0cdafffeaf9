//! Man pages and shell completions of a program, made from its command line by `clap_mangen` and `clap_complete`.
//!
//! Only tests depend on this crate, so no program carries what it needs. Each program's test of its command line calls
//! [`assert_complete`], and `deploy/package` runs these tests with `MANUAL_DIR` to have the files.
#![expect(clippy::unwrap_used, reason = "only tests use it, and it may end them")]
#![expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap_complete::Shell;
use clap_mangen::Man;

/// Asserts that every command of a program has a man page with each of its options and variables of the environment,
/// that the completions for bash, zsh and fish offer each of its options, and that `groff` and the shells read them
/// without a complaint. A shell that is not installed is left out, or with `TEST_REQUIRE_SERVICES` in the environment
/// fails the test.
///
/// If the environment has `MANUAL_DIR`, the files are left in that folder: `man/PROGRAM-COMMAND.1` for each command, and
/// `completions/PROGRAM.bash`, `completions/_PROGRAM` (zsh) and `completions/PROGRAM.fish`. `MANUAL_DATE` is then the date
/// of the pages, as in `2026-11-30`.
///
/// # Panics
/// If one of these does not hold, or a file cannot be written.
pub fn assert_complete(command: clap::Command) {
    let own = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("MANUAL_DIR").map_or(own.path().to_owned(), PathBuf::from);
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&pages).unwrap();
    fs::create_dir_all(&completions).unwrap();

    let program = command.get_name().to_owned();
    let release = format!("taskrunning {}", command.get_version().unwrap());
    // Every page of a command lists its subcommands, and `help` only repeats them.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut all = Vec::new();
    flatten(&command, &mut all);
    for command in &all {
        has_page(command, &release, &pages);
    }

    let [bash, zsh, fish] = [Shell::Bash, Shell::Zsh, Shell::Fish].map(|shell| {
        clap_complete::generate_to(shell, &mut command.clone(), &program, &completions).unwrap()
    });
    bash_completes(&bash, &program, &all);
    zsh_completes(&zsh, &all);
    fish_completes(&fish, &all, own.path());
}

/// A command and those below it, with the options that they inherit.
fn flatten<'a>(command: &'a clap::Command, all: &mut Vec<&'a clap::Command>) {
    all.push(command);
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        flatten(subcommand, all);
    }
}

/// What a user types for each option.
fn options(command: &clap::Command) -> BTreeSet<String> {
    let shown = command.get_arguments().filter(|one| !one.is_hide_set());
    let longs = shown.filter_map(|option| option.get_long());
    longs.map(|long| format!("--{long}")).collect()
}

/// What a user types for the command, such as `router dead-letters list`.
fn typed(command: &clap::Command) -> &str {
    command.get_bin_name().unwrap_or_else(|| command.get_name())
}

fn has_page(command: &clap::Command, release: &str, folder: &Path) {
    // Without a date, the footer's other texts would stand in its place.
    let date = std::env::var("MANUAL_DATE").unwrap_or_else(|_| "undated".to_owned());
    let man = Man::new(command.clone())
        .date(date)
        .source(release)
        .manual("Task running info");
    let file = man.generate_to(folder).unwrap();
    assert_eq!(
        file.file_stem().unwrap().to_str().unwrap(),
        typed(command).replace(' ', "-")
    );
    let text = fs::read_to_string(&file).unwrap().replace(r"\-", "-");
    let is_shown = |one: &&clap::Arg| !one.is_hide_set();
    let variables = command.get_arguments().filter(is_shown);
    let variables = variables.filter_map(|option| option.get_env()?.to_str());
    let variables = variables.map(str::to_owned);
    for word in options(command).into_iter().chain(variables) {
        assert!(text.contains(&word), "{} lacks {word}", file.display());
    }
    let read = run(
        "groff",
        &["-K", "utf8", "-man", "-ww", "-z", "-Tutf8", path(&file)],
    );
    assert_eq!(read.unwrap_or_default(), "", "{}", file.display());
}

/// Asks bash what it would offer behind `--`, with each command.
fn bash_completes(script: &Path, program: &str, all: &[&clap::Command]) {
    let mut asking = format!(
        "source {script:?}
         compopt() {{ :; }}
         ask() {{
             COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)) COMPREPLY=()
             _{program} \"$1\" \"${{@: -1}}\" \"${{@: -2:1}}\"
             echo \"${{COMPREPLY[*]}}\"
         }}\n"
    );
    for command in all {
        writeln!(asking, "ask {} --", typed(command)).unwrap();
    }
    if let Some(answers) = run("bash", &["--noprofile", "--norc", "-c", &asking]) {
        let answers: Vec<&str> = answers.lines().collect();
        assert_eq!(answers.len(), all.len(), "{answers:#?}");
        for (command, answer) in all.iter().zip(answers) {
            let offered = answer.split_whitespace().map(str::to_owned).collect();
            assert_offers("bash", command, &offered);
        }
    }
}

/// That zsh reads the file, and that it has the options: asking zsh takes a terminal.
fn zsh_completes(script: &Path, all: &[&clap::Command]) {
    let text = fs::read_to_string(script).unwrap();
    let words = text.split(|c: char| c != '-' && !c.is_ascii_alphanumeric());
    let offered = words.map(str::to_owned).collect();
    for command in all {
        assert_offers("zsh", command, &offered);
    }
    let read = run("zsh", &["-f", "-n", path(script)]);
    assert_eq!(read.unwrap_or_default(), "");
}

/// Asks fish what it would offer behind `--`, with each command.
fn fish_completes(script: &Path, all: &[&clap::Command], home: &Path) {
    let mut asking = format!("set -gx HOME {home:?}; source {script:?}\n");
    for command in all {
        writeln!(asking, "complete -C '{} --'; echo =", typed(command)).unwrap();
    }
    if let Some(answers) = run("fish", &["--no-config", "-c", &asking]) {
        let answers: Vec<&str> = answers.split_terminator("=\n").collect();
        assert_eq!(answers.len(), all.len(), "{answers:#?}");
        for (command, answer) in all.iter().zip(answers) {
            let offers = answer.lines().filter_map(|line| line.split('\t').next());
            assert_offers("fish", command, &offers.map(str::to_owned).collect());
        }
    }
}

fn assert_offers(shell: &str, command: &clap::Command, offered: &BTreeSet<String>) {
    let options = options(command);
    let missing: Vec<_> = options.difference(offered).collect();
    let typed = typed(command);
    assert!(missing.is_empty(), "{shell}: {typed}: {missing:?}");
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

/// What a program of the system prints, its complaints included; `None` where it is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if std::env::var_os("TEST_REQUIRE_SERVICES").is_none() => {
            println!("left out: {program}: {error}");
            return None;
        }
        Err(error) => panic!("{program}: {error}; to install it: apt-get install {program}"),
    };
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).unwrap();
    assert!(output.status.success(), "{program}: {printed}");
    Some(printed)
}
