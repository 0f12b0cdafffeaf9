//! The options of `consumer audit`.

use std::path::PathBuf;

use schemas::topics;
use service::range::Bound;
use service::settings::topic_name;

/// Options of `consumer audit`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Topic that the tables came from: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic of the dead letters; events with a dead letter have no rows
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// Start: earliest (what the topic still has), offset:P=N,…, time:2026-11-25T10:00Z, or relative to now as in -2h
    /// [default: all rows, including those whose events are gone]
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    pub from: Option<Bound>,

    /// End, exclusive; latest: everything that is stored
    #[arg(
        long,
        value_name = "POSITION",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    pub to: Bound,

    /// Write missing rows, remove extra ones, correct differing ones, then audit again
    #[arg(long)]
    pub repair: bool,

    /// Allow a repair to remove more rows than it keeps
    #[arg(long, requires = "repair")]
    pub yes: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Write a report: FILE.html (to read and print), FILE.json, or FILE.prom for node_exporter's textfile collector
    /// (repeatable)
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,

    /// Maximum number of findings to show; 0 for all that are kept in memory
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,

    /// Folder of .avsc files of versions newer than this program, the same as for the consumer
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

impl Config {
    /// Whether all rows of the tables are compared, including those whose events are gone.
    pub(super) fn is_whole(&self) -> bool {
        self.from.is_none() && matches!(self.to, Bound::Latest)
    }
}
