//! Options whose value may be a secret.

use std::any::TypeId;

use clap::Command;

use crate::address::Address;

/// Asserts that `--help` of a program and of its subcommands shows no value of a variable that may contain a
/// secret, and that every option with a URL parses it as an [`Address`].
pub fn assert_help_hides_secrets(command: &Command) {
    for option in command.get_arguments() {
        let names = option.get_value_names().unwrap_or_default();
        let is_address = option.get_value_parser().type_id() == TypeId::of::<Address>();
        let takes_url = names.iter().any(|name| name.contains("URL"));
        assert!(is_address || !takes_url, "{option} reads a URL as a text");
        let Some(variable) = option.get_env().and_then(|name| name.to_str()) else {
            continue;
        };
        let words = ["PASSWORD", "SECRET", "TOKEN", "USER_INFO"];
        let is_secret = words.iter().any(|word| variable.contains(word));
        assert!(
            !(is_address || is_secret) || option.is_hide_env_values_set(),
            "{}: --help shows the value of {variable}",
            command.get_name()
        );
    }
    for command in command.get_subcommands() {
        assert_help_hides_secrets(command);
    }
}
