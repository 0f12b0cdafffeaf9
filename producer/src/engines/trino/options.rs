//! The options of `producer trino`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use service::address::{self, AddressParser};
use service::time::duration;

use crate::polling::follow::FOLLOWED_MAX;

/// Which queries to report on, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Address of a Trino or Presto coordinator (repeatable). With USER:PASSWORD@ only as TRINO_URL
    #[arg(
        long,
        env = "TRINO_URL",
        value_name = "URL",
        value_parser = AddressParser::http("the environment variable TRINO_URL"),
        hide_env_values = true,
        required = true,
        value_delimiter = ','
    )]
    pub url: Vec<address::Address>,

    /// Only these queries; otherwise all that the coordinators list (repeatable)
    #[arg(long, value_name = "QUERY_ID")]
    pub query: Vec<String>,

    /// User of the requests, who has to have the right to view the queries. By default the user of the address or
    /// token; without either, `producer`
    #[arg(long, env = "TRINO_USER", value_name = "NAME", value_parser = header_value)]
    pub user: Option<String>,

    /// File with a JSON Web Token, instead of user and password. Read for each request, so that it can be renewed
    #[arg(
        long,
        env = "TRINO_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub token_file: Option<PathBuf>,

    /// File with root certificates (PEM) to trust beside the system's
    #[arg(long, env = "TRINO_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// The coordinators are Presto's: sends X-Presto-User, and reports the engine type `presto`
    #[arg(long, env = "TRINO_PRESTO", value_parser = BoolishValueParser::new())]
    pub presto: bool,

    /// Time from one poll to the next
    #[arg(long, env = "TRINO_INTERVAL", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub interval: Duration,

    /// Queries of one coordinator whose stages are read at a time. As many slow ones are read beside them; they never
    /// delay the others
    #[arg(
        long,
        env = "TRINO_POLLS",
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=FOLLOWED_MAX as i64)
    )]
    pub polls: u16,

    /// Publish the text of each query too (metric query), cut off after 10,000 characters. It can hold people's data
    #[arg(long, env = "TRINO_WITH_QUERY_TEXT", value_parser = BoolishValueParser::new())]
    pub with_query_text: bool,

    /// Keep running when all queries have ended, and report on new ones
    #[arg(long, env = "TRINO_STAY", value_parser = BoolishValueParser::new())]
    pub stay: bool,

    /// How long to wait for a coordinator that does not answer, and for a query that is not listed
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub give_up_after: Duration,
}

fn header_value(text: &str) -> Result<String, String> {
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("it may not have the character {c:?}")),
        None => Ok(text.to_owned()),
    }
}
