//! The options of `producer spark-log`.

use std::path::PathBuf;
use std::time::Duration;

use service::settings::topic_name;
use service::time::duration;

/// Which logs are read, and how often their applications are reported.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Event log, or folder of event logs, read with the folders in it
    #[arg(value_name = "PATH", required = true)]
    pub path: Vec<PathBuf>,

    /// Report each application only once, with its last state
    #[arg(long)]
    pub at_end: bool,

    /// Time of the log between two reports on an application in which no job starts or ends
    #[arg(
        long,
        value_name = "TIME",
        default_value = "5s",
        value_parser = duration,
        conflicts_with = "at_end"
    )]
    pub interval: Duration,

    /// Keep reading: logs that are being written, and new ones. Goes on behind the last report after a restart
    #[arg(long)]
    pub follow: bool,

    /// With --follow, end when every application has ended
    #[arg(long, requires = "follow")]
    pub until_ended: bool,

    /// With --follow, time from one look at the logs to the next
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub poll_interval: Duration,

    /// With --follow, how long to wait for a log without an end that does not grow: then its application is reported as
    /// Unknown, and goes on if the log does
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub give_up_after: Duration,

    /// With --follow, topic of the checkpoints [default: the topic of reports, with -spark-log-checkpoints]
    #[arg(long, env = "SPARK_LOG_CHECKPOINTS_TOPIC", value_name = "TOPIC", value_parser = topic_name)]
    pub checkpoints_topic: Option<String>,
}
