//! The command line and the environment of a program.

use std::env::var_os;
use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::{Error, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Parser};

use crate::error::WrongUsage;

/// Parses a command line, which begins with the program's name, and this process's environment. A blank
/// environment variable, such as `${NAME:-}` in a Compose file, counts as unset. A blank value on the command
/// line is refused.
///
/// # Errors
/// The mistake, or the requested help.
pub fn parse<P: Parser>(arguments: impl IntoIterator<Item: Into<OsString>>) -> Result<P, Error> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let mut command = without_blank_variables(P::command(), &|name| var_os(name));
    let mut matches = command
        .try_get_matches_from_mut(&arguments)
        .map_err(|error| match error.kind() {
            // The help lists every variable, including blank ones.
            ErrorKind::DisplayHelp => {
                let whole = P::command().try_get_matches_from(&arguments);
                whole.err().unwrap_or(error)
            }
            _ => error,
        })?;
    refuse_blank_values(&mut command, &matches)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The command without the environment variables that are blank.
fn without_blank_variables(
    command: Command,
    value_of: &dyn Fn(&OsStr) -> Option<OsString>,
) -> Command {
    let unset = |argument: Arg| match argument.get_env().and_then(value_of) {
        Some(value) if is_blank(&value) => argument.env(Resettable::Reset),
        _ => argument,
    };
    command
        .mut_args(unset)
        .mut_subcommands(|command| without_blank_variables(command, value_of))
}

fn refuse_blank_values(command: &mut Command, matches: &ArgMatches) -> Result<(), Error> {
    let blank = command.get_arguments().find(|argument| {
        let id = argument.get_id().as_str();
        let given = matches.try_get_raw(id).ok().flatten();
        given.is_some_and(|mut values| values.any(is_blank))
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    });
    if let Some(argument) = blank.map(ToString::to_string) {
        let why = format!("{argument} has an empty value; give it a value, or leave it out");
        return Err(command.error(ErrorKind::InvalidValue, why));
    }
    match matches.subcommand() {
        Some((name, matches)) => match command.find_subcommand_mut(name) {
            Some(command) => refuse_blank_values(command, matches),
            None => Ok(()),
        },
        None => Ok(()),
    }
}

fn is_blank(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| text.trim().is_empty())
}

/// Parses a topic name by Kafka's rules (`Topic.validate`).
///
/// # Errors
/// What is wrong with it.
pub fn topic_name(text: &str) -> Result<String, String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match text {
        "." | ".." => Err("no topic can have this name".to_owned()),
        _ if text.len() > TOPIC_MAX_BYTES || !text.chars().all(is_good) => Err(format!(
            "a topic's name has at most {TOPIC_MAX_BYTES} characters: ASCII letters, digits, '.', '_' and '-'"
        )),
        _ => Ok(text.to_owned()),
    }
}

/// Maximum length of a topic name, in ASCII characters.
const TOPIC_MAX_BYTES: usize = 249;

/// Parses the name of an instance. It becomes part of the `client.id`, which librdkafka writes unescaped into
/// the JSON of its statistics.
///
/// # Errors
/// What is wrong with it.
pub fn instance_id(text: &str) -> Result<String, String> {
    match text
        .chars()
        .find(|c| matches!(c, '"' | '\\') || c.is_control())
    {
        Some(c) => Err(format!("it may not have the character {c:?}")),
        None => Ok(text.to_owned()),
    }
}

/// Checks that these options name different topics.
///
/// # Errors
/// [`WrongUsage`] with the first two options that name the same topic.
pub fn distinct_topics(options: &[(&str, &str)]) -> Result<(), WrongUsage> {
    for (i, (option, topic)) in options.iter().enumerate() {
        if let Some((earlier, _)) = options[..i].iter().find(|(_, other)| other == topic) {
            return Err(WrongUsage(format!(
                "{earlier} and {option} are both {topic}: each needs a topic of its own"
            )));
        }
    }
    Ok(())
}

/// The name of this host; empty if it has none.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        /// Set in every test by Cargo.
        #[arg(long, env = "CARGO_PKG_NAME", global = true)]
        set: Option<String>,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Sub {
        Run {
            #[arg(long)]
            name: Vec<String>,
            file: Option<String>,
        },
    }

    #[test]
    fn a_blank_variable_is_unset_at_every_depth() {
        let variables = |command: &Command| {
            let of = |command: &Command| {
                let arguments = command.get_arguments();
                arguments.filter_map(Arg::get_env).count()
            };
            of(command) + command.get_subcommands().map(of).sum::<usize>()
        };
        for blank in ["", " ", "\t\n"] {
            let value = |_: &OsStr| Some(OsString::from(blank));
            let command = without_blank_variables(Cli::command(), &value);
            assert_eq!(variables(&command), 0, "{blank:?}");
        }
        let command = without_blank_variables(Cli::command(), &|name| var_os(name));
        assert_eq!(variables(&command), 1);
        let parsed = parse::<Cli>(["test"]).unwrap();
        assert_eq!(parsed.set.as_deref(), Some("service"));
    }

    #[test]
    fn a_blank_value_on_the_command_line_is_refused_at_every_depth() {
        for (line, named) in [
            (&["test", "--set", ""][..], "--set <SET>"),
            (&["test", "--set", " ", "run"], "--set <SET>"),
            (&["test", "run", "--set="], "--set <SET>"),
            (
                &["test", "run", "--name", "a", "--name", ""],
                "--name <NAME>",
            ),
            (&["test", "run", ""], "[FILE]"),
        ] {
            let refused = parse::<Cli>(line).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{line:?}");
            let refused = refused.to_string();
            let why = format!("{named} has an empty value");
            assert!(refused.contains(&why), "{line:?}: {refused}");
        }
        parse::<Cli>(["test", "run", "--name", "a", "b"]).unwrap();
    }
}
