//! The options of `producer flink`.

use std::time::Duration;

use clap::builder::BoolishValueParser;
use service::address::{self, AddressParser};
use service::time::duration;

use crate::polling::follow::FOLLOWED_MAX;

/// Which jobs to report on, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// REST address of a Flink JobManager: a session cluster or an application cluster (repeatable). With
    /// USER:PASSWORD@ only as FLINK_URL
    #[arg(
        long,
        env = "FLINK_URL",
        value_name = "URL",
        value_parser = AddressParser::http("the environment variable FLINK_URL"),
        hide_env_values = true,
        required = true,
        value_delimiter = ','
    )]
    pub url: Vec<address::Address>,

    /// Only these jobs; otherwise all that the clusters list (repeatable)
    #[arg(long, value_name = "JOB_ID")]
    pub job: Vec<String>,

    /// HistoryServer that knows how a job ended after its JobManager has gone
    #[arg(
        long,
        env = "FLINK_HISTORY_URL",
        value_name = "URL",
        value_parser = AddressParser::http("the environment variable FLINK_HISTORY_URL"),
        hide_env_values = true
    )]
    pub history_url: Option<address::Address>,

    /// Time from one poll to the next. Flink collects metrics every 10 s, so a shorter one shows few new values
    #[arg(long, env = "FLINK_INTERVAL", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub interval: Duration,

    /// Jobs of one cluster that are polled at a time. As many slow jobs and lookups are polled beside them; they never
    /// delay the others
    #[arg(
        long,
        env = "FLINK_POLLS",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=FOLLOWED_MAX as i64)
    )]
    pub polls: u16,

    /// Publish names too: of the job (metric jobName) and of its vertices. In Flink SQL they can hold query text
    #[arg(long, env = "FLINK_WITH_NAMES", value_parser = BoolishValueParser::new())]
    pub with_names: bool,

    /// Keep running when all jobs have ended, and report on new ones
    #[arg(long, env = "FLINK_STAY", value_parser = BoolishValueParser::new())]
    pub stay: bool,

    /// How long to wait for a cluster that does not answer, for a job that is not listed, and for the HistoryServer
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub give_up_after: Duration,
}
