//! The options of `consumer audit`.

use std::path::PathBuf;

use schemas::topics;
use service::range::Bound;
use service::settings::topic_name;

/// What is audited, and what is done about it.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Topic that the tables came from: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic of the dead letters: events there have no rows
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// From here on: earliest (what the topic still has), offset:P=N,…, time:2026-11-25T10:00Z, or back from now as in -2h [default: all rows, also those whose events are gone]
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    pub from: Option<Bound>,

    /// Up to here, not included; latest: all that is stored
    #[arg(
        long,
        value_name = "POSITION",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    pub to: Bound,

    /// Write what is missing, remove what is extra, put right what differs, and audit again
    #[arg(long)]
    pub repair: bool,

    /// Let a repair remove more rows than it keeps
    #[arg(long, requires = "repair")]
    pub yes: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Write a report: FILE.html, to read and print, FILE.json, or FILE.prom for node_exporter's textfile collector (repeatable)
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,

    /// Show at most so many findings; 0 for all that are held
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,

    /// Folder of .avsc files of versions newer than this program, as the consumer was given
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

impl Config {
    /// Whether all rows of the tables are compared, including those whose events are gone.
    pub(super) fn is_whole(&self) -> bool {
        self.from.is_none() && matches!(self.to, Bound::Latest)
    }
}
