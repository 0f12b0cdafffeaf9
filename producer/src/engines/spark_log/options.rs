//! The options of `producer spark-log`.

use std::path::PathBuf;
use std::time::Duration;

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
}
