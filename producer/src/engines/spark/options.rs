//! The options of `producer spark`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use service::address::{self, AddressParser};
use service::time::duration;

/// Maximum number of running applications of one address that are followed at a time, and of ended ones whose end is being
/// reported.
pub(super) const APPLICATIONS_MAX: usize = 1_000;
/// Addresses of `--urls-file`.
pub(super) const ADDRESSES_MAX: usize = 1_000;

/// Which applications to report on, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Address of a Spark UI, or of a History Server (repeatable). With USER:PASSWORD@ only as SPARK_URL
    #[arg(
        long,
        env = "SPARK_URL",
        value_name = "URL",
        value_parser = AddressParser::http("the environment variable SPARK_URL"),
        hide_env_values = true,
        required_unless_present = "urls_file",
        value_delimiter = ','
    )]
    pub url: Vec<address::Address>,

    /// File of such addresses, one a line, also with USER:PASSWORD@. It is read again when it changes: applications of
    /// new addresses are followed, those of addresses that it no longer has are not
    #[arg(long, env = "SPARK_URLS_FILE", value_name = "FILE")]
    pub urls_file: Option<PathBuf>,

    /// Only these applications; otherwise all that the addresses list (repeatable)
    #[arg(long, value_name = "ID")]
    pub app: Vec<String>,

    /// Only applications that run. Of a History Server, not those that had ended when it was first read
    #[arg(long, env = "SPARK_RUNNING_ONLY", value_parser = BoolishValueParser::new())]
    pub running_only: bool,

    /// History Server that knows how an application ended after its UI has gone
    #[arg(
        long,
        env = "SPARK_HISTORY_URL",
        value_name = "URL",
        value_parser = AddressParser::http("the environment variable SPARK_HISTORY_URL"),
        hide_env_values = true
    )]
    pub history_url: Option<address::Address>,

    /// Time from one poll to the next
    #[arg(long, env = "SPARK_INTERVAL", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub interval: Duration,

    /// Applications of one server that are polled at a time. As many slow applications and lookups are polled beside
    /// them; they never delay the others
    #[arg(
        long,
        env = "SPARK_POLLS",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=APPLICATIONS_MAX as i64)
    )]
    pub polls: u16,

    /// Keep running when all applications have ended, and report on new ones
    #[arg(long, env = "SPARK_STAY", value_parser = BoolishValueParser::new())]
    pub stay: bool,

    /// How long to wait for an address that does not answer, for an application that is not listed, and for the History
    /// Server
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub give_up_after: Duration,
}
